//! The laws of the rooms, checked against what Cargo and the files say: who uses whom (the list under "Arrows" in
//! `ARCHITECTURE.md`), who may name which outside crate, what rooms and files are called, how long and how headed
//! they are.
//!
//! Not here: laws that the compiler or clippy checks. What holds: every law is a pure function from what was read to
//! the breaches it finds, and has a test that shows it a breach.

use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

type Read<T> = Result<T, Box<dyn Error>>;

/// Outside crates that belong to some rooms only.
const RESERVED: [(&str, &[&str]); 5] = [
    ("rocksdb", &["repo"]),
    ("tokio", &["gateway", "iscsi", "repo"]),
    ("fuser", &["mount"]),
    ("opendal", &["repo"]),
    ("reqwest", &["repo"]),
];

/// Names that say nothing, for rooms and files alike.
const EMPTY_NAMES: [&str; 8] = ["common", "util", "utils", "helpers", "manager", "handler", "data", "info"];

/// Lines of a file before its tests, at most.
const LONGEST: usize = 800;

/// What a room's manifest says it uses, in normal, development and build dependencies alike.
#[derive(Clone, Debug, Default)]
struct Uses {
    rooms: Vec<String>,
    outside: Vec<String>,
}

/// Rooms by name.
type Rooms = BTreeMap<String, Uses>;

/// A line of the list of arrows.
#[derive(Debug, PartialEq, Eq)]
struct Arrow {
    room: String,
    /// `None`: all.
    may_use: Option<Vec<String>>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The last component of a path in Cargo's answer, which for a room's folder is the room's name.
fn folder(path: &Path) -> Read<String> {
    Ok(path.file_name().ok_or("a path without a name")?.to_str().ok_or("a path that is not UTF-8")?.to_owned())
}

/// The rooms as Cargo sees them.
fn rooms() -> Read<Rooms> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace())
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    rooms_of(&serde_json::from_slice(&output.stdout)?)
}

fn rooms_of(metadata: &Value) -> Read<Rooms> {
    let mut rooms = Rooms::new();
    for package in metadata["packages"].as_array().ok_or("no packages")? {
        let manifest = Path::new(package["manifest_path"].as_str().ok_or("a package without a manifest")?);
        let mut uses = Uses::default();
        for dependency in package["dependencies"].as_array().ok_or("a package without dependencies")? {
            match dependency["path"].as_str() {
                Some(path) => uses.rooms.push(folder(Path::new(path))?),
                None => uses.outside.push(dependency["name"].as_str().ok_or("a dependency without a name")?.to_owned()),
            }
        }
        uses.rooms.sort();
        uses.rooms.dedup();
        rooms.insert(folder(manifest.parent().ok_or("a manifest without a folder")?)?, uses);
    }
    Ok(rooms)
}

/// The list under "Arrows": lines `- room: (none)`, `- room: all` or `- room: room, room`.
fn arrows(architecture: &str) -> Read<Vec<Arrow>> {
    let section = architecture.split("\n## ").find_map(|section| section.strip_prefix("Arrows\n"));
    let lines = section.ok_or("ARCHITECTURE.md has no section \"## Arrows\"")?.lines();
    lines
        .filter_map(|line| line.strip_prefix("- "))
        .map(|line| {
            let (room, uses) = line.split_once(": ").ok_or_else(|| format!("an arrow without a colon: {line}"))?;
            let may_use = match uses {
                "all" => None,
                "(none)" => Some(Vec::new()),
                names => Some(names.split(", ").map(str::to_owned).collect()),
            };
            Ok(Arrow { room: room.to_owned(), may_use })
        })
        .collect()
}

/// Arrows that point up or sideways, rooms without a line, lines without a room, and uses that differ from their
/// line.
fn breaches_of_arrows(rooms: &Rooms, arrows: &[Arrow]) -> Vec<String> {
    let mut breaches = Vec::new();
    for (line, arrow) in arrows.iter().enumerate() {
        let below = |name: &String| arrows.iter().take(line).any(|arrow| arrow.room == *name);
        let Some(uses) = rooms.get(&arrow.room) else {
            breaches.push(format!("{} has a line and is no room", arrow.room));
            continue;
        };
        for used in uses.rooms.iter().filter(|used| !below(used)) {
            breaches.push(format!("{} uses {used}, which is not below it", arrow.room));
        }
        let Some(may_use) = &arrow.may_use else { continue };
        for used in uses.rooms.iter().filter(|used| !may_use.contains(used)) {
            breaches.push(format!("{} uses {used}, and its line does not say so", arrow.room));
        }
        for unused in may_use.iter().filter(|name| !uses.rooms.contains(name)) {
            breaches.push(format!("{} does not use {unused}, which its line names", arrow.room));
        }
    }
    let unlisted = rooms.keys().filter(|room| !arrows.iter().any(|arrow| arrow.room == **room));
    breaches.extend(unlisted.map(|room| format!("{room} is a room without a line")));
    breaches
}

/// Reserved outside crates in rooms that they do not belong to.
fn breaches_of_reserve(rooms: &Rooms) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, owners) in RESERVED {
        for (room, uses) in rooms {
            if uses.outside.iter().any(|outside| outside == name) && !owners.contains(&room.as_str()) {
                breaches.push(format!("{room} names {name}, which belongs to {owners:?}"));
            }
        }
    }
    breaches
}

/// Every Rust file of the rooms, by its path within the workspace, with its text.
fn files(rooms: &Rooms) -> Read<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = rooms.keys().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(workspace().join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(path, std::fs::read_to_string(entry.path())?);
            }
        }
    }
    Ok(files)
}

/// What is wrong with the name, the header or the length of a file. One called `tests.rs` is all tests, with the
/// header of the file whose tests it holds.
fn breaches_of_file(path: &Path, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    for part in path.with_extension("").iter().filter(|part| EMPTY_NAMES.iter().any(|name| part == name)) {
        breaches.push(format!("{}: {part:?} is a name that says nothing", path.display()));
    }
    if path.ends_with("tests.rs") {
        return breaches;
    }
    if !text.starts_with("//!") {
        breaches.push(format!("{} does not begin with //! and what it is", path.display()));
    }
    let lines = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().lines().count();
    if lines > LONGEST {
        breaches.push(format!("{} has {lines} lines before its tests, more than {LONGEST}", path.display()));
    }
    breaches
}

#[test]
fn rooms_use_what_the_arrows_say() {
    let architecture = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let breaches = breaches_of_arrows(&rooms().unwrap(), &arrows(&architecture).unwrap());
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let breaches = breaches_of_reserve(&rooms().unwrap());
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn files_have_a_name_a_header_and_an_end() {
    let files = files(&rooms().unwrap()).unwrap();
    let ours = Path::new(file!()).file_name().unwrap();
    assert!(files.contains_key(&Path::new("tests").join(ours)), "the search does not even find this file");
    let breaches: Vec<_> = files.iter().flat_map(|(path, text)| breaches_of_file(path, text)).collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// Rooms `low` and `high`, of which the latter uses the former and `serde`.
fn two_rooms() -> Read<Rooms> {
    let metadata = serde_json::json!({ "packages": [
        { "manifest_path": "/x/low/Cargo.toml", "dependencies": [] },
        { "manifest_path": "/x/high/Cargo.toml", "dependencies": [
            { "name": "coffer-low", "kind": null, "path": "/x/low" },
            { "name": "coffer-low", "kind": "dev", "path": "/x/low" },
            { "name": "serde", "kind": "build" },
        ] },
    ] });
    rooms_of(&metadata)
}

#[test]
fn a_wrong_list_of_arrows_is_noticed() {
    let breaches = |list: &str| breaches_of_arrows(&two_rooms().unwrap(), &arrows(list).unwrap());
    let none: [String; 0] = [];
    assert_eq!(breaches("# A\n\n## Arrows\n\n- low: (none)\n- high: low\n\n## Else\n- no: arrow\n"), none);
    assert_eq!(breaches("\n## Arrows\n- low: (none)\n- high: all\n"), none);
    assert_eq!(
        breaches("\n## Arrows\n- low: (none)\n- high: (none)\n"),
        ["high uses low, and its line does not say so"]
    );
    assert_eq!(breaches("\n## Arrows\n- high: low\n- low: (none)\n"), ["high uses low, which is not below it"]);
    assert_eq!(breaches("\n## Arrows\n- low: (none)\n"), ["high is a room without a line"]);
    assert_eq!(
        breaches("\n## Arrows\n- low: (none)\n- mid: (none)\n- high: low, mid\n"),
        ["mid has a line and is no room", "high does not use mid, which its line names"]
    );
    assert!(arrows("# A\n\n## Rooms\n- low: (none)\n").is_err(), "no section");
    assert!(arrows("\n## Arrows\n- low\n").is_err(), "no colon");
}

#[test]
fn an_outside_crate_in_the_wrong_room_is_noticed() {
    let mut rooms = two_rooms().unwrap();
    assert!(breaches_of_reserve(&rooms).is_empty());
    rooms.entry("high".to_owned()).or_default().outside.push("rocksdb".to_owned());
    assert_eq!(breaches_of_reserve(&rooms).len(), 1);
}

#[test]
fn a_file_against_the_house_rules_is_noticed() {
    let breaches = |path: &str, text: &str| breaches_of_file(Path::new(path), text).len();
    let long = format!("//! What it is.\n{}", "x\n".repeat(LONGEST));
    assert_eq!(breaches("repo/src/pack.rs", "//! What it is.\n"), 0);
    assert_eq!(breaches("repo/src/pack.rs", "//! What it is.\n#[cfg(test)]\nmod tests {\n}\n"), 0);
    assert_eq!(breaches("repo/src/pack/tests.rs", &long.replace("//!", "//")), 0);
    assert_eq!(breaches("repo/src/utils.rs", "//! What it is.\n"), 1);
    assert_eq!(breaches("repo/common/pack.rs", "//! What it is.\n"), 1);
    assert_eq!(breaches("repo/src/pack.rs", "use std::io;\n"), 1);
    assert_eq!(breaches("repo/src/pack.rs", &long), 1);
    assert_eq!(breaches("repo/src/pack.rs", &format!("//! What it is.\n#[cfg(test)]\nmod tests {{\n{long}}}\n")), 0);
}
