//! What was sent and may have to be sent again, at recovery level 1.
//!
//! Not here: sending. What holds: answers are kept until they are acknowledged, data until their command's answer is; beyond
//! [`MOST`] bytes the oldest data are let go of, and cannot be had again.

use crate::pdu::Head;
use coffer_gateway::serving::Buffer;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of data that are kept.
const MOST: usize = 8 << 20;
/// PDUs that are kept.
const MOST_PDUS: usize = 16 << 10;

/// What a PDU was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Data of a read, by their number.
    Data(u32),
    /// An answer, by its number.
    Status(u32),
}

/// The data of a PDU.
#[derive(Clone)]
pub(crate) enum Content {
    Few(Arc<[u8]>),
    Part(Arc<Buffer>, Range<usize>),
}

impl Content {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Content::Few(bytes) => bytes,
            Content::Part(buffer, range) => buffer.filled().get(range.clone()).unwrap_or_default(),
        }
    }
}

/// A PDU that was sent.
#[derive(Clone)]
pub(crate) struct Kept {
    /// Its command.
    pub(crate) tag: u32,
    pub(crate) what: What,
    pub(crate) head: Head,
    pub(crate) content: Content,
    /// When this answer is acknowledged it is not needed.
    until: Option<u32>,
}

/// See the file's header.
#[derive(Default)]
pub(crate) struct Memory {
    kept: VecDeque<Kept>,
    bytes: usize,
}

impl Memory {
    /// Keeps a PDU. With a command's answer it is known until when its data are kept.
    pub(crate) fn keep(&mut self, tag: u32, what: What, head: Head, content: Content) {
        let until = match what {
            What::Data(_) => None,
            What::Status(number) => {
                self.bind(tag, number);
                Some(number)
            }
        };
        self.bytes += content.bytes().len();
        self.kept.push_back(Kept { tag, what, head, content, until });
        while self.bytes > MOST || self.kept.len() > MOST_PDUS {
            let oldest = self.kept.iter().position(|kept| matches!(kept.what, What::Data(_))).unwrap_or(0);
            let Some(gone) = self.kept.remove(oldest) else { break };
            self.bytes -= gone.content.bytes().len();
        }
    }

    /// The data of a command, kept anew, are needed until its answer `number` is acknowledged.
    pub(crate) fn bind(&mut self, tag: u32, number: u32) {
        let of_command = self.kept.iter_mut().filter(|kept| kept.tag == tag && kept.until.is_none());
        of_command.for_each(|kept| kept.until = Some(number));
    }

    /// All answers before `next` have arrived.
    pub(crate) fn acknowledge(&mut self, next: u32) {
        let is_before = |number: u32| next.wrapping_sub(number).wrapping_sub(1) < 1 << 31;
        self.let_go(|kept| kept.until.is_some_and(is_before));
    }

    /// The data of a command before the number `next` have arrived.
    pub(crate) fn acknowledge_data(&mut self, tag: u32, next: u32) {
        self.let_go(|kept| kept.tag == tag && matches!(kept.what, What::Data(number) if number < next));
    }

    /// A command ended without an answer.
    pub(crate) fn forget(&mut self, tag: u32) {
        self.let_go(|kept| kept.tag == tag && kept.until.is_none());
    }

    /// The answers from `first` on, `count` of them or all; `None` when one is gone.
    pub(crate) fn answers(&self, first: u32, count: u32) -> Option<Vec<Kept>> {
        let wanted = |number: u32| number.wrapping_sub(first) < if count == 0 { 1 << 31 } else { count };
        let is_meant = |kept: &&Kept| matches!(kept.what, What::Status(number) if wanted(number));
        let found: Vec<Kept> = self.kept.iter().filter(is_meant).cloned().collect();
        (found.len() >= count as usize && !found.is_empty()).then_some(found)
    }

    /// The data of a command from `first` on, `count` of them or all; `None` when one is gone.
    pub(crate) fn data(&self, tag: u32, first: u32, count: u32) -> Option<Vec<Kept>> {
        let wanted = |number: u32| number >= first && (count == 0 || number - first < count);
        let is_meant = |kept: &&Kept| kept.tag == tag && matches!(kept.what, What::Data(number) if wanted(number));
        let found: Vec<Kept> = self.kept.iter().filter(is_meant).cloned().collect();
        let starts = found.first().is_some_and(|kept| kept.what == What::Data(first));
        (found.len() >= count as usize && starts).then_some(found)
    }

    /// The answer of a command.
    pub(crate) fn answer_of(&self, tag: u32) -> Option<Kept> {
        self.kept.iter().rev().find(|kept| kept.tag == tag && matches!(kept.what, What::Status(_))).cloned()
    }

    fn let_go(&mut self, is_over: impl Fn(&Kept) -> bool) {
        let bytes = &mut self.bytes;
        self.kept.retain(|kept| {
            let is_over = is_over(kept);
            if is_over {
                *bytes -= kept.content.bytes().len();
            }
            !is_over
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few(len: usize) -> Content {
        Content::Few(vec![0; len].into())
    }

    #[test]
    fn answers_and_their_data_are_kept_until_they_are_acknowledged() {
        let mut memory = Memory::default();
        let head = Head::new(0);
        for (tag, first) in [(1, u32::MAX - 1), (2, u32::MAX)] {
            (0..3).for_each(|number| memory.keep(tag, What::Data(number), head, few(10)));
            memory.keep(tag, What::Status(first), head, few(0));
        }
        assert_eq!(memory.data(1, 1, 0).unwrap().len(), 2);
        assert_eq!(memory.data(1, 1, 1).unwrap().len(), 1);
        assert!(memory.data(1, 3, 1).is_none() && memory.data(1, 1, 3).is_none() && memory.data(3, 0, 0).is_none());
        assert_eq!(memory.answers(u32::MAX - 1, 0).unwrap().len(), 2);
        assert!(memory.answers(u32::MAX, 2).is_none());
        memory.acknowledge(u32::MAX - 1);
        assert_eq!(memory.bytes, 60);
        memory.acknowledge(u32::MAX);
        assert!(memory.data(1, 0, 0).is_none() && memory.bytes == 30);
        memory.acknowledge_data(2, 2);
        assert!(memory.data(2, 0, 0).is_none() && memory.data(2, 2, 0).is_some());
        memory.acknowledge(0);
        assert!(memory.kept.is_empty() && memory.bytes == 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut memory = Memory::default();
        memory.keep(0, What::Status(0), Head::new(0), few(0));
        for tag in 1..100 {
            memory.keep(tag, What::Data(0), Head::new(0), few(1 << 20));
        }
        assert!(memory.bytes <= MOST && memory.data(99, 0, 0).is_some() && memory.data(1, 0, 0).is_none());
        assert!(memory.answers(0, 1).is_some());
    }
}
