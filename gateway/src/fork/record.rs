//! The journal's bytes: a header and a chain of records. Pure: bytes in, values out. Integers are little-endian.
//!
//! ```text
//!   0    magic "CFJRN\r\n\0", u32 version, u32 0, u64 generation, u64 size of the disk, boot id 16, salt 16, code 16
//!   512  records: u32 length of the body, u8 kind, 3 zeroes | body, a multiple of 8 bytes | code 16
//!
//!   1 touch    u64 first block, u64 blocks      these became ours; their contents lie in the data
//!   2 zero     u64 first block, u64 blocks      these read as zeroes
//!   3 store    u64 first block, sealed blocks   these became ours; their contents lie in the data, and here
//!   4 redo     the same                         their contents lie here; in the data once a touch of the same blocks follows
//!   5 map      u64 region, {u64 ours, u64 zeroed} of it and its followers, a bit a block
//!   6 commit   magic 8, code of its own 16, u64 durable, u64 firm
//!   7 begun    the state that this generation began with is whole, and firm
//!   8 distrust what is not firm is not to be believed, not even on the boot that wrote it
//!   9 retired  a newer generation counts
//! ```
//! A code is keyed BLAKE3, cut to 16 bytes. A record's covers the code before it, its offset and its bytes; the first chains to
//! the header's, which covers a random salt: so nothing that an earlier generation left behind ever verifies, and what
//! verifies is a prefix of what was written. A commit has a second code that stands alone (over the header's code and its
//! offset), so that it is found behind damage: *durable* says up to where the journal had been synced before it was written, and a
//! break before that is damage and not the torn end that a power cut leaves. *firm* says: what records before it call ours lies
//! durably in the data.
//!
//! Not here: reading and writing media ([`super::journal`]), what records come to ([`super::replay`]). What holds: decoding never
//! panics.

use super::BootId;
use crate::{Error, Kind, Result};
use coffer_repo::crypto::Key32;
use std::ops::Range;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Where records begin: the header has a sector of its own.
pub(super) const RECORDS_AT: u64 = 512;
/// Most blocks of a store.
pub(super) const STORE_MAX: usize = 64;
/// Bytes of the longest record.
pub(super) const RECORD_MAX: usize = HEAD_LEN + 8 + STORE_MAX * BLOCK + CODE_LEN;
/// Bytes that a commit takes.
pub(super) const COMMIT_LEN: u64 = (HEAD_LEN + 40 + CODE_LEN) as u64;

const MAGIC: &[u8; 8] = b"CFJRN\r\n\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64 + CODE_LEN;
const HEAD_LEN: usize = 8;
const CODE_LEN: usize = 16;
const COMMIT_MAGIC: &[u8; 8] = b"CFCMT\r\n\0";

type Code = [u8; CODE_LEN];

/// What a journal begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) generation: u64,
    /// Of the disk, in bytes.
    pub(super) size: u64,
    pub(super) boot: BootId,
    /// Random: two journals of one generation never take each other's records for their own.
    pub(super) salt: [u8; 16],
}

/// A record. Ranges are in blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Touch(Range<u64>),
    Zero(Range<u64>),
    Store { first: u64, sealed: &'a [u8] },
    Redo { first: u64, sealed: &'a [u8] },
    Map { region: u64, masks: &'a [u8] },
    Commit { durable: u64, firm: u64 },
    Begun,
    Distrust,
    Retired,
}

/// Where the chain of codes stands.
#[derive(Clone)]
pub(super) struct Chain {
    key: Key32,
    origin: Code,
    last: Code,
}

impl Header {
    /// The header's bytes, padded to the sector that they have, and the chain that begins with them.
    pub(super) fn encode(&self, key: &Key32) -> (Vec<u8>, Chain) {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.boot.0);
        bytes.extend_from_slice(&self.salt);
        let code = code(key, &[b"header", &bytes]);
        bytes.extend_from_slice(&code);
        bytes.resize(512, 0);
        (bytes, Chain { key: key.clone(), origin: code, last: code })
    }

    /// The header that `bytes` begin with. `Corrupt` when it is none of this key's, `Unsupported` when it is of another version.
    pub(super) fn decode(key: &Key32, bytes: &[u8]) -> Result<(Header, Chain)> {
        let refused = || Error::corrupt("a journal's header is damaged");
        let (covered, found) = bytes.get(..HEADER_LEN).ok_or_else(refused)?.split_at(HEADER_LEN - CODE_LEN);
        let mut fields = Fields(covered);
        let is_ours = fields.array::<8>() == Some(*MAGIC);
        let version = fields.u32().filter(|_| is_ours).ok_or_else(refused)?;
        if version != VERSION {
            let why = format!("a journal of version {version}; it is damaged, or needs a newer version of coffer");
            return Err(Error::new(Kind::Unsupported, why));
        }
        let code = code(key, &[b"header", covered]);
        if found != code {
            return Err(refused());
        }
        let header = fields.u32().and_then(|_| {
            Some(Header {
                generation: fields.u64()?,
                size: fields.u64()?,
                boot: BootId(fields.array()?),
                salt: fields.array()?,
            })
        });
        Ok((header.ok_or_else(refused)?, Chain { key: key.clone(), origin: code, last: code }))
    }
}

impl Entry<'_> {
    fn kind(&self) -> u8 {
        match self {
            Entry::Touch(_) => 1,
            Entry::Zero(_) => 2,
            Entry::Store { .. } => 3,
            Entry::Redo { .. } => 4,
            Entry::Map { .. } => 5,
            Entry::Commit { .. } => 6,
            Entry::Begun => 7,
            Entry::Distrust => 8,
            Entry::Retired => 9,
        }
    }

    /// Bytes that the whole record takes.
    pub(super) fn len(&self) -> usize {
        let body = match self {
            Entry::Touch(_) | Entry::Zero(_) => 16,
            Entry::Store { sealed, .. } | Entry::Redo { sealed, .. } => 8 + sealed.len(),
            Entry::Map { masks, .. } => 8 + masks.len(),
            Entry::Commit { .. } => 40,
            Entry::Begun | Entry::Distrust | Entry::Retired => 0,
        };
        HEAD_LEN + body + CODE_LEN
    }
}

impl Chain {
    /// Appends the record at `offset` of the journal to `out`. `Internal` when it is longer than records are.
    pub(super) fn push(&mut self, offset: u64, entry: &Entry<'_>, out: &mut Vec<u8>) -> Result<()> {
        let (start, len) = (out.len(), entry.len());
        let body_len = u32::try_from(len - HEAD_LEN - CODE_LEN).ok().filter(|_| len <= RECORD_MAX);
        let body_len = body_len.ok_or_else(|| Error::internal("a record that is too long for a journal"))?;
        out.extend_from_slice(&body_len.to_le_bytes());
        out.extend_from_slice(&[entry.kind(), 0, 0, 0]);
        match entry {
            Entry::Touch(blocks) | Entry::Zero(blocks) => {
                out.extend_from_slice(&blocks.start.to_le_bytes());
                out.extend_from_slice(&(blocks.end - blocks.start).to_le_bytes());
            }
            Entry::Store { first: number, sealed: bytes }
            | Entry::Redo { first: number, sealed: bytes }
            | Entry::Map { region: number, masks: bytes } => {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Entry::Commit { durable, firm } => {
                out.extend_from_slice(COMMIT_MAGIC);
                out.extend_from_slice(&self.commit_code(offset, *durable, *firm));
                out.extend_from_slice(&durable.to_le_bytes());
                out.extend_from_slice(&firm.to_le_bytes());
            }
            Entry::Begun | Entry::Distrust | Entry::Retired => {}
        }
        let bytes = out.get(start..).unwrap_or_default();
        self.last = self.code_of(offset, bytes);
        out.extend_from_slice(&self.last);
        Ok(())
    }

    fn code_of(&self, offset: u64, bytes: &[u8]) -> Code {
        code(&self.key, &[b"record", &self.last, &offset.to_le_bytes(), bytes])
    }

    fn commit_code(&self, offset: u64, durable: u64, firm: u64) -> Code {
        let fields = [offset.to_le_bytes(), durable.to_le_bytes(), firm.to_le_bytes()];
        code(&self.key, &[b"commit", &self.origin, fields.as_flattened()])
    }
}

/// The records of a journal, as far as they verify.
pub(super) struct Records<'a> {
    journal: &'a [u8],
    chain: Chain,
    at: usize,
}

impl<'a> Records<'a> {
    /// Those of the whole journal `journal`, whose header gave `chain`.
    pub(super) fn new(journal: &'a [u8], chain: Chain) -> Self {
        Records { journal, chain, at: 512 }
    }

    /// Where the next record begins, or, after the last, would.
    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    /// The chain as it stands there.
    pub(super) fn into_chain(self) -> Chain {
        self.chain
    }

    fn parse(&mut self) -> Option<(u64, Entry<'a>)> {
        let rest = self.journal.get(self.at..)?;
        let mut head = Fields(rest);
        let body_len = usize::try_from(head.u32()?).ok().filter(|len| *len <= RECORD_MAX)?;
        let [kind, 0, 0, 0] = head.array::<4>()? else { return None };
        let (covered, after) = rest.split_at_checked(HEAD_LEN + body_len)?;
        let offset = self.offset();
        let code = self.chain.code_of(offset, covered);
        if after.get(..CODE_LEN)? != code {
            return None;
        }
        let mut body = Fields(covered.get(HEAD_LEN..)?);
        let entry = match kind {
            1 => Entry::Touch(body.range()?),
            2 => Entry::Zero(body.range()?),
            3 => Entry::Store { first: body.u64()?, sealed: body.0 },
            4 => Entry::Redo { first: body.u64()?, sealed: body.0 },
            5 => Entry::Map { region: body.u64()?, masks: body.0 },
            6 => {
                body.array::<24>()?;
                Entry::Commit { durable: body.u64()?, firm: body.u64()? }
            }
            7 => Entry::Begun,
            8 => Entry::Distrust,
            9 => Entry::Retired,
            _ => return None,
        };
        self.chain.last = code;
        self.at += covered.len() + CODE_LEN;
        Some((offset, entry))
    }

    /// Whether what follows the last record that verifies was durable once: some commit behind it says so.
    pub(super) fn is_damaged(&self) -> bool {
        let behind = self.journal.get(self.at..).unwrap_or_default();
        behind.chunks_exact(8).enumerate().filter(|(_, word)| *word == COMMIT_MAGIC).any(|(index, _)| {
            let body = self.at + index * 8;
            let mut fields = Fields(self.journal.get(body + 8..).unwrap_or_default());
            let fields = fields.array::<CODE_LEN>().zip(fields.u64()).zip(fields.u64());
            fields.is_some_and(|((code, durable), firm)| {
                let offset = (body - HEAD_LEN) as u64;
                code == self.chain.commit_code(offset, durable, firm) && durable > self.offset()
            })
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (u64, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.parse()
    }
}

/// Bytes that are taken from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn range(&mut self) -> Option<Range<u64>> {
        let (start, len) = (self.u64()?, self.u64()?);
        Some(start..start.checked_add(len)?)
    }
}

fn code(key: &Key32, parts: &[&[u8]]) -> Code {
    let mut hasher = blake3::Hasher::new_keyed(key.expose());
    for part in parts {
        hasher.update(part);
    }
    let mut code = [0; CODE_LEN];
    hasher.finalize_xof().fill(&mut code);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key32 {
        Key32::new([7; 32])
    }

    fn header(salt: u8) -> Header {
        Header { generation: 3, size: 1 << 30, boot: BootId([1; 16]), salt: [salt; 16] }
    }

    fn entries(sealed: &[u8]) -> Vec<Entry<'_>> {
        vec![
            Entry::Begun,
            Entry::Touch(1..9),
            Entry::Store { first: 4, sealed },
            Entry::Zero(3..4),
            Entry::Commit { durable: 600, firm: 700 },
            Entry::Redo { first: 1 << 40, sealed },
            Entry::Map { region: 5, masks: &sealed[..64] },
            Entry::Commit { durable: 1 << 14, firm: 800 },
            Entry::Distrust,
            Entry::Retired,
        ]
    }

    fn journal(salt: u8) -> Vec<u8> {
        let (mut bytes, mut chain) = header(salt).encode(&key());
        for entry in entries(&[9; 2 * BLOCK]) {
            let (offset, before) = (bytes.len() as u64, bytes.len());
            chain.push(offset, &entry, &mut bytes).unwrap();
            assert_eq!(bytes.len() - before, entry.len());
            assert_eq!(bytes.len() % 8, 0);
        }
        bytes.resize(bytes.len() + 4096, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> (Vec<Entry<'_>>, bool) {
        let (_, chain) = Header::decode(&key(), bytes).unwrap();
        let mut records = Records::new(bytes, chain);
        let found = records.by_ref().map(|(_, entry)| entry).collect();
        (found, records.is_damaged())
    }

    #[test]
    fn records_round_trip() {
        let bytes = journal(1);
        assert_eq!(Header::decode(&key(), &bytes).unwrap().0, header(1));
        assert_eq!(read(&bytes), (entries(&[9; 2 * BLOCK]), false));
    }

    #[test]
    fn a_flip_ends_the_chain_and_is_damage_where_a_commit_says_that_it_was_durable() {
        let (bytes, sealed) = (journal(1), [9; 2 * BLOCK]);
        let whole = entries(&sealed);
        assert!(512 + whole[..7].iter().map(Entry::len).sum::<usize>() > 1 << 14);
        let end: usize = 512 + whole.iter().map(Entry::len).sum::<usize>();
        for at in (512..end).filter(|at| at % 7 == 0 || at % 4096 < 200) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let (found, damaged) = read(&flipped);
            assert!(found.len() < whole.len() && found == whole[..found.len()], "byte {at}");
            let broken: usize = 512 + whole[..found.len()].iter().map(Entry::len).sum::<usize>();
            assert!(broken <= at && at < broken + whole[found.len()].len(), "byte {at}");
            // The second commit, which lies behind them, vouches for the first 16 KiB.
            assert_eq!(damaged, broken < 1 << 14, "byte {at}");
        }
        for at in 0..64 + CODE_LEN {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Header::decode(&key(), &flipped).is_err(), "byte {at}");
        }
    }

    #[test]
    fn nothing_of_another_generation_verifies() {
        let (one, mut other) = (journal(1), journal(2));
        other[512..].copy_from_slice(&one[512..]);
        assert_eq!(read(&other), (vec![], false));
        // Nor in the place of another record.
        let mut swapped = one.clone();
        let (from, to) = (512 + 24, 512);
        swapped.copy_within(from..from + 40, to);
        assert_eq!(read(&swapped).0, []);
        let stranger = Key32::new([8; 32]);
        assert_eq!(Header::decode(&stranger, &one).err().map(|e| e.kind()), Some(Kind::Corrupt));
    }

    #[test]
    fn a_truncated_journal_is_a_prefix() {
        let (bytes, sealed) = (journal(1), [9; 2 * BLOCK]);
        for cut in (80..bytes.len()).step_by(13) {
            let (found, _) = read(&bytes[..cut]);
            assert_eq!(found, entries(&sealed)[..found.len()], "{cut}");
        }
    }
}
