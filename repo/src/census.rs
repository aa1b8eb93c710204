//! Which data-key epoch each data pack is sealed to, by the packs' headers: one small read each.
//!
//! Not here: what to do about old ones ([`crate::rotation`], [`crate::collector`]). What holds: a header counts only when its
//! signature does; a pack that went meanwhile is in no count. Memory: 32 bytes a pack.

use crate::crew::Crew;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::repository::Repository;

/// A data pack and its epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealedPack {
    pub(crate) uid: PackUid,
    /// Bytes of its object.
    pub(crate) bytes: u64,
    pub(crate) epoch: u32,
}

/// What the headers say.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// In no order.
    pub(crate) packs: Vec<SealedPack>,
    /// Packs whose header cannot be read.
    pub(crate) damaged: Vec<(PackUid, Error)>,
}

/// Reads the headers of the data packs that `feed` hands out, each with the bytes of its object.
pub(crate) fn take(
    repo: &Repository,
    crew: Crew<'_>,
    feed: impl FnOnce(&mut dyn FnMut((PackUid, u64)) -> Result<()>) -> Result<()>,
) -> Result<Census> {
    let read = |(uid, bytes): (PackUid, u64), census: &mut Census| {
        match repo.pack_header(PackKind::Data, uid) {
            Ok(header) => census.packs.push(SealedPack { uid, bytes, epoch: header.key_epoch }),
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Unsupported) => census.damaged.push((uid, e)),
            Err(e) => return Err(e),
        }
        Ok(())
    };
    let parts = crew.run(|| Ok(Census::default()), read, feed)?;
    Ok(parts.into_iter().fold(Census::default(), |mut all, part| {
        all.packs.extend(part.packs);
        all.damaged.extend(part.damaged);
        all
    }))
}
