//! Raw disk images in files, and what lies where in them.
//!
//! Not here: disks that live in memory ([`crate::disk`]). What holds: an image is sparse but for what was asked for; what
//! fills it does not compress, so that sizes tell how much was stored.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use crate::dice::Dice;
use crate::program::{outside, run};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;
/// In such units a snapshot tells zero from data.
const BLOCK: usize = 4096;

/// Makes an image of `size` bytes with noise in `filled`.
pub fn make(path: &Path, size: u64, filled: &[Range<u64>], seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut dice = Dice::new(seed);
    let mut piece = vec![0; 1 << 20];
    for range in filled {
        let mut at = range.start;
        while at < range.end {
            let part = &mut piece[..usize::try_from((range.end - at).min(MIB)).unwrap()];
            dice.noise(part);
            file.write_all_at(part, at).unwrap();
            at += part.len() as u64;
        }
    }
}

/// Makes an ext4 file system of `size` bytes with a few files of noise in it.
pub fn make_ext4(path: &Path, size: u64, seed: u64) {
    let tree = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(seed);
    for number in 0..24 {
        let mut bytes = vec![0; dice.index(1 << 19)];
        dice.noise(&mut bytes);
        std::fs::write(tree.path().join(format!("file-{number}")), bytes).unwrap();
    }
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    run(outside("mke2fs").args(["-q", "-t", "ext4", "-F", "-d"]).arg(tree.path()).arg(path));
}

/// Where a raw file holds something else than zeroes: whole blocks, neighbours joined.
#[must_use]
pub fn stretches(path: &Path) -> Vec<Range<u64>> {
    let mut file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut piece = vec![0; 256 * BLOCK];
    let mut at = 0;
    loop {
        let length = file.read(&mut piece).unwrap();
        if length == 0 {
            return found;
        }
        for block in piece[..length].chunks(BLOCK) {
            let end = at + block.len() as u64;
            if block.iter().any(|byte| *byte != 0) {
                join(&mut found, at..end);
            }
            at = end;
        }
    }
}

/// Adds a range after all others, to the last one if it touches that.
pub fn join(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}
