//! Where one connection's PDUs are dealt with: what comes in is put in order, run, and answered.
//!
//! ```text
//!   announce   a header: where its data go                               this file
//!   accept     a whole PDU: in its turn now, later, or never
//!     commands   tasks: data gathered, memory, limits, storage, answers
//!     control    pings, text, task management, logout, what is missing
//!     ration     memory
//! ```
//! Not here: sockets and framing ([`crate::connection`]), the order over connections ([`crate::session`]). What holds: nothing waits here;
//! data that come unasked and data that were asked for have budgets of their own: a command whose data come unasked and have no room
//! ends with TASK SET FULL, any other waits for all the memory that it needs before it asks for data, so that whatever has memory
//! can go on; jobs in the pool are at most `requests_in_flight`, aborted ones included.

mod commands;
mod control;
mod ration;

use crate::gathering::{Gathering, Place};
use crate::job::{Done, Job};
use crate::pdu::{Async, Command, DataOut, Flaw, Head, NO_TAG, Rejection, Request, Response, opcode};
use crate::scsi::{Outcome, Status, Task};
use crate::sender::{Format, Sender};
use crate::server::{Entry, Services};
use crate::session::{Arrival, Mail, Newcomer, Session, Ticket};
use coffer_gateway::serving::{Buffer, Returns, Visit};
use control::Talk;
use ration::Ration;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc;

/// Bytes that a connection may hold whatever others hold: a command of 1 MiB, and as much that comes unasked.
const OWN: usize = (1 << 20) + (64 << 10);
/// After so many bytes of answers the socket gets its turn.
pub(crate) const BATCH: usize = 1 << 20;

/// What is to become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It goes on.
    Open,
    /// It ends when what waits is sent; nothing more is taken.
    Flush,
    /// It ends.
    Now,
}

/// See the file's header.
pub(crate) struct Desk {
    services: Arc<Services>,
    pub(crate) session: Arc<Session>,
    visit: Arc<Visit<Entry>>,
    cid: u16,
    pub(crate) sender: Sender,
    pub(crate) ending: Ending,
    /// Commands that did not end, by tag.
    exchanges: HashMap<u32, Exchange>,
    /// What waits for its turn.
    held: BTreeMap<u64, Unit>,
    /// Commands that wait for memory or a place in the pool, the first one longest.
    queue: VecDeque<Ticket>,
    /// Commands that their export's limits hold back, and until when.
    parked: Vec<(Instant, Ticket)>,
    mail: mpsc::Receiver<Mail>,
    /// What goes to the pool when the input is used up.
    outgoing: Vec<Job>,
    returns: Arc<Returns<Done>>,
    /// Empty; where what came back is put.
    returned: Vec<Done>,
    jobs: usize,
    /// Memory of what comes unasked, and of the rest.
    unasked: Ration,
    asked: Ration,
    last_target_tag: u32,
    talk: Talk,
}

/// A command that did not end.
pub(crate) struct Exchange {
    command: Command,
    is_immediate: bool,
    number: u64,
    /// What came so far, at its offsets.
    data: Buffer,
    gathering: Gathering,
    cost: Cost,
    task: Option<Task>,
    /// How it will end, when that is known before its data are there.
    verdict: Option<Outcome>,
    stage: Stage,
    is_charged: bool,
    /// Whether data came or were asked for since the last look, and the first look that found that they did not.
    is_moving: bool,
    still_since: Option<Instant>,
    stop: Arc<AtomicBool>,
}

/// Bytes that are counted for a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    unasked: usize,
    asked: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its turn has not come.
    Early,
    /// It waits for data or memory.
    Gathering,
    /// It waits for other tasks.
    Dormant,
    /// It waits for its export's limits.
    Parked,
    /// In the pool.
    Running,
}

/// What waits for its turn.
enum Unit {
    Command(u32),
    Control(Request, Vec<u8>),
    Nothing,
}

/// A PDU whose data are coming in.
pub(crate) struct Incoming {
    pub(crate) head: Head,
    request: Option<Request>,
    /// The command that it begins.
    exchange: Option<Box<Exchange>>,
    rejection: Option<Rejection>,
    /// Nothing comes of it.
    is_void: bool,
}

/// Where the data of a PDU go.
pub(crate) enum Destination {
    Skip,
    /// Into this buffer, from there on.
    Into(Buffer, usize),
}

impl Desk {
    pub(crate) fn new(
        services: Arc<Services>,
        session: Arc<Session>,
        visit: Arc<Visit<Entry>>,
        cid: u16,
        mail: mpsc::Receiver<Mail>,
        format: Format,
        stat_sn: u32,
    ) -> Self {
        let most = services.options.bytes_in_flight;
        let unasked = Ration::new(&services.unasked, OWN, most);
        let asked = Ration::new(&services.asked, OWN, most);
        Desk {
            services,
            session,
            visit,
            cid,
            sender: Sender::new(format, stat_sn),
            ending: Ending::Open,
            exchanges: HashMap::new(),
            held: BTreeMap::new(),
            queue: VecDeque::new(),
            parked: Vec::new(),
            mail,
            outgoing: Vec::new(),
            returns: Arc::default(),
            returned: Vec::new(),
            jobs: 0,
            unasked,
            asked,
            last_target_tag: 0,
            talk: Talk::default(),
        }
    }

    /// Looks at a header: where its data go, and what to give to [`Desk::accept`] when they are there.
    pub(crate) fn announce(&mut self, head: Head, ahs: &[u8]) -> (Incoming, Destination) {
        let len = head.lengths().data;
        let mut incoming = Incoming { head, request: None, exchange: None, rejection: None, is_void: false };
        if len > self.services.options.allowance.max_segment as usize {
            // Nobody has to swallow it.
            self.reject(&head, Rejection::InvalidField);
            self.ending = Ending::Flush;
            return (incoming, Destination::Skip);
        }
        let request = match Request::decode(&head, ahs) {
            Ok(request) => request,
            Err(Flaw(reason)) => {
                incoming.rejection = Some(reason);
                return (incoming, Destination::Skip);
            }
        };
        let destination = match &request {
            Request::Command(command) => {
                let is_early_or_new = head.is_immediate() || self.session.is_in_window(head.u32(24));
                if !is_early_or_new {
                    return (incoming, Destination::Skip);
                }
                self.announce_command(command, head.is_immediate(), len, &mut incoming)
            }
            Request::DataOut(data) => self.announce_data(data, len, &mut incoming),
            // A login is over, and what is missing has no data.
            Request::Login(_) | Request::Management(_) | Request::Logout(_) | Request::Snack(_) => Destination::Skip,
            Request::NopOut(_) | Request::Text(_) => Destination::Into(self.sender.output.spare(), 0),
        };
        incoming.request = Some(request);
        (incoming, destination)
    }

    fn announce_command(
        &mut self,
        command: &Command,
        is_immediate: bool,
        len: usize,
        incoming: &mut Incoming,
    ) -> Destination {
        let terms = &self.session.identity.terms;
        let limit = terms.first_burst.min(command.expected);
        let given = u32::try_from(len).unwrap_or(u32::MAX);
        let is_unasked =
            (len > 0 && (!terms.immediate_data || !command.writes)) || (!command.is_final && terms.initial_r2t);
        if is_unasked || given > limit {
            incoming.rejection = Some(Rejection::Protocol);
            return Destination::Skip;
        }
        if self.exchanges.contains_key(&command.tag) {
            incoming.rejection = Some(Rejection::TaskInProgress);
            return Destination::Skip;
        }
        let mut exchange = Box::new(Exchange {
            command: command.clone(),
            is_immediate,
            number: 0,
            data: Buffer::default(),
            gathering: Gathering::new(given, !command.is_final, limit),
            cost: Cost::default(),
            task: None,
            verdict: None,
            stage: Stage::Early,
            is_charged: false,
            is_moving: true,
            still_since: None,
            stop: Arc::default(),
        });
        let unasked = if command.is_final { given } else { limit } as usize;
        let mut destination = Destination::Skip;
        if unasked == 0 || self.unasked.try_take(unasked, 0) {
            exchange.cost.unasked = unasked;
            if len > 0 {
                let mut buffer = self.sender.output.spare();
                buffer.grow(len);
                destination = Destination::Into(buffer, 0);
            }
        } else {
            exchange.verdict = Some(Outcome { status: Status::TaskSetFull, sense: None });
        }
        incoming.exchange = Some(exchange);
        destination
    }

    fn announce_data(&mut self, data: &DataOut, len: usize, incoming: &mut Incoming) -> Destination {
        let may_recover = self.may_recover();
        // Its command may have been aborted, or was never taken.
        let Some(exchange) = self.exchanges.get_mut(&data.tag) else { return Destination::Skip };
        let count = u32::try_from(len).unwrap_or(u32::MAX);
        match exchange.gathering.place(data, count, may_recover) {
            Ok(Place::At(_)) if exchange.verdict.is_some() => Destination::Skip,
            Ok(Place::At(at)) => {
                let mut buffer = std::mem::take(&mut exchange.data);
                let missing = (at + len).saturating_sub(buffer.len());
                buffer.grow(missing);
                Destination::Into(buffer, at)
            }
            Ok(Place::Skip) => {
                incoming.is_void = true;
                Destination::Skip
            }
            Err(_) => {
                incoming.is_void = true;
                self.spoil(data.tag);
                Destination::Skip
            }
        }
    }

    /// Takes a whole PDU with its data; `is_sound` unless they were damaged on the way.
    pub(crate) fn accept(&mut self, incoming: Incoming, buffer: Option<Buffer>, is_sound: bool) {
        let Incoming { head, request, exchange, rejection, is_void } = incoming;
        self.acknowledged(&head);
        if let Some(reason) = rejection {
            return self.rejected(&head, reason);
        }
        let Some(request) = request.filter(|_| !is_void) else { return };
        if !is_sound {
            return self.damaged(&head, &request, exchange, buffer);
        }
        match request {
            Request::Command(command) => {
                let Some(mut exchange) = exchange else { return };
                exchange.data = buffer.unwrap_or_default();
                self.take_command(&head, &command, exchange);
            }
            Request::DataOut(data) => self.take_data(&data, head.lengths().data, buffer, true),
            Request::Snack(snack) => self.take_snack(&head, &snack),
            Request::Login(_) => self.violated(&head, Rejection::Protocol),
            Request::NopOut(nop) if nop.tag == NO_TAG => self.take_pong(&nop),
            control => {
                let text = buffer.as_ref().map(|buffer| buffer.filled().to_vec()).unwrap_or_default();
                if let Some(buffer) = buffer {
                    self.sender.output.recycle(buffer);
                }
                if head.is_immediate() {
                    return self.take_control(&head, control, text);
                }
                match self.session.arrive(self.visit.id(), head.u32(24), None) {
                    Arrival::Now { followers, .. } | Arrival::Rejected { followers, .. } => {
                        self.take_control(&head, control, text);
                        self.turns(followers);
                    }
                    Arrival::Later(long) => {
                        // Nobody needs to send so much beside commands, and out of order.
                        if !self.unasked.try_take(text.len(), 0) {
                            self.ending = Ending::Now;
                            return;
                        }
                        self.held.insert(long, Unit::Control(control, text));
                    }
                    Arrival::Ignored => {}
                }
            }
        }
    }

    /// Puts a command in its order.
    fn take_command(&mut self, head: &Head, command: &Command, mut exchange: Box<Exchange>) {
        let newcomer = Newcomer { tag: command.tag, lun: command.lun, attribute: command.attribute };
        let cost = exchange.cost;
        let arrival = if exchange.is_immediate {
            match self.session.arrive_at_once(self.visit.id(), newcomer) {
                Ok(number) => Arrival::Now { number, followers: Vec::new() },
                Err(reason) => Arrival::Rejected { reason, followers: Vec::new() },
            }
        } else {
            self.session.arrive(self.visit.id(), head.u32(24), Some(newcomer))
        };
        match arrival {
            Arrival::Now { number, followers } => {
                exchange.number = number;
                exchange.stage = Stage::Gathering;
                self.begin(*exchange);
                self.turns(followers);
            }
            Arrival::Later(long) => {
                self.exchanges.insert(command.tag, *exchange);
                self.held.insert(long, Unit::Command(command.tag));
            }
            Arrival::Ignored => self.give_back(cost),
            Arrival::Rejected { reason, followers } => {
                self.give_back(cost);
                self.reject(head, reason);
                self.turns(followers);
            }
        }
    }

    /// The turn of these has come.
    fn turns(&mut self, longs: Vec<u64>) {
        for long in longs {
            match self.held.remove(&long) {
                Some(Unit::Command(tag)) => {
                    let Some(mut exchange) = self.exchanges.remove(&tag) else { continue };
                    let Some(number) = self.session.number(self.visit.id(), tag) else {
                        // Aborted in the same moment, or of a tag that another connection uses.
                        self.give_back(exchange.cost);
                        continue;
                    };
                    exchange.number = number;
                    exchange.stage = Stage::Gathering;
                    self.begin(exchange);
                }
                Some(Unit::Control(request, text)) => {
                    self.unasked.give_back(text.len());
                    self.take_control(&Head::new(0), request, text);
                }
                Some(Unit::Nothing) | None => {}
            }
        }
    }

    /// What waits under this number does not get its turn.
    fn void(&mut self, long: u64) {
        if let Some(Unit::Command(tag)) = self.held.remove(&long)
            && let Some(exchange) = self.exchanges.remove(&tag)
        {
            self.give_back(exchange.cost);
        }
    }

    /// Data were damaged on the way: at level 0 that ends the connection.
    fn damaged(&mut self, head: &Head, request: &Request, exchange: Option<Box<Exchange>>, buffer: Option<Buffer>) {
        self.reject(head, Rejection::DataDigest);
        if !self.may_recover() {
            self.ending = Ending::Flush;
        }
        match request {
            // It will come again, under the same number.
            Request::Command(_) => self.give_back(exchange.map_or(Cost::default(), |exchange| exchange.cost)),
            Request::DataOut(data) => self.take_data(data, head.lengths().data, buffer, false),
            _ => {}
        }
    }

    /// A PDU that is not taken, though its number counts.
    fn rejected(&mut self, head: &Head, reason: Rejection) {
        let has_number = matches!(
            head.opcode(),
            opcode::NOP_OUT | opcode::COMMAND | opcode::MANAGEMENT | opcode::TEXT | opcode::LOGOUT
        );
        let mut followers = Vec::new();
        if has_number && !head.is_immediate() {
            match self.session.arrive(self.visit.id(), head.u32(24), None) {
                Arrival::Now { followers: more, .. } | Arrival::Rejected { followers: more, .. } => followers = more,
                Arrival::Later(long) => {
                    self.held.insert(long, Unit::Nothing);
                }
                Arrival::Ignored => return,
            }
        }
        match reason {
            Rejection::Protocol => self.violated(head, reason),
            _ => self.reject(head, reason),
        }
        self.turns(followers);
    }

    /// The initiator broke the protocol: at level 0 that ends the connection.
    fn violated(&mut self, head: &Head, reason: Rejection) {
        self.reject(head, reason);
        if !self.may_recover() {
            self.ending = Ending::Flush;
        }
    }

    fn reject(&mut self, head: &Head, reason: Rejection) {
        self.respond(&Response::Reject { reason }, &head.0);
    }

    fn respond(&mut self, response: &Response, data: &[u8]) {
        self.sender.respond(self.session.window(), response, data);
    }

    /// A tag that was not used for long.
    fn target_tag(&mut self) -> u32 {
        self.last_target_tag = self.last_target_tag.wrapping_add(1) % NO_TAG;
        self.last_target_tag
    }

    fn may_recover(&self) -> bool {
        self.session.identity.terms.error_recovery_level > 0
    }

    /// Every request says which answers have arrived.
    fn acknowledged(&mut self, head: &Head) {
        if self.may_recover() {
            self.sender.acknowledge(head.u32(28));
        }
    }

    /// Asks the initiator to log out within `seconds`.
    pub(crate) fn ask_to_log_out(&mut self, seconds: u16) {
        match self.session.disks {
            Some(_) => self.respond(&Response::Async(Async::Logout(seconds)), &[]),
            None => self.ending = Ending::Flush,
        }
    }

    /// Tells the initiator that the target ends the connection.
    pub(crate) fn say_goodbye(&mut self) {
        self.respond(&Response::Async(Async::ConnectionEnds(self.cid, 0, 0)), &[]);
        self.ending = Ending::Flush;
    }

    /// Jobs of its own that the storage threads have.
    pub(crate) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.exchanges.is_empty() && self.held.is_empty() && self.jobs == 0 && self.sender.output.pending() == 0
    }

    fn give_back(&mut self, cost: Cost) {
        self.unasked.give_back(cost.unasked);
        self.asked.give_back(cost.asked);
    }

    /// Has the pool begin what the input gave it to do.
    pub(crate) fn hand_over(&mut self) {
        self.services.pool.submit(self.visit.id(), self.outgoing.drain(..));
    }

    /// Lets go of what is kept to be used again.
    pub(crate) fn rest(&mut self) {
        (self.outgoing, self.returned) = (Vec::new(), Vec::new());
        self.returns.rest();
        self.sender.output.rest();
    }

    /// Gives back what is not needed of the budgets, and notes whether it is the initiator that keeps the rest; whether commands that
    /// wait for memory have to ask again.
    pub(crate) fn settle(&mut self) -> bool {
        self.unasked.settle(0);
        let has_to_ask = self.asked.settle(self.sender.output.pending());
        let is_granted = self.unasked.is_granted() || self.asked.is_granted();
        self.visit.set_owing(is_granted && self.jobs == 0 && !self.asked.is_waiting());
        has_to_ask
    }

    /// Looks for what others said and the pool did; whether there was anything.
    pub(crate) fn poll_news(&mut self, cx: &mut Context<'_>) -> bool {
        let mut returned = std::mem::take(&mut self.returned);
        let mut has_moved = self.jobs > 0 && self.returns.fetch(cx, &mut returned).is_ready();
        for done in returned.drain(..) {
            self.jobs -= 1;
            self.done(done);
        }
        self.returned = returned;
        while let Poll::Ready(Some(mail)) = self.mail.poll_recv(cx) {
            has_moved = true;
            match mail {
                Mail::Turn(long) => self.turns(vec![long]),
                Mail::Ready(ticket) => self.awake(ticket),
                Mail::Forget(ticket) => self.forget(ticket),
                Mail::Void(long) => self.void(long),
                Mail::Close => self.ending = Ending::Now,
            }
        }
        has_moved |= self.asked.poll(cx);
        has_moved |= self.serve_queue();
        has_moved
    }

    /// When the next command that limits hold back may ask again.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.parked.iter().map(|(until, _)| *until).min()
    }

    /// Ends what storage still does for it; its outcomes are not waited for.
    pub(crate) fn abandon(&mut self) {
        self.exchanges.values().for_each(|exchange| exchange.stop.store(true, Ordering::Release));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.abandon();
    }
}
