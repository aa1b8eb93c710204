//! Statistics against a plain count over every leaf of every point.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, back_up_as, image, leaves};
use coffer_repo::backend::Backend;
use coffer_repo::cancel::Cancel;
use coffer_repo::disk_map::LeafContent;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::stats::{Size, StatsOptions, stats};
use coffer_repo::{Kind, Result};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Every chunk with its lengths and the points (ordinals) that lead to it.
fn chunks(repo: &Repository, points: &[Snapshot]) -> BTreeMap<[u8; 32], (u64, u64, BTreeSet<usize>)> {
    let mut chunks = BTreeMap::new();
    for (i, point) in points.iter().enumerate() {
        for (_, leaf) in point.disks.iter().flat_map(|d| leaves(repo, d)) {
            for entry in &leaf.entries {
                let LeafContent::Chunk { id, hint } = &entry.content else { continue };
                let lengths = (u64::from(entry.len_bytes()), u64::from(hint.stored_len), BTreeSet::new());
                chunks.entry(id.0).or_insert(lengths).2.insert(i);
            }
        }
    }
    chunks
}

fn size<'a>(chunks: impl Iterator<Item = &'a (u64, u64, BTreeSet<usize>)>) -> Size {
    chunks.fold(Size::default(), |sum, (raw, stored, _)| Size {
        chunks: sum.chunks + 1,
        raw: sum.raw + raw,
        stored: sum.stored + stored,
    })
}

fn check(bench: &Bench, repo: &Arc<Repository>, points: &[Snapshot]) -> Result<()> {
    let options = StatsOptions { scratch: bench.dir.path().to_owned(), threads: 2 };
    let found = stats(repo, points, &options, &Cancel::default())?;
    let chunks = chunks(repo, points);
    assert_eq!(found.total, size(chunks.values()));
    assert_eq!(found.logical, points.iter().map(Snapshot::logical_bytes).sum::<u64>());
    assert_eq!(found.points.len(), points.len());
    for (i, (point, snapshot)) in found.points.iter().zip(points).enumerate() {
        assert_eq!((point.snapshot, point.time), (snapshot.id(), snapshot.time()));
        assert_eq!((&point.workload, point.logical), (&snapshot.workload, snapshot.logical_bytes()));
        assert_eq!(point.unique, size(chunks.values().filter(|c| c.2 == [i].into())), "point {i}");
    }
    let names: BTreeSet<&String> = points.iter().map(|p| &p.workload).collect();
    assert!(found.workloads.iter().map(|w| &w.workload).eq(names));
    for workload in &found.workloads {
        let of = |i: &usize| points[*i].workload == workload.workload;
        let own: Vec<usize> = (0..points.len()).filter(of).collect();
        assert_eq!(workload.points, own.len() as u64);
        assert_eq!(workload.logical, own.iter().map(|i| points[*i].logical_bytes()).sum::<u64>());
        assert_eq!(workload.unique, size(chunks.values().filter(|c| c.2.iter().all(of))), "{}", workload.workload);
    }
    Ok(())
}

#[test]
fn a_repository_without_points_takes_nothing() {
    let (bench, repo) = Bench::new();
    check(&bench, &repo, &[]).unwrap();
}

#[test]
fn a_map_that_cannot_be_read_is_an_error() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let point = back_up_as("web", &repo, &index, &[("d", &image(1, 3 << 20))], None, 1);
    let trees = coffer_repo::backend::list_sorted(&*bench.memory, "trees/").unwrap();
    bench.memory.delete(&trees[0].name).unwrap();
    assert_eq!(check(&bench, &repo, &[point]).unwrap_err().kind(), Kind::Corrupt);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    /// Each point edits one of three images and is filed under one of three workloads, with or without a second disk.
    #[test]
    fn every_chunk_is_counted_for_who_leads_to_it(
        points in prop::collection::vec((0u64..3, 0usize..3, any::<prop::sample::Index>(), any::<bool>()), 1..7),
    ) {
        let (bench, repo) = Bench::fine();
        let index = bench.index(&repo);
        let mut made: Vec<Snapshot> = Vec::new();
        for (now, (seed, workload, at, second)) in points.into_iter().enumerate() {
            let workload = ["db", "mail", "web"][workload];
            // The second disk brings the tree's third level and shares its content with some other point's first.
            let mut bytes = image(seed, 300_000);
            let start = at.index(bytes.len() - 5000);
            bytes[start..start + 5000].fill(9);
            let mut other = vec![0; 257 << 20];
            other[..300_000].copy_from_slice(&image(seed + 1, 300_000));
            other[(256 << 20) + 4096..][..100_000].copy_from_slice(&image(seed + 2, 100_000));
            let mut disks: Vec<(&str, &[u8])> = vec![("a", &bytes)];
            if second {
                disks.push(("b", &other));
            }
            let parent = made.iter().rev().find(|p| p.workload == workload).cloned();
            made.push(back_up_as(workload, &repo, &index, &disks, parent, now as u64));
        }
        check(&bench, &repo, &made).unwrap();
        check(&bench, &repo, &made[1..]).unwrap();
    }
}
