//! *fastcdc-2020*: chunks of files and streams, whose content shifts by bytes when something is inserted.
//!
//! Not here: reading the stream; [`Chunker::cut`] with [`Tail::More`] tells the caller when it has to. What holds: cut points
//! are those of the `fastcdc` crate at the version pinned in the workspace (they changed between its releases; the golden
//! vectors would tell), with a gear table of the repository's own, so that lengths of chunks betray less.

use super::{Chunker, Piece, Tail};
use crate::error::{Error, Result};
use fastcdc::v2020::{
    AVERAGE_MAX, AVERAGE_MIN, MAXIMUM_MAX, MAXIMUM_MIN, MINIMUM_MAX, MINIMUM_MIN, Normalization, cut_gear, select_masks,
};

/// How a repository cuts streams, as its descriptor says; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamParams {
    /// Only the last chunk of a stream is shorter.
    pub min: u32,
    /// What lengths gather around.
    pub mean: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl Default for StreamParams {
    /// What `init` writes.
    fn default() -> Self {
        StreamParams { min: 64 << 10, mean: 256 << 10, max: 1 << 20 }
    }
}

impl StreamParams {
    /// Whether these are powers of two, in order, and within what FastCDC takes; else `Invalid`.
    pub fn validate(&self) -> Result<()> {
        let fits =
            |size: u32, least: usize, most: usize| size.is_power_of_two() && (least..=most).contains(&(size as usize));
        if fits(self.min, MINIMUM_MIN, MINIMUM_MAX)
            && fits(self.mean, AVERAGE_MIN, AVERAGE_MAX)
            && fits(self.max, MAXIMUM_MIN, MAXIMUM_MAX)
            && self.min <= self.mean
            && self.mean <= self.max
        {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "stream chunking with {self:?}: needs min <= mean <= max, all powers of two, min within {MINIMUM_MIN} to \
             {MINIMUM_MAX}, mean within {AVERAGE_MIN} to {AVERAGE_MAX}, max within {MAXIMUM_MIN} to {MAXIMUM_MAX}"
        )))
    }
}

/// Cuts streams. The gear table is as private as the key it comes from.
#[derive(Clone)]
pub struct StreamChunker {
    min: usize,
    mean: usize,
    max: usize,
    /// Must be clear in the hash for a cut before the mean.
    strict: u64,
    /// Must be clear in the hash for a cut after the mean.
    loose: u64,
    gear: Box<[u64; 256]>,
    /// Each entry of `gear` doubled, for the algorithm's step of two bytes.
    doubled: Box<[u64; 256]>,
}

impl std::fmt::Debug for StreamChunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StreamChunker { min, mean, max, .. } = self;
        write!(f, "StreamChunker {{ min: {min}, mean: {mean}, max: {max} bytes, .. }}")
    }
}

impl StreamChunker {
    /// A chunker with valid `params`; `gear` is what section 6.1 derives from the id key.
    pub fn new(params: StreamParams, gear: [u64; 256]) -> Result<Self> {
        params.validate()?;
        let mean = params.mean as usize;
        let (strict, loose) = select_masks(mean, Normalization::Level1);
        Ok(StreamChunker {
            min: params.min as usize,
            mean,
            max: params.max as usize,
            strict,
            loose,
            gear: Box::new(gear),
            doubled: Box::new(gear.map(|entry| entry << 1)),
        })
    }

    /// Bytes of the longest chunk: with as many at hand, [`Chunker::cut`] always decides.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }
}

impl Chunker for StreamChunker {
    fn cut(&self, bytes: &[u8], tail: Tail) -> Option<Piece> {
        // A cut at the end of too few bytes is no cut; asking only with enough of them also keeps the work linear.
        if bytes.is_empty() || (tail == Tail::More && bytes.len() < self.max) {
            return None;
        }
        let (strict, loose) = (self.strict, self.loose);
        let (_, length) = cut_gear(
            bytes,
            self.min,
            self.mean,
            self.max,
            strict,
            loose,
            strict << 1,
            loose << 1,
            self.gear.as_slice(),
            self.doubled.as_slice(),
        );
        Some(Piece::Chunk(0..length))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::error::Kind;
    use fastcdc::v2020::{FastCDC, get_gear_with_seed};
    use std::collections::HashSet;

    const SMALL: StreamParams = StreamParams { min: 1 << 10, mean: 4 << 10, max: 16 << 10 };

    fn gear(seed: u64) -> [u64; 256] {
        let bytes = sample::noise(seed, 2048);
        let (entries, _) = bytes.as_chunks::<8>();
        std::array::from_fn(|i| u64::from_le_bytes(entries[i]))
    }

    fn chunks<'a>(chunker: &StreamChunker, bytes: &'a [u8]) -> Vec<&'a [u8]> {
        chunker.pieces(bytes, Tail::End).map(|piece| &bytes[piece.range().clone()]).collect()
    }

    #[test]
    fn with_the_public_table_cuts_are_those_of_the_crate() {
        let table: [u64; 256] = get_gear_with_seed(0).0.as_ref().try_into().unwrap();
        for params in [SMALL, StreamParams::default()] {
            let bytes = sample::noise(11, (3 << 20) + 77);
            let chunker = StreamChunker::new(params, table).unwrap();
            let ours: Vec<_> = chunker.pieces(&bytes, Tail::End).map(|piece| piece.range().clone()).collect();
            let theirs: Vec<_> = FastCDC::new(&bytes, params.min as usize, params.mean as usize, params.max as usize)
                .map(|chunk| chunk.offset..chunk.offset + chunk.length)
                .collect();
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn an_insertion_shifts_the_cuts_and_they_meet_again() {
        for seed in 0..8 {
            let chunker = StreamChunker::new(SMALL, gear(seed)).unwrap();
            let old = sample::noise(seed, 1 << 20);
            let known: HashSet<&[u8]> = chunks(&chunker, &old).into_iter().collect();
            for at in [0, 1, 1000, 300_001, (1 << 20) - 1, 1 << 20] {
                let new = [&old[..at], b"inserted", &old[at..]].concat();
                let fresh: Vec<_> = chunks(&chunker, &new).into_iter().filter(|chunk| !known.contains(chunk)).collect();
                assert!((1..=12).contains(&fresh.len()), "seed {seed}: {} new chunks for 8 bytes at {at}", fresh.len());
            }
        }
    }

    #[test]
    fn a_table_changes_the_cuts() {
        let bytes = sample::noise(1, 1 << 18);
        let [a, b] = [1, 2].map(|seed| StreamChunker::new(SMALL, gear(seed)).unwrap());
        assert_ne!(chunks(&a, &bytes), chunks(&b, &bytes));
    }

    #[test]
    fn only_sensible_parameters_are_taken() {
        let good = StreamParams::default();
        assert!(good.validate().is_ok());
        assert!(SMALL.validate().is_ok());
        for bad in [
            StreamParams { min: 0, ..good },
            StreamParams { min: 32, ..good },
            StreamParams { min: 65_534, ..good },
            StreamParams { min: 512 << 10, ..good },
            StreamParams { mean: 250_000, ..good },
            StreamParams { mean: 2 << 20, ..good },
            StreamParams { mean: 8 << 20, max: 16 << 20, ..good },
            StreamParams { max: 1_000_000, ..good },
            StreamParams { max: 32 << 20, ..good },
        ] {
            assert_eq!(bad.validate().unwrap_err().kind(), Kind::Invalid, "{bad:?}");
            assert!(StreamChunker::new(bad, [0; 256]).is_err());
        }
    }

    #[test]
    fn what_is_shown_betrays_no_table() {
        let shown = format!("{:?}", StreamChunker::new(SMALL, [0x1234_5678; 256]).unwrap());
        assert!(!shown.contains(&0x1234_5678.to_string()), "{shown}");
    }
}
