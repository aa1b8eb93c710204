//! The body of an index delta (FORMAT.md section 7): which packs a writer made and what lies where in them.
//!
//! Not here: sealing and signing ([`crate::sealed`]), and what a reader of deltas keeps (the index). Pure: bytes in, values
//! out. What holds: decoding never panics, allocates no more than the input's length warrants, and refuses whatever the
//! encoder does not write, trailing bytes included; every entry lies inside its pack.

use crate::certificate::Certificates;
use crate::crypto::TAG_LEN;
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::id::{PackUid, SignerId};
use crate::location::{IndexKey, PackKind};
use crate::pack::Entry;
use crate::sealed::Record;

/// The prefix under which index deltas are listed.
pub const PREFIX: &str = "index/";

/// What errors call the bytes.
const WHAT: &str = "an index delta";
/// Bytes of an entry: key, offset, stored length, raw length.
const ENTRY_LEN: usize = 28;
/// Bytes of a pack's line before its entries: uid, kind, length, signer, number of entries.
const PACK_LEN: usize = 45;

/// An index delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexDelta {
    /// Names of the deltas whose content this one takes over.
    pub superseded: Vec<String>,
    /// The packs it reports.
    pub packs: Vec<PackEntries>,
}

/// One pack as an index delta reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackEntries {
    /// The pack.
    pub uid: PackUid,
    /// Its kind, which says whether the entries are chunks or nodes.
    pub kind: PackKind,
    /// Length of its object in bytes.
    pub object_len: u64,
    /// Who signed its header.
    pub signer: SignerId,
    /// What lies in it.
    pub entries: Vec<DeltaEntry>,
}

/// A frame of a pack as an index delta reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaEntry {
    /// First half of the id.
    pub key: IndexKey,
    /// First byte of the frame in the pack.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored_len: u32,
    /// Bytes before compression.
    pub raw_len: u32,
}

impl PackEntries {
    /// The line of a pack with this table of contents.
    #[must_use]
    pub fn new(uid: PackUid, kind: PackKind, object_len: u64, signer: SignerId, contents: &[Entry]) -> Self {
        let entries = contents
            .iter()
            .map(|e| DeltaEntry {
                key: e.stored.key(),
                offset: e.location.offset,
                stored_len: e.location.stored_len,
                raw_len: e.location.raw_len,
            })
            .collect();
        PackEntries { uid, kind, object_len, signer, entries }
    }
}

impl IndexDelta {
    /// The body's bytes. `Invalid` when a count or a name does not fit its field.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let entries: usize = self.packs.iter().map(|p| p.entries.len()).sum();
        let names: usize = self.superseded.iter().map(|n| n.len() + 2).sum();
        let mut out = Vec::with_capacity(8 + names + self.packs.len() * PACK_LEN + entries * ENTRY_LEN);
        out.extend_from_slice(&count(self.packs.len())?.to_le_bytes());
        out.extend_from_slice(&count(self.superseded.len())?.to_le_bytes());
        for name in &self.superseded {
            let len = u16::try_from(name.len())
                .map_err(|_| Error::invalid(format!("'{name}' is too long for the name of an index delta")))?;
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        for pack in &self.packs {
            out.extend_from_slice(&pack.uid.0);
            out.push(pack.kind.byte());
            out.extend_from_slice(&pack.object_len.to_le_bytes());
            out.extend_from_slice(&pack.signer.0);
            out.extend_from_slice(&count(pack.entries.len())?.to_le_bytes());
            for entry in &pack.entries {
                out.extend_from_slice(&entry.key.0);
                out.extend_from_slice(&entry.offset.to_le_bytes());
                out.extend_from_slice(&entry.stored_len.to_le_bytes());
                out.extend_from_slice(&entry.raw_len.to_le_bytes());
            }
        }
        Ok(out)
    }

    /// The delta in the record `name`, if it counts: its name's signer signed it, and a writer speaks of its own packs and
    /// deltas only. One that does not is `Corrupt`.
    pub fn counting(name: &str, record: &Record, certificates: &Certificates) -> Result<Self> {
        let delta = IndexDelta::decode(&record.body).map_err(|e| e.within(name))?;
        if parse_name(name).map(|(signer, _)| signer) != Some(record.signer) {
            return Err(Error::corrupt(format!("{name} was signed by {}", record.signer)));
        }
        let strange = |signer: SignerId| signer != record.signer;
        if !certificates.is_authority(record.signer)
            && (delta.packs.iter().any(|p| strange(p.signer))
                || delta.superseded.iter().any(|n| parse_name(n).is_none_or(|(signer, _)| strange(signer))))
        {
            return Err(Error::corrupt(format!("{name} speaks for a writer that did not sign it")));
        }
        Ok(delta)
    }

    /// Reads a body. Anything that [`encode`](Self::encode) would not write is `Corrupt`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut at = Cursor::new(body, WHAT);
        let packs = at.u32()?;
        let superseded = at.u32()?;
        // Counts are not trusted for allocation: each element takes bytes from the body, which ends.
        let mut delta = IndexDelta::default();
        for _ in 0..superseded {
            let len = at.u16()?;
            let name = std::str::from_utf8(at.take(usize::from(len))?)
                .map_err(|_| Error::corrupt("the name of a superseded index delta is not text"))?;
            delta.superseded.push(name.to_owned());
        }
        for _ in 0..packs {
            delta.packs.push(decode_pack(&mut at)?);
        }
        at.end()?;
        Ok(delta)
    }
}

/// The name of a signer's delta number `seq`.
#[must_use]
pub fn name(signer: SignerId, seq: u64) -> String {
    format!("{PREFIX}{signer}-{seq:016x}")
}

/// Signer and number of a delta's name, `None` when it is not spelt as [`name`] spells it.
#[must_use]
pub fn parse_name(object: &str) -> Option<(SignerId, u64)> {
    let (signer, seq) = object.strip_prefix(PREFIX)?.split_once('-')?;
    let parsed = (signer.parse().ok()?, u64::from_str_radix(seq, 16).ok()?);
    (name(parsed.0, parsed.1) == object).then_some(parsed)
}

fn decode_pack(at: &mut Cursor<'_>) -> Result<PackEntries> {
    let uid = PackUid(at.array()?);
    let [kind] = at.array()?;
    let kind = PackKind::from_byte(kind)?;
    let object_len = at.u64()?;
    let signer = SignerId(at.array()?);
    let entry_count = usize::try_from(at.u32()?).unwrap_or(usize::MAX);
    let bytes = at.take(entry_count.saturating_mul(ENTRY_LEN))?;
    let mut entries = Vec::with_capacity(entry_count);
    for bytes in bytes.chunks_exact(ENTRY_LEN) {
        let mut field = Cursor::new(bytes, WHAT);
        let entry = DeltaEntry {
            key: IndexKey(field.array()?),
            offset: field.u32()?,
            stored_len: field.u32()?,
            raw_len: field.u32()?,
        };
        let end = u64::from(entry.offset) + u64::from(entry.stored_len);
        let longest = u64::from(entry.raw_len) + TAG_LEN as u64;
        if end > object_len || entry.stored_len as usize <= TAG_LEN || u64::from(entry.stored_len) > longest {
            return Err(Error::corrupt(format!(
                "an index delta puts {} bytes for {} at offset {} of pack {uid}, which has {object_len}",
                entry.stored_len, entry.raw_len, entry.offset
            )));
        }
        entries.push(entry);
    }
    Ok(PackEntries { uid, kind, object_len, signer, entries })
}

fn count(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::invalid(format!("{n} items are too many for an index delta")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = DeltaEntry> {
        (any::<[u8; 16]>(), 192u32..1 << 26, 1u32..1 << 20).prop_flat_map(|(key, offset, raw_len)| {
            (17..=raw_len + 16).prop_map(move |stored_len| DeltaEntry {
                key: IndexKey(key),
                offset,
                stored_len,
                raw_len,
            })
        })
    }

    fn delta() -> impl Strategy<Value = IndexDelta> {
        let pack = (
            any::<[u8; 16]>(),
            prop_oneof![Just(PackKind::Data), Just(PackKind::Tree)],
            any::<[u8; 16]>(),
            prop::collection::vec(entry(), 0..20),
        )
            .prop_map(|(uid, kind, signer, entries)| PackEntries {
                uid: PackUid(uid),
                kind,
                object_len: 1 << 27,
                signer: SignerId(signer),
                entries,
            });
        (prop::collection::vec("index/[0-9a-f]{4,60}", 0..4), prop::collection::vec(pack, 0..4))
            .prop_map(|(superseded, packs)| IndexDelta { superseded, packs })
    }

    proptest! {
        #[test]
        fn round_trips_and_every_truncation_and_extension_is_refused(delta in delta()) {
            let mut bytes = delta.encode().unwrap();
            prop_assert_eq!(&IndexDelta::decode(&bytes).unwrap(), &delta);
            for n in 0..bytes.len() {
                prop_assert_eq!(IndexDelta::decode(&bytes[..n]).unwrap_err().kind(), Kind::Corrupt);
            }
            bytes.push(0);
            prop_assert_eq!(IndexDelta::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
        }

        #[test]
        fn what_is_accepted_is_what_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(delta) = IndexDelta::decode(&bytes) {
                prop_assert_eq!(delta.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn the_layout_is_the_one_written_down() {
        let delta = IndexDelta {
            superseded: vec!["index/a".into()],
            packs: vec![PackEntries {
                uid: PackUid([1; 16]),
                kind: PackKind::Tree,
                object_len: 0x0102_0304,
                signer: SignerId([2; 16]),
                entries: vec![DeltaEntry { key: IndexKey([3; 16]), offset: 192, stored_len: 40, raw_len: 4096 }],
            }],
        };
        let mut due = vec![1, 0, 0, 0, 1, 0, 0, 0, 7, 0];
        due.extend_from_slice(b"index/a");
        due.extend_from_slice(&[1; 16]);
        due.extend_from_slice(&[2, 4, 3, 2, 1, 0, 0, 0, 0]);
        due.extend_from_slice(&[2; 16]);
        due.extend_from_slice(&[1, 0, 0, 0]);
        due.extend_from_slice(&[3; 16]);
        due.extend_from_slice(&[192, 0, 0, 0, 40, 0, 0, 0, 0, 16, 0, 0]);
        assert_eq!(delta.encode().unwrap(), due);
    }

    #[test]
    fn an_entry_outside_its_pack_or_longer_than_raw_is_refused() {
        let with = |offset, stored_len, raw_len| {
            let entries = vec![DeltaEntry { key: IndexKey([0; 16]), offset, stored_len, raw_len }];
            let pack = PackEntries {
                uid: PackUid([0; 16]),
                kind: PackKind::Data,
                object_len: 1000,
                signer: SignerId([0; 16]),
                entries,
            };
            IndexDelta { superseded: Vec::new(), packs: vec![pack] }.encode().unwrap()
        };
        IndexDelta::decode(&with(900, 100, 100)).unwrap();
        for (offset, stored_len, raw_len) in
            [(901, 100, 100), (u32::MAX, u32::MAX, u32::MAX), (0, 117, 100), (0, 16, 9)]
        {
            assert_eq!(IndexDelta::decode(&with(offset, stored_len, raw_len)).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn a_huge_count_in_a_short_body_allocates_nothing() {
        assert_eq!(IndexDelta::decode(&[0xff; 8]).unwrap_err().kind(), Kind::Corrupt);
        let mut one = vec![1, 0, 0, 0, 0, 0, 0, 0];
        one.extend_from_slice(&[1; 41]);
        one.extend_from_slice(&[0xff; 4]);
        assert_eq!(IndexDelta::decode(&one).unwrap_err().kind(), Kind::Corrupt);
    }
}
