//! A list of byte ranges for a report: sorted, merged, and bounded however much is wrong.
//!
//! Not here: what is wrong with them. What holds: the number of bytes is always exact; past [`RangeList::LONGEST`] ranges
//! only that number goes on growing.

use std::ops::Range;

/// Byte ranges of a disk that a report names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeList {
    ranges: Vec<Range<u64>>,
    bytes: u64,
    omitted: bool,
}

impl RangeList {
    /// How many ranges are kept.
    pub const LONGEST: usize = 1024;

    /// Adds a range that touches no byte of those added before.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.bytes += range.end - range.start;
        let at = self.ranges.partition_point(|r| r.start < range.start);
        let joins_next = self.ranges.get(at).is_some_and(|next| next.start == range.end);
        let end = if joins_next { self.ranges.remove(at).end } else { range.end };
        let previous = at.checked_sub(1).and_then(|i| self.ranges.get_mut(i));
        if let Some(previous) = previous.filter(|p| p.end == range.start) {
            previous.end = end;
        } else if self.ranges.len() < Self::LONGEST {
            self.ranges.insert(at, range.start..end);
        } else {
            self.omitted = true;
        }
    }

    /// The ranges, in order.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// How many bytes were added.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there were more ranges than are kept.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.omitted
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_in_any_order_and_the_list_is_bounded() {
        let mut list = RangeList::default();
        for range in [8..12, 0..4, 4..8, 20..24, 16..20, 30..30] {
            list.add(range);
        }
        assert_eq!(list.ranges(), &[0..12, 16..24]);
        list.add(12..16);
        assert_eq!(list.ranges(), std::slice::from_ref(&(0..24)));
        assert_eq!(list.bytes(), 24);

        for i in 0..2 * RangeList::LONGEST as u64 {
            list.add(100 + 2 * i..101 + 2 * i);
        }
        assert_eq!(list.ranges().len(), RangeList::LONGEST);
        assert_eq!(list.bytes(), 24 + 2 * RangeList::LONGEST as u64);
        assert!(list.is_cut_short());
    }
}
