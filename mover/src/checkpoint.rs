//! The small file beside a restored one that says how far a restore has come, so that a killed one goes on.
//!
//! ```text
//!   coffer restore 1
//!   snapshot <id>            what is restored: another snapshot, disk, size or format is another restore
//!   disk <name>
//!   size <bytes>
//!   format raw|qcow2
//!   file <device> <inode>    into which file: one that was exchanged meanwhile is not the file that was filled
//!   done <hex>               a bit for each piece, lowest bit of the first byte first
//! ```
//!
//! Not here: copying. What holds: a piece is marked only after it is durable; the file is replaced by a rename of a synced
//! one, so it is whole or absent.

use crate::image_format::ImageFormat;
use crate::{Error, Result};
use coffer_repo::id::SnapshotId;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a bit stands for, in bytes of the disk.
pub(crate) const PIECE: u64 = 64 << 20;

/// Which restore it is.
pub(crate) struct Key<'a> {
    pub(crate) snapshot: SnapshotId,
    pub(crate) disk: &'a str,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) format: ImageFormat,
    /// Device and inode number of the file that is filled.
    pub(crate) file: (u64, u64),
}

/// How far a restore has come.
pub(crate) struct Checkpoint {
    path: PathBuf,
    header: String,
    done: Vec<u8>,
}

impl Checkpoint {
    /// Where the checkpoint of a restore into `target` lies.
    pub(crate) fn path_beside(target: &Path) -> PathBuf {
        let mut name = target.as_os_str().to_owned();
        name.push(".coffer-restore");
        PathBuf::from(name)
    }

    /// Writes the checkpoint of a restore that has done nothing yet.
    pub(crate) fn begin(target: &Path, key: &Key<'_>) -> Result<Checkpoint> {
        let bytes = usize::try_from(key.size.div_ceil(PIECE).div_ceil(8))
            .map_err(|_| Error::invalid(format!("a disk of {} bytes is too large to restore", key.size)))?;
        let checkpoint = Checkpoint { path: Self::path_beside(target), header: header(key), done: vec![0; bytes] };
        checkpoint.save()?;
        Ok(checkpoint)
    }

    /// Reads the checkpoint of an earlier run of this very restore; `None` if there is none, or one of another restore.
    pub(crate) fn resume(target: &Path, key: &Key<'_>) -> Result<Option<Checkpoint>> {
        let path = Self::path_beside(target);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        let header = header(key);
        let Some(rest) = text.strip_prefix(&header) else { return Ok(None) };
        let bytes = key.size.div_ceil(PIECE).div_ceil(8);
        let done = rest.strip_prefix("done ").and_then(|rest| parse_hex(rest.strip_suffix('\n')?));
        match done.filter(|done| done.len() as u64 == bytes) {
            Some(done) => Ok(Some(Checkpoint { path, header, done })),
            None => {
                Err(Error::corrupt(format!("{} is damaged; delete it and restore anew with --force", path.display())))
            }
        }
    }

    /// Whether `piece` is durable.
    pub(crate) fn is_done(&self, piece: u64) -> bool {
        let byte = usize::try_from(piece / 8).ok().and_then(|at| self.done.get(at));
        byte.is_some_and(|byte| byte & bit(piece) != 0)
    }

    /// Notes that `piece` is durable; [`save`](Self::save) makes the note last.
    pub(crate) fn mark(&mut self, piece: u64) {
        if let Some(byte) = usize::try_from(piece / 8).ok().and_then(|at| self.done.get_mut(at)) {
            *byte |= bit(piece);
        }
    }

    /// Replaces the file.
    pub(crate) fn save(&self) -> Result<()> {
        let context = || format!("writing {}", self.path.display());
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(self.header.as_bytes())?;
            writeln!(file, "done {}", hex(&self.done))?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(|e| Error::io(context(), e))
    }

    /// Removes the file: the restore is complete.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(format!("removing {}", self.path.display()), e))
    }
}

fn bit(piece: u64) -> u8 {
    1 << (piece % 8)
}

fn header(key: &Key<'_>) -> String {
    let Key { snapshot, disk, size, format, file: (device, inode) } = key;
    format!("coffer restore 1\nsnapshot {snapshot}\ndisk {disk}\nsize {size}\nformat {format}\nfile {device} {inode}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    digits.chunks(2).map(|pair| if let [high, low] = pair { Some(high << 4 | low) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> Key<'static> {
        Key {
            snapshot: SnapshotId([7; 16]),
            disk: "vda",
            size: 20 * PIECE + 1,
            format: ImageFormat::Raw,
            file: (1, inode),
        }
    }

    #[test]
    fn what_was_saved_is_resumed_and_only_by_the_same_restore() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("vda.raw");
        assert!(Checkpoint::resume(&target, &key(2)).unwrap().is_none());
        let mut begun = Checkpoint::begin(&target, &key(2)).unwrap();
        for piece in [0, 9, 20] {
            begun.mark(piece);
        }
        begun.save().unwrap();
        begun.mark(5);

        let resumed = Checkpoint::resume(&target, &key(2)).unwrap().unwrap();
        let done: Vec<u64> = (0..30).filter(|&piece| resumed.is_done(piece)).collect();
        assert_eq!(done, [0, 9, 20]);
        assert!(Checkpoint::resume(&target, &key(3)).unwrap().is_none(), "another file");
        resumed.remove().unwrap();
        assert!(Checkpoint::resume(&target, &key(2)).unwrap().is_none());
    }

    #[test]
    fn a_damaged_checkpoint_is_said_to_be_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("vda.raw");
        Checkpoint::begin(&target, &key(2)).unwrap();
        let path = Checkpoint::path_beside(&target);
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in
            [&whole[..whole.len() - 1], &whole.replace("done 0", "done x"), &whole.replace("done 00", "done ")]
        {
            std::fs::write(&path, damaged).unwrap();
            let error = Checkpoint::resume(&target, &key(2)).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("--force"), "{error}");
        }
    }
}
