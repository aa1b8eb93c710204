//! A connection in its transmission phase: one task that reads requests, answers what needs no waiting, sends the rest to
//! the storage threads and writes replies in whatever order they are done.
//!
//! ```text
//!   socket -> Input -> check -> answered at once ------------------+-> Output -> socket
//!                        |                                         |
//!                        +-> Pool (read, write, zero, ...) -> done +
//! ```
//! Not here: what a request does to a device, how a reply is framed. What holds: a connection has at most
//! `requests_in_flight` requests in the pool and `bytes_in_flight` bytes of requests and unsent replies, or a single larger
//! request; beyond that it stops reading its socket, so a client that does not read its replies, or sends without end, waits
//! alone. What it holds beyond [`OWN`] it has from the server's common budget, and waits for, in turn with others. A connection
//! that rests keeps no buffers. A request that its export's limits hold back waits at the head of the input, in nobody's way but its own
//! connection's. Nothing here blocks; all the work between two waits is bounded by one batch.

use super::super::proto::transmission::{Request, command, command_flag};
use super::super::proto::{Framing, MAX_PAYLOAD};
use super::entry::Entry;
use super::job::{Done, Job};
use super::session::{Refusal, Session};
use super::{Services, reply};
use crate::export::Deed;
use crate::serving::{Buffer, Grant, INPUT, Input, Output, Returns, Vigil, Visit, Wait};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes that a connection may hold whatever others hold: a request of 1 MiB.
const OWN: usize = (1 << 20) + (64 << 10);
/// Larger reads are copied by a storage thread, beside the sending of others.
const AT_ONCE: u64 = 512 << 10;
/// After so many bytes of replies the socket gets its turn.
const BATCH: usize = 1 << 20;

/// One connection. The contract is the module's header.
pub(super) struct Transmission<S> {
    stream: S,
    session: Arc<Session>,
    services: Arc<Services>,
    /// Also its place in the pool.
    visit: Arc<Visit<Entry>>,
    /// Until the request at the head of the input may ask its export's limits again.
    hold: Option<Pin<Box<Sleep>>>,
    vigil: Vigil,
    /// Whether the request at the head of the input was let through by its export's limits, and waits for something else.
    is_charged: bool,
    /// What it has of the common budget.
    grant: Option<Grant>,
    /// Until it gets more of it.
    wait: Option<Wait>,
    input: Input,
    incoming: Incoming,
    output: Output,
    /// What goes to the pool when the input is used up.
    outgoing: Vec<Job>,
    returns: Arc<Returns<Done>>,
    /// Empty; where what came back is put.
    returned: Vec<Done>,
    requests_in_pool: usize,
    /// Also of a request whose payload is still coming in.
    bytes_in_pool: usize,
    /// A stream that encrypts may keep the end of what it was given.
    is_unflushed: bool,
    /// No more requests are taken.
    is_closing: bool,
}

/// What the next bytes of the input are.
enum Incoming {
    Header,
    /// The payload of a request that was let through.
    Payload {
        request: Request,
        buffer: Buffer,
        missing: usize,
    },
    /// The payload of one that was refused.
    Refused {
        missing: u64,
    },
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transmission<S> {
    pub(super) fn new(stream: S, session: Session, visit: Arc<Visit<Entry>>, services: Arc<Services>) -> Self {
        Transmission {
            stream,
            session: Arc::new(session),
            services,
            visit,
            hold: None,
            vigil: Vigil::default(),
            is_charged: false,
            grant: None,
            wait: None,
            input: Input::default(),
            incoming: Incoming::Header,
            output: Output::default(),
            outgoing: Vec::new(),
            returns: Arc::default(),
            returned: Vec::new(),
            requests_in_pool: 0,
            bytes_in_pool: 0,
            is_unflushed: false,
            is_closing: false,
        }
    }

    /// Takes no more requests; [`Transmission::poll_run`] then ends when everything in flight is answered.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }

    /// Lets go of buffers if there is nothing to do.
    pub(super) fn rest(&mut self) {
        let is_idle = self.held() == 0 && self.requests_in_pool == 0 && self.hold.is_none() && self.wait.is_none();
        if is_idle && matches!(self.incoming, Incoming::Header) && self.input.filled().is_empty() {
            self.input = Input::default();
            (self.outgoing, self.returned) = (Vec::new(), Vec::new());
            self.returns.rest();
            self.output.rest();
        }
    }

    /// Drives the connection until it ends: the client left, or broke the protocol, or the server closes.
    pub(super) fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut has_moved = self.collect(cx);
            has_moved |= self.serve();
            self.services.pool.submit(self.visit.id(), self.outgoing.drain(..));
            while self.output.pending() > 0 {
                match self.output.poll_send(&mut self.stream, cx)? {
                    Poll::Ready(sent) => {
                        self.services.counters.sent(sent);
                        self.visit.moved(sent);
                    }
                    Poll::Pending => break,
                }
                self.is_unflushed = true;
                has_moved = true;
            }
            if self.is_unflushed && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
                self.is_unflushed = false;
            }
            let is_done = self.requests_in_pool == 0 && self.output.pending() == 0 && !self.is_unflushed;
            if self.is_closing && is_done {
                return Poll::Ready(Ok(()));
            }
            if self.wants_input()
                && let Poll::Ready(received) = self.poll_receive(cx)?
            {
                self.services.counters.received(received);
                self.visit.moved(received);
                self.is_closing |= received == 0;
                has_moved = true;
            }
            self.settle();
            if has_moved {
                self.vigil.end();
                continue;
            }
            if let Some(wait) = &mut self.wait
                && let Poll::Ready(granted) = wait.as_mut().poll(cx)
            {
                self.wait = None;
                granted.into_iter().for_each(|grant| self.granted(grant));
                continue;
            }
            if let Some(hold) = &mut self.hold {
                std::task::ready!(hold.as_mut().poll(cx));
                self.hold = None;
                continue;
            }
            if self.vigil.is_on(self.requests_in_pool, self.services.pool.in_hand()) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Takes finished requests back from the pool.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let mut returned = std::mem::take(&mut self.returned);
        let has_moved = self.requests_in_pool > 0 && self.returns.fetch(cx, &mut returned).is_ready();
        for Done { request, reply, is_well, latency } in returned.drain(..) {
            self.requests_in_pool -= 1;
            self.bytes_in_pool -= self.session.cost(&request);
            self.output.push(reply);
            self.answered(&request, is_well, Some(latency));
        }
        self.returned = returned;
        has_moved
    }

    fn answered(&self, request: &Request, is_well: bool, latency: Option<Duration>) {
        let deed = Session::deed(request);
        self.session.export.activity().answered(deed, is_well, latency);
        self.visit.activity().answered(deed, is_well, latency);
    }

    /// Works through the input until it is used up, a batch is full or a limit is reached.
    fn serve(&mut self) -> bool {
        let mut has_moved = false;
        while !self.is_closing && self.output.pending() < BATCH && self.step() {
            has_moved = true;
        }
        has_moved
    }

    /// Takes one step through the input; `false` when it needs more bytes, or more room.
    fn step(&mut self) -> bool {
        match &mut self.incoming {
            Incoming::Header => match Request::decode(self.session.framing, self.input.filled()) {
                Ok(Some(request)) => return self.admit(&request),
                Ok(None) => return false,
                // The stream is out of step; there is no way back.
                Err(_) => self.is_closing = true,
            },
            Incoming::Payload { buffer, missing, .. } if *missing > 0 => {
                let n = self.input.filled().len().min(*missing);
                let at = buffer.len() - *missing;
                buffer.part(at..at + n).copy_from_slice(self.input.take(n));
                *missing -= n;
                return n > 0;
            }
            Incoming::Payload { .. } => {
                if let Incoming::Payload { request, buffer, .. } =
                    std::mem::replace(&mut self.incoming, Incoming::Header)
                {
                    self.submit(request, buffer);
                }
            }
            Incoming::Refused { missing: 0 } => self.incoming = Incoming::Header,
            Incoming::Refused { missing } => {
                let n = usize::try_from(*missing).unwrap_or(usize::MAX).min(self.input.filled().len());
                self.input.take(n);
                *missing -= n as u64;
                return n > 0;
            }
        }
        true
    }

    /// Bytes of requests and of unsent replies.
    fn held(&self) -> usize {
        self.output.pending() + self.bytes_in_pool
    }

    /// Whether there is room for a request of `cost` bytes, as far as this connection goes.
    fn has_room(&self, cost: usize) -> bool {
        let held = self.held();
        self.requests_in_pool < self.services.options.requests_in_flight.max(1)
            && (held == 0 || held.saturating_add(cost) <= self.services.options.bytes_in_flight)
    }

    /// Whether the common budget allows a request of `cost` bytes; else it will, after a wait.
    fn has_budget(&mut self, cost: usize) -> bool {
        let own = OWN.saturating_add(self.grant.as_ref().map_or(0, Grant::bytes));
        let more = self.held().saturating_add(cost).saturating_sub(own);
        if more == 0 {
            return true;
        }
        let Some(grant) = self.services.budget.try_take(more) else {
            self.wait = Some(self.services.budget.take(more));
            return false;
        };
        self.granted(grant);
        true
    }

    fn granted(&mut self, grant: Grant) {
        match &mut self.grant {
            Some(granted) => granted.merge(grant),
            None => self.grant = Some(grant),
        }
    }

    /// Gives back what is not needed of the common budget, and notes whether it is the client that keeps the rest.
    fn settle(&mut self) {
        if self.grant.is_none() {
            return;
        }
        if self.held() <= OWN {
            self.grant = None;
        }
        self.visit.set_owing(self.grant.is_some() && self.requests_in_pool == 0);
    }

    /// Whether the export's limits hold `request` back; else it is charged to them.
    fn has_to_wait(&mut self, request: &Request) -> bool {
        if self.is_charged {
            return false;
        }
        let Some(meter) = self.session.export.meter() else { return false };
        let bytes = match Session::deed(request) {
            Deed::Read(bytes) | Deed::Write(bytes) => bytes,
            Deed::Other => 0,
        };
        let Some(wait) = meter.admit(bytes) else {
            self.is_charged = true;
            return false;
        };
        self.session.export.activity().delayed();
        self.visit.activity().delayed();
        self.hold = Some(Box::pin(sleep(wait)));
        true
    }

    /// Lets the request at the head of the input in; `false` when it has to wait there.
    fn admit(&mut self, request: &Request) -> bool {
        let verdict = self.session.check(request);
        if verdict.is_ok() {
            let (is_held, cost) = (self.hold.is_some() || self.wait.is_some(), self.session.cost(request));
            if is_held || !self.has_room(cost) || self.has_to_wait(request) || !self.has_budget(cost) {
                return false;
            }
        }
        self.is_charged = false;
        self.input.take(Request::wire_len(self.session.framing));
        if request.command == command::DISC {
            self.is_closing = true;
            return true;
        }
        self.services.counters.request();
        let has_payload = request.command == command::WRITE || self.is_extended_payload(request);
        match verdict {
            Err(Refusal(error, why)) => {
                self.output.append(|out| reply::error(self.session.framing, request, error, why, out));
                self.answered(request, false, None);
                if has_payload {
                    // Skipping a little keeps the connection; nobody has to swallow gigabytes.
                    self.is_closing |= request.length > MAX_PAYLOAD.into();
                    self.incoming = Incoming::Refused { missing: request.length };
                }
            }
            Ok(()) if has_payload => {
                let mut buffer = self.output.spare();
                let missing = usize::try_from(request.length).unwrap_or(0);
                buffer.grow(missing);
                self.bytes_in_pool += self.session.cost(request);
                self.incoming = Incoming::Payload { request: *request, buffer, missing };
            }
            Ok(()) => {
                let is_small = request.command != command::READ || request.length <= AT_ONCE;
                let at_once = match is_small {
                    true => self.output.append(|out| self.session.answer_at_once(request, out)),
                    false => None,
                };
                match at_once {
                    Some(is_well) => self.answered(request, is_well, Some(Duration::ZERO)),
                    None => {
                        let buffer = self.output.spare();
                        self.bytes_in_pool += self.session.cost(request);
                        self.submit(*request, buffer);
                    }
                }
            }
        }
        true
    }

    fn is_extended_payload(&self, request: &Request) -> bool {
        self.session.framing == Framing::Extended && request.flags & command_flag::PAYLOAD_LEN != 0
    }

    fn submit(&mut self, request: Request, buffer: Buffer) {
        self.requests_in_pool += 1;
        let (session, returns) = (Arc::clone(&self.session), Arc::clone(&self.returns));
        let is_swift = session.is_swift(&request);
        self.outgoing.push(Job { session, request, buffer, returns, is_swift, since: Instant::now(), is_well: false });
    }

    /// Whether more input could be used: not while a whole request, or a part of a payload, waits for room. While one is held back
    /// by limits or the budget there is still a look at what comes behind it, so that a client that leaves is noticed.
    fn wants_input(&self) -> bool {
        let waiting = self.input.filled().len();
        let is_starved = match self.incoming {
            Incoming::Header => waiting < Request::wire_len(self.session.framing),
            Incoming::Payload { .. } | Incoming::Refused { .. } => waiting == 0,
        };
        let is_held = self.hold.is_some() || self.wait.is_some();
        (is_starved || (is_held && waiting < INPUT)) && !self.is_closing
    }

    /// Receives into the payload that is due, or else into the input: how many bytes, 0 at the stream's end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (place, missing) = match &mut self.incoming {
            Incoming::Payload { buffer, missing, .. } if *missing > 0 => {
                let end = buffer.len();
                (buffer.part(end - *missing..end), Some(missing))
            }
            _ => (self.input.space(), None),
        };
        let mut read = ReadBuf::new(place);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        let n = read.filled().len();
        match missing {
            Some(missing) => *missing -= n,
            None => self.input.received(n),
        }
        Poll::Ready(Ok(n))
    }
}
