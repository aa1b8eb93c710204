//! The header of a pack: whose it is, how its frames are sealed, and the pack key for whoever may read (FORMAT.md section 5).
//!
//! Not here: sealing the pack key into a slot and opening it ([`crate::crypto`]), frames, the table of contents
//! ([`super::contents`]). Pure: bytes in, values out; the signature is checked by [`PackHeader::verify`], which decoding does
//! not replace. What holds: decoding never panics and refuses unknown incompat bits by name, reserved bytes that are not zero,
//! and a length that its slots do not add up to.

use crate::crypto::{Aead, KeySlot, SIGNATURE_LEN};
use crate::cursor::Cursor;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RepoId, SignerId};
use crate::location::PackKind;

/// Bytes before the key slots.
pub const FIXED_LEN: usize = 128;
/// Longest header: room for hundreds of recipients, and a bound for what a damaged length makes a reader fetch.
pub const MAX_LEN: usize = 64 * 1024;
/// What every version begins a pack's header with.
const MAGIC: [u8; 8] = *b"CFPACK\r\n";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
/// What the signature covers before the header's own bytes.
pub(crate) const SIGNATURE_DOMAIN: &[u8] = b"coffer v1 pack header";

/// A pack's header without its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// Data or tree.
    pub kind: PackKind,
    /// The cipher of the frames and of the table of contents.
    pub aead: Aead,
    /// Which data key generation the slots belong to; 0 in a tree pack.
    pub key_epoch: u32,
    /// The pack's name.
    pub uid: PackUid,
    /// The repository it was made for.
    pub repo: RepoId,
    /// Who signed.
    pub signer: SignerId,
    /// Commitment to the pack key; zero in a tree pack.
    pub commitment: [u8; 16],
    /// The pack key, sealed to each recipient; none in a tree pack.
    pub slots: Vec<KeySlot>,
}

/// A header as read, with what its signature is checked against.
#[derive(Clone, Debug)]
pub struct SignedHeader {
    /// The header.
    pub header: PackHeader,
    /// Every byte the signature covers.
    pub signed: Vec<u8>,
    /// The signature, unchecked.
    pub signature: [u8; SIGNATURE_LEN],
}

impl PackHeader {
    /// The bytes before the signature. `Invalid` when there are too many slots.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let too_long = || Error::invalid(format!("{} key slots are too many for a pack header", self.slots.len()));
        let mut slots = Vec::new();
        for slot in &self.slots {
            slot.encode(&mut slots)?;
        }
        let len = FIXED_LEN + slots.len() + SIGNATURE_LEN;
        if len > MAX_LEN {
            return Err(too_long());
        }
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&MAJOR.to_le_bytes());
        out.extend_from_slice(&MINOR.to_le_bytes());
        out.extend_from_slice(&[0; 12]);
        out.push(self.kind.byte());
        out.push(self.aead.byte());
        out.extend_from_slice(&u16::try_from(self.slots.len()).map_err(|_| too_long())?.to_le_bytes());
        out.extend_from_slice(&self.key_epoch.to_le_bytes());
        out.extend_from_slice(&self.uid.0);
        out.extend_from_slice(&self.repo.0);
        out.extend_from_slice(&self.signer.0);
        out.extend_from_slice(&self.commitment);
        out.extend_from_slice(&u32::try_from(len).map_err(|_| too_long())?.to_le_bytes());
        out.extend_from_slice(&[0; 28]);
        out.extend_from_slice(&slots);
        Ok(out)
    }

    /// The length of the header that `prefix`, at least [`FIXED_LEN`] bytes of a pack, begins with.
    pub fn len_of(prefix: &[u8]) -> Result<usize> {
        let mut at = Cursor::new(prefix, "a pack header");
        check_version(&mut at)?;
        at.take(72)?;
        let len = usize::try_from(at.u32()?).unwrap_or(usize::MAX);
        if !(FIXED_LEN + SIGNATURE_LEN..=MAX_LEN).contains(&len) {
            return Err(Error::corrupt(format!("a pack header of {len} bytes")));
        }
        Ok(len)
    }

    /// Reads the header that `bytes` begin with. `Unsupported` for a later format, naming what is unknown; otherwise `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<SignedHeader> {
        let len = Self::len_of(bytes)?;
        let (bytes, _) = bytes
            .split_at_checked(len)
            .ok_or_else(|| Error::corrupt(format!("{} bytes of a pack header of {len}", bytes.len())))?;
        let (signed, signature) = bytes
            .split_last_chunk::<SIGNATURE_LEN>()
            .ok_or_else(|| Error::corrupt(format!("a pack header of {len} bytes")))?;
        let mut at = Cursor::new(signed, "a pack header");
        check_version(&mut at)?;
        let [kind, aead] = at.array()?;
        let slot_count = at.u16()?;
        let mut header = PackHeader {
            kind: PackKind::from_byte(kind)?,
            aead: Aead::from_byte(aead)?,
            key_epoch: at.u32()?,
            uid: PackUid(at.array()?),
            repo: RepoId(at.array()?),
            signer: SignerId(at.array()?),
            commitment: at.array()?,
            slots: Vec::new(),
        };
        at.take(4)?;
        at.zeroes(28)?;
        let mut rest = at.rest();
        for _ in 0..slot_count {
            let (slot, behind) = KeySlot::decode(rest)?;
            header.slots.push(slot);
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(Error::corrupt(format!("{} bytes follow the key slots of a pack header", rest.len())));
        }
        let keyless = header.key_epoch == 0 && header.commitment == [0; 16] && header.slots.is_empty();
        if header.kind == PackKind::Tree && !keyless {
            return Err(Error::corrupt("a tree pack's header has key slots, a key epoch or a commitment"));
        }
        if header.kind == PackKind::Data && header.slots.is_empty() {
            return Err(Error::corrupt("a data pack's header has no key slot"));
        }
        Ok(SignedHeader { header, signed: signed.to_vec(), signature: *signature })
    }
}

/// Magic, version and feature bits: the first 24 bytes, after which the rest may be read by this version's rules.
fn check_version(at: &mut Cursor<'_>) -> Result<()> {
    if at.array()? != MAGIC {
        return Err(Error::corrupt("a pack does not begin with the magic of a pack"));
    }
    let major = at.u16()?;
    if major != MAJOR {
        return Err(Error::new(Kind::Unsupported, format!("a pack of format {major}; this version reads {MAJOR}")));
    }
    let _minor = at.u16()?;
    let incompat = at.u32()?;
    // A pack is never written again, and what is compatible is compatible: the other two words need no answer.
    let (_ro_compat, _compat) = (at.u32()?, at.u32()?);
    if incompat != 0 {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "a pack needs feature bit {}, which this version does not know; use a newer coffer",
                incompat.ilog2()
            ),
        ));
    }
    Ok(())
}
