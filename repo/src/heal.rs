//! CONDUCTOR of healing: what is damaged -> where its bytes may still be had -> new packs -> read back -> `moved` records.
//!
//! ```text
//!   examine    as a verification does: chunks and nodes that are not where maps lead, or damaged, and lie nowhere else
//!   parity     the pack repaired in memory
//!   at home    other packs that hold the same chunk, say because it was backed up again
//!   donors     another copy of the repository; another repository's points of the same workload and disk, and disks, at the
//!              same place; then disks cut from end to end, wherever the bytes lie now ([`scan`])
//!   graft      into packs of their own -> durable -> index delta -> read back -> moved records; then it is looked again
//!   shun       no backup relies any more on data packs that are damaged
//! ```
//!
//! Not here: reading around damage ([`crate::detour`]), what sources are. What holds: nothing that is stored is changed or removed;
//! donors are not trusted: bytes count only when their id is the one that is missing; a `moved` record is written only for what was
//! read back from where it lies; an interrupted run leaves packs that are whole, of which an index delta may not tell. Memory: what a
//! verification takes, two new packs, two windows of a donor, an index delta, and what is said in `verify::wounds` and [`graft`].

mod graft;
mod scan;

use crate::backend::list_sorted;
use crate::cancel::Cancel;
use crate::disk_map::{Child, Node};
use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;
use crate::index_delta::{self, DeltaEntry, IndexDelta};
use crate::location::{IndexKey, Location, PackKind, Stored};
use crate::nodes::Nodes;
use crate::pack;
use crate::reader::{DiskReader, Reader, ReaderOptions, Want};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::Identity;
use crate::time::Timestamp;
use crate::verify::{Place, PlaceDisk, Report, Scene, VerifyOptions, VerifyProgress, damaged_data_packs, examine};
use graft::Graft;
use scan::Missing;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Points of another repository that are asked for one workload: of more, the newest.
const POINTS: usize = 16;

/// A disk that may hold what is missing.
pub trait DonorDisk {
    /// What it is called.
    fn name(&self) -> String;

    /// Its size in bytes.
    fn size(&self) -> Result<u64>;

    /// Fills `out` from `offset` on; all of it lies within the size.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Where bytes may be had that are damaged here.
pub enum Donor<'a> {
    /// Another copy of the same repository, or another repository with points of the same workloads.
    Repository(Arc<Repository>),
    /// A disk: the live one, an older copy of it, any file.
    Disk(&'a dyn DonorDisk),
}

/// How to heal.
#[derive(Clone, Debug)]
pub struct HealOptions {
    /// How it is found what is damaged.
    pub verify: VerifyOptions,
    /// Find what could be healed and write nothing.
    pub dry_run: bool,
    /// Make parity for packs that have none and are whole, and have new packs get it from now on.
    pub parity: bool,
    /// Who heals.
    pub identity: Identity,
    /// When.
    pub now: Timestamp,
}

/// How far healing is; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct HealProgress {
    /// Of the examination.
    pub verify: VerifyProgress,
    /// Chunks and nodes to be healed; known once it was examined.
    pub wounds: AtomicU64,
    /// Of those, healed.
    pub healed: AtomicU64,
}

/// What healing came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealReport {
    /// Chunks that were healed.
    pub chunks: u64,
    /// Nodes of disk maps that were.
    pub nodes: u64,
    /// Bytes of both before compression.
    pub bytes: u64,
    /// How many of them came from where.
    pub sources: BTreeMap<String, u64>,
    /// Packs that got parity.
    pub parities: u64,
    /// What is still wrong, and what was found.
    pub after: Report,
}

/// What parity and other packs are called among the sources.
const PARITY: &str = "parity";
const AT_HOME: &str = "other packs";
/// Places of one chunk in other packs that are tried.
const HOLDERS: usize = 4;

/// Heals what can be healed. `WrongKey` for a writer's key.
pub fn heal(
    repo: &Arc<Repository>,
    donors: &[Donor<'_>],
    options: &HealOptions,
    progress: &HealProgress,
    cancel: &Cancel,
) -> Result<HealReport> {
    repo.check_full("heal")?;
    repo.keys().check_newest("heal")?;
    if !options.dry_run {
        repo.check_writable()?;
    }
    let mut ward = Ward::new(repo, donors, options, progress, cancel)?;
    let after = examine(repo, options.verify, &progress.verify, cancel, Some(&mut |scene| ward.treat(scene)))?;
    let mut report = HealReport { after, ..ward.report };
    if !options.dry_run {
        repo.shun(&damaged_data_packs(report.after.problems.iter().chain(&report.after.healed)))?;
    }
    if options.parity && !options.dry_run {
        report.parities = add_parity(repo, cancel)?;
        report.after.without_parity = report.after.without_parity.saturating_sub(report.parities);
    }
    Ok(report)
}

/// Another copy of this repository.
struct Replica {
    location: String,
    reader: Arc<Reader>,
    nodes: Nodes,
}

/// A disk of another repository's point.
struct Relative {
    disk: PlaceDisk,
    reader: DiskReader,
    location: String,
}

/// What one run of healing works with.
struct Ward<'a> {
    repo: &'a Arc<Repository>,
    /// Reads this repository's own packs.
    own: Arc<Reader>,
    replicas: Vec<Replica>,
    relatives: Vec<Relative>,
    disks: Vec<&'a dyn DonorDisk>,
    options: &'a HealOptions,
    progress: &'a HealProgress,
    cancel: &'a Cancel,
    report: HealReport,
}

impl<'a> Ward<'a> {
    fn new(
        repo: &'a Arc<Repository>,
        donors: &'a [Donor<'a>],
        options: &'a HealOptions,
        progress: &'a HealProgress,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let (mut replicas, mut relatives, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for donor in donors {
            match donor {
                Donor::Disk(disk) => disks.push(*disk),
                Donor::Repository(other) => {
                    let reader = reader(other)?;
                    let location = other.backend().location();
                    if other.keys().repo() == repo.keys().repo() {
                        let nodes = Nodes::new(Arc::clone(other), 0)?;
                        replicas.push(Replica { location, reader, nodes });
                    } else {
                        relatives.extend(find_relatives(other, &reader, &location)?);
                    }
                }
            }
        }
        let (own, report) = (reader(repo)?, HealReport::default());
        Ok(Ward { repo, own, replicas, relatives, disks, options, progress, cancel, report })
    }

    /// Heals what it can of the scene's wounds; whether it is to be looked again, for something was healed, or there is more.
    fn treat(&mut self, scene: &Scene<'_>) -> Result<bool> {
        if let Some(frozen) = scene.frozen() {
            let why =
                format!("nothing is healed while packs are frozen, since nothing is known of them: {}", frozen.what);
            return Err(Error::new(Kind::Frozen, why));
        }
        let (nodes, chunks) = (scene.nodes(), scene.chunks());
        if nodes.is_empty() && chunks.is_empty() {
            return Ok(false);
        }
        self.progress.wounds.fetch_add((nodes.len() + chunks.len()) as u64, Relaxed);
        let mut graft = Graft::begin(self.repo, self.options, self.cancel)?;
        for (child, level) in nodes {
            self.cancel.check()?;
            if let Some((source, node)) = self.node(scene, &child, level)? {
                self.healed(&mut graft, Stored::Node(child.id), child.hint, &source, &node.encode()?)?;
            }
        }
        let holders = self.holders(&chunks)?;
        let places =
            if self.relatives.is_empty() && self.disks.is_empty() { HashMap::new() } else { scene.places()? };
        let mut missing = Missing::new();
        for want in chunks {
            self.cancel.check()?;
            let places = places.get(&want.id).map_or(&[][..], Vec::as_slice);
            match self.chunk(scene, &want, holders.get(&want.id), places)? {
                Some((source, bytes)) => self.healed(&mut graft, Stored::Chunk(want.id), want.at, &source, &bytes)?,
                None => missing.entry(want.id).or_default().push(want),
            }
        }
        for disk in self.disks.clone() {
            self.scan(disk, &places, &mut missing, &mut graft)?;
        }
        Ok(graft.finish()? > 0 || scene.has_more())
    }

    fn healed(
        &mut self,
        graft: &mut Graft<'_>,
        stored: Stored,
        at: Location,
        source: &str,
        plain: &[u8],
    ) -> Result<()> {
        graft.add(stored, at, plain)?;
        match stored {
            Stored::Chunk(_) => self.report.chunks += 1,
            Stored::Node(_) => self.report.nodes += 1,
        }
        self.report.bytes += plain.len() as u64;
        *self.report.sources.entry(source.to_owned()).or_default() += 1;
        self.progress.healed.fetch_add(1, Relaxed);
        Ok(())
    }

    fn node(&self, scene: &Scene<'_>, child: &Child, level: u8) -> Result<Option<(String, Node)>> {
        if let Some(node) = found(scene.reader().read(child, level))? {
            return Ok(Some((PARITY.to_owned(), node)));
        }
        for replica in &self.replicas {
            if let Some(node) = found(replica.nodes.read(child, level))? {
                return Ok(Some((replica.location.clone(), node)));
            }
        }
        Ok(None)
    }

    fn chunk(
        &self,
        scene: &Scene<'_>,
        want: &Want,
        holders: Option<&Vec<Location>>,
        places: &[Place],
    ) -> Result<Option<(String, Vec<u8>)>> {
        if let Some(bytes) = self.mended(scene, want)? {
            return Ok(Some((PARITY.to_owned(), bytes)));
        }
        for at in holders.into_iter().flatten().filter(|at| **at != want.at && at.raw_len == want.at.raw_len) {
            if let Some(bytes) = found(self.own.chunk(&Want { id: want.id, at: *at }))? {
                return Ok(Some((AT_HOME.to_owned(), bytes)));
            }
        }
        for replica in &self.replicas {
            if let Some(bytes) = found(replica.reader.chunk(want))? {
                return Ok(Some((replica.location.clone(), bytes)));
            }
        }
        let mut bytes = vec![0; want.at.raw_len as usize];
        for place in places {
            let relatives = self.relatives.iter().filter(|r| r.disk == *place.disk);
            for relative in relatives {
                if self.is_there(want, relative, place.offset, &mut bytes)? {
                    return Ok(Some((relative.location.clone(), bytes)));
                }
            }
            for disk in &self.disks {
                if self.is_there(want, *disk, place.offset, &mut bytes)? {
                    return Ok(Some((disk.name(), bytes)));
                }
            }
        }
        Ok(None)
    }

    /// The chunk out of its pack as its parity repairs it.
    fn mended(&self, scene: &Scene<'_>, want: &Want) -> Result<Option<Vec<u8>>> {
        let Some(mended) = scene.reader().detours().mended(PackKind::Data, want.at.pack)? else { return Ok(None) };
        let Some(mut frame) = mended.frame(&want.at) else { return Ok(None) };
        let mut plain = Vec::new();
        let mut open = || -> Result<()> {
            let (codec, bytes) = mended.open.open_frame(&want.at, &mut frame)?;
            crate::seal::Decompressor::new()?.decompress(codec, bytes, want.at.raw_len, &mut plain)
        };
        let is_open = found(open())?.is_some();
        Ok((is_open && self.is_it(want, &plain)).then_some(plain))
    }

    fn is_it(&self, want: &Want, plain: &[u8]) -> bool {
        plain.len() == want.at.raw_len as usize && self.repo.keys().id_key().chunk_id(plain) == want.id
    }

    /// Whether the chunk lies at this place of a disk; then `bytes` holds it.
    fn is_there(&self, want: &Want, disk: &dyn DonorDisk, offset: u64, bytes: &mut [u8]) -> Result<bool> {
        let Some(size) = found(disk.size())? else { return Ok(false) };
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
        let (content, padding) = bytes.split_at_mut_checked(there).ok_or_else(|| Error::internal("a longer end"))?;
        // The end of a disk that ends within a block is filled up with zeroes.
        padding.fill(0);
        Ok(there > 0 && found(disk.read_at(offset, content))?.is_some() && self.is_it(want, bytes))
    }

    /// Where the packs of this repository hold these chunks, as index deltas tell.
    fn holders(&self, chunks: &[Want]) -> Result<HashMap<ChunkId, Vec<Location>>> {
        let mut holders = HashMap::new();
        let wanted: HashMap<IndexKey, ChunkId> = chunks.iter().map(|w| (IndexKey::of(&w.id.0), w.id)).collect();
        if wanted.is_empty() {
            return Ok(holders);
        }
        for object in list_sorted(self.repo.backend(), index_delta::PREFIX)? {
            self.cancel.check()?;
            let record = self.repo.get_record(ObjectKind::IndexDelta, &object.name);
            // A delta that is damaged, merged meanwhile or nobody's tells nothing.
            let delta = record.and_then(|r| IndexDelta::counting(&object.name, &r, &self.repo.certificates()));
            for pack in found(delta)?.into_iter().flat_map(|delta| delta.packs) {
                for DeltaEntry { key, offset, stored_len, raw_len } in pack.entries {
                    let Some(id) = wanted.get(&key).filter(|_| pack.kind == PackKind::Data) else { continue };
                    let places: &mut Vec<Location> = holders.entry(*id).or_default();
                    let at = Location { pack: pack.uid, offset, stored_len, raw_len };
                    if places.len() <= HOLDERS && !places.contains(&at) {
                        places.push(at);
                    }
                }
            }
        }
        Ok(holders)
    }
}

fn reader(repo: &Arc<Repository>) -> Result<Arc<Reader>> {
    Reader::new(Arc::clone(repo), ReaderOptions { threads: 1, ..ReaderOptions::default() })
}

/// What was read, if it could be. Only what ends everything is an error.
fn found<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.kind(), Kind::Cancelled | Kind::Internal) => Err(e),
        Err(_) => Ok(None),
    }
}

/// The disks of the newest points of every workload.
fn find_relatives(other: &Arc<Repository>, reader: &Arc<Reader>, location: &str) -> Result<Vec<Relative>> {
    let mut relatives = Vec::new();
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for point in other.points()?.snapshots.iter().rev() {
        let count = asked.entry(point.workload.clone()).or_default();
        *count += 1;
        if *count > POINTS {
            continue;
        }
        for disk in &point.disks {
            if let Some(reader) = found(reader.disk(point, &disk.name))? {
                let disk = PlaceDisk { workload: point.workload.clone(), name: disk.name.clone() };
                relatives.push(Relative { disk, reader, location: location.to_owned() });
            }
        }
    }
    Ok(relatives)
}

impl DonorDisk for Relative {
    fn name(&self) -> String {
        self.location.clone()
    }

    fn size(&self) -> Result<u64> {
        Ok(self.reader.size())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.reader.read_at(offset, out)
    }
}

/// Makes parity for packs that have none and every byte of which is genuine; how many.
fn add_parity(repo: &Repository, cancel: &Cancel) -> Result<u64> {
    repo.turn_parity_on()?;
    let mut made = 0;
    for (kind, uid) in repo.packs_without_parity()? {
        cancel.check()?;
        let whole = || -> Result<()> {
            let bytes = repo.backend().get(&pack::name(kind, uid))?;
            let open = repo.open_pack_of(kind, uid, &bytes)?;
            let (entries, _) = pack::read_contents(repo.backend(), repo.keys(), kind, uid)?;
            for entry in entries {
                let at = entry.location;
                let frame = usize::try_from(at.end()).ok().and_then(|end| bytes.get(at.offset as usize..end));
                let mut frame = frame.ok_or_else(|| Error::corrupt("a frame beyond its pack"))?.to_vec();
                open.open_frame(&at, &mut frame)?;
            }
            repo.put_parity(kind, uid, &bytes)
        };
        match whole() {
            Ok(()) => made += 1,
            // Damaged, or collected meanwhile: verification names it.
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(made)
}
