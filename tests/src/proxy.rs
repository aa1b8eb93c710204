//! A proxy on loopback before a store that speaks HTTP: a link with a latency and a rate, and faults after a seeded plan.
//!
//! ```text
//!  coffer --> [a thread for each connection: draw a fate, pass the request on, pass the answer back] --> store
//!                          |                              |                          |
//!                   reset, refuse, blackhole         lose the answer        delay, cut, shorten, flip
//! ```
//!
//! Not here: TLS, and what a client should do about a fault. What holds: a request's fate follows from the seed and its number,
//! so that the same faults come in the same order, though concurrent clients may meet them elsewhere; only what a network, an
//! overloaded store or a decaying disk does is done: a listing may be cut but is never made to lie.
//!
//! The link is a model: an answer begins `latency` after the store had it, a connection's first request waits as long again
//! for the handshake, and all bytes of one direction pass one after the other at `rate`. There is no slow start.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use crate::dice::Dice;
use crate::http::{Framing, Head, read_body};
use rustix::net::sockopt::set_socket_linger;
use std::collections::BTreeMap;
use std::io::{BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a link is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// From a request's end to its answer's beginning, besides what the store takes.
    pub latency: Duration,
    /// Bytes a second in each direction; `None`: as fast as this machine is.
    pub rate: Option<u64>,
}

/// What goes wrong and how often, in thousandths of the requests that it can strike.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// What every draw follows from. A test prints it.
    pub seed: u64,
    /// How often each fault comes.
    pub shares: BTreeMap<Fault, u16>,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The connection is reset before the store hears of the request.
    Reset,
    /// 503, to be tried again after a second; the store hears nothing.
    Busy,
    /// 429, likewise.
    Throttled,
    /// The store does it, and the connection is reset instead of an answer. Strikes what changes something.
    Lost,
    /// The answer comes a second late.
    Delayed,
    /// The connection ends within the answer's body. Strikes reads, as all that follow.
    Cut,
    /// The answer says that it is shorter than it is, and is.
    Shortened,
    /// One bit of the body is wrong. Strikes objects, not listings.
    Flipped,
    /// Nothing ever comes.
    Blackhole,
}

/// All of them, in the order in which they are drawn.
const ALL: [Fault; 9] = [
    Fault::Reset,
    Fault::Busy,
    Fault::Throttled,
    Fault::Lost,
    Fault::Delayed,
    Fault::Cut,
    Fault::Shortened,
    Fault::Flipped,
    Fault::Blackhole,
];
const DELAY: Duration = Duration::from_secs(1);

/// A proxy that runs. Dropping it ends it, and every connection through it.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    /// Port of the store.
    store: u16,
    link: Link,
    faults: Mutex<Faults>,
    /// When the link is free again, by direction: to the store, from it.
    free: [Mutex<Option<Instant>>; 2],
    requests: AtomicU64,
    struck: Mutex<BTreeMap<Fault, u64>>,
    ends: AtomicBool,
    /// The clients there are, by number; so that an end reaches them.
    clients: Mutex<BTreeMap<u64, TcpStream>>,
}

#[derive(Clone, Copy)]
enum Direction {
    ToStore,
    FromStore,
}

impl Proxy {
    /// Starts one before the store at `store`, without faults.
    #[must_use]
    pub fn start(store: u16, link: Link) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            store,
            link,
            faults: Mutex::default(),
            free: Default::default(),
            requests: AtomicU64::new(0),
            struck: Mutex::default(),
            ends: AtomicBool::new(false),
            clients: Mutex::default(),
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.accept(&listener))
        };
        Proxy { shared, port, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on these faults come.
    pub fn plan(&self, faults: Faults) {
        *lock(&self.shared.faults) = faults;
    }

    /// How often each fault came so far.
    #[must_use]
    pub fn struck(&self) -> BTreeMap<Fault, u64> {
        lock(&self.shared.struck).clone()
    }

    /// How many requests came so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        // Whoever waits in accept is woken by this.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        lock(&self.shared.clients).values().for_each(|client| drop(client.shutdown(Shutdown::Both)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A connection's two ends.
struct Pair {
    client: BufReader<TcpStream>,
    store: Option<BufReader<TcpStream>>,
}

/// Whether a connection takes another request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    More,
    End,
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for (number, client) in (0..).zip(listener.incoming()) {
            if self.ends.load(Ordering::Relaxed) {
                return;
            }
            let Ok(client) = client else { continue };
            client.set_nodelay(true).unwrap();
            lock(&self.clients).insert(number, client.try_clone().unwrap());
            let shared = Arc::clone(self);
            thread::spawn(move || {
                thread::sleep(shared.link.latency);
                let mut pair = Pair { client: BufReader::new(client), store: None };
                // What fails here failed for the client, who has its own opinion of it.
                while matches!(shared.pass(&mut pair), Ok(After::More)) {}
                lock(&shared.clients).remove(&number);
            });
        }
    }

    /// Passes one request on and its answer back, or does what its fate is.
    fn pass(&self, pair: &mut Pair) -> Result<After> {
        let Some(request) = Head::read(&mut pair.client)? else { return Ok(After::End) };
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fate = self.draw(number, &request);
        if let Some(fault) = fate {
            *lock(&self.struck).entry(fault).or_default() += 1;
        }
        match fate.map(|fault| (fault, refusal(fault))) {
            Some((Fault::Reset, _)) => return reset(pair),
            Some((Fault::Blackhole, _)) => {
                self.swallow(&request, pair)?;
                let _ = pair.client.read(&mut [0]);
                return Ok(After::End);
            }
            Some((_, Some(refusal))) => {
                self.swallow(&request, pair)?;
                thread::sleep(self.link.latency);
                pair.client.get_mut().write_all(refusal.as_bytes())?;
                return Ok(After::More);
            }
            _ => {}
        }
        self.send(&request, pair)?;
        self.answer(&request, fate, number, pair)
    }

    /// The fault that strikes this request.
    fn draw(&self, number: u64, request: &Head) -> Option<Fault> {
        let faults = lock(&self.faults);
        let is_read = request.method() == "GET";
        let is_listing = request.target().contains("list-type=") || request.target().contains("delimiter=");
        ALL.into_iter().find(|fault| {
            let strikes = match fault {
                Fault::Lost => !is_read && request.method() != "HEAD",
                Fault::Cut => is_read,
                Fault::Shortened | Fault::Flipped => is_read && !is_listing,
                _ => true,
            };
            let share = faults.shares.get(fault).copied().unwrap_or_default();
            let mut dice = Dice::new(faults.seed ^ (number << 8) ^ *fault as u64);
            strikes && dice.below(1000) < u64::from(share)
        })
    }

    /// Reads a request's body, as its client counts on.
    fn swallow(&self, request: &Head, pair: &mut Pair) -> Result<()> {
        read_body(request.request_framing()?, &mut pair.client, &mut |piece| {
            self.pace(Direction::ToStore, piece.len());
            Ok(())
        })
    }

    fn send(&self, request: &Head, pair: &mut Pair) -> Result<()> {
        let mut store = match pair.store.take() {
            Some(store) => store,
            None => {
                let store = TcpStream::connect((Ipv4Addr::LOCALHOST, self.store))?;
                store.set_nodelay(true)?;
                BufReader::new(store)
            }
        };
        let framing = request.request_framing()?;
        // A store that refuses early stops reading; its answer tells why, so a failure to write is none yet.
        let mut sent = request.write(store.get_mut());
        read_body(framing, &mut pair.client, &mut |piece| {
            self.pace(Direction::ToStore, piece.len());
            if sent.is_ok() {
                sent = relay(framing, store.get_mut(), piece);
            }
            Ok(())
        })?;
        if framing == Framing::Chunked && sent.is_ok() {
            let _ = store.get_mut().write_all(b"0\r\n\r\n");
        }
        pair.store = Some(store);
        Ok(())
    }

    fn answer(&self, request: &Head, fate: Option<Fault>, number: u64, pair: &mut Pair) -> Result<After> {
        let mut store = pair.store.take().ok_or(ErrorKind::NotConnected)?;
        let Some(mut answer) = Head::read(&mut store)? else { return reset(pair) };
        let framing = answer.answer_framing(request.method())?;
        if fate == Some(Fault::Lost) {
            // All of it was done: the answer's end says so.
            read_body(framing, &mut store, &mut |_| Ok(()))?;
            return reset(pair);
        }
        thread::sleep(self.link.latency + if fate == Some(Fault::Delayed) { DELAY } else { Duration::ZERO });
        let length = if let Framing::Length(length) = framing { length } else { 0 };
        let place = if length > 0 { Dice::new(number).below(length) } else { 0 };
        // Reads of objects alone, which say how long they are; a 404 is true.
        let strikes = length > 0 && matches!(answer.status(), 200 | 206);
        let last = match fate {
            Some(Fault::Shortened) if strikes => {
                answer.set("Content-Length", place.to_string());
                place
            }
            Some(Fault::Cut) if strikes => place,
            _ => u64::MAX,
        };
        answer.write(pair.client.get_mut())?;
        let mut at = 0;
        let ended = read_body(framing, &mut store, &mut |piece| {
            let mut piece =
                piece[..usize::try_from(last.saturating_sub(at)).unwrap_or(piece.len()).min(piece.len())].to_vec();
            if fate == Some(Fault::Flipped) && strikes && (at..at + piece.len() as u64).contains(&place) {
                piece[usize::try_from(place - at).unwrap()] ^= 1 << (number % 8);
            }
            at += piece.len() as u64;
            self.pace(Direction::FromStore, piece.len());
            relay(framing, pair.client.get_mut(), &piece)?;
            if at == last { Err(Error::from(ErrorKind::ConnectionAborted)) } else { Ok(()) }
        });
        match ended {
            // The rest of it is in the way of the next answer: that comes over another connection.
            Err(_) if at == last && fate == Some(Fault::Shortened) => return Ok(After::More),
            other => other?,
        }
        if framing == Framing::Chunked {
            pair.client.get_mut().write_all(b"0\r\n\r\n")?;
        }
        let closes = answer.field("connection").is_some_and(|field| field.eq_ignore_ascii_case("close"));
        if framing == Framing::ToTheEnd || closes {
            return Ok(After::End);
        }
        pair.store = Some(store);
        Ok(After::More)
    }

    /// Waits until the link has passed so many bytes.
    fn pace(&self, direction: Direction, bytes: usize) {
        let Some(rate) = self.link.rate else { return };
        let through = {
            let mut free = lock(&self.free[direction as usize]);
            let now = Instant::now();
            let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
            let through = free.unwrap_or(now).max(now) + takes;
            *free = Some(through);
            through
        };
        thread::sleep(through.saturating_duration_since(Instant::now()));
    }
}

/// Hands a piece of a body on, framed as it came.
fn relay(framing: Framing, to: &mut TcpStream, piece: &[u8]) -> Result<()> {
    if framing != Framing::Chunked {
        return to.write_all(piece);
    }
    if piece.is_empty() {
        return Ok(());
    }
    to.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    to.write_all(piece)?;
    to.write_all(b"\r\n")
}

/// The answer of a store that has too much to do, as S3 words it.
fn refusal(fault: Fault) -> Option<String> {
    let (status, code) = match fault {
        Fault::Busy => ("503 Service Unavailable", "SlowDown"),
        Fault::Throttled => ("429 Too Many Requests", "TooManyRequests"),
        _ => return None,
    };
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by plan</Message></Error>");
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nRetry-After: 1\r\n\r\n{body}"
    ))
}

/// Ends a client's connection without a farewell.
fn reset(pair: &mut Pair) -> Result<After> {
    // With this a close sends RST.
    set_socket_linger(pair.client.get_ref(), Some(Duration::ZERO))?;
    Ok(After::End)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Request;

    /// A store that answers every request with its body, or with noise, and counts; until the test's process ends.
    fn echo(length: usize) -> (u16, Arc<AtomicU64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&count);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, heard) = (client.unwrap(), Arc::clone(&heard));
                thread::spawn(move || {
                    let mut from = BufReader::new(&client);
                    while let Ok(Some(head)) = Head::read(&mut from) {
                        read_body(head.request_framing().unwrap(), &mut from, &mut |_| Ok(())).unwrap();
                        heard.fetch_add(1, Ordering::SeqCst);
                        let mut to = &client;
                        write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
                        to.write_all(&vec![0; length]).unwrap();
                    }
                });
            }
        });
        (port, count)
    }

    fn with(fault: Fault) -> Faults {
        Faults { seed: 7, shares: BTreeMap::from([(fault, 1000)]) }
    }

    const GET: Request<'_> = Request { method: "GET", target: "/b/o", fields: &[], body: b"" };
    const PUT: Request<'_> = Request { method: "PUT", target: "/b/o", fields: &[], body: b"content" };

    #[test]
    fn each_fault_is_what_it_says() {
        let (store, heard) = echo(100_000);
        let proxy = Proxy::start(store, Link::default());
        assert!(GET.ask(proxy.port()).unwrap().good().body == [0; 100_000]);
        assert_eq!((proxy.requests(), heard.load(Ordering::SeqCst)), (1, 1));

        for (fault, status) in [(Fault::Busy, 503), (Fault::Throttled, 429)] {
            proxy.plan(with(fault));
            let head = PUT.ask(proxy.port()).unwrap().head;
            assert_eq!((head.status(), head.field("retry-after")), (status, Some("1")));
        }
        proxy.plan(with(Fault::Reset));
        PUT.ask(proxy.port()).unwrap_err();
        assert_eq!(heard.load(Ordering::SeqCst), 1, "the store heard of what was refused");
        proxy.plan(with(Fault::Lost));
        PUT.ask(proxy.port()).unwrap_err();
        assert_eq!(heard.load(Ordering::SeqCst), 2);
        assert_eq!(GET.ask(proxy.port()).unwrap().body.len(), 100_000, "reads are not struck");
        proxy.plan(with(Fault::Cut));
        assert_eq!(GET.ask(proxy.port()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        proxy.plan(with(Fault::Shortened));
        assert!(GET.ask(proxy.port()).unwrap().body.len() < 100_000);
        proxy.plan(with(Fault::Flipped));
        let bits: u32 = GET.ask(proxy.port()).unwrap().body.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits, 1);
        let listing = Request { target: "/b?list-type=2", ..GET };
        assert!(listing.ask(proxy.port()).unwrap().body == [0; 100_000], "a listing lies");
        let struck = proxy.struck();
        assert_eq!(struck.values().sum::<u64>(), 7, "{struck:?}");
    }

    #[test]
    fn a_blackhole_answers_nothing_and_ends_with_the_proxy() {
        let (store, heard) = echo(1);
        let proxy = Proxy::start(store, Link::default());
        proxy.plan(with(Fault::Blackhole));
        let port = proxy.port();
        let asking = thread::spawn(move || PUT.ask(port));
        let began = Instant::now();
        while proxy.struck().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!asking.is_finished());
        drop(proxy);
        asking.join().unwrap().unwrap_err();
        assert_eq!(heard.load(Ordering::SeqCst), 0);
    }

    /// No bound from above: this machine may be busy.
    #[test]
    fn a_link_takes_its_time() {
        let (store, _) = echo(100_000);
        let link = Link { latency: Duration::from_millis(50), rate: Some(1_000_000) };
        let proxy = Proxy::start(store, link);
        let began = Instant::now();
        let _ = GET.ask(proxy.port()).unwrap().good();
        // The handshake, the answer, and its bytes.
        assert!(began.elapsed() >= Duration::from_millis(195), "{:?}", began.elapsed());
    }

    #[test]
    fn draws_repeat() {
        let (store, _) = echo(1);
        let outcomes = || {
            let proxy = Proxy::start(store, Link::default());
            proxy.plan(Faults { seed: 3, shares: BTreeMap::from([(Fault::Busy, 300)]) });
            (0..100).map(|_| GET.ask(proxy.port()).unwrap().head.status()).collect::<Vec<_>>()
        };
        let first = outcomes();
        assert_eq!(first, outcomes());
        let refused = first.iter().filter(|status| **status == 503).count();
        assert!((10..60).contains(&refused), "{refused}");
    }
}
