//! A store that decays: reads go on by parity, verify says what it hurts, heal replaces it, and what is lost is listed.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::run;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SEED: u64 = 20_312;
const SIZE: u64 = 96 * MIB;

/// Data packs, the largest first.
fn packs(coffer: &Coffer) -> Vec<PathBuf> {
    let mut packs: Vec<_> = coffer.objects("packs").into_iter().map(|(path, (_, len, _))| (len, path)).collect();
    packs.sort();
    packs.into_iter().rev().map(|(_, path)| path).collect()
}

fn parity_of(coffer: &Coffer, pack: &Path) -> PathBuf {
    coffer.path("repo/parity").join(pack.strip_prefix(coffer.path("repo/packs")).unwrap())
}

/// Zeroes a sector, as a disk does that gave up on it.
fn lose_sector(pack: &PathBuf, at: u64) {
    OpenOptions::new().write(true).open(pack).unwrap().write_all_at(&[0; 4096], at).unwrap();
}

fn stage() -> Coffer {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..40 * MIB, 50 * MIB..SIZE], SEED);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    assert!(packs(&coffer).len() >= 2);
    coffer
}

fn assert_whole(coffer: &Coffer) {
    assert_eq!(coffer.json(&["verify", "--data", "all"])["problems"], json!([]));
    coffer.assert_restores("web@latest", "disk.raw");
}

#[test]
fn lost_sectors_are_read_through_and_healed_by_parity() {
    let coffer = stage();
    let verified = |coffer: &Coffer| coffer.snapshots()[0]["verified"].clone();
    assert_eq!(verified(&coffer), json!({ "structure": null, "data": null }));
    let pack = &packs(&coffer)[0];
    [MIB, 3 * MIB].iter().for_each(|at| lose_sector(pack, *at));

    let restored = coffer.warned(&["restore", "web@latest", "--to", "restored.raw"]);
    let warnings = restored["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].to_string().contains("by its parity"), "{restored}");
    coffer.assert_same("disk.raw", "restored.raw");
    std::fs::remove_file(coffer.path("restored.raw")).unwrap();
    let found = coffer.warned(&["verify", "--data", "all"]);
    assert_eq!((&found["problems"][0]["repairable"], &found["problems"][0]["hurts"]), (&json!(true), &json!([])));
    assert!(verified(&coffer)["data"].is_string());

    let before = coffer.objects("");
    let told = coffer.json(&["heal", "--dry-run"]);
    assert_eq!(coffer.objects(""), before, "a dry run changes nothing");
    let healed = coffer.json(&["heal"]);
    assert_eq!((&healed["healed"], &healed["sources"]["parity"]), (&told["healed"], &told["sources"]["parity"]));
    assert_eq!(healed["after"]["healed"].as_array().unwrap().len(), 1, "{healed}");
    std::fs::remove_file(parity_of(&coffer, pack)).unwrap();
    assert_whole(&coffer);
    // Collecting takes nothing away that is needed, and makes nothing needed of what is damaged.
    coffer.run(&["gc"]);
    assert_whole(&coffer);
}

#[test]
fn what_is_lost_is_listed_and_comes_back_from_a_disk_or_a_copy() {
    let coffer = stage();
    run(coffer.outside("cp").args(["-a", "repo", "copy"]));
    let all = packs(&coffer);
    let (cut, gone) = (&all[0], &all[1]);
    let length = cut.metadata().unwrap().len();
    OpenOptions::new().write(true).open(cut).unwrap().set_len(length / 2).unwrap();
    std::fs::remove_file(gone).unwrap();

    let ended = coffer.fails(&["verify"], &["problem", "coffer heal"]);
    assert!(ended.contains("repo"), "{ended}");
    coffer.fails(&["restore", "web@latest", "--to", "failed.raw"], &["--keep-going"]);
    let left = coffer.warned(&["restore", "web@latest", "--to", "left.raw", "--keep-going"]);
    let ranges: Vec<[u64; 2]> = serde_json::from_value(left["unreadable"]["ranges"].clone()).unwrap();
    assert!(!ranges.is_empty() && left["unreadable"]["bytes"].as_u64().unwrap() < SIZE, "{left}");
    // What is left is right, and what is not left is zero.
    std::fs::copy(coffer.path("disk.raw"), coffer.path("due.raw")).unwrap();
    let due = OpenOptions::new().write(true).open(coffer.path("due.raw")).unwrap();
    for [start, end] in ranges {
        due.write_all_at(&vec![0; usize::try_from(end - start).unwrap()], start).unwrap();
    }
    coffer.assert_same("due.raw", "left.raw");

    // The live disk has gone on: what it still holds heals, the rest stays listed.
    std::fs::copy(coffer.path("disk.raw"), coffer.path("live.raw")).unwrap();
    let live = OpenOptions::new().write(true).open(coffer.path("live.raw")).unwrap();
    // Whatever those packs held, some of it is gone and some is not.
    let changed: Vec<u64> = (0..SIZE / (8 * MIB)).map(|n| n * 8 * MIB).collect();
    for start in &changed {
        live.write_all_at(&vec![0x5a; usize::try_from(4 * MIB).unwrap()], *start).unwrap();
    }
    let hurt = |report: &Value| -> u64 {
        let problems = report["problems"].as_array().unwrap().iter();
        let ranges =
            problems.flat_map(|p| p["hurts"].as_array().unwrap()).flat_map(|h| h["ranges"].as_array().unwrap());
        ranges.map(|r| r[1].as_u64().unwrap() - r[0].as_u64().unwrap()).sum()
    };
    let partly = coffer.ended(1, &["heal", "--from", "live.raw"]);
    let most = changed.len() as u64 * (4 * MIB + (1 << 19));
    assert!((1..=most).contains(&hurt(&partly["after"])), "{partly}");
    assert!(partly["sources"]["live"].as_u64().unwrap() > 0, "{partly}");
    let whole = coffer.json(&["heal", "--from", "copy", "--data", "none"]);
    assert!(whole["healed"]["chunks"].as_u64().unwrap() > 0, "{whole}");
    assert_whole(&coffer);
    coffer.run(&["gc"]);
    assert_whole(&coffer);
    // Another copy that has the same illness is no help, and no harm.
    File::create(coffer.path("empty.raw")).unwrap();
    let nothing = coffer.json(&["heal", "--from", "empty.raw"]);
    assert_eq!(nothing["healed"]["chunks"], 0);
}

#[test]
fn no_backup_relies_on_what_verify_found_and_the_next_one_heals_the_last() {
    let coffer = stage();
    let cut = &packs(&coffer)[0];
    let length = cut.metadata().unwrap().len();
    OpenOptions::new().write(true).open(cut).unwrap().set_len(length / 2).unwrap();
    coffer.fails(&["verify"], &["problem"]);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.assert_restores("web@latest", "disk.raw");
    coffer.fails(&["restore", "web@-1", "--to", "failed.raw"], &["damaged"]);
    let healed = coffer.json(&["heal"]);
    assert_eq!(healed["sources"]["other packs"], healed["healed"]["chunks"], "{healed}");
    coffer.assert_restores("web@-1", "disk.raw");
    coffer.run(&["gc"]);
    assert_whole(&coffer);
}
