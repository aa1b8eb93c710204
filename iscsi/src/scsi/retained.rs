//! Reservations that outlive a loss of power (APTPL): one small file a disk, replaced whole and durable before the order is answered.
//!
//! ```text
//!   coffer reservations 1
//!   generation 5
//!   key 00000000deadbeef 1 iqn...,i,0x...        key, target port, initiator port
//!   holds 5 1 iqn...,i,0x...                     type
//!   sum ...                                      BLAKE3 of the lines before
//! ```
//! Not here: when. What holds: a file is whole or an error that names it; decoding never panics. Text, so that whoever has to
//! can read it.

use super::identity::{Identity, hex};
use super::reservations::{Held, Kind, Party, Reservations};
use coffer_gateway::{Error, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

const TITLE: &str = "coffer reservations 1";

/// Where one disk's reservations are kept.
#[derive(Clone, Debug)]
pub(super) struct Retained {
    folder: PathBuf,
    file: PathBuf,
}

impl Retained {
    /// In `folder`, by the disk's names, so that they follow it to any LUN.
    pub(super) fn new(folder: &Path, identity: &Identity) -> Self {
        let file = folder.join(format!("reservations-{}", identity.file_name()));
        Retained { folder: folder.to_owned(), file }
    }

    /// What was kept; nothing if nothing was.
    pub(super) fn load(&self) -> Result<Reservations> {
        let text = match fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Reservations::default()),
            Err(e) => return Err(Error::io(format!("reading reservations from {}", self.file.display()), e)),
        };
        decode(&text).ok_or_else(|| {
            let name = self.file.display();
            Error::corrupt(format!("{name} is damaged: delete it, and have the initiators reserve the disk again"))
        })
    }

    /// Keeps `state` if it is to last, else forgets what was kept. Durable on return.
    pub(super) fn store(&self, state: &Reservations) -> Result<()> {
        let context = || format!("keeping reservations in {}", self.file.display());
        self.replace(state).map_err(|e| Error::io(context(), e))
    }

    fn replace(&self, state: &Reservations) -> std::io::Result<()> {
        if state.is_lasting && !state.keys.is_empty() {
            fs::create_dir_all(&self.folder)?;
            let draft = self.file.with_extension("new");
            let mut file = File::create(&draft)?;
            file.write_all(encode(state).as_bytes())?;
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

fn encode(state: &Reservations) -> String {
    let mut out = format!("{TITLE}\ngeneration {}\n", state.generation);
    // Writing to a string does not fail.
    for (party, key) in &state.keys {
        let _ = writeln!(out, "key {key:016x} {} {}", party.port, party.initiator);
    }
    if let Some(held) = &state.held {
        let _ = writeln!(out, "holds {} {} {}", held.kind as u8, held.holder.port, held.holder.initiator);
    }
    let sum = hex(blake3::hash(out.as_bytes()).as_bytes());
    let _ = writeln!(out, "sum {sum}");
    out
}

fn decode(text: &str) -> Option<Reservations> {
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once("sum ")?;
    if hex(blake3::hash(body.as_bytes()).as_bytes()) != sum {
        return None;
    }
    let mut state = Reservations { is_lasting: true, ..Reservations::default() };
    let mut lines = body.lines();
    if lines.next()? != TITLE {
        return None;
    }
    for line in lines {
        let (word, rest) = line.split_once(' ')?;
        if word == "generation" {
            state.generation = rest.parse().ok()?;
            continue;
        }
        let (first, rest) = rest.split_once(' ')?;
        let (port, initiator) = rest.split_once(' ')?;
        let party = Party { initiator: initiator.to_owned(), port: port.parse().ok()? };
        match word {
            "key" => {
                state.keys.insert(party, u64::from_str_radix(first, 16).ok().filter(|key| *key != 0)?);
            }
            "holds" => state.held = Some(Held { kind: Kind::from_number(first.parse().ok()?)?, holder: party }),
            _ => return None,
        }
    }
    let is_sound = state.held.as_ref().is_none_or(|held| state.keys.contains_key(&held.holder));
    is_sound.then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Reservations {
        let party = |port| Party { initiator: "iqn.a,i,0x000000000001".to_owned(), port };
        let mut state = Reservations { generation: 7, is_lasting: true, ..Reservations::default() };
        state.keys.insert(party(1), 0xdead_beef);
        state.keys.insert(party(2), u64::MAX);
        state.held = Some(Held { kind: Kind::WriteExclusiveRegistrantsOnly, holder: party(2) });
        state
    }

    #[test]
    fn what_was_kept_is_there_and_damage_is_seen() {
        let text = encode(&state());
        assert_eq!(decode(&text), Some(state()));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(decode(&String::from_utf8(bytes).unwrap()), None, "{at}");
            assert_eq!(decode(&text[..at]), None, "{at}");
        }
    }

    #[test]
    fn it_lies_in_a_file_while_it_lasts() {
        let folder = tempfile::tempdir().unwrap();
        let retained = Retained::new(&folder.path().join("deep"), &Identity::of("fork:a"));
        assert_eq!(retained.load().unwrap(), Reservations::default());
        retained.store(&state()).unwrap();
        assert_eq!(retained.load().unwrap(), state());
        retained.store(&Reservations { is_lasting: false, ..state() }).unwrap();
        assert_eq!(retained.load().unwrap(), Reservations::default());
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 0);
        fs::write(&retained.file, "coffer reservations 1\n").unwrap();
        assert!(retained.load().unwrap_err().context().contains("delete it"));
    }
}
