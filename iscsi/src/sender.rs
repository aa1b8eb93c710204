//! PDUs on their way out: headers, padding, digests and numbers around data that are not copied once more.
//!
//! ```text
//!   respond         a header and a few bytes, behind what waits already
//!   read_in_place   a read from memory, straight into what waits to be sent
//!   read_out        a read that a storage thread made: one buffer, cut into PDUs
//! ```
//! Not here: what is said. What holds: an answer's number is its place in the stream; with recovery level 1 what was sent can be
//! sent again while it is kept ([`crate::memory`]).

use crate::memory::{Content, Kept, Memory, What};
use crate::pdu::{DIGEST, Digest, HEAD, Head, NO_TAG, Numbers, Residual, Response, padded};
use crate::scsi::{Outcome, Status};
use coffer_gateway::serving::{Buffer, Output};
use std::sync::Arc;

/// The tag with which data are acknowledged: which command's they are says the command's own tag.
const ACKNOWLEDGEMENT: u32 = 0;

/// See the file's header.
pub(crate) struct Sender {
    pub(crate) output: Output,
    pub(crate) stat_sn: u32,
    header_digest: bool,
    data_digest: bool,
    /// The longest data segment that the initiator takes.
    pub(crate) max_segment: usize,
    max_burst: usize,
    memory: Option<Memory>,
}

/// What the initiator and the target agreed on for this direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) max_segment: u32,
    pub(crate) max_burst: u32,
    /// Whether what was sent is kept.
    pub(crate) may_recover: bool,
}

/// A command whose data or answer are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addressee {
    pub(crate) tag: u32,
    pub(crate) lun: [u8; 8],
    /// Bytes that the initiator expects.
    pub(crate) expected: u32,
}

/// The next command that is expected, and the last one that may be sent.
pub(crate) type Window = (u32, u32);

impl Sender {
    pub(crate) fn new(format: Format, stat_sn: u32) -> Self {
        Sender {
            output: Output::default(),
            stat_sn,
            header_digest: format.header_digest,
            data_digest: format.data_digest,
            max_segment: format.max_segment as usize,
            max_burst: format.max_burst as usize,
            memory: format.may_recover.then(Memory::default),
        }
    }

    /// Bytes that a PDU takes before its data.
    pub(crate) fn room(&self) -> usize {
        HEAD + if self.header_digest { DIGEST } else { 0 }
    }

    /// Whether a read of `len` bytes can be made in place.
    pub(crate) fn fits_in_place(&self, len: u64) -> bool {
        self.memory.is_none() && len <= self.max_segment.min(self.max_burst) as u64
    }

    /// Queues a response with a few bytes.
    pub(crate) fn respond(&mut self, window: Window, response: &Response, data: &[u8]) {
        let head = self.head(window, response, data.len());
        if let Some(memory) = &mut self.memory
            && response.bears_status()
        {
            let tag = head.tag();
            memory.keep(tag, What::Status(head.u32(24)), head, Content::Few(data.into()));
        }
        self.append(&head, data);
    }

    /// Queues a command's end.
    pub(crate) fn end(&mut self, window: Window, tag: u32, outcome: &Outcome, exp_data_sn: u32, residual: Residual) {
        let response = Response::Command { tag, status: outcome.status as u8, exp_data_sn, residual };
        let Some(sense) = &outcome.sense else { return self.respond(window, &response, &[]) };
        let sense = sense.encode();
        let len = u16::try_from(sense.len()).unwrap_or(0);
        self.respond(window, &response, &[&len.to_be_bytes(), sense.as_slice()].concat());
    }

    /// Lets `run` append what a read gives to the data of a PDU that is being queued; `None` when it does not, and nothing is queued.
    /// Else `end` is told before the PDU has its numbers.
    pub(crate) fn read_in_place(
        &mut self,
        end: impl FnOnce() -> Window,
        to: Addressee,
        run: impl FnOnce(&mut Buffer) -> Option<Outcome>,
    ) -> Option<Outcome> {
        let (room, stat_sn) = (self.room(), self.stat_sn);
        let (header_digest, data_digest) = (self.header_digest, self.data_digest);
        let (outcome, actual, window, is_sent) = self.output.append(|out| {
            let start = out.len();
            out.grow(room);
            let outcome = run(out);
            if outcome.is_none() {
                out.truncate(start);
                return (None, 0, (0, 0), false);
            }
            let window = end();
            let actual = out.len() - start - room;
            let len = actual.min(to.expected as usize);
            // What went wrong has a PDU of its own, and so has what gives nothing.
            let good = outcome.filter(|outcome| len > 0 && outcome.sense.is_none());
            let Some(good) = good else {
                out.truncate(start);
                return (outcome, actual, window, false);
            };
            out.truncate(start + room + len);
            let residual = Residual::of(to.expected.into(), actual as u64);
            let response = Response::DataIn {
                tag: to.tag,
                target_tag: NO_TAG,
                lun: [0; 8],
                is_final: true,
                end: Some((good.status as u8, residual)),
                data_sn: 0,
                offset: 0,
            };
            let head = response.encode(Numbers { stat_sn, exp_cmd_sn: window.0, max_cmd_sn: window.1 }, len);
            out.part(start..start + HEAD).copy_from_slice(&head.0);
            if header_digest {
                out.part(start + HEAD..start + room).copy_from_slice(&Digest::of(&head.0));
            }
            out.grow(padded(len) - len).fill(0);
            if data_digest {
                let digest = Digest::of(out.filled().get(start + room..).unwrap_or_default());
                out.extend(&digest);
            }
            (outcome, actual, window, true)
        });
        let outcome = outcome?;
        if is_sent {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        } else {
            let actual = if outcome.status == Status::Good { actual as u64 } else { 0 };
            self.end(window, to.tag, &outcome, 0, Residual::of(to.expected.into(), actual));
        }
        Some(outcome)
    }

    /// Queues what a read gave: `buffer` has it behind [`Sender::room`] bytes.
    pub(crate) fn read_out(&mut self, window: Window, to: Addressee, mut buffer: Buffer, outcome: &Outcome) {
        let room = self.room();
        let actual = buffer.len().saturating_sub(room);
        let len = actual.min(to.expected as usize);
        let is_good = outcome.sense.is_none();
        if !is_good || len == 0 {
            let actual = if outcome.status == Status::Good { actual as u64 } else { 0 };
            self.output.recycle(buffer);
            return self.end(window, to.tag, outcome, 0, Residual::of(to.expected.into(), actual));
        }
        let residual = Residual::of(to.expected.into(), actual as u64);
        let status = (outcome.status as u8, residual);
        if self.memory.is_none() && len <= self.max_segment.min(self.max_burst) {
            buffer.truncate(room + len);
            let response = data_in(to, 0, 0, true, Some(status), NO_TAG);
            let head = self.head(window, &response, len);
            buffer.part(0..HEAD).copy_from_slice(&head.0);
            if self.header_digest {
                buffer.part(HEAD..room).copy_from_slice(&Digest::of(&head.0));
            }
            buffer.grow(padded(len) - len).fill(0);
            if self.data_digest {
                let digest = Digest::of(buffer.filled().get(room..).unwrap_or_default());
                buffer.extend(&digest);
            }
            return self.output.push(buffer);
        }
        let sent = self.cut(window, to, &Arc::new(buffer), room, len, Some(status));
        if self.memory.is_some() {
            self.end(window, to.tag, outcome, sent, residual);
        }
    }

    /// Queues data as PDUs of the size that the initiator takes; how many they are. With a memory the status has a PDU of its own.
    fn cut(
        &mut self,
        window: Window,
        to: Addressee,
        buffer: &Arc<Buffer>,
        start: usize,
        len: usize,
        status: Option<(u8, Residual)>,
    ) -> u32 {
        let (mut at, mut data_sn) = (0, 0);
        while at < len {
            let burst_end = (at / self.max_burst + 1) * self.max_burst;
            let end = len.min(burst_end).min(at + self.max_segment);
            let is_final = end == len || end == burst_end;
            let end_status = status.filter(|_| end == len && self.memory.is_none());
            // What was read in full bursts can be forgotten when it has arrived.
            let asks = self.memory.is_some() && is_final && end < len;
            let target_tag = if asks { ACKNOWLEDGEMENT } else { NO_TAG };
            let response = data_in(to, data_sn, at, is_final, end_status, target_tag);
            let head = self.head(window, &response, end - at);
            let content = Content::Part(Arc::clone(buffer), start + at..start + end);
            self.frame(&head, &content);
            if let Some(memory) = &mut self.memory {
                memory.keep(to.tag, What::Data(data_sn), head, content);
            }
            at = end;
            data_sn += 1;
        }
        data_sn
    }

    /// All answers before `next` have arrived.
    pub(crate) fn acknowledge(&mut self, next: u32) {
        let ahead = self.stat_sn.wrapping_sub(next);
        if let Some(memory) = &mut self.memory
            && ahead < 1 << 31
        {
            memory.acknowledge(next);
        }
    }

    /// The data of a command before the number `next` have arrived; `false` when that cannot be.
    pub(crate) fn acknowledge_data(&mut self, tag: u32, next: u32) -> bool {
        let Some(memory) = &mut self.memory else { return false };
        memory.acknowledge_data(tag, next);
        true
    }

    /// A command ended without an answer.
    pub(crate) fn forget(&mut self, tag: u32) {
        if let Some(memory) = &mut self.memory {
            memory.forget(tag);
        }
    }

    /// Queues answers once more; `false` when one is not kept.
    pub(crate) fn repeat_answers(&mut self, window: Window, first: u32, count: u32) -> bool {
        let found = self.memory.as_ref().and_then(|memory| memory.answers(first, count));
        self.repeat(window, found)
    }

    /// Queues data of a command once more; `false` when some are not kept.
    pub(crate) fn repeat_data(&mut self, window: Window, tag: u32, first: u32, count: u32) -> bool {
        let found = self.memory.as_ref().and_then(|memory| memory.data(tag, first, count));
        self.repeat(window, found)
    }

    /// Queues all data of a command once more, cut to the size that the initiator takes now, and its answer, which names the request by
    /// `snack`; `false` when some are not kept.
    pub(crate) fn cut_again(&mut self, window: Window, to: Addressee, snack: u32) -> bool {
        let Some(memory) = &mut self.memory else { return false };
        let (Some(data), answer) = (memory.data(to.tag, 0, 0), memory.answer_of(to.tag)) else { return false };
        memory.acknowledge_data(to.tag, u32::MAX);
        let whole: Vec<u8> = data.iter().flat_map(|kept| kept.content.bytes()).copied().collect();
        let mut buffer = Buffer::default();
        buffer.extend(&whole);
        let sent = self.cut(window, to, &Arc::new(buffer), 0, whole.len(), None);
        if let Some(mut answer) = answer {
            if let Some(memory) = &mut self.memory {
                memory.bind(to.tag, answer.head.u32(24));
            }
            answer.head.put(20, &snack.to_be_bytes());
            answer.head.put(36, &sent.to_be_bytes());
            self.repeat(window, Some(vec![answer]));
        }
        true
    }

    fn repeat(&mut self, window: Window, found: Option<Vec<Kept>>) -> bool {
        let Some(found) = found else { return false };
        for mut kept in found {
            kept.head.put(28, &window.0.to_be_bytes());
            kept.head.put(32, &window.1.to_be_bytes());
            self.frame(&kept.head, &kept.content);
        }
        true
    }

    /// A response's header with its numbers.
    fn head(&mut self, (exp_cmd_sn, max_cmd_sn): Window, response: &Response, data: usize) -> Head {
        let head = response.encode(Numbers { stat_sn: self.stat_sn, exp_cmd_sn, max_cmd_sn }, data);
        if response.bears_status() {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        head
    }

    /// Queues a header with a part of a buffer, without copying that.
    fn frame(&mut self, head: &Head, content: &Content) {
        let Content::Part(buffer, range) = content else { return self.append(head, content.bytes()) };
        self.output.push_bytes(&head.0);
        if self.header_digest {
            self.output.push_bytes(&Digest::of(&head.0));
        }
        self.output.push_part(Arc::clone(buffer), range.clone());
        let padding = [0; 3];
        let padding = padding.get(..padded(range.len()) - range.len()).unwrap_or_default();
        self.output.push_bytes(padding);
        if self.data_digest && !range.is_empty() {
            let mut digest = Digest::default();
            digest.update(content.bytes());
            digest.update(padding);
            self.output.push_bytes(&digest.bytes());
        }
    }

    /// Queues a header with a few bytes.
    fn append(&mut self, head: &Head, data: &[u8]) {
        let (header_digest, data_digest) = (self.header_digest, self.data_digest && !data.is_empty());
        self.output.append(|out| {
            out.extend(&head.0);
            if header_digest {
                out.extend(&Digest::of(&head.0));
            }
            let start = out.len();
            out.extend(data);
            out.grow(padded(data.len()) - data.len()).fill(0);
            if data_digest {
                let digest = Digest::of(out.filled().get(start..).unwrap_or_default());
                out.extend(&digest);
            }
        });
    }
}

fn data_in(
    to: Addressee,
    data_sn: u32,
    at: usize,
    is_final: bool,
    end: Option<(u8, Residual)>,
    target_tag: u32,
) -> Response {
    let offset = u32::try_from(at).unwrap_or(u32::MAX);
    let lun = if target_tag == NO_TAG { [0; 8] } else { to.lun };
    Response::DataIn { tag: to.tag, target_tag, lun, is_final, end, data_sn, offset }
}
