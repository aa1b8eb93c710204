//! A target: who may use it, and the sessions that it has.
//!
//! Not here: disks ([`crate::scsi`]), logins. What holds: there is one session for each initiator port and portal group: another login
//! of the same port ends the one before; to whoever may not use a target it is not there. The lock is held for look-ups, and for
//! what the device does at a nexus's begin and end, which never waits for storage.

use crate::login::{Chap, Terms};
use crate::pdu::LoginStatus;
use crate::scsi::{Device, LunMask, PortOptions};
use crate::session::{Disks, Identity, Mail, Session};
use coffer_gateway::{Access, Error, Peer, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::mpsc;

/// The longest iSCSI name, in bytes.
const MAX_NAME: usize = 223;

/// Who may use a target, and how.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// The initiator of this name; any without.
    pub initiator: Option<String>,
    /// Only from there; from everywhere unless said otherwise.
    pub access: Access,
    /// What it has to prove.
    pub chap: Option<Chap>,
    /// What it sees.
    pub luns: LunMask,
}

/// What a target is made of.
#[derive(Clone)]
pub struct TargetOptions {
    /// Its name: `iqn.`, `eui.` or `naa.`.
    pub name: String,
    /// For people.
    pub alias: Option<String>,
    /// Its disks. Its ports are those of the server ([`crate::ports`]).
    pub device: Arc<Device>,
    /// Who may use it: the first that fits counts. Everybody may when there is none.
    pub guests: Vec<Guest>,
}

/// See the file's header.
pub(crate) struct Target {
    pub(crate) options: TargetOptions,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    by_tsih: BTreeMap<u16, Arc<Session>>,
    last_tsih: u16,
    is_closed: bool,
}

/// A login that went well, up to here.
#[derive(Debug)]
pub(crate) struct Entrance {
    pub(crate) initiator: String,
    pub(crate) alias: Option<String>,
    pub(crate) isid: [u8; 6],
    /// 0 for a new session.
    pub(crate) tsih: u16,
    pub(crate) cid: u16,
    pub(crate) cmd_sn: u32,
    pub(crate) terms: Terms,
    pub(crate) luns: LunMask,
    /// What the connection came in by.
    pub(crate) port: PortOptions,
    /// The connection's number in the server's table.
    pub(crate) connection: u64,
    /// Commands at once.
    pub(crate) depth: u32,
}

/// A connection's place in a session.
pub(crate) type Joined = (Arc<Session>, mpsc::Receiver<Mail>);

impl Target {
    fn new(mut options: TargetOptions) -> Self {
        if options.guests.is_empty() {
            options.guests.push(Guest::default());
        }
        Target { options, sessions: Mutex::default() }
    }

    /// By whose rights `initiator` uses it, if it may.
    pub(crate) fn admit(&self, initiator: &str, peer: &Peer) -> Option<&Guest> {
        let fits = |guest: &&Guest| {
            guest.initiator.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(initiator))
                && guest.access.admits(peer)
        };
        self.options.guests.iter().find(fits)
    }

    /// The session that a further connection wants to join.
    pub(crate) fn session(
        &self,
        tsih: u16,
        initiator: &str,
        isid: [u8; 6],
        group: u16,
    ) -> Result<Arc<Session>, LoginStatus> {
        let session = self.lock().by_tsih.get(&tsih).cloned().ok_or(LoginStatus::NO_SESSION)?;
        let Identity { initiator: name, isid: id, group: tag, .. } = &session.identity;
        match name.eq_ignore_ascii_case(initiator) && *id == isid {
            true if *tag == group => Ok(session),
            true => Err(LoginStatus::CANNOT_INCLUDE),
            false => Err(LoginStatus::NO_SESSION),
        }
    }

    /// Begins a session or joins one. A session of the same initiator port ends.
    pub(crate) fn enter(self: &Arc<Self>, entrance: Entrance) -> Result<Joined, LoginStatus> {
        let Entrance { initiator, alias, isid, tsih, cid, cmd_sn, terms, luns, port, connection, depth } = entrance;
        if tsih != 0 {
            let session = self.session(tsih, &initiator, isid, port.group)?;
            let mail = session.join(cid, connection).ok_or(LoginStatus::TOO_MANY_CONNECTIONS)?;
            return Ok((session, mail));
        }
        let mut sessions = self.lock();
        if sessions.is_closed {
            return Err(LoginStatus::SERVICE_UNAVAILABLE);
        }
        let is_same = |session: &&Arc<Session>| {
            let Identity { initiator: name, isid: id, group, .. } = &session.identity;
            name.eq_ignore_ascii_case(&initiator) && *id == isid && *group == port.group
        };
        if let Some(before) = sessions.by_tsih.values().find(is_same).cloned() {
            sessions.by_tsih.remove(&before.identity.tsih);
            before.end(None);
            self.leave(&before);
        }
        let tsih = sessions.free_tsih().ok_or(LoginStatus::OUT_OF_RESOURCES)?;
        let nexus = self.options.device.join(&initiator, isid, port.relative, luns);
        let disks = Disks { target: Arc::clone(self), nexus };
        let identity = Identity { initiator, alias, isid, tsih, group: port.group, terms };
        let session = Session::new(identity, Some(disks), cmd_sn, depth);
        let mail = session.join(cid, connection).ok_or(LoginStatus::OUT_OF_RESOURCES)?;
        sessions.by_tsih.insert(tsih, Arc::clone(&session));
        Ok((session, mail))
    }

    /// A session lost its last connection.
    pub(crate) fn depart(&self, session: &Arc<Session>) {
        let mut sessions = self.lock();
        let tsih = session.identity.tsih;
        // One that was replaced is not there any more, and has left.
        if sessions.by_tsih.get(&tsih).is_some_and(|known| Arc::ptr_eq(known, session)) {
            sessions.by_tsih.remove(&tsih);
            self.leave(session);
        }
    }

    /// Ends all sessions but for the connection `id`.
    pub(crate) fn end_sessions(&self, id: u64) {
        self.lock().by_tsih.values().for_each(|session| session.end(Some(id)));
    }

    /// Nobody gets in any more.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Whether it was taken away.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Those that it has now.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().by_tsih.values().cloned().collect()
    }

    fn leave(&self, session: &Session) {
        if let Some(disks) = &session.disks {
            self.options.device.leave(&disks.nexus);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    fn free_tsih(&mut self) -> Option<u16> {
        for _ in 0..u16::MAX {
            self.last_tsih = self.last_tsih.checked_add(1).unwrap_or(1);
            if !self.by_tsih.contains_key(&self.last_tsih) {
                return Some(self.last_tsih);
            }
        }
        None
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.options.name).finish_non_exhaustive()
    }
}

/// The targets of a server, by name.
#[derive(Debug, Default)]
pub(crate) struct Targets(RwLock<BTreeMap<String, Arc<Target>>>);

impl Targets {
    /// Shows a target from now on. A name that is taken is `Locked`, one that is none `Invalid`; so is a guest's that is none, since
    /// nobody could ever have it.
    pub(crate) fn add(&self, mut options: TargetOptions) -> Result<()> {
        options.name = check_name(&options.name)?;
        for initiator in options.guests.iter().filter_map(|guest| guest.initiator.as_deref()) {
            check_name(initiator)?;
        }
        let mut targets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if targets.contains_key(&options.name) {
            let text = format!("there is a target '{}' already; choose another name", options.name);
            return Err(Error::new(coffer_gateway::Kind::Locked, text));
        }
        targets.insert(options.name.clone(), Arc::new(Target::new(options)));
        Ok(())
    }

    /// Stops showing one; `NotFound` when there is none.
    pub(crate) fn remove(&self, name: &str) -> Result<Arc<Target>> {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&name.to_ascii_lowercase());
        removed.ok_or_else(|| Error::not_found(format!("there is no target '{name}'")))
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Target>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&name.to_ascii_lowercase()).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Target>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Whether `name` is an iSCSI name; in the lower case that names are compared in.
pub(crate) fn check_name(name: &str) -> Result<String> {
    let lower = name.to_lowercase();
    let has_form =
        ["iqn.", "eui.", "naa."].iter().any(|form| lower.strip_prefix(form).is_some_and(|rest| !rest.is_empty()));
    let is_letter = |c: char| (c.is_alphanumeric() || "-.:".contains(c)) && !c.is_control();
    if !has_form || lower.len() > MAX_NAME || !lower.chars().all(is_letter) {
        let text = format!(
            "'{}' is no iSCSI name: one is like iqn.2026-01.com.example:disk, of letters, digits, '-', '.' and ':', and has {MAX_NAME} bytes at most",
            name.escape_debug()
        );
        return Err(Error::invalid(text));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::DeviceOptions;

    fn options(name: &str, guests: Vec<Guest>) -> TargetOptions {
        let ports = vec![PortOptions { relative: 1, group: 1 }];
        let device = Device::new(DeviceOptions { iqn: name.into(), ports, state: None, report: None }).unwrap();
        TargetOptions { name: name.into(), alias: None, device: Arc::new(device), guests }
    }

    fn entrance(initiator: &str, tsih: u16, cid: u16, connection: u64) -> Entrance {
        Entrance {
            initiator: initiator.into(),
            alias: None,
            isid: [1; 6],
            tsih,
            cid,
            cmd_sn: 0,
            terms: Terms { max_connections: 2, ..Terms::default() },
            luns: LunMask::All,
            port: PortOptions { relative: 1, group: 1 },
            connection,
            depth: 4,
        }
    }

    #[test]
    fn names_are_what_the_standard_calls_names() {
        assert_eq!(check_name("IQN.2026-01.com.Example:Disk").unwrap(), "iqn.2026-01.com.example:disk");
        assert!(check_name("eui.02004567a425678d").is_ok() && check_name("iqn.2026-01.de.xn--mller-kva:é").is_ok());
        let long = format!("iqn.{}", "x".repeat(220));
        for wrong in ["", "iqn.", "disk", "iqn.a b", "iqn.a,b", "iqn.a\0b", "iqn.a=b", long.as_str()] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn guests_have_names_that_initiators_can_have() {
        let guest = |name: &str| Guest { initiator: Some(name.into()), ..Guest::default() };
        let targets = Targets::default();
        let refused = targets.add(options("iqn.x:a", vec![guest("iqn.i"), guest("joe")])).unwrap_err();
        assert!(refused.to_string().contains("'joe' is no iSCSI name"), "{refused}");
        assert!(targets.all().is_empty());
        targets.add(options("iqn.x:a", vec![guest("iqn.i"), guest("IQN.J")])).unwrap();
    }

    #[test]
    fn the_same_port_again_ends_the_session_before() {
        let targets = Targets::default();
        targets.add(options("iqn.x:a", Vec::new())).unwrap();
        assert!(targets.add(options("iqn.X:A", Vec::new())).is_err());
        let target = targets.find("iqn.x:A").unwrap();
        let (first, mut mail) = target.enter(entrance("iqn.i", 0, 0, 0)).unwrap();
        let (_, _further) = target.enter(entrance("iqn.i", first.identity.tsih, 1, 1)).unwrap();
        let status = |entrance| target.enter(entrance).map(|_| ()).unwrap_err();
        assert_eq!(status(entrance("iqn.i", first.identity.tsih, 2, 2)), LoginStatus::TOO_MANY_CONNECTIONS);
        assert_eq!(status(entrance("iqn.j", first.identity.tsih, 2, 2)), LoginStatus::NO_SESSION);
        assert_eq!(status(entrance("iqn.i", 77, 2, 2)), LoginStatus::NO_SESSION);
        let (_, _other) = target.enter(entrance("iqn.j", 0, 0, 3)).unwrap();
        assert_eq!(target.sessions().len(), 2);
        let (second, _mail) = target.enter(entrance("iqn.I", 0, 0, 4)).unwrap();
        assert!(matches!(mail.try_recv(), Ok(Mail::Close)));
        assert!(first.identity.tsih != second.identity.tsih && target.sessions().len() == 2);
        target.depart(&first);
        assert_eq!(target.sessions().len(), 2, "it left before");
        target.depart(&second);
        assert_eq!(target.sessions().len(), 1);
        target.close();
        assert_eq!(status(entrance("iqn.i", 0, 0, 9)), LoginStatus::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn the_first_guest_that_fits_counts() {
        let from = |network: &str| Access::only([network.parse().unwrap()]);
        let guest = |initiator: Option<&str>, access| Guest {
            initiator: initiator.map(str::to_owned),
            access,
            ..Guest::default()
        };
        let guests = vec![guest(Some("iqn.a"), from("10.0.0.0/8")), guest(None, from("127.0.0.1"))];
        let target = Target::new(options("iqn.x:t", guests));
        let peer = |address: &str| Peer { address: Some(address.parse().unwrap()), ..Peer::default() };
        let admitted = |name, address| target.admit(name, &peer(address)).map(|g| g.initiator.is_some());
        assert_eq!(admitted("iqn.A", "10.1.1.1"), Some(true));
        assert_eq!(admitted("iqn.a", "127.0.0.1"), Some(false));
        assert_eq!(admitted("iqn.b", "10.1.1.1"), None);
        assert!(Target::new(options("iqn.x:u", Vec::new())).admit("iqn.b", &peer("::1")).is_some());
    }
}
