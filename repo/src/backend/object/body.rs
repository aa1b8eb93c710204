//! Bodies of requests and answers on their way: paced, watched, never copied.
//!
//! Not here: how fast ([`super::throttle`]), who retries. What holds: a body that stands still for [`STILL`] is a timeout, one
//! that moves is not, however long it takes; the connection's permit goes back when the body has ended or is dropped.

use super::failure::{Failure, Wire};
use super::throttle::Throttle;
use super::witness::Witness;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::{Body, Frame, SizeHint};
use opendal::{Buffer, HttpBody};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, timeout};

/// How long nothing may move before the other side counts as gone.
pub(super) const STILL: Duration = Duration::from_secs(60);
/// A limit is kept by pieces of this size.
const PIECE: usize = 64 << 10;

/// What is sent, piece by piece.
pub(super) struct Upload {
    left: Buffer,
    /// The rest of the piece of memory that is being sent.
    current: Bytes,
    /// Bytes that went to the socket's side so far; who waits for the answer sees by it that something moves.
    moved: Arc<AtomicU64>,
    throttle: Arc<Throttle>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    pub(super) fn new(left: Buffer, throttle: Arc<Throttle>, moved: Arc<AtomicU64>) -> Upload {
        Upload { left, current: Bytes::new(), moved, throttle, wait: None }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(wait) = &mut self.wait {
            std::task::ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        if self.current.is_empty() {
            match self.left.next() {
                None => return Poll::Ready(None),
                Some(next) => self.current = next,
            }
        }
        let piece = if self.throttle.is_unlimited() { self.current.len() } else { PIECE.min(self.current.len()) };
        let piece = self.current.split_to(piece);
        self.moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
        // The next piece waits until this one is paid for.
        self.wait =
            self.throttle.take(piece.len() as u64).map(|until| Box::pin(tokio::time::sleep_until(until.into())));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.current.is_empty() && self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.current.len() + self.left.len()) as u64)
    }
}

/// What an answer's body is read by.
struct Download {
    response: reqwest::Response,
    throttle: Arc<Throttle>,
    witness: Option<Arc<Witness>>,
    _permit: OwnedSemaphorePermit,
}

/// The body of an answer, for OpenDAL.
pub(super) fn download(
    response: reqwest::Response,
    length: Option<u64>,
    throttle: Arc<Throttle>,
    witness: Option<Arc<Witness>>,
    permit: OwnedSemaphorePermit,
) -> HttpBody {
    let begin = Some(Download { response, throttle, witness, _permit: permit });
    let pieces = stream::unfold(begin, |state| async move {
        let mut download = state?;
        match download.next().await {
            Ok(Some(piece)) => Some((Ok(Buffer::from(piece)), Some(download))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let pieces: Pin<Box<dyn Stream<Item = opendal::Result<Buffer>> + Send + Sync>> = Box::pin(pieces);
    HttpBody::new(pieces, length)
}

impl Download {
    async fn next(&mut self) -> opendal::Result<Option<Bytes>> {
        let wire = match timeout(STILL, self.response.chunk()).await {
            Ok(Ok(Some(piece))) => {
                if let Some(until) = self.throttle.take(piece.len() as u64) {
                    tokio::time::sleep_until(until.into()).await;
                }
                return Ok(Some(piece));
            }
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => Wire::from_client(error),
            Err(_) => Wire::late(STILL),
        };
        let error = opendal::Error::new(opendal::ErrorKind::Unexpected, wire.text.clone()).set_temporary();
        if let Some(witness) = &self.witness {
            witness.seen().failure = Some(Failure::Wire(wire));
        }
        Err(error)
    }
}
