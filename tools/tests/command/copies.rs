//! Copies of points in another repository.

use crate::stage::{Stage, disk, noise};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A stage with a repository, and another one `there`, which the key file `there.key` opens.
fn two() -> Stage {
    let stage = Stage::with_repository();
    stage.ok(&["-r", "there", "init", "--new-key-file", "there.key"]);
    stage
}

const TO: [&str; 5] = ["copy", "--to", "there", "--to-key-file", "there.key"];

fn copy(stage: &Stage, arguments: &[&str]) -> Value {
    stage.json(0, &[&TO, arguments].concat())
}

/// The program, used on the repository that was copied to.
fn there<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["-r", "there", "--key-file", "there.key"], arguments].concat()
}

fn points(stage: &Stage) -> Vec<Value> {
    stage.json(0, &there(&["snapshots"]))["snapshots"].as_array().unwrap().clone()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
            }
        }
    }
    found
}

#[test]
fn a_mirror_has_every_point_once_under_its_own_name() {
    let stage = two();
    let first = stage.back_up(&disk(1));
    let mut bytes = disk(1);
    bytes[2 << 20..(2 << 20) + 5000].copy_from_slice(&noise(9, 5000));
    let second = stage.back_up(&bytes);
    stage.ok(&["backup", "-w", "db", "disk.raw", "--tag", "monthly"]);
    stage.ok(&["protect", "web@-1", "--reason", "audit"]);

    let dry = stage.ok(&[&TO[..], &["--dry-run"]].concat());
    assert!(dry.contains("would copy 3 of 3 points") && dry.contains("db@"), "{dry}");
    assert_eq!(points(&stage).len(), 0);
    let done = copy(&stage, &["--verify"]);
    let made = done["copied"].as_array().unwrap();
    assert_eq!(
        (made.len(), &done["wanted"], &done["skipped"], &done["protected"]),
        (3, &3.into(), &0.into(), &1.into())
    );
    let of = |id: &Value| made.iter().find(|made| made["original"] == *id).unwrap();
    assert_eq!(of(&first["snapshot"]["id"])["base"], Value::Null);
    let increment = of(&second["snapshot"]["id"]);
    assert_eq!((&increment["base"], &increment["verified"]), (&first["snapshot"]["id"], &true.into()));
    assert!(increment["snapshot"]["read"].as_u64().unwrap() < 1 << 20, "{done}");

    let (mut originals, mut copies) =
        (stage.json(0, &["snapshots"])["snapshots"].as_array().unwrap().clone(), points(&stage));
    // Points of one second are in no order.
    for points in [&mut originals, &mut copies] {
        points.sort_by_key(|point| (point["workload"].to_string(), point["time_seconds"].as_u64()));
    }
    let same = ["workload", "time", "tags", "host", "user", "program", "size", "disks", "protected"];
    for (original, copy) in originals.iter().zip(&copies) {
        same.iter().for_each(|key| assert_eq!(original[key], copy[key], "{key}"));
        assert_eq!((&original["origin"], &copy["origin"]["snapshot"]), (&Value::Null, &original["id"]));
        let (name, out) = (format!("{}@{}", copy["workload"], copy["time"]).replace('"', ""), "out.raw");
        stage.ok(&["restore", &name, "--to", out, "--force"]);
        let due = stage.read(out);
        stage.ok(&there(&["restore", &name, "--to", out, "--force"]));
        assert!(stage.read(out) == due, "{name}");
    }
    assert_eq!(copies[1]["protections"][0]["reason"], "audit");
    let shown = stage.ok(&there(&["show", "web@-1"]));
    assert!(shown.contains("copy of") && shown.contains(first["snapshot"]["id"].as_str().unwrap()), "{shown}");
    stage.ok(&there(&["verify", "--data", "all", "--no-record"]));

    // Again there is nothing to be done, and nothing is.
    let (here, before) = (stage.objects(), files(&stage.path("there")));
    let again = copy(&stage, &[]);
    assert_eq!(
        (&again["copied"], &again["skipped"], &again["protected"]),
        (&Vec::<Value>::new().into(), &3.into(), &0.into())
    );
    assert!(stage.objects() == here && files(&stage.path("there")) == before);
    // What is forgotten here stays there.
    stage.ok(&["forget", "db@latest"]);
    stage.back_up(&disk(4));
    let done = copy(&stage, &[]);
    assert_eq!((done["copied"].as_array().unwrap().len(), points(&stage).len()), (1, 4));
    // And comes back from there, as itself.
    let back = stage.json(0, &there(&["copy", "--to", "r", "--to-key-file", "key"]));
    assert_eq!((&back["copied"][0]["snapshot"]["workload"], &back["skipped"]), (&"db".into(), &3.into()));
    assert_eq!(back["copied"][0]["snapshot"]["origin"]["snapshot"], originals[0]["id"]);
    assert_eq!(copy(&stage, &[])["copied"], Value::Array(Vec::new()));
}

#[test]
fn points_are_chosen_by_name_workload_and_age() {
    let stage = two();
    for seed in 1..4 {
        stage.back_up(&noise(seed, 40_000));
        stage.ok(&["backup", "-w", "db", "disk.raw"]);
    }
    let would = |arguments: &[&str]| {
        let due = copy(&stage, &[arguments, &["--dry-run"]].concat())["due"].clone();
        let time = |point: &Value| format!("{} {}", point["workload"], point["time_seconds"]);
        due.as_array().unwrap().iter().map(time).collect::<Vec<_>>()
    };
    let all = would(&[]);
    assert_eq!(all.len(), 6);
    assert_eq!(would(&["web@latest", "web@latest", "db@-2"]).len(), 2);
    assert_eq!(would(&["-w", "db"]).len(), 3);
    assert_eq!(would(&["-w", "db", "-w", "web", "--last", "1"]).len(), 2);
    assert_eq!(would(&["--last", "2"]).len(), 4);
    assert_eq!(would(&["--since", "1d"]), all);
    assert_eq!(would(&["--since", "9000-01-01T00-00-00Z"]).len(), 0);
    assert_eq!(copy(&stage, &["web@-1"])["copied"].as_array().unwrap().len(), 1);
    // The one before and the one after build on it.
    let done = copy(&stage, &["-w", "web"]);
    let id = stage.json(0, &["show", "web@-1"])["id"].clone();
    assert!(done["copied"].as_array().unwrap().iter().all(|made| made["base"] == id), "{done}");
    assert_eq!(would(&["--last", "1"]).len(), 1);
}

#[test]
fn a_writers_key_is_enough_there_and_protects_nothing() {
    let stage = two();
    stage.back_up(&disk(1));
    stage.ok(&["protect", "web@latest"]);
    stage.ok(&there(&["key", "export-writer", "--new-key-file", "writer.key"]));
    let to = ["copy", "--to", "there", "--to-key-file", "writer.key"];
    stage.fails(1, "read back what was copied", &[&to[..], &["--verify"]].concat());
    let done = stage.json(3, &to);
    assert_eq!((done["copied"].as_array().unwrap().len(), &done["protected"]), (1, &0.into()));
    assert!(done["warnings"][0].as_str().unwrap().contains("not protected"), "{done}");
    stage.ok(&there(&["restore", "web@latest", "--to", "out.raw"]));
    assert!(stage.read("out.raw") == disk(1));
    // Somebody who may does it later.
    assert_eq!(copy(&stage, &[])["protected"], 1);
    // What is to be copied has to be read.
    stage.ok(&["key", "export-writer", "--new-key-file", "here.key"]);
    let from = ["--key-file", "here.key", "copy", "--to", "there", "--to-key-file", "there.key"];
    stage.fails(1, "read what is to be copied", &from);
}

#[test]
fn the_environment_opens_the_destination_and_bad_input_is_named() {
    let stage = two();
    stage.back_up(&disk(1));
    stage.write("wrong", b"nobody's passphrase\n");
    std::fs::create_dir(stage.path("empty")).unwrap();
    for (code, says, arguments) in [
        (2, "Usage", &["copy"][..]),
        (2, "cannot be used with", &["copy", "--to", "there", "web@latest", "--last", "1"]),
        (2, "cannot be used with", &["copy", "--to", "there", "--to-key-file", "a", "--to-password-file", "b"]),
        (2, "--last", &["copy", "--to", "there", "--last", "0"]),
        (2, "without :DISK", &["copy", "--to", "there", "web@latest:disk"]),
        (2, "--max-rate", &["copy", "--to", "there", "--max-rate", "lots"]),
        (1, "--to-key-file", &["copy", "--to", "there"]),
        (1, "there", &["copy", "--to", "there", "--to-password-file", "wrong"]),
        (1, "'coffer init' makes one", &["copy", "--to", "nowhere"]),
        (1, "'coffer init' makes one", &["copy", "--to", "empty"]),
        (1, "one repository", &["copy", "--to", "r"]),
        (1, "s3://", &["copy", "--to", "s3://bucket/x"]),
        (1, "the nearest workloads are: web", &["copy", "--to", "there", "--to-key-file", "there.key", "-w", "wbe"]),
        (1, "no web@-5", &["copy", "--to", "there", "--to-key-file", "there.key", "web@-5"]),
    ] {
        stage.fails(code, says, arguments);
    }
    assert_eq!(points(&stage).len(), 0);
    let mut command = stage.command(&["copy", "--to", "there"]);
    let run = crate::stage::finish(command.env("COFFER_TO_KEY_FILE", "there.key"));
    assert_eq!((run.code, points(&stage).len()), (0, 1), "{run:?}");
    let mut both = stage.command(&["copy", "--to", "there"]);
    let run = crate::stage::finish(both.env("COFFER_TO_KEY_FILE", "there.key").env("COFFER_TO_PASSWORD_FILE", "wrong"));
    assert!(run.code == 2 && run.stderr.contains("both"), "{run:?}");
}

#[test]
fn a_damaged_point_is_left_out_and_named_or_copied_in_part() {
    let stage = Stage::new();
    stage.ok(&["init", "--new-key-file", "key", "--parity", "off"]);
    stage.ok(&["-r", "there", "init", "--new-key-file", "there.key"]);
    stage.back_up(&noise(1, 3 << 20));
    let packs = files(&stage.path("r/packs"));
    stage.ok(&["backup", "-w", "db", "disk.raw"]);
    let second = noise(2, 3 << 20);
    stage.back_up(&second);
    let (pack, bytes) = packs.iter().next().unwrap();
    let mut hurt = bytes.clone();
    hurt[bytes.len() / 2] ^= 1;
    std::fs::set_permissions(pack, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(pack, &hurt).unwrap();

    let done = stage.json(3, &TO);
    assert_eq!((done["copied"].as_array().unwrap().len(), done["damaged"].as_array().unwrap().len()), (1, 2), "{done}");
    let warned = done["warnings"].to_string();
    assert!(warned.contains("is damaged and was not copied") && warned.contains("packs/"), "{done}");
    stage.ok(&there(&["restore", "web@latest", "--to", "out.raw"]));
    assert!(stage.read("out.raw") == second);

    let done = stage.json(3, &[&TO[..], &["--keep-going", "--verify"]].concat());
    let made = done["copied"].as_array().unwrap();
    assert!(made.len() == 2 && done["damaged"].as_array().unwrap().is_empty(), "{done}");
    let lost = made[0]["lost"]["disk"]["bytes"].as_u64().unwrap();
    assert!((4096..=256 << 10).contains(&lost), "{done}");
    assert_eq!(made[0]["snapshot"]["disks"][0]["unreadable"], lost);
    stage.fails(1, "could not be read", &there(&["restore", "web@-1", "--to", "part.raw"]));
    stage.json(3, &there(&["restore", "web@-1", "--to", "part.raw", "--keep-going"]));
    let (whole, part) = (noise(1, 3 << 20), stage.read("part.raw"));
    assert_eq!(whole.iter().zip(&part).filter(|(a, b)| a != b && **b != 0).count(), 0);
    // Healed, it is said how to have the copy whole.
    std::fs::write(pack, bytes).unwrap();
    let again = stage.json(3, &TO);
    assert!(again["warnings"].to_string().contains("forget it there"), "{again}");
    stage.ok(&there(&["forget", "web@-1", "db@latest"]));
    let done = copy(&stage, &["--verify"]);
    assert_eq!(done["copied"].as_array().unwrap().len(), 2);
    stage.ok(&there(&["restore", "web@-1", "--to", "out.raw", "--force"]));
    assert!(stage.read("out.raw") == whole);
}
