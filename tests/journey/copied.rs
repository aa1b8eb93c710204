//! A machine's points are copied to a second repository by runs that are killed; what came is not sent again, the mirror is exact, and
//! it stays so day by day.

use crate::killed::published;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Running, run};
use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const SEED: u64 = 20_262;
/// Noise; an index delta comes after every 256 MiB.
const DATA: u64 = 320 * MIB;
/// A file system.
const ROOT: u64 = 64 * MIB;

/// Runs the program on the second repository, whose passphrase is the first one's.
fn there(coffer: &Coffer, arguments: &[&str]) -> String {
    run(&mut coffer.command_on("there", ["--password-file", "password"], arguments))
}

/// A day in the life of a disk: some of it is written.
fn live(coffer: &Coffer, disk: &str, size: u64, dice: &mut Dice) {
    let file = OpenOptions::new().write(true).open(coffer.path(disk)).unwrap();
    for _ in 0..12 {
        let mut bytes = vec![0; 512 * (1 + dice.index(400))];
        dice.noise(&mut bytes);
        file.write_all_at(&bytes, dice.below((size - bytes.len() as u64) / 512) * 512).unwrap();
    }
}

#[test]
fn killed_copies_go_on_and_become_a_mirror() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    there(&coffer, &["init"]);
    image::make_ext4(&coffer.path("root.raw"), ROOT, SEED);
    image::make(&coffer.path("data.raw"), DATA, &[0..DATA], SEED);
    let backup = ["backup", "-w", "web", "root=root.raw", "data=data.raw"];
    coffer.run(&backup);
    std::fs::copy(coffer.path("root.raw"), coffer.path("first.raw")).unwrap();

    let copy = ["copy", "--to", "there"];
    let mut dice = Dice::new(SEED);
    // Before anything was published, and after the first delta. At this rate a copy that is not killed takes longer than both.
    for (deltas, rate) in [(0, "20M"), (1, "150M")] {
        let packs = coffer.objects_of("there", "packs").len() + 1 + dice.index(2);
        let mut running = Running::start(&mut coffer.command(&[&copy[..], &["--max-rate", rate]].concat()));
        running.wait_until("an index delta", |_| coffer.objects_of("there", "index").len() >= deltas);
        running.wait_until("packs", |_| coffer.objects_of("there", "packs").len() >= packs);
        running.kill();
        let left: Value = serde_json::from_str(&there(&coffer, &["snapshots", "--json"])).unwrap();
        assert_eq!(left["snapshots"].as_array().unwrap().len(), 0);
    }
    let named = published(&coffer, "there");
    assert!(named > 250 * MIB, "{named}");
    let done = coffer.json(&[&copy[..], &["--verify"]].concat());
    assert_eq!(done["new_bytes"], published(&coffer, "there") - named, "{done}");
    assert_eq!(done["copied"][0]["verified"], true, "{done}");

    for _ in 0..3 {
        live(&coffer, "root.raw", ROOT, &mut dice);
        live(&coffer, "data.raw", DATA, &mut dice);
        coffer.run(&backup);
    }
    let done = coffer.json(&copy);
    assert_eq!((done["copied"].as_array().unwrap().len(), &done["skipped"]), (3, &1.into()), "{done}");
    // 24 writes a day of 100 KiB or so, and what cutting around them takes.
    assert!(done["read"].as_u64().unwrap() < 3 * 24 * MIB, "{done}");
    let before = coffer.objects_of("there", "");
    assert_eq!(coffer.json(&copy)["skipped"], 4);
    assert_eq!(coffer.objects_of("there", ""), before);

    there(&coffer, &["verify", "--data", "all"]);
    for (disk, file) in [("web@latest:root", "root.raw"), ("web@latest:data", "data.raw"), ("web@-3:root", "first.raw")]
    {
        there(&coffer, &["restore", disk, "--to", "restored.raw", "--force"]);
        coffer.assert_same(file, "restored.raw");
    }
}
