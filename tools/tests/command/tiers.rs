//! Cold tiers: `coffer tier`, with folders as home and tier.

use crate::stage::{Stage, disk, noise};
use serde_json::Value;
use std::path::Path;

/// Data packs in a folder.
fn packs(folder: &Path) -> usize {
    let Ok(shelves) = std::fs::read_dir(folder.join("packs")) else { return 0 };
    shelves.map(|shelf| std::fs::read_dir(shelf.unwrap().path()).unwrap().count()).sum()
}

fn restored(stage: &Stage, point: &str) -> Vec<u8> {
    stage.ok(&["restore", point, "--to", "out.raw", "--force"]);
    stage.read("out.raw")
}

#[test]
fn old_packs_lie_in_another_folder_and_come_back() {
    let stage = Stage::with_repository();
    assert!(stage.ok(&["tier", "list"]).contains("no cold tiers"));
    let (first, mut second) = (disk(1), disk(1));
    stage.back_up(&first);
    second[..200_000].copy_from_slice(&noise(9, 200_000));
    stage.back_up(&second);
    let all = packs(&stage.path("r"));

    let added = stage.json(0, &["tier", "add", "deep", "cold"]);
    let url = stage.path("cold").to_str().unwrap().to_owned();
    assert_eq!((&added["name"], &added["url"]), (&"deep".into(), &Value::from(url.clone())));
    assert_eq!(stage.json(0, &["tier", "move", "deep", "--older-than", "1d"])["due"]["packs"], 0);
    let dry = stage.json(0, &["tier", "move", "deep", "--older-than", "2999-01-01T00-00-00Z", "--dry-run"]);
    assert_eq!((&dry["due"]["packs"], packs(&stage.path("cold"))), (&all.into(), 0));
    let moved = stage.json(0, &["tier", "move", "deep", "--older-than", "2999-01-01T00-00-00Z", "--max-rate", "1G"]);
    assert_eq!((&moved["moved"], &moved["dry_run"]), (&dry["due"], &false.into()));
    assert_eq!((packs(&stage.path("r")), packs(&stage.path("cold"))), (0, all));
    let listed = stage.json(0, &["tier", "list"]);
    let [tier] = listed["tiers"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!((&tier["name"], &tier["url"], &tier["packs"]), (&"deep".into(), &url.into(), &all.into()));
    assert_eq!(tier["bytes"], moved["moved"]["bytes"]);
    assert!(stage.ok(&["tier", "list"]).contains("deep"));

    assert_eq!((restored(&stage, "web@-1"), restored(&stage, "web@latest")), (first, second.clone()));
    stage.ok(&["verify", "--data", "all"]);
    assert_eq!(stage.json(0, &["backup", "-w", "twin", "disk.raw"])["snapshot"]["new_chunks"], 0);
    stage.ok(&["forget", "web@-1"]);
    let collected = stage.json(0, &["gc"]);
    assert_eq!((&collected["cold_condemned"]["packs"], &collected["lost_chunks"]), (&0.into(), &0.into()));
    assert_eq!(packs(&stage.path("r")), 0);

    stage.fails(1, "tier recall deep", &["tier", "remove", "deep"]);
    assert!(stage.ok(&["tier", "recall", "deep", "--dry-run"]).contains("would move"));
    assert!(stage.ok(&["tier", "recall", "deep"]).contains("home from the cold tier 'deep'"));
    assert_eq!(packs(&stage.path("cold")), 0);
    stage.ok(&["tier", "remove", "deep"]);
    assert_eq!(stage.json(0, &["tier", "list"])["tiers"], Value::Array(Vec::new()));
    assert_eq!(restored(&stage, "web@latest"), second);
    stage.ok(&["verify", "--data", "all"]);
}

#[test]
fn a_tier_that_is_away_is_told_of() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.ok(&["tier", "add", "deep", "cold"]);
    stage.ok(&["tier", "move", "deep", "--older-than", "2999-01-01T00-00-00Z"]);
    std::fs::rename(stage.path("cold"), stage.path("away")).unwrap();
    let run = stage.run(&["restore", "web@latest", "--to", "out.raw"]);
    assert!(run.code == 1 && run.stderr.contains("cold tier 'deep'"), "{run:?}");
    stage.fails(1, "cold tier 'deep'", &["gc"]);
    let listed = stage.json(3, &["tier", "list"]);
    assert_eq!(listed["tiers"][0]["packs"], Value::Null, "{listed}");
    // New data are backed up all the same, and points are listed.
    stage.write("disk.raw", &noise(5, 300_000));
    stage.ok(&["backup", "-w", "new", "disk.raw"]);
    stage.ok(&["snapshots"]);
    // A folder on which nothing is mounted is not taken for an empty tier.
    std::fs::create_dir(stage.path("cold")).unwrap();
    stage.fails(1, "mounted", &["gc"]);
    stage.fails(1, "mounted", &["tier", "remove", "deep"]);
    std::fs::remove_dir(stage.path("cold")).unwrap();
    std::fs::rename(stage.path("away"), stage.path("cold")).unwrap();
    stage.ok(&["gc"]);
    assert_eq!(restored(&stage, "web@latest"), disk(1));
    std::fs::remove_dir_all(stage.path("cold")).unwrap();
    stage.ok(&["tier", "remove", "deep", "--lost"]);
    stage.fails(1, "packs/", &["restore", "web@latest", "--to", "out.raw", "--force"]);
}

#[test]
fn what_cannot_be_a_tier_is_refused() {
    let stage = Stage::with_repository();
    stage.ok(&["tier", "add", "deep", "cold"]);
    stage.ok(&["-r", "other", "init", "--new-key-file", "other.key"]);
    for (code, says, arguments) in [
        (2, "a-z, 0-9", &["add", "De/ep", "x"][..]),
        (2, "--tier-secret", &["add", "x", "s3://b/c", "--tier-option", "secret-file=x"]),
        (2, "no option", &["add", "x", "s3://b/c", "--tier-option", "colour=x"]),
        (2, "object store", &["add", "x", "there", "--tier-option", "region=x"]),
        (2, "--older-than", &["move", "deep"]),
        (2, "a length of time", &["move", "deep", "--older-than", "yesterday"]),
        (1, "'deep' already", &["add", "deep", "elsewhere"]),
        (1, "the cold tier 'deep' already", &["add", "twice", "./cold"]),
        (1, "is a repository", &["add", "home", "r"]),
        (1, "is a repository", &["add", "other", "other"]),
        (1, "within the repository's own folder", &["add", "in", "r/cold"]),
        (1, "no cold tier 'x'", &["move", "x", "--older-than", "1d"]),
        (1, "no cold tier 'x'", &["recall", "x"]),
        (1, "no cold tier 'x'", &["remove", "x"]),
    ] {
        stage.fails(code, says, &[&["tier"], arguments].concat());
    }
    let theirs = ["-r", "other", "--key-file", "other.key", "tier", "add", "mine", "cold"];
    stage.fails(1, "another repository", &theirs);
    stage.fails(2, "NAME=FILE", &["--tier-secret", "deep", "tier", "list"]);
    assert!(!stage.path("r/cold").exists());
}
