//! Putting an object: a share of the memory, copies of what is lent, one request or several parts, and who made it.
//!
//! ```text
//!   caller's thread:  share ─> copy a part ─> (wait until one was taken) ─> copy the next ...      answer
//!   runtime:                       └─> write ─> parts at once ─> close: If-None-Match ─────────────┘
//! ```
//! Not here: requests and their repetition ([`super::transport`]). What holds: what is in memory is paid for from the budget
//! before it is copied; an upload that fails is aborted; a name that is found taken after an answer was lost is looked
//! into.

use super::witness::{Purpose, Witness};
use super::{Call, ObjectStore, failure};
use crate::backend::address::Scheme;
use crate::backend::{Backend, Put, RESERVED_PART};
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use opendal::options::WriteOptions;
use opendal::{Buffer, BytesRange, Operator, Writer};
use std::sync::{Arc, mpsc};
use tokio::sync::mpsc::UnboundedReceiver;

/// Parts of one object on their way at once, at most.
const PARTS_AT_ONCE: usize = 4;
/// Parts in memory besides: one that is copied, one that waits, one that OpenDAL keeps back to know the last one by.
const PARTS_BESIDES: usize = 3;

impl ObjectStore {
    /// Creates an object unless it exists.
    pub(super) fn upload(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        if !self.capability.write_with_if_not_exists && self.size(name)?.is_some() {
            return Ok(Put::Exists);
        }
        let must_create = !self.capability.write_with_if_not_exists && self.address.scheme().is_http();
        let call = Call { doing: "writing", name, purpose: Purpose { must_create, ..Purpose::default() } };
        let witness = Arc::new(Witness::new(call.purpose, self.patience));
        let mut was_tried = false;
        loop {
            let error = match self.try_put(&call, parts, &witness) {
                Ok(Some(())) => return Ok(Put::Created),
                Ok(None) => None,
                Err(e) => Some(e),
            };
            // What was sent may have arrived, and only the word of it was lost.
            let is_unsure = witness.seen().is_unsure || std::mem::replace(&mut was_tried, true);
            if is_unsure && self.is_there_with(name, parts)? {
                return Ok(Put::Created);
            }
            let Some(error) = error else { return Ok(Put::Exists) };
            match self.pause_after(&witness, &error) {
                Some(pause) => std::thread::sleep(pause),
                None if error.kind() == Kind::NotFound => {
                    self.see_bucket()?;
                    return Err(error.with_kind(Kind::Unavailable));
                }
                None => return Err(error),
            }
        }
    }

    /// One attempt to put. `None`: the name is taken.
    fn try_put(&self, call: &Call, parts: &[&[u8]], witness: &Arc<Witness>) -> Result<Option<()>> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let can_part = self.capability.write_can_multi && self.address.scheme() != Scheme::Swift;
        let part = if can_part && length > self.part { self.part } else { length.max(1) };
        let at_once = self.memory.all_in(part).saturating_sub(PARTS_BESIDES).clamp(1, PARTS_AT_ONCE);
        let share = self.memory.take(length.min(part.saturating_mul(at_once + PARTS_BESIDES)) as u64);
        let options = WriteOptions {
            if_not_exists: self.capability.write_with_if_not_exists,
            chunk: can_part.then_some(part.max(self.part)),
            concurrent: at_once,
            ..WriteOptions::default()
        };
        // The caller copies a part when the one before the last was taken, and blocks in no runtime's way.
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let (took, room) = mpsc::channel();
        let (operator, name) = (self.writer_of(call.name, witness), call.name.to_owned());
        let observer = Arc::clone(witness);
        // A file grows in front of everybody, so it gets its name when it is whole.
        let draft = match self.address.scheme() {
            Scheme::Sftp => Some(format!("{RESERVED_PART}/{:016x}{:016x}", self.wires.draw(), self.wires.draw())),
            _ => None,
        };
        let (told, done) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let work = async {
                let mut writer = operator.writer_options(draft.as_ref().unwrap_or(&name), options).await?;
                if let Err(e) = write_all(&mut writer, receiver, &took, length).await {
                    // What was uploaded of it is garbage; that it cannot be removed changes nothing.
                    let failure = observer.seen().failure.take();
                    let _ = writer.abort().await;
                    observer.seen().failure = failure;
                    return Err(e);
                }
                match &draft {
                    Some(draft) => give_name(&operator, draft, &name).await,
                    None => Ok(()),
                }
            };
            let _ = told.send(work.await);
        });
        for (number, bytes) in copies(parts, part).enumerate() {
            // An upload that ended before its content says below why.
            if sender.send(bytes).is_err() || (number > 0 && room.recv().is_err()) {
                break;
            }
        }
        drop(sender);
        let done = done.recv().map_err(|_| Error::internal("an upload to the object store died"))?;
        drop(share);
        match done {
            Ok(()) => Ok(Some(())),
            Err(e) if self.is_taken(witness, &e) => Ok(None),
            Err(e) => Err(self.explain(call, witness, &e)),
        }
    }

    /// Whether a put failed because its name is taken.
    fn is_taken(&self, witness: &Witness, error: &opendal::Error) -> bool {
        use opendal::ErrorKind as E;
        matches!(error.kind(), E::ConditionNotMatch | E::AlreadyExists)
            || witness.seen().failure.as_ref().is_some_and(failure::Failure::is_taken)
    }

    /// Whether the object is there with exactly these bytes.
    fn is_there_with(&self, name: &str, parts: &[&[u8]]) -> Result<bool> {
        match self.read(name, BytesRange::from(..)) {
            Ok((there, _)) => Ok(is_equal(there, parts)),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            // It froze as it was put: only packs do, and nobody else puts one of that name.
            Err(e) if e.kind() == Kind::Frozen => {
                let length: usize = parts.iter().map(|part| part.len()).sum();
                Ok(self.size(name)? == Some(length as u64))
            }
            Err(e) => Err(e),
        }
    }
}

/// Writes all parts as they come, and ends the upload: never with fewer bytes than there are, whatever became of the sender.
async fn write_all(
    writer: &mut Writer,
    mut receiver: UnboundedReceiver<Bytes>,
    took: &mpsc::Sender<()>,
    length: usize,
) -> opendal::Result<()> {
    let mut left = length;
    while let Some(bytes) = receiver.recv().await {
        // Whoever would copy the next part may have copied the last one.
        let _ = took.send(());
        left = left.saturating_sub(bytes.len());
        writer.write(bytes).await?;
    }
    match left {
        0 => writer.close().await.map(|_| ()),
        _ => Err(opendal::Error::new(opendal::ErrorKind::Unexpected, "the upload's sender died")),
    }
}

/// Gives a whole draft its name, unless that is taken by then.
async fn give_name(operator: &Operator, draft: &str, name: &str) -> opendal::Result<()> {
    let named = match operator.exists(name).await {
        Ok(false) => operator.rename(draft, name).await,
        Ok(true) => Err(opendal::Error::new(opendal::ErrorKind::ConditionNotMatch, "the name is taken")),
        Err(e) => Err(e),
    };
    if named.is_err() {
        // A draft that stays is in nobody's way.
        let _ = operator.delete(draft).await;
    }
    named
}

/// The bytes of `parts`, laid end to end, in copies of `size` each; the last one is shorter.
fn copies<'a>(parts: &'a [&'a [u8]], size: usize) -> impl Iterator<Item = Bytes> + 'a {
    let mut parts = parts.iter().copied();
    let mut rest: &[u8] = &[];
    std::iter::from_fn(move || {
        let mut copy = Vec::new();
        while copy.len() < size {
            if rest.is_empty() {
                match parts.next() {
                    Some(next) => rest = next,
                    None => break,
                }
                continue;
            }
            if copy.capacity() == 0 {
                copy.reserve_exact(size);
            }
            let (taken, left) = rest.split_at(rest.len().min(size - copy.len()));
            copy.extend_from_slice(taken);
            rest = left;
        }
        (!copy.is_empty()).then(|| Bytes::from(copy))
    })
}

/// Whether these are the same bytes.
fn is_equal(there: Buffer, parts: &[&[u8]]) -> bool {
    if there.len() != parts.iter().map(|part| part.len()).sum::<usize>() {
        return false;
    }
    let there = there.to_bytes();
    let mut rest: &[u8] = &there;
    parts.iter().all(|part| {
        let (head, tail) = rest.split_at(part.len());
        rest = tail;
        head == *part
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_made_one_by_one_and_have_their_size() {
        let parts: [&[u8]; 5] = [b"abc", b"", b"defgh", b"i", b""];
        for (size, expected) in [(1, 9), (2, 5), (4, 3), (9, 1), (100, 1)] {
            let copied: Vec<Bytes> = copies(&parts, size).collect();
            assert_eq!(copied.len(), expected);
            assert!(copied.iter().rev().skip(1).all(|copy| copy.len() == size), "{size}");
            assert_eq!(copied.concat(), b"abcdefghi");
        }
        assert_eq!(copies(&[], 4).count() + copies(&[b"", b""], 4).count(), 0);
    }

    #[test]
    fn equal_is_equal_across_parts() {
        let there = || Buffer::from(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"cdef")]);
        assert!(is_equal(there(), &[b"abc", b"", b"def"]) && is_equal(Buffer::new(), &[b""]));
        for other in [&[&b"abc"[..], b"dex"][..], &[b"abcde"], &[b"abcdef", b"g"], &[]] {
            assert!(!is_equal(there(), other), "{other:?}");
        }
    }
}
