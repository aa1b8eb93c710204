//! Garbage is collected beside everything else, on a full disk, and in a repository that somebody took something from.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::kernel::Mounted;
use coffer_tests::program::{Ended, Running};
use serde_json::Value;
use std::fs::OpenOptions;
use std::path::PathBuf;

const SEED: u64 = 20_282;

/// Bytes of the objects below `prefix`.
fn size(coffer: &Coffer, prefix: &str) -> u64 {
    coffer.objects(prefix).values().map(|(_, length, _)| length).sum()
}

fn assert_sound(coffer: &Coffer) {
    let verified = coffer.json(&["verify", "--data", "all"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
}

/// What a collection said.
fn told(ended: &Ended) -> Value {
    assert!(ended.status.success(), "{ended}");
    serde_json::from_str(&ended.out).unwrap()
}

#[test]
fn two_collections_run_beside_a_backup_and_a_mount() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    // Each of three disks of 96 MiB shares two thirds with the one before.
    for (number, name) in (0..).zip(["one", "two", "three"]) {
        for part in 0..3 {
            let file = coffer.path(&format!("part-{part}"));
            image::make(&file, 32 * MIB, &[0..32 * MIB], SEED + number + part);
        }
        let join = format!("cat part-0 part-1 part-2 > {name}.raw");
        coffer_tests::program::run(coffer.outside("bash").args(["-c", &join]));
    }
    coffer.run(&["backup", "-w", "web", "vda=one.raw"]);
    let two = coffer.json(&["backup", "-w", "web", "vda=two.raw"]);
    let two = format!("mnt/web/{}/vda.raw", two["snapshot"]["time"].as_str().unwrap());
    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mount = coffer.start(&["mount", "mnt"], "mounted at");
    coffer.run(&["forget", "web@-1"]);
    let before = size(&coffer, "packs");

    // Little memory: many batches.
    let gc = ["--json", "gc", "--repack-below", "90", "--max-memory", "128K"];
    let collections = [(); 2].map(|()| Running::start(&mut coffer.command(&gc)));
    let backup = Running::start(&mut coffer.command(&["--json", "backup", "-w", "web", "vda=three.raw"]));
    coffer.assert_same("two.raw", &two);
    let removed: u64 = collections.map(|gc| told(&gc.wait())["removed"]["packs"].as_u64().unwrap()).iter().sum();
    assert!(removed > 0);
    let backup = backup.wait();
    assert!(backup.status.success(), "{backup}");
    println!("{removed} packs were removed; the backup was overtaken: {}", backup.err.contains("once more"));

    coffer.assert_same("two.raw", &two);
    assert!(mount.terminate().status.success());
    coffer.assert_restores("web@latest", "three.raw");
    coffer.assert_restores("web@-1", "two.raw");
    assert_sound(&coffer);
    coffer.run(&["gc", "--repack-below", "90"]);
    // Both share two parts of three: four parts, and a part was freed before the new one came.
    let after = size(&coffer, "packs");
    assert!(before > 64 * MIB && after < 4 * 33 * MIB, "{} MiB, then {} MiB", before / MIB, after / MIB);
    assert_sound(&coffer);
}

#[test]
fn a_full_disk_gets_space_from_what_nobody_needs_and_loses_nothing() {
    let coffer = Coffer::prepare();
    let store = Mounted::mount("tmpfs", "tmpfs", "size=52m", &coffer.path("repo"));
    coffer.run(&["init"]);
    // One pack, since a pack takes 32 MiB, in any order; and another backup's.
    image::make(&coffer.path("disk.raw"), 28 * MIB, &[0..28 * MIB], SEED);
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    image::make(&coffer.path("other.raw"), 8 * MIB, &[0..8 * MIB], SEED + 1);
    coffer.run(&["backup", "-w", "other", "vda=other.raw"]);
    // Zeroes now, where the end was: of one pack a part is needed, and of the other nothing.
    let disk = OpenOptions::new().write(true).open(coffer.path("disk.raw")).unwrap();
    disk.set_len(24 * MIB).unwrap();
    disk.set_len(28 * MIB).unwrap();
    coffer.run(&["backup", "-w", "web", "vda=disk.raw"]);
    coffer.run(&["forget", "web@-1", "other@latest"]);
    let full = size(&coffer, "packs");
    assert!(full > 36 * MIB, "{full}");

    let gc = ["gc", "--repack-below", "90"];
    coffer.fails(&gc, &["No space left on device"]);
    coffer.assert_restores("web@latest", "disk.raw");
    assert_sound(&coffer);
    // What could go without copying is gone.
    let after = size(&coffer, "packs");
    assert!(after < full - 7 * MIB, "{after} of {full}");
    coffer.fails(&gc, &["No space left on device"]);

    store.remount("size=256m");
    coffer.run(&gc);
    assert!(size(&coffer, "packs") < 25 * MIB);
    coffer.assert_restores("web@latest", "disk.raw");
    assert_sound(&coffer);
}

/// The objects below `prefix` that are not among `old`.
fn added(coffer: &Coffer, prefix: &str, old: &[PathBuf]) -> Vec<PathBuf> {
    coffer.objects(prefix).into_keys().filter(|name| !old.contains(name)).collect()
}

#[test]
fn what_is_deleted_behind_our_back_is_named_and_stops_what_depends_on_it() {
    let coffer = Coffer::new();
    let make = |name: &str, number: u64| {
        // A piece in each of five windows, so that the map has nodes.
        let filled: Vec<_> = (0..5).map(|window| window * 16 * MIB..window * 16 * MIB + MIB).collect();
        image::make(&coffer.path(name), 80 * MIB, &filled, SEED + number);
    };
    for (number, name) in (0..).zip(["good.raw", "bad.raw", "old.raw"]) {
        make(name, number);
    }
    coffer.run(&["backup", "-w", "good", "vda=good.raw"]);
    coffer.run(&["backup", "-w", "old", "vda=old.raw"]);
    let old: Vec<PathBuf> = coffer.objects("").into_keys().collect();
    coffer.run(&["backup", "-w", "bad", "vda=bad.raw"]);
    let [trees, packs] = ["trees", "packs"].map(|prefix| added(&coffer, prefix, &old));
    let (tree, pack) = (&trees[0], &packs[0]);
    coffer.run(&["forget", "old@latest"]);

    // A part of a map: nobody knows what the point needs, so that nothing goes.
    let kept = std::fs::read(tree).unwrap();
    std::fs::remove_file(tree).unwrap();
    let before = coffer.objects("packs");
    let name = tree.file_name().unwrap().to_str().unwrap();
    coffer.fails(&["gc"], &["nothing was removed", "bad", "cannot be walked", name, "coffer verify"]);
    assert_eq!(coffer.objects("packs"), before);
    std::fs::write(tree, kept).unwrap();

    // Content: what is lost is lost, and the rest is collected.
    std::fs::remove_file(pack).unwrap();
    let done = coffer.warned(&["gc"]);
    assert!(done["lost_chunks"].as_u64() > Some(0) && done["removed"]["packs"].as_u64() > Some(0), "{done}");
    coffer.assert_restores("good@latest", "good.raw");
    coffer.run(&["forget", "bad@latest"]);
    assert_eq!(coffer.json(&["gc"])["lost_chunks"], 0);
    coffer.assert_restores("good@latest", "good.raw");
    assert_sound(&coffer);
}
