//! SCSI commands: from their turn to their answer.
//!
//! ```text
//!   begin -> advance: data unasked | verdict | R2T -> data | start: others first? limits? memory? -> at once | pool -> done -> end
//! ```
//! What holds: a command is answered once or, aborted, never; it is answered only when nothing of it can come unasked any more; what
//! needs no waiting is answered where it came in.

use super::{BATCH, Desk, Exchange, Stage};
use crate::job::{Done, Job};
use crate::pdu::{DataOut, Residual, Response};
use crate::scsi::{Code, Fate, Key, Outcome, Sense, Status, Traffic};
use crate::sender::Addressee;
use crate::session::{Finished, Ticket};
use coffer_gateway::Deed;
use coffer_gateway::serving::{Buffer, SWIFT};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Larger reads are copied by a storage thread, beside the sending of others.
const AT_ONCE: u64 = 512 << 10;

/// RFC 7143, 11.4.7.2: data came unasked, too many or too few, or damaged.
const INCORRECT_AMOUNT_OF_DATA: Code = Code(0x0c0d);

impl Desk {
    /// A command's turn has come.
    pub(super) fn begin(&mut self, mut exchange: Exchange) {
        let tag = exchange.command.tag;
        if exchange.verdict.is_none() {
            let command = &exchange.command;
            let prepared = match &self.session.disks {
                // Both ways at once is what no disk command does.
                Some(_) if command.reads && command.writes => Err(Outcome::check(Sense::illegal(Code::INVALID_OPCODE))),
                Some(disks) => disks.nexus.prepare(command.lun, command.cdb.bytes()),
                None => Err(Outcome::check(Sense::illegal(Code::LUN_NOT_SUPPORTED))),
            };
            match prepared {
                Ok(task) => {
                    exchange.verdict = task.check_expected(exchange.writes()).err();
                    exchange.task = Some(task);
                }
                Err(outcome) => exchange.verdict = Some(outcome),
            }
        }
        // The quick way, without a place among those that take longer.
        if let Some(task) = &exchange.task
            && exchange.verdict.is_none()
            && !exchange.gathering.is_open()
            && task.data_out() == 0
            && task.data_in() <= AT_ONCE
        {
            let ticket = exchange.ticket();
            if self.session.ready(ticket) {
                if self.is_admitted(&mut exchange) {
                    if self.run_at_once(&mut exchange) {
                        return;
                    }
                } else {
                    exchange.stage = Stage::Parked;
                }
            } else {
                exchange.stage = Stage::Dormant;
            }
        }
        let stage = exchange.stage;
        self.exchanges.insert(tag, exchange);
        if stage == Stage::Gathering {
            self.advance(tag);
        }
    }

    /// Does what can be done for a command that waits for data or memory.
    fn advance(&mut self, tag: u32) {
        let Some(exchange) = self.exchanges.get_mut(&tag) else { return };
        if exchange.stage != Stage::Gathering || exchange.gathering.is_open() {
            return;
        }
        if let Some(outcome) = exchange.verdict {
            return self.conclude_early(tag, &outcome);
        }
        let need = exchange.needs();
        exchange.gathering.need(u32::try_from(need).unwrap_or(u32::MAX));
        let ticket = exchange.ticket();
        let may_overtake = exchange.lacks() == 0 || self.queue.is_empty();
        if may_overtake && self.reserve(tag) {
            return self.go_on(tag);
        }
        self.queue.push_back(ticket);
    }

    /// Asks for data, or starts: the memory is there.
    fn go_on(&mut self, tag: u32) {
        let terms = self.session.identity.terms;
        loop {
            let target_tag = self.target_tag();
            let Some(exchange) = self.exchanges.get_mut(&tag) else { return };
            let most = usize::from(terms.max_outstanding_r2t);
            let Some(burst) = exchange.gathering.ask(target_tag, most, terms.max_burst) else { break };
            exchange.is_moving = true;
            let response = Response::ReadyToTransfer {
                tag,
                target_tag,
                lun: exchange.command.lun,
                r2t_sn: burst.r2t_sn,
                offset: burst.range.start,
                length: burst.range.end - burst.range.start,
            };
            self.respond(&response, &[]);
        }
        if self.exchanges.get(&tag).is_some_and(|exchange| exchange.gathering.is_complete()) {
            self.start(tag);
        }
    }

    /// All data of a command are there.
    fn start(&mut self, tag: u32) {
        let Some(mut exchange) = self.exchanges.remove(&tag) else { return };
        if !self.session.ready(exchange.ticket()) {
            exchange.stage = Stage::Dormant;
        } else if !self.is_admitted(&mut exchange) {
            exchange.stage = Stage::Parked;
        } else if exchange.task.as_ref().is_some_and(|task| task.data_out() == 0 && task.data_in() <= AT_ONCE)
            && self.run_at_once(&mut exchange)
        {
            return;
        } else if self.jobs < self.services.options.requests_in_flight.max(1) {
            self.submit(&mut exchange);
        } else {
            exchange.stage = Stage::Gathering;
            self.queue.push_back(exchange.ticket());
        }
        self.exchanges.insert(tag, exchange);
    }

    /// Whether the limits of a command's export let it begin now; else it is parked.
    fn is_admitted(&mut self, exchange: &mut Exchange) -> bool {
        if exchange.is_charged {
            return true;
        }
        let Some(export) = exchange.task.as_ref().and_then(|task| task.export()) else { return true };
        let Some(meter) = export.meter() else { return true };
        let bytes = match exchange.traffic() {
            Traffic::Read(bytes) | Traffic::Write(bytes) => bytes,
            Traffic::Other => 0,
        };
        let Some(wait) = meter.admit(bytes) else {
            exchange.is_charged = true;
            return true;
        };
        export.activity().delayed();
        self.session.activity.delayed();
        self.parked.push((Instant::now() + wait, exchange.ticket()));
        false
    }

    /// Runs a command that needs no waiting; `false` when it does.
    fn run_at_once(&mut self, exchange: &mut Exchange) -> bool {
        let Some(task) = &exchange.task else { return false };
        if task.fate() != Fate::Free {
            return false;
        }
        let (ticket, to) = (exchange.ticket(), exchange.addressee());
        let (session, own) = (&self.session, self.visit.id());
        let mut finished = Finished::default();
        // The answer tells of the window that the command's end leaves.
        let mut end = || {
            finished = session.finish(own, ticket);
            session.window()
        };
        let outcome = if self.sender.fits_in_place(task.data_in()) {
            let run = |out: &mut Buffer| out.lend(|place| task.try_run(place));
            self.sender.read_in_place(end, to, run)
        } else {
            let mut buffer = self.sender.output.spare();
            buffer.grow(self.sender.room());
            let outcome = buffer.lend(|place| task.try_run(place));
            match &outcome {
                Some(outcome) => self.sender.read_out(end(), to, buffer, outcome),
                None => self.sender.output.recycle(buffer),
            }
            outcome
        };
        let Some(outcome) = outcome else { return false };
        self.count(exchange, &outcome, Some(Duration::ZERO));
        self.give_back(exchange.cost);
        self.wake(finished);
        true
    }

    fn submit(&mut self, exchange: &mut Exchange) {
        let Some(task) = exchange.task.take() else { return };
        exchange.stage = Stage::Running;
        self.jobs += 1;
        let mut data_in = Buffer::default();
        if task.data_in() > 0 {
            data_in = self.sender.output.spare();
            data_in.grow(self.sender.room());
        }
        let data_out = std::mem::take(&mut exchange.data);
        let is_swift = task.data_out() <= SWIFT && task.is_swift();
        let given = usize::try_from(task.data_out().min(exchange.writes())).unwrap_or(usize::MAX);
        let job = Job {
            ticket: exchange.ticket(),
            task,
            given: given.min(data_out.len()),
            data_out,
            data_in,
            stop: Arc::clone(&exchange.stop),
            cost: std::mem::take(&mut exchange.cost),
            since: Instant::now(),
            outcome: Outcome::GOOD,
            is_swift,
            returns: Arc::clone(&self.returns),
        };
        self.outgoing.push(job);
    }

    /// A job came back.
    pub(super) fn done(&mut self, done: Done) {
        let Done { ticket, task, data_out, data_in, outcome, cost, latency } = done;
        self.give_back(cost);
        self.sender.output.recycle(data_out);
        let is_known = self.exchanges.get(&ticket.tag).is_some_and(|exchange| exchange.number == ticket.number);
        let Some(mut exchange) = is_known.then(|| self.exchanges.remove(&ticket.tag)).flatten() else {
            self.sender.output.recycle(data_in);
            return;
        };
        let (fate, to) = (task.fate(), exchange.addressee());
        let moved = task.data_out();
        exchange.task = Some(task);
        self.count(&exchange, &outcome, Some(latency));
        let finished = self.session.finish(self.visit.id(), ticket);
        let window = self.session.window();
        let requests = exchange.gathering.requests();
        match fate {
            _ if !finished.is_wanted => self.sender.output.recycle(data_in),
            Fate::Silent => self.sender.output.recycle(data_in),
            Fate::Told(outcome) => {
                self.sender.output.recycle(data_in);
                self.sender.end(window, ticket.tag, &outcome, requests, Residual::of(to.expected.into(), 0));
            }
            Fate::Free if exchange.command.writes || moved > 0 => {
                self.sender.output.recycle(data_in);
                let residual = Residual::of(exchange.writes(), moved);
                self.sender.end(window, ticket.tag, &outcome, requests, residual);
            }
            Fate::Free => self.sender.read_out(window, to, data_in, &outcome),
        }
        self.wake(finished);
    }

    /// A command ends before anything was moved.
    fn conclude_early(&mut self, tag: u32, outcome: &Outcome) {
        let Some(exchange) = self.exchanges.remove(&tag) else { return };
        exchange.stop.store(true, Ordering::Release);
        self.count(&exchange, outcome, None);
        self.give_back(exchange.cost);
        let finished = self.session.finish(self.visit.id(), exchange.ticket());
        if finished.is_wanted {
            let residual = Residual::of(exchange.command.expected.into(), 0);
            let window = self.session.window();
            self.sender.end(window, tag, outcome, exchange.gathering.requests(), residual);
        }
        self.wake(finished);
    }

    /// Lets those begin that waited for a task that ended.
    fn wake(&mut self, finished: Finished) {
        finished.ready.into_iter().for_each(|ticket| self.awake(ticket));
    }

    fn count(&self, exchange: &Exchange, outcome: &Outcome, latency: Option<Duration>) {
        let Some(export) = exchange.task.as_ref().and_then(|task| task.export()) else { return };
        let deed = match exchange.traffic() {
            Traffic::Read(bytes) => Deed::Read(bytes),
            Traffic::Write(bytes) => Deed::Write(bytes),
            Traffic::Other => Deed::Other,
        };
        let is_well = matches!(outcome.status, Status::Good | Status::ConditionMet);
        export.activity().answered(deed, is_well, latency);
        self.session.activity.answered(deed, is_well, latency);
    }

    /// A Data-Out is there with its bytes; `is_sound` unless they were damaged.
    pub(super) fn take_data(&mut self, data: &DataOut, len: usize, buffer: Option<Buffer>, is_sound: bool) {
        let Some(exchange) = self.exchanges.get_mut(&data.tag) else { return };
        if let Some(buffer) = buffer {
            exchange.data = buffer;
        }
        exchange.is_moving = true;
        let count = u32::try_from(len).unwrap_or(u32::MAX);
        if exchange.gathering.arrived(data, count, is_sound).is_err() {
            return self.spoil(data.tag);
        }
        self.advance(data.tag);
    }

    /// Ends commands whose data the initiator does not send, though it is there. Nothing that comes of them later is taken for another
    /// command's: on one connection it comes before the tag is used again.
    pub(crate) fn look_after_data(&mut self, now: Instant) {
        let patience = self.services.options.data_timeout;
        let mut late = Vec::new();
        for (tag, exchange) in self.exchanges.iter_mut().filter(|(_, exchange)| exchange.gathering.is_due()) {
            match exchange.still_since {
                Some(since) if !exchange.is_moving => {
                    if now.saturating_duration_since(since) > patience {
                        late.push(*tag);
                    }
                }
                _ => exchange.still_since = Some(now),
            }
            exchange.is_moving = false;
        }
        for tag in late {
            let Some(exchange) = self.exchanges.get_mut(&tag) else { continue };
            let sense = Sense::new(Key::AbortedCommand, Code::INITIATOR_RESPONSE_TIMEOUT);
            exchange.verdict.get_or_insert(Outcome::check(sense));
            exchange.gathering.give_up();
            let (data, cost) = (std::mem::take(&mut exchange.data), std::mem::take(&mut exchange.cost));
            self.sender.output.recycle(data);
            self.give_back(cost);
            self.advance(tag);
        }
    }

    /// The data of a command came out of order, or were damaged too often: it ends, and what comes of them is skipped.
    pub(super) fn spoil(&mut self, tag: u32) {
        let Some(exchange) = self.exchanges.get_mut(&tag) else { return };
        let sense = Sense::new(Key::AbortedCommand, INCORRECT_AMOUNT_OF_DATA);
        exchange.verdict = Some(Outcome::check(sense));
        exchange.gathering.give_up();
        self.advance(tag);
    }

    /// A task that waited for others may begin.
    pub(super) fn awake(&mut self, ticket: Ticket) {
        let Some(exchange) = self.exchange(ticket) else { return };
        if exchange.stage == Stage::Dormant {
            exchange.stage = Stage::Gathering;
            self.advance(ticket.tag);
        }
    }

    /// A task is not wanted any more, and its session knows.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        if self.exchange(ticket).is_none() {
            return;
        }
        if let Some(exchange) = self.exchanges.remove(&ticket.tag) {
            exchange.stop.store(true, Ordering::Release);
            self.give_back(exchange.cost);
            self.sender.forget(ticket.tag);
        }
    }

    /// Commands that limits held back and may ask again.
    pub(crate) fn unpark(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.parked).into_iter().partition(|(until, _)| *until <= now);
        self.parked = later;
        let due: Vec<(Instant, Ticket)> = due;
        for (_, ticket) in due {
            let Some(exchange) = self.exchange(ticket) else { continue };
            if exchange.stage == Stage::Parked {
                exchange.stage = Stage::Gathering;
                self.advance(ticket.tag);
            }
        }
    }

    /// Lets those go on that waited for memory or a place in the pool; whether any did.
    pub(super) fn serve_queue(&mut self) -> bool {
        let mut has_moved = false;
        while let Some(ticket) = self.queue.front().copied()
            && self.sender.output.pending() < BATCH
            && !self.asked.is_waiting()
        {
            let has_place = self.jobs < self.services.options.requests_in_flight.max(1);
            let Some(exchange) = self.exchange(ticket) else {
                self.queue.pop_front();
                continue;
            };
            if exchange.stage != Stage::Gathering {
                self.queue.pop_front();
                continue;
            }
            if !has_place || !self.reserve(ticket.tag) {
                break;
            }
            self.queue.pop_front();
            self.go_on(ticket.tag);
            has_moved = true;
        }
        has_moved
    }

    /// Counts all that a command needs, if it is to be had; else the wait for it begins, if it is the budget that lacks it.
    fn reserve(&mut self, tag: u32) -> bool {
        let Some(exchange) = self.exchanges.get_mut(&tag) else { return true };
        let more = exchange.lacks();
        let is_had = more == 0 || self.asked.take(more, self.sender.output.pending());
        if is_had {
            exchange.cost.asked += more;
        }
        is_had
    }

    /// Ends commands that another nexus aborted while they waited for something.
    pub(crate) fn look_after_fates(&mut self) {
        let aborted = |exchange: &Exchange| {
            let fate = exchange.task.as_ref().map_or(Fate::Free, |task| task.fate());
            (fate != Fate::Free).then(|| (exchange.ticket(), fate))
        };
        let aborted: Vec<(Ticket, Fate)> = self.exchanges.values().filter_map(aborted).collect();
        for (ticket, fate) in aborted {
            match fate {
                Fate::Told(outcome) => self.conclude_early(ticket.tag, &outcome),
                _ => {
                    self.forget(ticket);
                    let finished = self.session.finish(self.visit.id(), ticket);
                    self.wake(finished);
                }
            }
        }
    }

    fn exchange(&mut self, ticket: Ticket) -> Option<&mut Exchange> {
        self.exchanges.get_mut(&ticket.tag).filter(|exchange| exchange.number == ticket.number)
    }
}

impl Exchange {
    fn ticket(&self) -> Ticket {
        Ticket { tag: self.command.tag, number: self.number }
    }

    fn addressee(&self) -> Addressee {
        let expected = if self.command.reads { self.command.expected } else { 0 };
        Addressee { tag: self.command.tag, lun: self.command.lun, expected }
    }

    /// Bytes that the initiator is willing to send.
    fn writes(&self) -> u64 {
        if self.command.writes { self.command.expected.into() } else { 0 }
    }

    /// Bytes that are needed of the initiator.
    fn needs(&self) -> u64 {
        self.task.as_ref().map_or(0, |task| task.data_out().min(self.writes()))
    }

    /// Bytes of memory that it takes on its way, and has not.
    fn lacks(&self) -> usize {
        let gives = self.task.as_ref().map_or(0, |task| task.data_in());
        let all = usize::try_from(self.needs().max(gives)).unwrap_or(usize::MAX);
        all.saturating_sub(self.cost.unasked + self.cost.asked)
    }

    fn traffic(&self) -> Traffic {
        self.task.as_ref().map_or(Traffic::Other, |task| task.traffic())
    }
}
