//! The files of the cache: one for each object, in which every block that is there lies at its own place, with a checksum.
//!
//! ```text
//!   FOLDER/hh/hhhhhhhh...        hash of the object's name
//!     group 0   512 checksums of 8 bytes | 512 blocks of 4 KiB      bytes 0 to 2 MiB of the object
//!     group 1   512 checksums            | 512 blocks               ...            holes where nothing was kept
//! ```
//! A block is there exactly when its checksum, over its bytes, its place and its object's name, is the one in the group's table.
//! That is all the state there is: nothing has to be ordered, locked or synced, and writers who meet write the same. The block in which
//! the object ends has one byte 0x80 after its last one, then zeroes, and a checksum of its own kind.
//!
//! Not here: what is fetched, and how much may lie here. What holds: bytes are handed out only if their block's checksum is right;
//! an error of the disk is a block that is not there; reading and writing take no lock.

use super::inflow::Fetched;
use super::recency::Recency;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// What is fetched and kept as a whole, in bytes of an object, aligned. As long as a run of frames that is fetched at once: a
/// store far away takes as long for it as for one frame, and what lies around a frame is mostly wanted next.
pub(super) const PIECE: u64 = 256 << 10;
/// What has one checksum, in bytes: what the kernel writes as a whole or not at all, mostly.
const BLOCK: usize = 4096;
/// Blocks whose checksums fill one block.
const GROUP: u64 = (BLOCK / CHECK) as u64;
/// Bytes of a checksum.
const CHECK: usize = 8;
/// Blocks of a piece. Pieces divide groups.
const PIECE_BLOCKS: usize = 64;
/// Offsets beyond this are nobody's: packs are shorter than 4 GiB.
pub(super) const LONGEST: u64 = 1 << 32;
/// Follows the last byte of an object within its block.
const END_MARK: u8 = 0x80;

/// Where the blocks of one object are kept.
pub(super) struct Place {
    path: PathBuf,
    hash: u64,
}

impl Place {
    /// A hash of the object's name.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The checksum of a block. Never 0, which says that there is none.
    fn check(&self, block: u64, is_end: bool, bytes: &[u8]) -> u64 {
        let seed = self.hash ^ block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(is_end) << 63;
        xxh3_64_with_seed(bytes, seed).max(1)
    }
}

/// The pieces that a range which is not empty lies in.
pub(super) fn pieces(offset: u64, len: usize) -> Range<u64> {
    offset / PIECE..(offset + len as u64).div_ceil(PIECE)
}

/// Where the checksum of a block lies in its file.
fn check_at(block: u64) -> u64 {
    block / GROUP * (GROUP + 1) * BLOCK as u64 + block % GROUP * CHECK as u64
}

/// Where a block lies in its file.
fn block_at(block: u64) -> u64 {
    (block / GROUP * (GROUP + 1) + 1 + block % GROUP) * BLOCK as u64
}

/// The folder of files.
pub(super) struct Shelf {
    folder: PathBuf,
    recency: Recency,
    /// Something that is known to be wrong could not be removed.
    is_distrusted: AtomicBool,
}

impl Shelf {
    pub(super) fn new(folder: PathBuf) -> Self {
        Shelf { folder, recency: Recency::default(), is_distrusted: AtomicBool::new(false) }
    }

    /// Whether what lies here may be used.
    pub(super) fn is_trusted(&self) -> bool {
        !self.is_distrusted.load(Relaxed)
    }

    /// Where an object's blocks are kept.
    pub(super) fn place(&self, name: &str) -> Place {
        let hash = xxh3_128(name.as_bytes());
        let hex = format!("{hash:032x}");
        let (folder, file) = hex.split_at_checked(2).unwrap_or_default();
        // The half that the file's name ends with would do for a seed; xxh3's halves are as good as independent.
        let [high, low] = [hash >> 64, hash].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or_default());
        Place { path: self.folder.join(folder).join(file), hash: high ^ low.rotate_left(32) }
    }

    /// Fills what it can of `out`, the object's bytes from `offset` on; the pieces that are not, or not whole, there. Pieces that
    /// `skip` names are left alone.
    pub(super) fn read(&self, place: &Place, offset: u64, out: &mut [u8], skip: impl Fn(u64) -> bool) -> Vec<u64> {
        let all = pieces(offset, out.len());
        let Ok(file) = File::open(&place.path) else { return all.filter(|piece| !skip(*piece)).collect() };
        let (mut missing, mut at, mut rest) = (Vec::new(), offset, out);
        for piece in all {
            let len = usize::try_from((piece + 1) * PIECE - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            if !skip(piece) && !read_part(&file, place, at, part).unwrap_or(false) {
                missing.push(piece);
            }
            (at, rest) = (at + len as u64, after);
        }
        if missing.is_empty() {
            self.recency.used(place.hash, &file);
        }
        missing
    }

    /// Writes pieces, the first of which is `piece`.
    pub(super) fn write(&self, place: &Place, piece: u64, fetched: &Fetched) -> Result<()> {
        let write = || -> io::Result<()> {
            let file = create(&place.path)?;
            let mut block = piece * PIECE_BLOCKS as u64;
            // Pieces do not cross groups, so that each has its blocks and its checksums in a row.
            for bytes in fetched.bytes.chunks(BLOCK * PIECE_BLOCKS) {
                let whole = bytes.len() / BLOCK;
                let (blocks, end) = bytes.split_at(whole * BLOCK);
                file.write_all_at(blocks, block_at(block))?;
                let numbered = blocks.chunks(BLOCK).zip(block..);
                let mut checks: Vec<u8> =
                    numbered.flat_map(|(bytes, block)| place.check(block, false, bytes).to_le_bytes()).collect();
                if fetched.is_end && !end.is_empty() {
                    let (last, mut padded) = (block + whole as u64, end.to_vec());
                    padded.push(END_MARK);
                    file.write_all_at(&padded, block_at(last))?;
                    padded.resize(BLOCK, 0);
                    checks.extend(place.check(last, true, &padded).to_le_bytes());
                }
                file.write_all_at(&checks, check_at(block))?;
                block += PIECE_BLOCKS as u64;
            }
            Ok(())
        };
        // Somebody may have removed the folder after its file was opened in it, and that is no error; or before.
        write().map_err(|e| Error::io(format!("writing to the disk cache in {}", self.folder.display()), e))
    }

    /// Has the blocks of a range not there any more; whether any was. When that cannot be done nothing that lies here is used from
    /// now on.
    pub(super) fn erase(&self, place: &Place, offset: u64, len: usize) -> bool {
        let erase = || -> io::Result<bool> {
            let file = OpenOptions::new().read(true).write(true).open(&place.path)?;
            let mut was_there = false;
            for block in offset / BLOCK as u64..(offset + len as u64).div_ceil(BLOCK as u64) {
                let mut check = [0; CHECK];
                if read_some(&file, &mut check, check_at(block))? > 0 && check != [0; CHECK] {
                    file.write_all_at(&[0; CHECK], check_at(block))?;
                    was_there = true;
                }
            }
            Ok(was_there)
        };
        match erase() {
            Ok(was_there) => was_there,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(_) => {
                self.remove(place);
                true
            }
        }
    }

    /// Removes everything of an object. When that cannot be done nothing that lies here is used from now on.
    pub(super) fn remove(&self, place: &Place) {
        match std::fs::remove_file(&place.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.is_distrusted.store(true, Relaxed),
        }
    }
}

/// Opens a file for writing, and makes it and its folder if they are not there.
fn create(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(path);
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            open()
        }
        other => other,
    }
}

/// Fills `out`, which lies within one piece, with the object's bytes from `at` on; `false` when a block is not there, or not whole.
fn read_part(file: &File, place: &Place, at: u64, out: &mut [u8]) -> io::Result<bool> {
    let first = at / BLOCK as u64;
    let count = (at + out.len() as u64).div_ceil(BLOCK as u64) - first;
    let mut table = [0; PIECE_BLOCKS * CHECK];
    let table = table.get_mut(..usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(CHECK)).unwrap_or_default();
    read_some(file, table, check_at(first))?;
    let (checks, _) = table.as_chunks::<CHECK>();
    let mut checks = checks.iter().map(|check| u64::from_le_bytes(*check)).zip(first..);
    let (mut rest, mut skip) = (out, usize::try_from(at % BLOCK as u64).unwrap_or(0));
    while !rest.is_empty() {
        let whole = if skip == 0 { rest.len() / BLOCK } else { 0 };
        if whole > 0 {
            // Whole blocks go straight to where they are wanted.
            let (blocks, after) = rest.split_at_mut(whole * BLOCK);
            rest = after;
            let Some(&(_, block)) = checks.clone().next().as_ref() else { return Ok(false) };
            file.read_exact_at(blocks, block_at(block))?;
            let is_right = |bytes: &[u8]| checks.next().is_some_and(|(c, b)| place.check(b, false, bytes) == c);
            if !blocks.chunks(BLOCK).all(is_right) {
                return Ok(false);
            }
            continue;
        }
        let (mut bytes, Some((check, block))) = ([0; BLOCK], checks.next()) else { return Ok(false) };
        read_some(file, &mut bytes, block_at(block))?;
        let len = if place.check(block, false, &bytes) == check {
            BLOCK
        } else if place.check(block, true, &bytes) == check {
            bytes.iter().rposition(|byte| *byte == END_MARK).unwrap_or(0)
        } else {
            return Ok(false);
        };
        let wanted = rest.len().min(BLOCK - skip);
        let (part, after) = rest.split_at_mut(wanted);
        let Some(bytes) = bytes.get(skip..skip + wanted).filter(|_| skip + wanted <= len) else { return Ok(false) };
        part.copy_from_slice(bytes);
        (rest, skip) = (after, 0);
    }
    Ok(true)
}

/// Reads what there is, less than `out` takes only where the file ends; how much.
fn read_some(file: &File, out: &mut [u8], mut at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(n) => (done, at) = (done + n, at + n as u64),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "packs/ab/abcdef";

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("cache"));
        (folder, shelf)
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i * 7 / 13 % 256).unwrap()).collect()
    }

    fn whole(bytes: &[u8]) -> Fetched {
        Fetched { bytes: bytes.to_vec(), is_end: true }
    }

    fn read(shelf: &Shelf, range: Range<usize>) -> Option<Vec<u8>> {
        let mut out = vec![0xee; range.len()];
        let missing = shelf.read(&shelf.place(OBJECT), range.start as u64, &mut out, |_| false);
        missing.is_empty().then_some(out)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_beyond_the_end() {
        let (_folder, shelf) = shelf();
        // Over several groups, and with every kind of end.
        for len in [1, 4095, 4096, 4097, 300_000, (5 << 20) + 17, 6 << 20] {
            let bytes = content(len);
            let place = shelf.place(OBJECT);
            shelf.remove(&place);
            assert_eq!(read(&shelf, 0..1), None);
            shelf.write(&place, 0, &whole(&bytes)).unwrap();
            let ranges = [0..1, 0..len, len - 1..len, len / 3..len / 2 + 1, len.saturating_sub(5000)..len];
            for range in ranges {
                assert!(read(&shelf, range.clone()).unwrap() == bytes[range.clone()], "{range:?} of {len}");
            }
            for beyond in [0..len + 1, len..len + 1, len - 1..len + 1, len.next_multiple_of(BLOCK) - 1..len + BLOCK] {
                assert_eq!(read(&shelf, beyond.clone()), None, "{beyond:?} of {len}");
            }
        }
    }

    #[test]
    fn pieces_that_are_not_there_are_named_and_the_others_read() {
        let (_folder, shelf) = shelf();
        let bytes = content(4 << 20);
        let place = shelf.place(OBJECT);
        let piece = usize::try_from(PIECE).unwrap();
        for there in [1u64, 7, 8] {
            let from = usize::try_from(there).unwrap() * piece;
            let fetched = Fetched { bytes: bytes[from..from + piece].to_vec(), is_end: false };
            shelf.write(&place, there, &fetched).unwrap();
        }
        let mut out = vec![0; 9 * piece];
        assert_eq!(shelf.read(&place, 100, &mut out, |p| p == 4), [0, 2, 3, 5, 6, 9]);
        assert!(out[7 * piece - 100..9 * piece - 100] == bytes[7 * piece..9 * piece]);
        assert_eq!(shelf.read(&shelf.place("packs/ab/other"), 0, &mut out[..1], |_| false), [0]);
    }

    #[test]
    fn a_block_that_is_torn_flipped_moved_or_erased_is_not_there() {
        let (_folder, shelf) = shelf();
        let bytes = content(1 << 20);
        let place = shelf.place(OBJECT);
        let write = || shelf.write(&place, 0, &whole(&bytes)).unwrap();
        let file = || OpenOptions::new().read(true).write(true).open(&place.path).unwrap();
        type Harm<'a> = &'a dyn Fn();
        let harms: [Harm<'_>; 6] = [
            &|| file().write_all_at(&[1], block_at(3) + 100).unwrap(),
            &|| file().write_all_at(&[0; 2048], block_at(3) + 2048).unwrap(),
            &|| file().write_all_at(&[0xff], check_at(3)).unwrap(),
            &|| file().set_len(block_at(3) + 1).unwrap(),
            &|| file().write_all_at(&bytes[4 * BLOCK..5 * BLOCK], block_at(3)).unwrap(),
            &|| assert!(shelf.erase(&place, 3 * BLOCK as u64 + 1, 5)),
        ];
        for (number, harm) in harms.into_iter().enumerate() {
            write();
            assert!(read(&shelf, 0..1 << 20).is_some());
            harm();
            for range in [3 * BLOCK..4 * BLOCK, 3 * BLOCK + 7..3 * BLOCK + 8, 0..1 << 20] {
                assert_eq!(read(&shelf, range), None, "{number}");
            }
            assert!(read(&shelf, 0..3 * BLOCK).unwrap() == bytes[..3 * BLOCK]);
        }
        // Another object's file in this one's place.
        let other = shelf.place("packs/ab/other");
        std::fs::create_dir_all(other.path.parent().unwrap()).unwrap();
        write();
        std::fs::rename(&place.path, &other.path).unwrap();
        assert_eq!(shelf.read(&other, 0, &mut [0; 10], |_| false), [0]);
    }

    #[test]
    fn what_is_erased_is_known_to_have_been_there() {
        let (_folder, shelf) = shelf();
        let place = shelf.place(OBJECT);
        assert!(!shelf.erase(&place, 0, 1));
        shelf.write(&place, 0, &whole(&content(9000))).unwrap();
        assert!(shelf.erase(&place, 5000, 1));
        assert!(!shelf.erase(&place, 5000, 1));
        assert!(!shelf.erase(&place, 1 << 30, 1));
        assert!(read(&shelf, 0..4096).is_some() && read(&shelf, 8192..9000).is_some());
        assert!(shelf.is_trusted());
    }
}
