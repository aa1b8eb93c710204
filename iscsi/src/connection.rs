//! A connection in its full feature phase: one task that cuts what comes into PDUs, has them dealt with, and sends what is said.
//!
//! ```text
//!   socket -> Input -> header, digest -> Desk::announce -> data into their place, digest -> Desk::accept -> Sender -> socket
//! ```
//! Not here: what a PDU does ([`crate::desk`]). What holds: nothing here blocks, and all the work between two waits is bounded by one
//! batch; a header that is damaged ends the connection, since its length cannot be trusted; data that are many go straight to where they
//! belong.

use crate::desk::{BATCH, Desk, Destination, Ending, Incoming};
use crate::pdu::{DIGEST, Digest, HEAD, Head, padded};
use crate::server::{Entry, Services};
use coffer_gateway::serving::{Buffer, INPUT, Input, Vigil, Visit};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// So many bytes of answers, ten short ones, are sent at once, and fewer after so many rounds at the latest.
const KEPT_BACK: usize = 10 * HEAD;
const ROUNDS: u32 = 16;
/// As many bytes of data are received where they belong. Fewer are copied there, and what follows them comes with the same call.
const DIRECT: usize = 16 << 10;

/// See the file's header.
pub(crate) struct Connection<S> {
    stream: S,
    services: Arc<Services>,
    visit: Arc<Visit<Entry>>,
    pub(crate) desk: Desk,
    header_digest: bool,
    data_digest: bool,
    input: Input,
    next: Next,
    vigil: Vigil,
    alarm: Option<(Instant, Pin<Box<Sleep>>)>,
    /// When bytes last came.
    heard: Instant,
    /// How often in a row answers were kept back while more came in.
    kept_back: u32,
    /// Since when nothing could be sent of what waits.
    blocked: Option<Instant>,
    /// Whether a PDU with data was whole since the last look, and the look that found that none was.
    is_moving: bool,
    still_since: Option<Instant>,
}

/// What came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Received {
    Bytes,
    Nothing,
    /// Nothing will.
    End,
}

/// What the next bytes of the input are.
enum Next {
    Head,
    Data(Box<Segment>),
}

/// A data segment that is coming in.
struct Segment {
    incoming: Incoming,
    buffer: Option<Buffer>,
    /// Where the next bytes go, if they go anywhere.
    at: usize,
    /// Bytes of data that did not come yet.
    missing: usize,
    /// Padding, and then a digest.
    padding: usize,
    digest: Option<Digest>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(
        stream: S,
        services: Arc<Services>,
        visit: Arc<Visit<Entry>>,
        desk: Desk,
        (header_digest, data_digest): (bool, bool),
    ) -> Self {
        Connection {
            stream,
            services,
            visit,
            desk,
            header_digest,
            data_digest,
            input: Input::default(),
            next: Next::Head,
            vigil: Vigil::default(),
            alarm: None,
            heard: Instant::now(),
            kept_back: 0,
            blocked: None,
            is_moving: true,
            still_since: None,
        }
    }

    /// Lets go of buffers if there is nothing to do.
    pub(crate) fn rest(&mut self) {
        if self.desk.is_idle() && matches!(self.next, Next::Head) && self.input.filled().is_empty() {
            self.input = Input::default();
            self.desk.rest();
        }
    }

    /// Looks whether the initiator is there; `false` when it has to be given up.
    pub(crate) fn look_after(&mut self) -> bool {
        let (now, options) = (Instant::now(), &self.services.options);
        self.desk.look_after_fates();
        self.desk.look_after_data(now);
        // A PDU that was begun has to end: its bytes are no answer to pings, and what it is for is kept as long.
        match self.still_since {
            Some(since) if matches!(self.next, Next::Data(_)) && !self.is_moving => {
                if now.saturating_duration_since(since) > options.data_timeout {
                    return false;
                }
            }
            _ => self.still_since = Some(now),
        }
        self.is_moving = false;
        let patience = options.ping_after + options.ping_timeout;
        if self.blocked.is_some_and(|since| now.saturating_duration_since(since) > patience) {
            return false;
        }
        if now.saturating_duration_since(self.heard) < options.ping_after {
            self.desk.is_alive();
            return true;
        }
        self.desk.ping(now) < options.ping_timeout
    }

    /// Drives the connection until it ends: the initiator left, or broke the protocol, or the target closes.
    pub(crate) fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut has_moved = self.desk.poll_news(cx);
            has_moved |= self.serve();
            self.desk.hand_over();
            if self.desk.ending == Ending::Now {
                return Poll::Ready(Ok(()));
            }
            let waits = self.has_to_wait_for_more();
            let mut received = if waits { self.receive(cx)? } else { Received::Nothing };
            if received == Received::Bytes {
                self.kept_back += 1;
            } else {
                self.kept_back = 0;
                has_moved |= self.send(cx)?;
                if self.desk.ending == Ending::Flush && self.desk.sender.output.pending() == 0 {
                    return Poll::Ready(Ok(()));
                }
                if !waits {
                    received = self.receive(cx)?;
                }
            }
            match received {
                Received::End => return Poll::Ready(Ok(())),
                Received::Bytes => has_moved = true,
                Received::Nothing => {}
            }
            has_moved |= self.desk.settle();
            if has_moved {
                self.vigil.end();
                continue;
            }
            if self.poll_alarm(cx) {
                continue;
            }
            if self.vigil.is_on(self.desk.jobs(), self.services.pool.in_hand()) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Whether answers that could be sent are kept back a moment: storage threads are about to have more of them, and one call that sends
    /// several costs what one does that sends one.
    fn has_to_wait_for_more(&self) -> bool {
        self.desk.jobs() > 0 && self.desk.sender.output.pending() < KEPT_BACK && self.kept_back < ROUNDS
    }

    /// Sends what the socket takes; whether it took anything.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut has_moved = false;
        while self.desk.sender.output.pending() > 0 {
            let Poll::Ready(sent) = self.desk.sender.output.poll_send(&mut self.stream, cx)? else {
                self.blocked.get_or_insert_with(Instant::now);
                break;
            };
            self.blocked = None;
            self.services.counters.sent(sent);
            self.visit.moved(sent);
            has_moved = true;
        }
        Ok(has_moved)
    }

    /// Receives what there is, if it can be used.
    fn receive(&mut self, cx: &mut Context<'_>) -> io::Result<Received> {
        if !self.wants_input() {
            return Ok(Received::Nothing);
        }
        let Poll::Ready(received) = self.poll_receive(cx)? else { return Ok(Received::Nothing) };
        if received == 0 {
            return Ok(Received::End);
        }
        self.heard = Instant::now();
        self.services.counters.received(received);
        self.visit.moved(received);
        Ok(Received::Bytes)
    }

    /// Whether commands that waited for their time may go on now.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.desk.next_wake() else {
            self.alarm = None;
            return false;
        };
        if self.alarm.as_ref().is_none_or(|(set, _)| *set != due) {
            self.alarm = Some((due, Box::pin(sleep_until(due.into()))));
        }
        let Some((_, sleep)) = &mut self.alarm else { return false };
        if sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.alarm = None;
        self.desk.unpark(due.max(Instant::now()));
        true
    }

    /// Works through the input until it is used up or a batch of answers waits.
    fn serve(&mut self) -> bool {
        let mut has_moved = false;
        while self.desk.ending == Ending::Open && self.desk.sender.output.pending() < BATCH && self.step() {
            has_moved = true;
        }
        has_moved
    }

    /// Takes one step through the input; `false` when it needs more bytes.
    fn step(&mut self) -> bool {
        let Next::Data(segment) = &mut self.next else { return self.take_head() };
        if segment.missing > 0 {
            let n = self.input.filled().len().min(segment.missing);
            let bytes = self.input.take(n);
            if let Some(buffer) = &mut segment.buffer {
                buffer.part(segment.at..segment.at + n).copy_from_slice(bytes);
            }
            segment.received(n, bytes);
            return n > 0;
        }
        let tail = segment.padding + if segment.digest.is_some() { DIGEST } else { 0 };
        if self.input.filled().len() < tail {
            return false;
        }
        let Next::Data(segment) = std::mem::replace(&mut self.next, Next::Head) else { return false };
        let Segment { incoming, buffer, padding, digest, .. } = *segment;
        let pad = self.input.take(padding);
        let is_sound = match digest {
            Some(mut digest) => {
                digest.update(pad);
                digest.bytes() == self.input.take(DIGEST)
            }
            None => true,
        };
        self.desk.accept(incoming, buffer, is_sound);
        self.is_moving = true;
        true
    }

    fn take_head(&mut self) -> bool {
        let Some(head) = Head::of(self.input.filled()) else { return false };
        let lengths = head.lengths();
        let whole = HEAD + lengths.ahs;
        let digest = if self.header_digest { DIGEST } else { 0 };
        let Some(bytes) = self.input.filled().get(..whole + digest) else { return false };
        let (covered, due) = bytes.split_at(whole);
        if self.header_digest && Digest::of(covered) != due {
            self.desk.ending = Ending::Now;
            return true;
        }
        let ahs = covered.get(HEAD..).unwrap_or_default();
        let (incoming, destination) = self.desk.announce(head, ahs);
        self.input.take(whole + digest);
        self.services.counters.request();
        if lengths.data == 0 {
            let buffer = match destination {
                Destination::Skip => None,
                Destination::Into(buffer, _) => Some(buffer),
            };
            self.desk.accept(incoming, buffer, true);
            return true;
        }
        let (buffer, at) = match destination {
            Destination::Skip => (None, 0),
            Destination::Into(mut buffer, at) => {
                let missing = (at + lengths.data).saturating_sub(buffer.len());
                buffer.grow(missing);
                (Some(buffer), at)
            }
        };
        let segment = Segment {
            incoming,
            buffer,
            at,
            missing: lengths.data,
            padding: padded(lengths.data) - lengths.data,
            digest: self.data_digest.then(Digest::default),
        };
        self.next = Next::Data(Box::new(segment));
        true
    }

    /// Whether more input could be used: not while a whole PDU waits for answers to be sent.
    fn wants_input(&self) -> bool {
        self.desk.ending == Ending::Open
            && self.desk.sender.output.pending() < BATCH
            && self.input.filled().len() < INPUT
    }

    /// Receives into the data that are due, or else into the input: how many bytes, 0 at the stream's end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Next::Data(segment) = &mut self.next
            && segment.missing >= DIRECT
            && let Some(buffer) = &mut segment.buffer
            && self.input.filled().is_empty()
        {
            let (at, end) = (segment.at, segment.at + segment.missing);
            let mut read = ReadBuf::new(buffer.part(at..end));
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let n = read.filled().len();
            if let Some(digest) = &mut segment.digest {
                digest.update(read.filled());
            }
            segment.at += n;
            segment.missing -= n;
            return Poll::Ready(Ok(n));
        }
        if let Next::Data(segment) = &self.next {
            self.input.expect(segment.missing.min(DIRECT));
        }
        let mut read = ReadBuf::new(self.input.space());
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        let n = read.filled().len();
        self.input.received(n);
        Poll::Ready(Ok(n))
    }
}

impl Segment {
    fn received(&mut self, n: usize, bytes: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        self.at += n;
        self.missing -= n;
    }
}
