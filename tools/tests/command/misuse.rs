//! What goes wrong: each with its exit code, a line that says so, and nothing on standard output.

use crate::stage::{Stage, disk, noise};
use std::process::Stdio;

#[test]
fn wrong_use_is_told_from_failure() {
    let stage = Stage::with_repository();
    stage.write("a.raw", &noise(1, 4096));
    stage.ok(&["backup", "-w", "web", "a.raw", "b=a.raw"]);
    stage.write("here.raw", b"x");
    std::fs::create_dir(stage.path("empty")).unwrap();
    for (code, says, arguments) in [
        (2, "Usage", &["frobnicate"][..]),
        (2, "Usage", &["backup", "a.raw"]),
        (2, "--cache-size", &["mount", "empty", "--cache-size", "lots"]),
        (2, "nor unix:PATH", &["serve", "nbd", "--listen", "here", "web@latest"]),
        (2, "image format", &["restore", "web@latest", "--to", "x", "--format", "zip"]),
        (2, "WORKLOAD@latest", &["show", "web@yesterday"]),
        (2, "WORKLOAD@latest", &["show", "what"]),
        (2, "knows paths, nbd://", &["fork", "hydrate", "lab", "--to", "s3://bucket/x"]),
        (2, "never ends", &["fork", "hydrate", "lab", "--to", "x", "--max-rate", "0"]),
        (2, "several disks", &["restore", "web@latest", "--to", "out.raw"]),
        (2, "without :DISK", &["forget", "web@latest:a"]),
        (2, "without :DISK", &["protect", "web@latest:a"]),
        (2, "WORKLOAD@latest", &["unprotect", "what"]),
        (2, "Usage", &["protect"]),
        (2, "which points", &["forget"]),
        (2, "which points", &["forget", "--dry-run"]),
        (2, "without rules", &["forget", "--keep-last", "1", "web@latest"]),
        (2, "--keep-last", &["forget", "web@latest", "--allow-empty"]),
        (2, "--keep-last", &["forget", "web@latest", "--tag", "a"]),
        (2, "'unlimited'", &["forget", "--keep-last", "-2"]),
        (2, "2y5m7d3h", &["forget", "--keep-within", "1w"]),
        (2, "standard output", &["restore", "web@latest:a", "--to", "-", "--json"]),
        (2, "both", &["--password-file", "a", "--key-file", "b", "snapshots"]),
        (1, "the nearest workloads are: web", &["show", "wbe@latest"]),
        (1, "the nearest workloads are: web", &["snapshots", "wbe"]),
        (1, "the nearest workloads are: web", &["forget", "--keep-last", "1", "wbe"]),
        (1, "none of the points of 'web' (1)", &["forget", "--keep-last", "0"]),
        (1, "--allow-empty", &["forget", "--keep-tag", "nightly", "web", "--dry-run"]),
        (1, "it has: a, b", &["restore", "web@latest:c", "--to", "out.raw"]),
        (1, "no web@-5", &["show", "web@-5"]),
        (1, "nowhere.raw", &["backup", "-w", "web", "nowhere.raw"]),
        (1, "'libvirt:'", &["backup", "-w", "web", "libvirt:web"]),
        (1, "two disks are called 'a'", &["backup", "-w", "web", "a.raw", "a=a.raw"]),
        (1, "cannot name a workload", &["backup", "-w", "we:b", "a.raw"]),
        (1, "--force", &["restore", "web@latest:a", "--to", "here.raw"]),
        (1, "not in this version", &["restore", "web@latest:a/1/etc/passwd", "--to", "out.raw"]),
        (1, "s3://", &["-r", "s3://bucket/prefix", "snapshots"]),
        (1, "there is no repository", &["-r", "nowhere", "snapshots"]),
        (1, "not a Coffer repository", &["-r", "empty", "snapshots"]),
        (1, "not a directory", &["-r", "here.raw", "snapshots"]),
        (1, "no-such-key", &["--key-file", "no-such-key", "snapshots"]),
        (1, "holds a repository already", &["init"]),
        (1, "not empty", &["-r", ".", "init"]),
    ] {
        stage.fails(code, says, arguments);
    }
}

#[test]
fn nothing_named_is_asked_for() {
    let stage = Stage::new();
    let run = crate::stage::finish(stage.command(&["snapshots"]).env_remove("COFFER_REPOSITORY"));
    assert!(run.code == 2 && run.stderr.contains("which repository"), "{run:?}");
}

#[test]
fn a_repository_may_begin_beside_lost_and_found() {
    let stage = Stage::new();
    std::fs::create_dir_all(stage.path("r/lost+found")).unwrap();
    let made = stage.json(0, &["init", "--new-key-file", "key"]);
    assert_eq!(made["id"].as_str().unwrap().len(), 32);
    assert_eq!(made["location"], "r");
    stage.ok(&["snapshots"]);
}

#[test]
fn a_newer_format_and_a_damaged_descriptor_are_told_apart() {
    let stage = Stage::with_repository();
    let good = stage.read("r/repo");
    let mut newer = good.clone();
    newer[8] += 1;
    std::fs::remove_file(stage.path("r/repo")).unwrap();
    stage.write("r/repo", &newer);
    stage.fails(1, "use a newer coffer", &["snapshots"]);
    let mut damaged = good;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    stage.write("r/repo", &damaged);
    stage.fails(1, "the descriptor is damaged", &["snapshots"]);
}

#[test]
fn a_damaged_point_is_warned_of_and_hides_no_other() {
    let stage = Stage::with_repository();
    let first = stage.back_up(&disk(1));
    stage.back_up(&disk(2));
    let id = first["snapshot"]["id"].as_str().unwrap();
    let claim = stage.objects().into_keys().find(|p| p.ends_with("claim") && p.to_string_lossy().contains(id)).unwrap();
    std::fs::write(&claim, b"not a claim").unwrap();
    let listed = stage.json(3, &["snapshots"]);
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 1);
    assert!(listed["warnings"][0].as_str().unwrap().contains(id), "{listed}");
}

#[test]
fn a_configuration_file_names_what_is_not_said_otherwise() {
    let stage = Stage::new();
    stage.ok(&["-r", "other", "init", "--new-key-file", "their-key"]);
    std::fs::create_dir_all(stage.path(".config/coffer")).unwrap();
    stage.write(".config/coffer/config.toml", b"repository = 'other'\nkey-file = 'their-key'\n");
    let from_file = crate::stage::finish(stage.command(&["snapshots"]).env_remove("COFFER_REPOSITORY"));
    assert_eq!(from_file.code, 0, "{from_file:?}");
    // The environment comes first: there is no repository r.
    stage.fails(1, "there is no repository", &["snapshots"]);
    stage.write(".config/coffer/config.toml", b"password = 'secret'\n");
    stage.fails(2, "'password' is not known", &["snapshots"]);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let stage = Stage::with_repository();
    for arguments in [&["completions", "bash"][..], &["snapshots"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = stage.command(arguments).stdout(Stdio::from(writer)).stderr(Stdio::piped()).output().unwrap();
        assert!(run.status.success() && run.stderr.is_empty(), "{arguments:?}: {run:?}");
    }
}

#[test]
fn shells_and_man_get_what_they_need() {
    let stage = Stage::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(stage.ok(&["completions", shell]).contains("snapshots"), "{shell}");
    }
    stage.ok(&["manpages", "man"]);
    for page in ["coffer.1", "coffer-backup.1", "coffer-serve-nbd.1", "coffer-key-export-writer.1"] {
        assert!(stage.read(&format!("man/{page}")).starts_with(b".ie"), "{page}");
    }
}
