//! Forks in folders that are handed over to files: what is refused, what is left when it fails, and what there is afterwards.

use crate::folder::{Stage, at, name};
use crate::rig::contents;
use coffer_gateway::fork::{Commit, CommitPlan, Fork, Hydration, HydrationPlan};
use coffer_gateway::target::Overwrite;
use coffer_gateway::{BlockDevice, Durability, Error, Kind, Result};
use coffer_repo::cancel::Cancel;
use coffer_repo::snapshot::Identity;
use coffer_repo::writer::WriterOptions;
use std::fs;
use std::path::PathBuf;

fn plan(stage: &Stage, file: &str) -> HydrationPlan {
    HydrationPlan {
        to: stage.folder.path().join(file).to_str().unwrap().parse().unwrap(),
        rate: None,
        workers: 2,
        overwrite: Overwrite::IfEmpty,
        restart: false,
        keep_going: false,
    }
}

fn hydrate(fork: &Fork, plan: &HydrationPlan) -> Result<()> {
    Hydration::begin(fork, plan)?.run(&Cancel::default()).map(drop)
}

/// Begins, and is stopped.
fn interrupt(fork: &Fork, plan: &HydrationPlan) {
    let cancel = Cancel::default();
    cancel.cancel();
    assert_eq!(Hydration::begin(fork, plan).unwrap().run(&cancel).err().unwrap().kind(), Kind::Cancelled);
}

fn begin_commit<'a>(stage: &Stage, fork: &'a Fork, time: u64) -> Result<Commit<'a>> {
    let plan = CommitPlan {
        tags: Vec::new(),
        identity: Identity::default(),
        time: at(time),
        writer: WriterOptions { workers: 1, ..WriterOptions::default() },
    };
    Commit::begin(fork, &stage.index, plan)
}

fn says(error: Option<Error>, words: &[&str]) {
    let error = error.unwrap();
    let text = format!("{error:?}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

fn made() -> (Stage, Fork, Vec<u8>) {
    let stage = Stage::new();
    stage.create("lab").unwrap();
    let fork = stage.open("lab").unwrap();
    let mut expected = stage.bytes.clone();
    fork.write_at(5000, &[7; 9000], Durability::Cached).unwrap();
    expected[5000..14_000].fill(7);
    (stage, fork, expected)
}

fn folder(stage: &Stage) -> PathBuf {
    stage.folder.path().join("state/forks/lab")
}

#[test]
fn a_fork_becomes_a_file_and_goes_on_there() {
    let (stage, fork, mut expected) = made();
    let target = stage.folder.path().join("web.raw");
    hydrate(&fork, &plan(&stage, "web.raw")).unwrap();
    assert!(fs::read(&target).unwrap() == expected && contents(&fork) == expected);
    assert_eq!((fork.layers(), fork.header().handed_to.as_deref()), (0, target.to_str()));
    assert!(!folder(&stage).join("hydration").exists());

    // What comes next is in the file, of all kinds.
    fork.write_at(100, b"after", Durability::Forced).unwrap();
    expected[100..105].copy_from_slice(b"after");
    assert_eq!(fork.compare_and_write(100, b"after", b"again").unwrap(), None);
    assert_eq!(fork.compare_and_write(100, b"after", b"never").unwrap(), Some(1));
    expected[100..105].copy_from_slice(b"again");
    fork.trim(1 << 20..2 << 20).unwrap();
    expected[1 << 20..2 << 20].fill(0);
    fork.flush().unwrap();
    assert!(fs::read(&target).unwrap() == expected && contents(&fork) == expected);
    assert_eq!(fork.read_at(fork.size() - 1, &mut [0; 2]).unwrap_err().kind(), Kind::Invalid);

    says(begin_commit(&stage, &fork, 30).err(), &["handed over to", "web.raw", "drop"]);
    says(hydrate(&fork, &plan(&stage, "other.raw")).err(), &["handed over to", "web.raw"]);
    fork.close().unwrap();
}

#[test]
fn a_fork_that_was_handed_over_opens_its_target_and_never_its_layers() {
    let (stage, fork, mut expected) = made();
    let target = stage.folder.path().join("web.raw");
    hydrate(&fork, &plan(&stage, "web.raw")).unwrap();
    says(stage.open("lab").err(), &["open in another process"]);
    drop(fork);
    // Its point may be gone, and its layers damaged.
    let pin = stage.forks.list().unwrap().remove(0).header.unwrap();
    assert_eq!(pin.handed_to.as_deref(), target.to_str());
    stage.repo.forget(pin.pin, at(28)).unwrap();
    fs::remove_dir_all(folder(&stage).join("1")).unwrap();
    let fork = stage.open("lab").unwrap();
    fork.write_at(9, &[9; 9], Durability::Cached).unwrap();
    expected[9..18].fill(9);
    assert!(contents(&fork) == expected && fs::read(&target).unwrap() == expected);
    says(begin_commit(&stage, &fork, 30).err(), &["handed over to", "web.raw", "drop"]);
    says(hydrate(&fork, &plan(&stage, "other.raw")).err(), &["handed over to", "web.raw"]);
    fork.close().unwrap();
    drop(fork);

    let aside = stage.folder.path().join("aside");
    fs::rename(&target, &aside).unwrap();
    says(stage.open("lab").err(), &["'lab' was handed over to", "web.raw", "drop the fork"]);
    assert!(!target.exists());
    fs::write(&target, b"short").unwrap();
    says(stage.open("lab").err(), &["web.raw", "has 5 bytes"]);
    fs::rename(&aside, &target).unwrap();
    stage.forks.remove(&stage.repo, &name("lab"), at(40)).unwrap();
    assert!(fs::read(&target).unwrap() == expected, "dropping a fork leaves its target alone");
}

#[test]
fn wrong_targets_are_refused_and_nothing_has_begun_then() {
    let (stage, fork, expected) = made();
    let file = |name: &str, len: u64| {
        let path = stage.folder.path().join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    };
    let size = expected.len() as u64;
    file("small", size - 1);
    file("large", size + 1);
    let full = file("full", size);
    fs::write(&full, vec![1; expected.len()]).unwrap();
    let locked = coffer_gateway::FileDevice::create(&stage.folder.path().join("locked"), size).unwrap();
    fs::create_dir(stage.folder.path().join("folder")).unwrap();
    for (target, words) in [
        ("small", ["has 3145727 bytes", "choose a larger one"]),
        ("large", ["has 3145729 bytes", "as large as the disk"]),
        ("full", ["not empty", "--force"]),
        ("locked", ["in use", "locked"]),
        ("folder", ["neither a file", "nor a block device"]),
        ("no/such/file", ["making", "no/such/file"]),
    ] {
        says(hydrate(&fork, &plan(&stage, target)).err(), &words);
    }
    let nobody = format!("nbd+unix:///x?socket={}", stage.folder.path().join("nobody").display());
    says(hydrate(&fork, &HydrationPlan { to: nobody.parse().unwrap(), ..plan(&stage, "") }).err(), &["nobody"]);
    drop(locked);
    assert!(contents(&fork) == expected && fork.layers() == 1);
    // No such attempt is one that has to be given up.
    file("empty", size);
    hydrate(&fork, &plan(&stage, "empty")).unwrap();
    assert!(fs::read(stage.folder.path().join("empty")).unwrap() == expected);
}

#[test]
fn what_was_begun_is_gone_on_with_or_given_up_by_name() {
    let (stage, fork, expected) = made();
    interrupt(&fork, &plan(&stage, "one"));
    let one = stage.folder.path().join("one");
    says(hydrate(&fork, &plan(&stage, "two")).err(), &["to", "/one", "--restart"]);
    assert!(!stage.folder.path().join("two").exists());
    // Gone on with in another process, after the target has something.
    drop(fork);
    let fork = stage.open("lab").unwrap();
    fs::OpenOptions::new().write(true).open(&one).unwrap().set_len(1).unwrap();
    says(hydrate(&fork, &plan(&stage, "one")).err(), &["has 1 bytes"]);
    fs::write(&one, vec![3; expected.len()]).unwrap();
    let restart = HydrationPlan { restart: true, ..plan(&stage, "two") };
    hydrate(&fork, &restart).unwrap();
    assert!(fs::read(stage.folder.path().join("two")).unwrap() == expected);
    assert!(fs::read(&one).unwrap() == vec![3; expected.len()], "what was given up is left alone");
}

#[test]
fn a_target_that_vanishes_between_two_runs_is_missed() {
    let (stage, fork, expected) = made();
    let (one, header) = (stage.folder.path().join("one"), folder(&stage).join("fork"));
    // Everything is copied, but the header cannot be placed: a folder with something in it is in the way.
    let aside = stage.folder.path().join("header");
    fs::rename(&header, &aside).unwrap();
    fs::create_dir_all(header.join("x")).unwrap();
    says(hydrate(&fork, &plan(&stage, "one")).err(), &["takes no more writes"]);
    says(fork.write_at(0, &[1; 512], Durability::Cached).err(), &["takes no more writes", "open it again"]);
    assert!(contents(&fork) == expected);
    drop(fork);
    fs::remove_dir_all(&header).unwrap();
    fs::rename(&aside, &header).unwrap();
    let fork = stage.open("lab").unwrap();
    assert!(contents(&fork) == expected && fork.layers() == 1);

    fs::remove_file(&one).unwrap();
    says(hydrate(&fork, &plan(&stage, "one")).err(), &["/one", "is gone", "--restart"]);
    assert!(!one.exists());
    hydrate(&fork, &HydrationPlan { restart: true, ..plan(&stage, "one") }).unwrap();
    assert!(fs::read(&one).unwrap() == expected);
}

#[test]
fn a_target_that_vanishes_while_it_is_filled_takes_nothing_over() {
    let (stage, fork, expected) = made();
    let one = stage.folder.path().join("one");
    for replaced in [false, true] {
        let begun = Hydration::begin(&fork, &HydrationPlan { restart: true, ..plan(&stage, "one") }).unwrap();
        fs::remove_file(&one).unwrap();
        if replaced {
            fs::write(&one, b"another").unwrap();
        }
        says(begun.run(&Cancel::default()).err(), &["/one", "was removed"]);
        assert!(contents(&fork) == expected && fork.layers() == 1 && fork.header().handed_to.is_none());
        fork.write_at(0, &expected[..512], Durability::Cached).unwrap();
    }
}

#[test]
fn one_thing_at_a_time_is_done_to_a_fork() {
    let (stage, fork, mut expected) = made();
    let begun = Hydration::begin(&fork, &plan(&stage, "one")).unwrap();
    says(hydrate(&fork, &plan(&stage, "one")).err(), &["committed or hydrated already", "wait"]);
    says(begin_commit(&stage, &fork, 30).err(), &["committed or hydrated already", "wait"]);
    // In use all the while.
    fork.write_at(0, b"meanwhile", Durability::Cached).unwrap();
    expected[..9].copy_from_slice(b"meanwhile");
    drop(begun);
    let begun = begin_commit(&stage, &fork, 30).unwrap();
    says(hydrate(&fork, &plan(&stage, "one")).err(), &["committed or hydrated already"]);
    begun.run(&Cancel::default()).unwrap();

    // What was copied of the point before does not count any more.
    interrupt(&fork, &plan(&stage, "one"));
    fork.write_at(2 << 20, b"more", Durability::Cached).unwrap();
    expected[2 << 20..][..4].copy_from_slice(b"more");
    begin_commit(&stage, &fork, 50).unwrap().run(&Cancel::default()).unwrap();
    let begun = Hydration::begin(&fork, &plan(&stage, "one")).unwrap();
    assert_eq!(begun.progress().resumed(), 0);
    begun.run(&Cancel::default()).unwrap();
    assert!(fs::read(stage.folder.path().join("one")).unwrap() == expected && contents(&fork) == expected);
}
