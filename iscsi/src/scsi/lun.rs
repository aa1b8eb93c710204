//! An export as a disk: what all its nexuses share.
//!
//! Not here: commands. What holds: the medium can be asked without a lock; reservations are replaced whole, so that whoever looks sees them
//! before or after an order. Nothing is waited for under a lock, but for [`Lun::ordering`]: it is held over the write of the file that
//! makes an order or modes last, so that files come in the order of what they say. Only PERSISTENT RESERVE OUT and MODE SELECT ask
//! for it.

use super::device::Report;
use super::identity::Identity;
use super::kept::Kept;
use super::medium::{BlockSizes, Medium};
use super::mode::{self, Geometry, Modes, Settings};
use super::opcodes::{Access, Opcode};
use super::reservations::{Consequences, Order, Party, Reservations};
use super::retained::Retained;
use super::sanitize::Sanitizing;
use super::seat::Seat;
use super::sense::{Code, Key, Outcome, Sense};
use coffer_gateway::{ActivityTotals, Export, Result as GatewayResult};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// What becomes a LUN, and how.
#[derive(Debug)]
pub struct LunOptions {
    /// What is offered.
    pub export: Arc<Export>,
    /// Logical blocks in bytes, a power of two from 512 to 4096, instead of the device's own. What does not fill the last block
    /// cannot be reached.
    pub block_size: Option<u32>,
    /// What initiators are told is a physical block: a power of two from the logical block to 4096 bytes, instead of the logical
    /// block itself.
    pub physical_block_size: Option<u32>,
    /// What the disk is, whoever shows it: names and serial numbers come from this, so it is equal for equal disks and different for
    /// different ones, on every path and after every restart.
    pub identity: String,
}

/// A LUN, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunReport {
    /// Its number.
    pub number: u16,
    /// What it shows, for people.
    pub description: String,
    /// Logical blocks, in bytes.
    pub block_size: u32,
    /// How many of them.
    pub blocks: u64,
    /// Whether writes are refused, whatever initiators wish.
    pub is_read_only: bool,
    /// Initiator ports that are registered for persistent reservations.
    pub registrants: usize,
    /// Who has it to himself, and how.
    pub reservation: Option<String>,
    /// What was done with it.
    pub activity: ActivityTotals,
}

/// What reservations there are.
#[derive(Clone, Debug, Default)]
struct Booked {
    persistent: Reservations,
    /// One of old, by RESERVE: the number of the nexus that has it.
    old: Option<u64>,
}

/// A logical unit.
#[derive(Debug)]
pub(super) struct Lun {
    pub(super) number: u16,
    pub(super) medium: Medium,
    pub(super) identity: Identity,
    pub(super) sanitizing: Arc<Sanitizing>,
    settings: RwLock<Settings>,
    booked: RwLock<Booked>,
    ordering: Mutex<()>,
    retained: Option<Retained>,
    /// Where modes are saved.
    saved: Option<Kept>,
    seats: Mutex<Vec<Weak<Seat>>>,
    is_stopped: AtomicBool,
}

impl Lun {
    /// The LUN `number`, with the reservations and modes that were kept for it in `state`.
    pub(super) fn new(
        number: u16,
        options: LunOptions,
        state: Option<&Path>,
        report: Option<&Report>,
    ) -> GatewayResult<Self> {
        let sizes = BlockSizes { logical: options.block_size, physical: options.physical_block_size };
        let medium = Medium::new(options.export, sizes, report.cloned())?;
        let identity = Identity::of(&options.identity);
        let retained = state.map(|folder| Retained::new(folder, &identity));
        let persistent = retained.as_ref().map(|retained| retained.load(report)).transpose()?.unwrap_or_default();
        let saved = state.map(|folder| Kept::new(folder, &format!("modes-{}", identity.file_name()), mode::TITLE));
        let way_out = "delete it, and have the initiators save the disk's modes again";
        let loaded = saved.as_ref().map(|kept| kept.load(Modes::decode, way_out)).transpose()?;
        let settings = Settings { now: Modes::default(), saved: loaded.map(Option::unwrap_or_default) }.reset();
        Ok(Lun {
            number,
            medium,
            identity,
            sanitizing: Arc::default(),
            settings: RwLock::new(settings),
            booked: RwLock::new(Booked { persistent, old: None }),
            ordering: Mutex::default(),
            retained,
            saved,
            seats: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn modes(&self) -> Modes {
        self.settings().now
    }

    /// Whether modes can be saved.
    pub(super) fn can_save(&self) -> bool {
        self.saved.is_some()
    }

    /// Sets them, durably before they count if they are saved, and tells every nexus but `by` if that changed anything.
    pub(super) fn set_modes(&self, modes: Modes, is_saved: bool, by: &Seat) -> Result<(), Sense> {
        let _ordering = self.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        if is_saved
            && let Some(saved) = &self.saved
            && let Err(e) = saved.store(Some(&modes.encode()))
        {
            self.medium.report(&e);
            return Err(Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE));
        }
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut settings.now, modes);
        if is_saved {
            settings.saved = Some(modes);
        }
        drop(settings);
        if old != modes {
            self.tell(Code::MODE_PARAMETERS_CHANGED, |seat| !std::ptr::eq(seat, by));
        }
        Ok(())
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.medium.block_size(),
            count: self.medium.count(),
            is_read_only: self.medium.is_read_only(),
        }
    }

    pub(super) fn set_stopped(&self, is_stopped: bool) {
        self.is_stopped.store(is_stopped, Ordering::Release);
    }

    /// Why the medium is not ready, if it is not.
    pub(super) fn unreadiness(&self) -> Option<Sense> {
        let is_stopped = self.is_stopped.load(Ordering::Acquire);
        self.sanitizing.sense().or(is_stopped.then(|| Sense::new(Key::NotReady, Code::NOT_READY_START_NEEDED)))
    }

    /// That a command of this kind may be tried now by `seat`, which belongs to the nexus of that number.
    pub(super) fn admit(&self, opcode: &Opcode, seat: &Seat, nexus: u64) -> Result<(), Outcome> {
        if opcode.needs_key() && !self.medium.has_key() {
            return Err(Sense::field(1, Some(4)).into());
        }
        {
            let booked = self.booked.read().unwrap_or_else(PoisonError::into_inner);
            if booked.persistent.is_lost && !opcode.works_without_reservations() {
                return Err(Sense::new(Key::HardwareError, Code::RESERVATION_INFORMATION_LOST).into());
            }
            if booked.old.is_some_and(|owner| owner != nexus) && !opcode.is_let_through_old_reservations() {
                return Err(Outcome::CONFLICT);
            }
            if !booked.persistent.admits(&seat.party, opcode.access) {
                return Err(Outcome::CONFLICT);
            }
        }
        if !opcode.works_while_sanitizing()
            && let Some(sense) = self.sanitizing.sense()
        {
            return Err(sense.into());
        }
        if !opcode.works_when_stopped() && self.is_stopped.load(Ordering::Acquire) {
            return Err(Sense::new(Key::NotReady, Code::NOT_READY_START_NEEDED).into());
        }
        if opcode.changes_medium() {
            self.check_writable()?;
        }
        Ok(())
    }

    /// That the medium may be written.
    pub(super) fn check_writable(&self) -> Result<(), Sense> {
        if self.medium.is_read_only() {
            return Err(Sense::new(Key::DataProtect, Code::WRITE_PROTECTED));
        }
        if self.modes().is_write_protected {
            return Err(Sense::new(Key::DataProtect, Code::SOFTWARE_WRITE_PROTECTED));
        }
        Ok(())
    }

    /// That nobody else's reservation stops `party`, of the nexus of that number, from `access`.
    pub(super) fn check_reserved(&self, party: &Party, nexus: u64, access: Access) -> bool {
        let booked = self.booked.read().unwrap_or_else(PoisonError::into_inner);
        !booked.persistent.is_lost
            && booked.old.is_none_or(|owner| owner == nexus)
            && booked.persistent.admits(party, access)
    }

    /// RESERVE: the disk is this nexus's until it releases it, ends or the unit is reset.
    pub(super) fn reserve(&self, party: &Party, nexus: u64) -> Outcome {
        let mut booked = self.booked.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = booked.persistent.old_command(party) {
            return outcome;
        }
        match booked.old {
            Some(owner) if owner != nexus => Outcome::CONFLICT,
            _ => {
                booked.old = Some(nexus);
                Outcome::GOOD
            }
        }
    }

    /// RELEASE: nothing happens if the reservation is another's.
    pub(super) fn release(&self, party: &Party, nexus: u64) -> Outcome {
        let mut booked = self.booked.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = booked.persistent.old_command(party) {
            return outcome;
        }
        booked.old = booked.old.filter(|owner| *owner != nexus);
        Outcome::GOOD
    }

    /// The nexus of that number is no more: neither is what it reserved in the old way.
    pub(super) fn forget(&self, nexus: u64) {
        let mut booked = self.booked.write().unwrap_or_else(PoisonError::into_inner);
        booked.old = booked.old.filter(|owner| *owner != nexus);
    }

    /// Persistent reservations as they are.
    pub(super) fn reservations(&self) -> Reservations {
        self.booked.read().unwrap_or_else(PoisonError::into_inner).persistent.clone()
    }

    /// What it is now, for people.
    pub(super) fn report(&self) -> LunReport {
        let booked = self.booked.read().unwrap_or_else(PoisonError::into_inner).clone();
        let reservation = match (&booked.persistent.held, booked.old) {
            _ if booked.persistent.is_lost => Some("lost: an initiator has to replace it".to_owned()),
            (Some(held), _) => Some(format!("{} of {}", held.kind, held.holder.initiator)),
            (None, Some(_)) => Some("reserved until its session ends".to_owned()),
            (None, None) => None,
        };
        let Geometry { block_size, count, is_read_only } = self.geometry();
        LunReport {
            number: self.number,
            description: self.medium.export().description.clone(),
            block_size,
            blocks: count,
            is_read_only,
            registrants: booked.persistent.keys.len(),
            reservation,
            activity: self.medium.export().activity().totals(),
        }
    }

    /// Whether reservations can outlive a loss of power.
    pub(super) fn can_last(&self) -> bool {
        self.retained.is_some()
    }

    /// Does an order of `party`: durable, if it is to last, before it counts.
    pub(super) fn order(&self, party: &Party, order: &Order) -> Result<(), Outcome> {
        let _ordering = self.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.reservations();
        let mut after = before.clone();
        let consequences = after.apply(party, order)?;
        if let Some(retained) = &self.retained
            && (before.is_lasting || before.is_lost || after.is_lasting)
            && before != after
            && let Err(e) = retained.store(&after)
        {
            self.medium.report(&e);
            return Err(Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE).into());
        }
        self.booked.write().unwrap_or_else(PoisonError::into_inner).persistent = after;
        self.settle(&consequences);
        if before.is_lost {
            // Whoever had reserved it has lost that.
            self.tell(Code::RESERVATIONS_PREEMPTED, |seat| seat.party != *party);
        }
        Ok(())
    }

    fn settle(&self, consequences: &Consequences) {
        let is_told = self.modes().is_abort_told;
        for seat in self.seats() {
            if consequences.aborted.contains(&seat.party) {
                seat.abort(is_told);
            }
            consequences.told.iter().filter(|(party, _)| *party == seat.party).for_each(|(_, code)| seat.post(*code));
        }
    }

    /// The logical unit is reset: its modes are what was saved, reservations of old are gone, everybody is told. The tasks of `by` are
    /// its own affair.
    pub(super) fn reset(&self, by: Option<&Seat>) {
        let is_told = self.modes().is_abort_told;
        {
            let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
            *settings = settings.reset();
        }
        self.booked.write().unwrap_or_else(PoisonError::into_inner).old = None;
        self.set_stopped(false);
        for seat in self.seats() {
            if by.is_none_or(|by| !std::ptr::eq(by, &*seat)) {
                seat.abort(is_told);
            }
            seat.post(Code::BUS_DEVICE_RESET);
        }
    }

    /// The tasks of everybody but `by` end.
    pub(super) fn clear_tasks(&self, by: &Seat) {
        let is_told = self.modes().is_abort_told;
        for seat in self.seats().into_iter().filter(|seat| !std::ptr::eq(by, &**seat)) {
            if seat.has_tasks() {
                seat.abort(is_told);
                if !is_told {
                    seat.post(Code::COMMANDS_CLEARED_BY_ANOTHER);
                }
            }
        }
    }

    /// Has `code` reported to those whom `is_told` chooses.
    pub(super) fn tell(&self, code: Code, is_told: impl Fn(&Seat) -> bool) {
        self.seats().iter().filter(|seat| is_told(seat)).for_each(|seat| seat.post(code));
    }

    /// Somebody sits down.
    pub(super) fn seat(&self, seat: &Arc<Seat>) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(seat));
    }

    fn seats(&self) -> Vec<Arc<Seat>> {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.iter().filter_map(Weak::upgrade).collect()
    }
}
