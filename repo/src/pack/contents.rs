//! The end of a pack: the table of contents, which lists every frame, and the footer, which says where the table lies
//! (FORMAT.md section 5).
//!
//! Not here: sealing the table (one frame, `builder.rs` and [`super::read_contents`]). Pure: bytes in, values out. What
//! holds: the footer is not sealed, so every field of it is checked against another one and against the object's length; the
//! entries lie back to back, from the header to the table, which leaves no room for a frame nobody lists.

use super::header;
use crate::crypto::{Aead, SIGNATURE_LEN, TAG_LEN};
use crate::cursor::Cursor;
use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId, PackUid};
use crate::location::{Location, PackKind, Stored};

/// Bytes of an entry of the table.
pub const ENTRY_LEN: usize = 48;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 64;
const FOOTER_MAGIC: [u8; 8] = *b"CFPEND\r\n";
const TYPE_CHUNK: u8 = 1;
const TYPE_NODE: u8 = 2;

/// A frame of a pack, as the table of contents lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it holds.
    pub stored: Stored,
    /// Where it lies.
    pub location: Location,
}

/// The last [`FOOTER_LEN`] bytes of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the table's frame begins.
    pub contents_offset: u32,
    /// How many entries it has, from which its length follows.
    pub entries: u32,
    /// The cipher of the pack.
    pub aead: Aead,
    /// The pack.
    pub uid: PackUid,
}

impl Footer {
    /// Bytes of the table before sealing. A pack below 4 GiB has fewer frames than this could overflow with.
    #[must_use]
    pub fn contents_raw_len(&self) -> u64 {
        u64::from(self.entries) * ENTRY_LEN as u64
    }

    /// Bytes of the table's frame.
    #[must_use]
    pub fn contents_stored_len(&self) -> u64 {
        self.contents_raw_len() + TAG_LEN as u64
    }

    /// Length of the whole object.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        u64::from(self.contents_offset) + self.contents_stored_len() + FOOTER_LEN as u64
    }

    /// The footer's bytes. `Invalid` for a pack of 4 GiB or more.
    pub fn encode(&self) -> Result<[u8; FOOTER_LEN]> {
        let fits = |n: u64| u32::try_from(n).map_err(|_| Error::invalid(format!("pack {} reaches 4 GiB", self.uid)));
        let _ = fits(self.object_len())?;
        let mut out = Vec::with_capacity(FOOTER_LEN);
        out.extend_from_slice(&u64::from(self.contents_offset).to_le_bytes());
        out.extend_from_slice(&fits(self.contents_stored_len())?.to_le_bytes());
        out.extend_from_slice(&fits(self.contents_raw_len())?.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.push(self.aead.byte());
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&self.object_len().to_le_bytes());
        out.extend_from_slice(&self.uid.0);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&FOOTER_MAGIC);
        out.try_into().map_err(|_| Error::internal("a footer of the wrong length"))
    }

    /// Reads the footer of pack `uid`, whose object has `object_len` bytes. Whatever does not fit together is `Corrupt`.
    pub fn decode(bytes: &[u8; FOOTER_LEN], uid: PackUid, object_len: u64) -> Result<Self> {
        let wrong = |what: &str| Error::corrupt(format!("the footer of pack {uid} {what}"));
        let mut at = Cursor::new(bytes, "a pack footer");
        let contents_offset = at.u64()?;
        let (stored_len, raw_len, entries) = (at.u32()?, at.u32()?, at.u32()?);
        let [aead] = at.array()?;
        at.zeroes(3)?;
        let named_len = at.u64()?;
        let named_uid = PackUid(at.array()?);
        at.zeroes(8)?;
        if at.array()? != FOOTER_MAGIC {
            return Err(wrong("does not end with the magic of a pack: the object is cut short or is no pack"));
        }
        if named_uid != uid {
            return Err(wrong(&format!("is that of pack {named_uid}")));
        }
        if named_len != object_len || object_len > u64::from(u32::MAX) {
            return Err(wrong(&format!("says {named_len} bytes, the object has {object_len}")));
        }
        let contents_offset =
            u32::try_from(contents_offset).map_err(|_| wrong("puts the table of contents beyond 4 GiB"))?;
        let footer = Footer { contents_offset, entries, aead: Aead::from_byte(aead)?, uid };
        let agrees = entries > 0
            && u64::from(raw_len) == footer.contents_raw_len()
            && u64::from(stored_len) == footer.contents_stored_len()
            && object_len == footer.object_len();
        if !agrees {
            return Err(wrong("has an offset, lengths and a number of entries that do not fit together"));
        }
        Ok(footer)
    }
}

/// The table's bytes.
#[must_use]
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY_LEN);
    for entry in entries {
        out.extend_from_slice(entry.stored.id());
        out.extend_from_slice(&entry.location.offset.to_le_bytes());
        out.extend_from_slice(&entry.location.stored_len.to_le_bytes());
        out.extend_from_slice(&entry.location.raw_len.to_le_bytes());
        out.push(match entry.stored {
            Stored::Chunk(_) => TYPE_CHUNK,
            Stored::Node(_) => TYPE_NODE,
        });
        out.extend_from_slice(&[0; 3]);
    }
    out
}

/// Reads the opened table of a pack of `kind`. Frames that leave a gap, overlap, do not end where the table begins, or are of
/// a type that such a pack does not hold are `Corrupt`; a type this version does not know is `Unsupported`.
pub fn decode(bytes: &[u8], kind: PackKind, footer: &Footer) -> Result<Vec<Entry>> {
    let uid = footer.uid;
    if bytes.len() as u64 != footer.contents_raw_len() {
        return Err(Error::corrupt(format!("the table of contents of pack {uid} has {} bytes", bytes.len())));
    }
    let mut entries = Vec::with_capacity(bytes.len() / ENTRY_LEN);
    let mut end = None;
    for bytes in bytes.chunks_exact(ENTRY_LEN) {
        let entry = decode_entry(bytes, kind, uid)?;
        let Location { offset, stored_len, raw_len, .. } = entry.location;
        let follows = match end {
            Some(end) => u64::from(offset) == end,
            None => offset as usize >= header::FIXED_LEN + SIGNATURE_LEN,
        };
        let sized = stored_len as usize > TAG_LEN && u64::from(stored_len) <= u64::from(raw_len) + TAG_LEN as u64;
        if !follows || !sized {
            return Err(Error::corrupt(format!(
                "the table of contents of pack {uid} has {stored_len} bytes for {raw_len} at offset {offset}"
            )));
        }
        end = Some(entry.location.end());
        entries.push(entry);
    }
    if end != Some(u64::from(footer.contents_offset)) {
        return Err(Error::corrupt(format!("the frames of pack {uid} do not end where its table of contents begins")));
    }
    Ok(entries)
}

fn decode_entry(bytes: &[u8], kind: PackKind, uid: PackUid) -> Result<Entry> {
    let mut at = Cursor::new(bytes, "an entry of a pack's table of contents");
    let id = at.array()?;
    let location = Location { pack: uid, offset: at.u32()?, stored_len: at.u32()?, raw_len: at.u32()? };
    let [entry_type] = at.array()?;
    at.zeroes(3)?;
    let stored = match (entry_type, kind) {
        (TYPE_CHUNK, PackKind::Data) => Stored::Chunk(ChunkId(id)),
        (TYPE_NODE, PackKind::Tree) => Stored::Node(NodeId(id)),
        (TYPE_CHUNK | TYPE_NODE, _) => {
            return Err(Error::corrupt(format!("pack {uid} holds what its kind may not hold")));
        }
        (other, _) => {
            return Err(Error::new(
                crate::error::Kind::Unsupported,
                format!(
                    "pack {uid} holds frames of type {other}, which this version does not know; use a newer coffer"
                ),
            ));
        }
    };
    Ok(Entry { stored, location })
}
