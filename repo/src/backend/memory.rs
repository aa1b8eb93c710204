//! A store in memory: the test double of every flow, and the state that the crash model copies and opens again.
//!
//! Not here: durability of any kind, or faults (see [`super::faulty`]). What holds: an object's bytes never change; no lock
//! is held while a caller's code runs.

use super::{Backend, Listed, Put, check_name, check_prefix};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

type Objects = BTreeMap<Arc<str>, Arc<[u8]>>;

/// Objects in a map. Empty to begin with.
#[derive(Default)]
pub struct Memory {
    objects: RwLock<Objects>,
}

impl Memory {
    /// Another store that holds the same objects now and goes its own way from here on. Shares the bytes.
    #[must_use]
    pub fn clone_state(&self) -> Memory {
        Memory { objects: RwLock::new(self.read().clone()) }
    }

    /// Puts `name` whether or not it exists, as stores without put-if-absent do.
    pub fn replace(&self, name: &str, parts: &[&[u8]]) -> Result<()> {
        check_name(name)?;
        self.write().insert(name.into(), parts.concat().into());
        Ok(())
    }

    // Each change is one call on the map, so the map is whole even after a thread died with the lock in its hands.
    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, name: &str) -> Result<Arc<[u8]>> {
        check_name(name)?;
        self.read().get(name).cloned().ok_or_else(|| Error::not_found(format!("there is no object '{name}' in memory")))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} objects)", self.read().len())
    }
}

impl Backend for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        check_name(name)?;
        let bytes: Arc<[u8]> = parts.concat().into();
        let mut objects = self.write();
        if objects.contains_key(name) {
            return Ok(Put::Exists);
        }
        objects.insert(name.into(), bytes);
        Ok(Put::Created)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.object(name)?.to_vec())
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let object = self.object(name)?;
        let range = usize::try_from(offset).ok().and_then(|start| object.get(start..start.checked_add(out.len())?));
        match range {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::corrupt(format!(
                "object '{name}' in memory has {} bytes; {} at offset {offset} are due",
                object.len(),
                out.len()
            ))),
        }
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        let object = self.object(name)?;
        let (_, tail) = object.split_at(object.len().saturating_sub(max));
        Ok((tail.to_vec(), object.len() as u64))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        Ok(self.read().get(name).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let listed: Vec<Listed> = self
            .read()
            .range::<str, _>(from)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, bytes)| Listed { name: name.to_string(), size: bytes.len() as u64 })
            .collect();
        listed.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.write().remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::list_sorted;

    #[test]
    fn a_cloned_state_goes_its_own_way() {
        let first = Memory::default();
        assert_eq!(first.put("a", &[b"1"]).unwrap(), Put::Created);
        let second = first.clone_state();
        first.delete("a").unwrap();
        assert_eq!(second.put("b", &[b"2"]).unwrap(), Put::Created);
        assert!(list_sorted(&first, "").unwrap().is_empty());
        assert_eq!(list_sorted(&second, "").unwrap().len(), 2);
        assert_eq!(second.get("a").unwrap(), b"1");
    }
}
