//! Makes the frozen repositories: every kind of object and every shape of content that format version 1 has, in little
//! space.
//!
//! Not here: what they are compared with (`tests/golden.rs`). What holds: seeded entropy, given times, one worker; the
//! manifest is told by the contents, never by what was read back.

use coffer_repo::backend::Put;
use coffer_repo::backend::local::Local;
use coffer_repo::cancel::Cancel;
use coffer_repo::cbor::{Map, Value as Cbor};
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::{Aead, Secret};
use coffer_repo::entropy::{Entropy, Seeded, fresh};
use coffer_repo::id::{PackUid, SnapshotId};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::index_delta::{self, IndexDelta};
use coffer_repo::key_slot::{Credential, key_file};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{Claim, ClaimKind, ClaimName, ClaimStats, Condemned, Decision, Identity, Snapshot};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_tests::dice::Dice;
use coffer_tests::disk::{DiskContent, DiskSource};
use coffer_tests::golden::{describe, describe_run};
use coffer_tests::rig::{at, learn, slot};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// 2026-11-21T02-00-00Z.
const NIGHT: u64 = 1_795_226_400;
const DAY: u64 = 86_400;

/// A repository in the making.
struct Workshop {
    dir: std::path::PathBuf,
    indexes: tempfile::TempDir,
    store: Arc<Local>,
    entropy: Arc<dyn Entropy>,
    shown: Vec<Value>,
}

/// One backup.
struct Backup<'a> {
    repo: &'a Arc<Repository>,
    index: &'a Arc<Index>,
    workload: &'a str,
    night: u64,
    parent: Option<&'a Snapshot>,
    disks: Vec<(&'a str, &'a DiskContent, BTreeSet<u64>)>,
}

impl Workshop {
    fn new(dir: &Path, seed: u64, disk: DiskParams, aead: Aead) -> (Self, Arc<Repository>) {
        fs::create_dir_all(dir).unwrap();
        let store = Arc::new(Local::create(&dir.join("store")).unwrap());
        let entropy: Arc<dyn Entropy> = Arc::new(Seeded::new(seed));
        let passphrase = format!("golden {seed}");
        fs::write(dir.join("password"), format!("{passphrase}\n")).unwrap();
        let options = InitOptions {
            credential: Credential::Passphrase(passphrase.into()),
            slot: slot("passphrase of the golden repository", NIGHT - DAY),
            disk,
            stream: StreamParams::default(),
            aead,
            parity: false,
        };
        let repo = Arc::new(Repository::init(store.clone(), options, entropy.clone()).unwrap());
        let indexes = tempfile::tempdir().unwrap();
        (Workshop { dir: dir.to_owned(), indexes, store, entropy, shown: Vec::new() }, repo)
    }

    /// Exports a writer's bundle and opens the repository with it.
    fn writer(&self, repo: &Repository, file: &str, label: &str) -> Arc<Repository> {
        let passphrase = format!("golden {label}");
        fs::write(self.dir.join(file), format!("{passphrase}\n")).unwrap();
        let credential = Credential::Passphrase(passphrase.into());
        repo.export_writer(&credential, &slot(label, NIGHT - DAY)).unwrap();
        Arc::new(Repository::open(self.store.clone(), &credential, self.entropy.clone()).unwrap())
    }

    fn index(&self, repo: &Repository, name: &str) -> Arc<Index> {
        let dir = self.indexes.path().join(name);
        let index = Index::open(&dir, repo.keys().repo(), IndexOptions::default()).unwrap();
        learn(repo, &index).unwrap();
        Arc::new(index)
    }

    fn back_up(&self, backup: Backup<'_>) -> Snapshot {
        let Backup { repo, index, workload, night, parent, disks } = backup;
        let options = WriterOptions { workers: 1, uploads: 1, compression_level: 3, ..WriterOptions::default() };
        let time = at(NIGHT + night * DAY);
        let mut writer = Writer::begin(repo, index, workload, parent.cloned(), identity(), options, time).unwrap();
        for (name, content, unchanged) in disks {
            let platform = parent.map(|_| Map::new().with("bus", "virtio").with("boot", 1u64));
            let spec = DiskSpec { name: name.to_owned(), block_size: 512, platform };
            let source = DiskSource::incremental(content, repo.geometry().window, unchanged);
            writer.disk(spec, &source, &Cancel::default()).unwrap();
            if parent.is_some() {
                writer.set_token(name, format!("checkpoint-{night}"));
            }
        }
        writer.commit(vec!["nightly".into(), "größer".into()]).unwrap()
    }

    /// Writes down what a snapshot holds.
    fn show(&mut self, snapshot: &Snapshot, contents: &[&DiskContent], window: u64) {
        let mut shown = describe(snapshot);
        for (i, content) in contents.iter().enumerate() {
            let runs = content.runs(window);
            let blocks: u64 = runs.iter().filter(|r| r.hash.is_none()).map(|r| r.len.div_ceil(4096)).sum();
            let disk = &mut shown["disks"][i];
            assert_eq!(disk["unreadable"].as_u64().unwrap_or_default(), blocks * 4096, "{disk}");
            disk["runs"] = runs.iter().map(describe_run).collect();
        }
        self.shown.push(shown);
    }

    fn finish(self) {
        let mut text = serde_json::to_string_pretty(&self.shown).unwrap();
        text.push('\n');
        fs::write(self.dir.join("manifest.json"), text).unwrap();
    }
}

/// The large one: all credentials, all kinds of record, a map of four levels.
pub(super) fn aes(dir: &Path) {
    let (mut shop, repo) = Workshop::new(dir, 1, DiskParams::default(), Aead::Aes256Gcm);
    let window = repo.geometry().window;
    let key = Secret::random(&*shop.entropy).unwrap();
    fs::write(dir.join("key"), key_file(&key).unwrap()).unwrap();
    let credential = Credential::from_key_file(&key_file(&key).unwrap()).unwrap();
    repo.add_key(&credential, &slot("key file", NIGHT - DAY)).unwrap();
    let (one, two) =
        (shop.writer(&repo, "writer-password", "mover 1"), shop.writer(&repo, "writer-password-2", "mover 2"));
    let index = shop.index(&repo, "authority");

    let mut dice = Dice::new(11);
    let root = mixed(&mut dice, 900_123);
    let (empty, zero) = (DiskContent::default(), DiskContent { size: 64 << 20, ..DiskContent::default() });
    let big = sparse(&mut dice);
    let none = BTreeSet::new;
    let first = shop.back_up(Backup {
        repo: &repo,
        index: &index,
        workload: "web",
        night: 0,
        parent: None,
        disks: vec![("root", &root, none()), ("empty", &empty, none()), ("zero", &zero, none()), ("big", &big, none())],
    });
    shop.show(&first, &[&root, &empty, &zero, &big], window);

    let mut changed = root.clone();
    dice.noise(&mut changed.stretches.get_mut(&0).unwrap()[400_000..405_000]);
    let mut grown = big.clone();
    grown.stretches.insert(7 << 30, vec![7; 4096]);
    let but_the_grown = (0..grown.size.div_ceil(window)).filter(|w| *w != (7 << 30) / window).collect();
    let second = shop.back_up(Backup {
        repo: &repo,
        index: &index,
        workload: "web",
        night: 1,
        parent: Some(&first),
        disks: vec![("root", &changed, none()), ("big", &grown, but_the_grown)],
    });
    shop.show(&second, &[&changed, &grown], window);

    for (writer, workload, seed) in [(&one, "db", 21), (&two, "mail ä", 22)] {
        let night = seed - 19;
        let index = shop.index(writer, workload);
        let mut content = mixed(&mut Dice::new(seed), 300_000);
        content.unreadable = vec![8192..20_480, 298_000 / 4096 * 4096..300_000];
        let snapshot = shop.back_up(Backup {
            repo: writer,
            index: &index,
            workload,
            night,
            parent: None,
            disks: vec![("data", &content, none())],
        });
        shop.show(&snapshot, &[&content], window);
    }

    let forgotten = shop.back_up(Backup {
        repo: &repo,
        index: &index,
        workload: "web",
        night: 4,
        parent: Some(&second),
        disks: vec![("root", &root, none())],
    });
    repo.forget(forgotten.name, at(NIGHT + 5 * DAY)).unwrap();
    let pin = repo.pin(&first, "mount", &identity(), at(NIGHT + 5 * DAY)).unwrap();
    // The pin of a mount whose host lost its power.
    std::mem::forget(pin);
    repo.pin(&second, "restore", &identity(), at(NIGHT + 5 * DAY)).unwrap().release(at(NIGHT + 6 * DAY)).unwrap();
    leftovers(&repo, &*shop.entropy);
    shop.finish();
}

/// The small one: the other cipher, other sizes of chunks and windows, one of everything.
pub(super) fn chacha(dir: &Path) {
    let disk = DiskParams { min: 8 << 10, mean: 16 << 10, max: 64 << 10, window: 1 << 20, ..DiskParams::default() };
    let (mut shop, repo) = Workshop::new(dir, 2, disk, Aead::ChaCha20Poly1305);
    let index = shop.index(&repo, "authority");
    let content = mixed(&mut Dice::new(31), 200_000);
    let snapshot = shop.back_up(Backup {
        repo: &repo,
        index: &index,
        workload: "small",
        night: 0,
        parent: None,
        disks: vec![("d", &content, BTreeSet::new())],
    });
    shop.show(&snapshot, &[&content], repo.geometry().window);
    shop.finish();
}

/// What crashes, collectors and later versions leave in a store.
fn leftovers(repo: &Repository, entropy: &dyn Entropy) {
    let put = |kind, name: &str, body: &[u8]| assert_eq!(repo.put_record(kind, name, body).unwrap(), Put::Created);
    let random = || fresh::<16>(entropy).unwrap();
    for decision in [None, Some(Decision::Revoke)] {
        let claim = Claim {
            kind: ClaimKind::Snapshot { disks: Vec::new(), stats: ClaimStats::default() },
            time: at(NIGHT + 7 * DAY),
            workload: "web".into(),
            tags: Vec::new(),
            identity: identity(),
            parents: Vec::new(),
            copied: None,
            extra: Map::new().with("later", "a key of a later version"),
        };
        let tag = repo.keys().id_key().workload_tag("web");
        let name = ClaimName { tag, time: claim.time, id: SnapshotId(random()) };
        put(ObjectKind::Claim, &name.claim(), &claim.encode().unwrap());
        if let Some(decision) = decision {
            assert_eq!(repo.decide(name, decision).unwrap(), Some(decision));
        }
    }
    let hex = |bytes: [u8; 16]| PackUid(bytes).to_string();
    let session = Map::new().with("host", "golden-host").with("program", "coffer").with("workload", "web");
    put(ObjectKind::Session, &format!("sessions/{}-00000003", hex(random())), &session.encode().unwrap());
    let (gone, other) = (random(), random());
    let condemned = Condemned { packs: vec![PackUid(gone), PackUid(other)], damaged: false };
    for _ in 0..2 {
        put(ObjectKind::Condemned, &format!("condemned/{}", hex(random())), &condemned.encode().unwrap());
    }
    let chunk: Vec<Cbor> = vec![Cbor::from(&random()), Cbor::from(&other), Cbor::from(292u64), Cbor::from(4112u64)];
    let moved = Map::new().with("chunks", vec![Cbor::from(chunk)]);
    put(ObjectKind::Moved, &format!("moved/{}/{}", hex(gone), hex(random())), &moved.encode().unwrap());
    let note = Map::new().with("snapshot", &random()).with("tags", vec![Cbor::from("keep")]);
    put(ObjectKind::Note, &format!("notes/{}", hex(random())), &note.encode().unwrap());
    // A merged delta takes nothing over here: it only says that one is superseded which is gone already.
    let old = index_delta::name(repo.keys().authority().signer_id(), 0x1000);
    let merged = IndexDelta { superseded: vec![old], packs: Vec::new() };
    let name = index_delta::name(repo.keys().authority().signer_id(), 0x1001);
    put(ObjectKind::IndexDelta, &name, &merged.encode().unwrap());
    assert_eq!(repo.backend().put("features/compat-golden", &[]).unwrap(), Put::Created);
}

fn identity() -> Identity {
    Identity { host: "golden-host".into(), user: "golden-user".into(), program: "coffer 0.1.0".into() }
}

/// Noise, text that compresses, zeroes and a last block that is not whole.
fn mixed(dice: &mut Dice, len: usize) -> DiskContent {
    let mut bytes = vec![0; len];
    for (i, piece) in bytes.chunks_mut(40 << 10).enumerate() {
        match i % 4 {
            0 if i < 8 => dice.noise(piece),
            1 => piece.iter_mut().enumerate().for_each(|(j, b)| *b = b"Coffer keeps it. "[(i * 7 + j / 3) % 17]),
            2 => piece.fill(u8::try_from(i).unwrap()),
            _ => {}
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last = 0xee;
    }
    DiskContent::from(bytes)
}

/// 1.5 TiB and a bit, so that the root has level 3: a few blocks in far corners, and some that cannot be read.
fn sparse(dice: &mut Dice) -> DiskContent {
    let mut block = vec![0; 12_288];
    dice.noise(&mut block);
    let size = (1 << 40) + (1 << 39) + 1000;
    let gib = 1u64 << 30;
    let tail = size - 1000;
    let stretches = [
        (0, block.clone()),
        (5 * gib, vec![b'x'; 20_000]),
        (1024 * gib + (16 << 20) - 8192, block),
        (tail, vec![0xcc; 1000]),
    ];
    let unreadable = vec![6 * gib..6 * gib + (16 << 20), 1100 * gib + 4096..1100 * gib + 8192];
    DiskContent { size, stretches: stretches.into(), unreadable }
}
