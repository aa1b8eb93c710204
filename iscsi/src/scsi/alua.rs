//! Asymmetric access: through which groups of target ports the disks are reached, and how well.
//!
//! Not here: who may change it; that initiators are told; files ([`super::kept`]). What holds: states are of the whole device; a change
//! is durable before it counts, where there is a place to keep it, so that a device begins with the states that it had; groups that
//! are new begin active.
//!
//! [`Groups::ordering`] is held over the write of the file, against the rule: so files come in the order of changes. Commands do not ask
//! for it.

use super::device::PortOptions;
use super::field::{be16, byte, count16, count32};
use super::kept::Kept;
use super::sense::{Code, Sense};
use coffer_gateway::{Error, Result as GatewayResult};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The file that has states begins with this.
pub(super) const TITLE: &str = "coffer port groups 1";

/// How well disks are reached through a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessState {
    /// As well as can be.
    Optimized = 0,
    /// Worse than elsewhere.
    NonOptimized = 1,
    /// Only what is needed to change that.
    Standby = 2,
    /// Hardly at all.
    Unavailable = 3,
}

impl AccessState {
    const ALL: [(AccessState, &str); 4] = [
        (AccessState::Optimized, "optimized"),
        (AccessState::NonOptimized, "non-optimized"),
        (AccessState::Standby, "standby"),
        (AccessState::Unavailable, "unavailable"),
    ];

    fn from_number(number: u8) -> Option<Self> {
        AccessState::ALL.into_iter().map(|(state, _)| state).find(|state| *state as u8 == number)
    }
}

/// States as lines of a file: `group 1 standby`.
fn encode(states: &BTreeMap<u16, AccessState>) -> String {
    let mut out = String::new();
    for (number, state) in states {
        let word = AccessState::ALL.iter().find(|(known, _)| known == state).map_or("", |(_, word)| word);
        // Writing to a string does not fail.
        let _ = writeln!(out, "group {number} {word}");
    }
    out
}

fn decode(lines: &str) -> Option<BTreeMap<u16, AccessState>> {
    let state = |line: &str| {
        let (number, word) = line.strip_prefix("group ")?.split_once(' ')?;
        let (state, _) = AccessState::ALL.into_iter().find(|(_, known)| *known == word)?;
        Some((number.parse().ok()?, state))
    };
    lines.lines().map(state).collect()
}

/// A group of ports.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) number: u16,
    ports: Vec<u16>,
    /// State, and who changed it last in the high half.
    state: AtomicU8,
}

impl Group {
    pub(super) fn state(&self) -> AccessState {
        AccessState::from_number(self.state.load(Ordering::Acquire) & 0x0f).unwrap_or(AccessState::Unavailable)
    }
}

/// All groups of a device.
#[derive(Debug)]
pub(super) struct Groups {
    groups: BTreeMap<u16, Arc<Group>>,
    kept: Option<Kept>,
    ordering: Mutex<()>,
}

/// Why states were not set.
#[derive(Debug)]
pub(super) enum Unset {
    /// What asked for it was wrong.
    Refused(Sense),
    /// They could not be kept.
    Unkept(Error),
}

/// Who changed a state.
#[derive(Clone, Copy, Debug)]
enum By {
    Command = 1,
    Itself = 2,
}

impl Groups {
    /// The groups of `ports`, in the states that were kept.
    pub(super) fn new(ports: &[PortOptions], kept: Option<Kept>) -> GatewayResult<Self> {
        let mut members: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        for port in ports {
            members.entry(port.group).or_default().push(port.relative);
        }
        let way_out = "delete it, and set the states of the port groups again";
        let states = kept.as_ref().map(|kept| kept.load(decode, way_out)).transpose()?.flatten().unwrap_or_default();
        let group = |(number, ports)| {
            let state = states.get(&number).copied().unwrap_or(AccessState::Optimized);
            (number, Arc::new(Group { number, ports, state: AtomicU8::new(state as u8) }))
        };
        let groups = members.into_iter().map(group).collect();
        Ok(Groups { groups, kept, ordering: Mutex::default() })
    }

    /// The group that a port is in.
    pub(super) fn of_port(&self, port: u16) -> Option<&Arc<Group>> {
        self.groups.values().find(|group| group.ports.contains(&port))
    }

    /// Sets a group's state, without being asked by an initiator; whether that changed it. `NotFound`: no such group.
    pub(super) fn set(&self, number: u16, state: AccessState) -> GatewayResult<bool> {
        if !self.groups.contains_key(&number) {
            return Err(Error::not_found(format!("there is no target port group {number}")));
        }
        self.exchange(&BTreeMap::from([(number, state)]), By::Itself)
    }

    /// Does what SET TARGET PORT GROUPS asks for, all or nothing; whether that changed anything.
    pub(super) fn select(&self, list: &[u8]) -> Result<bool, Unset> {
        if list.is_empty() {
            return Ok(false);
        }
        if !list.len().is_multiple_of(4) {
            return Err(Unset::Refused(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR)));
        }
        let mut wanted = BTreeMap::new();
        for (i, entry) in list.chunks(4).enumerate().skip(1) {
            let wrong = |at: usize, bit| Unset::Refused(Sense::parameter(i * 4 + at, bit));
            let state = AccessState::from_number(byte(entry, 0) & 0x0f).ok_or(wrong(0, Some(3)))?;
            let number =
                Some(be16(entry, 2)).filter(|number| self.groups.contains_key(number)).ok_or(wrong(2, None))?;
            wanted.insert(number, state);
        }
        self.exchange(&wanted, By::Command).map_err(Unset::Unkept)
    }

    /// Sets the states of groups that there are; whether that changed anything.
    fn exchange(&self, wanted: &BTreeMap<u16, AccessState>, by: By) -> GatewayResult<bool> {
        let _ordering = self.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        let before: BTreeMap<u16, AccessState> = self.groups.iter().map(|(n, group)| (*n, group.state())).collect();
        let mut after = before.clone();
        after.extend(wanted);
        if after != before
            && let Some(kept) = &self.kept
        {
            kept.store(Some(&encode(&after)))?;
        }
        for (number, state) in wanted {
            if let Some(group) = self.groups.get(number) {
                group.state.store(*state as u8 | ((by as u8) << 4), Ordering::Release);
            }
        }
        Ok(after != before)
    }

    /// The reply to REPORT TARGET PORT GROUPS.
    pub(super) fn report(&self, is_extended: bool) -> Vec<u8> {
        // Extended: format 1, no time that a change by itself takes.
        let mut body: Vec<u8> = if is_extended { vec![0x10, 0, 0, 0] } else { Vec::new() };
        for group in self.groups.values() {
            let state = group.state.load(Ordering::Acquire);
            // All four states can be.
            let [high, low] = group.number.to_be_bytes();
            let [.., ports] = count16(group.ports.len());
            body.extend([state & 0x0f, 0x0f, high, low, 0, state >> 4, 0, ports]);
            for port in &group.ports {
                let [high, low] = port.to_be_bytes();
                body.extend([0, 0, high, low]);
            }
        }
        [&count32(body.len())[..], &body].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_gateway::Kind;

    fn groups(kept: Option<Kept>) -> Groups {
        let port = |relative, group| PortOptions { relative, group };
        Groups::new(&[port(1, 1), port(2, 7), port(3, 7)], kept).unwrap()
    }

    fn refused(done: Result<bool, Unset>) -> Sense {
        match done {
            Err(Unset::Refused(sense)) => sense,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn states_are_set_all_or_nothing() {
        let groups = groups(None);
        assert_eq!(refused(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1, 9, 0, 0, 7])), Sense::parameter(8, Some(3)));
        assert_eq!(groups.of_port(1).unwrap().state(), AccessState::Optimized);
        assert_eq!(refused(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 8])), Sense::parameter(10, None));
        assert!(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1]).unwrap());
        assert!(!groups.select(&[0, 0, 0, 0, 2, 0, 0, 1]).unwrap());
        assert_eq!(groups.of_port(1).unwrap().state(), AccessState::Standby);
        assert!(groups.set(7, AccessState::Unavailable).unwrap());
        assert_eq!(groups.set(8, AccessState::Unavailable).unwrap_err().kind(), Kind::NotFound);
        let report = groups.report(false);
        assert_eq!(report[..16], [0, 0, 0, 28, 2, 0x0f, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1]);
        assert_eq!(report[16..], [3, 0x0f, 0, 7, 0, 2, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]);
        assert_eq!(groups.report(true)[..8], [0, 0, 0, 32, 0x10, 0, 0, 0]);
    }

    #[test]
    fn states_are_there_after_a_restart_or_were_not_set() {
        let folder = tempfile::tempdir().unwrap();
        let kept = || Some(Kept::new(&folder.path().join("state"), "groups", TITLE));
        let before = groups(kept());
        assert!(before.set(7, AccessState::Standby).unwrap() && before.set(1, AccessState::NonOptimized).unwrap());
        let after = groups(kept());
        assert_eq!(after.of_port(3).unwrap().state(), AccessState::Standby);
        // Nobody has changed it since the start.
        assert_eq!(after.report(false)[4..10], [1, 0x0f, 0, 1, 0, 0]);
        std::fs::remove_dir_all(folder.path().join("state")).unwrap();
        std::fs::write(folder.path().join("state"), "in the way").unwrap();
        assert!(matches!(after.select(&[0, 0, 0, 0, 0, 0, 0, 7]), Err(Unset::Unkept(_))));
        assert_eq!(after.of_port(3).unwrap().state(), AccessState::Standby);
        for wrong in ["group 1", "group x standby", "group 1 sleeping", "1 standby", "\n"] {
            assert!(decode(wrong).is_none(), "{wrong:?}");
        }
    }
}
