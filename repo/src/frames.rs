//! Reads frames of packs and checks them: for those who copy or prove what lies in a store, place by place.
//!
//! Not here: caches and readers of disks ([`crate::reader`]), which follow maps. What holds: a frame is handed on only after it
//! was authenticated, expanded and its id computed from its plaintext; what is missing is `NotFound`, and says which object.

use crate::crypto::Codec;
use crate::disk_map::{NODE_MAX, identity};
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::location::{Location, PackKind};
use crate::pack::{self, OpenPack};
use crate::repository::Repository;
use crate::seal::Decompressor;

/// One thread's reader of frames.
pub(crate) struct Frames<'a> {
    repo: &'a Repository,
    /// The pack that was read last.
    open: Option<(PackUid, OpenPack)>,
    sealed: Vec<u8>,
    plain: Vec<u8>,
    decompressor: Decompressor,
}

/// A frame that was read.
pub(crate) struct Frame<'f> {
    /// Name of its pack's object.
    pub(crate) object: &'f str,
    /// Its chunk's or node's id, computed from the content.
    pub(crate) id: [u8; 32],
    pub(crate) codec: Codec,
    /// Bytes before compression.
    pub(crate) raw_len: u32,
    /// The bytes that were sealed: compressed, as `codec` says.
    pub(crate) sealed: &'f [u8],
}

impl<'a> Frames<'a> {
    pub(crate) fn new(repo: &'a Repository) -> Result<Self> {
        let (sealed, plain) = (Vec::new(), Vec::new());
        Ok(Frames { repo, open: None, sealed, plain, decompressor: Decompressor::new()? })
    }

    /// Reads frames that lie end to end in one pack and hands each on with its number.
    pub(crate) fn read(
        &mut self,
        kind: PackKind,
        run: &[Location],
        each: &mut dyn FnMut(usize, Frame<'_>) -> Result<()>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let object = pack::name(kind, first.pack);
        let longest = match kind {
            PackKind::Data => self.repo.chunk_max(),
            PackKind::Tree => NODE_MAX,
        };
        if run.iter().any(|at| at.raw_len > longest || at.stored_len > longest + 16) {
            return Err(Error::corrupt(format!("{object} is said to have a frame longer than {longest} bytes")));
        }
        if self.open.as_ref().is_none_or(|(uid, _)| *uid != first.pack) {
            self.open = Some((first.pack, self.repo.open_pack(kind, first.pack)?));
        }
        let Some((_, open)) = &self.open else { return Err(Error::internal("no open pack")) };
        let len = last.end().checked_sub(u64::from(first.offset)).and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| Error::internal("frames out of order"))?;
        if self.sealed.len() < len {
            self.sealed.resize(len, 0);
        }
        let mut rest = self.sealed.get_mut(..len).unwrap_or_default();
        self.repo.backend().get_range(&object, u64::from(first.offset), rest)?;
        for (index, at) in run.iter().enumerate() {
            let (sealed, after) = rest
                .split_at_mut_checked(at.stored_len as usize)
                .ok_or_else(|| Error::internal("a run shorter than its frames"))?;
            rest = after;
            let (codec, sealed) = open.open_frame(at, sealed)?;
            self.decompressor
                .decompress(codec, sealed, at.raw_len, &mut self.plain)
                .map_err(|e| e.within(format_args!("{object} at offset {}", at.offset)))?;
            let key = self.repo.keys().id_key();
            let id = match kind {
                PackKind::Data => key.chunk_id(&self.plain).0,
                PackKind::Tree => key.node_id(identity(&self.plain)?).0,
            };
            each(index, Frame { object: &object, id, codec, raw_len: at.raw_len, sealed })?;
        }
        Ok(())
    }
}
