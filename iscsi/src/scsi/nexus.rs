//! One initiator port through one target port: an I_T nexus. Here commands become tasks.
//!
//! ```text
//!   prepare: LUN -> attention -> CDB -> port's state -> reservations, readiness, write protection -> bounds -> Task
//! ```
//! Not here: what tasks do. What holds: `prepare` and `manage` wait for nothing; the checks are made in the order above, which is
//! also the order of what initiators are told first.

use super::alua::{AccessState, Group};
use super::cdb;
use super::copy::Copies;
use super::device::{Device, LunMask};
use super::lun::Lun;
use super::opcodes::Opcode;
use super::reservations::Party;
use super::seat::Seat;
use super::sense::{Code, Key, Outcome, Sense};
use super::task::Task;
use super::transport_id;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A task management function, as far as it is the device's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// One task of this nexus.
    AbortTask,
    /// All tasks of this nexus at the LUN.
    AbortTaskSet,
    /// All tasks at the LUN.
    ClearTaskSet,
    /// The LUN forgets its tasks, reservations of old and changed modes.
    LunReset,
    /// This nexus as if it had just begun.
    NexusReset,
    /// Every LUN is reset.
    TargetWarmReset,
    /// The same; the transport ends all sessions besides.
    TargetColdReset,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagementOutcome {
    /// Done; the transport forgets this nexus's own tasks. Those of others know by their [`super::Fate`].
    Done,
    /// There is no such LUN.
    NoLun,
}

/// See the file's header.
#[derive(Debug)]
pub struct Nexus {
    pub(super) device: Arc<Device>,
    pub(super) number: u64,
    pub(super) visible: LunMask,
    pub(super) party: Party,
    pub(super) copies: Copies,
    group: Option<Arc<Group>>,
    seats: RwLock<BTreeMap<u16, Arc<Seat>>>,
}

impl Nexus {
    pub(super) fn new(
        device: Arc<Device>,
        number: u64,
        initiator: &str,
        isid: [u8; 6],
        port: u16,
        visible: LunMask,
    ) -> Self {
        let party = Party { initiator: transport_id::port_name(initiator, isid), port };
        let group = device.groups.of_port(port).cloned();
        Nexus { device, number, visible, party, copies: Copies::default(), group, seats: RwLock::default() }
    }

    /// Takes a seat at `lun`.
    pub(super) fn sit_down(&self, lun: &Arc<Lun>) {
        let seat = Arc::new(Seat::new(Arc::clone(lun), self.party.clone()));
        lun.seat(&seat);
        self.seats.write().unwrap_or_else(PoisonError::into_inner).insert(lun.number, seat);
    }

    /// Leaves the seat at `lun`, and says whether there was one.
    pub(super) fn stand_up(&self, lun: u16) -> bool {
        self.seats.write().unwrap_or_else(PoisonError::into_inner).remove(&lun).is_some()
    }

    /// Leaves all seats.
    pub(super) fn leave(&self) {
        self.seats.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Has `code` reported by every LUN.
    pub(super) fn tell(&self, code: Code) {
        self.seats().values().for_each(|seat| seat.post(code));
    }

    /// The seats that it has.
    pub(super) fn seats(&self) -> BTreeMap<u16, Arc<Seat>> {
        self.seats.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of its port's group.
    pub(super) fn group(&self) -> u16 {
        self.group.as_ref().map_or(0, |group| group.number)
    }

    fn seat(&self, lun: [u8; 8]) -> Option<Arc<Seat>> {
        let number = lun_number(lun)?;
        self.seats.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Decodes a command. Quick. `Err` when it ends at once.
    pub fn prepare(self: &Arc<Self>, lun: [u8; 8], cdb: &[u8]) -> Result<Task, Outcome> {
        let Some(seat) = self.seat(lun) else {
            return Task::without_lun(Arc::clone(self), cdb);
        };
        let prepared = self.check(&seat, cdb);
        let has_descriptors = seat.lun.modes().has_descriptor_sense;
        let command = prepared.map_err(|outcome| outcome.in_format(has_descriptors))?;
        Ok(Task::new(Arc::clone(self), seat, command))
    }

    fn check(&self, seat: &Seat, cdb: &[u8]) -> Result<cdb::Command, Outcome> {
        // REPORT LUNS, INQUIRY and REQUEST SENSE are answered whatever happened.
        if !matches!(cdb.first(), Some(0x03 | 0x12 | 0xa0))
            && let Some(attention) = seat.take()
        {
            return Err(attention.into());
        }
        let (command, opcode) = cdb::decode(cdb)?;
        self.check_state(opcode)?;
        seat.lun.admit(opcode, seat, self.number)?;
        Task::check(&seat.lun, &command)?;
        Ok(command)
    }

    /// That the port is in a state in which the command works.
    fn check_state(&self, opcode: &Opcode) -> Result<(), Sense> {
        let state = self.group.as_ref().map_or(AccessState::Optimized, |group| group.state());
        match state {
            AccessState::Standby if !opcode.works_in_standby() => Err(Sense::new(Key::NotReady, Code::ALUA_STANDBY)),
            AccessState::Unavailable if !opcode.works_when_unavailable() => {
                Err(Sense::new(Key::NotReady, Code::ALUA_UNAVAILABLE))
            }
            _ => Ok(()),
        }
    }

    /// Does what a task management function does to the device. Quick.
    pub fn manage(&self, lun: [u8; 8], function: Function) -> ManagementOutcome {
        match function {
            Function::TargetWarmReset | Function::TargetColdReset => {
                let seats = self.seats();
                for lun in self.device.luns() {
                    lun.reset(seats.get(&lun.number).map(|seat| &**seat));
                }
                return ManagementOutcome::Done;
            }
            Function::NexusReset => {
                self.device.luns().iter().for_each(|lun| lun.forget(self.number));
                self.tell(Code::NEXUS_LOSS);
                return ManagementOutcome::Done;
            }
            _ => {}
        }
        let Some(seat) = self.seat(lun) else { return ManagementOutcome::NoLun };
        match function {
            Function::LunReset => seat.lun.reset(Some(&seat)),
            Function::ClearTaskSet => seat.lun.clear_tasks(&seat),
            _ => {}
        }
        ManagementOutcome::Done
    }
}

/// The number of a LUN that is addressed as a peripheral device of bus 0 or in flat space.
fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let [a, b, 0, 0, 0, 0, 0, 0] = lun else { return None };
    match a >> 6 {
        0 if a == 0 => Some(b.into()),
        1 => Some(u16::from_be_bytes([a & 0x3f, b])),
        _ => None,
    }
}

/// The same the other way, as REPORT LUNS has it.
pub(super) fn lun_address(number: u16) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    match high {
        0 => [0, low, 0, 0, 0, 0, 0, 0],
        _ => [0x40 | high, low, 0, 0, 0, 0, 0, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lun_is_found_by_its_address() {
        for number in [0, 1, 255, 256, 0x3fff] {
            assert_eq!(lun_number(lun_address(number)), Some(number));
        }
        assert_eq!(lun_number([0x40, 7, 0, 0, 0, 0, 0, 0]), Some(7));
        assert_eq!(lun_number([0, 7, 1, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_number([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
    }
}
