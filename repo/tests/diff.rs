//! Comparison of disks against a plain descent of both maps and against their bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, back_up, back_up_as, image, leaves, merge};
use coffer_repo::cancel::Cancel;
use coffer_repo::diff::{Comparer, DiffTotals, diff};
use coffer_repo::disk_map::{LeafContent, LeafEntry};
use coffer_repo::index::Index;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Snapshot};
use coffer_repo::{Error, Kind};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

fn ranges_of(repo: &Arc<Repository>, old: &Disk, new: &Disk) -> (Vec<Range<u64>>, DiffTotals) {
    let mut ranges = Vec::new();
    let totals = diff(repo, old, new, &Cancel::default(), &mut |range| {
        ranges.push(range);
        Ok(())
    })
    .unwrap();
    (ranges, totals)
}

/// Entries of either map that the other does not have, by plain descent.
fn expected(repo: &Repository, old: &Disk, new: &Disk) -> Vec<Range<u64>> {
    let entries = |disk: &Disk| -> BTreeSet<(u64, u64, Option<[u8; 32]>)> {
        let entry = |window: u64, e: &LeafEntry| {
            let base = window * repo.geometry().window;
            let id = match &e.content {
                LeafContent::Chunk { id, .. } => Some(id.0),
                LeafContent::Unreadable => None,
            };
            (base + e.start_bytes(), base + e.end_bytes(), id)
        };
        leaves(repo, disk).iter().flat_map(|(w, leaf)| leaf.entries.iter().map(move |e| entry(*w, e))).collect()
    };
    let mut ranges = Vec::new();
    for (start, end, _) in entries(old).symmetric_difference(&entries(new)) {
        merge(&mut ranges, *start..(*end).min(old.size.max(new.size)));
    }
    ranges
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn check(repo: &Arc<Repository>, index: &Arc<Index>, a: &[u8], b: &[u8]) -> Vec<Range<u64>> {
    let old = back_up_as("w", repo, index, &[("d", a)], None, 10);
    let new = back_up_as("w", repo, index, &[("d", b)], Some(old.clone()), 20);
    let disk = |s: &Snapshot| s.disk("d").unwrap().clone();
    let (ranges, totals) = ranges_of(repo, &disk(&old), &disk(&new));
    assert_eq!(ranges, expected(repo, &disk(&old), &disk(&new)));
    assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.end < b.start), "{ranges:?}");
    let changed = ranges.iter().map(|r| r.end - r.start).sum();
    let (old_size, new_size) = (a.len() as u64, b.len() as u64);
    assert_eq!(totals, DiffTotals { old_size, new_size, changed, ranges: ranges.len() as u64 });
    let mut outside = 0;
    for range in ranges.iter().cloned().chain(std::iter::once(old_size.max(new_size)..u64::MAX)) {
        for at in outside..usize::try_from(range.start).unwrap() {
            assert_eq!(byte(a, at), byte(b, at), "byte {at} changed and was not reported");
        }
        outside = usize::try_from(range.end).unwrap_or(usize::MAX);
    }
    check_by_range(repo, &disk(&old), &disk(&new), &ranges);
    assert_eq!(ranges_of(repo, &disk(&new), &disk(&old)).0, ranges, "the other way round");
    assert_eq!(ranges_of(repo, &disk(&new), &disk(&new)).0, []);
    ranges
}

/// Asked range by range, a comparison says what the whole one says, and that all beyond the old disk's end changed.
fn check_by_range(repo: &Arc<Repository>, old: &Disk, new: &Disk, ranges: &[Range<u64>]) {
    let changes = Comparer::new(repo).unwrap().compare(old, new).unwrap();
    let mut due = ranges.to_vec();
    if new.size > old.size {
        due.retain(|r| r.start < old.size);
        let last = due.pop().map_or(old.size..new.size, |r| if r.end >= old.size { r.start..new.size } else { r });
        if last.end < new.size {
            due.push(last);
            due.push(old.size..new.size);
        } else {
            due.push(last);
        }
    }
    let steps = [u64::MAX, 1 << 20, new.size / 3 + 1];
    for (max, step) in steps.iter().flat_map(|step| [(1, *step), (3, *step), (usize::MAX, *step)]) {
        let (mut at, mut found) = (0, Vec::new());
        while at < new.size {
            let end = at.saturating_add(step).min(new.size);
            let stretches = changes.within(at..end, max).unwrap();
            assert!(!stretches.is_empty() && stretches.len() <= max);
            assert!(stretches.iter().zip(stretches.iter().skip(1)).all(|(a, b)| a.1 != b.1), "{stretches:?}");
            for (stretch, has_changed) in stretches {
                assert_eq!(stretch.start, at);
                assert!(stretch.end > at && stretch.end <= end);
                at = stretch.end;
                if has_changed {
                    merge(&mut found, stretch);
                }
            }
            assert!(max < usize::MAX || at == end);
        }
        let due: Vec<_> = due.iter().map(|r| r.start..r.end.min(new.size)).filter(|r| !r.is_empty()).collect();
        assert_eq!(found, due, "at most {max} of each {step}");
    }
    assert_eq!(changes.within(0..0, 5).unwrap(), []);
    assert_eq!(changes.within(0..new.size + 1, 5).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn growth_shrinkage_and_levels() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    let mut long = vec![0; 258 << 20];
    long[..3 << 20].copy_from_slice(&image(1, 3 << 20));
    long[(256 << 20) + 4096..][..400_000].copy_from_slice(&image(2, 400_000));
    // From one window to one level above it, to two; the old root is a subtree of the new one.
    for (a, b) in [(1, 40_000), (40_000, 5 << 20), (5 << 20, 258 << 20), (40_000, 258 << 20), (0, 258 << 20), (0, 0)] {
        let ranges = check(&repo, &index, &long[..a], &long[..b]);
        let kept = a as u64 & !4095;
        assert!(ranges.iter().all(|r| r.end > kept.saturating_sub(32 << 10)), "{a} to {b}: {ranges:?}");
    }
    let mut tail = vec![0; 258 << 20];
    *tail.last_mut().unwrap() = 1;
    let last_block = (258 << 20) - 4096..258 << 20;
    assert_eq!(check(&repo, &index, &[], &tail), [last_block]);
}

#[test]
fn what_is_in_the_way_is_passed_on() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let snapshot = back_up(&repo, &index, &[("a", &image(1, 3 << 20)), ("b", &image(2, 3 << 20))], None, 10);
    let (a, b) = (snapshot.disk("a").unwrap(), snapshot.disk("b").unwrap());
    let stopped = diff(&repo, a, b, &Cancel::default(), &mut |_| Err(Error::new(Kind::Full, "enough"))).unwrap_err();
    assert_eq!(stopped.kind(), Kind::Full);
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(diff(&repo, a, b, &cancel, &mut |_| Ok(())).unwrap_err().kind(), Kind::Cancelled);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn edits_are_found_and_nothing_else(
        len in 1usize..3_000_000,
        new_len in 1usize..3_000_000,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 1usize..30_000, 0u8..3), 0..5),
    ) {
        let (bench, repo) = Bench::fine();
        let index = bench.index(&repo);
        let a = image(7, len);
        let mut b = a.clone();
        b.resize(new_len, 0x5a);
        for (at, edit_len, value) in edits {
            let start = at.index(b.len());
            let end = (start + edit_len).min(b.len());
            b[start..end].fill(value);
        }
        check(&repo, &index, &a, &b);
    }
}
