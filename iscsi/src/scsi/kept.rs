//! Small things that outlive a restart: one text file each, replaced whole and durable before what it says counts.
//!
//! ```text
//!   coffer reservations 1          its title
//!   ...                            lines
//!   sum ...                        BLAKE3 of the lines before
//! ```
//! Not here: what the lines say ([`super::retained`], [`super::mode`], [`super::alua`]). What holds: a file is whole, not there, or
//! `Corrupt` in an error that names it. Text, so that whoever has to can read it.

use super::identity::hex;
use coffer_gateway::{Error, Kind, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Where something is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    folder: PathBuf,
    file: PathBuf,
    title: &'static str,
}

impl Kept {
    /// In `folder` under `name`; what is there begins with `title`.
    pub(super) fn new(folder: &Path, name: &str, title: &'static str) -> Self {
        Kept { folder: folder.to_owned(), file: folder.join(name), title }
    }

    /// What was kept, as `decode` understands its lines; `None` if nothing was. `Corrupt` when it is damaged: `way_out` says what to
    /// do then.
    pub(super) fn load<T>(&self, decode: impl FnOnce(&str) -> Option<T>, way_out: &str) -> Result<Option<T>> {
        let name = self.file.display();
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {name}"), e)),
        };
        let lines = str::from_utf8(&bytes).ok().and_then(|text| open(self.title, text));
        match lines.and_then(decode) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::new(Kind::Corrupt, format!("{name} is damaged: {way_out}"))),
        }
    }

    /// Keeps these lines, each with its end; `None`: what was kept is forgotten. Durable on return.
    pub(super) fn store(&self, lines: Option<&str>) -> Result<()> {
        self.replace(lines).map_err(|e| Error::io(format!("keeping {}", self.file.display()), e))
    }

    fn replace(&self, lines: Option<&str>) -> std::io::Result<()> {
        if let Some(lines) = lines {
            fs::create_dir_all(&self.folder)?;
            let draft = self.file.with_extension("new");
            let mut file = File::create(&draft)?;
            file.write_all(close(self.title, lines).as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &self.file)?;
        } else {
            match fs::remove_file(&self.file) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        }
        File::open(&self.folder)?.sync_all()
    }
}

/// A file's text of these lines.
fn close(title: &str, lines: &str) -> String {
    let body = format!("{title}\n{lines}");
    let sum = hex(blake3::hash(body.as_bytes()).as_bytes());
    format!("{body}sum {sum}\n")
}

/// The lines of a file's text.
fn open<'a>(title: &str, text: &'a str) -> Option<&'a str> {
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once("sum ")?;
    if hex(blake3::hash(body.as_bytes()).as_bytes()) != sum {
        return None;
    }
    body.strip_prefix(title)?.strip_prefix('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_and_damage_is_seen() {
        let text = close("coffer words 1", "one 1\ntwo 2\n");
        assert_eq!(open("coffer words 1", &text), Some("one 1\ntwo 2\n"));
        assert_eq!(open("coffer words 2", &text), None);
        assert_eq!(open("t", &close("t", "")), Some(""));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(open("coffer words 1", &String::from_utf8(bytes).unwrap()), None, "{at}");
            assert_eq!(open("coffer words 1", &text[..at]), None, "{at}");
        }
    }

    #[test]
    fn it_lies_in_a_file_while_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("deep");
        let kept = Kept::new(&deep, "words", "coffer words 1");
        let load = || kept.load(|lines| (lines != "bad\n").then(|| lines.to_owned()), "delete it");
        assert_eq!(load().unwrap(), None);
        kept.store(None).unwrap();
        kept.store(Some("good\n")).unwrap();
        assert_eq!(load().unwrap().as_deref(), Some("good\n"));
        kept.store(Some("bad\n")).unwrap();
        let error = load().unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.context().contains("words is damaged: delete it"), "{error}");
        fs::write(deep.join("words"), [0xff; 9]).unwrap();
        assert_eq!(load().unwrap_err().kind(), Kind::Corrupt);
        kept.store(None).unwrap();
        assert_eq!((load().unwrap(), fs::read_dir(deep).unwrap().count()), (None, 0));
    }
}
