//! One initiator port through one target port.

use super::device::{Device, LunMask};
use super::seat::Seat;
use super::sense::{Code, Outcome, Sense};
use super::task::Task;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

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
    device: Arc<Device>,
    initiator: String,
    isid: [u8; 6],
    port: u16,
    visible: LunMask,
}

impl Nexus {
    pub(crate) fn new(device: Arc<Device>, initiator: &str, isid: [u8; 6], port: u16, visible: LunMask) -> Self {
        Nexus { device, initiator: initiator.to_owned(), isid, port, visible }
    }

    /// Decodes a command. Quick. `Err` when it ends at once.
    pub fn prepare(self: &Arc<Self>, lun: [u8; 8], cdb: &[u8]) -> Result<Task, Outcome> {
        let number = lun_number(lun).filter(|number| self.visible.shows(*number));
        let Some(lun) = number.and_then(|number| self.device.lun(number)) else {
            return Err(Outcome::check(Sense::illegal(Code::LUN_NOT_SUPPORTED)));
        };
        Task::new(Arc::new(Seat { lun, aborts: AtomicU64::new(0) }), cdb)
    }

    /// Does what a task management function does to the device. Quick.
    pub fn manage(&self, lun: [u8; 8], function: Function) -> ManagementOutcome {
        let _ = (function, &self.initiator, self.isid, self.port);
        match lun_number(lun).and_then(|number| self.device.lun(number)) {
            Some(_) => ManagementOutcome::Done,
            None => ManagementOutcome::NoLun,
        }
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
