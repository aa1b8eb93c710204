//! A command that was understood, and its way: the table of contents of what commands do.
//!
//! ```text
//!   quick   inquiry, mode, supported, persistent (in), alua, copy results       no I/O, no waiting
//!   slow    transfer, provisioning, persistent (out), copy, sanitize            on a storage thread
//! ```
//! Not here: queues, and who may do what ([`super::nexus`] has asked). What holds: a command that fails leaves no data; a reply is
//! cut to the room that its CDB gives it; parameters are as long as the CDB says, or the command fails.

use super::cdb::{self, Blocks, Command, Comparison};
use super::inquiry;
use super::lun::Lun;
use super::mode;
use super::nexus::{Nexus, lun_address};
use super::persistent::{self, Offer};
use super::provisioning;
use super::sanitize;
use super::seat::Seat;
use super::sense::{Code, Key, Outcome, Sense, Status};
use super::supported::{self, Question};
use super::transfer;
use super::{copy, field};
use coffer_gateway::Export;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    nexus: Arc<Nexus>,
    seat: Option<Arc<Seat>>,
    aborts: u64,
    command: Command,
}

impl Task {
    pub(super) fn new(nexus: Arc<Nexus>, seat: Arc<Seat>, command: Command) -> Self {
        seat.begin();
        Task { nexus, aborts: seat.aborts(), seat: Some(seat), command }
    }

    /// A command to a LUN that is not there: three may still be asked.
    pub(super) fn without_lun(nexus: Arc<Nexus>, cdb: &[u8]) -> Result<Self, Outcome> {
        let absent = Outcome::check(Sense::illegal(Code::LUN_NOT_SUPPORTED));
        if !matches!(cdb.first(), Some(0x03 | 0x12 | 0xa0)) {
            return Err(absent);
        }
        let (command, _) = cdb::decode(cdb)?;
        Self::check_reply(&command)?;
        Ok(Task { nexus, seat: None, aborts: 0, command })
    }

    /// That `command` keeps to the LUN's limits.
    pub(super) fn check(lun: &Lun, command: &Command) -> Result<(), Outcome> {
        let medium = &lun.medium;
        if let Some(blocks) = command.blocks() {
            medium.check(blocks)?;
            let limit = match command {
                Command::CompareAndWrite(_) => medium.max_compare(),
                Command::WriteAtomic(_) => medium.max_atomic(),
                Command::Read(_)
                | Command::Write { .. }
                | Command::WriteVerify { .. }
                | Command::OrWrite(_)
                | Command::Verify { comparison: Comparison::All, .. } => medium.max_transfer(),
                _ => u64::MAX,
            };
            if blocks.count > limit {
                let at = match command {
                    Command::CompareAndWrite(_) => 13,
                    Command::WriteAtomic(_) => 12,
                    _ => 10,
                };
                return Err(Sense::field(at, None).into());
            }
        }
        let list = command.list_len();
        match *command {
            Command::PersistOut { action, .. } => persistent::check_list(action, list)?,
            Command::ExtendedCopy { .. } => copy::check_list(list)?,
            Command::SanitizeOverwrite { .. } if list > medium.block_size().saturating_add(4) => {
                return Err(Sense::field(7, None).into());
            }
            Command::ModeSelect { is_saved: true, .. } if !lun.can_save() => {
                return Err(Sense::field(1, Some(0)).into());
            }
            // Nothing else has so many parameters.
            _ if list > u16::MAX.into() => return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into()),
            _ => {}
        }
        Self::check_reply(command)
    }

    fn check_reply(command: &Command) -> Result<(), Outcome> {
        match *command {
            Command::ReportLuns { select, room } if room < 16 || select > 2 => {
                Err(Sense::field(if select > 2 { 2 } else { 6 }, None).into())
            }
            _ => Ok(()),
        }
    }

    /// Bytes that the command takes, by its CDB.
    #[must_use]
    pub fn data_out(&self) -> u64 {
        let Some(seat) = &self.seat else { return 0 };
        let bytes = |blocks: Blocks| seat.lun.medium.bytes(blocks.count);
        match self.command {
            Command::Write { blocks, .. }
            | Command::WriteVerify { blocks, .. }
            | Command::OrWrite(blocks)
            | Command::WriteAtomic(blocks)
            | Command::Verify { blocks, comparison: Comparison::All } => bytes(blocks),
            Command::CompareAndWrite(blocks) => bytes(blocks).saturating_mul(2),
            Command::WriteSame { has_data: true, .. } => seat.lun.medium.block_size().into(),
            Command::Verify { blocks, comparison: Comparison::One } if blocks.count > 0 => {
                seat.lun.medium.block_size().into()
            }
            _ => self.command.list_len().into(),
        }
    }

    /// Bytes that it gives at most, by its CDB.
    #[must_use]
    pub fn data_in(&self) -> u64 {
        match (&self.seat, self.command) {
            (Some(seat), Command::Read(blocks)) => seat.lun.medium.bytes(blocks.count),
            _ => self.command.room().into(),
        }
    }

    /// That the command can do with `data_out` bytes of the initiator's, which is what the transport was told that there are. To be
    /// asked before any are waited for. WRITE and its like take what they get, whole blocks of it; others cannot guess the rest.
    pub fn check_expected(&self, data_out: u64) -> Result<(), Outcome> {
        let wanted = self.data_out();
        match self.command {
            // Without any data it means zeroes.
            Command::WriteSame { may_unmap: true, .. } if data_out == 0 => Ok(()),
            Command::CompareAndWrite(_) | Command::WriteSame { has_data: true, .. } if data_out != wanted => {
                Err(Sense::field(13, None).into())
            }
            _ if self.command.list_len() > 0 && data_out < wanted => {
                Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into())
            }
            _ => Ok(()),
        }
        .map_err(|outcome| self.finished(outcome))
    }

    /// What it counts as.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        match self.command {
            Command::Read(_) => Traffic::Read(self.data_in()),
            Command::Write { .. }
            | Command::WriteVerify { .. }
            | Command::OrWrite(_)
            | Command::WriteAtomic(_)
            | Command::CompareAndWrite(_) => Traffic::Write(self.data_out()),
            _ => Traffic::Other,
        }
    }

    /// The export that it is for; none for a command to a LUN that is not there.
    #[must_use]
    pub fn export(&self) -> Option<&Arc<Export>> {
        self.seat.as_ref().map(|seat| seat.lun.medium.export())
    }

    /// What others did to it. To be asked before anything is sent of it.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match &self.seat {
            Some(seat) if seat.aborts() != self.aborts => match seat.is_abort_told() {
                true => Fate::Told(Outcome { status: Status::TaskAborted, sense: None }),
                false => Fate::Silent,
            },
            _ => Fate::Free,
        }
    }

    /// Whether it most likely waits for nothing, once its data are there.
    #[must_use]
    pub fn is_swift(&self) -> bool {
        let Some(seat) = &self.seat else { return false };
        match self.command {
            Command::Write { blocks, is_forced } => transfer::writes_swiftly(&seat.lun, blocks, is_forced),
            _ => false,
        }
    }

    /// Runs it if that needs neither data from the initiator nor I/O nor waiting, appending what it gives; else `None`, and
    /// nothing was done.
    pub fn try_run(&self, data_in: &mut Vec<u8>) -> Option<Outcome> {
        let start = data_in.len();
        let outcome = match (&self.seat, self.command) {
            (Some(seat), Command::Read(blocks)) => match transfer::try_read(&seat.lun.medium, blocks, data_in) {
                Ok(false) => return None,
                Ok(true) => Ok(()),
                Err(sense) => Err(sense.into()),
            },
            _ => self.quick(data_in)?,
        };
        Some(self.finish(outcome, start, data_in))
    }

    /// Runs it on a storage thread; may wait. Looks at `stop` between steps.
    pub fn run(&self, data_out: &[u8], data_in: &mut Vec<u8>, stop: &AtomicBool) -> Outcome {
        let start = data_in.len();
        let outcome = match self.quick(data_in) {
            Some(outcome) => outcome,
            None => self.slow(data_out, data_in, stop),
        };
        self.finish(outcome, start, data_in)
    }

    fn finish(&self, outcome: Result<(), Outcome>, start: usize, data_in: &mut Vec<u8>) -> Outcome {
        match outcome {
            Ok(()) => Outcome::GOOD,
            Err(outcome) => {
                data_in.truncate(start);
                self.finished(outcome)
            }
        }
    }

    /// The outcome in the format that the LUN has its sense in.
    fn finished(&self, outcome: Outcome) -> Outcome {
        outcome.in_format(self.seat.as_ref().is_some_and(|seat| seat.lun.modes().has_descriptor_sense))
    }

    /// Commands that need no I/O.
    fn quick(&self, out: &mut Vec<u8>) -> Option<Result<(), Outcome>> {
        let reply = match (&self.seat, self.command) {
            (None, Command::Inquiry { page, .. }) => inquiry::without_lun(page),
            (None, Command::RequestSense { has_descriptors, .. }) => {
                Sense { has_descriptors, ..Sense::illegal(Code::LUN_NOT_SUPPORTED) }.encode()
            }
            (_, Command::ReportLuns { select, .. }) => self.report_luns(select),
            (Some(seat), command) => match self.quick_of(seat, command)? {
                Ok(reply) => reply,
                Err(outcome) => return Some(Err(outcome)),
            },
            (None, _) => return Some(Err(Sense::illegal(Code::LUN_NOT_SUPPORTED).into())),
        };
        let room = usize::try_from(self.command.room()).unwrap_or(usize::MAX);
        out.extend(reply.into_iter().take(room));
        Some(Ok(()))
    }

    fn quick_of(&self, seat: &Seat, command: Command) -> Option<Result<Vec<u8>, Outcome>> {
        let (lun, nexus) = (&seat.lun, &self.nexus);
        let nothing = |outcome: Outcome| match outcome.status {
            Status::Good => Ok(Vec::new()),
            _ => Err(outcome),
        };
        Some(match command {
            Command::TestUnitReady | Command::SendDiagnostic | Command::PreventRemoval { .. } => Ok(Vec::new()),
            Command::RequestSense { has_descriptors, .. } => {
                let sense = seat.take().or_else(|| lun.unreadiness());
                let sense = sense.unwrap_or(Sense::new(Key::NoSense, Code::NONE));
                Ok(Sense { has_descriptors, ..sense }.encode())
            }
            Command::Inquiry { page, .. } => inquiry::answer(lun, nexus, page).map_err(Outcome::from),
            Command::ReadCapacity10 => Ok(inquiry::capacity10(&lun.medium)),
            Command::ReadCapacity16 { .. } => Ok(inquiry::capacity16(&lun.medium)),
            Command::ModeSense(asked) => mode::sense(asked, lun.settings(), lun.geometry()).map_err(Outcome::from),
            Command::Reserve => nothing(lun.reserve(&seat.party, nexus.number)),
            Command::Release => nothing(lun.release(&seat.party, nexus.number)),
            Command::PersistIn { action, .. } => {
                let ports = nexus.device.relative_ports();
                Ok(persistent::report(action, &lun.reservations(), Offer { can_last: lun.can_last(), ports: &ports }))
            }
            Command::ReportGroups { is_extended, .. } => Ok(nexus.device.groups.report(is_extended)),
            Command::ReportOpcodes { has_timeouts, options, code, action, .. } => {
                let question = Question { has_timeouts, options, code, action };
                supported::opcodes(question, lun.medium.has_key()).map_err(Outcome::from)
            }
            Command::ReportManagement { is_extended, .. } => Ok(supported::management(is_extended)),
            Command::ReceiveCopy { action, id, .. } => copy::report(&nexus.copies, action, id).map_err(Outcome::from),
            Command::ReadDefects { is_twelve, lists, .. } => Ok(inquiry::defects(is_twelve, lists)),
            Command::Prefetch(blocks) => {
                lun.medium.prefetch(lun.medium.range(transfer::to_the_end(&lun.medium, blocks)));
                Ok(Vec::new())
            }
            _ => return None,
        })
    }

    fn report_luns(&self, select: u8) -> Vec<u8> {
        let seats = self.nexus.seats();
        // Who asks knows; and well-known LUNs are not there.
        seats.values().for_each(|seat| seat.withdraw(Code::REPORTED_LUNS_CHANGED));
        let luns: Vec<u8> = match select {
            1 => Vec::new(),
            _ => seats.keys().flat_map(|number| lun_address(*number)).collect(),
        };
        [&field::count32(luns.len())[..], &[0; 4], &luns].concat()
    }

    /// Commands that need I/O, or data from the initiator.
    fn slow(&self, data: &[u8], out: &mut Vec<u8>, stop: &AtomicBool) -> Result<(), Outcome> {
        let Some(seat) = &self.seat else { return Err(Sense::illegal(Code::LUN_NOT_SUPPORTED).into()) };
        let (lun, medium, nexus) = (&seat.lun, &seat.lun.medium, &self.nexus);
        let list = usize::try_from(self.command.list_len()).unwrap_or(usize::MAX);
        let Some(list) = data.get(..list) else {
            return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
        };
        match self.command {
            Command::Read(blocks) => transfer::read(medium, blocks, out)?,
            Command::Write { blocks, is_forced } => transfer::write(lun, blocks, is_forced, data)?,
            Command::WriteVerify { blocks, is_compared } => {
                transfer::write_verify(lun, blocks, is_compared, data, stop)?
            }
            Command::Verify { blocks, comparison } => transfer::verify(medium, blocks, comparison, data, stop)?,
            Command::OrWrite(blocks) => transfer::or_write(medium, blocks, data, stop)?,
            Command::WriteAtomic(blocks) => transfer::write_atomic(medium, blocks, data, stop)?,
            Command::CompareAndWrite(blocks) => transfer::compare_and_write(medium, blocks, data)?,
            Command::SynchronizeCache(_) => medium.flush()?,
            Command::WriteSame { blocks, may_unmap, .. } => {
                provisioning::write_same(lun, blocks, may_unmap, data, stop)?
            }
            Command::Unmap { .. } => provisioning::unmap(lun, list, stop)?,
            Command::GetLbaStatus { lba, room } => provisioning::lba_status(medium, lba, room, out, stop)?,
            Command::ModeSelect { is_ten, is_saved, .. } => {
                let modes = mode::select(is_ten, list, lun.modes(), lun.geometry())?;
                // What was written with a cache is not left in it when it is turned off.
                if !modes.has_write_cache {
                    medium.flush()?;
                }
                lun.set_modes(modes, is_saved, seat)?;
            }
            Command::StartStop { power, is_start, is_flushed } => {
                if is_flushed && !is_start {
                    medium.flush()?;
                }
                if power == 0 {
                    lun.set_stopped(!is_start);
                }
            }
            Command::PersistOut { action, scope, kind, .. } => {
                let ports = nexus.device.relative_ports();
                let offer = Offer { can_last: lun.can_last(), ports: &ports };
                lun.order(&seat.party, &persistent::order(action, scope, kind, list, &seat.party, offer)?)?;
            }
            Command::SetGroups { .. } => {
                nexus.device.select_groups(list, nexus)?;
            }
            Command::ExtendedCopy { .. } => copy::run(nexus, seat, list, stop)?,
            Command::SanitizeOverwrite { is_immediate, may_exit, .. } => {
                let work = sanitize::Work::overwrite(list, medium.block_size())?;
                sanitize::run(lun, work, sanitize::Manner { is_immediate, may_exit }, stop)?;
            }
            Command::SanitizeErase { is_immediate, may_exit } => {
                sanitize::run(lun, sanitize::Work::Erase, sanitize::Manner { is_immediate, may_exit }, stop)?;
            }
            Command::SanitizeByKey { is_immediate, may_exit } => {
                sanitize::run(lun, sanitize::Work::ThrowKeyAway, sanitize::Manner { is_immediate, may_exit }, stop)?;
            }
            Command::SanitizeExit => lun.sanitizing.exit_failure()?,
            _ => return Err(Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE).into()),
        }
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(seat) = &self.seat {
            seat.end();
        }
    }
}
