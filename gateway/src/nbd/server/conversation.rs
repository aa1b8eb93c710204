//! One connection from its first byte to its last: the handshake, twice when the client wants TLS, then requests.
//!
//! Not here: what is said in either ([`super::negotiation`], [`super::transmission`]). What holds: the whole handshake, TLS included,
//! ends within its time; what was said in the clear counts for nothing once TLS is on; when the server stops, a handshake ends at
//! once, and requests in flight have a while to finish; the same goes for one client that is told to leave.

use super::super::certificate::common_name;
use super::super::tls;
use super::Services;
use super::entry::Entry;
use super::negotiation::{self, Encryption, Outcome, Terms};
use super::session::Session;
use super::transmission::Transmission;
use crate::export::Peer;
use crate::serving::{Order, Stopped, Visit};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// One connection from its first byte to its last.
pub(super) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: io::Result<S>,
    visit: &Arc<Visit<Entry>>,
    services: &Arc<Services>,
    mut stopped: Stopped,
) -> io::Result<()> {
    let handshake = shake_hands(stream?, visit, services);
    let arrived = tokio::select! {
        _ = stopped.wait_for(|is_stopped| *is_stopped) => return Ok(()),
        arrived = timeout(services.options.handshake_timeout, handshake) => arrived??,
    };
    match arrived {
        Some(Arrived::Plain(stream, session)) => transmit(stream, session, visit, services).await,
        Some(Arrived::Encrypted(stream, session)) => transmit(*stream, session, visit, services).await,
        None => Ok(()),
    }
}

/// A client that took an export.
enum Arrived<S> {
    Plain(S, Session),
    Encrypted(Box<TlsStream<S>>, Session),
}

/// The whole handshake, encrypted from where the client wants it; `None` when the client leaves.
async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    visit: &Visit<Entry>,
    services: &Services,
) -> io::Result<Option<Arrived<S>>> {
    let Some(has_zeroes) = negotiation::greet(&mut stream).await? else { return Ok(None) };
    let terms = |peer, encryption| {
        let report = services.options.report.clone();
        Terms { exports: &services.exports, peer, encryption, has_zeroes, report }
    };
    let enter = |session: &Session, peer: &Peer, is_encrypted| {
        let export = session.export.export();
        let (export, name) = (Arc::downgrade(export), export.name.clone());
        visit.enter(Entry { export, name, peer: peer.clone(), is_encrypted });
    };
    let encryption = match &services.options.tls {
        None => Encryption::Absent,
        Some(tls) if tls.is_required() => Encryption::Required,
        Some(_) => Encryption::Allowed,
    };
    match negotiation::negotiate(&mut stream, terms(visit.peer(), encryption)).await? {
        Outcome::Agreed(session) => {
            enter(&session, visit.peer(), false);
            return Ok(Some(Arrived::Plain(stream, session)));
        }
        Outcome::Encrypt => {}
        Outcome::Left => return Ok(None),
    }
    let Some(tls) = &services.options.tls else { return Ok(None) };
    let encrypted = TlsAcceptor::from(tls.config()).accept(stream).await;
    let mut stream = match encrypted {
        Ok(stream) => Box::new(stream),
        Err(e) => {
            if let Some(report) = &services.options.report {
                report(&tls::failed(&format!("TLS with {}", visit.peer()), e));
            }
            return Ok(None);
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.and_then(|first| common_name(first)).map(str::to_owned);
    let peer = Peer { certificate, ..visit.peer().clone() };
    match negotiation::negotiate(&mut *stream, terms(&peer, Encryption::On)).await? {
        Outcome::Agreed(session) => {
            enter(&session, &peer, true);
            Ok(Some(Arrived::Encrypted(stream, session)))
        }
        Outcome::Encrypt | Outcome::Left => Ok(None),
    }
}

/// Serves requests until the client leaves or is told to.
async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    session: Session,
    visit: &Arc<Visit<Entry>>,
    services: &Arc<Services>,
) -> io::Result<()> {
    let mut transmission = Transmission::new(stream, session, Arc::clone(visit), Arc::clone(services));
    let mut orders = visit.orders();
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| transmission.poll_run(cx)) => return ended,
            // The sender is in the record that is borrowed here.
            _ = orders.changed() => {}
        }
        match *orders.borrow_and_update() {
            Order::Stay => {}
            Order::Rest(_) => transmission.rest(),
            Order::Leave => break,
        }
    }
    transmission.close();
    timeout(services.options.stop_timeout, poll_fn(|cx| transmission.poll_run(cx))).await?
}
