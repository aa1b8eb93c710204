//! Protection: who may protect, what ends it, and that nothing protected is forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use bench::{Bench, at, back_up, pass};
use coffer_repo::Kind;
use coffer_repo::backend::faulty::{Counted, Fatal, Faulty, Plan, Stop};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put};
use coffer_repo::crypto::{Aead, Codec, FrameAt};
use coffer_repo::entropy::Seeded;
use coffer_repo::id::RecordId;
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::keys::Keys;
use coffer_repo::note::{Note, Remark};
use coffer_repo::protection::Protected;
use coffer_repo::repository::Repository;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::Snapshot;
use std::sync::Arc;

fn points(bench: &Bench, repo: &Arc<Repository>, count: u64) -> Vec<Snapshot> {
    let index = bench.index(repo);
    (1..=count).map(|n| back_up(repo, &index, &[("d", &n.to_le_bytes())], None, 10 * n)).collect()
}

fn left(repo: &Repository) -> Vec<u64> {
    repo.points().unwrap().snapshots.iter().map(|point| point.time().seconds()).collect()
}

/// The note `record` in the authority's name, sealed by somebody who has the structure key and signs with his own.
fn forge(keys: &Keys, signer_id: &[u8; 16], record: RecordId, note: &Note) -> (String, Vec<u8>) {
    let name = Note::name(record);
    let body = note.encode().unwrap();
    let kind = ObjectKind::Note.byte();
    let len = u16::try_from(name.len()).unwrap().to_le_bytes();
    let signature = keys.signer().sign(&[b"coffer v1 record", &[kind], &keys.repo().0, &len, name.as_bytes(), &body]);
    let content = [&signer_id[..], &signature, &body].concat();
    let raw_len = u32::try_from(content.len()).unwrap();
    let (aead, salt) = (Aead::Aes256Gcm, [3; 32]);
    let mut object = [&b"CFOBJ\r\n\0"[..], &[1, kind, aead.byte(), 0], &raw_len.to_le_bytes(), &salt].concat();
    let at = FrameAt { object: &name, kind, offset: 48, raw_len, codec: Codec::Raw };
    keys.object_key(kind, &salt, aead).unwrap().seal_append(at, &content, &mut object).unwrap();
    (name, object)
}

fn damage(store: &Memory, name: &str) {
    let mut bytes = store.get(name).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    store.delete(name).unwrap();
    assert_eq!(store.put(name, &[&bytes]).unwrap(), Put::Created);
}

#[test]
fn a_protected_point_stays_until_every_protection_ended() {
    let (bench, repo) = Bench::new();
    let points = points(&bench, &repo, 3);
    let both = [&points[0], &points[1]];
    repo.protect(&points[0], Some("audit"), at(100)).unwrap();
    // Its time decides nothing: this one was made "before" the point.
    repo.protect(&points[0], None, at(1)).unwrap();
    let protected = repo.protected().unwrap();
    assert_eq!(protected.points.len(), 1);
    let shown: Vec<_> = protected.of(points[0].id()).iter().map(|p| (p.time.unwrap(), p.reason.as_deref())).collect();
    assert_eq!(shown, [(at(1), None), (at(100), Some("audit"))]);

    let refused = repo.forget_points(&both, &protected, at(101)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Retained);
    let says = "web@1970-01-01T00-00-10Z is protected (audit); 'coffer unprotect web@1970-01-01T00-00-10Z' ends that";
    assert!(refused.context().contains(says), "{refused}");
    assert_eq!(left(&repo), [10, 20, 30]);

    // A protection that somebody adds meanwhile was not seen, so that it does not end.
    repo.protect(&points[0], Some("meanwhile"), at(102)).unwrap();
    assert!(repo.unprotect(&points[0], &protected, at(103)).unwrap());
    let protected = repo.protected().unwrap();
    assert_eq!(protected.of(points[0].id()).len(), 1);
    assert!(repo.unprotect(&points[0], &protected, at(104)).unwrap());
    let protected = repo.protected().unwrap();
    assert!(protected.points.is_empty());
    assert!(!repo.unprotect(&points[0], &protected, at(105)).unwrap());
    repo.forget_points(&both, &protected, at(106)).unwrap();
    assert_eq!(left(&repo), [30]);
    // Too late.
    assert_eq!(repo.protect(&points[0], None, at(107)).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_writer_protects_nothing_and_ends_nothing() {
    let (bench, repo) = Bench::new();
    let points = points(&bench, &repo, 2);
    let credential = Credential::from_key_file(&format!("coffer-key-1:{}\n", "5c".repeat(32))).unwrap();
    let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
    repo.export_writer(&credential, &SlotOptions { label: "mover".into(), created: at(2), cost }).unwrap();
    let writer = bench.open(&credential).unwrap();
    let ours = repo.protect(&points[0], None, at(3)).unwrap();
    let seen = writer.protected().unwrap();
    assert_eq!(seen.of(points[0].id()).len(), 1);
    for refused in [
        writer.protect(&points[1], None, at(4)).map(drop),
        writer.unprotect(&points[0], &seen, at(4)).map(drop),
        writer.forget_points(&[&points[1]], &seen, at(4)),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::WrongKey);
        assert!(error.context().contains("this key is a writer's"), "{error}");
    }

    // Nor by notes that it forges, in its own name or in the authority's.
    let keys = writer.keys();
    let names = [keys.signer().id().0, repo.keys().signer().id().0];
    for (n, name) in (1u8..).zip(names) {
        let protect = Note { snapshot: points[1].id(), time: None, remark: Remark::Protect { reason: None } };
        let ends = Note { snapshot: points[0].id(), time: None, remark: Remark::Unprotect { ends: vec![ours] } };
        for (record, note) in [(RecordId([n; 16]), protect), (RecordId([n + 10; 16]), ends)] {
            let (name, object) = forge(keys, &name, record, &note);
            assert_eq!(bench.memory.put(&name, &[&object]).unwrap(), Put::Created);
        }
    }
    let protected = repo.protected().unwrap();
    assert!(protected.damaged.is_empty(), "{:?}", protected.damaged);
    assert_eq!(protected.points.keys().collect::<Vec<_>>(), [&points[0].id()]);
    repo.forget_points(&[&points[1]], &protected, at(5)).unwrap();
    assert_eq!(repo.forget_points(&[&points[0]], &protected, at(5)).unwrap_err().kind(), Kind::Retained);

    // The forger's hand is right: in the authority's own hand the same bytes count.
    let unprotect = Note { snapshot: points[0].id(), time: None, remark: Remark::Unprotect { ends: vec![ours] } };
    let (name, object) = forge(repo.keys(), &repo.keys().signer().id().0, RecordId([99; 16]), &unprotect);
    assert_eq!(bench.memory.put(&name, &[&object]).unwrap(), Put::Created);
    assert!(repo.protected().unwrap().points.is_empty());
}

#[test]
fn a_damaged_note_keeps_everything_unless_it_was_ended() {
    let (bench, repo) = Bench::new();
    let points = points(&bench, &repo, 2);
    let ended = repo.protect(&points[0], None, at(50)).unwrap();
    assert!(repo.unprotect(&points[0], &repo.protected().unwrap(), at(51)).unwrap());
    damage(&bench.memory, &Note::name(ended));
    let protected = repo.protected().unwrap();
    assert!(protected.damaged.is_empty() && protected.points.is_empty());

    let lost = Note::name(repo.protect(&points[0], None, at(52)).unwrap());
    damage(&bench.memory, &lost);
    let protected = repo.protected().unwrap();
    assert_eq!(protected.damaged.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [lost.as_str()]);
    protected.allow_forgetting(&[]).unwrap();
    let refused = repo.forget_points(&[&points[1]], &protected, at(53)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt);
    assert!(refused.context().contains(&lost) && refused.context().contains("delete that object"), "{refused}");
    assert_eq!(left(&repo), [10, 20]);
    bench.memory.delete(&lost).unwrap();
    repo.forget_points(&[&points[1]], &repo.protected().unwrap(), at(54)).unwrap();
    assert_eq!(left(&repo), [10]);
}

#[test]
fn remarks_of_later_versions_and_foreign_names_protect_nothing() {
    let (bench, repo) = Bench::new();
    let points = points(&bench, &repo, 1);
    let other = Note { snapshot: points[0].id(), time: None, remark: Remark::Other };
    let name = Note::name(RecordId([1; 16]));
    assert_eq!(repo.put_record(ObjectKind::Note, &name, &other.encode().unwrap()).unwrap(), Put::Created);
    assert_eq!(bench.memory.put("notes/stray", &[b"x"]).unwrap(), Put::Created);
    let Protected { points: protected, damaged } = repo.protected().unwrap();
    assert!(protected.is_empty() && damaged.is_empty());
}

#[test]
fn a_failure_on_the_way_says_how_far_it_came() {
    let (bench, repo) = Bench::new();
    let points = points(&bench, &repo, 5);
    let all: Vec<&Snapshot> = points.iter().collect();
    for (fatal_put, says) in [
        (1, "nothing was forgotten".to_owned()),
        (4, format!("3 of 5 points were forgotten, the last of them web@1970-01-01T00-00-30Z ({})", points[2].id())),
    ] {
        let stop = Stop { at: fatal_put, counted: Counted::Mutating, fatal: Fatal::Lost };
        let store = Arc::new(Faulty::new(bench.memory.clone_state(), Plan { stop: Some(stop), ..Plan::default() }));
        let failing = Repository::open(store.clone(), &pass("secret"), Arc::new(Seeded::new(fatal_put))).unwrap();
        let error = failing.forget_points(&all, &failing.protected().unwrap(), at(60)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.context().starts_with(&says), "{error}");
        // What was said is so, and doing it again does the rest.
        let again = Arc::new(store.inner().clone_state());
        let again = Repository::open(again, &pass("secret"), Arc::new(Seeded::new(100 + fatal_put))).unwrap();
        assert_eq!(u64::try_from(left(&again).len()).unwrap(), 5 - (fatal_put - 1));
        again.forget_points(&all, &again.protected().unwrap(), at(61)).unwrap();
        assert!(left(&again).is_empty());
    }
}
