//! Exports that were added by command: a file in the state folder, so that a gateway offers them again when it is started again.
//!
//! Not here: what they are ([`super::offer`]). What holds: the file is replaced as a whole and durably, before the command that
//! changed it is answered; points are in it by id, so that `@latest` means what it meant; one that is damaged is an error, and
//! is not written over.

use coffer_gateway::control::Addition;
use coffer_repo::{Error, Result};
use serde_json::{Value, json};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const VERSION: u64 = 1;

/// The file, and what is in it.
pub(super) struct Remembered {
    path: PathBuf,
    additions: Vec<Addition>,
}

impl Remembered {
    /// Reads the file in `folder`, which need not exist.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("exports");
        let additions = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|e| e.within(path.display()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path.display().to_string(), e)),
        };
        Ok(Remembered { path, additions })
    }

    pub(super) fn additions(&self) -> &[Addition] {
        &self.additions
    }

    /// Adds one.
    pub(super) fn add(&mut self, addition: Addition) -> Result<()> {
        let mut additions = self.additions.clone();
        additions.push(addition);
        self.replace(additions)
    }

    /// Forgets the one of that name; whether there was one.
    pub(super) fn remove(&mut self, name: &str) -> Result<bool> {
        let mut additions = self.additions.clone();
        additions.retain(|addition| name_of(addition) != name);
        if additions.len() == self.additions.len() {
            return Ok(false);
        }
        self.replace(additions)?;
        Ok(true)
    }

    fn replace(&mut self, additions: Vec<Addition>) -> Result<()> {
        let failed = |e: io::Error| Error::io(self.path.display().to_string(), e);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let draft = self.path.with_extension("new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        let written = file.and_then(|mut file| file.write_all(&encode(&additions)).and_then(|()| file.sync_all()));
        written.and_then(|()| fs::rename(&draft, &self.path)).map_err(failed)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        self.additions = additions;
        Ok(())
    }
}

/// The name under which one is offered: these always have one.
pub(super) fn name_of(addition: &Addition) -> &str {
    addition.export.split_once('=').map_or(addition.export.as_str(), |(name, _)| name)
}

fn encode(additions: &[Addition]) -> Vec<u8> {
    let exports: Vec<Value> = additions.iter().map(Addition::to_object).collect();
    format!("{:#}\n", json!({ "version": VERSION, "exports": exports })).into_bytes()
}

fn decode(bytes: &[u8]) -> Result<Vec<Addition>> {
    let way_out = "move it away to begin without the exports that were added by command";
    let damaged = || Error::corrupt(format!("this is not a list of exports; {way_out}"));
    let value: Value = serde_json::from_slice(bytes).map_err(|e| damaged().with_source(e))?;
    if value.get("version").and_then(Value::as_u64) != Some(VERSION) {
        return Err(Error::corrupt(format!("this is not a list of exports of version {VERSION}; {way_out}")));
    }
    let exports = value.get("exports").and_then(Value::as_array).ok_or_else(damaged)?;
    exports.iter().map(|export| Addition::from_object(export.as_object().ok_or_else(damaged)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("deep/er");
        let addition = |export: &str| Addition { export: export.into(), ..Addition::default() };
        let mut remembered = Remembered::open(&folder).unwrap();
        assert!(!remembered.remove("a").unwrap());
        remembered
            .add(Addition { allow: vec!["uid:0".into()], limit: Some("1/".into()), ..addition("a=00ff:vda") })
            .unwrap();
        remembered.add(addition("b=fork:lab")).unwrap();
        let again = Remembered::open(&folder).unwrap();
        assert_eq!(again.additions(), remembered.additions());
        assert_eq!(again.additions().iter().map(name_of).collect::<Vec<_>>(), ["a", "b"]);
        assert!(remembered.remove("a").unwrap());
        assert_eq!(Remembered::open(&folder).unwrap().additions(), [addition("b=fork:lab")]);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["", "{", "[]", r#"{"version":2,"exports":[]}"#, r#"{"version":1,"exports":[{}]}"#] {
            fs::write(folder.path().join("exports"), bad).unwrap();
            assert!(Remembered::open(folder.path()).is_err(), "{bad}");
            assert_eq!(fs::read(folder.path().join("exports")).unwrap(), bad.as_bytes());
        }
    }
}
