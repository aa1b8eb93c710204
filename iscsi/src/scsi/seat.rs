//! What one nexus has at one LUN: an I_T_L nexus. Unit attentions wait here, and tasks learn here that others ended them.
//!
//! Not here: when attention is due. What holds: no locks; an attention that waits already is not doubled, the most important
//! comes first, and a reset covers what happened before it.

use super::lun::Lun;
use super::reservations::Party;
use super::sense::{Code, Key, Sense};
use coffer_gateway::Taken;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Attentions by importance.
const ATTENTIONS: [Code; 10] = [
    Code::POWER_ON,
    Code::BUS_DEVICE_RESET,
    Code::NEXUS_LOSS,
    Code::COMMANDS_CLEARED_BY_ANOTHER,
    Code::RESERVATIONS_PREEMPTED,
    Code::REGISTRATIONS_PREEMPTED,
    Code::RESERVATIONS_RELEASED,
    Code::ALUA_STATE_CHANGED,
    Code::MODE_PARAMETERS_CHANGED,
    Code::REPORTED_LUNS_CHANGED,
];
/// How many of them are resets.
const RESETS: usize = 3;

fn bit(code: Code) -> Option<u32> {
    let at = ATTENTIONS.iter().position(|known| *known == code)?;
    1u32.checked_shl(u32::try_from(at).ok()?)
}

/// An I_T_L nexus.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) lun: Arc<Lun>,
    /// Who sits here.
    pub(super) party: Party,
    attentions: AtomicU32,
    /// How often tasks were ended here by others, and whether that is told of the last time.
    aborts: AtomicU64,
    is_abort_told: AtomicBool,
    tasks: AtomicU32,
    /// The nexus is one of the export's clients.
    _taken: Taken,
}

impl Seat {
    pub(super) fn new(lun: Arc<Lun>, party: Party) -> Self {
        let _taken = Taken::new(Arc::clone(lun.medium.export()));
        Seat {
            lun,
            party,
            attentions: AtomicU32::new(0),
            aborts: AtomicU64::new(0),
            is_abort_told: AtomicBool::new(false),
            tasks: AtomicU32::new(0),
            _taken,
        }
    }

    /// Has `code` reported to the nexus with its next command.
    pub(super) fn post(&self, code: Code) {
        let Some(bit) = bit(code) else { return };
        if ATTENTIONS.iter().take(RESETS).any(|reset| *reset == code) {
            self.attentions.store(bit, Ordering::Release);
        } else {
            self.attentions.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Takes the most important attention that waits.
    pub(super) fn take(&self) -> Option<Sense> {
        let mut waiting = self.attentions.load(Ordering::Acquire);
        while waiting != 0 {
            let left = waiting & (waiting - 1);
            match self.attentions.compare_exchange_weak(waiting, left, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let first = usize::try_from(waiting.trailing_zeros()).unwrap_or(usize::MAX);
                    return ATTENTIONS.get(first).map(|code| Sense::new(Key::UnitAttention, *code));
                }
                Err(now) => waiting = now,
            }
        }
        None
    }

    /// Takes back `code`, if it waits.
    pub(super) fn withdraw(&self, code: Code) {
        if let Some(bit) = bit(code) {
            self.attentions.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Ends the tasks that are here now; `is_told`: their initiator gets TASK ABORTED.
    pub(super) fn abort(&self, is_told: bool) {
        self.is_abort_told.store(is_told, Ordering::Release);
        self.aborts.fetch_add(1, Ordering::AcqRel);
    }

    /// What a task remembers, to learn whether it was ended.
    pub(super) fn aborts(&self) -> u64 {
        self.aborts.load(Ordering::Acquire)
    }

    pub(super) fn is_abort_told(&self) -> bool {
        self.is_abort_told.load(Ordering::Acquire)
    }

    /// A task begins here.
    pub(super) fn begin(&self) {
        self.tasks.fetch_add(1, Ordering::Relaxed);
    }

    /// A task is over.
    pub(super) fn end(&self) {
        self.tasks.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn has_tasks(&self) -> bool {
        self.tasks.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::LunOptions;
    use coffer_gateway::{Export, MemoryDevice};

    #[test]
    fn attentions_come_by_importance_and_once() {
        let export = Arc::new(Export::new("e", Arc::new(MemoryDevice::new(4096))));
        let options = LunOptions { export, block_size: None, physical_block_size: None, identity: "e".to_owned() };
        let lun = Arc::new(Lun::new(0, options, None, None).unwrap());
        let seat = Seat::new(lun, Party { initiator: "iqn.a,i,0x000000000000".to_owned(), port: 1 });
        assert_eq!(seat.take(), None);
        for code in [Code::REPORTED_LUNS_CHANGED, Code::MODE_PARAMETERS_CHANGED, Code::REPORTED_LUNS_CHANGED] {
            seat.post(code);
        }
        assert_eq!(seat.take().map(|s| s.code), Some(Code::MODE_PARAMETERS_CHANGED));
        seat.post(Code::BUS_DEVICE_RESET);
        seat.post(Code::RESERVATIONS_RELEASED);
        assert_eq!(seat.take().map(|s| s.code), Some(Code::BUS_DEVICE_RESET));
        seat.withdraw(Code::RESERVATIONS_RELEASED);
        assert_eq!(seat.take(), None);
    }
}
