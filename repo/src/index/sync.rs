//! Learning: reads the index deltas that are not known yet, or the packs' tables of contents, into the index.
//!
//! Not here: rows ([`super::store`]). What holds: a delta counts when its signature holds and its packs are its signer's own,
//! unless the authority signed it; the same goes for the deltas it supersedes; what is damaged is left out and reported, and
//! never keeps the rest from being learnt; fetching runs on a bounded number of threads, writing on the caller's.

use super::{Index, Shared};
use crate::backend::Backend;
use crate::certificate::Certificates;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::index_delta::{self, IndexDelta, PackEntries, parse_name};
use crate::keys::Keys;
use crate::location::PackKind;
use crate::pack::{self, PackHeader};
use crate::sealed::{self, ObjectKind};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often the deltas are listed when some vanish between listing and reading: a merge that goes on at the same time.
const PASSES: usize = 3;

/// Says how far it is: done, total. An error stops the learning, which may go on later from there, and is passed on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// What learning came to.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Deltas or packs learnt.
    pub learnt: u64,
    /// Objects left out, with the reason: damaged, forged, or gone when they were to be read.
    pub left_out: Vec<(String, Error)>,
    /// Why a guest still works with the view it had before: the owner threw the database away, say. Nothing is missing from
    /// the answers, since the guest learns itself what its view lacks.
    pub stale_view: Option<Error>,
}

impl Index {
    /// Learns every index delta that is not known yet, and makes that durable. Interrupted, it goes on where it was.
    pub fn sync(
        &self,
        backend: &dyn Backend,
        keys: &Keys,
        certificates: &Certificates,
        progress: Progress<'_>,
    ) -> Result<SyncReport> {
        let mut report = SyncReport::default();
        if let Some(shared) = &self.shared {
            report.stale_view = shared.catch_up(&self.folder.database()).err();
        }
        for _ in 0..PASSES {
            let mut listed = HashSet::new();
            backend.list(index_delta::PREFIX, &mut |o| {
                listed.insert(o.name);
                Ok(())
            })?;
            report.left_out.clear();
            self.learn_deltas(backend, keys, certificates, &listed, &mut report, progress)?;
            self.own.forget_superseded(&listed)?;
            if !report.left_out.iter().any(|(_, e)| e.kind() == Kind::NotFound) {
                break;
            }
        }
        self.own.flush()?;
        Ok(report)
    }

    /// Learns every pack that no index delta has told about from the pack itself: for deltas that are lost or damaged. Two or
    /// three reads for each such pack.
    pub fn sync_packs(
        &self,
        backend: &dyn Backend,
        keys: &Keys,
        certificates: &Certificates,
        progress: Progress<'_>,
    ) -> Result<SyncReport> {
        let mut report = SyncReport::default();
        let mut unknown = Vec::new();
        for kind in PackKind::ALL {
            backend.list(kind.prefix(), &mut |o| {
                match pack::parse_name(&o.name) {
                    Some((_, uid)) if self.knows_pack(uid)? => {}
                    Some(pack) => unknown.push(pack),
                    None => {
                        let stranger = Error::invalid("not the name of a pack");
                        report.left_out.push((o.name, stranger));
                    }
                }
                Ok(())
            })?;
        }
        let fetch = |(kind, uid): &(PackKind, PackUid)| read_pack(backend, keys, certificates, *kind, *uid);
        let total = unknown.len() as u64;
        let mut done = 0;
        fetch_each(&unknown, self.options.fetchers, &fetch, &mut |(kind, uid), read| {
            match read {
                Ok(pack) => {
                    self.own.record(&[pack])?;
                    report.learnt += 1;
                }
                Err(e) if is_final(&e) => report.left_out.push((pack::name(*kind, *uid), e)),
                Err(e) => return Err(e),
            }
            done += 1;
            progress(done, total)
        })?;
        self.own.flush()?;
        Ok(report)
    }

    /// One pass over the listed deltas. The authority's come first, the newest of them first: they are the ones that spare
    /// reading others.
    fn learn_deltas(
        &self,
        backend: &dyn Backend,
        keys: &Keys,
        certificates: &Certificates,
        listed: &HashSet<String>,
        report: &mut SyncReport,
        progress: Progress<'_>,
    ) -> Result<()> {
        let (mut merged, mut others) = (Vec::new(), Vec::new());
        for name in listed {
            match parse_name(name) {
                Some((signer, _)) if certificates.is_authority(signer) => merged.push(name.as_str()),
                Some(_) => others.push(name.as_str()),
                None => report.left_out.push((name.clone(), Error::invalid("not the name of an index delta"))),
            }
        }
        merged.sort_unstable_by(|a, b| b.cmp(a));
        others.sort_unstable();
        let fetch = |name: &&str| read_delta(backend, keys, certificates, name);
        for names in [merged, others] {
            let mut unknown = Vec::with_capacity(names.len());
            for name in names {
                if !self.knows_delta(name)? {
                    unknown.push(name);
                }
            }
            let total = unknown.len() as u64;
            let mut done = 0;
            fetch_each(&unknown, self.options.fetchers, &fetch, &mut |name, read| {
                match read {
                    // One that was being fetched when another superseded it.
                    Ok(_) if self.knows_delta(name)? => {}
                    Ok(delta) => {
                        self.own.ingest(name, &delta)?;
                        report.learnt += 1;
                    }
                    Err(e) if is_final(&e) => report.left_out.push(((*name).to_owned(), e)),
                    Err(e) => return Err(e),
                }
                done += 1;
                progress(done, total)
            })?;
        }
        Ok(())
    }

    fn knows_delta(&self, name: &str) -> Result<bool> {
        match self.shared.as_ref().and_then(Shared::view) {
            Some(view) if view.knows_delta(name)? => Ok(true),
            _ => self.own.knows_delta(name),
        }
    }

    fn knows_pack(&self, uid: PackUid) -> Result<bool> {
        match self.shared.as_ref().and_then(Shared::view) {
            Some(view) if view.knows_pack(uid)? => Ok(true),
            _ => self.own.knows_pack(uid),
        }
    }
}

/// Whether another attempt would end the same way, so that the object is left out and the rest goes on.
fn is_final(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported)
}

fn read_delta(backend: &dyn Backend, keys: &Keys, certificates: &Certificates, name: &str) -> Result<IndexDelta> {
    let bytes = backend.get(name)?;
    let record = sealed::open(keys, certificates, ObjectKind::IndexDelta, name, &bytes)?;
    IndexDelta::counting(name, &record, certificates)
}

fn read_pack(
    backend: &dyn Backend,
    keys: &Keys,
    certificates: &Certificates,
    kind: PackKind,
    uid: PackUid,
) -> Result<PackEntries> {
    let header = PackHeader::fetch(backend, keys, certificates, kind, uid)?;
    let (entries, object_len) = pack::read_contents(backend, keys, kind, uid)?;
    Ok(PackEntries::new(uid, kind, object_len, header.signer, &entries))
}

/// Fetches each of `items` on up to `fetchers` threads and hands what came to `each` on this one, in no particular order. At
/// most twice as many results as there are threads wait. An error of `each` ends it.
fn fetch_each<I: Sync, T: Send>(
    items: &[I],
    fetchers: usize,
    fetch: &(dyn Fn(&I) -> Result<T> + Sync),
    each: &mut dyn FnMut(&I, Result<T>) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let threads = fetchers.clamp(1, items.len().max(1));
    let (send, receive) = crossbeam_channel::bounded(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Nobody listens any more once `each` has failed.
                    if send.send((item, fetch(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        receive.into_iter().try_for_each(|(item, fetched)| each(item, fetched))
    })
}
