//! Backups, collections, forgets and the learning of indexes are killed at random moments, alone and beside each other; nothing
//! that was committed suffers, and what the killed left is collected.

use coffer_repo::backend::list_sorted;
use coffer_repo::location::PackKind;
use coffer_tests::coffer::Coffer;
use coffer_tests::counting::Counting;
use coffer_tests::dice::Dice;
use coffer_tests::disk::read_bytes;
use coffer_tests::program::{Ended, Running, run};
use coffer_tests::rig::reader;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SEED: u64 = 20_281;
/// Processes that are killed.
const KILLS: u32 = 100;
/// After so many kills all points are restored.
const PERIOD: u32 = 20;
const WINDOW: u64 = 16 << 20;
const PIECE: usize = 512 << 10;
/// Opens at once, unlike a passphrase.
const KEY: [&str; 2] = ["--key-file", "key"];

/// Which kinds of noise a disk's pieces are. There are few, so that much is stored already, and much is needed in part.
type Disk = [u8; 5];

/// Makes the disk's image: a piece in each window, so that its map has nodes.
fn make(path: &Path, disk: Disk) {
    let file = File::create(path).unwrap();
    file.set_len(disk.len() as u64 * WINDOW).unwrap();
    for (at, kind) in (0..).map(|window: u64| window * WINDOW).zip(disk) {
        let mut piece = vec![0; PIECE];
        Dice::new(kind.into()).noise(&mut piece);
        file.write_all_at(&piece, at).unwrap();
    }
}

/// What is done to the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    /// Of the disk in `TAG.raw`.
    Backup {
        tag: String,
        /// Without an index: everything is learnt first.
        learns: bool,
    },
    Collect,
    Forget {
        tag: String,
        point: String,
    },
}

impl Deed {
    fn sort(&self) -> &'static str {
        match self {
            Deed::Backup { learns: false, .. } => "backup",
            Deed::Backup { learns: true, .. } => "backup without an index",
            Deed::Collect => "gc",
            Deed::Forget { .. } => "forget",
        }
    }
}

struct Story {
    coffer: Coffer,
    dice: Dice,
    /// The disk that was backed up last, and how many were.
    disk: (Disk, u32),
    /// Tags of the points there have to be.
    points: BTreeSet<String>,
    /// How long each sort of deeds takes: the longest that was seen.
    times: BTreeMap<&'static str, Duration>,
    kills: BTreeMap<&'static str, u32>,
}

impl Story {
    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.coffer.command_with(KEY, arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[&["--json"], arguments].concat())).unwrap()
    }

    /// The points there are: names by tags.
    fn list(&self) -> BTreeMap<String, String> {
        let told = self.json(&["snapshots"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let point = |point: &Value| (text(&point["tags"][0]), text(&point["id"]));
        told["snapshots"].as_array().unwrap().iter().map(point).collect()
    }

    fn draw(&mut self) -> Deed {
        match self.dice.below(6) {
            0 | 1 => Deed::Collect,
            2 | 3 if self.points.len() > 2 => {
                let at = self.dice.index(self.points.len());
                let (tag, point) = self.list().into_iter().nth(at).unwrap();
                Deed::Forget { tag, point }
            }
            _ => {
                let (disk, number) = &mut self.disk;
                for _ in 0..2 {
                    disk[self.dice.index(5)] = u8::try_from(self.dice.below(12)).unwrap();
                }
                *number += 1;
                let tag = format!("run-{number}");
                make(&self.coffer.path(&format!("{tag}.raw")), *disk);
                Deed::Backup { tag, learns: self.dice.once_in(3) }
            }
        }
    }

    fn start(&self, deed: &Deed) -> Running {
        let start = |arguments: &[&str]| Running::start(&mut self.coffer.command_with(KEY, arguments));
        match deed {
            Deed::Backup { tag, .. } => start(&["backup", "-w", "web", "--tag", tag, &format!("vda={tag}.raw")]),
            Deed::Collect => start(&["gc", "--repack-below", "90", "--dead-after", "0"]),
            Deed::Forget { point, .. } => start(&["forget", point]),
        }
    }

    /// Does one thing, or two at the same time, and kills at a random moment what is not done.
    fn round(&mut self) {
        let mut deeds = vec![self.draw()];
        if self.dice.once_in(3) {
            deeds.push(self.draw());
        }
        if self.dice.once_in(2) {
            self.forget_sessions();
        }
        if deeds.iter().any(|deed| matches!(deed, Deed::Backup { learns: true, .. })) {
            let _ = std::fs::remove_dir_all(self.coffer.path("cache"));
        }
        let began = Instant::now();
        let running: Vec<Running> = deeds.iter().map(|deed| self.start(deed)).collect();
        let longest = deeds.iter().map(|deed| self.times.get(deed.sort()).copied()).max().flatten();
        let is_killed = longest.is_some() && !self.dice.once_in(10);
        if is_killed {
            let share = u32::try_from(self.dice.below(1000)).unwrap();
            std::thread::sleep(longest.unwrap_or_default() * share / 1000);
        }
        let mut ended = Vec::new();
        for (deed, running) in deeds.iter().zip(running) {
            let end = if is_killed { running.kill_unless_ended() } else { Some(running.wait()) };
            match &end {
                Some(_) => {
                    let longest = self.times.entry(deed.sort()).or_default();
                    *longest = began.elapsed().max(*longest);
                }
                None => *self.kills.entry(deed.sort()).or_default() += 1,
            }
            ended.push(end);
        }
        self.look(&deeds, &ended);
    }

    /// Sees that everything that ended did what it should, and that nothing else shows.
    fn look(&mut self, deeds: &[Deed], ended: &[Option<Ended>]) {
        let points = self.list();
        for (deed, ended) in deeds.iter().zip(ended) {
            let has_failed = ended.as_ref().is_some_and(|ended| !ended.status.success());
            let told = ended.as_ref().map_or("killed".to_owned(), ToString::to_string);
            match deed {
                Deed::Backup { tag, .. } => {
                    // What it relied on may have been taken from it, and so may its claim.
                    assert!(!has_failed || deeds.len() > 1, "{told}");
                    assert!(ended.is_none() || points.contains_key(tag) != has_failed, "{told}");
                    self.points.extend(points.get_key_value(tag).map(|(tag, _)| tag.clone()));
                }
                Deed::Collect => assert!(!has_failed, "{told}"),
                Deed::Forget { tag, .. } => {
                    assert!(ended.is_none() || !points.contains_key(tag), "{told}");
                    if !points.contains_key(tag) {
                        self.points.remove(tag);
                    }
                }
            }
        }
        assert!(points.keys().eq(&self.points), "{points:?}, due are {:?}", self.points);
    }

    /// As an administrator does who knows that whoever wrote is dead, and does not wait until it shows.
    fn forget_sessions(&self) {
        let _ = std::fs::remove_dir_all(self.coffer.path("repo/sessions"));
    }

    /// All points come back as they were.
    fn restore_all(&self) {
        for (tag, point) in self.list() {
            self.run(&["restore", &point, "--to", "restored.raw"]);
            self.coffer.assert_same(&format!("{tag}.raw"), "restored.raw");
            std::fs::remove_file(self.coffer.path("restored.raw")).unwrap();
        }
    }

    /// What the killed left goes, and what points need is sound.
    fn settle(&self) {
        self.forget_sessions();
        // The first one copies out of all but packs that are needed as a whole, so that of what lay twice one copy is left.
        for repack_below in ["99", "50", "50"] {
            let done = self.json(&["gc", "--dead-after", "0", "--repack-below", repack_below]);
            assert_eq!(done["damaged"], Value::Array(Vec::new()), "{done}");
        }
        self.restore_all();
        let verified = self.json(&["verify", "--data", "all"]);
        assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
        let mut store = None;
        let repo = self.coffer.open(|local| {
            let counting = Arc::new(Counting::new(local));
            store = Some(Arc::clone(&counting));
            counting
        });
        let points = repo.points().unwrap().snapshots;
        assert_eq!(points.len(), self.points.len());
        for point in &points {
            read_bytes(&reader(&repo).unwrap().disk(point, "vda").unwrap()).unwrap();
        }
        let read = store.unwrap().found();
        for kind in [PackKind::Data, PackKind::Tree] {
            let packs = list_sorted(repo.backend(), kind.prefix()).unwrap();
            assert!(!packs.is_empty());
            packs.iter().for_each(|pack| assert!(read.contains(&pack.name), "nobody needs {}", pack.name));
        }
        for left in ["condemned", "sessions"] {
            assert_eq!(self.coffer.objects(left).len(), 0, "{left}");
        }
    }
}

#[test]
fn a_hundred_kills_lose_nothing_and_leave_nothing() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    coffer.run(&["key", "add", "--new-key-file", KEY[1]]);
    let (dice, disk) = (Dice::new(SEED), (Disk::default(), 0));
    let (points, times, kills) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    let mut story = Story { coffer, dice, disk, points, times, kills };
    let mut restored = 0;
    loop {
        story.round();
        let killed: u32 = story.kills.values().sum();
        if killed >= restored + PERIOD {
            story.restore_all();
            restored = killed;
        }
        // Of every sort some.
        if killed >= KILLS && story.kills.len() == 4 {
            break;
        }
    }
    println!("killed: {:?}; {} points of {} backups", story.kills, story.points.len(), story.disk.1);
    story.settle();
}
