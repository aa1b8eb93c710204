//! The frozen repositories under `tests/golden/`: where they lie and what their manifests say of them.
//!
//! ```text
//! tests/golden/v1-<name>/store/          the repository's objects, one file each
//!                        manifest.json   what is in it, as told by the contents that were backed up
//!                        password        a passphrase that opens everything
//!                        writer-password a passphrase that opens a writer's bundle   (where there is one)
//!                        key             a key file that opens everything            (where there is one)
//! ```
//! Not here: how they are made (`tests/golden/make.rs`). What holds: the frozen files are read and never written; a store
//! is copied into memory before it is opened.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use crate::disk::{Run, read_runs};
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Put};
use coffer_repo::entropy::Seeded;
use coffer_repo::key_slot::Credential;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::Snapshot;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The repositories, by the names of their folders.
pub const ALL: [&str; 2] = ["v1-aes", "v1-chacha"];

/// A frozen repository.
pub struct Golden {
    dir: PathBuf,
}

impl Golden {
    /// The one called `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Golden { dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name) }
    }

    /// The folder that it lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The objects.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The file with the passphrase that opens everything.
    #[must_use]
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// A passphrase in one of the files.
    #[must_use]
    pub fn passphrase(&self, file: &str) -> Credential {
        Credential::Passphrase(fs::read_to_string(self.dir.join(file)).unwrap().trim_end().to_owned().into())
    }

    /// A copy of the store in memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let memory = Memory::default();
        for name in files(&self.store(), "") {
            let bytes = fs::read(self.store().join(&name)).unwrap();
            assert_eq!(memory.put(&name, &[&bytes]).unwrap(), Put::Created);
        }
        memory
    }

    /// What it holds: an array of snapshots.
    #[must_use]
    pub fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join("manifest.json")).unwrap()).unwrap()
    }
}

/// Names of all files below `dir`, with `/`, sorted.
#[must_use]
pub fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir.join(prefix)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            names.extend(files(dir, &name));
        } else {
            names.push(name);
        }
    }
    names.sort();
    names
}

/// Opens a store with the passphrase in `file`.
pub fn open(golden: &Golden, store: Arc<dyn Backend>, file: &str) -> coffer_repo::Result<Arc<Repository>> {
    Repository::open(store, &golden.passphrase(file), Arc::new(Seeded::new(99))).map(Arc::new)
}

/// A snapshot as the manifest and `reader.py list` describe it, but for the runs of its disks.
#[must_use]
pub fn describe(snapshot: &Snapshot) -> Value {
    let disks: Vec<Value> = snapshot
        .disks
        .iter()
        .map(|disk| {
            let mut shown = json!({"name": disk.name, "size": disk.size, "block": disk.block_size});
            if let Some(token) = &disk.token {
                shown["token"] = json!(token);
            }
            if disk.unreadable > 0 {
                shown["unreadable"] = json!(disk.unreadable);
            }
            shown
        })
        .collect();
    json!({
        "id": snapshot.id().to_string(),
        "time": snapshot.time().seconds(),
        "workload": snapshot.workload,
        "tags": snapshot.tags,
        "host": snapshot.identity.host,
        "user": snapshot.identity.user,
        "program": snapshot.identity.program,
        "parents": snapshot.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "disks": disks,
    })
}

/// A run as the manifest has it.
#[must_use]
pub fn describe_run(run: &Run) -> Value {
    json!([run.offset, run.len, run.hash])
}

/// All disks of a snapshot as the manifest has them: read from the repository.
pub fn read_snapshot(repo: &Arc<Repository>, snapshot: &Snapshot) -> coffer_repo::Result<Value> {
    let mut shown = describe(snapshot);
    let reader = Reader::new(Arc::clone(repo), ReaderOptions { threads: 1, ..ReaderOptions::default() })?;
    for (i, disk) in snapshot.disks.iter().enumerate() {
        let runs = read_runs(&reader.disk(snapshot, &disk.name)?, repo.geometry().window)?;
        shown["disks"][i]["runs"] = runs.iter().map(describe_run).collect();
    }
    Ok(shown)
}
