use super::*;
use crate::backend::memory::Memory;
use crate::backend::{Backend, Listed, Put};
use crate::certificate::Certificates;
use crate::crypto::{Aead, Codec};
use crate::entropy::{Seeded, fresh};
use crate::error::Kind;
use crate::id::{ChunkId, NodeId};
use crate::index_delta::{self, DeltaEntry};
use crate::keys::Keys;
use crate::location::{IndexKey, PackKind};
use crate::pack::{FinishedPack, PackBuilder, PackOptions};
use crate::sealed::{self, ObjectKind};
use crate::session::SessionTag;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;

const REPO: RepoId = RepoId([5; 16]);

/// A repository with an authority, a certified writer, and a store in memory.
struct World {
    authority: Keys,
    writer: Keys,
    certificates: Certificates,
    store: Memory,
    entropy: Seeded,
}

impl World {
    fn new() -> Self {
        let entropy = Seeded::new(11);
        let authority = Keys::generate(REPO, &entropy).unwrap();
        let (writer, certificate) =
            authority.export_writer("mover", crate::time::Timestamp::from_seconds(0).unwrap(), &entropy).unwrap();
        let mut certificates = Certificates::new(&authority);
        let (name, body) = (certificate.object_name(), certificate.encode().unwrap());
        let object =
            sealed::seal(&authority, ObjectKind::Certificate, &name, &body, Aead::Aes256Gcm, &entropy).unwrap();
        certificates.admit(&authority, &name, &object).unwrap();
        World { authority, writer, certificates, store: Memory::default(), entropy }
    }

    /// A stored pack of `keys`' holder with these contents.
    fn pack(&self, keys: &Keys, contents: &[Stored]) -> PackEntries {
        let options = PackOptions {
            kind: contents[0].pack_kind(),
            aead: Aead::Aes256Gcm,
            target_len: 0,
            session: SessionTag::default(),
        };
        let mut builder = PackBuilder::new(keys, options, Vec::new(), &self.entropy).unwrap();
        for stored in contents {
            builder.append(*stored, Codec::Raw, 4, b"raw!").unwrap();
        }
        let FinishedPack { uid, kind, name, signer, bytes, entries } = builder.finish().unwrap();
        let _ = self.store.put(&name, &[&bytes]).unwrap();
        PackEntries::new(uid, kind, bytes.len() as u64, signer, &entries)
    }

    /// Publishes a delta of `keys`' holder; its name.
    fn publish(&self, keys: &Keys, seq: u64, superseded: &[&str], packs: &[&PackEntries]) -> String {
        let delta = IndexDelta {
            superseded: superseded.iter().map(|n| (*n).to_owned()).collect(),
            packs: packs.iter().map(|p| (*p).clone()).collect(),
        };
        let name = index_delta::name(keys.signer().id(), seq);
        let body = delta.encode().unwrap();
        let object = sealed::seal(keys, ObjectKind::IndexDelta, &name, &body, Aead::Aes256Gcm, &self.entropy).unwrap();
        let _ = self.store.put(&name, &[&object]).unwrap();
        name
    }

    /// Changes a stored object, as only a damaged store does.
    fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.store.get(name).unwrap();
        damage(&mut bytes);
        self.store.delete(name).unwrap();
        assert_eq!(self.store.put(name, &[&bytes]).unwrap(), Put::Created);
    }

    fn sync(&self, index: &Index) -> SyncReport {
        index.sync(&self.store, &self.authority, &self.certificates, &mut |_, _| Ok(())).unwrap()
    }

    fn sync_packs(&self, index: &Index) -> SyncReport {
        index.sync_packs(&self.store, &self.authority, &self.certificates, &mut |_, _| Ok(())).unwrap()
    }
}

fn open(dir: &Path) -> Index {
    Index::open(dir, REPO, small()).unwrap()
}

fn small() -> IndexOptions {
    IndexOptions { memory: MemoryBudget { block_cache: 1 << 20, write_buffers: 256 << 10 }, fetchers: 3 }
}

fn chunk(n: u32) -> Stored {
    Stored::Chunk(ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes()))
}

fn node(n: u32) -> Stored {
    Stored::Node(NodeId(*blake3::hash(&n.to_le_bytes()).as_bytes()))
}

fn only(keys: &Keys) -> Trust {
    Trust::Only(BTreeSet::from([keys.signer().id()]))
}

/// Where `pack` says it holds `stored`.
fn place(pack: &PackEntries, stored: &Stored) -> Option<Location> {
    let entry = pack.entries.iter().find(|e| e.key == stored.key())?;
    let DeltaEntry { offset, stored_len, raw_len, .. } = *entry;
    Some(Location { pack: pack.uid, offset, stored_len, raw_len })
}

/// A pack that exists nowhere, with `n` chunks from `first` on.
fn imagined(uid: u8, signer: SignerId, first: u32, n: u32) -> PackEntries {
    let entries = (0..n)
        .map(|i| DeltaEntry { key: chunk(first + i).key(), offset: 200 + i * 20, stored_len: 20, raw_len: 4 })
        .collect();
    let object_len = u64::from(n) * 1000 + 1000;
    PackEntries { uid: PackUid([uid; 16]), kind: PackKind::Data, object_len, signer, entries }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            // RocksDB may remove a file between listing and copying, as it may between two writes before a power cut.
            match fs::copy(&path, &target) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{path:?}: {e}"),
                _ => {}
            }
        }
    }
}

/// As [`copy_dir`], of one moment: again when files came or went meanwhile, since a power cut leaves no mixture of two moments.
fn copy_moment(from: &Path, to: &Path) {
    loop {
        let before: Vec<_> = files(from).into_iter().collect();
        copy_dir(from, to);
        if before == files(from).into_iter().collect::<Vec<_>>() {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn what_is_recorded_is_found_and_nothing_else_also_after_reopening() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let data = world.pack(&world.authority, &[chunk(1), chunk(2)]);
    let tree = world.pack(&world.authority, &[node(1)]);
    let check = |index: &Index| {
        for (stored, pack) in [(chunk(1), &data), (chunk(2), &data), (node(1), &tree)] {
            assert_eq!(index.lookup(&stored, &Trust::Anyone).unwrap(), place(pack, &stored));
        }
        // Nodes and chunks are apart even where their ids are equal.
        assert_eq!(index.lookup(&node(2), &Trust::Anyone).unwrap(), None);
        assert_eq!(index.lookup(&chunk(3), &Trust::Anyone).unwrap(), None);
    };
    let index = open(dir.path());
    index.record(&[data.clone(), tree.clone()]).unwrap();
    check(&index);
    drop(index);
    let index = open(dir.path());
    assert!(index.discarded().is_none() && !index.is_guest());
    check(&index);
}

#[test]
fn the_first_holder_that_is_trusted_is_the_answer() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let theirs = world.pack(&world.writer, &[chunk(1)]);
    let ours = world.pack(&world.authority, &[chunk(1)]);
    let later = world.pack(&world.authority, &[chunk(1), chunk(2)]);
    for pack in [&theirs, &ours, &later] {
        index.record(std::slice::from_ref(pack)).unwrap();
    }
    let at = |trust: &Trust| index.lookup(&chunk(1), trust).unwrap();
    assert_eq!(at(&Trust::Anyone), place(&theirs, &chunk(1)));
    assert_eq!(at(&only(&world.writer)), place(&theirs, &chunk(1)));
    assert_eq!(at(&only(&world.authority)), place(&ours, &chunk(1)));
    assert_eq!(at(&Trust::Only(BTreeSet::new())), None);
    let everywhere = [&theirs, &ours, &later].map(|p| place(p, &chunk(1)).unwrap());
    assert_eq!(index.holders(&chunk(1)).unwrap(), everywhere);

    index.drop_packs(&[theirs.uid, ours.uid]).unwrap();
    assert_eq!(at(&Trust::Anyone), place(&later, &chunk(1)));
    assert_eq!(at(&only(&world.writer)), None);
    assert_eq!(index.holders(&chunk(1)).unwrap(), everywhere[2..]);
}

#[test]
fn nobody_adds_to_somebody_elses_pack() {
    let dir = tempfile::tempdir().unwrap();
    let (victim, thief) = (SignerId([1; 16]), SignerId([2; 16]));
    let index = open(dir.path());
    // The same uid under both signatures, the forged one first.
    index.record(&[imagined(7, thief, 0, 2), imagined(7, victim, 1, 1)]).unwrap();
    let trust = Trust::Only(BTreeSet::from([victim]));
    assert_eq!(index.lookup(&chunk(0), &trust).unwrap(), None);
    assert_eq!(index.lookup(&chunk(1), &trust).unwrap().unwrap().offset, 200);
    assert_eq!(index.lookup(&chunk(1), &Trust::Anyone).unwrap().unwrap().offset, 220);
}

#[test]
fn sync_learns_deltas_once_and_follows_merges() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let packs: Vec<_> = (0..3).map(|n| world.pack(&world.writer, &[chunk(n), chunk(n + 100)])).collect();
    let first = world.publish(&world.writer, 1, &[], &[&packs[0], &packs[1]]);
    let second = world.publish(&world.writer, 2, &[], &[&packs[2]]);
    let report = world.sync(&index);
    assert_eq!((report.learnt, report.left_out.len()), (2, 0));
    assert_eq!(world.sync(&index).learnt, 0);

    // The merge leaves out a pack that was collected.
    let merged = world.publish(&world.authority, 1, &[&first, &second], &[&packs[0], &packs[2]]);
    assert_eq!(world.sync(&index).learnt, 1);
    let check = |index: &Index| {
        for (n, pack) in [(0, Some(&packs[0])), (1, None), (2, Some(&packs[2]))] {
            let due = pack.and_then(|p| place(p, &chunk(n)));
            assert_eq!(index.lookup(&chunk(n), &Trust::Anyone).unwrap(), due, "chunk {n}");
        }
    };
    check(&index);
    // One that begins now does not read what is superseded, whether it is still there or not.
    for gone in [false, true] {
        if gone {
            world.store.delete(&first).unwrap();
            world.store.delete(&second).unwrap();
        }
        let fresh = tempfile::tempdir().unwrap();
        let index = open(fresh.path());
        assert_eq!(world.sync(&index).learnt, 1);
        check(&index);
    }
    assert_eq!(world.sync(&index).learnt, 0);
    assert!(!index.own.knows_delta(&first).unwrap(), "the mark of a deleted delta is forgotten");
    assert!(index.own.knows_delta(&merged).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_order_of_ingestion_does_not_matter(order in Just((0usize..6).collect::<Vec<_>>()).prop_shuffle()) {
        let signer = SignerId([1; 16]);
        let pack = |n: u8| imagined(n, signer, u32::from(n) * 10, 10);
        let delta = |superseded: &[&str], packs: &[u8]| IndexDelta {
            superseded: superseded.iter().map(|n| (*n).to_owned()).collect(),
            packs: packs.iter().map(|n| pack(*n)).collect(),
        };
        let deltas = [
            ("index/a", delta(&[], &[0, 1])),
            ("index/b", delta(&[], &[1, 2])),
            ("index/c", delta(&[], &[3])),
            ("index/ab", delta(&["index/a", "index/b"], &[0, 2])),
            ("index/d", delta(&[], &[4, 0])),
            ("index/abc", delta(&["index/a", "index/b", "index/ab", "index/c"], &[2, 3])),
        ];
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path());
        for n in order {
            let (name, delta) = &deltas[n];
            index.own.ingest(name, delta).unwrap();
        }
        // Pack 0 lives by d, 2 and 3 by abc, 4 by d; nobody names 1 any more.
        for (n, lives) in [(0u8, true), (1, false), (2, true), (3, true), (4, true)] {
            let found = index.lookup(&chunk(u32::from(n) * 10), &Trust::Anyone).unwrap();
            prop_assert_eq!(found.map(|l| l.pack), lives.then_some(PackUid([n; 16])));
        }
    }
}

#[test]
fn what_is_damaged_or_forged_is_left_out_and_said() {
    let world = World::new();
    let stranger = Keys::generate(REPO, &Seeded::new(99)).unwrap();
    let ours = world.pack(&world.authority, &[chunk(1)]);
    let theirs = world.pack(&world.writer, &[chunk(2)]);
    let good = world.publish(&world.writer, 1, &[], &[&theirs]);
    let speaks_for_another = world.publish(&world.writer, 2, &[], &[&ours]);
    let merged = world.publish(&world.authority, 1, &[], &[&ours]);
    let supersedes_another = world.publish(&world.writer, 3, &[&merged], &[]);
    let unknown = world.publish(&stranger, 1, &[], &[]);
    let flipped = world.publish(&world.writer, 4, &[], &[&theirs]);
    world.damage(&flipped, |bytes| bytes[60] ^= 1);
    let renamed = index_delta::name(world.writer.signer().id(), 5);
    let bytes = world.store.get(&good).unwrap();
    let _ = world.store.put(&renamed, &[&bytes]).unwrap();
    let _ = world.store.put("index/notes", &[b"what is this"]).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let report = world.sync(&index);
    assert_eq!(report.learnt, 2);
    let mut left_out: Vec<_> = report.left_out.into_iter().map(|(name, _)| name).collect();
    left_out.sort();
    let mut due = vec![speaks_for_another, supersedes_another, unknown, flipped, renamed, String::from("index/notes")];
    due.sort();
    assert_eq!(left_out, due);
    assert_eq!(index.lookup(&chunk(1), &Trust::Anyone).unwrap(), place(&ours, &chunk(1)));
    assert_eq!(index.lookup(&chunk(2), &Trust::Anyone).unwrap(), place(&theirs, &chunk(2)));
}

#[test]
fn tables_of_contents_tell_what_lost_deltas_told() {
    let world = World::new();
    let contents = [vec![chunk(1), chunk(2)], vec![chunk(3)], vec![node(1), node(2)]];
    let packs: Vec<_> = contents.iter().map(|c| world.pack(&world.writer, c)).collect();
    world.publish(&world.writer, 1, &[], &packs.iter().collect::<Vec<_>>());
    let (by_delta, by_packs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (by_delta, by_packs) = (open(by_delta.path()), open(by_packs.path()));
    assert_eq!(world.sync(&by_delta).learnt, 1);
    assert_eq!(world.sync_packs(&by_delta).learnt, 0, "known packs are not read");
    // A damaged pack does not keep the others from being learnt.
    let damaged = world.pack(&world.writer, &[chunk(9)]);
    let damaged = crate::pack::name(damaged.kind, damaged.uid);
    world.damage(&damaged, |bytes| bytes.truncate(bytes.len() - 1));
    let report = world.sync_packs(&by_packs);
    assert_eq!(report.learnt, 3);
    assert_eq!(
        report.left_out.iter().map(|(n, e)| (n.as_str(), e.kind())).collect::<Vec<_>>(),
        [(damaged.as_str(), Kind::Corrupt)]
    );
    for stored in contents.iter().flatten() {
        let found = by_packs.holders(stored).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found, by_delta.holders(stored).unwrap());
    }
}

/// A store in which a merge happens right after its first listing.
struct Merging<'a> {
    world: &'a World,
    superseded: &'a str,
    merged: &'a PackEntries,
    listings: std::sync::atomic::AtomicUsize,
}

impl std::fmt::Debug for Merging<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Merging")
    }
}

impl Backend for Merging<'_> {
    fn location(&self) -> String {
        self.world.store.location()
    }
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.world.store.put(name, parts)
    }
    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.world.store.get(name)
    }
    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.world.store.get_range(name, offset, out)
    }
    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.world.store.get_suffix(name, max)
    }
    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.world.store.size(name)
    }
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.world.store.list(prefix, each)?;
        if self.listings.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            self.world.publish(&self.world.authority, 1, &[self.superseded], &[self.merged]);
            self.world.store.delete(self.superseded)?;
        }
        Ok(())
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.world.store.delete(name)
    }
}

#[test]
fn a_delta_that_vanishes_between_listing_and_reading_is_looked_for_again() {
    let world = World::new();
    let pack = world.pack(&world.writer, &[chunk(1)]);
    let superseded = world.publish(&world.writer, 1, &[], &[&pack]);
    let listings = std::sync::atomic::AtomicUsize::new(0);
    let store = Merging { world: &world, superseded: &superseded, merged: &pack, listings };
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let report = index.sync(&store, &world.authority, &world.certificates, &mut |_, _| Ok(())).unwrap();
    assert_eq!((report.learnt, report.left_out.len()), (1, 0));
    assert_eq!(store.listings.load(std::sync::atomic::Ordering::Relaxed), 2);
    assert_eq!(index.lookup(&chunk(1), &Trust::Anyone).unwrap(), place(&pack, &chunk(1)));
}

#[test]
fn an_interrupted_sync_goes_on_where_it_was() {
    let world = World::new();
    for n in 0..6u32 {
        let pack = world.pack(&world.writer, &[chunk(n)]);
        world.publish(&world.writer, u64::from(n), &[], &[&pack]);
    }
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let stopped = index.sync(&world.store, &world.authority, &world.certificates, &mut |done, total| {
        assert_eq!(total, 6);
        if done == 2 { Err(Error::new(Kind::Cancelled, "enough")) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err().kind(), Kind::Cancelled);
    drop(index);
    let index = open(dir.path());
    assert_eq!(world.sync(&index).learnt, 4);
    assert!((0..6).all(|n| index.lookup(&chunk(n), &Trust::Anyone).unwrap().is_some()));
}

#[test]
fn a_power_cut_never_leaves_a_delta_marked_without_its_entries() {
    let signer = SignerId([1; 16]);
    let dir = tempfile::tempdir().unwrap();
    // Buffers so small that RocksDB flushes in the middle of things.
    let index = open(dir.path());
    let per_delta = 3000;
    let (mut whole, mut partly) = (0, 0);
    for round in 0..12u8 {
        let delta = IndexDelta {
            superseded: Vec::new(),
            packs: vec![imagined(round, signer, u32::from(round) * per_delta, per_delta)],
        };
        index.own.ingest(&format!("index/{round}"), &delta).unwrap();
        let image = tempfile::tempdir().unwrap();
        copy_moment(&dir.path().join("db"), &image.path().join("db"));
        let after = open(image.path());
        assert!(after.discarded().is_none(), "{:?}", after.discarded());
        for earlier in 0..=round {
            if !after.own.knows_delta(&format!("index/{earlier}")).unwrap() {
                partly += 1;
                continue;
            }
            whole += 1;
            for n in 0..per_delta {
                let found = after.lookup(&chunk(u32::from(earlier) * per_delta + n), &Trust::Anyone).unwrap();
                assert_eq!(found.map(|l| l.pack), Some(PackUid([earlier; 16])), "delta {earlier}, chunk {n}");
            }
        }
        // Numbers given after the cut do not point into what was known before.
        after.record(&[imagined(200, signer, 1_000_000, 1)]).unwrap();
        assert_eq!(after.lookup(&chunk(1_000_000), &Trust::Anyone).unwrap().unwrap().pack, PackUid([200; 16]));
    }
    assert!(whole > 0 && partly > 0, "both cases must come up: {whole} whole, {partly} lost");
}

#[test]
fn a_guest_sees_what_the_owner_flushed_and_its_own() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path());
    let packs: Vec<_> = (0..4).map(|n| world.pack(&world.authority, &[chunk(n), chunk(50)])).collect();
    world.publish(&world.authority, 0, &[], &[&packs[0]]);
    world.sync(&owner);

    let guest = open(dir.path());
    let other = open(dir.path());
    assert!(guest.is_guest() && other.is_guest() && !owner.is_guest());
    let at = |index: &Index, n| index.lookup(&chunk(n), &Trust::Anyone).unwrap();
    assert_eq!(at(&guest, 0), place(&packs[0], &chunk(0)));
    guest.record(&[packs[1].clone()]).unwrap();
    assert_eq!(at(&guest, 1), place(&packs[1], &chunk(1)));
    assert_eq!((at(&owner, 1), at(&other, 1)), (None, None));

    // What the owner learns, the guest sees after its next sync without fetching it itself.
    world.publish(&world.authority, 1, &[], &[&packs[2]]);
    world.sync(&owner);
    assert_eq!(at(&guest, 2), None);
    let report = world.sync(&guest);
    assert_eq!((report.learnt, report.stale_view.is_none()), (0, true));
    assert_eq!(at(&guest, 2), place(&packs[2], &chunk(2)));
    // What the owner has not learnt yet, the guest learns itself.
    world.publish(&world.authority, 2, &[], &[&packs[3]]);
    assert_eq!(world.sync(&guest).learnt, 1);
    assert_eq!((at(&guest, 3), at(&owner, 3)), (place(&packs[3], &chunk(3)), None));
    let due: Vec<_> = [0, 2, 1, 3].iter().map(|n: &usize| place(&packs[*n], &chunk(50)).unwrap()).collect();
    assert_eq!(guest.holders(&chunk(50)).unwrap(), due);

    // A guest lets go of packs for itself, whoever told it about them.
    guest.drop_packs(&[packs[0].uid, packs[3].uid]).unwrap();
    assert_eq!((at(&guest, 0), at(&guest, 3)), (None, None));
    assert_eq!(at(&owner, 0), place(&packs[0], &chunk(0)));

    assert_eq!(files(dir.path()).iter().filter(|p| p.to_string_lossy().contains("private-")).count(), 2);
    drop((guest, other));
    assert_eq!(files(dir.path()).iter().filter(|p| p.to_string_lossy().contains("private-")).count(), 0);
}

#[test]
fn a_guest_outlives_its_owner_and_the_database() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path());
    let packs: Vec<_> = (0..2).map(|n| world.pack(&world.authority, &[chunk(n)])).collect();
    world.publish(&world.authority, 0, &[], &[&packs[0]]);
    world.sync(&owner);
    let guest = open(dir.path());
    assert_eq!(Index::discard(dir.path()).unwrap_err().kind(), Kind::Locked);
    drop(owner);
    Index::discard(dir.path()).unwrap();
    let owner = open(dir.path());
    assert!(!owner.is_guest());
    assert_eq!(owner.lookup(&chunk(0), &Trust::Anyone).unwrap(), None);

    assert_eq!(guest.lookup(&chunk(0), &Trust::Anyone).unwrap(), place(&packs[0], &chunk(0)));
    world.publish(&world.authority, 1, &[], &[&packs[1]]);
    let report = world.sync(&guest);
    assert!(report.stale_view.is_some(), "the view is that of a database that is gone");
    assert_eq!((report.learnt, report.left_out.len()), (1, 0), "what the view has is not learnt again");
    for (n, pack) in (0..).zip(&packs) {
        assert_eq!(guest.lookup(&chunk(n), &Trust::Anyone).unwrap(), place(pack, &chunk(n)));
    }
    assert_eq!(world.sync(&owner).learnt, 2);
}

#[test]
fn what_dead_processes_left_is_removed_and_what_is_in_use_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path());
    let guest = open(dir.path());
    fs::create_dir_all(dir.path().join("private-7/own")).unwrap();
    fs::write(dir.path().join("private-7/lock"), b"").unwrap();
    fs::create_dir_all(dir.path().join("discarded-0/x")).unwrap();
    drop(owner);
    let owner = open(dir.path());
    let names: Vec<_> = files(dir.path()).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["db", "lock", "private-0"]);
    drop((owner, guest));
}

#[test]
fn the_index_of_another_repository_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    index.record(&[imagined(1, SignerId([1; 16]), 0, 10)]).unwrap();
    // A guest of another repository sees nothing of it.
    let stranger = Index::open(dir.path(), RepoId([6; 16]), small()).unwrap();
    assert_eq!(stranger.lookup(&chunk(0), &Trust::Anyone).unwrap(), None);
    drop((index, stranger));
    let other = Index::open(dir.path(), RepoId([6; 16]), small()).unwrap();
    assert!(other.discarded().unwrap().context().contains("another repository"));
    assert_eq!(other.lookup(&chunk(0), &Trust::Anyone).unwrap(), None);
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn any_damage_to_the_database_ends_in_an_index_that_answers_rightly() {
    let world = World::new();
    let original = tempfile::tempdir().unwrap();
    let packs: Vec<_> = (0..40)
        .map(|n| world.pack(&world.authority, &(n * 100..n * 100 + 100).map(chunk).collect::<Vec<_>>()))
        .collect();
    for (seq, packs) in (0..).zip(packs.chunks(10)) {
        world.publish(&world.authority, seq, &[], &packs.iter().collect::<Vec<_>>());
    }
    let index = open(original.path());
    world.sync(&index);
    drop(index);
    let entropy = Seeded::new(77);
    let damages: [(&str, Damage<'_>); 3] = [
        ("removed", &|bytes| bytes.clear()),
        ("cut", &|bytes| bytes.truncate(bytes.len() / 2)),
        ("flipped", &|bytes| {
            for _ in 0..4 {
                let at = usize::try_from(u64::from_le_bytes(fresh(&entropy).unwrap())).unwrap() % bytes.len();
                bytes[at] ^= 0x10;
            }
        }),
    ];
    let (mut replaced, mut found_late) = (0, 0);
    for file in files(&original.path().join("db")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("LOG") || name == "LOCK" || fs::metadata(&file).unwrap().len() == 0 {
            continue;
        }
        for (what, damage) in &damages {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(&original.path().join("db"), &dir.path().join("db"));
            let path = dir.path().join("db").join(&name);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, &bytes).unwrap();
            if *what == "removed" {
                fs::remove_file(&path).unwrap();
            }
            // Damage that shows when looking up ends this run and makes the next one begin anew: twice is enough.
            let mut answered = false;
            for _ in 0..2 {
                let index = open(dir.path());
                replaced += u32::from(index.discarded().is_some());
                let run = || -> Result<()> {
                    index.sync(&world.store, &world.authority, &world.certificates, &mut |_, _| Ok(()))?;
                    for (n, pack) in (0..).zip(&packs) {
                        for n in n * 100..n * 100 + 100 {
                            let found = index.lookup(&chunk(n), &Trust::Anyone)?;
                            assert_eq!(found, place(pack, &chunk(n)), "{name} {what}, chunk {n}");
                        }
                    }
                    Ok(())
                };
                match run() {
                    Ok(()) => {
                        answered = true;
                        break;
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), Kind::Corrupt, "{name} {what}: {e:?}");
                        found_late += 1;
                    }
                }
            }
            assert!(answered, "{name} {what}");
        }
    }
    assert!(replaced > 0 && found_late > 0, "both must come up: {replaced} replaced, {found_late} found late");
}

#[test]
fn entries_of_any_length_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let values = [0, 1, 127, 128, 16383, 16384, 1 << 21, 1 << 28, u32::MAX];
    let entries: Vec<_> = (0u8..)
        .zip(values)
        .map(|(n, v)| DeltaEntry { key: IndexKey([n; 16]), offset: v, stored_len: v, raw_len: v })
        .collect();
    let pack =
        PackEntries { uid: PackUid([1; 16]), kind: PackKind::Data, object_len: 0, signer: SignerId([1; 16]), entries };
    index.record(&[pack]).unwrap();
    for (n, v) in (0u8..).zip(values) {
        let found = index.lookup(&Stored::Chunk(ChunkId([n; 32])), &Trust::Anyone).unwrap().unwrap();
        assert_eq!((found.offset, found.stored_len, found.raw_len), (v, v, v));
    }
}
