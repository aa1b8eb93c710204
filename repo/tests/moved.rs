//! Reads through `moved` records: packs that are gone, copies of copies, hints that lie.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, back_up, image, leaves, pass, read_all};
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::disk_map::{Hint, LeafContent};
use coffer_repo::id::{PackUid, RecordId};
use coffer_repo::location::PackKind;
use coffer_repo::moved::{self, Moved, Relocated};
use coffer_repo::pack::{self, Entry, PackBuilder, PackOptions};
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::session::SessionTag;
use coffer_repo::snapshot::Snapshot;
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::{Kind, Result};
use std::sync::Arc;

/// Two points of one disk, whose maps have several levels.
fn fill(bench: &Bench, repo: &Arc<Repository>) -> (Vec<Snapshot>, Vec<u8>) {
    let index = bench.index(repo);
    let bytes = image(1, 5 << 20 | 777);
    let first = back_up(repo, &index, &[("d", &bytes)], None, 10);
    let second = back_up(repo, &index, &[("d", &bytes), ("e", &image(2, 1 << 20))], Some(first.clone()), 20);
    (vec![first, second], bytes)
}

fn packs(repo: &Repository) -> Vec<(PackKind, PackUid)> {
    let all = PackKind::ALL.into_iter().flat_map(|kind| list_sorted(repo.backend(), kind.prefix()).unwrap());
    all.map(|object| pack::parse_name(&object.name).unwrap()).collect()
}

/// A data pack that the disk "d" of every point needs.
fn needed(repo: &Repository, points: &[Snapshot]) -> PackUid {
    let leaf = leaves(repo, points[0].disk("d").unwrap()).remove(0).1;
    match leaf.entries[0].content {
        LeafContent::Chunk { hint, .. } => hint.pack,
        LeafContent::Unreadable => panic!("a block that could not be read"),
    }
}

/// How reading the disk "d" fails.
fn failure(repo: &Arc<Repository>, point: &Snapshot) -> Option<Kind> {
    read_all(repo, point, "d").err().map(|e| e.kind())
}

/// Copies every frame into a new pack; where they lie there.
fn copy(repo: &Repository, kind: PackKind, uid: PackUid) -> Vec<Relocated> {
    let (entries, _) = pack::read_contents(repo.backend(), repo.keys(), kind, uid).unwrap();
    let open = repo.open_pack(kind, uid).unwrap();
    let options =
        PackOptions { kind, aead: repo.descriptor().aead, target_len: 1 << 20, session: SessionTag::default() };
    let mut builder = PackBuilder::new(repo.keys(), options, Vec::new(), repo.entropy()).unwrap();
    // In another order, so that no place is right by accident.
    let line = |Entry { stored, location }: &Entry| {
        let mut sealed = vec![0; location.stored_len as usize];
        repo.backend().get_range(&pack::name(kind, uid), u64::from(location.offset), &mut sealed).unwrap();
        let (codec, bytes) = open.open_frame(location, &mut sealed).unwrap();
        let at = builder.append(*stored, codec, location.raw_len, bytes).unwrap();
        let to = Hint { pack: at.pack, offset: at.offset, stored_len: at.stored_len };
        Relocated { key: stored.key(), to }
    };
    let lines = entries.iter().rev().map(line).collect();
    let finished = builder.finish().unwrap();
    assert_eq!(repo.backend().put(&finished.name, &[&finished.bytes]).unwrap(), Put::Created);
    lines
}

/// What a collector does to a pack whose frames are all needed.
fn relocate(repo: &Repository, kind: PackKind, uid: PackUid) -> PackUid {
    let lines = copy(repo, kind, uid);
    repo.put_relocated(uid, &lines).unwrap();
    repo.backend().delete(&pack::name(kind, uid)).unwrap();
    lines[0].to.pack
}

fn check(repo: &Arc<Repository>, points: &[Snapshot], bytes: &[u8]) {
    for point in points {
        assert!(read_all(repo, point, "d").unwrap() == bytes);
    }
}

fn problems(repo: &Arc<Repository>) -> Result<Vec<String>> {
    let options = VerifyOptions { data: DataCheck::All, threads: 2, ..VerifyOptions::default() };
    let report = verify(repo, options, &VerifyProgress::default(), &Cancel::default())?;
    Ok(report.problems.iter().map(|p| p.object.clone()).collect())
}

#[test]
fn everything_is_read_where_it_lies_now() {
    let (bench, repo) = Bench::fine();
    let (points, bytes) = fill(&bench, &repo);
    let reader = Reader::new(Arc::clone(&repo), ReaderOptions { cache_bytes: 0, ..ReaderOptions::default() }).unwrap();
    let disk = reader.disk(&points[0], "d").unwrap();
    let mut read = vec![0; bytes.len()];
    // Three times, so that there are chains; the one reader remembers where things lay before.
    for round in 0..4 {
        disk.read_at(0, &mut read).unwrap();
        assert!(read == bytes, "round {round}");
        assert_eq!(reader.detours() > 0, round > 0);
        check(&repo, &points, &bytes);
        assert_eq!(problems(&repo).unwrap(), Vec::<String>::new(), "round {round}");
        for (kind, uid) in packs(&repo) {
            relocate(&repo, kind, uid);
        }
    }
}

/// A collector that collapses a chain removes the records in its middle: what a reader remembers is no longer enough.
#[test]
fn what_is_remembered_is_read_again_before_a_read_fails() {
    let (bench, repo) = Bench::fine();
    let (points, bytes) = fill(&bench, &repo);
    let first: Vec<_> = packs(&repo).into_iter().map(|(kind, uid)| (kind, uid, relocate(&repo, kind, uid))).collect();
    let reader = Reader::new(Arc::clone(&repo), ReaderOptions { cache_bytes: 0, ..ReaderOptions::default() }).unwrap();
    let disk = reader.disk(&points[0], "d").unwrap();
    let mut read = vec![0; bytes.len()];
    disk.read_at(0, &mut read).unwrap();
    for (kind, origin, middle) in first {
        let lines = copy(&repo, kind, middle);
        for record in list_sorted(repo.backend(), &moved::prefix(origin)).unwrap() {
            repo.backend().delete(&record.name).unwrap();
        }
        repo.put_relocated(origin, &lines).unwrap();
        repo.backend().delete(&pack::name(kind, middle)).unwrap();
    }
    read.fill(0);
    disk.read_at(0, &mut read).unwrap();
    assert!(read == bytes);
    check(&repo, &points, &bytes);
}

#[test]
fn hints_that_lie_mislead_nobody() {
    let (bench, repo) = Bench::fine();
    let (points, bytes) = fill(&bench, &repo);
    let victim = needed(&repo, &points);
    let lines = copy(&repo, PackKind::Data, victim);
    let to = |n: u8| PackUid([n; 16]);
    let lie = |line: &Relocated, to: Hint| Relocated { key: line.key, to };
    let mut lies = Vec::new();
    for (line, other) in lines.iter().zip(lines.iter().rev()) {
        // Another chunk's place, a place that is none, a length that is none, a pack that is not there, a circle.
        lies.push(lie(line, other.to));
        lies.push(lie(line, Hint { offset: line.to.offset + 1, ..line.to }));
        lies.push(lie(line, Hint { stored_len: u32::MAX, ..line.to }));
        lies.push(lie(line, Hint { pack: to(1), ..line.to }));
        lies.push(lie(line, Hint { pack: victim, ..line.to }));
    }
    repo.put_relocated(victim, &lies).unwrap();
    repo.put_relocated(to(1), &lies).unwrap();
    repo.backend().delete(&pack::name(PackKind::Data, victim)).unwrap();
    for point in &points {
        assert_eq!(failure(&repo, point), Some(Kind::Corrupt));
    }
    assert!(problems(&repo).unwrap().contains(&pack::name(PackKind::Data, victim)));
    // A record that is damaged says nothing, and a true one among the lies is found.
    let name = moved::name(victim, RecordId([9; 16]));
    assert_eq!(repo.backend().put(&name, &[b"no record"]).unwrap(), Put::Created);
    repo.put_relocated(victim, &lines).unwrap();
    check(&repo, &points, &bytes);
    assert_eq!(problems(&repo).unwrap(), [name]);
}

/// More places than a search tries: it ends, and fails.
#[test]
fn a_search_ends() {
    let (bench, repo) = Bench::fine();
    let (points, _) = fill(&bench, &repo);
    let victim = needed(&repo, &points);
    let lines = copy(&repo, PackKind::Data, victim);
    let far = |line: &Relocated, n: u32| Relocated { key: line.key, to: Hint { offset: u32::MAX - n, ..line.to } };
    let lies: Vec<_> = lines.iter().flat_map(|line| (0..100).map(move |n| far(line, n))).collect();
    repo.put_relocated(victim, &lies).unwrap();
    repo.backend().delete(&pack::name(PackKind::Data, victim)).unwrap();
    assert_eq!(failure(&repo, &points[0]), Some(Kind::Corrupt));
}

/// A chunk that is damaged where it lies is read where it lies as well; whoever cannot read content follows nodes all the same.
#[test]
fn a_copy_makes_up_for_damage() {
    let (bench, repo) = Bench::fine();
    let (points, bytes) = fill(&bench, &repo);
    for (kind, uid) in packs(&repo) {
        let lines = copy(&repo, kind, uid);
        repo.put_relocated(uid, &lines).unwrap();
        let name = pack::name(kind, uid);
        let mut whole = repo.backend().get(&name).unwrap();
        let middle = whole.len() / 2;
        whole[middle] ^= 1;
        bench.memory.delete(&name).unwrap();
        assert_eq!(bench.memory.put(&name, &[&whole]).unwrap(), Put::Created);
    }
    check(&bench.open(&pass("secret")).unwrap(), &points, &bytes);
}

#[test]
fn long_lists_become_several_records() {
    let (_bench, repo) = Bench::new();
    let line = |n: u32| {
        let to = Hint { pack: PackUid([1; 16]), offset: n, stored_len: 20 };
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        Relocated { key: coffer_repo::location::IndexKey::of(&key), to }
    };
    let lines: Vec<_> = (0..u32::try_from(moved::MAX_LINES).unwrap() + 1).map(line).collect();
    let pack = PackUid([5; 16]);
    repo.put_relocated(pack, &lines).unwrap();
    let records = list_sorted(repo.backend(), moved::PREFIX).unwrap();
    assert_eq!(records.len(), 2);
    for record in &records {
        let record = repo.get_record(coffer_repo::sealed::ObjectKind::Moved, &record.name).unwrap();
        assert!(!Moved::decode(&record.body).unwrap().lines.is_empty());
    }
    let mut read = repo.relocated(pack).unwrap();
    read.sort_by_key(|line| line.key);
    assert_eq!(read, lines);
}
