//! One connection from its first byte to its last: a login, then PDUs.
//!
//! Not here: what is said in either ([`crate::login`], [`crate::connection`]). What holds: a login ends within its time; when the server stops
//! a login ends at once, and an initiator is asked to log out and has a while to do so; who does not answer pings is given up.

use crate::connection::Connection;
use crate::desk::Desk;
use crate::login::{Agreed, Dialogue, Rules, refusal};
use crate::pdu::{
    Flaw, HEAD, Head, Login, LoginStatus, Numbers, Rejection, Request, Response, encode_text, opcode, padded,
};
use crate::scsi::PortOptions;
use crate::sender::Format;
use crate::server::{Entry, Services};
use crate::session::{Identity, Session};
use crate::target::{Entrance, Joined};
use coffer_gateway::serving::{Order, Stopped, Visit};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{interval, timeout};

/// The longest data segment in a login.
const MAX_LOGIN_SEGMENT: usize = 64 << 10;

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portal {
    pub(crate) port: PortOptions,
    /// The address that the initiator reached; none on a socket file.
    pub(crate) local: Option<SocketAddr>,
}

/// A connection that logged in.
struct Arrived<S> {
    stream: S,
    desk: Desk,
    digests: (bool, bool),
    /// Takes it out of its session again.
    _membership: Membership,
}

/// A connection's place in a session, for as long as it has it.
struct Membership {
    session: Arc<Session>,
    id: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.session.depart(self.id)
            && let Some(disks) = &self.session.disks
        {
            disks.target.depart(&self.session);
        }
    }
}

/// One connection from its first byte to its last.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: io::Result<S>,
    visit: &Arc<Visit<Entry>>,
    services: &Arc<Services>,
    portal: Portal,
    mut stopped: Stopped,
) -> io::Result<()> {
    let login = log_in(stream?, visit, services, portal);
    let arrived = tokio::select! {
        _ = stopped.wait_for(|is_stopped| *is_stopped) => return Ok(()),
        arrived = timeout(services.options.login_timeout, login) => arrived??,
    };
    let Some(Arrived { stream, desk, digests, _membership }) = arrived else { return Ok(()) };
    let mut connection = Connection::new(stream, Arc::clone(services), Arc::clone(visit), desk, digests);
    let mut orders = visit.orders();
    let options = &services.options;
    let shortest = options.ping_after.min(options.ping_timeout).min(options.data_timeout);
    let mut looks = interval(shortest.div_f32(4.0));
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| connection.poll_run(cx)) => return ended,
            // The sender is in the record that is borrowed here.
            _ = orders.changed() => {}
            _ = looks.tick() => {
                if !connection.look_after() {
                    return Ok(());
                }
                continue;
            }
        }
        match *orders.borrow_and_update() {
            Order::Stay => {}
            Order::Rest(_) => connection.rest(),
            Order::Leave => break,
        }
    }
    let patience = services.options.stop_timeout;
    connection.desk.ask_to_log_out(u16::try_from(patience.as_secs()).unwrap_or(u16::MAX));
    if let Ok(ended) = timeout(patience, poll_fn(|cx| connection.poll_run(cx))).await {
        return ended;
    }
    connection.desk.say_goodbye();
    timeout(patience, poll_fn(|cx| connection.poll_run(cx))).await?
}

/// The whole login; `None` when it came to nothing.
async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    visit: &Arc<Visit<Entry>>,
    services: &Arc<Services>,
    portal: Portal,
) -> io::Result<Option<Arrived<S>>> {
    let rules = Rules {
        targets: &services.targets,
        allowance: services.options.allowance,
        discovery: services.options.discovery.as_ref(),
        allow_md5: services.options.allow_md5,
        peer: visit.peer(),
        group: portal.port.group,
    };
    let mut dialogue = Dialogue::new(rules);
    let mut numbers = Numbers { stat_sn: 1, ..Numbers::default() };
    loop {
        let Some((login, text)) = receive(&mut stream, numbers).await? else { return Ok(None) };
        numbers.exp_cmd_sn = login.cmd_sn;
        numbers.max_cmd_sn = login.cmd_sn.wrapping_add(services.options.depth.max(1) - 1);
        let step = match dialogue.step(&login, &text) {
            Ok(step) => step,
            Err(status) => return refuse(&mut stream, &login, status, numbers, services, visit).await,
        };
        let Some(agreed) = &step.agreed else {
            send(&mut stream, &step.response(&login, login.tsih), &encode_text(&step.pairs), numbers).await?;
            numbers.stat_sn += 1;
            continue;
        };
        let entered = enter(agreed, visit, services, portal);
        let (session, mail) = match entered {
            Ok(entered) => entered,
            Err(status) => return refuse(&mut stream, &login, status, numbers, services, visit).await,
        };
        let membership = Membership { session: Arc::clone(&session), id: visit.id() };
        (numbers.exp_cmd_sn, numbers.max_cmd_sn) = session.window();
        let response = step.response(&login, session.identity.tsih);
        send(&mut stream, &response, &encode_text(&step.pairs), numbers).await?;
        let terms = agreed.terms;
        let format = Format {
            header_digest: terms.header_digest,
            data_digest: terms.data_digest,
            max_segment: terms.max_segment,
            max_burst: session.identity.terms.max_burst,
            may_recover: session.identity.terms.error_recovery_level > 0,
        };
        visit.enter(Entry { session: Arc::clone(&session), local: portal.local });
        // Whoever took the target away in this moment may not have seen this connection.
        if agreed.target.as_ref().is_some_and(|target| target.is_closed()) {
            visit.command(Order::Leave);
        }
        let (services, own) = (Arc::clone(services), Arc::clone(visit));
        let desk = Desk::new(services, session, own, agreed.first.cid, mail, format, numbers.stat_sn + 1);
        let digests = (terms.header_digest, terms.data_digest);
        return Ok(Some(Arrived { stream, desk, digests, _membership: membership }));
    }
}

/// Begins a session or joins one.
fn enter(agreed: &Agreed, visit: &Visit<Entry>, services: &Services, portal: Portal) -> Result<Joined, LoginStatus> {
    let Agreed { first, initiator, alias, target, luns, terms } = agreed;
    let (initiator, alias, terms) = (initiator.clone(), alias.clone(), *terms);
    let Some(target) = target else {
        let identity = Identity { initiator, alias, isid: first.isid, tsih: 1, group: portal.port.group, terms };
        let session = Session::new(identity, None, first.cmd_sn, services.options.depth);
        let mail = session.join(first.cid, visit.id()).ok_or(LoginStatus::OUT_OF_RESOURCES)?;
        return Ok((session, mail));
    };
    target.enter(Entrance {
        initiator,
        alias,
        isid: first.isid,
        tsih: first.tsih,
        cid: first.cid,
        cmd_sn: first.cmd_sn,
        terms,
        luns: luns.clone(),
        port: portal.port,
        connection: visit.id(),
        depth: services.options.depth,
    })
}

/// Receives a login request with its text; `None` when something else comes, or nothing.
async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    numbers: Numbers,
) -> io::Result<Option<(Login, Vec<u8>)>> {
    let mut head = Head([0; HEAD]);
    match stream.read_exact(&mut head.0).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let lengths = head.lengths();
    if head.opcode() != opcode::LOGIN || lengths.data > MAX_LOGIN_SEGMENT || lengths.ahs > 0 {
        // Before a login nothing else has an answer, and nothing that long belongs to one.
        let reason = Rejection::Protocol;
        send(stream, &Response::Reject { reason }, &head.0, numbers).await?;
        return Ok(None);
    }
    let mut text = vec![0; padded(lengths.data)];
    stream.read_exact(&mut text).await?;
    text.truncate(lengths.data);
    match Request::decode(&head, &[]) {
        Ok(Request::Login(login)) => Ok(Some((login, text))),
        Ok(_) | Err(Flaw(_)) => Ok(None),
    }
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    response: &Response,
    data: &[u8],
    numbers: Numbers,
) -> io::Result<()> {
    let mut bytes = response.encode(numbers, data.len()).0.to_vec();
    bytes.extend(data);
    bytes.resize(HEAD + padded(data.len()), 0);
    stream.write_all(&bytes).await
}

/// Ends a login, and says so where it is meant to be known.
async fn refuse<S: AsyncWrite + Unpin>(
    stream: &mut S,
    login: &Login,
    status: LoginStatus,
    numbers: Numbers,
    services: &Services,
    visit: &Visit<Entry>,
) -> io::Result<Option<Arrived<S>>> {
    services.refused(visit.peer(), status);
    send(stream, &refusal(login, status), &[], numbers).await?;
    Ok(None)
}
