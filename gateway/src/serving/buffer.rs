//! Bytes on their way through a connection, in storage that is initialised once and used again.
//!
//! Not here: what the bytes are. What holds: [`Buffer::grow`] hands out stale bytes, so whoever grows either fills all of it
//! or truncates; a connection keeps a bounded number of spare buffers, and
//! none when it rests.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// A buffer up to this size is kept for the next request.
const SPARE_SIZE: usize = (1 << 20) + (64 << 10);
/// How many are kept at most, and how many bytes of them.
const SPARES: usize = 64;
const SPARE_BYTES: usize = 4 * SPARE_SIZE;
/// Replies are appended to a buffer until it is as long as this.
const TAIL: usize = 256 << 10;
/// So many bytes are queued without a buffer.
const FEW: usize = 64;
/// Pieces written with one system call.
const PARTS: usize = 16;

/// A growing run of bytes. The storage is all initialised; the first `len` bytes count.
#[derive(Default)]
pub struct Buffer {
    storage: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// How many bytes count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Those bytes.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        self.storage.get(..self.len).unwrap_or_default()
    }

    /// Appends `more` bytes of whatever was there and returns them.
    pub fn grow(&mut self, more: usize) -> &mut [u8] {
        let start = self.len;
        self.len += more;
        if self.storage.len() < self.len {
            self.storage.resize(self.len, 0);
        }
        self.part(start..self.len)
    }

    /// Appends `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Lets go of what lies behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Lends the bytes to whoever appends to a vector.
    pub fn lend<T>(&mut self, append: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        self.storage.truncate(self.len);
        let said = append(&mut self.storage);
        self.len = self.storage.len();
        said
    }

    /// A part of the bytes; empty when it lies outside.
    pub fn part(&mut self, range: Range<usize>) -> &mut [u8] {
        self.storage.get_mut(range).unwrap_or_default()
    }

    /// Moves the bytes of `from` down to `to`.
    pub fn move_down(&mut self, from: Range<usize>, to: usize) {
        self.storage.copy_within(from, to);
    }
}

/// Something that waits to be sent.
enum Piece {
    Own(Buffer),
    /// A part of a buffer that others need, too.
    Part(Arc<Buffer>, Range<usize>),
    /// So many of these bytes.
    Few([u8; FEW], u8),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Own(buffer) => buffer.filled(),
            Piece::Part(buffer, range) => buffer.filled().get(range.clone()).unwrap_or_default(),
            Piece::Few(bytes, len) => bytes.get(..usize::from(*len)).unwrap_or_default(),
        }
    }
}

/// What waits to be sent, and buffers to use again.
#[derive(Default)]
pub struct Output {
    queue: VecDeque<Piece>,
    /// Bytes of the first piece that are sent already.
    sent: usize,
    pending: usize,
    spares: Vec<Buffer>,
    spare_bytes: usize,
}

impl Output {
    /// Bytes that are not sent yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// An empty buffer.
    pub fn spare(&mut self) -> Buffer {
        let spare = self.spares.pop().unwrap_or_default();
        self.spare_bytes -= spare.storage.len();
        spare
    }

    /// Takes a buffer back.
    pub fn recycle(&mut self, mut buffer: Buffer) {
        let len = buffer.storage.len();
        let is_kept = len > 0 && len <= SPARE_SIZE && len <= SPARE_BYTES - self.spare_bytes;
        if is_kept && self.spares.len() < SPARES {
            buffer.truncate(0);
            self.spare_bytes += len;
            self.spares.push(buffer);
        }
    }

    /// Lets go of all that is kept to be used again.
    pub fn rest(&mut self) {
        (self.spares, self.spare_bytes) = (Vec::new(), 0);
        if self.pending == 0 {
            // What may be left is a reply that was taken back.
            self.queue = VecDeque::new();
        }
    }

    /// Queues a finished reply.
    pub fn push(&mut self, buffer: Buffer) {
        self.pending += buffer.len();
        self.queue.push_back(Piece::Own(buffer));
    }

    /// Queues a part of a buffer that is kept elsewhere, too.
    pub fn push_part(&mut self, buffer: Arc<Buffer>, range: Range<usize>) {
        let piece = Piece::Part(buffer, range);
        self.pending += piece.bytes().len();
        self.queue.push_back(piece);
    }

    /// Queues a few bytes between such parts.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        for few in bytes.chunks(FEW) {
            let mut storage = [0; FEW];
            storage.iter_mut().zip(few).for_each(|(place, byte)| *place = *byte);
            self.pending += few.len();
            self.queue.push_back(Piece::Few(storage, u8::try_from(few.len()).unwrap_or(0)));
        }
    }

    /// Lets `append` put a reply behind all others and says what it said.
    pub fn append<T>(&mut self, append: impl FnOnce(&mut Buffer) -> T) -> T {
        if !matches!(self.queue.back(), Some(Piece::Own(last)) if last.len() < TAIL) {
            let fresh = self.spare();
            self.queue.push_back(Piece::Own(fresh));
        }
        let Some(Piece::Own(tail)) = self.queue.back_mut() else { return append(&mut Buffer::default()) };
        let before = tail.len();
        let said = append(tail);
        self.pending = self.pending + tail.len() - before;
        said
    }

    /// Sends as much as the socket takes: how many bytes that was, `Pending` for none.
    pub fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut parts = [IoSlice::new(&[]); PARTS];
        let mut used = 0;
        let mut skip = self.sent;
        for (part, piece) in parts.iter_mut().zip(&self.queue) {
            *part = IoSlice::new(piece.bytes().get(skip..).unwrap_or_default());
            skip = 0;
            used += 1;
        }
        let parts = parts.get(..used).unwrap_or_default();
        let n = match parts {
            [only] => ready!(Pin::new(stream).poll_write(cx, only))?,
            several => ready!(Pin::new(stream).poll_write_vectored(cx, several))?,
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(n);
        Poll::Ready(Ok(n))
    }

    fn advance(&mut self, n: usize) {
        self.pending -= n;
        self.sent += n;
        while let Some(first) = self.queue.front()
            && self.sent >= first.bytes().len()
        {
            self.sent -= first.bytes().len();
            match self.queue.pop_front() {
                Some(Piece::Own(done)) => self.recycle(done),
                Some(Piece::Part(shared, _)) => {
                    if let Some(done) = Arc::into_inner(shared) {
                        self.recycle(done);
                    }
                }
                Some(Piece::Few(..)) | None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_and_pushed_comes_out_in_order() {
        let mut output = Output::default();
        let mut due = Vec::new();
        for i in 0..40u8 {
            let bytes = vec![i; 100_000];
            if i % 4 == 1 {
                let mut buffer = output.spare();
                buffer.extend(&bytes);
                let shared = Arc::new(buffer);
                output.push_part(Arc::clone(&shared), 0..30_000);
                output.push_bytes(&bytes[..100]);
                output.push_part(shared, 30_100..100_000);
            } else if i % 3 == 0 {
                let mut buffer = output.spare();
                buffer.extend(&bytes);
                output.push(buffer);
            } else {
                output.append(|b| b.extend(&bytes));
            }
            due.extend(bytes);
        }
        assert_eq!(output.pending(), due.len());
        let mut found: Vec<u8> = Vec::new();
        let mut take = 1;
        while output.pending() > 0 {
            let first = output.queue.front().unwrap().bytes()[output.sent..].to_vec();
            let n = first.len().min(take);
            found.extend(&first[..n]);
            output.advance(n);
            take = take * 7 % 300_007;
        }
        assert!(found == due);
        assert!(output.queue.is_empty() && output.spares.len() <= SPARES);
        assert_eq!(output.spares.iter().map(|spare| spare.storage.len()).sum::<usize>(), output.spare_bytes);
    }

    #[test]
    fn a_reply_that_is_taken_back_leaves_nothing() {
        let mut output = Output::default();
        output.append(|b| {
            b.grow(100);
            b.truncate(0);
        });
        assert_eq!(output.pending(), 0);
    }
}
