//! Numbers for things the kernel has open.
//!
//! What holds: a number is never used twice during a mount; what a number stands for is dropped outside the lock.

use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A number the kernel holds for something open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handle(pub(crate) u64);

/// What is open, by number. As large as the number of files or directories that programs hold open.
pub(crate) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<Handle, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        Handles { next: AtomicU64::new(1), open: RwLock::new(HashMap::new()) }
    }

    /// Takes something in and gives it a number.
    pub(crate) fn insert(&self, thing: T) -> Handle {
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(thing));
        handle
    }

    /// What `handle` stands for; a number that was not given out, or was closed, is a bug in the kernel's or our books.
    pub(crate) fn get(&self, handle: Handle) -> Result<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle).cloned().ok_or_else(|| Error::internal(format!("nothing is open as handle {}", handle.0)))
    }

    /// Closes `handle` and hands back what it stood for, to be dropped by the caller.
    pub(crate) fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }
}
