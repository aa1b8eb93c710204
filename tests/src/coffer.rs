//! The `coffer` program as a user has it: in a folder of its own, with a repository there, and nothing of this machine's
//! environment.
//!
//! Not here: other programs ([`crate::program`]). What holds: it is the program that was built beside the test; everything it
//! makes lies in the folder and goes with it, scratch files and caches included.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::program::{Ended, Running, attempt, outside, run};
use crate::service::Place;
use coffer_repo::backend::Backend;
use coffer_repo::backend::local::Local;
use coffer_repo::entropy::System;
use coffer_repo::key_slot::Credential;
use coffer_repo::repository::Repository;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

const PASSPHRASE: &str = "journeys end in lovers meeting";

/// The program in a folder. Arguments name files relative to it.
pub struct Coffer {
    folder: TempDir,
    program: PathBuf,
    /// Where the repository is, if not in the folder.
    place: Option<Place>,
}

/// What tells whether a file was replaced or written to: inode, length, and the time of its last change in nanoseconds.
type Stamp = (u64, u64, i128);

impl Coffer {
    /// A folder without a repository.
    #[must_use]
    pub fn prepare() -> Coffer {
        // A test: target/release/deps/journey-0123; a benchmark: target/release/coffer-stores.
        let own = std::env::current_exe().unwrap();
        let folder = own.parent().unwrap();
        let program = if folder.ends_with("deps") { folder.join("../coffer") } else { folder.join("coffer") };
        assert!(program.exists(), "{} is missing: cargo build --release --workspace", program.display());
        let coffer = Coffer { folder: TempDir::new().unwrap(), program, place: None };
        std::fs::write(coffer.path("password"), PASSPHRASE).unwrap();
        std::fs::create_dir(coffer.path("scratch")).unwrap();
        coffer
    }

    /// A folder with a new repository in `repo`.
    #[must_use]
    pub fn new() -> Coffer {
        let coffer = Coffer::prepare();
        coffer.run(&["init"]);
        coffer
    }

    /// A folder with a new repository in an object store.
    #[must_use]
    pub fn new_in(place: Place) -> Coffer {
        let coffer = Coffer::prepare().at(place);
        coffer.run(&["init"]);
        coffer
    }

    /// The same folder, with caches and all, and the repository at this place.
    #[must_use]
    pub fn at(self, place: Place) -> Coffer {
        Coffer { place: Some(place), ..self }
    }

    /// A file in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another program, within the folder.
    #[must_use]
    pub fn outside(&self, program: &str) -> Command {
        let mut command = outside(program);
        command.current_dir(self.folder.path());
        command
    }

    /// The program with these arguments, without input.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_with(["--password-file", "password"], arguments)
    }

    /// The same with another key: the option that names it, and its file.
    #[must_use]
    pub fn command_with(&self, key: [&str; 2], arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TMPDIR", self.path("scratch"))
            .env("COFFER_STATE", self.path("state"))
            .args(["--cache-dir", "cache"])
            .args(key)
            .stdin(Stdio::null());
        match &self.place {
            None => command.args(["-r", "repo"]),
            Some(place) => {
                let options = place.options.iter().flat_map(|option| ["-o", option]);
                command.args(["-r", &place.location]).args(options).envs(place.environment.iter().cloned())
            }
        };
        command.args(arguments);
        command
    }

    /// Runs it. What it printed; any other exit code than 0 fails the test.
    pub fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Runs it with `--json`. The object it printed; any other exit code than 0 fails the test.
    pub fn json(&self, arguments: &[&str]) -> Value {
        parse(&self.run(&[&["--json"], arguments].concat()))
    }

    /// Runs it with `--json`, and it ends with exit code 3, done with warnings.
    pub fn warned(&self, arguments: &[&str]) -> Value {
        self.ended(3, arguments)
    }

    /// Runs it with `--json`, and it ends with this exit code. The object it printed.
    pub fn ended(&self, code: i32, arguments: &[&str]) -> Value {
        parse(&self.ends(code, &[&["--json"], arguments].concat()).out)
    }

    /// Runs it, and it fails with one line that has all of these words. That line.
    pub fn fails(&self, arguments: &[&str], words: &[&str]) -> String {
        let ended = self.ends(1, arguments);
        let last = ended.err.trim_end().lines().next_back().unwrap_or_default().to_owned();
        for word in words {
            assert!(last.contains(word), "'{word}' is not in the last line: {ended}");
        }
        last
    }

    fn ends(&self, code: i32, arguments: &[&str]) -> Ended {
        let ended = attempt(&mut self.command(arguments));
        assert_eq!(ended.status.code(), Some(code), "{ended}");
        ended
    }

    /// Starts it, and waits until it says `ready` on standard error.
    pub fn start(&self, arguments: &[&str], ready: &str) -> Running {
        let mut running = Running::start(&mut self.command(arguments));
        running.wait_until(ready, |running| running.err().contains(ready));
        running
    }

    /// All points of all workloads, as `coffer snapshots` tells them.
    pub fn snapshots(&self) -> Vec<Value> {
        let mut object = self.json(&["snapshots"]);
        serde_json::from_value(object["snapshots"].take()).unwrap()
    }

    /// Restores a disk and sees that it equals the raw file `expected`.
    pub fn assert_restores(&self, disk: &str, expected: &str) {
        self.run(&["restore", disk, "--to", "restored.raw"]);
        self.assert_same(expected, "restored.raw");
        std::fs::remove_file(self.path("restored.raw")).unwrap();
    }

    /// Sees that two files hold the same bytes.
    pub fn assert_same(&self, one: &str, other: &str) {
        run(self.outside("cmp").args([one, other]));
    }

    /// The store that holds the repository, opened by this process.
    pub fn store(&self) -> Arc<dyn Backend> {
        match &self.place {
            None => Arc::new(Local::open(&self.path("repo")).unwrap()),
            Some(place) => place.open(),
        }
    }

    /// The repository, opened by this process through `wrap`.
    pub fn open(&self, wrap: impl FnOnce(Local) -> Arc<dyn Backend>) -> Arc<Repository> {
        self.open_on(wrap(Local::open(&self.path("repo")).unwrap()))
    }

    /// The repository, which is in this store.
    pub fn open_on(&self, backend: Arc<dyn Backend>) -> Arc<Repository> {
        let credential = Credential::Passphrase(PASSPHRASE.to_owned().into());
        Arc::new(Repository::open(backend, &credential, Arc::new(System)).unwrap())
    }

    /// The repository's objects under `prefix`, by name.
    pub fn objects(&self, prefix: &str) -> BTreeMap<PathBuf, Stamp> {
        let mut found = BTreeMap::new();
        collect(&self.path("repo").join(prefix), &mut found);
        found
    }
}

impl Default for Coffer {
    fn default() -> Self {
        Coffer::new()
    }
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Adds the files below `folder`, which may be missing or lose files meanwhile.
fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, Stamp>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        match path.symlink_metadata() {
            Ok(of) if of.is_dir() => collect(&path, found),
            Ok(of) => {
                let changed = i128::from(of.mtime()) * 1_000_000_000 + i128::from(of.mtime_nsec());
                found.insert(path, (of.ino(), of.len(), changed));
            }
            Err(_) => {}
        }
    }
}
