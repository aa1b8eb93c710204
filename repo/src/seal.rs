//! The stage that compresses a chunk or node before it is sealed and expands it after it is opened.
//!
//! Not here: encryption ([`crate::crypto`]) and where the bytes go ([`crate::pack`]). What holds: a worker owns one
//! [`Compressor`] or [`Decompressor`] and reuses it, since making a zstd context costs more than a chunk; compressed bytes
//! are one zstd frame that names its content's length, always shorter than the raw bytes; expanding writes exactly the length
//! that was promised or fails, and never allocates more than that.

use crate::crypto::Codec;
use crate::error::{Error, Result};
use std::ops::RangeInclusive;
use zstd::zstd_safe;

/// The zstd levels offered. Above them a context takes hundreds of MiB, below them chunks grow for little gain.
pub const LEVELS: RangeInclusive<i32> = 1..=19;

/// What compression must save to be kept: 1 part in 32. Less is not worth the reader's time.
const LEAST_GAIN: usize = 32;
/// Shorter inputs are not probed: the sample would be the whole of them.
const PROBED_FROM: usize = 16 * 1024;
/// The probe looks at this many stretches, spread evenly, of this many bytes each: 4 KiB in all.
const PROBE_STRETCHES: usize = 32;
const PROBE_STRETCH: usize = 128;

/// A worker's compressor.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
}

impl Compressor {
    /// A compressor of `level`, one of [`LEVELS`].
    pub fn new(level: i32) -> Result<Self> {
        if !LEVELS.contains(&level) {
            let (least, most) = (LEVELS.start(), LEVELS.end());
            return Err(Error::invalid(format!("compression level {level} is not one of {least} to {most}")));
        }
        let zstd = zstd::bulk::Compressor::new(level)
            .map_err(|e| Error::internal(format!("making a zstd context of level {level}")).with_source(e))?;
        Ok(Compressor { zstd, out: Vec::new() })
    }

    /// The bytes to seal for `raw`: compressed where that saves at least 1/32, else `raw` itself. The borrowed output lives
    /// until the next call.
    pub fn compress<'a>(&'a mut self, raw: &'a [u8]) -> Result<(Codec, &'a [u8])> {
        if looks_random(raw) {
            return Ok((Codec::Raw, raw));
        }
        self.out.clear();
        self.out.reserve(zstd_safe::compress_bound(raw.len()));
        self.zstd
            .compress_to_buffer(raw, &mut self.out)
            .map_err(|e| Error::internal(format!("compressing {} bytes", raw.len())).with_source(e))?;
        if self.out.len() + raw.len().div_ceil(LEAST_GAIN) <= raw.len() {
            Ok((Codec::Zstd, &self.out))
        } else {
            Ok((Codec::Raw, raw))
        }
    }
}

/// A worker's decompressor.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> Result<Self> {
        let zstd =
            zstd::bulk::Decompressor::new().map_err(|e| Error::internal("making a zstd context").with_source(e))?;
        Ok(Decompressor { zstd })
    }

    /// Replaces `out` by the `raw_len` bytes that `bytes` stand for. Anything else in them is `Corrupt`: another length,
    /// a second frame, bytes behind it. Fails before allocating when the frame itself names another length.
    pub fn decompress(&mut self, codec: Codec, bytes: &[u8], raw_len: u32, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let due = usize::try_from(raw_len).map_err(|_| Error::corrupt(format!("a chunk of {raw_len} bytes")))?;
        match codec {
            Codec::Raw if bytes.len() == due => out.extend_from_slice(bytes),
            Codec::Raw => return Err(wrong_length(bytes.len(), due)),
            Codec::Zstd => {
                one_frame(bytes, due)?;
                out.reserve_exact(due);
                // zstd takes the capacity for the room there is, which may be more than was asked for; what it names is
                // checked above and what it wrote below.
                let written = self.zstd.decompress_to_buffer(bytes, out);
                wrote(written, bytes.len(), due)?;
            }
        }
        Ok(())
    }

    /// As [`Decompressor::decompress`], into a place of exactly the length that is due.
    pub fn decompress_into(&mut self, codec: Codec, bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let due = out.len();
        match codec {
            Codec::Raw if bytes.len() == due => out.copy_from_slice(bytes),
            Codec::Raw => return Err(wrong_length(bytes.len(), due)),
            Codec::Zstd => {
                one_frame(bytes, due)?;
                let written = self.zstd.decompress_to_buffer(bytes, out);
                wrote(written, bytes.len(), due)?;
            }
        }
        Ok(())
    }
}

/// Whether `bytes` are one zstd frame that says it holds `due` bytes, as far as its headers tell.
fn one_frame(bytes: &[u8], due: usize) -> Result<()> {
    let named = zstd_safe::get_frame_content_size(bytes)
        .map_err(|_| Error::corrupt("compressed bytes do not begin with a zstd frame"))?;
    if named != Some(due as u64) {
        return Err(Error::corrupt(format!("a zstd frame names {named:?} bytes where {due} are due")));
    }
    if zstd_safe::find_frame_compressed_size(bytes) != Ok(bytes.len()) {
        return Err(Error::corrupt(format!("{} compressed bytes are not one zstd frame", bytes.len())));
    }
    Ok(())
}

/// Whether zstd wrote the `due` bytes.
fn wrote(written: std::io::Result<usize>, stored: usize, due: usize) -> Result<()> {
    match written {
        Ok(len) if len == due => Ok(()),
        Ok(len) => Err(wrong_length(len, due)),
        Err(e) => Err(Error::corrupt(format!("expanding {stored} bytes to {due}")).with_source(e)),
    }
}

fn wrong_length(got: usize, due: usize) -> Error {
    Error::corrupt(format!("a frame holds {got} bytes where {due} are due"))
}

/// Whether a sample of `raw` has bytes as even as random ones, as encrypted or compressed content has: zstd would read all of
/// it and gain nothing. Pearson's chi-squared over byte values; for random bytes it has mean 255 and deviation 22.6, so that
/// at five deviations above a few random chunks in a million still go to zstd, while text, code and tables score thousands. Even
/// bytes that repeat at a distance are taken for random: they cost space, which is rare, and never correctness.
fn looks_random(raw: &[u8]) -> bool {
    if raw.len() < PROBED_FROM {
        return false;
    }
    // Four tables, so that equal neighbours do not wait for each other's increments.
    let mut seen = [[0u16; 256]; 4];
    for stretch in raw.chunks(raw.len() / PROBE_STRETCHES).take(PROBE_STRETCHES) {
        for four in stretch.get(..PROBE_STRETCH).unwrap_or_default().chunks_exact(4) {
            for (table, byte) in seen.iter_mut().zip(four) {
                if let Some(n) = table.get_mut(usize::from(*byte)) {
                    *n += 1;
                }
            }
        }
    }
    let sampled = (PROBE_STRETCHES * PROBE_STRETCH) as u64;
    let [a, b, c, d] = &seen;
    let squares: u64 = a
        .iter()
        .zip(b)
        .zip(c)
        .zip(d)
        .map(|(((a, b), c), d)| {
            let n = u64::from(a + b + c + d);
            n * n
        })
        .sum();
    // sum((n - e)^2 / e) with e = sampled / 256 is sum(n^2) / e - sampled.
    squares * 256 / sampled < sampled + 255 + 5 * 23
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::{Entropy, Seeded};
    use crate::error::Kind;
    use proptest::prelude::*;

    fn random(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        Seeded::new(seed).fill(&mut out).unwrap();
        out
    }

    fn text(len: usize) -> Vec<u8> {
        (0u32..).flat_map(|n| format!("line {n} of the log, nothing happened\n").into_bytes()).take(len).collect()
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(
            pieces in prop::collection::vec((any::<u64>(), 1usize..20_000, any::<bool>()), 0..5),
            level in 1i32..6,
        ) {
            let raw: Vec<u8> =
                pieces.into_iter().flat_map(|(seed, n, even)| if even { random(seed, n) } else { text(n) }).collect();
            let mut compressor = Compressor::new(level).unwrap();
            let (codec, bytes) = compressor.compress(&raw).unwrap();
            match codec {
                Codec::Raw => prop_assert_eq!(bytes, &raw),
                Codec::Zstd => prop_assert!(bytes.len() < raw.len()),
            }
            let mut out = Vec::new();
            let raw_len = u32::try_from(raw.len()).unwrap();
            Decompressor::new().unwrap().decompress(codec, bytes, raw_len, &mut out).unwrap();
            prop_assert_eq!(out, raw);
        }
    }

    #[test]
    fn text_is_compressed_and_random_bytes_are_not_even_tried() {
        let mut compressor = Compressor::new(1).unwrap();
        assert_eq!(compressor.compress(&text(65536)).unwrap().0, Codec::Zstd);
        assert_eq!(compressor.compress(&[0; 4096]).unwrap().0, Codec::Zstd);
        for seed in 0..200 {
            let raw = random(seed, 65536);
            assert!(looks_random(&raw), "seed {seed}");
            assert_eq!(compressor.compress(&raw).unwrap(), (Codec::Raw, &raw[..]), "seed {seed}");
        }
    }

    #[test]
    fn a_chunk_with_some_order_in_it_is_tried() {
        for kept in [4096, 8192, 16384] {
            let mut raw = random(7, 65536);
            raw[30_000..30_000 + kept].copy_from_slice(&text(kept));
            assert!(!looks_random(&raw), "{kept} bytes of text among 65536");
        }
    }

    #[test]
    fn a_saving_of_less_than_a_thirty_second_is_not_taken() {
        let mut raw = random(3, 12 * 1024);
        let mut compressor = Compressor::new(1).unwrap();
        let len = raw.len();
        raw[len - 300..].fill(0);
        assert_eq!(compressor.compress(&raw).unwrap().0, Codec::Raw);
        raw[len - 600..].fill(0);
        assert_eq!(compressor.compress(&raw).unwrap().0, Codec::Zstd);
    }

    #[test]
    fn expanding_is_exact() {
        let raw = text(65536);
        let mut compressor = Compressor::new(1).unwrap();
        let (codec, bytes) = compressor.compress(&raw).unwrap();
        let expand = |bytes: &[u8], raw_len| {
            // Room to spare must not let more out than is due.
            let mut out = Vec::with_capacity(1 << 20);
            Decompressor::new().unwrap().decompress(codec, bytes, raw_len, &mut out)
        };
        expand(bytes, 65536).unwrap();
        let twice = [bytes, bytes].concat();
        let trailing = [bytes, &[0]].concat();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], bytes].concat();
        let short = &bytes[..bytes.len() - 1];
        for (what, bytes, raw_len) in [
            ("shorter", bytes, 65535),
            ("longer", bytes, 65537),
            ("two frames, one length", &twice, 65536),
            ("two frames, both lengths", &twice, 131_072),
            ("a byte behind", &trailing, 65536),
            ("a skippable frame before", &skippable, 65536),
            ("cut short", short, 65536),
            ("nothing", &[], 65536),
        ] {
            assert_eq!(expand(bytes, raw_len).unwrap_err().kind(), Kind::Corrupt, "{what}");
        }
        let mut out = Vec::new();
        let stored_raw = Decompressor::new().unwrap().decompress(Codec::Raw, &raw, 65535, &mut out);
        assert_eq!(stored_raw.unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_level_that_is_not_offered_is_refused() {
        for level in [-1, 0, 20, 22] {
            assert_eq!(Compressor::new(level).err().map(|e| e.kind()), Some(Kind::Invalid));
        }
    }
}
