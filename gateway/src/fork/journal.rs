//! The journal on its two media, which are used by turns: appending, syncing, and beginning anew on the other one.
//!
//! ```text
//!   generation 7 on a: state, begun, records ... retired
//!   generation 8 on b: state, begun, records ...               counts from the moment that its beginning is synced
//! ```
//! Not here: what the bytes look like ([`super::record`]), what they come to when they are read ([`super::replay`]), when it is
//! done ([`super::layer`]). What holds: a record is in the page cache when [`Journal::append`] returns, so that it survives this
//! process; the end of the records is never nearer than [`MARGIN`] to the medium's end, so that a journal that was cut off is
//! found out, and records that a flush needs have space kept for them; what lies ahead was written with zeroes and synced
//! before, so that syncing a record changes nothing but its bytes.
//!
//! The lock is held while a record is written, since records are a chain: into memory, but for one write and sync in every MiB
//! of a journal that grows; and while it begins anew, when nobody may append. Memory: one record, or one MiB then.

use super::BootId;
use super::block_map::{BlockMap, CHUNK, REGION, State, bits, split};
use super::medium::Medium;
use super::record::{COMMIT_LEN, Chain, Entry, Header, RECORD_MAX, RECORDS_AT};
use crate::{Kind, Result};
use coffer_repo::crypto::Key32;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Between the end of the records and that of the medium, always: more than the longest record.
pub(super) const MARGIN: u64 = RECORD_MAX as u64 + 8192;
/// As much again is kept for what a flush appends.
const RESERVE: u64 = MARGIN + (256 << 10);
/// A medium grows by so much.
const STEP: u64 = 1 << 20;
/// A journal that is longer than its beginning by so much begins anew.
const LIMIT: u64 = 16 << 20;
/// Bytes that a generation's beginning is written in at once.
const PORTION: usize = 1 << 20;

pub(super) struct Journal {
    media: [Arc<dyn Medium>; 2],
    key: Key32,
    tail: Mutex<Tail>,
    /// Set when a record did not fit.
    is_short: AtomicBool,
    /// Set when it grew beyond its limit. Both are looked at without the lock.
    is_long: AtomicBool,
}

/// Where the journal stands.
pub(super) struct Tail {
    /// Which medium.
    pub(super) active: usize,
    pub(super) header: Header,
    pub(super) chain: Chain,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Bytes of the medium that were written once.
    pub(super) len: u64,
    /// Up to where it was synced.
    pub(super) durable: u64,
    /// What records before this call ours is durable in the data.
    pub(super) firm: u64,
    /// Where the last record ends that is no commit.
    pub(super) said: u64,
    /// Where a new generation is due.
    pub(super) limit: u64,
    /// A record on its way.
    pub(super) buffer: Vec<u8>,
}

/// Where the journal of generation 1 lies.
pub(super) const FIRST: usize = 0;

/// Whether a record may use the space that is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Free,
    Kept,
    /// Nothing follows it.
    Last,
}

impl Journal {
    /// Makes the journal of a new layer: the other medium gets as much space as it will need first.
    pub(super) fn create(media: [Arc<dyn Medium>; 2], key: &Key32, header: Header, map: &BlockMap) -> Result<()> {
        let [first, other] = &media;
        begin(&**first, key, header, map)?;
        grow(&**other, 0, STEP)?;
        other.sync()
    }

    /// The journal as it was found.
    pub(super) fn found(media: [Arc<dyn Medium>; 2], key: &Key32, tail: Tail) -> Self {
        Journal { media, key: key.clone(), tail: Mutex::new(tail), is_short: false.into(), is_long: false.into() }
    }

    // A thread that died with it left a chain that may not go with the bytes: what follows would not verify, which reads as a
    // torn end. The layer is told by the panic of its leader or loses that thread's request only.
    fn lock(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a record. `Full` when there is no space, and then nothing happened.
    pub(super) fn append(&self, entry: &Entry<'_>) -> Result<()> {
        let mut tail = self.lock();
        self.push(&mut tail, entry, Space::Free)
    }

    /// As [`Journal::append`] for what completes a record that was appended, for which there is space.
    pub(super) fn append_kept(&self, entry: &Entry<'_>) -> Result<()> {
        let mut tail = self.lock();
        self.push(&mut tail, entry, Space::Kept)
    }

    /// Appends a commit. `firm`: what records before it call ours is durable in the data; `None`: as before.
    pub(super) fn commit(&self, firm: Option<u64>) -> Result<()> {
        let mut tail = self.lock();
        let firm = firm.unwrap_or(tail.firm);
        let entry = Entry::Commit { durable: tail.durable, firm };
        self.push(&mut tail, &entry, Space::Kept)?;
        tail.firm = firm;
        Ok(())
    }

    fn push(&self, tail: &mut Tail, entry: &Entry<'_>, space: Space) -> Result<()> {
        let medium = &*self.media[tail.active];
        let end = tail.end + entry.len() as u64;
        let needed = match space {
            Space::Free => end + RESERVE,
            Space::Kept => end + MARGIN,
            Space::Last => end,
        };
        if end + RESERVE > tail.len && space != Space::Last {
            match grow(medium, tail.len, end + RESERVE).and_then(|len| medium.sync().map(|()| len)) {
                Ok(len) => tail.len = len,
                Err(e) if e.kind() == Kind::Full => {
                    self.is_short.store(true, Ordering::Relaxed);
                    if needed > tail.len {
                        return Err(e.within("the fork's journal has no space to grow"));
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let mut chain = tail.chain.clone();
        tail.buffer.clear();
        chain.push(tail.end, entry, &mut tail.buffer)?;
        medium.write_at(tail.end, &tail.buffer)?;
        tail.end += tail.buffer.len() as u64;
        if !matches!(entry, Entry::Commit { .. }) {
            tail.said = tail.end;
        }
        tail.chain = chain;
        if tail.end > tail.limit {
            self.is_long.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes durable what was appended before.
    pub(super) fn sync(&self) -> Result<()> {
        let (medium, end, generation) = {
            let tail = self.lock();
            (Arc::clone(&self.media[tail.active]), tail.end, tail.header.generation)
        };
        medium.sync()?;
        let mut tail = self.lock();
        if tail.header.generation == generation {
            tail.durable = tail.durable.max(end);
        }
        Ok(())
    }

    /// Where the next record goes.
    pub(super) fn end(&self) -> u64 {
        self.lock().end
    }

    /// Whether all records are durable.
    pub(super) fn is_durable(&self) -> bool {
        let tail = self.lock();
        tail.durable == tail.end
    }

    /// Whether whatever it says is durable in the data, as far as a commit says: then nothing of it is ever put in the data again, and
    /// what is written and synced there needs no record.
    pub(super) fn is_firm(&self) -> bool {
        let tail = self.lock();
        tail.firm >= tail.said
    }

    /// Whether it is time to begin anew: it is long, or could not grow.
    pub(super) fn is_due(&self) -> bool {
        self.is_short() || self.is_long.load(Ordering::Relaxed)
    }

    /// Whether it could not grow.
    pub(super) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Begins anew on the other medium with the state that `map` shows, all of which is durable in the data and does not change
    /// meanwhile. `Full` when that has no space: then the old one goes on.
    pub(super) fn rotate(&self, map: &BlockMap, boot: BootId, salt: [u8; 16]) -> Result<()> {
        let mut tail = self.lock();
        let other = 1 - tail.active;
        let Header { generation, size, .. } = tail.header;
        let header = Header { generation: generation + 1, size, boot, salt };
        let new = begin(&*self.media[other], &self.key, header, map)?;
        // So that damage to the new one's beginning is told from a new one that was never finished.
        // From here on the new one counts: a failure must not leave the old one in use.
        let fatal = |e: crate::Error| e.with_kind(Kind::Unavailable);
        self.push(&mut tail, &Entry::Retired, Space::Last).map_err(fatal)?;
        self.media[tail.active].sync().map_err(fatal)?;
        *tail = Tail { active: other, ..new };
        self.is_short.store(false, Ordering::Relaxed);
        self.is_long.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// Writes a generation's beginning, and syncs it. `Tail::active` is for the caller to set.
fn begin(medium: &dyn Medium, key: &Key32, header: Header, map: &BlockMap) -> Result<Tail> {
    let mut len = medium.len()? / STEP * STEP;
    let (mut bytes, mut chain) = header.encode(key);
    let mut at = 0;
    let mut put = |bytes: &mut Vec<u8>, is_last: bool| -> Result<u64> {
        let end = at + bytes.len() as u64;
        if bytes.len() >= PORTION || is_last {
            len = grow(medium, len, end + RESERVE + COMMIT_LEN)?;
            medium.write_at(at, bytes)?;
            at = end;
            bytes.clear();
        }
        Ok(end)
    };
    let mut end = RECORDS_AT;
    each_entry(map, &mut |entry| {
        chain.push(end, entry, &mut bytes)?;
        end = put(&mut bytes, false)?;
        Ok(())
    })?;
    chain.push(end, &Entry::Begun, &mut bytes)?;
    let end = put(&mut bytes, true)?;
    medium.sync()?;
    let limit = 2 * end + LIMIT;
    Ok(Tail { active: FIRST, header, chain, end, len, durable: end, firm: end, said: end, limit, buffer: Vec::new() })
}

/// Has at least `needed` bytes of `medium` written once; how many are. `Full` when there is no space.
fn grow(medium: &dyn Medium, len: u64, needed: u64) -> Result<u64> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let new_len = needed.next_multiple_of(STEP);
    if new_len <= len {
        return Ok(len);
    }
    medium.allocate(len..new_len)?;
    for at in (len..new_len).step_by(ZEROES.len()) {
        medium.write_at(at, &ZEROES)?;
    }
    Ok(new_len)
}

/// The records that the state of a map is: long runs as touches and zeroes, the rest as maps of a chunk each.
fn each_entry(map: &BlockMap, each: &mut dyn FnMut(&Entry<'_>) -> Result<()>) -> Result<()> {
    const BLOCKS: u64 = CHUNK * REGION;
    let mut run: Option<(State, Range<u64>)> = None;
    let flush = |run: Option<(State, Range<u64>)>, each: &mut dyn FnMut(&Entry<'_>) -> Result<()>| match run {
        Some((State::Ours, blocks)) => each(&Entry::Touch(blocks)),
        Some((_, blocks)) => each(&Entry::Zero(blocks)),
        None => Ok(()),
    };
    let mut next = map.next(0);
    while let Some(region) = next {
        let chunk = region / CHUNK;
        let blocks = chunk * BLOCKS..((chunk + 1) * BLOCKS).min(map.blocks());
        let mut masks = Vec::new();
        let (mut all_ours, mut all_zeroed) = (true, true);
        for (region, part) in split(blocks.clone()) {
            let (found, bits) = (map.look(region), bits(part));
            all_ours &= found.ours & bits == bits;
            all_zeroed &= found.zeroed & bits == bits;
            masks.extend_from_slice(&(found.ours & bits).to_le_bytes());
            masks.extend_from_slice(&(found.zeroed & bits).to_le_bytes());
        }
        let state = if all_ours { Some(State::Ours) } else { all_zeroed.then_some(State::Zeroed) };
        run = match (run, state) {
            (Some((of, range)), Some(state)) if of == state && range.end == blocks.start => {
                Some((of, range.start..blocks.end))
            }
            (old, state) => {
                flush(old, each)?;
                state.map(|state| (state, blocks.clone()))
            }
        };
        if state.is_none() && masks.iter().any(|byte| *byte != 0) {
            each(&Entry::Map { region: chunk * CHUNK, masks: &masks })?;
        }
        next = map.next((chunk + 1) * CHUNK);
    }
    flush(run, each)
}
