//! What doors offer: devices by name.
//!
//! Not here: sockets, and which client may see what. What holds: names are unique within a table; one table may be shared
//! by several doors and changed while they serve; an export that is removed stays with the clients that have it.

use crate::device::BlockDevice;
use crate::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// The longest name and the longest description, in bytes.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTION: usize = 4096;

/// A device that is offered by name.
#[derive(Clone)]
pub struct Export {
    /// Unique in its table; empty for an export that is only reached as the default one.
    pub name: String,
    /// What is offered.
    pub device: Arc<dyn BlockDevice>,
    /// For people.
    pub description: String,
    /// Refuse writes even if the device takes them.
    pub read_only: bool,
}

impl Export {
    /// Whether writes are refused, by the export or by the device.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.device.is_read_only()
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Export { name, device, description, read_only } = self;
        let mut out = f.debug_struct("Export");
        out.field("name", name).field("size", &device.size()).field("description", description);
        out.field("read_only", read_only).finish()
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
    pub fn add(&self, export: Export) -> Result<()> {
        for (text, what, max) in
            [(&export.name, "name", MAX_NAME), (&export.description, "description", MAX_DESCRIPTION)]
        {
            if text.len() > max || text.contains('\0') {
                return Err(Error::invalid(format!("the {what} of an export has {max} bytes at most, and no NUL")));
            }
        }
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(&export.name) {
            let text = format!("there is an export '{}' already; choose another name", export.name);
            return Err(Error::new(Kind::Locked, text));
        }
        table.insert(export.name.clone(), Arc::new(export));
        Ok(())
    }

    /// Stops offering `name` to new clients; `NotFound` when it is not offered.
    pub fn remove(&self, name: &str) -> Result<Arc<Export>> {
        let removed = self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        removed.ok_or_else(|| Error::not_found(format!("there is no export '{name}'")))
    }

    /// The export of that name. The empty name also means the only export, when there is just one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match (table.get(name), name) {
            (None, "") if table.len() == 1 => table.values().next().cloned(),
            (found, _) => found.cloned(),
        }
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
        let device = Arc::new(MemoryDevice::new(512));
        Export { name: name.into(), device, description: String::new(), read_only: false }
    }

    #[test]
    fn the_default_is_the_only_export_or_the_nameless_one() {
        let exports = Exports::new();
        assert!(exports.find("").is_none());
        exports.add(export("a")).unwrap();
        assert_eq!(exports.find("").unwrap().name, "a");
        exports.add(export("b")).unwrap();
        assert!(exports.find("").is_none());
        exports.add(export("")).unwrap();
        assert_eq!(exports.find("").unwrap().name, "");
        assert_eq!(exports.all().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["", "a", "b"]);
        assert_eq!(exports.remove("b").unwrap().name, "b");
        assert_eq!(exports.remove("b").unwrap_err().kind(), Kind::NotFound);
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
