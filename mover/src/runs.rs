//! Arithmetic on ranges of bytes: which runs of a disk are moved, and which gaps between them are left out.
//!
//! Not here: I/O and what an extent means. What holds: runs are sorted, do not overlap, start and end at multiples of
//! [`BLOCK`] except at the end of the disk, and lie further apart than [`SHORTEST_GAP`].

use crate::{Error, Result};
use std::ops::Range;

/// The repository's block: what cannot be read is recorded in multiples of it.
pub(crate) const BLOCK: u64 = 4096;

/// A hole shorter than this is moved as zeroes: a request of its own costs more than its bytes.
pub(crate) const SHORTEST_GAP: u64 = 64 << 10;

/// Merges sorted ranges within `bounds` into runs.
pub(crate) fn join(ranges: impl IntoIterator<Item = Range<u64>>, bounds: &Range<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let start = (range.start / BLOCK * BLOCK).max(bounds.start);
        let end = range.end.next_multiple_of(BLOCK).min(bounds.end);
        match runs.last_mut() {
            Some(last) if start <= last.end.saturating_add(SHORTEST_GAP) => last.end = last.end.max(end),
            _ if start < end => runs.push(start..end),
            _ => {}
        }
    }
    runs
}

/// What `runs` leave out of `bounds`.
pub(crate) fn gaps(runs: &[Range<u64>], bounds: &Range<u64>) -> Vec<Range<u64>> {
    let starts = std::iter::once(bounds.start).chain(runs.iter().map(|r| r.end));
    let ends = runs.iter().map(|r| r.start).chain(std::iter::once(bounds.end));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}

/// Asks for stretches until they cover `range`, and sees that they do: in order, without gaps, none empty.
pub(crate) fn cover<T>(
    range: &Range<u64>,
    mut ask: impl FnMut(Range<u64>) -> Result<Vec<T>>,
    span: impl Fn(&T) -> &Range<u64>,
) -> Result<Vec<T>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let more = ask(at..range.end)?;
        at = check_order(&more, &(at..range.end), &span)?;
        found.extend(more);
    }
    Ok(found)
}

/// Sees that `stretches` cover `range` from its start on, in order, without gaps, none empty; gives where they end.
pub(crate) fn check_order<T>(stretches: &[T], range: &Range<u64>, span: impl Fn(&T) -> &Range<u64>) -> Result<u64> {
    let mut at = range.start;
    for stretch in stretches {
        let s = span(stretch);
        if s.start != at || s.end <= s.start || s.end > range.end {
            return Err(Error::corrupt(format!(
                "asked what lies at bytes {} to {}, the disk answered with bytes {} to {}",
                at, range.end, s.start, s.end
            )));
        }
        at = s.end;
    }
    if at == range.start {
        return Err(Error::corrupt(format!("asked what lies at bytes {at} to {}, the disk said nothing", range.end)));
    }
    Ok(at)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_gaps_are_joined_and_ends_widened_to_blocks() {
        let bounds = 0..10_000_100;
        let runs = join([512..1024, 9000..9100, 1_000_000..1_000_001, 10_000_000..10_000_100], &bounds);
        assert_eq!(runs, vec![0..12288, 999_424..1_003_520, 9_998_336..10_000_100]);
        assert_eq!(gaps(&runs, &bounds), vec![12288..999_424, 1_003_520..9_998_336]);
        assert_eq!(gaps(&[], &bounds), vec![bounds.clone()]);
        assert_eq!(gaps(std::slice::from_ref(&bounds), &bounds), Vec::<Range<u64>>::new());
        assert_eq!(join([], &bounds), Vec::<Range<u64>>::new());
    }

    proptest! {
        #[test]
        fn runs_and_gaps_share_the_bounds_and_no_byte_is_lost(
            start in 0u64..10_000_000,
            steps in prop::collection::vec((0u64..200_000, 0u64..200_000), 0..40),
            tail in 0u64..100_000,
        ) {
            let (mut at, mut ranges) = (start, Vec::new());
            for (skip, length) in steps {
                ranges.push(at + skip..at + skip + length);
                at += skip + length;
            }
            let bounds = start..at + tail;
            let runs = join(ranges.iter().filter(|r| !r.is_empty()).cloned(), &bounds);
            let gaps = gaps(&runs, &bounds);
            for range in ranges.iter().filter(|r| !r.is_empty()) {
                prop_assert!(runs.iter().any(|run| run.start <= range.start && range.end <= run.end));
            }
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end + SHORTEST_GAP < pair[1].start);
            }
            let mut parts: Vec<_> = runs.iter().chain(&gaps).cloned().collect();
            parts.sort_by_key(|part| part.start);
            prop_assert!(bounds.is_empty() || check_order(&parts, &bounds, |r| r).unwrap() == bounds.end);
        }
    }

    #[test]
    fn answers_with_gaps_or_without_content_are_refused() {
        let ask = |answer: Vec<Range<u64>>| cover(&(0..100), move |_| Ok(answer.clone()), |r| r);
        assert_eq!(ask(vec![0..40, 40..100]).unwrap(), vec![0..40, 40..100]);
        for bad in [vec![], vec![0..0], vec![1..100], vec![0..40, 41..100], vec![0..101], vec![0..50]] {
            assert!(ask(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
