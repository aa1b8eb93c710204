//! The index is lost or damaged between two backups: it is made again by itself, and nothing is stored twice.

use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::image::{self, MIB};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SEED: u64 = 20_267;
const SIZE: u64 = 24 * MIB;

/// All files below `folder`, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Backs up under a name that has no parent, so that only the index can tell what is stored.
fn assert_nothing_new(coffer: &Coffer, workload: &str, damage: &str) {
    let made = coffer.json(&["backup", "-w", workload, "disk.raw"]);
    assert_eq!((&made["new_bytes"], &made["reused"]), (&0.into(), &SIZE.into()), "{damage}: {made}");
}

fn stage() -> Coffer {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), 2 * SIZE, &[SIZE / 2..SIZE, SIZE + SIZE / 2..2 * SIZE], SEED);
    coffer.run(&["backup", "-w", "first", "disk.raw"]);
    coffer
}

#[test]
fn an_index_that_is_lost_or_damaged_is_made_again() {
    let coffer = stage();
    std::fs::remove_dir_all(coffer.path("cache")).unwrap();
    assert_nothing_new(&coffer, "lost", "all of the cache is gone");

    let mut dice = Dice::new(SEED);
    for round in 0..24 {
        let files = files(&coffer.path("cache"));
        let path = &files[dice.index(files.len())];
        let length = path.metadata().unwrap().len();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let damage = match round % 4 {
            0 => {
                std::fs::remove_file(path).unwrap();
                "gone"
            }
            1 => {
                file.set_len(dice.below(length.max(1))).unwrap();
                "cut"
            }
            _ => {
                let at = dice.below(length.max(1));
                let mut noise = [0; 64];
                dice.noise(&mut noise);
                file.write_all_at(&noise, at).unwrap();
                "overwritten in part"
            }
        };
        drop(file);
        let damage = format!("seed {SEED}, round {round}: {} is {damage}", path.display());
        assert_nothing_new(&coffer, &format!("round-{round}"), &damage);
    }
    coffer.assert_restores("round-23@latest", "disk.raw");
}

/// Damage that shows only when an entry is looked up, in the middle of a backup.
#[test]
fn an_index_whose_entries_are_damaged_is_made_again_within_the_run() {
    let coffer = stage();
    let tables = files(&coffer.path("cache")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "sst"));
    let mut damaged = 0;
    for path in tables {
        // Where its entries begin.
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xa5; 64], 16).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0);
    assert_nothing_new(&coffer, "second", "all entries are damaged");
    coffer.assert_restores("second@latest", "disk.raw");
}

#[test]
fn a_damaged_index_delta_is_named_and_the_packs_are_asked() {
    let coffer = stage();
    std::fs::remove_dir_all(coffer.path("cache")).unwrap();
    let deltas = coffer.objects("index");
    let delta = deltas.keys().next().unwrap();
    let mut bytes = std::fs::read(delta).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(delta).unwrap();
    std::fs::write(delta, &bytes).unwrap();

    let made = coffer.warned(&["backup", "-w", "second", "disk.raw"]);
    assert_eq!(made["new_bytes"], 0, "{made}");
    let warnings = made["warnings"].to_string();
    assert!(warnings.contains(delta.file_name().unwrap().to_str().unwrap()), "{warnings}");
    coffer.assert_restores("second@latest", "disk.raw");
}
