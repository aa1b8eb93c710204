//! Keys: passphrases, key files, writers; and that no secret gets out.

use crate::stage::{Stage, disk, finish};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

const PASSPHRASE: &str = "correct horse battery";

/// A repository that opens with a passphrase in the file `pass`.
fn by_passphrase() -> Stage {
    let stage = Stage::new();
    stage.write("pass", format!("{PASSPHRASE}\n").as_bytes());
    stage.ok(&["--password-file", "pass", "init", "--label", "first"]);
    stage
}

#[test]
fn a_passphrase_opens_and_another_does_not() {
    let stage = by_passphrase();
    stage.ok(&["--password-file", "pass", "snapshots"]);
    stage.write("wrong", b"incorrect\n");
    stage.fails(1, "opens no key slot", &["--password-file", "wrong", "snapshots"]);
    stage.write("key", format!("coffer-key-1:{}\n", "ab".repeat(32)).as_bytes());
    stage.fails(1, "opens no key slot", &["snapshots"]);
    stage.write("key", b"gibberish\n");
    stage.fails(1, "not a key file", &["snapshots"]);
}

#[test]
fn keys_come_and_go_but_for_the_last() {
    let stage = by_passphrase();
    let run =
        stage.run(&["--password-file", "pass", "key", "add", "--new-key-file", "key", "--label", "vault", "--json"]);
    assert_eq!(run.code, 0, "{run:?}");
    let added: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(added["key_file"], "key");
    assert_eq!(std::fs::metadata(stage.path("key")).unwrap().permissions().mode() & 0o777, 0o600);

    // From here on the environment names the new key file.
    let listed = stage.json(0, &["key", "list"]);
    let keys = listed["keys"].as_array().unwrap();
    let labelled = |label: &str| keys.iter().find(|key| key["label"] == label).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(labelled("first")["kind"], "passphrase");
    assert_eq!(labelled("vault")["kind"], "key file");
    assert_eq!(labelled("vault")["opens"], "everything");
    assert_eq!(labelled("vault")["id"], added["id"]);
    assert!(labelled("vault")["time_seconds"].is_u64());
    assert!(stage.ok(&["key", "list"]).contains("vault"));

    stage.ok(&["key", "remove", labelled("first")["id"].as_str().unwrap()]);
    stage.fails(1, "opens no key slot", &["--password-file", "pass", "snapshots"]);
    stage.fails(1, "use another key", &["key", "remove", added["id"].as_str().unwrap()]);
    stage.fails(1, "no key slot", &["key", "remove", &"0".repeat(32)]);
    stage.fails(2, "SlotId", &["key", "remove", "vault"]);

    stage.write("new", b"another passphrase\n");
    stage.ok(&["key", "add", "--new-password-file", "new"]);
    stage.ok(&["--password-file", "new", "snapshots"]);
}

#[test]
fn a_rotation_names_who_is_behind_and_status_what_is_left() {
    let stage = Stage::with_repository();
    stage.write("disk.raw", &disk(1));
    stage.ok(&["backup", "-w", "web", "disk.raw"]);
    stage.ok(&["key", "add", "--new-key-file", "vault", "--label", "vault"]);
    stage.ok(&["key", "export-writer", "--new-key-file", "writer", "--label", "mover"]);
    let said = stage.ok(&["key", "rotate"]);
    assert!(said.contains("epoch 2 began") && said.contains("'vault'") && !said.contains("mover"), "{said}");
    let status = stage.json(0, &["key", "status"]);
    assert_eq!((&status["epoch"], &status["left"]["packs"]), (&2.into(), &1.into()), "{status}");
    assert_eq!((status["unfinished"].is_null(), &status["behind"][0]["label"]), (true, &"vault".into()), "{status}");
    assert!(stage.ok(&["key", "status"]).contains("left: 1 packs"));
    let listed = stage.json(0, &["key", "list"]);
    let of = |label: &str| listed["keys"].as_array().unwrap().iter().find(|key| key["label"] == label).unwrap().clone();
    assert_eq!((&of("vault")["epoch"], &of("vault")["is_behind"]), (&1.into(), &true.into()));
    assert_eq!(of("mover")["is_behind"], false);
    stage.fails(1, "before data-key epoch 2", &["--key-file", "vault", "gc"]);
    stage.fails(1, "writer's", &["--key-file", "writer", "key", "rotate"]);

    let done = stage.json(0, &["gc", "--rotate"]);
    assert_eq!(done["rotated"]["packs"], 1, "{done}");
    assert!(stage.ok(&["key", "status"]).contains("everything is sealed to the key of epoch 2"));
    stage.ok(&["restore", "web@latest", "--to", "out.raw", "--verify"]);
    assert!(stage.read("out.raw") == disk(1));
}

#[test]
fn a_key_file_replaces_nothing_and_does_not_outlive_a_failure() {
    let stage = Stage::with_repository();
    let key = stage.read("key");
    stage.fails(1, "never replaces", &["key", "add", "--new-key-file", "key"]);
    assert_eq!(stage.read("key"), key);
    stage.fails(1, "holds a repository already", &["init", "--new-key-file", "other"]);
    assert!(!stage.path("other").exists());
    let long = "x".repeat(70_000);
    stage.fails(1, "shorter label", &["key", "add", "--new-key-file", "other", "--label", &long]);
    assert!(!stage.path("other").exists());
}

#[test]
fn a_writer_adds_points_and_does_no_more() {
    let stage = Stage::with_repository();
    let exported = stage.json(0, &["key", "export-writer", "--new-key-file", "writer", "--label", "mover 1"]);
    assert_eq!(exported["opens"], "writing");
    stage.write("disk.raw", &disk(1));
    let as_writer = |arguments: &[&str]| stage.run(&[&["--key-file", "writer"], arguments].concat());
    let made = as_writer(&["backup", "-w", "web", "disk.raw"]);
    assert_eq!(made.code, 0, "{made:?}");
    assert_eq!(as_writer(&["snapshots"]).code, 0);
    for refused in [
        &["forget", "web@latest"][..],
        &["forget", "--keep-last", "1"],
        &["protect", "web@latest"],
        &["unprotect", "web@latest"],
        &["restore", "web@latest", "--to", "out.raw"],
        &["gc"],
        &["key", "add", "--new-key-file", "other"],
        &["key", "remove", exported["id"].as_str().unwrap()],
    ] {
        let run = as_writer(refused);
        assert!(run.code == 1 && run.stderr.contains("writer's"), "{refused:?}: {run:?}");
    }
    stage.ok(&["restore", "web@latest", "--to", "full.raw", "--verify"]);
    assert!(stage.read("full.raw") == disk(1));
}

#[test]
fn what_a_killed_writer_left_is_known_and_relied_on_when_told_to() {
    let stage = Stage::with_repository();
    stage.ok(&["key", "export-writer", "--new-key-file", "writer"]);
    stage.write("disk.raw", &disk(1));
    stage.ok(&["--key-file", "writer", "backup", "-w", "web", "disk.raw"]);
    std::fs::remove_dir_all(stage.path("r/snapshots")).unwrap();
    // Its packs and deltas are there, and no claim that would tell of its certificate.
    let all = stage.json(0, &["backup", "-w", "web", "disk.raw", "--dedup-scope", "all", "--dry-run"]);
    assert_eq!((&all["new_bytes"], &all["warnings"]), (&serde_json::json!(0), &serde_json::json!([])));
    let trusted = stage.json(0, &["backup", "-w", "web", "disk.raw"]);
    assert_eq!(trusted["new_bytes"].as_u64().unwrap(), (2 << 20) + 4096);
}

/// `script` gives the program a terminal; what is typed there comes from a file.
fn on_a_terminal(stage: &Stage, typed: &str, arguments: &str) -> (i32, String) {
    stage.write("typed", typed.as_bytes());
    let command = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_coffer"));
    let mut script =
        stage.outside("script", &["--quiet", "--return", "--echo", "never", "--command", &command, "/dev/null"]);
    let run = finish(script.stdin(Stdio::from(std::fs::File::open(stage.path("typed")).unwrap())));
    (run.code, run.text())
}

#[test]
fn a_passphrase_is_asked_for_on_the_terminal_and_never_shown() {
    let stage = Stage::new();
    let (code, shown) = on_a_terminal(&stage, "one two\nthree\n", "init");
    assert!(code == 1 && shown.contains("differ"), "{code}: {shown}");
    assert!(!stage.path("r").exists());
    let (code, shown) = on_a_terminal(&stage, "one two\none two\n", "init");
    assert!(code == 0 && shown.contains("New passphrase") && shown.contains("Made repository"), "{code}: {shown}");
    assert!(!shown.contains("one two"), "{shown}");
    let (code, shown) = on_a_terminal(&stage, "one two\n", "snapshots");
    assert!(code == 0 && shown.contains("no points yet"), "{code}: {shown}");
    // Nobody is asked for what could not be opened anyway.
    let (code, shown) = on_a_terminal(&stage, "", "-r nowhere snapshots");
    assert!(code == 1 && shown.contains("there is no repository") && !shown.contains("assphrase"), "{code}: {shown}");
}

#[test]
fn without_a_terminal_the_ways_to_give_a_passphrase_are_named() {
    let stage = by_passphrase();
    // A session of its own has no terminal.
    let mut alone = stage.outside("setsid", &["--wait", env!("CARGO_BIN_EXE_coffer"), "snapshots"]);
    let run = finish(&mut alone);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("--password-file") && run.stderr.contains("COFFER_PASSWORD_FILE"), "{run:?}");
}

#[test]
fn secrets_show_neither_in_output_nor_in_the_process() {
    let stage = by_passphrase();
    let pass = ["--password-file", "pass"];
    let mut said = String::new();
    for arguments in [
        &["snapshots"][..],
        &["key", "list", "--json"],
        &["key", "add", "--new-key-file", "new"],
        &["show", "web@latest"],
    ] {
        let run = stage.run(&[&pass[..], arguments].concat());
        said += &(run.text() + &run.stderr);
    }
    let mut running = stage.start(&[&pass[..], &["backup", "-w", "web", "-"]].concat(), Stdio::piped());
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{}/{file}", running.child().id())).unwrap();
        said += &String::from_utf8_lossy(&bytes);
    }
    drop(running.child().stdin.take());
    running.end();
    assert!(!said.contains(PASSPHRASE), "{said}");
    let key = String::from_utf8(stage.read("new")).unwrap();
    assert!(!said.contains(key.trim_end().strip_prefix("coffer-key-1:").unwrap()), "{said}");
}
