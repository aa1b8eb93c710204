//! A command that was understood, and what it does.

use super::seat::Seat;
use super::sense::{Code, Outcome, Sense, Status};
use coffer_gateway::{Durability, Export};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What others did to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: its outcome is sent.
    Free,
    /// It was aborted, and nothing more is sent.
    Silent,
    /// It was aborted, and this is sent.
    Told(Outcome),
}

/// What a task counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Bytes read.
    Read(u64),
    /// Bytes written.
    Write(u64),
    /// Neither.
    Other,
}

/// A command on its way. Holds its LUN's export while it lives.
#[derive(Debug)]
pub struct Task {
    seat: Arc<Seat>,
    aborts: u64,
    command: Command,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    TestUnitReady,
    Inquiry(u16),
    ReportLuns(u32),
    Capacity10,
    Capacity16(u32),
    Read(u64, u64),
    Write(u64, u64),
}

impl Task {
    pub(crate) fn new(seat: Arc<Seat>, cdb: &[u8]) -> Result<Self, Outcome> {
        let be16 = |at: usize| u16::from_be_bytes(std::array::from_fn(|i| cdb.get(at + i).copied().unwrap_or(0)));
        let be32 = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| cdb.get(at + i).copied().unwrap_or(0)));
        let be64 = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| cdb.get(at + i).copied().unwrap_or(0)));
        let command = match cdb.first() {
            Some(0x00) => Command::TestUnitReady,
            Some(0x12) => Command::Inquiry(be16(3)),
            Some(0x25) => Command::Capacity10,
            Some(0x28) => Command::Read(be32(2).into(), be16(7).into()),
            Some(0x2a) => Command::Write(be32(2).into(), be16(7).into()),
            Some(0x88) => Command::Read(be64(2), be32(10).into()),
            Some(0x8a) => Command::Write(be64(2), be32(10).into()),
            Some(0x9e) => Command::Capacity16(be32(10)),
            Some(0xa0) => Command::ReportLuns(be32(6)),
            _ => return Err(Sense::illegal(Code::INVALID_OPCODE).into()),
        };
        let aborts = seat.aborts.load(Ordering::Acquire);
        Ok(Task { seat, aborts, command })
    }

    /// Bytes that the command takes, by its CDB.
    #[must_use]
    pub fn data_out(&self) -> u64 {
        match self.command {
            Command::Write(_, count) => count * u64::from(self.seat.lun.block_size),
            _ => 0,
        }
    }

    /// Bytes that it gives at most, by its CDB.
    #[must_use]
    pub fn data_in(&self) -> u64 {
        match self.command {
            Command::Read(_, count) => count * u64::from(self.seat.lun.block_size),
            Command::Inquiry(len) => len.into(),
            Command::ReportLuns(len) | Command::Capacity16(len) => len.into(),
            Command::Capacity10 => 8,
            _ => 0,
        }
    }

    /// What it counts as.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        match self.command {
            Command::Read(..) => Traffic::Read(self.data_in()),
            Command::Write(..) => Traffic::Write(self.data_out()),
            _ => Traffic::Other,
        }
    }

    /// The export that it is for; none for a command to a LUN that is not there.
    #[must_use]
    pub fn export(&self) -> Option<&Arc<Export>> {
        Some(&self.seat.lun.export)
    }

    /// What others did to it. To be asked before anything is sent of it.
    #[must_use]
    pub fn fate(&self) -> Fate {
        if self.seat.aborts.load(Ordering::Acquire) == self.aborts {
            Fate::Free
        } else {
            Fate::Told(Outcome { status: Status::TaskAborted, sense: None })
        }
    }

    /// Runs it if that needs neither data from the initiator nor I/O nor waiting, appending what it gives; else `None`, and
    /// nothing was done.
    pub fn try_run(&self, data_in: &mut Vec<u8>) -> Option<Outcome> {
        let _ = data_in;
        None
    }

    /// Runs it on a storage thread; may wait. Looks at `stop` between steps.
    pub fn run(&self, data_out: &[u8], data_in: &mut Vec<u8>, stop: &AtomicBool) -> Outcome {
        let _ = stop;
        let lun = &self.seat.lun;
        let device = &lun.export.device;
        let size = u64::from(lun.block_size);
        let (data, len) = match self.command {
            Command::TestUnitReady => return Outcome::GOOD,
            Command::Inquiry(len) => {
                let mut data = vec![0, 0, 6, 0x12, 91, 0, 0, 2];
                data.extend(b"COFFER  DISK            0001");
                data.resize(96, 0);
                (data, usize::from(len))
            }
            Command::ReportLuns(len) => (vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], len as usize),
            Command::Capacity10 => {
                let last = u32::try_from(device.size() / size - 1).unwrap_or(u32::MAX);
                ([last.to_be_bytes(), lun.block_size.to_be_bytes()].concat(), 8)
            }
            Command::Capacity16(len) => {
                let mut data = (device.size() / size - 1).to_be_bytes().to_vec();
                data.extend(lun.block_size.to_be_bytes());
                data.resize(32, 0);
                (data, len as usize)
            }
            Command::Read(lba, count) => {
                let start = data_in.len();
                let Ok(len) = usize::try_from(count * size) else { return Sense::field(10, None).into() };
                data_in.resize(start + len, 0);
                let place = data_in.get_mut(start..).unwrap_or_default();
                return match device.read_at(lba * size, place) {
                    Ok(()) => Outcome::GOOD,
                    Err(e) => Sense::of_error(&e, lba, false).into(),
                };
            }
            Command::Write(lba, _) => {
                return match device.write_at(lba * size, data_out, Durability::Cached) {
                    Ok(()) => Outcome::GOOD,
                    Err(e) => Sense::of_error(&e, lba, true).into(),
                };
            }
        };
        data_in.extend(data.into_iter().take(len));
        Outcome::GOOD
    }
}
