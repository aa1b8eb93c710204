//! Asymmetric access: through which groups of target ports the disks are reached, and how well.
//!
//! Not here: who may change it; that initiators are told. What holds: states are of the whole device, and are not remembered over a
//! restart: a device begins with every group active.

use super::device::PortOptions;
use super::field::{be16, byte, count16, count32};
use super::sense::{Code, Sense};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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
    fn from_number(number: u8) -> Option<Self> {
        use AccessState::{NonOptimized, Optimized, Standby, Unavailable};
        [Optimized, NonOptimized, Standby, Unavailable].into_iter().find(|state| *state as u8 == number)
    }
}

/// Who changed a state last.
const BY_COMMAND: u8 = 1;
const BY_ITSELF: u8 = 2;

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

    fn set(&self, state: AccessState, by: u8) -> bool {
        let old = self.state.swap(state as u8 | (by << 4), Ordering::AcqRel);
        old & 0x0f != state as u8
    }
}

/// All groups of a device.
#[derive(Debug)]
pub(super) struct Groups(BTreeMap<u16, Arc<Group>>);

impl Groups {
    pub(super) fn new(ports: &[PortOptions]) -> Self {
        let mut members: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        for port in ports {
            members.entry(port.group).or_default().push(port.relative);
        }
        let group = |(number, ports)| (number, Arc::new(Group { number, ports, state: AtomicU8::new(0) }));
        Groups(members.into_iter().map(group).collect())
    }

    /// The group that a port is in.
    pub(super) fn of_port(&self, port: u16) -> Option<&Arc<Group>> {
        self.0.values().find(|group| group.ports.contains(&port))
    }

    /// Sets a group's state, without being asked by an initiator. `None`: no such group; else whether that changed it.
    pub(super) fn set(&self, number: u16, state: AccessState) -> Option<bool> {
        self.0.get(&number).map(|group| group.set(state, BY_ITSELF))
    }

    /// Does what SET TARGET PORT GROUPS asks for, all or nothing; whether that changed anything.
    pub(super) fn select(&self, list: &[u8]) -> Result<bool, Sense> {
        if list.is_empty() {
            return Ok(false);
        }
        if !list.len().is_multiple_of(4) {
            return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR));
        }
        let mut wanted = Vec::new();
        for (i, entry) in list.chunks(4).enumerate().skip(1) {
            let state = AccessState::from_number(byte(entry, 0) & 0x0f).ok_or(Sense::parameter(i * 4, Some(3)))?;
            let group = self.0.get(&be16(entry, 2)).ok_or(Sense::parameter(i * 4 + 2, None))?;
            wanted.push((group, state));
        }
        Ok(wanted.into_iter().fold(false, |changed, (group, state)| group.set(state, BY_COMMAND) || changed))
    }

    /// The reply to REPORT TARGET PORT GROUPS.
    pub(super) fn report(&self, is_extended: bool) -> Vec<u8> {
        // Extended: format 1, no time that a change by itself takes.
        let mut body: Vec<u8> = if is_extended { vec![0x10, 0, 0, 0] } else { Vec::new() };
        for group in self.0.values() {
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

    fn groups() -> Groups {
        let port = |relative, group| PortOptions { relative, group };
        Groups::new(&[port(1, 1), port(2, 7), port(3, 7)])
    }

    #[test]
    fn states_are_set_all_or_nothing() {
        let groups = groups();
        assert_eq!(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1, 9, 0, 0, 7]), Err(Sense::parameter(8, Some(3))));
        assert_eq!(groups.of_port(1).unwrap().state(), AccessState::Optimized);
        assert_eq!(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1, 1, 0, 0, 8]), Err(Sense::parameter(10, None)));
        assert_eq!(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1]), Ok(true));
        assert_eq!(groups.select(&[0, 0, 0, 0, 2, 0, 0, 1]), Ok(false));
        assert_eq!(groups.of_port(1).unwrap().state(), AccessState::Standby);
        assert_eq!(groups.set(7, AccessState::Unavailable), Some(true));
        assert_eq!(groups.set(8, AccessState::Unavailable), None);
        let report = groups.report(false);
        assert_eq!(report[..16], [0, 0, 0, 28, 2, 0x0f, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1]);
        assert_eq!(report[16..], [3, 0x0f, 0, 7, 0, 2, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]);
        assert_eq!(groups.report(true)[..8], [0, 0, 0, 32, 0x10, 0, 0, 0]);
    }
}
