//! What doors offer: devices by name, to whom, how fast, and what was done with them.
//!
//! ```text
//!   Export      a device, its name, what it differs from      this file
//!     access    who may use it
//!     limit     how much of it a second
//!     activity  what was done with it so far
//! ```
//! Not here: sockets. What holds: names are unique within a table; one table may be shared by several doors and changed while
//! they serve; an export that is removed stays with the clients that have it; to whoever may not use it an export is not
//! there, under any question.

mod access;
mod activity;
mod limit;

pub use access::{Access, Network, Peer, Permit};
pub use activity::{Activity, ActivityTotals, Deed, LATENCY_BOUNDS};
pub use limit::Limits;
pub use limit::Meter;

use crate::device::BlockDevice;
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// The longest name, the longest description and the longest name of what an export is compared with, in bytes.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTION: usize = 4096;
const MAX_SINCE: usize = 1024;

/// What tells where a device differs from something else, such as an earlier point.
pub trait ChangeSource: Send + Sync {
    /// Stretches that cover `range` of the device from its start on, in order and without gaps: whether each may differ. At most
    /// `max` of them, at least one for a range that is not empty, so perhaps less than the whole range. What is not said to
    /// differ is equal.
    fn changes(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, bool)>>;
}

/// A comparison that an export offers.
#[derive(Clone)]
pub struct Changes {
    /// What the device is compared with, as a client names it.
    pub since: String,
    /// The comparison.
    pub source: Arc<dyn ChangeSource>,
}

/// A device that is offered by name.
pub struct Export {
    /// Unique in its table; empty for an export that is only reached as the default one.
    pub name: String,
    /// What is offered.
    pub device: Arc<dyn BlockDevice>,
    /// For people.
    pub description: String,
    /// Refuse writes even if the device takes them.
    pub read_only: bool,
    /// Who may use it; everybody unless said otherwise.
    pub access: Access,
    /// How much of it all its clients together get; everything unless said otherwise.
    pub limits: Limits,
    /// What it can be compared with.
    pub changes: Vec<Changes>,
    /// Its counts and its pace. A new export brings them along.
    pub live: Live,
}

/// What an export is doing.
#[derive(Debug, Default)]
pub struct Live {
    activity: Activity,
    /// Made when it is first asked for, since limits are set before.
    meter: OnceLock<Meter>,
    clients: AtomicU64,
}

/// An export in the hands of a client, who counts as one of its clients for as long.
#[derive(Debug)]
pub struct Taken(Arc<Export>);

impl Taken {
    /// One client more.
    #[must_use]
    pub fn new(export: Arc<Export>) -> Self {
        export.live.clients.fetch_add(1, Ordering::Relaxed);
        Taken(export)
    }

    /// The export.
    #[must_use]
    pub fn export(&self) -> &Arc<Export> {
        &self.0
    }
}

impl Deref for Taken {
    type Target = Export;

    fn deref(&self) -> &Export {
        &self.0
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.live.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Export {
    /// `device` under `name`: to everybody, without limits, writable if the device is.
    #[must_use]
    pub fn new(name: impl Into<String>, device: Arc<dyn BlockDevice>) -> Self {
        Export {
            name: name.into(),
            device,
            description: String::new(),
            read_only: false,
            access: Access::default(),
            limits: Limits::default(),
            changes: Vec::new(),
            live: Live::default(),
        }
    }

    /// Whether writes are refused, by the export or by the device.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.device.is_read_only()
    }

    /// What was done with it so far, by all clients of all doors.
    #[must_use]
    pub fn activity(&self) -> &Activity {
        &self.live.activity
    }

    /// Clients that have it now, through all doors.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.live.clients.load(Ordering::Relaxed)
    }

    /// What paces its requests; `None` when nothing does.
    #[must_use]
    pub fn meter(&self) -> Option<&Meter> {
        self.limits.is_some().then(|| self.live.meter.get_or_init(|| Meter::new(self.limits)))
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Export");
        out.field("name", &self.name).field("size", &self.device.size()).field("description", &self.description);
        out.field("read_only", &self.read_only).field("access", &self.access).field("limits", &self.limits);
        out.finish_non_exhaustive()
    }
}

/// The table of exports.
#[derive(Debug, Default)]
pub struct Exports(RwLock<BTreeMap<String, Arc<Export>>>);

impl Exports {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Exports::default()
    }

    /// Offers `export` from now on. A name that is taken is `Locked`, one that cannot travel `Invalid`.
    pub fn add(&self, export: Export) -> Result<Arc<Export>> {
        for (text, what, max) in
            [(&export.name, "name", MAX_NAME), (&export.description, "description", MAX_DESCRIPTION)]
        {
            if text.len() > max || text.contains('\0') {
                return Err(Error::invalid(format!("the {what} of an export has {max} bytes at most, and no NUL")));
            }
        }
        for Changes { since, .. } in &export.changes {
            if since.is_empty() || since.len() > MAX_SINCE || since.contains(char::is_control) {
                let text = format!(
                    "what an export is compared with has a name of 1 to {MAX_SINCE} bytes, without control characters"
                );
                return Err(Error::invalid(text));
            }
        }
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(&export.name) {
            let text = format!("there is an export '{}' already; choose another name", export.name);
            return Err(Error::new(Kind::Locked, text));
        }
        let export = Arc::new(export);
        table.insert(export.name.clone(), Arc::clone(&export));
        Ok(export)
    }

    /// Stops offering `name` to new clients; `NotFound` when it is not offered.
    pub fn remove(&self, name: &str) -> Result<Arc<Export>> {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        removed.ok_or_else(|| Error::not_found(format!("there is no export '{name}'")))
    }

    /// The export of that name, if `peer` may use it. The empty name also means the only one that `peer` may use.
    #[must_use]
    pub fn find(&self, name: &str, peer: &Peer) -> Option<Arc<Export>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(export) = table.get(name) {
            return export.access.admits(peer).then(|| Arc::clone(export));
        }
        let mut others = table.values().filter(|e| name.is_empty() && e.access.admits(peer));
        match (others.next(), others.next()) {
            (Some(only), None) => Some(Arc::clone(only)),
            _ => None,
        }
    }

    /// Whether there is an export of that name, whoever may use it. For reports, never for clients.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Those that `peer` may use, by name.
    #[must_use]
    pub fn offered_to(&self, peer: &Peer) -> Vec<Arc<Export>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.values().filter(|e| e.access.admits(peer)).cloned().collect()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Export>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;

    fn export(name: &str) -> Export {
        Export::new(name, Arc::new(MemoryDevice::new(512)))
    }

    fn names(exports: &[Arc<Export>]) -> Vec<&str> {
        exports.iter().map(|e| e.name.as_str()).collect()
    }

    #[test]
    fn the_default_is_the_only_export_or_the_nameless_one() {
        let (exports, peer) = (Exports::new(), Peer::default());
        assert!(exports.find("", &peer).is_none());
        exports.add(export("a")).unwrap();
        assert_eq!(exports.find("", &peer).unwrap().name, "a");
        exports.add(export("b")).unwrap();
        assert!(exports.find("", &peer).is_none());
        exports.add(export("")).unwrap();
        assert_eq!(exports.find("", &peer).unwrap().name, "");
        assert_eq!(names(&exports.all()), ["", "a", "b"]);
        assert_eq!(exports.remove("b").unwrap().name, "b");
        assert_eq!(exports.remove("b").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn what_a_peer_may_not_use_is_not_there() {
        let exports = Exports::new();
        exports.add(export("everybody's")).unwrap();
        exports.add(Export { access: Access::only([Permit::User(7)]), ..export("private") }).unwrap();
        let (stranger, owner) = (Peer::default(), Peer { user: Some(7), ..Peer::default() });
        assert!(exports.find("private", &stranger).is_none() && exports.find("private", &owner).is_some());
        assert_eq!(names(&exports.offered_to(&stranger)), ["everybody's"]);
        assert_eq!(names(&exports.offered_to(&owner)), ["everybody's", "private"]);
        assert_eq!(exports.find("", &stranger).unwrap().name, "everybody's");
        assert!(exports.find("", &owner).is_none());
        exports.add(Export { access: Access::only([Permit::User(8)]), ..export("") }).unwrap();
        assert!(exports.find("", &stranger).is_none(), "a default that is somebody else's is no default");
    }

    #[test]
    fn names_are_unique_and_can_travel() {
        let exports = Exports::new();
        exports.add(export("a")).unwrap();
        assert_eq!(exports.add(export("a")).unwrap_err().kind(), Kind::Locked);
        assert_eq!(exports.add(export("a\0b")).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(exports.add(export(&"a".repeat(257))).unwrap_err().kind(), Kind::Invalid);
    }
}
