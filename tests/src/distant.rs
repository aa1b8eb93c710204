//! A store that is far away: every read takes a while, and what is under way at the same time is counted.
//!
//! Not here: bandwidth. What holds: bytes are passed on unchanged; listings, puts and deletions are not delayed.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use coffer_repo::Result;
use coffer_repo::backend::{Backend, Listed, Put};
use std::sync::Mutex;
use std::time::Duration;

/// A store behind a long line.
#[derive(Debug)]
pub struct Distant<B> {
    inner: B,
    latency: Duration,
    traffic: Mutex<Traffic>,
}

/// What went over the line, and what at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Ranges that were read.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Ranges that were under way at the same time, at most.
    pub most_requests: u64,
    /// Their bytes, at most.
    pub most_bytes: u64,
    requests_now: u64,
    bytes_now: u64,
}

impl<B> Distant<B> {
    /// `inner`, so far away.
    pub fn new(inner: B, latency: Duration) -> Self {
        Distant { inner, latency, traffic: Mutex::default() }
    }

    /// What went over the line since it was asked last.
    pub fn take(&self) -> Traffic {
        let mut traffic = self.traffic.lock().unwrap();
        let Traffic { requests_now, bytes_now, .. } = *traffic;
        std::mem::replace(&mut *traffic, Traffic { requests_now, bytes_now, ..Traffic::default() })
    }

    fn read<T>(&self, bytes: usize, read: impl FnOnce(&B) -> Result<T>) -> Result<T> {
        let bytes = bytes as u64;
        {
            let mut now = self.traffic.lock().unwrap();
            (now.requests, now.bytes) = (now.requests + 1, now.bytes + bytes);
            (now.requests_now, now.bytes_now) = (now.requests_now + 1, now.bytes_now + bytes);
            now.most_requests = now.most_requests.max(now.requests_now);
            now.most_bytes = now.most_bytes.max(now.bytes_now);
        }
        std::thread::sleep(self.latency);
        let read = read(&self.inner);
        let mut now = self.traffic.lock().unwrap();
        (now.requests_now, now.bytes_now) = (now.requests_now - 1, now.bytes_now - bytes);
        read
    }
}

impl<B: Backend> Backend for Distant<B> {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.inner.put(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.read(0, |inner| inner.get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read(out.len(), |inner| inner.get_range(name, offset, out))
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.read(max, |inner| inner.get_suffix(name, max))
    }

    fn get_up_to(&self, name: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64)> {
        self.read(max, |inner| inner.get_up_to(name, offset, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.read(0, |inner| inner.size(name))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name)
    }
}
