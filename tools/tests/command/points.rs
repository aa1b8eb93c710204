//! Points: made, listed, shown, restored, forgotten.

use crate::stage::{Stage, disk, finish, noise};
use rustix::process::Signal;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

#[test]
fn a_disk_comes_back_as_it_was_in_every_form() {
    let stage = Stage::with_repository();
    let bytes = disk(1);
    let made = stage.back_up(&bytes);
    assert_eq!(made["snapshot"]["workload"], "web");
    assert_eq!(made["snapshot"]["size"], bytes.len());
    assert_eq!(made["snapshot"]["disks"][0]["name"], "disk");
    assert!(made["new_bytes"].as_u64().unwrap() >= 2 << 20, "{made}");
    assert!(made["stored_bytes"].as_u64().unwrap() >= 2 << 20, "{made}");
    assert!(made["duration_seconds"].is_number());
    assert_eq!(made["dry_run"], false);

    stage.ok(&["restore", "web@latest", "--to", "out.raw", "--verify"]);
    assert!(stage.read("out.raw") == bytes);
    let streamed = stage.run(&["restore", "web@latest:disk", "--to", "-"]);
    assert!(streamed.code == 0 && streamed.stdout == bytes);
    assert!(streamed.stderr.contains("restored web@"), "{}", streamed.stderr);

    let restored = stage.json(0, &["restore", "web@latest", "--to", "out.qcow2"]);
    assert_eq!(restored["disk"], "disk");
    assert_eq!(restored["size"], bytes.len());
    assert_eq!(restored["verified"], false);
    let compare = ["compare", "-f", "raw", "-F", "qcow2", "disk.raw", "out.qcow2"];
    let compared = finish(&mut stage.outside("qemu-img", &compare));
    assert_eq!(compared.code, 0, "{compared:?}");
}

#[test]
fn an_existing_target_is_kept_unless_forced() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.write("mine", b"precious");
    stage.fails(1, "--force", &["restore", "web@latest", "--to", "mine"]);
    assert_eq!(stage.read("mine"), b"precious");
    stage.ok(&["restore", "web@latest", "--to", "mine", "--force"]);
    assert!(stage.read("mine") == disk(1));
}

#[test]
fn what_is_stored_is_not_stored_again() {
    let stage = Stage::with_repository();
    let first = stage.back_up(&disk(1));
    let second = stage.back_up(&disk(1));
    assert_eq!(second["new_bytes"], 0);
    assert_eq!(second["reused"], (2 << 20) + 4096, "the last block counts as a whole one");
    assert_eq!(second["snapshot"]["parents"][0], first["snapshot"]["id"]);
    // Another workload has no parent, and yet nothing new: the index knows.
    let other = stage.json(0, &["backup", "-w", "db", "vda=disk.raw", "--tag", "monthly", "--tag", "kept"]);
    assert_eq!(other["new_bytes"], 0);
    assert_eq!(other["snapshot"]["parents"].as_array().unwrap().len(), 0);
    assert_eq!(other["snapshot"]["tags"][1], "kept");
    // Nor does a machine that knows nothing: it learns first.
    std::fs::remove_dir_all(stage.path(".cache")).unwrap();
    assert_eq!(stage.back_up(&disk(1))["new_bytes"], 0);
}

#[test]
fn an_index_that_is_damaged_is_made_again() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let mut damaged = 0;
    for repository in std::fs::read_dir(stage.path(".cache/coffer")).unwrap() {
        for file in std::fs::read_dir(repository.unwrap().path().join("index/db")).unwrap() {
            std::fs::write(file.unwrap().path(), b"damaged").unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    stage.write("disk.raw", &disk(1));
    let run = stage.run(&["backup", "-w", "web", "disk.raw", "--json"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("the index was unusable and is made again"), "{}", run.stderr);
    assert!(run.text().contains("\"new_bytes\":0"), "{}", run.text());
}

#[test]
fn a_dry_run_stores_nothing_and_teaches_the_index_nothing() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    let before = stage.objects();
    stage.write("disk.raw", &disk(7));
    let dry = stage.json(0, &["backup", "-w", "web", "disk.raw", "--dry-run"]);
    assert_eq!(dry["dry_run"], true);
    assert!(dry["snapshot"]["id"].is_null());
    assert!(dry["new_bytes"].as_u64().unwrap() >= 2 << 20, "{dry}");
    assert!(stage.objects() == before);
    let text = stage.ok(&["backup", "-w", "web", "disk.raw", "--dry-run"]);
    assert!(text.contains("nothing was stored"), "{text}");
    // What the dry run saw is new to the real one.
    assert_eq!(stage.json(0, &["backup", "-w", "web", "disk.raw"])["new_bytes"], dry["new_bytes"]);
}

#[test]
fn a_stream_becomes_a_disk() {
    let stage = Stage::with_repository();
    let bytes = disk(3);
    let mut running = stage.start(&["backup", "-w", "web", "vda=-"], Stdio::piped());
    running.child().stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(running.end().code(), Some(0));
    assert!(stage.run(&["restore", "web@latest:vda", "--to", "-"]).stdout == bytes);
}

#[test]
fn points_are_listed_and_shown_in_both_forms() {
    let stage = Stage::with_repository();
    assert_eq!(stage.ok(&["snapshots"]), "no points yet\n");
    stage.write("a.raw", &noise(1, 4096));
    stage.write("b.raw", &noise(2, 8192));
    let web = stage.json(0, &["backup", "-w", "web", "a.raw", "data=b.raw", "--tag", "first"]);
    stage.ok(&["backup", "-w", "db", "a.raw"]);

    let listed = stage.json(0, &["snapshots", "web"]);
    let [only] = listed["snapshots"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!(only["id"], web["snapshot"]["id"]);
    assert_eq!(only["disks"][1]["name"], "data");
    assert_eq!(only["disks"][1]["size"], 8192);
    let seconds = only["time_seconds"].as_u64().unwrap();
    assert!(seconds > 1_700_000_000 && only["time"].as_str().unwrap().ends_with('Z'), "{only}");
    let table = stage.ok(&["snapshots"]);
    assert!(table.starts_with("id ") && table.contains(" web ") && table.contains(" db "), "{table}");
    assert!(table.contains("a,data") && table.contains("first"), "{table}");

    let id = web["snapshot"]["id"].as_str().unwrap();
    let shown = stage.json(0, &["show", &id[..8]]);
    assert_eq!(shown["id"], id);
    assert_eq!(shown["tags"][0], "first");
    let shown = stage.ok(&["show", "web@latest:data"]);
    assert!(shown.contains(id) && shown.contains("data") && !shown.contains("\na "), "{shown}");
}

#[test]
fn forgotten_points_are_gone_and_their_neighbours_stay() {
    let stage = Stage::with_repository();
    let ids: Vec<String> =
        (1..4).map(|seed| stage.back_up(&noise(seed, 4096))["snapshot"]["id"].as_str().unwrap().to_owned()).collect();
    // One of them named twice is one.
    let forgotten = stage.json(0, &["forget", "web@-1", &ids[1], &ids[0]]);
    assert_eq!(forgotten["forgotten"].as_array().unwrap().len(), 2);
    let left = stage.json(0, &["snapshots"]);
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(left["snapshots"][0]["id"], ids[2].as_str());
    stage.fails(1, "no point", &["show", &ids[0]]);
    // One that is not found keeps the others from being forgotten.
    stage.fails(1, "no point", &["forget", "web@latest", &ids[0]]);
    assert_eq!(stage.json(0, &["snapshots"])["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn rules_and_names_of_points_do_not_mix() {
    let stage = Stage::with_repository();
    let made = stage.back_up(&noise(1, 4096));
    let id = made["snapshot"]["id"].as_str().unwrap();
    stage.fails(2, "is a point", &["forget", "--keep-last", "1", &id[..8]]);
    assert!(stage.ok(&["forget", id, "--dry-run"]).contains("1 point would be forgotten"));
    assert!(stage.ok(&["forget", "--keep-last", "unlimited"]).contains("web: 1 of 1 points stay"));
    assert_eq!(stage.json(0, &["snapshots"])["snapshots"].as_array().unwrap().len(), 1);
    assert_eq!(stage.json(0, &["forget", "--keep-last", "0", "--allow-empty"])["forgotten"][0]["id"], id);
    assert_eq!(stage.ok(&["snapshots"]), "no points yet\n");
    assert_eq!(stage.ok(&["forget", "--keep-last", "1"]), "no point is forgotten\n");
}

#[test]
fn protection_is_shown_and_ends() {
    let stage = Stage::with_repository();
    stage.write("a.raw", &noise(1, 4096));
    stage.ok(&["backup", "-w", "web", "a.raw", "--tag", "nightly,first"]);
    assert_eq!(stage.json(0, &["show", "web@latest"])["tags"], serde_json::json!(["nightly", "first"]));
    let made = stage.json(0, &["protect", "web@latest", "web@-0", "--reason", "audit of 2026"]);
    let [only] = made["protected"].as_array().unwrap().as_slice() else { panic!("{made}") };
    assert_eq!((&only["protected"], &only["protections"][0]["reason"]), (&true.into(), &"audit of 2026".into()));
    assert!(only["protections"][0]["time_seconds"].is_u64() && only["protections"][0]["note"].is_string(), "{only}");
    assert_eq!(stage.json(0, &["snapshots"])["snapshots"][0]["protections"], only["protections"]);
    let shown = stage.ok(&["show", "web@latest"]);
    assert!(shown.contains("protected audit of 2026 (since 20"), "{shown}");
    stage.fails(1, "is protected (audit of 2026); 'coffer unprotect web@", &["forget", "web@latest"]);
    stage.fails(1, "coffer unprotect", &["forget", "web@latest", "--dry-run"]);

    let ended = stage.json(0, &["unprotect", "web@latest"]);
    assert_eq!(ended["unprotected"][0]["id"], only["id"]);
    assert_eq!(stage.json(0, &["show", "web@latest"])["protected"], false);
    let again = stage.run(&["unprotect", "web@latest"]);
    assert!(again.code == 0 && again.stderr.contains("was not protected") && again.stdout.is_empty(), "{again:?}");
    assert!(stage.ok(&["forget", "web@latest"]).contains("'coffer gc' frees"));
}

#[test]
fn a_damaged_note_is_warned_of_and_keeps_points() {
    let stage = Stage::with_repository();
    stage.back_up(&noise(1, 4096));
    let made = stage.json(0, &["protect", "web@latest"]);
    let note = format!("r/notes/{}", made["protected"][0]["protections"][0]["note"].as_str().unwrap());
    std::fs::remove_file(stage.path(&note)).unwrap();
    stage.write(&note, b"damaged");
    let listed = stage.json(3, &["snapshots"]);
    assert!(listed["warnings"][0].as_str().unwrap().contains("may protect a point"), "{listed}");
    for forget in [&["forget", "web@latest"][..], &["forget", "--keep-last", "0", "--allow-empty", "--dry-run"]] {
        stage.fails(1, "a damaged note may protect a point", forget);
    }
    std::fs::remove_file(stage.path(&note)).unwrap();
    stage.ok(&["forget", "web@latest"]);
}

#[test]
fn what_could_not_be_read_is_named_and_never_passed_off_as_zeroes() {
    let stage = Stage::with_repository();
    let size = "get_size=echo 1048576";
    let pread = "pread=if [ $4 -lt 131072 ] && [ $(($4 + $3)) -gt 65536 ]; then echo EIO worn out >&2; exit 1; fi; \
                 head -c $3 /dev/zero | tr '\\0' x";
    let coffer = env!("CARGO_BIN_EXE_coffer");
    let within = |arguments: &str| {
        let run = format!("'{coffer}' {arguments} \"worn=$uri\"");
        finish(&mut stage.outside("nbdkit", &["-U", "-", "eval", size, pread, "--run", &run]))
    };
    let failed = within("backup -w web");
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(failed.stderr.contains("worn") && failed.stderr.contains("EIO"), "{failed:?}");

    let made = within("--json backup -w web --keep-going");
    assert_eq!(made.code, 3, "{made:?}");
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["unreadable"]["worn"]["bytes"], 65536);
    assert_eq!(made["unreadable"]["worn"]["ranges"][0], serde_json::json!([65536, 131_072]));
    assert!(made["warnings"][0].as_str().unwrap().contains("65536 to 131072"), "{made}");

    stage.fails(1, "could not be read", &["restore", "web@latest", "--to", "strict.raw"]);
    let restored = stage.json(3, &["restore", "web@latest", "--to", "lenient.raw", "--keep-going"]);
    assert_eq!(restored["unreadable"]["bytes"], 65536);
    let bytes = stage.read("lenient.raw");
    assert!(bytes[..65536].iter().all(|b| *b == b'x') && bytes[65536..131_072].iter().all(|b| *b == 0));
    assert!(bytes.len() == 1 << 20 && bytes[131_072..].iter().all(|b| *b == b'x'));
}

#[test]
fn the_first_signal_ends_a_backup_in_order_and_the_second_at_once() {
    let stage = Stage::with_repository();
    let waiting = || {
        let mut running = stage.start(&["backup", "-w", "web", "-"], Stdio::piped());
        let stdin = running.child().stdin.take().unwrap();
        // Once it has a session it is reading, or about to.
        while !stage.objects().keys().any(|path| path.starts_with(stage.path("r/sessions"))) {
            assert!(running.child().try_wait().unwrap().is_none(), "it ended early");
            std::thread::yield_now();
        }
        (running, stdin)
    };
    let (mut running, mut stdin) = waiting();
    stdin.write_all(&noise(1, 4096)).unwrap();
    running.signal(Signal::INT);
    running.line_with("stopping");
    // An interrupt ends the producer of a stream too. What came through is no disk.
    drop(stdin);
    running.line_with("stopped on request");
    assert_eq!(running.end().code(), Some(1));
    assert_eq!(stage.ok(&["snapshots"]), "no points yet\n");

    let (mut running, _stdin) = waiting();
    running.signal(Signal::TERM);
    running.line_with("stopping");
    running.signal(Signal::TERM);
    assert_eq!(running.end().signal(), Some(Signal::TERM.as_raw()));
}
