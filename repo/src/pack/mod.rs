//! Packs: objects of sealed frames with a table of contents at the end (FORMAT.md section 5).
//!
//! ```text
//! | header, key slots, signature | frame | frame | ... | table of contents (a frame) | footer |
//! ```
//! The layout is pure ([`header`], [`contents`]); this file opens what they decode with the keys. Not here: compression
//! ([`crate::seal`]), which packs exist. What holds: nothing read from a pack is believed before the signature (header), the
//! commitment (pack key) or the tag (frames, table of contents) says so; the table of contents opens without the data key,
//! so that a writer and a collector without it can list a pack.

mod builder;
pub mod contents;
pub mod header;

pub use builder::{FinishedPack, PackBuilder, PackOptions};
pub use contents::{Entry, Footer};
pub use header::PackHeader;

use crate::backend::Backend;
use crate::certificate::Certificates;
use crate::crypto::{Aead, Codec, FrameAt, FrameKey};
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::keys::Keys;
use crate::location::{Location, PackKind};

use contents::FOOTER_LEN;

/// Frames after which a writer closes a pack, however small they are: a table of contents then stays below 1 MiB, and so does
/// what whoever looks one frame up has to read.
pub const MOST_FRAMES: usize = 16_384;

/// What the first read of a header fetches: all of it where there is one recipient. Every valid pack is longer.
const HEADER_READ: usize = 292;
/// What the read of a table of contents fetches from the pack's end: the table of 5,000 frames, more than packs of the
/// usual size have.
const CONTENTS_READ: usize = 256 * 1024;

/// The object name of a pack.
#[must_use]
pub fn name(kind: PackKind, uid: PackUid) -> String {
    let [first, ..] = uid.0;
    format!("{}{first:02x}/{uid}", kind.prefix())
}

/// The pack an object name under `packs/` or `trees/` stands for, `None` when it is not spelt as [`name`] spells it.
#[must_use]
pub fn parse_name(object: &str) -> Option<(PackKind, PackUid)> {
    PackKind::ALL.into_iter().find_map(|kind| {
        let (_, uid) = object.strip_prefix(kind.prefix())?.split_once('/')?;
        let uid = uid.parse().ok()?;
        (name(kind, uid) == object).then_some((kind, uid))
    })
}

/// A pack whose header was checked and whose frames can be opened.
pub struct OpenPack {
    kind: PackKind,
    uid: PackUid,
    name: String,
    frame_key: FrameKey,
}

impl PackHeader {
    /// Fetches the header of a pack and checks that it is that pack's, made for this repository and signed by one who may.
    pub fn fetch(
        backend: &dyn Backend,
        keys: &Keys,
        certificates: &Certificates,
        kind: PackKind,
        uid: PackUid,
    ) -> Result<PackHeader> {
        let name = name(kind, uid);
        let mut bytes = vec![0; HEADER_READ];
        backend.get_range(&name, 0, &mut bytes)?;
        let mut read = || -> Result<PackHeader> {
            let len = PackHeader::len_of(&bytes)?;
            if len > HEADER_READ {
                bytes.resize(len, 0);
                let rest = bytes.get_mut(HEADER_READ..).unwrap_or_default();
                backend.get_range(&name, HEADER_READ as u64, rest)?;
            }
            PackHeader::verify(keys, certificates, kind, uid, &bytes)
        };
        read().map_err(|e| e.within(&name))
    }

    /// Reads the header that `bytes` begin with and checks pack, repository and signature.
    pub fn verify(
        keys: &Keys,
        certificates: &Certificates,
        kind: PackKind,
        uid: PackUid,
        bytes: &[u8],
    ) -> Result<PackHeader> {
        let read = PackHeader::decode(bytes)?;
        let header = read.header;
        if (header.kind, header.uid) != (kind, uid) {
            return Err(Error::corrupt(format!("the header is that of {}", name(header.kind, header.uid))));
        }
        if header.repo != keys.repo() {
            return Err(Error::corrupt(format!("the header was made for repository {}", header.repo)));
        }
        let public = certificates
            .public(header.signer)
            .ok_or_else(|| Error::corrupt(format!("signed by {}, who has no certificate", header.signer)))?;
        public.verify(&[header::SIGNATURE_DOMAIN, &read.signed], &read.signature)?;
        Ok(header)
    }

    /// The pack behind this verified header, ready for reading frames. A data pack needs the data private key (`WrongKey`
    /// without it); a key that is not the one committed to is `Corrupt`.
    pub fn open(&self, keys: &Keys) -> Result<OpenPack> {
        let frame_key = match self.kind {
            PackKind::Tree => keys.tree_pack_key(self.uid, self.aead)?,
            PackKind::Data => {
                FrameKey::new(self.aead, keys.open_pack_key(self.uid, &self.slots, &self.commitment)?.secret())?
            }
        };
        Ok(OpenPack { kind: self.kind, uid: self.uid, name: name(self.kind, self.uid), frame_key })
    }
}

impl OpenPack {
    /// A tree pack whose header nobody looked at: its frames open all the same when they were sealed with `aead`. For whoever knows
    /// the ids of what he reads: the header would say who made the pack, and nothing more.
    pub(crate) fn unseen_tree(keys: &Keys, uid: PackUid, aead: Aead) -> Result<Self> {
        let (kind, frame_key) = (PackKind::Tree, keys.tree_pack_key(uid, aead)?);
        Ok(OpenPack { kind, uid, name: name(kind, uid), frame_key })
    }

    /// Opens the frame at `location`, whose bytes are `sealed`, in place. The bytes are as compressed; their codec goes with
    /// them. Bytes that were not sealed there, at that length, are `Corrupt`.
    pub fn open_frame<'a>(&self, location: &Location, sealed: &'a mut [u8]) -> Result<(Codec, &'a mut [u8])> {
        if location.pack != self.uid || sealed.len() as u64 != u64::from(location.stored_len) {
            return Err(Error::internal(format!("{} bytes for {location:?} of {}", sealed.len(), self.name)));
        }
        let codec = Codec::of(location.stored_len, location.raw_len)
            .map_err(|e| e.within(format_args!("{} at offset {}", self.name, location.offset)))?;
        let at = FrameAt {
            object: &self.name,
            kind: self.kind.byte(),
            offset: u64::from(location.offset),
            raw_len: location.raw_len,
            codec,
        };
        Ok((codec, self.frame_key.open_in_place(at, sealed)?))
    }
}

/// What lies in a pack, in order of offset, from its authenticated table of contents, and the object's length. One GET
/// unless the table is long; no data key. Bytes that are no whole pack are `Corrupt`.
pub fn read_contents(backend: &dyn Backend, keys: &Keys, kind: PackKind, uid: PackUid) -> Result<(Vec<Entry>, u64)> {
    let name = name(kind, uid);
    let (suffix, object_len) = backend.get_suffix(&name, CONTENTS_READ)?;
    let more = |offset: u64, out: &mut [u8]| backend.get_range(&name, offset, out);
    let entries = open_contents(keys, kind, uid, &suffix, object_len, &more);
    Ok((entries.map_err(|e| e.within(&name))?, object_len))
}

/// The same of a pack that is at hand: all of it is `bytes`.
pub(crate) fn contents_of(keys: &Keys, kind: PackKind, uid: PackUid, bytes: &[u8]) -> Result<Vec<Entry>> {
    let more = |_, _: &mut [u8]| Err(Error::corrupt("a table of contents longer than its pack"));
    open_contents(keys, kind, uid, bytes, bytes.len() as u64, &more)
}

/// Opens the table of contents of a pack that ends with `suffix`; `more` reads what lies before that.
fn open_contents(
    keys: &Keys,
    kind: PackKind,
    uid: PackUid,
    suffix: &[u8],
    object_len: u64,
    more: &dyn Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<Entry>> {
    let (before, footer) = suffix
        .split_last_chunk::<FOOTER_LEN>()
        .ok_or_else(|| Error::corrupt(format!("{object_len} bytes are no pack")))?;
    let footer = Footer::decode(footer, uid, object_len)?;
    let table_len = usize::try_from(footer.contents_stored_len())
        .map_err(|_| Error::corrupt("a table of contents longer than memory"))?;
    let mut table = match before.len().checked_sub(table_len).and_then(|at| before.get(at..)) {
        Some(table) => table.to_vec(),
        None => {
            let mut table = vec![0; table_len];
            more(u64::from(footer.contents_offset), &mut table)?;
            table
        }
    };
    let name = name(kind, uid);
    let at = contents_frame(&name, kind, &footer)?;
    let table = keys.contents_key(uid, footer.aead)?.open_in_place(at, &mut table)?;
    contents::decode(table, kind, &footer)
}

/// The table of contents as a frame of the object `name`.
fn contents_frame<'a>(name: &'a str, kind: PackKind, footer: &Footer) -> Result<FrameAt<'a>> {
    let raw_len = u32::try_from(footer.contents_raw_len())
        .map_err(|_| Error::invalid(format!("{name} has too many frames for one pack")))?;
    let offset = u64::from(footer.contents_offset);
    Ok(FrameAt { object: name, kind: 0x80 | kind.byte(), offset, raw_len, codec: Codec::Raw })
}

#[cfg(test)]
mod tests;
