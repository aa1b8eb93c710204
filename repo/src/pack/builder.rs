//! Fills one pack in memory: header, frames, table of contents, footer.
//!
//! Not here: choosing what goes into a pack, compressing it ([`crate::seal`]), uploading it. What holds: a frame is sealed
//! straight into the pack's buffer at the offset it keeps; a pack's key is made here, used for this pack only, and gone with
//! the builder, so that no key ever seals two contents at one offset.

use super::contents::{self, Entry, FOOTER_LEN, Footer};
use super::header::{self, PackHeader};
use super::name;
use crate::crypto::{Aead, Codec, FrameAt, FrameKey, PackKey, SIGNATURE_LEN, TAG_LEN};
use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::id::{PackUid, SignerId};
use crate::keys::Keys;
use crate::location::{Location, PackKind, Stored};
use crate::session::SessionTag;

/// What a pack is to be.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// Data or tree.
    pub kind: PackKind,
    /// The cipher.
    pub aead: Aead,
    /// Bytes of frames the caller means to put in, for one allocation instead of several. No limit.
    pub target_len: usize,
    /// The session that makes it, which its uid tells.
    pub session: SessionTag,
}

/// A pack being filled.
pub struct PackBuilder {
    kind: PackKind,
    aead: Aead,
    uid: PackUid,
    name: String,
    signer: SignerId,
    frame_key: FrameKey,
    contents_key: FrameKey,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// A pack ready to be uploaded.
#[derive(Debug)]
pub struct FinishedPack {
    /// Its name as an id.
    pub uid: PackUid,
    /// Data or tree.
    pub kind: PackKind,
    /// Its object's name.
    pub name: String,
    /// Who signed it.
    pub signer: SignerId,
    /// The whole object.
    pub bytes: Vec<u8>,
    /// What lies in it, in order of offset.
    pub entries: Vec<Entry>,
}

impl PackBuilder {
    /// Begins a pack: draws its uid and, for data, its key, seals that to the newest data public key, and signs the header.
    /// `buffer` is what the pack is built in: an empty one, or one whose memory is used again.
    pub fn new(keys: &Keys, options: PackOptions, buffer: Vec<u8>, entropy: &dyn Entropy) -> Result<Self> {
        let PackOptions { kind, aead, target_len, session } = options;
        let uid = session.draw(entropy)?;
        let mut header = PackHeader {
            kind,
            aead,
            key_epoch: 0,
            uid,
            repo: keys.repo(),
            signer: keys.signer().id(),
            commitment: [0; 16],
            slots: Vec::new(),
        };
        let frame_key = match kind {
            PackKind::Data => {
                let key = PackKey::generate(entropy)?;
                let (epoch, public) = keys.data_key();
                header.key_epoch = epoch;
                header.commitment = key.commitment();
                header.slots.push(key.wrap(&public, uid, header.repo, entropy)?);
                FrameKey::new(aead, key.secret())?
            }
            PackKind::Tree => keys.tree_pack_key(uid, aead)?,
        };
        let head = header.encode()?;
        let mut bytes = buffer;
        bytes.clear();
        bytes.reserve_exact(head.len() + SIGNATURE_LEN + target_len);
        bytes.extend_from_slice(&head);
        let signature = keys.signer().sign(&[header::SIGNATURE_DOMAIN, &bytes]);
        bytes.extend_from_slice(&signature);
        Ok(PackBuilder {
            kind,
            aead,
            uid,
            name: name(kind, uid),
            signer: header.signer,
            frame_key,
            contents_key: keys.contents_key(uid, aead)?,
            bytes,
            entries: Vec::new(),
        })
    }

    /// Seals `bytes`, which `codec` made from `raw_len` bytes, as the next frame. Refuses, with the pack unchanged: what does
    /// not belong into a pack of this kind, lengths that the codec rules out, and a pack that would reach 4 GiB.
    pub fn append(&mut self, stored: Stored, codec: Codec, raw_len: u32, bytes: &[u8]) -> Result<Location> {
        let too_big = || Error::invalid(format!("pack {} would reach 4 GiB; begin another", self.uid));
        if stored.pack_kind() != self.kind {
            return Err(Error::internal(format!("{stored} does not belong into {}", self.name)));
        }
        let offset = u32::try_from(self.bytes.len()).map_err(|_| too_big())?;
        let frame_len = u32::try_from(bytes.len() + TAG_LEN).map_err(|_| too_big())?;
        if bytes.is_empty() || Codec::of(frame_len, raw_len).ok() != Some(codec) {
            return Err(Error::internal(format!("{stored}: {} bytes for {raw_len} as {codec:?}", bytes.len())));
        }
        // What the pack will have come to with this frame, its table and its footer.
        let location = Location { pack: self.uid, offset, stored_len: frame_len, raw_len };
        let contents_offset = u32::try_from(location.end()).map_err(|_| too_big())?;
        let entries = u32::try_from(self.entries.len() + 1).map_err(|_| too_big())?;
        let _ = Footer { contents_offset, entries, aead: self.aead, uid: self.uid }.encode()?;
        let at = FrameAt { object: &self.name, kind: self.kind.byte(), offset: u64::from(offset), raw_len, codec };
        self.frame_key.seal_append(at, bytes, &mut self.bytes)?;
        self.entries.push(Entry { stored, location });
        Ok(location)
    }

    /// Bytes so far, header included, table of contents and footer not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it is time to close it: `target` bytes, or as many frames as a pack should have.
    #[must_use]
    pub fn is_full(&self, target: usize) -> bool {
        self.bytes.len() >= target || self.entries.len() >= super::MOST_FRAMES
    }

    /// Whether there is no frame yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pack's uid.
    #[must_use]
    pub fn uid(&self) -> PackUid {
        self.uid
    }

    /// Appends table of contents and footer. A pack without frames is never stored: `Internal`.
    pub fn finish(mut self) -> Result<FinishedPack> {
        if self.is_empty() {
            return Err(Error::internal(format!("{} has no frames", self.name)));
        }
        let too_big = |_| Error::internal(format!("{} outgrew 4 GiB", self.name));
        let footer = Footer {
            contents_offset: u32::try_from(self.bytes.len()).map_err(too_big)?,
            entries: u32::try_from(self.entries.len()).map_err(too_big)?,
            aead: self.aead,
            uid: self.uid,
        };
        let table = contents::encode(&self.entries);
        self.bytes.reserve_exact(table.len() + TAG_LEN + FOOTER_LEN);
        let at = super::contents_frame(&self.name, self.kind, &footer)?;
        self.contents_key.seal_append(at, &table, &mut self.bytes)?;
        self.bytes.extend_from_slice(&footer.encode()?);
        let PackBuilder { kind, uid, name, signer, bytes, entries, .. } = self;
        Ok(FinishedPack { uid, kind, name, signer, bytes, entries })
    }
}
