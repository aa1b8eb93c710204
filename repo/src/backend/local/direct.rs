//! Writes long objects past the page cache.
//!
//! A pack is written once and not read again soon: through the page cache it costs a copy into memory that is cold, pushes out
//! what others use, and leaves the disk idle until it is synced. Copied piece by piece through a small buffer that stays in the
//! processor's cache, with nothing to write back at the end, it took a fifth of the time (ARCHITECTURE.md, decisions).
//!
//! Not here: syncing, which the caller does as ever: the disk's own cache, the file's length and its tail are not durable
//! before. What holds: where a file system or disk cannot do this, the bytes go the ordinary way, from the first that did not
//! get there.

use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind, Write};

/// Shorter objects go through the page cache: they are records, read soon, and not worth the trouble.
pub(super) const DIRECT_FROM: usize = 1 << 20;
/// Bytes of one write.
const PIECE: usize = 1 << 20;
/// What addresses, offsets and lengths are multiples of: no disk asks for more.
const ALIGNMENT: usize = 4096;

/// Writes `parts` end to end to `file`, which is empty.
pub(super) fn write(file: &File, parts: &[&[u8]]) -> io::Result<()> {
    let mut direct = Direct { file, flags: fcntl_getfl(file)?, is_on: false };
    direct.is_on = fcntl_setfl(file, direct.flags | OFlags::DIRECT).is_ok();
    // One stretch of the disk, and a full disk is known at once. Not every file system can.
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if let Err(e @ (Errno::NOSPC | Errno::DQUOT)) = fallocate(file, FallocateFlags::empty(), 0, total as u64) {
        return Err(e.into());
    }
    let mut room = vec![0; PIECE + ALIGNMENT];
    let skip = room.as_ptr().align_offset(ALIGNMENT);
    let room = room.get_mut(skip..).and_then(|room| room.get_mut(..PIECE)).unwrap_or_default();
    let mut filled = 0;
    for mut part in parts.iter().copied() {
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(PIECE - filled));
            if let Some(into) = room.get_mut(filled..filled + now.len()) {
                into.copy_from_slice(now);
            }
            (filled, part) = (filled + now.len(), later);
            if filled == PIECE {
                direct.write(room)?;
                filled = 0;
            }
        }
    }
    direct.write(room.get(..filled).unwrap_or_default())?;
    direct.end()
}

/// A file that is written past the page cache for as long as that works.
struct Direct<'a> {
    file: &'a File,
    /// Those of the file before.
    flags: OFlags,
    is_on: bool,
}

impl Direct<'_> {
    /// Writes `bytes`, which begin at an aligned address.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.is_on && !bytes.is_empty() {
            let whole = bytes.len() / ALIGNMENT * ALIGNMENT;
            let written = match bytes.get(..whole).unwrap_or_default() {
                // The tail of the last piece.
                [] => 0,
                whole => match (&mut &*self.file).write(whole) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(written) => written,
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => 0,
                    Err(e) => return Err(e),
                },
            };
            bytes = bytes.get(written..).unwrap_or_default();
            if written == 0 || !written.is_multiple_of(ALIGNMENT) {
                self.end()?;
            }
        }
        (&mut &*self.file).write_all(bytes)
    }
    /// From here on the file is one like any other.
    fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_on) {
            fcntl_setfl(self.file, self.flags)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn noise(len: usize) -> Vec<u8> {
        (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    #[test]
    fn any_lengths_of_parts_are_written_whole() {
        let bytes = noise(3 * PIECE + 5000);
        for cuts in [&[][..], &[1], &[PIECE], &[PIECE - 1, PIECE + 1], &[4096, 4097, 2 * PIECE], &[0, 3 * PIECE]] {
            for len in [bytes.len(), 3 * PIECE, 2 * PIECE + 4096, PIECE + 1, 4095, 0] {
                let bytes = &bytes[..len];
                let ends = cuts.iter().copied().chain([len]).map(|end| end.min(len));
                let parts: Vec<&[u8]> =
                    ends.scan(0, |start, end| Some(&bytes[std::mem::replace(start, end)..end])).collect();
                let mut file = tempfile::tempfile().unwrap();
                write(&file, &parts).unwrap();
                let mut read = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut read).unwrap();
                assert!(read == bytes, "{len} bytes in parts {cuts:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_written_directly_goes_the_ordinary_way() {
        let bytes = noise(2 * PIECE + 77);
        let path = std::path::Path::new("/dev/shm");
        let mut file = tempfile::tempfile_in(path).unwrap();
        write(&file, &[&bytes]).unwrap();
        let mut read = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        // What is written is not aligned: the disk refuses, and the rest goes through the page cache.
        let file = tempfile::tempfile().unwrap();
        let mut direct = Direct { file: &file, flags: fcntl_getfl(&file).unwrap(), is_on: true };
        fcntl_setfl(&file, direct.flags | OFlags::DIRECT).unwrap();
        let mut room = vec![7; 3 * ALIGNMENT];
        let skip = room.as_ptr().align_offset(ALIGNMENT);
        room[skip..skip + ALIGNMENT].fill(8);
        direct.write(&room[skip + 1..skip + 1 + ALIGNMENT]).unwrap();
        assert!(!direct.is_on);
        assert_eq!(file.metadata().unwrap().len(), ALIGNMENT as u64);
    }
}
