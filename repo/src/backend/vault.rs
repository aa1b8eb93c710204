//! A store in memory whose objects can be locked, with versions, delete markers and a clock that is told: the test double of a
//! bucket with object lock, and of whoever attacks one.
//!
//! ```text
//!   name -> [version 1, version 2, marker]      the last one is what gets and lists show
//! ```
//!
//! Not here: durability; faults ([`super::faulty`]). What holds: a version whose lock lies in the future of the vault's clock is never
//! removed, but by [`Vault::unlock`], which no store has; no lock is held while a caller's code runs.

use super::lock::{Hidden, Hiding, Kept, ObjectLock};
use super::{Backend, Listed, Put, check_name, check_prefix};
use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One version of an object, or a delete marker.
#[derive(Clone)]
struct Version {
    /// `None`: a marker.
    bytes: Option<Arc<[u8]>>,
    until: Option<Timestamp>,
}

#[derive(Clone)]
struct State {
    now: Timestamp,
    /// Versions by name, the newest last; none is empty.
    objects: BTreeMap<Arc<str>, Vec<Version>>,
}

/// Objects in a map, and their locks. Empty to begin with.
pub struct Vault(Mutex<State>);

impl Vault {
    /// An empty one whose clock says `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Vault(Mutex::new(State { now, objects: BTreeMap::new() }))
    }

    /// Sets the clock.
    pub fn set_clock(&self, now: Timestamp) {
        self.state().now = now;
    }

    /// Another vault that holds the same now and goes its own way from here on. Shares the bytes.
    #[must_use]
    pub fn clone_state(&self) -> Vault {
        Vault(Mutex::new(self.state().clone()))
    }

    /// All names that have a version or a marker, shown or hidden.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().map(ToString::to_string).collect()
    }

    /// What a DELETE of the bare name does: puts a marker over it. Nothing forbids that.
    pub fn hide(&self, name: &str) {
        self.push(name, None);
    }

    /// What a PUT without conditions does: puts another version over it.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        self.push(name, Some(bytes.into()));
    }

    /// Does what no store does: ends the lock of what `name` shows.
    pub fn unlock(&self, name: &str) {
        if let Some(version) = self.state().objects.get_mut(name).and_then(|versions| versions.last_mut()) {
            version.until = None;
        }
    }

    /// What somebody does who may do everything that the store lets anybody do, and means harm: removes every version that goes,
    /// and hides the others.
    pub fn attack(&self) {
        let mut state = self.state();
        let now = state.now;
        state.objects.retain(|_, versions| {
            versions.retain(|version| version.is_locked(now));
            let is_left = !versions.is_empty();
            versions.push(Version { bytes: None, until: None });
            is_left
        });
    }

    fn push(&self, name: &str, bytes: Option<Arc<[u8]>>) {
        self.state().objects.entry(name.into()).or_default().push(Version { bytes, until: None });
    }

    // Each change is one call on the map, so the map is whole even after a thread died with the lock in its hands.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, name: &str) -> Result<Arc<[u8]>> {
        check_name(name)?;
        self.state().shown(name).and_then(|version| version.bytes.clone()).ok_or_else(|| missing(name))
    }
}

impl State {
    /// The version that `name` shows; never a marker.
    fn shown(&mut self, name: &str) -> Option<&mut Version> {
        self.objects.get_mut(name)?.last_mut().filter(|version| version.bytes.is_some())
    }
}

impl Version {
    fn is_locked(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("there is no object '{name}' in the vault"))
}

fn retained(name: &str) -> Error {
    Error::new(Kind::Retained, format!("'{name}' is locked in the vault"))
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} names)", self.state().objects.len())
    }
}

impl Backend for Vault {
    fn location(&self) -> String {
        "vault".to_owned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        check_name(name)?;
        let mut state = self.state();
        if state.shown(name).is_some() {
            return Ok(Put::Exists);
        }
        let bytes = Some(parts.concat().into());
        state.objects.entry(name.into()).or_default().push(Version { bytes, until: None });
        Ok(Put::Created)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.object(name)?.to_vec())
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let object = self.object(name)?;
        let range = usize::try_from(offset).ok().and_then(|start| object.get(start..start.checked_add(out.len())?));
        let beyond = || Error::corrupt(format!("'{name}' in the vault has {} bytes", object.len()));
        out.copy_from_slice(range.ok_or_else(beyond)?);
        Ok(())
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        let object = self.object(name)?;
        let (_, tail) = object.split_at(object.len().saturating_sub(max));
        Ok((tail.to_vec(), object.len() as u64))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        let mut state = self.state();
        let bytes = state.shown(name).and_then(|version| version.bytes.as_ref());
        Ok(bytes.map(|bytes| bytes.len() as u64))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let listed: Vec<Listed> = self
            .state()
            .objects
            .range::<str, _>(from)
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter_map(|(name, versions)| {
                let bytes = versions.last()?.bytes.as_ref()?;
                Some(Listed { name: name.to_string(), size: bytes.len() as u64 })
            })
            .collect();
        listed.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let mut state = self.state();
        let now = state.now;
        let Some(version) = state.shown(name) else { return Ok(()) };
        if version.is_locked(now) {
            return Err(retained(name));
        }
        if let Some(versions) = state.objects.get_mut(name) {
            versions.pop();
            if versions.is_empty() {
                state.objects.remove(name);
            }
        }
        Ok(())
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        Some(self)
    }
}

impl ObjectLock for Vault {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn lock(&self, name: &str, until: Timestamp) -> Result<()> {
        let mut state = self.state();
        if until <= state.now {
            return Err(Error::invalid(format!("'{name}' cannot be locked until {until}, which is past")));
        }
        let version = state.shown(name).ok_or_else(|| missing(name))?;
        version.until = version.until.max(Some(until));
        Ok(())
    }

    fn locked_until(&self, name: &str) -> Result<Option<Timestamp>> {
        Ok(self.state().shown(name).ok_or_else(|| missing(name))?.until)
    }

    fn kept(&self, name: &str) -> Result<Option<Kept>> {
        let mut state = self.state();
        let now = state.now;
        let version = state.shown(name).ok_or_else(|| missing(name))?;
        Ok(version.is_locked(now).then_some(Kept { until: version.until }))
    }

    fn each_hidden(&self, prefix: &str, each: &mut dyn FnMut(Hidden) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let mut hidden = Vec::new();
        for (name, versions) in self.state().objects.iter().filter(|(name, _)| name.starts_with(prefix)) {
            let contents = versions.iter().filter(|version| version.bytes.is_some()).count();
            let by = match versions.last() {
                Some(Version { bytes: None, .. }) if contents > 0 => Hiding::Marker,
                Some(_) if contents > 1 => Hiding::Version,
                _ => continue,
            };
            hidden.push(Hidden { name: name.to_string(), by });
        }
        hidden.into_iter().try_for_each(each)
    }

    fn reveal(&self, name: &str) -> Result<()> {
        let mut state = self.state();
        let now = state.now;
        let versions = state.objects.get_mut(name).ok_or_else(|| missing(name))?;
        let oldest = versions.iter().position(|version| version.bytes.is_some()).ok_or_else(|| missing(name))?;
        if versions.iter().skip(oldest + 1).any(|version| version.is_locked(now)) {
            return Err(retained(name));
        }
        versions.truncate(oldest + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds).unwrap()
    }

    fn vault() -> Vault {
        let vault = Vault::new(at(100));
        assert_eq!(vault.put("a/b", &[b"mine"]).unwrap(), Put::Created);
        vault
    }

    #[test]
    fn a_lock_only_grows_and_holds_until_its_date() {
        let vault = vault();
        assert_eq!(vault.locked_until("a/b").unwrap(), None);
        vault.lock("a/b", at(200)).unwrap();
        vault.lock("a/b", at(150)).unwrap();
        assert_eq!(vault.locked_until("a/b").unwrap(), Some(at(200)));
        assert_eq!(vault.delete("a/b").unwrap_err().kind(), Kind::Retained);
        assert_eq!(vault.lock("a/b", at(99)).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(vault.lock("a/c", at(999)).unwrap_err().kind(), Kind::NotFound);
        vault.set_clock(at(200));
        vault.delete("a/b").unwrap();
        assert!(vault.names().is_empty());
    }

    #[test]
    fn what_is_hidden_is_named_and_shown_again() {
        let vault = vault();
        vault.lock("a/b", at(200)).unwrap();
        for (by, hide) in [(Hiding::Marker, true), (Hiding::Version, false)] {
            if hide {
                vault.hide("a/b")
            } else {
                vault.replace("a/b", b"theirs")
            }
            assert_ne!(vault.get("a/b").ok().as_deref(), Some(&b"mine"[..]));
            let mut hidden = Vec::new();
            vault
                .each_hidden("a/", &mut |object| {
                    hidden.push(object);
                    Ok(())
                })
                .unwrap();
            assert_eq!(hidden, [Hidden { name: "a/b".into(), by }]);
            vault.reveal("a/b").unwrap();
            assert_eq!(vault.get("a/b").unwrap(), b"mine");
        }
        vault.attack();
        assert_eq!(vault.size("a/b").unwrap(), None);
        vault.reveal("a/b").unwrap();
        assert_eq!(vault.get("a/b").unwrap(), b"mine");
    }
}
