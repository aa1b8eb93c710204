//! The open files of objects that were read last, so that a random read costs one system call.
//!
//! Not here: how a file is opened or read. What holds: at most [`CAPACITY`] files are kept; the lock is held for map work only,
//! never while a file is opened, read or closed; a lookup that begins after [`Handles::forget`] returned never finds the
//! forgotten file, not even through an opening that was under way (it sees that `forgotten` moved on and is not kept).

use crate::error::Result;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most files kept open.
const CAPACITY: usize = 64;

/// An object's open file and the length it had when it was opened.
pub(super) struct Object {
    pub(super) file: File,
    /// In bytes.
    pub(super) len: u64,
}

/// Open objects by name, the least recently used one leaving first.
#[derive(Default)]
pub(super) struct Handles {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_name: HashMap<Box<str>, Entry>,
    /// Counts lookups: the clock of `Entry::used`.
    lookups: u64,
    /// Counts calls of `forget`.
    forgotten: u64,
}

struct Entry {
    object: Arc<Object>,
    used: u64,
}

impl Handles {
    /// The kept file of `name`, or what `open` opens, which is then kept.
    pub(super) fn get_or_open(&self, name: &str, open: impl FnOnce() -> Result<Object>) -> Result<Arc<Object>> {
        let forgotten = {
            let mut kept = self.lock();
            kept.lookups += 1;
            let now = kept.lookups;
            if let Some(entry) = kept.by_name.get_mut(name) {
                entry.used = now;
                return Ok(Arc::clone(&entry.object));
            }
            kept.forgotten
        };
        let object = Arc::new(open()?);
        let evicted = self.lock().keep(name, &object, forgotten);
        drop(evicted); // closes files: after the lock
        Ok(object)
    }

    /// Lets go of `name`'s file; readers that hold it finish undisturbed.
    pub(super) fn forget(&self, name: &str) {
        let forgotten = {
            let mut kept = self.lock();
            kept.forgotten += 1;
            kept.by_name.remove(name)
        };
        drop(forgotten); // closes the file: after the lock
    }

    // Nothing in here can panic half-way through a change, so a poisoned lock still guards a whole map.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Keeps `object` unless something was forgotten since `forgotten` was read. What had to leave is returned.
    fn keep(&mut self, name: &str, object: &Arc<Object>, forgotten: u64) -> [Option<Entry>; 2] {
        if self.forgotten != forgotten {
            return [None, None];
        }
        let is_new = !self.by_name.contains_key(name);
        let oldest = if is_new && self.by_name.len() >= CAPACITY {
            self.by_name.iter().min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone())
        } else {
            None
        };
        let evicted = oldest.and_then(|oldest| self.by_name.remove(&oldest));
        let entry = Entry { object: Arc::clone(object), used: self.lookups };
        [evicted, self.by_name.insert(name.into(), entry)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Result<Object> {
        Ok(Object { file: tempfile::tempfile().unwrap(), len: 0 })
    }

    fn is_kept(handles: &Handles, name: &str) -> bool {
        handles.lock().by_name.contains_key(name)
    }

    #[test]
    fn the_least_recently_used_leaves_first() {
        let handles = Handles::default();
        for i in 0..CAPACITY {
            handles.get_or_open(&i.to_string(), object).unwrap();
        }
        handles.get_or_open("0", || panic!("kept already")).unwrap();
        handles.get_or_open("new", object).unwrap();
        assert!(is_kept(&handles, "0") && is_kept(&handles, "new") && !is_kept(&handles, "1"));
        assert_eq!(handles.lock().by_name.len(), CAPACITY);
    }

    #[test]
    fn a_file_forgotten_while_it_was_opened_is_not_kept() {
        let handles = Handles::default();
        let open = || {
            handles.forget("a");
            object()
        };
        handles.get_or_open("a", open).unwrap();
        assert!(!is_kept(&handles, "a"));
        handles.get_or_open("a", object).unwrap();
        assert!(is_kept(&handles, "a"));
        handles.forget("a");
        assert!(!is_kept(&handles, "a"));
    }
}
