//! The stage of verification that looks into packs: headers, tables of contents, frames.
//!
//! Not here: maps. What holds: a needed pack's header and table are checked when it is first needed; what is known of damaged
//! packs never shrinks; tables of contents take at most about [`TABLES`] bytes, and one that was dropped is read again; a frame
//! is read into memory only if it is no longer than a chunk can be.

use super::VerifyProgress;
use super::findings::Findings;
use crate::cache::Weighed;
use crate::cancel::Cancel;
use crate::crypto::TAG_LEN;
use crate::detour::{Detours, Remedy};
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::{Location, PackKind, Stored};
use crate::pace::Pace;
use crate::pack::{self, OpenPack};
use crate::reader::Want;
use crate::repository::Repository;
use crate::seal::Decompressor;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of tables of contents kept: those of some 1,400 packs of 32 MiB, which hold about 90 GiB of disks.
pub(super) const TABLES: u64 = 64 << 20;
/// Bytes of one GET when a pack is read whole.
const PIECE: u64 = 4 << 20;

/// What a thread keeps for itself.
pub(super) struct Scratch {
    sealed: Vec<u8>,
    expander: Expander,
}

/// What frames are expanded with, and into.
struct Expander {
    plain: Vec<u8>,
    decompressor: Decompressor,
}

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        let expander = Expander { plain: Vec::new(), decompressor: Decompressor::new()? };
        Ok(Scratch { sealed: Vec::new(), expander })
    }
}

/// Whether a chunk can be read where a leaf says it lies, as far as was looked.
pub(super) enum Held {
    Yes,
    /// Yes, in a pack that its parity repairs in memory.
    ByParity,
    /// No: the damage is filed.
    No,
    /// No: the pack is not there, or it lists, sound as it is, another frame there or none. Not filed yet.
    Absent(Error),
}

/// What came of reading a data pack whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sound {
    Yes,
    No,
    /// It was known before to be damaged.
    NotRead,
}

/// What is wrong with a data pack.
enum Damage {
    /// There is no such pack: a collector removed it, or it is lost.
    Gone,
    /// The object or its header: the key is gone, and every frame with it.
    Whole,
    /// The table of contents, without which reads go on; each frame is looked at by itself.
    Table,
    /// Frames at these offsets.
    Frames(BTreeSet<u32>),
}

/// A data pack's table of contents, by offset.
struct Table(Vec<Want>);

impl<K> Weighter<K, Arc<Table>> for Weighed {
    fn weight(&self, _: &K, table: &Arc<Table>) -> u64 {
        (table.0.len() * size_of::<Want>() + size_of::<Table>()) as u64
    }
}

pub(super) struct Packs<'a> {
    repo: &'a Repository,
    detours: &'a Detours,
    pace: &'a Pace,
    cancel: &'a Cancel,
    tables: Cache<PackUid, Arc<Table>, Weighed>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    needed: HashSet<(PackKind, PackUid)>,
    damaged: HashMap<PackUid, Damage>,
}

impl<'a> Packs<'a> {
    pub(super) fn new(repo: &'a Repository, detours: &'a Detours, pace: &'a Pace, cancel: &'a Cancel) -> Result<Self> {
        let tables = crate::cache::weighed(TABLES, 48 << 10)?;
        Ok(Packs { repo, detours, pace, cancel, tables, known: Mutex::default() })
    }

    /// Notes that a map leads to this pack; whether that is news.
    pub(super) fn need(&self, kind: PackKind, uid: PackUid) -> bool {
        self.known().needed.insert((kind, uid))
    }

    pub(super) fn is_needed(&self, kind: PackKind, uid: PackUid) -> bool {
        self.known().needed.contains(&(kind, uid))
    }

    /// The packs of this kind that maps lead to.
    pub(super) fn needed(&self, kind: PackKind) -> Vec<PackUid> {
        self.known().needed.iter().filter(|(k, _)| *k == kind).map(|(_, uid)| *uid).collect()
    }

    /// Whether the chunk lies in the table of contents of its pack and not where damage is known, or if not, does so elsewhere.
    pub(super) fn holds(
        &self,
        want: &Want,
        findings: &Findings,
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<Held> {
        let held = self.holds_there(want, findings, scratch, progress)?;
        if matches!(held, Held::Yes) {
            return Ok(held);
        }
        let elsewhere = self.detours.search(&Stored::Chunk(want.id), &want.at, &mut |at| match self.holds_there(
            &Want { id: want.id, at: *at },
            findings,
            scratch,
            progress,
        )? {
            Held::Yes => Ok(()),
            Held::ByParity | Held::No => Err(Error::corrupt("damaged there, too")),
            Held::Absent(e) => Err(e),
        });
        let (held, remedy) = match elsewhere {
            Ok(Some(())) => (Held::Yes, Remedy::Copies),
            Err(e) if matches!(e.kind(), Kind::Cancelled | Kind::Internal) => return Err(e),
            Ok(None) | Err(_) if self.is_mended(want, scratch)? => (Held::ByParity, Remedy::Parity),
            Ok(None) | Err(_) => return Ok(held),
        };
        if !matches!(self.known().damaged.get(&want.at.pack), Some(Damage::Gone)) {
            self.detours.note(PackKind::Data, want.at.pack, remedy);
        }
        Ok(held)
    }

    /// Whether the pack's parity gives the chunk back.
    fn is_mended(&self, want: &Want, scratch: &mut Scratch) -> Result<bool> {
        let Some(mended) = self.detours.mended(PackKind::Data, want.at.pack)? else { return Ok(false) };
        let Some(mut frame) = mended.frame(&want.at) else { return Ok(false) };
        match self.check_frame(&mended.open, want, &mut frame, &mut scratch.expander) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == Kind::Internal => Err(e),
            Err(_) => Ok(false),
        }
    }

    fn holds_there(
        &self,
        want: &Want,
        findings: &Findings,
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<Held> {
        let table = self.table(want.at.pack, findings, progress)?;
        match self.known().damaged.get(&want.at.pack) {
            None => {}
            Some(Damage::Gone) => return Ok(Held::Absent(missing(&pack::name(PackKind::Data, want.at.pack)))),
            Some(Damage::Whole) => return Ok(Held::No),
            Some(Damage::Frames(offsets)) if offsets.contains(&want.at.offset) => return Ok(Held::No),
            Some(Damage::Frames(_) | Damage::Table) => {}
        }
        match table {
            Some(table) => {
                let listed = table.0.binary_search_by_key(&want.at.offset, |line| line.at.offset);
                match listed.ok().and_then(|i| table.0.get(i)) {
                    Some(line) if line == want => Ok(Held::Yes),
                    _ => Ok(Held::Absent(Error::corrupt(format!(
                        "{} does not list chunk {} at offset {}, where a disk map leads to it",
                        pack::name(PackKind::Data, want.at.pack),
                        want.id,
                        want.at.offset
                    )))),
                }
            }
            // Without a table the frame speaks for itself, to whoever can read it.
            None => {
                let opened = self.repo.open_pack(PackKind::Data, want.at.pack);
                let sound =
                    opened.and_then(|open| self.read_frames(&open, std::slice::from_ref(want), scratch, progress));
                match sound {
                    Ok(bad) if bad.is_empty() => Ok(Held::Yes),
                    Err(e) if matches!(e.kind(), Kind::Cancelled | Kind::Internal) => Err(e),
                    Ok(_) | Err(_) => Ok(Held::No),
                }
            }
        }
    }

    /// The table of contents of a data pack; `None` after its damage was filed, or noted if it is gone. Header and table count as looked at when they are
    /// needed for the first time.
    fn table(&self, uid: PackUid, findings: &Findings, progress: &VerifyProgress) -> Result<Option<Arc<Table>>> {
        let guard = match self.tables.get_value_or_guard(&uid, None) {
            GuardResult::Value(table) => return Ok(Some(table)),
            GuardResult::Guard(guard) => guard,
            GuardResult::Timeout => return Err(Error::internal("waited for a table of contents, and not long enough")),
        };
        if matches!(self.known().damaged.get(&uid), Some(Damage::Gone | Damage::Whole | Damage::Table)) {
            return Ok(None);
        }
        let name = pack::name(PackKind::Data, uid);
        if self.need(PackKind::Data, uid) {
            progress.packs.fetch_add(1, Relaxed);
            if let Err(e) = self.repo.pack_header(PackKind::Data, uid) {
                if e.kind() == Kind::NotFound {
                    let mut known = self.known();
                    known.needed.remove(&(PackKind::Data, uid));
                    known.damaged.insert(uid, Damage::Gone);
                    return Ok(None);
                }
                findings.add(&name, e)?;
                self.known().damaged.insert(uid, Damage::Whole);
                return Ok(None);
            }
        }
        match self.read_table(uid, progress) {
            Ok(table) => {
                let table = Arc::new(table);
                // The guard may have lost its place to an eviction; the table is used all the same.
                let _ = guard.insert(Arc::clone(&table));
                Ok(Some(table))
            }
            Err(e) => {
                findings.add(&name, e)?;
                self.known().damaged.insert(uid, Damage::Table);
                Ok(None)
            }
        }
    }

    fn read_table(&self, uid: PackUid, progress: &VerifyProgress) -> Result<Table> {
        let (entries, object_len) = pack::read_contents(self.repo.backend(), self.repo.keys(), PackKind::Data, uid)?;
        let end = entries.last().map_or(0, |e| e.location.end());
        let len = object_len.saturating_sub(end);
        progress.bytes.fetch_add(len, Relaxed);
        self.pace.take(len, self.cancel)?;
        let line = |entry: &pack::Entry| match entry.stored {
            Stored::Chunk(id) => Ok(Want { id, at: entry.location }),
            Stored::Node(_) => Err(Error::internal("a table of contents with a node in a data pack")),
        };
        Ok(Table(entries.iter().map(line).collect::<Result<_>>()?))
    }

    /// Looks at header and table of a pack that was listed; one that is gone by now, nobody needs.
    pub(super) fn check_unneeded(
        &self,
        kind: PackKind,
        uid: PackUid,
        findings: &Findings,
        progress: &VerifyProgress,
    ) -> Result<()> {
        progress.packs.fetch_add(1, Relaxed);
        let header = self.repo.pack_header(kind, uid).map(drop);
        let looked = header.and_then(|()| pack::read_contents(self.repo.backend(), self.repo.keys(), kind, uid));
        match looked {
            Ok((entries, object_len)) => {
                let end = entries.last().map_or(0, |e| e.location.end());
                progress.bytes.fetch_add(object_len.saturating_sub(end), Relaxed);
                Ok(())
            }
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => findings.add_once(&pack::name(kind, uid), e),
        }
    }

    /// Reads a needed data pack from end to end and checks every frame; whether header, table and all frames are sound. A pack
    /// whose header or table is damaged is not read: what can be said of it was said.
    pub(super) fn read_whole(
        &self,
        uid: PackUid,
        findings: &Findings,
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<Sound> {
        let Some(table) = self.table(uid, findings, progress)? else { return Ok(Sound::NotRead) };
        let name = pack::name(PackKind::Data, uid);
        let open = match self.repo.open_pack(PackKind::Data, uid) {
            Ok(open) => open,
            Err(e) => {
                findings.add(&name, e)?;
                self.known().damaged.insert(uid, Damage::Whole);
                return Ok(Sound::No);
            }
        };
        let mut damaged = BTreeSet::new();
        for piece in pieces(&table.0) {
            self.pace.take(piece.iter().map(|frame| u64::from(frame.at.stored_len)).sum(), self.cancel)?;
            for (offset, error) in self.read_frames(&open, piece, scratch, progress)? {
                findings.add(&name, error)?;
                damaged.insert(offset);
            }
        }
        if damaged.is_empty() {
            return Ok(Sound::Yes);
        }
        self.known().damaged.insert(uid, Damage::Frames(damaged));
        Ok(Sound::No)
    }

    /// Reads frames that lie end to end; those that do not hold what they should, by offset.
    fn read_frames(
        &self,
        open: &OpenPack,
        frames: &[Want],
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<Vec<(u32, Error)>> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(Vec::new()) };
        let name = pack::name(PackKind::Data, first.at.pack);
        let place = |e: Error, at: &Location| (at.offset, e.within(format_args!("{name} at offset {}", at.offset)));
        let max = u64::from(self.repo.chunk_max());
        if let Some(long) = frames.iter().find(|f| u64::from(f.at.raw_len) > max) {
            if frames.len() > 1 {
                return self.read_singly(open, frames, scratch, progress);
            }
            return Ok(vec![place(Error::corrupt(format!("a chunk of {} bytes", long.at.raw_len)), &long.at)]);
        }
        let len = last.at.end().saturating_sub(u64::from(first.at.offset));
        if len > PIECE + max + TAG_LEN as u64 {
            return Err(Error::internal(format!("a piece of {len} bytes")));
        }
        scratch.sealed.resize(usize::try_from(len).map_err(|_| Error::internal("a piece beyond memory"))?, 0);
        match self.repo.backend().get_range(&name, u64::from(first.at.offset), &mut scratch.sealed) {
            Ok(()) => progress.bytes.fetch_add(len, Relaxed),
            // One spot that cannot be read must not take its neighbours along.
            Err(_) if frames.len() > 1 => return self.read_singly(open, frames, scratch, progress),
            Err(e) => return Ok(vec![place(e, &first.at)]),
        };
        let mut damaged = Vec::new();
        let Scratch { sealed, expander } = scratch;
        let mut rest = sealed.as_mut_slice();
        for frame in frames {
            let (sealed, behind) = rest
                .split_at_mut_checked(frame.at.stored_len as usize)
                .ok_or_else(|| Error::internal("a piece shorter than its frames"))?;
            rest = behind;
            match self.check_frame(open, frame, sealed, expander) {
                Ok(()) => {}
                Err(e) if e.kind() == Kind::Internal => return Err(e),
                Err(e) => damaged.push(place(e, &frame.at)),
            }
        }
        Ok(damaged)
    }

    /// Whether `sealed` is the frame of the chunk.
    fn check_frame(&self, open: &OpenPack, frame: &Want, sealed: &mut [u8], expander: &mut Expander) -> Result<()> {
        let (codec, bytes) = open.open_frame(&frame.at, sealed)?;
        let Expander { plain, decompressor } = expander;
        decompressor.decompress(codec, bytes, frame.at.raw_len, plain)?;
        if self.repo.keys().id_key().chunk_id(plain) == frame.id {
            return Ok(());
        }
        Err(Error::corrupt(format!("the bytes are not those of chunk {}", frame.id)))
    }

    fn read_singly(
        &self,
        open: &OpenPack,
        frames: &[Want],
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<Vec<(u32, Error)>> {
        let mut damaged = Vec::new();
        for frame in frames {
            damaged.extend(self.read_frames(open, std::slice::from_ref(frame), scratch, progress)?);
        }
        Ok(damaged)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("{name} does not exist, and a disk map leads to it"))
}

/// Splits frames that lie end to end into runs of at least one frame and at most [`PIECE`] bytes and a frame.
fn pieces(frames: &[Want]) -> impl Iterator<Item = &[Want]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let first = u64::from(rest.first()?.at.offset);
        let n = rest.iter().take_while(|f| u64::from(f.at.offset).saturating_sub(first) < PIECE).count();
        let (piece, behind) = rest.split_at_checked(n)?;
        rest = behind;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ChunkId;

    #[test]
    fn pieces_cover_every_frame_once_and_stay_short() {
        let mut frames = Vec::new();
        let mut offset = 356u32;
        for i in 0..1000u32 {
            let stored_len = if i % 100 == 0 { 6 << 20 } else { 17 + i * 31 };
            let at = Location { pack: PackUid::default(), offset, stored_len, raw_len: stored_len };
            frames.push(Want { id: ChunkId::default(), at });
            offset += stored_len;
        }
        assert_eq!(pieces(&frames).flatten().count(), frames.len());
        assert!(pieces(&frames).flatten().eq(&frames));
        for piece in pieces(&frames) {
            let (first, last) = (piece.first().unwrap(), piece.last().unwrap());
            assert!(u64::from(last.at.offset - first.at.offset) < PIECE);
        }
        assert_eq!(pieces(&[]).count(), 0);
    }
}
