//! Reservations that outlive a loss of power (APTPL): one small file a disk ([`super::kept`]), durable before the order is answered.
//!
//! ```text
//!   generation 5
//!   key 00000000deadbeef 1 iqn...,i,0x...        key, target port, initiator port
//!   holds 5 1 iqn...,i,0x...                     type
//! ```
//! Not here: when. What holds: decoding never panics. A file that is damaged is reported and stands for reservations that were
//! lost: nobody gets at the disk before somebody replaces them.

use super::device::Report;
use super::identity::Identity;
use super::kept::Kept;
use super::reservations::{Held, Kind, Party, Reservations};
use coffer_gateway::{Kind as ErrorKind, Result};
use std::fmt::Write as _;
use std::path::Path;

const TITLE: &str = "coffer reservations 1";
const WAY_OUT: &str = "its reservations are lost, and the disk is refused to everybody until an initiator says REPLACE LOST \
                       RESERVATION (sg_persist --out --replace), or you delete the file and offer the disk again";

/// Where one disk's reservations are kept.
#[derive(Clone, Debug)]
pub(super) struct Retained(Kept);

impl Retained {
    /// In `folder`, by the disk's names, so that they follow it to any LUN.
    pub(super) fn new(folder: &Path, identity: &Identity) -> Self {
        Retained(Kept::new(folder, &format!("reservations-{}", identity.file_name()), TITLE))
    }

    /// What was kept; nothing if nothing was.
    pub(super) fn load(&self, report: Option<&Report>) -> Result<Reservations> {
        match self.0.load(decode, WAY_OUT) {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                if let Some(report) = report {
                    report(&e);
                }
                Ok(Reservations { is_lost: true, ..Reservations::default() })
            }
            loaded => Ok(loaded?.unwrap_or_default()),
        }
    }

    /// Keeps `state` if it is to last, else forgets what was kept. Durable on return.
    pub(super) fn store(&self, state: &Reservations) -> Result<()> {
        let lines = (state.is_lasting && !state.keys.is_empty()).then(|| encode(state));
        self.0.store(lines.as_deref())
    }
}

fn encode(state: &Reservations) -> String {
    let mut out = format!("generation {}\n", state.generation);
    // Writing to a string does not fail.
    for (party, key) in &state.keys {
        let _ = writeln!(out, "key {key:016x} {} {}", party.port, party.initiator);
    }
    if let Some(held) = &state.held {
        let _ = writeln!(out, "holds {} {} {}", held.kind as u8, held.holder.port, held.holder.initiator);
    }
    out
}

fn decode(lines: &str) -> Option<Reservations> {
    let mut state = Reservations { is_lasting: true, ..Reservations::default() };
    for line in lines.lines() {
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
    use std::fs;
    use std::sync::{Arc, Mutex};

    fn state() -> Reservations {
        let party = |port| Party { initiator: "iqn.a,i,0x000000000001".to_owned(), port };
        let mut state = Reservations { generation: 7, is_lasting: true, ..Reservations::default() };
        state.keys.insert(party(1), 0xdead_beef);
        state.keys.insert(party(2), u64::MAX);
        state.held = Some(Held { kind: Kind::WriteExclusiveRegistrantsOnly, holder: party(2) });
        state
    }

    #[test]
    fn what_was_kept_is_understood_and_else_nothing() {
        let lines = encode(&state());
        assert_eq!(decode(&lines), Some(state()));
        assert_eq!(decode(&lines.replace("holds 5 2", "holds 5 3")), None, "who holds it is not registered");
        for wrong in ["key 0 1 iqn", "key 1 1", "holds 2 1 iqn", "words 1 1 iqn", "generation x", "\n"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn it_is_kept_while_it_lasts_and_damage_is_a_loss_that_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let retained = Retained::new(folder.path(), &Identity::of("fork:a"));
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let report: Report = Arc::new(move |e| heard.lock().unwrap().push(e.to_string()));
        let load = || retained.load(Some(&report)).unwrap();
        assert_eq!(load(), Reservations::default());
        retained.store(&state()).unwrap();
        assert_eq!(load(), state());
        retained.store(&Reservations { is_lasting: false, ..state() }).unwrap();
        assert_eq!(load(), Reservations::default());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        retained.store(&state()).unwrap();
        let file = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        fs::write(&file, "coffer reservations 1\n").unwrap();
        assert!(told.lock().unwrap().is_empty());
        assert!(load().is_lost);
        assert!(told.lock().unwrap()[0].contains("--replace"));
    }
}
