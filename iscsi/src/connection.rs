//! A connection in its full feature phase: one task that cuts what comes into PDUs, has them dealt with, and sends what is said.
//!
//! ```text
//!   socket -> Input -> header, digest -> Desk::announce -> data into their place, digest -> Desk::accept -> Sender -> socket
//! ```
//! Not here: what a PDU does ([`crate::desk`]). What holds: nothing here blocks, and all the work between two waits is bounded by one
//! batch; a header that is damaged ends the connection, since its length cannot be trusted; data go straight to where they belong.

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
    /// Since when nothing could be sent of what waits.
    blocked: Option<Instant>,
    /// Whether a PDU with data was whole since the last look, and the look that found that none was.
    is_moving: bool,
    still_since: Option<Instant>,
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
            blocked: None,
            is_moving: true,
            still_since: None,
        }
    }

    /// Lets go of buffers if there is nothing to do.
    pub(crate) fn rest(&mut self) {
        if self.desk.is_idle() && matches!(self.next, Next::Head) && self.input.filled().is_empty() {
            self.input = Input::default();
            self.desk.sender.output.rest();
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
            if self.desk.ending == Ending::Now {
                return Poll::Ready(Ok(()));
            }
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
            if self.desk.ending == Ending::Flush && self.desk.sender.output.pending() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.wants_input()
                && let Poll::Ready(received) = self.poll_receive(cx)?
            {
                if received == 0 {
                    return Poll::Ready(Ok(()));
                }
                self.heard = Instant::now();
                self.services.counters.received(received);
                self.visit.moved(received);
                has_moved = true;
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
        self.services.counters.pdu();
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
            && segment.missing > 0
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
