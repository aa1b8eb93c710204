//! Backups into a store are killed at random moments; nothing that was committed suffers, and what the killed had published is
//! not sent again. On folders, with collections and forgets beside them, that is `journey/kills.rs`.

use coffer_repo::backend::list_sorted;
use coffer_repo::index_delta::{self, IndexDelta};
use coffer_repo::location::PackKind;
use coffer_repo::sealed::ObjectKind;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use coffer_tests::nbd::NbdKit;
use coffer_tests::program::Running;
use coffer_tests::service::seaweedfs::SeaweedFs;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SEED: u64 = 20_602;
/// Backups that are killed.
const KILLS: usize = 12;

#[test]
fn killed_backups_lose_nothing() {
    println!("seed {SEED}");
    let coffer = Coffer::new_in(SeaweedFs::shared().bucket("kills"));
    coffer.run(&["key", "add", "--new-key-file", "key"]);
    // Opens at once, unlike a passphrase.
    let command = |arguments: &[&str]| coffer.command_with(["--key-file", "key"], arguments);
    let tags = || -> BTreeSet<String> {
        let points = coffer.snapshots();
        points.iter().map(|point| point["tags"][0].as_str().unwrap().to_owned()).collect()
    };
    let mut dice = Dice::new(SEED);
    let (mut killed, mut shortest, mut points) = (0, Duration::MAX, BTreeSet::new());
    for number in 0.. {
        let (tag, seed) = (format!("run-{number}"), SEED + number);
        image::make(&coffer.path(&format!("{tag}.raw")), 24 * MIB, &[0..12 * MIB], seed);
        let began = Instant::now();
        let running = Running::start(&mut command(&["backup", "-w", "web", "--tag", &tag, &format!("vda={tag}.raw")]));
        // The first tells how long one takes; some others come to their end as well.
        let ended = if number == 0 || dice.once_in(6) {
            Some(running.wait())
        } else {
            let share = u32::try_from(dice.below(1000)).unwrap();
            std::thread::sleep(shortest * share / 1000);
            running.kill_unless_ended()
        };
        let now = tags();
        match &ended {
            Some(ended) => {
                assert!(ended.status.success(), "{ended}");
                shortest = shortest.min(began.elapsed());
                assert!(now.contains(&tag), "{tag} is missing: {ended}");
            }
            None => killed += 1,
        }
        // Nothing is gone, and nothing came but what was just made.
        assert!(points.iter().all(|point| now.contains(point)), "{points:?}, now {now:?}");
        assert!(now.difference(&points).all(|new| *new == tag), "{points:?}, now {now:?}");
        points = now;
        if killed == KILLS {
            break;
        }
    }
    println!("{KILLS} killed, {} points", points.len());
    let restore_all = || {
        for point in coffer.snapshots() {
            let tag = point["tags"][0].as_str().unwrap();
            coffer.assert_restores(point["id"].as_str().unwrap(), &format!("{tag}.raw"));
        }
    };
    restore_all();
    let collected = coffer.json(&["gc", "--dead-after", "0"]);
    assert_eq!(collected["damaged"], json!([]), "{collected}");
    restore_all();
    assert_eq!(coffer.json(&["verify", "--data", "all"])["problems"], json!([]));
}

#[test]
fn a_killed_backup_goes_on_where_it_was() {
    // An index delta comes after every 256 MiB in packs that are done; those that are not may have as much.
    const SIZE: u64 = 640 * MIB;
    let coffer = Coffer::new_in(SeaweedFs::shared().bucket("resumed"));
    let store = coffer.store();
    let (size, seed) = (format!("size={SIZE}"), format!("seed={SEED}"));
    let source = NbdKit::start(&["random", &size, &seed]);
    // The second disk is a pipe that says nothing: the run does not end before it is killed, however slow this machine is.
    let mut backup = coffer.command(&["backup", "-w", "web", &format!("vda={}", source.uri), "vdb=-"]);
    let mut running = Running::start(backup.stdin(Stdio::piped()));
    running.wait_until("an index delta", |_| !list_sorted(&*store, index_delta::PREFIX).unwrap().is_empty());
    running.kill();
    assert_eq!(coffer.snapshots(), Vec::<Value>::new());

    let repo = coffer.open_on(coffer.store());
    let deltas = list_sorted(repo.backend(), index_delta::PREFIX).unwrap();
    let packs = deltas.iter().flat_map(|delta| {
        let record = repo.get_record(ObjectKind::IndexDelta, &delta.name).unwrap();
        IndexDelta::decode(&record.body).unwrap().packs
    });
    let entries = packs.filter(|pack| pack.kind == PackKind::Data).flat_map(|pack| pack.entries);
    let published: u64 = entries.map(|entry| u64::from(entry.raw_len)).sum();
    assert!(published > 250 * MIB, "{published}");
    let source = NbdKit::start(&["random", &size, &seed]);
    let done = coffer.json(&["backup", "-w", "web", &format!("vda={}", source.uri)]);
    assert_eq!((&done["reused"], &done["new_bytes"]), (&published.into(), &(SIZE - published).into()), "{done}");
    assert_eq!(coffer.snapshots().len(), 1);
}
