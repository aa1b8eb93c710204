//! `coffer probe`, and what `init` finds out.

use crate::stage::Stage;

#[test]
fn a_folder_is_probed_when_it_is_made_and_when_asked() {
    let stage = Stage::new();
    let made = stage.json(0, &["init", "--new-key-file", "key"]);
    assert_eq!(made["store_class"], "strong", "{made}");
    let found = stage.json(0, &["probe", "--rounds", "5"]);
    assert_eq!(
        (&found["class"], &found["recorded"], &found["rounds"]),
        (&"strong".into(), &"strong".into(), &5.into())
    );
    let promises = found["promises"].as_array().unwrap();
    assert_eq!(promises.len(), 5);
    assert!(promises.iter().all(|promise| promise["broken_rounds"] == 0), "{found}");
    let text = stage.ok(&["probe", "--rounds", "3", "--racers", "2"]);
    for says in ["put-if-absent", "list after delete", "kept", "class      strong", "recorded   strong"] {
        assert!(text.contains(says), "{text}");
    }
    assert!(!stage.path("r/probe").exists());
    assert_eq!(stage.json(0, &["stats"])["store_class"], "strong");
    // A folder that is no repository is tried and left as it was.
    std::fs::create_dir(stage.path("empty")).unwrap();
    let found = stage.json(0, &["-r", "empty", "probe", "--rounds", "3"]);
    assert_eq!((&found["class"], &found["recorded"]), (&"strong".into(), &serde_json::Value::Null));
    let left: Vec<_> = std::fs::read_dir(stage.path("empty")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "tmp"), "{left:?}");
    stage.fails(1, "there is no repository", &["-r", "nowhere", "probe"]);
    stage.fails(2, "3..", &["probe", "--rounds", "1"]);
}

/// What an earlier probe found goes on to count.
#[test]
fn a_weaker_finding_stays_and_gc_says_why_it_does_not_collect() {
    let stage = Stage::with_repository();
    stage.write("r/features/rocompat-store-lagging", b"");
    let found = stage.json(0, &["probe", "--rounds", "3"]);
    assert_eq!((&found["class"], &found["recorded"]), (&"strong".into(), &"lagging".into()));
    let text = stage.ok(&["probe", "--rounds", "3"]);
    assert!(text.contains("recorded   lagging, by an earlier probe"), "{text}");
    stage.write("disk.raw", &[7; 100_000]);
    stage.ok(&["backup", "-w", "web", "disk.raw"]);
    stage.fails(1, "of the class 'lagging'", &["gc"]);
    stage.ok(&["gc", "--dry-run"]);
    stage.fails(1, "'lagging'", &["key", "rotate"]);
    stage.ok(&["restore", "web@latest", "--to", "restored.raw"]);
    assert_eq!(stage.read("restored.raw"), stage.read("disk.raw"));
}

/// A backup that was committed and revoked in the same instant, where there is no put-if-absent.
#[test]
fn a_backup_that_nobody_decides_is_named_and_ended() {
    let stage = Stage::with_repository();
    stage.write("r/features/rocompat-store-overwriting", b"");
    stage.write("disk.raw", &[7; 100_000]);
    let made = stage.json(0, &["backup", "-w", "web", "disk.raw"]);
    let id = made["snapshot"]["id"].as_str().unwrap();
    let folder = |entry: std::fs::DirEntry| std::fs::read_dir(entry.path()).unwrap().next().unwrap().unwrap().path();
    let claim =
        std::fs::read_dir(stage.path("r/snapshots")).unwrap().map(|entry| folder(entry.unwrap())).next().unwrap();
    assert!(claim.join("intent").exists());
    // As far as whoever looks knows, somebody has revoked it, and its writer has not decided.
    std::fs::rename(claim.join("decision"), claim.join("revoke")).unwrap();
    let report = stage.json(3, &["gc", "--dead-after", "0"]);
    assert_eq!(report["contested"], serde_json::json!([id]), "{report}");
    assert!(stage.path("r/packs").exists());
    stage.fails(1, "there is no backup beef", &["forget", "--undecided", "beef"]);
    stage.fails(2, "--undecided", &["forget", "--undecided", id, "web@latest"]);
    stage.ok(&["forget", "--undecided", id, "--dry-run"]);
    assert_eq!(stage.json(0, &["forget", "--undecided", id])["ended"], id);
    stage.ok(&["gc", "--dead-after", "0"]);
    assert!(!stage.path("r/packs").exists());
}
