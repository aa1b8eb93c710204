//! OpenDAL's way to the network: every request of every HTTP store passes here.
//!
//! ```text
//!   fetch ─> permit (connections) ─> [hedge: a late read is asked for twice] ─> client ─> answer
//!     ^                                                                          │
//!     └── pause (retry) <── transient failure: 429, 503, reset, timeout <────────┤
//!                                                                                └─> OpenDAL: headers, then the body as it comes
//! ```
//! Not here: what calls mean ([`super`]), whether to repeat ([`super::retry`]), what failures mean ([`super::failure`]).
//! What holds: at most so many requests are on the wire as there are permits; a request is repeated only while its signature is
//! young; an answer that is an error is read to its end, up to [`ERROR_BODY`] bytes, so that its code is known.

use super::body::{self, STILL, Upload};
use super::failure::{Answer, Failure, Trouble, Wire};
use super::hedge::Hedge;
use super::swift;
use super::throttle::Throttle;
use super::witness::Witness;
use crate::entropy::{Entropy, fresh};
use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::header::{CONTENT_RANGE, DATE, HeaderMap, HeaderName, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use opendal::raw::Operation;
use opendal::{Buffer, HttpBody, HttpTransport};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

/// Most of an error's body that is read.
const ERROR_BODY: usize = 64 << 10;
/// A request is not repeated once it is this old: stores refuse signatures of a quarter of an hour.
const SIGNATURE_LIFE: Duration = Duration::from_secs(300);

/// What all calls of one store share.
pub(super) struct Wires {
    pub(super) client: reqwest::Client,
    pub(super) permits: Arc<Semaphore>,
    pub(super) upload: Arc<Throttle>,
    pub(super) download: Arc<Throttle>,
    pub(super) hedge: Hedge,
    pub(super) entropy: Arc<dyn Entropy>,
    /// Whether the store ever answered anything.
    pub(super) has_answered: AtomicBool,
    pub(super) counts: Counts,
}

/// Requests so far by method; a repeated or hedged one counts again.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    fn count(&self, method: &Method) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(method.to_string()).or_default() += 1;
    }

    pub(super) fn all(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The wires as one call uses them.
#[derive(Clone)]
pub(super) struct Transport {
    pub(super) wires: Arc<Wires>,
    pub(super) witness: Arc<Witness>,
    /// Whose token goes into every request, for Swift.
    pub(super) swift: Option<Arc<swift::Account>>,
}

/// An answer whose body was not read yet, and the permit it came by.
type Arrived = (reqwest::Response, OwnedSemaphorePermit);

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (mut parts, body) = request.into_parts();
        let is_for_objects = parts.extensions.get::<Operation>().is_some();
        if self.witness.purpose.must_create && parts.method == Method::PUT {
            parts.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let mut outgoing = Outgoing { method: parts.method, uri: parts.uri, headers: parts.headers, body };
        let (begun, mut token, mut is_renewed) = (Instant::now(), None, false);
        loop {
            if let Some(account) = &self.swift {
                match account.token(token.as_ref()).await {
                    Ok(current) => outgoing.set_token(token.insert(current)),
                    Err(failure) => return Err(self.give_up(failure)),
                }
            }
            let arrived = match is_for_objects && self.witness.purpose.is_read && outgoing.method == Method::GET {
                true => self.wires.send_hedged(&outgoing).await,
                false => self.wires.send(&outgoing).await,
            };
            let failure = match arrived {
                Ok((response, permit)) if is_success(response.status()) => {
                    return Ok(self.pass(response, permit, &outgoing));
                }
                Ok((response, _permit)) => match read_error(response).await {
                    Ok((answer, response)) => {
                        let failure = Failure::Answer(answer);
                        if !is_for_objects {
                            return Ok(response);
                        }
                        // A token that was good until now is renewed once; a new one that is refused is no good either.
                        if failure.status() == 401 && self.swift.is_some() && !std::mem::replace(&mut is_renewed, true)
                        {
                            continue;
                        }
                        match self.pause(&outgoing, &failure, begun) {
                            Some(pause) => {
                                sleep(pause).await;
                                continue;
                            }
                            None => {
                                self.witness.seen().failure = Some(failure);
                                return Ok(response);
                            }
                        }
                    }
                    Err(wire) => Failure::Wire(wire),
                },
                Err(wire) => Failure::Wire(wire),
            };
            if is_for_objects && let Some(pause) = self.pause(&outgoing, &failure, begun) {
                sleep(pause).await;
                continue;
            }
            return Err(match is_for_objects {
                true => self.give_up(failure),
                false => opendal::Error::new(opendal::ErrorKind::Unexpected, failure.verdict().1),
            });
        }
    }
}

impl Transport {
    /// Keeps a failure for the one who asked; what OpenDAL is told instead.
    fn give_up(&self, failure: Failure) -> opendal::Error {
        let error = opendal::Error::new(opendal::ErrorKind::Unexpected, failure.verdict().1);
        self.witness.seen().failure = Some(failure);
        error
    }

    /// How long to wait before a failed request is made again; `None`: not at all.
    fn pause(&self, outgoing: &Outgoing, failure: &Failure, begun: Instant) -> Option<Duration> {
        let mut seen = self.witness.seen();
        if failure.is_unsure() && outgoing.changes() {
            seen.is_unsure = true;
        }
        if !failure.is_transient() || begun.elapsed() > SIGNATURE_LIFE {
            return None;
        }
        let has_answered = self.wires.has_answered.load(Ordering::Relaxed);
        seen.attempts.pause(self.wires.draw(), failure.retry_after(), has_answered, Instant::now())
    }

    /// An answer that is no failure, on its way to OpenDAL.
    fn pass(
        &self,
        response: reqwest::Response,
        permit: OwnedSemaphorePermit,
        outgoing: &Outgoing,
    ) -> Response<HttpBody> {
        let length = response.content_length().filter(|_| outgoing.method != Method::HEAD);
        {
            let mut seen = self.witness.seen();
            seen.failure = None;
            if outgoing.method == Method::GET && response.status().is_success() {
                seen.length = whole_length(response.headers(), response.status(), length);
            }
        }
        let mut passed = Response::new(());
        *passed.status_mut() = response.status();
        *passed.headers_mut() = response.headers().clone();
        passed.extensions_mut().insert(outgoing.uri.clone());
        let witness = Some(Arc::clone(&self.witness));
        let body = body::download(response, length, Arc::clone(&self.wires.download), witness, permit);
        passed.map(|()| body)
    }
}

impl Wires {
    /// Makes a read, and once more when its answer is late; the first answer counts.
    async fn send_hedged(&self, outgoing: &Outgoing) -> Result<Arrived, Wire> {
        let begun = Instant::now();
        let first = pin!(self.send(outgoing));
        let arrived = match self.hedge.delay() {
            None => first.await,
            Some(delay) => match select(first, pin!(sleep(delay))).await {
                Either::Left((arrived, _)) => arrived,
                Either::Right(((), first)) => match self.hedge.spend() {
                    false => first.await,
                    true => match select(first, pin!(self.send(outgoing))).await {
                        Either::Left((Ok(arrived), _)) | Either::Right((Ok(arrived), _)) => Ok(arrived),
                        Either::Left((Err(_), other)) => other.await,
                        Either::Right((Err(_), other)) => other.await,
                    },
                },
            },
        };
        if arrived.is_ok() {
            self.hedge.took(begun.elapsed());
        }
        arrived
    }

    /// Makes a request, and waits for the answer's headers.
    async fn send(&self, outgoing: &Outgoing) -> Result<Arrived, Wire> {
        let broken = |text: String| Wire { trouble: Trouble::Broken, text };
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|e| broken(e.to_string()))?;
        let url = outgoing.uri.to_string().parse().map_err(|_| broken("no URL".to_owned()))?;
        let mut request = reqwest::Request::new(outgoing.method.clone(), url);
        *request.headers_mut() = outgoing.headers.clone();
        let moved = Arc::new(AtomicU64::new(0));
        if !outgoing.body.is_empty() {
            let upload = Upload::new(outgoing.body.clone(), Arc::clone(&self.upload), Arc::clone(&moved));
            *request.body_mut() = Some(reqwest::Body::wrap(upload));
        }
        self.counts.count(&outgoing.method);
        let mut answer = pin!(self.client.execute(request));
        let mut before = 0;
        loop {
            match timeout(STILL, &mut answer).await {
                Ok(Ok(response)) => {
                    self.has_answered.store(true, Ordering::Relaxed);
                    return Ok((response, permit));
                }
                Ok(Err(error)) => return Err(Wire::from_client(error)),
                Err(_) => {
                    let now = moved.load(Ordering::Relaxed);
                    if now == before {
                        return Err(Wire::late(STILL));
                    }
                    before = now;
                }
            }
        }
    }

    /// A number drawn from all, for jitter: where there is no randomness there is no jitter.
    pub(super) fn draw(&self) -> u64 {
        fresh::<8>(&*self.entropy).map_or(u64::MAX, u64::from_le_bytes)
    }
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wires")
    }
}

/// A request as it can be made several times; bodies are shared, not copied.
struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Buffer,
}

impl Outgoing {
    fn set_token(&mut self, token: &swift::Token) {
        // A token comes out of a header, so it fits into one; without it the store says that it is missing.
        if let Ok(mut value) = HeaderValue::from_str(token) {
            value.set_sensitive(true);
            self.headers.insert(HeaderName::from_static("x-auth-token"), value);
        }
    }

    /// Whether the store is another one after it.
    fn changes(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD) && self.method.as_str() != "PROPFIND"
    }
}

/// What OpenDAL takes as an answer and not as an error: 1xx to 3xx without the redirects, which we do not follow.
fn is_success(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::NOT_MODIFIED
}

/// Reads an error's body; the answer goes on to OpenDAL with it.
async fn read_error(mut response: reqwest::Response) -> Result<(Answer, Response<HttpBody>), Wire> {
    let headers = response.headers().clone();
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut answer = Answer {
        status: response.status().as_u16(),
        code: text(&HeaderName::from_static("x-ms-error-code")).unwrap_or_default(),
        retry_after: text(&RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs),
        region: text(&HeaderName::from_static("x-amz-bucket-region")),
        date: text(&DATE),
        ..Answer::default()
    };
    let mut body = BytesMut::new();
    while body.len() < ERROR_BODY {
        let piece = timeout(STILL, response.chunk()).await;
        match piece.map_err(|_| Wire::late(STILL))? {
            Ok(Some(piece)) => body.extend_from_slice(piece.get(..piece.len().min(ERROR_BODY)).unwrap_or_default()),
            Ok(None) => break,
            // The status is known; what it said besides is lost.
            Err(_) => break,
        }
    }
    answer.read_body(&String::from_utf8_lossy(&body));
    let mut passed = Response::new(());
    *passed.status_mut() = response.status();
    *passed.headers_mut() = headers;
    let body = body.freeze();
    Ok((answer, passed.map(|()| whole(body))))
}

/// A body that is there already.
fn whole(bytes: Bytes) -> HttpBody {
    let length = bytes.len() as u64;
    let once = futures_util::stream::iter([Ok(Buffer::from(bytes))]);
    HttpBody::new(once, Some(length))
}

/// The object's length out of an answer to a read: behind the '/' of `Content-Range`, or the body's when all of it comes.
fn whole_length(headers: &HeaderMap, status: StatusCode, length: Option<u64>) -> Option<u64> {
    match headers.get(CONTENT_RANGE) {
        Some(range) => range.to_str().ok()?.rsplit_once('/')?.1.parse().ok(),
        None => length.filter(|_| status == StatusCode::OK),
    }
}
