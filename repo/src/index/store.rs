//! The RocksDB database behind the index: the one file that names the `rocksdb` crate.
//!
//! Not here: whose database it is and what to do about a damaged one ([`super`]), which deltas to read ([`super::sync`]).
//!
//! ```text
//! column family   key                                        value
//! default         "schema" | "repo" | "next"                 version u32 | repository id | next ordinal u32
//! chunk, node     first 16 bytes of the id, ordinal u32 BE   offset, stored length, raw length (LEB128)
//! pack            ordinal u32 BE                             uid, signer, number of live deltas u32
//! packuid         uid, signer                                ordinal u32 BE
//! delta           object name                                0 superseded | 1, then the ordinals of its packs (u32 BE)
//! ```
//! What holds:
//! - A pack is known by uid *and* signer, so that nobody can put entries into somebody else's pack.
//! - All holders of an id lie side by side; the lowest ordinal, the one learnt first, is the answer among those trusted. An
//!   entry is written without looking whether the id is there, so that learning a billion ids reads nothing.
//! - Ordinals are never used twice in one database. An entry whose ordinal has no row in `pack` is dead and skipped.
//! - The log is off: what is here can be learnt again. A crash loses a tail of the writes and never a part from their
//!   middle, in all column families alike (atomic flush), so that no delta's mark survives its entries.
//! - `writing` orders the writers and guards the next ordinal. It is held while a batch goes into memory tables, which may
//!   wait for RocksDB to flush; looking up never takes it.

use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RepoId, SignerId};
use crate::index_delta::{IndexDelta, PackEntries};
use crate::location::{IndexKey, Location, PackKind, Stored};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompactionStyle,
    DBRawIterator, FlushOptions, LogLevel, Options, ReadOptions, SliceTransform, WriteBatch, WriteOptions,
};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Changes with the layout above; another one is thrown away and learnt anew.
const SCHEMA: u32 = 1;
const CHUNK: &str = "chunk";
const NODE: &str = "node";
const PACK: &str = "pack";
const PACK_UID: &str = "packuid";
const DELTA: &str = "delta";
const META: &str = "default";
const FAMILIES: [&str; 6] = [META, CHUNK, NODE, PACK, PACK_UID, DELTA];
/// Entries that go into one batch: about 4 MiB.
const BATCH_ENTRIES: usize = 64 * 1024;
const SUPERSEDED: u8 = 0;
const INGESTED: u8 = 1;

/// How much memory a database may take, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBudget {
    /// Cache of data blocks, filters and indices.
    pub block_cache: usize,
    /// Entries not yet flushed.
    pub write_buffers: usize,
}

/// How a database is opened.
pub(super) enum Access<'a> {
    /// Read and write; it must exist.
    Existing,
    /// Read and write; it must not exist.
    Create,
    /// A view of a database that another process owns. The path is a private directory for the view's own files.
    View(&'a Path),
}

/// An open database.
pub(super) struct Store {
    db: DB,
    writing: Mutex<Ordinals>,
    /// A file to leave behind when RocksDB reports damage, so that the next owner starts anew.
    damage_mark: PathBuf,
}

struct Ordinals {
    next: u32,
}

/// A row of `pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackRow {
    pub(super) uid: PackUid,
    pub(super) signer: SignerId,
    /// How many deltas that are not superseded name it. A pack recorded before its delta has none.
    deltas: u32,
}

impl Store {
    /// Opens the database at `path`. A wrong schema or repository is `Corrupt`, as is damage that shows.
    pub(super) fn open(
        path: &Path,
        repo: RepoId,
        budget: MemoryBudget,
        damage_mark: PathBuf,
        access: &Access<'_>,
    ) -> Result<Self> {
        let cache = Cache::new_lru_cache(budget.block_cache);
        let mut options = database_options(budget);
        let families = FAMILIES.map(|f| ColumnFamilyDescriptor::new(f, family_options(f, &cache, budget)));
        let opened = match access {
            Access::Existing => DB::open_cf_descriptors(&options, path, families),
            Access::Create => {
                options.create_if_missing(true);
                options.create_missing_column_families(true);
                options.set_error_if_exists(true);
                DB::open_cf_descriptors(&options, path, families)
            }
            Access::View(private) => {
                // A view keeps every file open, so that it can go on reading those its owner deletes.
                options.set_max_open_files(-1);
                DB::open_cf_descriptors_as_secondary(&options, path, private, families)
            }
        };
        let db = opened.map_err(|e| failed("opening the index", e))?;
        let mut store = Store { db, writing: Mutex::new(Ordinals { next: 0 }), damage_mark };
        if matches!(access, Access::Create) {
            let mut batch = WriteBatch::default();
            let meta = store.family(META)?;
            batch.put_cf(meta, "schema", SCHEMA.to_be_bytes());
            batch.put_cf(meta, "repo", repo.0);
            batch.put_cf(meta, "next", 0u32.to_be_bytes());
            store.write(batch)?;
            store.flush()?;
        }
        let meta = |key: &str| store.get(META, key.as_bytes());
        if meta("schema")?.as_deref() != Some(&SCHEMA.to_be_bytes()) {
            return Err(Error::corrupt("the index has another layout"));
        }
        if meta("repo")?.as_deref() != Some(&repo.0) {
            return Err(Error::corrupt("the index belongs to another repository"));
        }
        let next =
            meta("next")?.as_deref().and_then(ordinal).ok_or_else(|| Error::corrupt("the index has no counter"))?;
        store.writing = Mutex::new(Ordinals { next });
        Ok(store)
    }

    /// Calls `each` for the places of `stored`, those learnt first first, until it breaks.
    pub(super) fn places(
        &self,
        stored: &Stored,
        each: &mut dyn FnMut(&PackRow, Location) -> ControlFlow<()>,
    ) -> Result<()> {
        let IndexKey(prefix) = stored.key();
        let mut rows = self.rows(place_family(stored.pack_kind()), &prefix, true)?;
        while let Some((key, value)) = rows.item() {
            let place = key.get(prefix.len()..).and_then(ordinal).zip(read_place(value));
            let (ordinal, (offset, stored_len, raw_len)) =
                place.ok_or_else(|| self.damaged("an entry of the index makes no sense"))?;
            if let Some(pack) = self.pack(ordinal)? {
                let location = Location { pack: pack.uid, offset, stored_len, raw_len };
                if each(&pack, location).is_break() {
                    return Ok(());
                }
            }
            rows.next();
        }
        self.finished(&rows)
    }

    /// Whether a delta is ingested or superseded.
    pub(super) fn knows_delta(&self, name: &str) -> Result<bool> {
        Ok(self.get(DELTA, name.as_bytes())?.is_some())
    }

    /// Whether a pack is known, by whomever signed.
    pub(super) fn knows_pack(&self, uid: PackUid) -> Result<bool> {
        let rows = self.rows(PACK_UID, &uid.0, false)?;
        let known = rows.item().is_some();
        self.finished(&rows)?;
        Ok(known)
    }

    /// Learns packs that no delta names yet.
    pub(super) fn record(&self, packs: &[PackEntries]) -> Result<()> {
        let mut ordinals = self.writing()?;
        let (batch, _) = self.stage(&mut ordinals, packs)?;
        self.write(batch)
    }

    /// Learns the delta `name` and lets go of what it supersedes: packs that no live delta names any more. Doing it again, or
    /// in another order with other deltas, comes to the same; one that is superseded already is not learnt.
    pub(super) fn ingest(&self, name: &str, delta: &IndexDelta) -> Result<()> {
        let mut ordinals = self.writing()?;
        if self.knows_delta(name)? {
            return Ok(());
        }
        let (mut batch, named) = self.stage(&mut ordinals, &delta.packs)?;
        let mut mark = vec![INGESTED];
        let mut rows = named;
        for (ordinal, row) in &mut rows {
            row.deltas = row.deltas.saturating_add(1);
            mark.extend_from_slice(&ordinal.to_be_bytes());
        }
        let marks = self.family(DELTA)?;
        batch.put_cf(marks, name, mark);
        for old in &delta.superseded {
            for ordinal in self.delta_packs(old)? {
                let row = match rows.get(&ordinal) {
                    Some(row) => Some(*row),
                    None => self.pack(ordinal)?,
                };
                if let Some(mut row) = row {
                    row.deltas = row.deltas.saturating_sub(1);
                    rows.insert(ordinal, row);
                }
            }
            batch.put_cf(marks, old, [SUPERSEDED]);
        }
        for (ordinal, row) in rows {
            if row.deltas == 0 {
                self.drop_row(&mut batch, ordinal, &row)?;
            } else {
                batch.put_cf(self.family(PACK)?, ordinal.to_be_bytes(), row.encode());
            }
        }
        self.write(batch)
    }

    /// Lets go of packs that are gone from the store.
    pub(super) fn drop_packs(&self, uids: &[PackUid]) -> Result<()> {
        let _ordinals = self.writing()?;
        let mut batch = WriteBatch::default();
        for uid in uids {
            let mut rows = self.rows(PACK_UID, &uid.0, false)?;
            while let Some((key, value)) = rows.item() {
                batch.delete_cf(self.family(PACK_UID)?, key);
                batch.delete_cf(self.family(PACK)?, value);
                rows.next();
            }
            self.finished(&rows)?;
        }
        self.write(batch)
    }

    /// Forgets the marks of superseded deltas that are not among `listed`: their objects are deleted and never come back.
    pub(super) fn forget_superseded(&self, listed: &HashSet<String>) -> Result<()> {
        let _ordinals = self.writing()?;
        let mut batch = WriteBatch::default();
        let marks = self.family(DELTA)?;
        let mut rows = self.rows(DELTA, &[], false)?;
        while let Some((name, mark)) = rows.item() {
            let listed = std::str::from_utf8(name).is_ok_and(|name| listed.contains(name));
            if mark == [SUPERSEDED] && !listed {
                batch.delete_cf(marks, name);
            }
            rows.next();
        }
        self.finished(&rows)?;
        self.write(batch)
    }

    /// Makes everything learnt so far durable and, to views, visible.
    pub(super) fn flush(&self) -> Result<()> {
        let mut families = Vec::with_capacity(FAMILIES.len());
        for name in FAMILIES {
            families.push(self.family(name)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&families, &options).map_err(|e| self.report("flushing the index", e))
    }

    /// Lets a view see what its owner has flushed. That it fails says nothing about the database, whose owner may be
    /// replacing it.
    pub(super) fn catch_up(&self) -> Result<()> {
        self.db.try_catch_up_with_primary().map_err(|e| failed("following the index's owner", e))
    }

    /// A batch with the packs' entries, of which all but the last [`BATCH_ENTRIES`] are written already, and the packs' rows.
    fn stage(&self, ordinals: &mut Ordinals, packs: &[PackEntries]) -> Result<(WriteBatch, HashMap<u32, PackRow>)> {
        let mut batch = WriteBatch::default();
        let mut staged = HashMap::with_capacity(packs.len());
        let mut by_name = HashMap::with_capacity(packs.len());
        for pack in packs {
            let name = uid_key(pack.uid, pack.signer);
            let known = match by_name.get(&name) {
                Some(ordinal) => Some(*ordinal),
                None => self.get(PACK_UID, &name)?.as_deref().and_then(ordinal),
            };
            let ordinal = match known {
                Some(ordinal) => ordinal,
                None => ordinals.take()?,
            };
            by_name.insert(name, ordinal);
            if let std::collections::hash_map::Entry::Vacant(slot) = staged.entry(ordinal) {
                let fresh = PackRow { uid: pack.uid, signer: pack.signer, deltas: 0 };
                let row = *slot.insert(self.pack(ordinal)?.unwrap_or(fresh));
                batch.put_cf(self.family(PACK)?, ordinal.to_be_bytes(), row.encode());
                batch.put_cf(self.family(PACK_UID)?, name, ordinal.to_be_bytes());
                batch.put_cf(self.family(META)?, "next", ordinals.next.to_be_bytes());
            }
            let family = self.family(place_family(pack.kind))?;
            for entry in &pack.entries {
                if batch.len() >= BATCH_ENTRIES {
                    self.write(std::mem::take(&mut batch))?;
                }
                let mut key = [0; 20];
                let (id, number) = key.split_at_mut(16);
                id.copy_from_slice(&entry.key.0);
                number.copy_from_slice(&ordinal.to_be_bytes());
                let mut place = Vec::with_capacity(15);
                for n in [entry.offset, entry.stored_len, entry.raw_len] {
                    write_leb128(&mut place, n);
                }
                batch.put_cf(family, key, place);
            }
        }
        Ok((batch, staged))
    }

    fn delta_packs(&self, name: &str) -> Result<Vec<u32>> {
        let mark = self.get(DELTA, name.as_bytes())?;
        let ordinals = mark.as_deref().and_then(|m| m.strip_prefix(&[INGESTED])).unwrap_or_default();
        Ok(ordinals.chunks_exact(4).filter_map(ordinal).collect())
    }

    fn pack(&self, ordinal: u32) -> Result<Option<PackRow>> {
        match self.get(PACK, &ordinal.to_be_bytes())? {
            None => Ok(None),
            Some(row) => match PackRow::decode(&row) {
                Some(row) => Ok(Some(row)),
                None => Err(self.damaged("a pack's row in the index makes no sense")),
            },
        }
    }

    fn drop_row(&self, batch: &mut WriteBatch, ordinal: u32, row: &PackRow) -> Result<()> {
        batch.delete_cf(self.family(PACK)?, ordinal.to_be_bytes());
        batch.delete_cf(self.family(PACK_UID)?, uid_key(row.uid, row.signer));
        Ok(())
    }

    fn writing(&self) -> Result<std::sync::MutexGuard<'_, Ordinals>> {
        self.writing.lock().map_err(|_| Error::internal("a thread died while writing to the index"))
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| Error::internal(format!("the index has no column family {name}")))
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(self.family(family)?, key).map_err(|e| self.report("reading the index", e))
    }

    /// The rows whose key begins with `prefix`. `filtered`: the family has filters of exactly this prefix.
    fn rows(&self, family: &str, prefix: &[u8], filtered: bool) -> Result<Rows<'_>> {
        let mut options = ReadOptions::default();
        options.set_prefix_same_as_start(filtered);
        options.set_total_order_seek(!filtered);
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(family)?, options);
        iterator.seek(prefix);
        Ok(Rows { iterator, prefix: prefix.to_vec() })
    }

    /// That the rows ended because there are no more, and not because they could not be read.
    fn finished(&self, rows: &Rows<'_>) -> Result<()> {
        rows.iterator.status().map_err(|e| self.report("reading the index", e))
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(|e| self.report("writing to the index", e))
    }

    fn report(&self, operation: &str, error: rocksdb::Error) -> Error {
        let error = failed(operation, error);
        if error.kind() == Kind::Corrupt { self.damaged(operation).with_source(error) } else { error }
    }

    /// Remembers for the next start that the database is damaged.
    fn damaged(&self, what: &str) -> Error {
        // The error is passed on whether or not the mark can be left; without it the damage is found again.
        let _ = std::fs::write(&self.damage_mark, what);
        Error::corrupt(format!(
            "{what}: the local index is damaged and is learnt anew at the next start; run this again"
        ))
    }
}

impl Ordinals {
    fn take(&mut self) -> Result<u32> {
        let ordinal = self.next;
        self.next = ordinal.checked_add(1).ok_or_else(|| {
            Error::new(Kind::Full, "the local index has numbered 4 billion packs; delete its directory to begin anew")
        })?;
        Ok(ordinal)
    }
}

impl PackRow {
    fn encode(&self) -> Vec<u8> {
        [&self.uid.0[..], &self.signer.0[..], &self.deltas.to_be_bytes()[..]].concat()
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (uid, rest) = row.split_first_chunk()?;
        let (signer, deltas) = rest.split_first_chunk()?;
        Some(PackRow { uid: PackUid(*uid), signer: SignerId(*signer), deltas: ordinal(deltas)? })
    }
}

/// Rows under one prefix.
struct Rows<'a> {
    iterator: DBRawIterator<'a>,
    prefix: Vec<u8>,
}

impl Rows<'_> {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        self.iterator.item().filter(|(key, _)| key.starts_with(&self.prefix))
    }

    fn next(&mut self) {
        self.iterator.next();
    }
}

/// What tells the database at `path` from another one that takes its place; `None` while there is none.
pub(super) fn identity(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path.join("IDENTITY")).ok()
}

fn place_family(kind: PackKind) -> &'static str {
    match kind {
        PackKind::Data => CHUNK,
        PackKind::Tree => NODE,
    }
}

fn uid_key(uid: PackUid, signer: SignerId) -> [u8; 32] {
    let mut key = [0; 32];
    let (first, second) = key.split_at_mut(16);
    first.copy_from_slice(&uid.0);
    second.copy_from_slice(&signer.0);
    key
}

fn ordinal(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Seven bits a byte, the low ones first, the top bit set on all but the last.
fn write_leb128(out: &mut Vec<u8>, mut n: u32) {
    loop {
        let [low, ..] = n.to_le_bytes();
        n >>= 7;
        if n == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn read_leb128(bytes: &mut &[u8]) -> Option<u32> {
    let mut n = 0u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(n).ok();
        }
    }
    None
}

fn read_place(mut value: &[u8]) -> Option<(u32, u32, u32)> {
    let place = (read_leb128(&mut value)?, read_leb128(&mut value)?, read_leb128(&mut value)?);
    value.is_empty().then_some(place)
}

fn failed(operation: &str, error: rocksdb::Error) -> Error {
    use rocksdb::ErrorKind as E;
    let kind = match error.kind() {
        E::Corruption => Kind::Corrupt,
        E::IOError | E::Busy | E::TimedOut | E::TryAgain | E::Incomplete => Kind::Unavailable,
        _ => Kind::Internal,
    };
    Error::new(kind, operation).with_source(error)
}

fn database_options(budget: MemoryBudget) -> Options {
    let mut options = Options::default();
    options.set_atomic_flush(true);
    options.set_db_write_buffer_size(budget.write_buffers);
    // Filters and indices lie in the block cache, so that an open file costs a descriptor and little else.
    options.set_max_open_files(512);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(name: &str, cache: &Cache, budget: MemoryBudget) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    if name == CHUNK || name == NODE {
        // Looked up by id alone, whatever the pack: the filter holds ids, not whole keys.
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(16));
        options.set_memtable_prefix_bloom_ratio(0.1);
        blocks.set_whole_key_filtering(false);
        options.set_write_buffer_size(budget.write_buffers / 2);
    } else {
        // Their keys come in order, in a few rows per flush: levelled compaction would only move such files down and never
        // join them.
        options.set_compaction_style(DBCompactionStyle::Universal);
    }
    options.set_block_based_table_factory(&blocks);
    // Ids are random bytes: nothing compresses.
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options
}
