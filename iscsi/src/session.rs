//! A session: commands in their order over all of its connections, and which tasks are still wanted.
//!
//! ```text
//!   connection: PDU -> arrive -> now | later, when what is missing has come | never
//!                      ready  -> may the task begin? ORDERED waits for what came before it, others for ORDERED and HEAD
//!                      finish -> is it still wanted? who waited for it?
//!                      abort  -> it is not
//! ```
//! Not here: PDUs, data, storage. What holds: a command's turn comes once, in the order of its numbers; a task that was aborted is
//! forgotten at once, whatever storage does with it, and its late outcome is thrown away; the window moves on by one for each
//! command that ended, so that no more than `depth` are under way. The lock is held for look-ups and never over I/O; other
//! connections hear by their mailboxes, which have room for all that can be said.

use crate::login::Terms;
use crate::pdu::{Attribute, Rejection};
use crate::scsi::Nexus;
use crate::target::Target;
use coffer_gateway::Activity;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// What one connection is told by others.
#[derive(Debug)]
pub(crate) enum Mail {
    /// The turn of this command has come.
    Turn(u64),
    /// This task may begin.
    Ready(Ticket),
    /// This task is not wanted any more.
    Forget(Ticket),
    /// What waits under this number is not wanted any more.
    Void(u64),
    /// It is over.
    Close,
}

/// A task: its tag, and a number that tells it from others of that tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) tag: u32,
    pub(crate) number: u64,
}

/// What a PDU brings to be put in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    pub(crate) tag: u32,
    pub(crate) lun: [u8; 8],
    pub(crate) attribute: Attribute,
}

/// What becomes of a PDU with a command number.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It is its turn, and then that of these, which came on the same connection. With a task comes its number.
    Now { number: u64, followers: Vec<u64> },
    /// It waits under this number.
    Later(u64),
    /// It came before, or is beyond the window.
    Ignored,
    /// It is not taken; it was its turn, and then that of these.
    Rejected { reason: Rejection, followers: Vec<u64> },
}

/// What followed from a task's end.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    /// Whether anybody wants to hear of it.
    pub(crate) is_wanted: bool,
    /// Tasks of the same connection that may begin now.
    pub(crate) ready: Vec<Ticket>,
}

/// Who a session is with, and what was agreed.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) initiator: String,
    pub(crate) alias: Option<String>,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    /// The portal group that its connections come through.
    pub(crate) group: u16,
    pub(crate) terms: Terms,
}

/// A session's disks; a discovery session has none.
pub(crate) struct Disks {
    pub(crate) target: Arc<Target>,
    pub(crate) nexus: Arc<Nexus>,
}

/// See the file's header.
pub(crate) struct Session {
    pub(crate) identity: Identity,
    pub(crate) disks: Option<Disks>,
    pub(crate) activity: Activity,
    depth: u32,
    /// Copies of what is under the lock, for responses to bear.
    exp_cmd_sn: AtomicU32,
    max_cmd_sn: AtomicU32,
    state: Mutex<State>,
}

struct State {
    /// The next command's number; its lower half travels.
    next: u64,
    /// What came too early.
    held: BTreeMap<u64, Held>,
    tasks: HashMap<u32, Entry>,
    /// For [`Ticket::number`].
    numbers: u64,
    /// Tasks that others wait for: ORDERED and HEAD.
    barriers: usize,
    dormant: usize,
    immediate: usize,
    connections: BTreeMap<u16, Place>,
    is_over: bool,
}

/// What waits for its turn.
enum Held {
    Unit {
        connection: u64,
        task: Option<Newcomer>,
    },
    /// It was aborted before it came.
    Void,
}

struct Entry {
    number: u64,
    connection: u64,
    lun: [u8; 8],
    attribute: Attribute,
    is_immediate: bool,
    is_dormant: bool,
}

/// A connection.
struct Place {
    id: u64,
    mail: mpsc::Sender<Mail>,
}

/// Room in a mailbox: everything that can be said about `depth` tasks and as many immediate ones.
fn mailbox(depth: u32) -> usize {
    depth as usize * 8 + 64
}

impl Session {
    /// A session whose first command will have the number `cmd_sn`, with `depth` commands at once.
    pub(crate) fn new(identity: Identity, disks: Option<Disks>, cmd_sn: u32, depth: u32) -> Arc<Self> {
        let depth = depth.max(1);
        let state = State {
            // Never below a window's worth, so that numbers before it exist.
            next: u64::from(cmd_sn) + (1 << 32),
            held: BTreeMap::new(),
            tasks: HashMap::new(),
            numbers: 0,
            barriers: 0,
            dormant: 0,
            immediate: 0,
            connections: BTreeMap::new(),
            is_over: false,
        };
        Arc::new(Session {
            identity,
            disks,
            activity: Activity::default(),
            depth,
            exp_cmd_sn: AtomicU32::new(cmd_sn),
            max_cmd_sn: AtomicU32::new(cmd_sn.wrapping_add(depth - 1)),
            state: Mutex::new(state),
        })
    }

    /// The next command that is expected, and the last one that may be sent.
    pub(crate) fn window(&self) -> (u32, u32) {
        // In this order: the last one may be newer than the next one, never older.
        let next = self.exp_cmd_sn.load(Ordering::Acquire);
        (next, self.max_cmd_sn.load(Ordering::Acquire))
    }

    /// Whether a command of that number may come.
    pub(crate) fn is_in_window(&self, sn: u32) -> bool {
        let (next, last) = self.window();
        // A window that is closed ends just before it begins.
        sn.wrapping_sub(next) <= last.wrapping_sub(next) && last.wrapping_sub(next) < 1 << 31
    }

    /// Takes a connection in; one of the same number has to go. `None` when there are as many as agreed, or the session is over.
    pub(crate) fn join(&self, cid: u16, id: u64) -> Option<mpsc::Receiver<Mail>> {
        let mut state = self.lock();
        let is_known = state.connections.contains_key(&cid);
        let most = usize::from(self.identity.terms.max_connections);
        if state.is_over || (!is_known && state.connections.len() >= most) {
            return None;
        }
        let (mail, received) = mpsc::channel(mailbox(self.depth));
        if let Some(before) = state.connections.insert(cid, Place { id, mail }) {
            let gone = state.drop_connection(before.id);
            self.moved_on(&mut state, gone);
            tell(&before.mail, Mail::Close);
        }
        Some(received)
    }

    /// A connection is gone, and its tasks with it; whether it was the last one.
    pub(crate) fn depart(&self, id: u64) -> bool {
        let mut state = self.lock();
        let gone = state.drop_connection(id);
        self.moved_on(&mut state, gone);
        state.connections.retain(|_, place| place.id != id);
        let is_last = state.connections.is_empty();
        state.is_over |= is_last;
        is_last
    }

    /// Ends it: its connections have to go, but for `id`.
    pub(crate) fn end(&self, id: Option<u64>) {
        let mut state = self.lock();
        state.is_over = true;
        let others = state.connections.values().filter(|place| Some(place.id) != id);
        others.for_each(|place| tell(&place.mail, Mail::Close));
    }

    /// Has the connection `cid` end; `false` when there is none.
    pub(crate) fn close_connection(&self, cid: u16) -> bool {
        self.lock().connections.get(&cid).map(|place| tell(&place.mail, Mail::Close)).is_some()
    }

    /// The connections, by their numbers in the server's table.
    pub(crate) fn connections(&self) -> Vec<(u16, u64)> {
        self.lock().connections.iter().map(|(cid, place)| (*cid, place.id)).collect()
    }

    /// A PDU that takes a place in the order: `sn` is its command number, `task` what it brings.
    pub(crate) fn arrive(&self, connection: u64, sn: u32, task: Option<Newcomer>) -> Arrival {
        let mut state = self.lock();
        if !self.is_in_window(sn) {
            return Arrival::Ignored;
        }
        let ahead = sn.wrapping_sub(self.exp_cmd_sn.load(Ordering::Relaxed));
        let long = state.next + u64::from(ahead);
        if ahead > 0 {
            if state.held.contains_key(&long) {
                return Arrival::Ignored;
            }
            state.held.insert(long, Held::Unit { connection, task });
            return Arrival::Later(long);
        }
        let is_known = task.is_some_and(|task| state.tasks.contains_key(&task.tag));
        let number = match task {
            Some(task) if !is_known => state.register(connection, task, false),
            _ => 0,
        };
        state.next += 1;
        let ended = usize::from(task.is_none() || is_known);
        let (followers, more) = state.release(connection);
        self.moved_on(&mut state, ended + more);
        match is_known {
            true => Arrival::Rejected { reason: Rejection::TaskInProgress, followers },
            false => Arrival::Now { number, followers },
        }
    }

    /// A command for immediate delivery.
    pub(crate) fn arrive_at_once(&self, connection: u64, task: Newcomer) -> Result<u64, Rejection> {
        let mut state = self.lock();
        if state.tasks.contains_key(&task.tag) {
            return Err(Rejection::TaskInProgress);
        }
        if state.immediate >= self.depth as usize {
            return Err(Rejection::Immediate);
        }
        Ok(state.register(connection, task, true))
    }

    /// The number of a task of `connection` whose turn has come while it waited.
    pub(crate) fn number(&self, connection: u64, tag: u32) -> Option<u64> {
        self.lock().tasks.get(&tag).filter(|entry| entry.connection == connection).map(|entry| entry.number)
    }

    /// Whether a task may begin; else it will be told.
    pub(crate) fn ready(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        if state.barriers == 0 || state.may_begin(ticket) {
            return true;
        }
        if let Some(entry) = state.tasks.get_mut(&ticket.tag).filter(|entry| entry.number == ticket.number) {
            entry.is_dormant = true;
            state.dormant += 1;
        }
        false
    }

    /// A task of `connection` ended.
    pub(crate) fn finish(&self, connection: u64, ticket: Ticket) -> Finished {
        let mut state = self.lock();
        let is_wanted = state.tasks.get(&ticket.tag).is_some_and(|entry| entry.number == ticket.number);
        if !is_wanted {
            return Finished::default();
        }
        let ended = state.forget(ticket.tag);
        self.moved_on(&mut state, ended);
        Finished { is_wanted, ready: state.wake(connection) }
    }

    /// Forgets one task, which may not have come yet; whether there was one. Its connection hears of it unless it is `connection`.
    pub(crate) fn abort(&self, connection: u64, tag: u32, sn: u32) -> (Option<Ticket>, bool) {
        let mut state = self.lock();
        let Some(entry) = state.tasks.get(&tag) else {
            let ahead = sn.wrapping_sub(self.exp_cmd_sn.load(Ordering::Relaxed));
            let long = state.next + u64::from(ahead);
            let is_another = |held: &Held| !matches!(held, Held::Unit { task: Some(task), .. } if task.tag == tag);
            if !self.is_in_window(sn) || state.held.get(&long).is_some_and(is_another) {
                return (None, false);
            }
            // It is taken as having come.
            if let Some(Held::Unit { connection: owner, .. }) = state.held.insert(long, Held::Void) {
                state.tell_connection(owner, Mail::Void(long));
            }
            let (followers, ended) = state.release(connection);
            for long in followers {
                state.tell_connection(connection, Mail::Turn(long));
            }
            self.moved_on(&mut state, ended);
            return (None, true);
        };
        let (ticket, owner) = (Ticket { tag, number: entry.number }, entry.connection);
        let ended = state.forget(tag);
        self.moved_on(&mut state, ended);
        let is_own = owner == connection;
        if !is_own {
            state.tell_connection(owner, Mail::Forget(ticket));
        }
        for ticket in state.wake(connection) {
            state.tell_connection(connection, Mail::Ready(ticket));
        }
        (is_own.then_some(ticket), true)
    }

    /// Forgets all tasks, or those of one LUN. Those of `connection` are returned, other connections hear of theirs.
    pub(crate) fn abort_all(&self, connection: u64, lun: Option<[u8; 8]>) -> Vec<Ticket> {
        let mut state = self.lock();
        let is_meant = |entry: &Entry| lun.is_none_or(|lun| entry.lun == lun);
        let meant = state.tasks.iter().filter(|(_, entry)| is_meant(entry));
        let meant: Vec<(Ticket, u64)> =
            meant.map(|(tag, entry)| (Ticket { tag: *tag, number: entry.number }, entry.connection)).collect();
        let mut own = Vec::new();
        for (ticket, owner) in meant {
            let ended = state.forget(ticket.tag);
            self.moved_on(&mut state, ended);
            if owner == connection {
                own.push(ticket);
            } else {
                state.tell_connection(owner, Mail::Forget(ticket));
            }
        }
        for ticket in state.wake(connection) {
            state.tell_connection(connection, Mail::Ready(ticket));
        }
        own
    }

    /// `ended` commands more are over.
    fn moved_on(&self, state: &mut State, ended: usize) {
        let ended = u32::try_from(ended).unwrap_or(u32::MAX);
        // The lower half is what travels.
        let [.., a, b, c, d] = state.next.to_be_bytes();
        self.max_cmd_sn.fetch_add(ended, Ordering::Release);
        self.exp_cmd_sn.store(u32::from_be_bytes([a, b, c, d]), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(mailbox: &mpsc::Sender<Mail>, mail: Mail) {
    // There is room for all that can be said; one that is gone needs to hear nothing.
    let _ = mailbox.try_send(mail);
}

impl State {
    fn register(&mut self, connection: u64, task: Newcomer, is_immediate: bool) -> u64 {
        self.numbers += 1;
        let Newcomer { tag, lun, attribute } = task;
        let number = self.numbers;
        self.tasks.insert(tag, Entry { number, connection, lun, attribute, is_immediate, is_dormant: false });
        self.barriers += usize::from(attribute != Attribute::Simple);
        self.immediate += usize::from(is_immediate);
        number
    }

    /// Lets go of a task; how far the window moves on.
    fn forget(&mut self, tag: u32) -> usize {
        let Some(entry) = self.tasks.remove(&tag) else { return 0 };
        self.barriers -= usize::from(entry.attribute != Attribute::Simple);
        self.dormant -= usize::from(entry.is_dormant);
        self.immediate -= usize::from(entry.is_immediate);
        usize::from(!entry.is_immediate)
    }

    /// Those whose turn has come: of `connection`, and how many commands were over with that. Others are told.
    fn release(&mut self, connection: u64) -> (Vec<u64>, usize) {
        let (mut own, mut ended) = (Vec::new(), 0);
        while let Some(held) = self.held.remove(&self.next) {
            let long = self.next;
            self.next += 1;
            let Held::Unit { connection: owner, task } = held else {
                ended += 1;
                continue;
            };
            match task {
                // With its tag in use it is told no number, and its connection rejects it.
                Some(task) if !self.tasks.contains_key(&task.tag) => {
                    self.register(owner, task, false);
                }
                _ => ended += 1,
            }
            if owner == connection {
                own.push(long);
            } else {
                self.tell_connection(owner, Mail::Turn(long));
            }
        }
        (own, ended)
    }

    fn may_begin(&self, ticket: Ticket) -> bool {
        let Some(entry) = self.tasks.get(&ticket.tag).filter(|entry| entry.number == ticket.number) else {
            return true;
        };
        if entry.attribute == Attribute::Head {
            return true;
        }
        let is_ordered = entry.attribute == Attribute::Ordered;
        let holds_back = |other: &Entry| {
            other.number < entry.number
                && other.lun == entry.lun
                && (is_ordered || other.attribute != Attribute::Simple)
        };
        !self.tasks.values().any(holds_back)
    }

    /// Tasks that waited for others and may begin now: those of `connection`. Others are told.
    fn wake(&mut self, connection: u64) -> Vec<Ticket> {
        if self.dormant == 0 {
            return Vec::new();
        }
        let dormant = self.tasks.iter().filter(|(_, entry)| entry.is_dormant);
        let dormant = dormant.map(|(tag, entry)| (Ticket { tag: *tag, number: entry.number }, entry.connection));
        let mut awake: Vec<(Ticket, u64)> = dormant.filter(|(ticket, _)| self.may_begin(*ticket)).collect();
        awake.sort_by_key(|(ticket, _)| ticket.number);
        let mut own = Vec::new();
        for (ticket, owner) in awake {
            if let Some(entry) = self.tasks.get_mut(&ticket.tag) {
                entry.is_dormant = false;
                self.dormant -= 1;
            }
            if owner == connection {
                own.push(ticket);
            } else {
                self.tell_connection(owner, Mail::Ready(ticket));
            }
        }
        own
    }

    /// Lets go of what a connection brought; how far the window moves on. What waited for its turn may come again elsewhere.
    fn drop_connection(&mut self, id: u64) -> usize {
        self.held.retain(|_, held| !matches!(held, Held::Unit { connection, .. } if *connection == id));
        let tags: Vec<u32> = self.tasks.iter().filter(|(_, e)| e.connection == id).map(|(tag, _)| *tag).collect();
        let ended = tags.into_iter().map(|tag| self.forget(tag)).sum();
        // It has nobody left to begin; the others are told.
        self.wake(id);
        ended
    }

    fn tell_connection(&self, id: u64, mail: Mail) {
        if let Some(place) = self.connections.values().find(|place| place.id == id) {
            tell(&place.mail, mail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(cmd_sn: u32, depth: u32) -> Arc<Session> {
        let terms = Terms { max_connections: 4, ..Terms::default() };
        let identity = Identity { initiator: "iqn.x".into(), alias: None, isid: [0; 6], tsih: 1, group: 1, terms };
        Session::new(identity, None, cmd_sn, depth)
    }

    fn task(tag: u32) -> Option<Newcomer> {
        Some(Newcomer { tag, lun: [0; 8], attribute: Attribute::Simple })
    }

    fn with(tag: u32, attribute: Attribute) -> Option<Newcomer> {
        Some(Newcomer { tag, lun: [0; 8], attribute })
    }

    fn ticket(session: &Session, tag: u32) -> Ticket {
        Ticket { tag, number: session.lock().tasks[&tag].number }
    }

    #[test]
    fn commands_have_their_turn_in_order_over_connections_and_the_end_of_numbers() {
        let session = session(u32::MAX, 8);
        let mut mail: Vec<_> = (0..2).map(|cid| session.join(cid, cid.into()).unwrap()).collect();
        assert!(matches!(session.arrive(0, 1, task(12)), Arrival::Later(_)));
        assert!(matches!(session.arrive(0, 1, task(12)), Arrival::Ignored), "it came before");
        assert!(matches!(session.arrive(1, 0, task(11)), Arrival::Later(_)));
        assert_eq!(session.window(), (u32::MAX, 6));
        let Arrival::Now { number: 1, followers } = session.arrive(0, u32::MAX, task(10)) else { panic!() };
        let Ok(Mail::Turn(second)) = mail[1].try_recv() else { panic!() };
        assert_eq!(followers, [second + 1]);
        assert_eq!(session.window(), (2, 6));
        for old in [u32::MAX, 0, 1, 7, 100, 1 << 31] {
            assert!(matches!(session.arrive(0, old, task(99)), Arrival::Ignored), "{old}");
        }
        assert!(session.finish(0, ticket(&session, 10)).is_wanted);
        assert_eq!(session.window(), (2, 7));
        assert!(matches!(session.arrive(0, 2, task(12)), Arrival::Rejected { reason: Rejection::TaskInProgress, .. }));
        assert_eq!(session.window(), (3, 8));
        assert!(mail[0].try_recv().is_err());
    }

    #[test]
    fn the_window_closes_and_opens() {
        let session = session(5, 2);
        let _mail = session.join(0, 0).unwrap();
        for (sn, tag) in [(5, 1), (6, 2)] {
            assert!(matches!(session.arrive(0, sn, task(tag)), Arrival::Now { .. }));
        }
        assert_eq!(session.window(), (7, 6));
        assert!(!session.is_in_window(7) && matches!(session.arrive(0, 7, task(3)), Arrival::Ignored));
        session.finish(0, ticket(&session, 2));
        assert!(matches!(session.arrive(0, 7, task(3)), Arrival::Now { .. }));
        let newcomer = |tag| task(tag).unwrap();
        assert!(session.arrive_at_once(0, newcomer(10)).is_ok() && session.arrive_at_once(0, newcomer(11)).is_ok());
        assert_eq!(session.arrive_at_once(0, newcomer(12)), Err(Rejection::Immediate));
        assert_eq!(session.arrive_at_once(0, newcomer(10)), Err(Rejection::TaskInProgress));
        session.finish(0, ticket(&session, 10));
        assert_eq!(session.window(), (8, 7), "an immediate command takes no place");
    }

    #[test]
    fn ordered_waits_for_what_was_before_and_head_for_nothing() {
        let session = session(0, 16);
        let mut mail = session.join(1, 1).unwrap();
        let _other = session.join(0, 0).unwrap();
        let arrivals = [
            (1, Attribute::Simple),
            (2, Attribute::Ordered),
            (3, Attribute::Simple),
            (4, Attribute::Head),
            (5, Attribute::Ordered),
        ];
        for (tag, attribute) in arrivals {
            let connection = u64::from(tag == 3);
            assert!(matches!(session.arrive(connection, tag - 1, with(tag, attribute)), Arrival::Now { .. }));
        }
        let ready = |tag| session.ready(ticket(&session, tag));
        assert!(ready(1) && !ready(2) && !ready(3) && ready(4) && !ready(5));
        let finish = |tag| session.finish(0, ticket(&session, tag)).ready.iter().map(|t| t.tag).collect::<Vec<_>>();
        assert_eq!(finish(4), [0; 0]);
        assert_eq!(finish(1), [2]);
        assert_eq!(finish(2), [0; 0]);
        assert!(matches!(mail.try_recv(), Ok(Mail::Ready(Ticket { tag: 3, .. }))));
        assert_eq!(finish(3), [5]);
        assert_eq!(finish(5), [0; 0]);
    }

    #[test]
    fn what_is_aborted_is_not_wanted_and_makes_way() {
        let session = session(0, 16);
        let mut mail = session.join(1, 1).unwrap();
        let _other = session.join(0, 0).unwrap();
        session.arrive(0, 0, with(1, Attribute::Ordered));
        session.arrive(1, 1, task(2));
        assert!(!session.ready(ticket(&session, 2)));
        let first = ticket(&session, 1);
        assert_eq!(session.abort(0, 1, 0), (Some(first), true));
        assert!(!session.finish(0, first).is_wanted);
        assert!(matches!(mail.try_recv(), Ok(Mail::Ready(Ticket { tag: 2, .. }))));
        assert_eq!(session.window(), (2, 16));
        // One that did not come yet is taken as having come; one that cannot come is not there.
        assert!(matches!(session.arrive(1, 3, task(4)), Arrival::Later(_)));
        assert_eq!(session.abort(0, 3, 2), (None, true));
        assert!(matches!(mail.try_recv(), Ok(Mail::Turn(_))));
        assert_eq!(session.window(), (4, 17));
        assert_eq!(session.abort(0, 9, 1), (None, false));
        // One that waits is told that it waits for nothing, if it is the one that is meant.
        assert!(matches!(session.arrive(1, 5, task(6)), Arrival::Later(_)));
        assert_eq!(session.abort(0, 7, 5), (None, false));
        assert_eq!(session.abort(0, 6, 5), (None, true));
        assert!(matches!(mail.try_recv(), Ok(Mail::Void(_))));
        assert!(matches!(session.arrive(1, 4, task(5)), Arrival::Now { .. }));
        session.finish(1, ticket(&session, 5));
        assert_eq!(session.window(), (6, 19));
        assert_eq!(session.abort_all(0, Some([0; 8])), []);
        assert!(matches!(mail.try_recv(), Ok(Mail::Forget(_))) && matches!(mail.try_recv(), Ok(Mail::Forget(_))));
        assert_eq!(session.abort_all(0, None), []);
        assert_eq!(session.window(), (6, 21));
    }

    #[test]
    fn a_connection_takes_its_tasks_along() {
        let session = session(0, 16);
        let mut first = session.join(0, 0).unwrap();
        let _second = session.join(1, 1).unwrap();
        session.arrive(0, 0, task(1));
        assert!(matches!(session.arrive(0, 2, task(2)), Arrival::Later(_)));
        assert!(session.join(0, 2).is_some(), "the same number again");
        assert!(matches!(first.try_recv(), Ok(Mail::Close)));
        assert_eq!(session.window(), (1, 16));
        assert!(matches!(session.arrive(1, 2, task(2)), Arrival::Later(_)), "it may come again elsewhere");
        assert!(!session.depart(0) && !session.depart(2) && session.depart(1));
        assert!(session.join(7, 7).is_none(), "it is over");
    }
}
