//! Claims, decisions, forgets and condemned records: what makes a snapshot count, as bytes and names.
//!
//! ```text
//!   snapshots/<tag>/<utc>-<id>/claim       what it is, written before it counts
//!   snapshots/<tag>/<utc>-<id>/decision    COMMIT or REVOKE: put-if-absent, the one commit point
//!   snapshots/<tag>/<utc>-<id>/intent      its writer is about to decide COMMIT      (both only on stores without put-if-absent)
//!   snapshots/<tag>/<utc>-<id>/revoke      somebody is about to decide REVOKE
//!   forgets/<id>                           it no longer counts
//! ```
//!
//! Not here: reading and writing them ([`crate::catalog`]), how a decision is come to ([`crate::register`]). What holds: a claim lives under the tag of its own workload, its own
//! time and its own id; keys of a claim that this version does not know are kept in [`Claim::extra`].

use crate::cbor::{Map, Value};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RepoId, SnapshotId, WorkloadTag};
use crate::lock_for::LockFor;
use crate::time::Timestamp;
use std::fmt;

/// Who made a claim: for people, never for access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Host name.
    pub host: String,
    /// User name.
    pub user: String,
    /// Program and version.
    pub program: String,
}

/// Where a claim lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClaimName {
    /// Keyed hash of the workload.
    pub tag: WorkloadTag,
    /// The claim's own time.
    pub time: Timestamp,
    /// The claim's id.
    pub id: SnapshotId,
}

/// One object of a claim's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimPart {
    /// The claim.
    Claim,
    /// Its decision.
    Decision,
    /// That its writer is about to commit it.
    Intent,
    /// That somebody is about to revoke it.
    Revoke,
}

impl ClaimName {
    /// Name of the claim object.
    #[must_use]
    pub fn claim(&self) -> String {
        format!("{self}/claim")
    }

    /// Name of the decision object.
    #[must_use]
    pub fn decision(&self) -> String {
        format!("{self}/decision")
    }

    /// Name of the object that says that its writer is about to commit it.
    #[must_use]
    pub fn intent(&self) -> String {
        format!("{self}/intent")
    }

    /// Name of the object that says that somebody is about to revoke it.
    #[must_use]
    pub fn revoke(&self) -> String {
        format!("{self}/revoke")
    }

    /// Takes an object's name apart; `None` when it is not one of a claim's folder.
    #[must_use]
    pub fn parse(name: &str) -> Option<(ClaimName, ClaimPart)> {
        let mut parts = name.strip_prefix("snapshots/")?.split('/');
        let (tag, folder, part) = (parts.next()?, parts.next()?, parts.next()?);
        let (time, id) = folder.rsplit_once('-')?;
        let part = match part {
            "claim" => ClaimPart::Claim,
            "decision" => ClaimPart::Decision,
            "intent" => ClaimPart::Intent,
            "revoke" => ClaimPart::Revoke,
            _ => return None,
        };
        if parts.next().is_some() {
            return None;
        }
        Some((ClaimName { tag: tag.parse().ok()?, time: time.parse().ok()?, id: id.parse().ok()? }, part))
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshots/{}/{}-{}", self.tag, self.time, self.id)
    }
}

/// One disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name, unique in the snapshot.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Raw root node; empty for an all-zero disk.
    pub root: Vec<u8>,
    /// What the source calls this state, for the next incremental.
    pub token: Option<String>,
    /// What the platform needs to build the machine again.
    pub platform: Option<Map>,
    /// Bytes that the source could not read.
    pub unreadable: u64,
}

/// What a backup did, in bytes, but for the count of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimStats {
    /// Read from the source.
    pub read: u64,
    /// Number of chunks that were new.
    pub new_chunks: u64,
    /// Their bytes before compression.
    pub new_raw: u64,
    /// Their bytes as stored.
    pub new_stored: u64,
}

/// Where a point was made first: it and all its copies have that in common, whichever of them was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The repository.
    pub repo: RepoId,
    /// The point's id there.
    pub snapshot: SnapshotId,
}

/// What a copy says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What it is a copy of.
    pub origin: Origin,
    /// When copying it began; the claim's own time is that of the original.
    pub begun: Timestamp,
}

/// What a claim claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// A snapshot.
    Snapshot {
        /// Its disks, in the order they were named.
        disks: Vec<Disk>,
        /// What making it took.
        stats: ClaimStats,
    },
    /// Holds the snapshot that is its one parent.
    Pin {
        /// What for: "mount", "export", "restore" ...
        purpose: String,
    },
}

/// A claim: a root of everything it reaches, from the moment it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Snapshot or pin.
    pub kind: ClaimKind,
    /// When it was begun; a copy: when its original was.
    pub time: Timestamp,
    /// The protected thing.
    pub workload: String,
    /// Free words.
    pub tags: Vec<String>,
    /// Who made it; a copy: who made its original.
    pub identity: Identity,
    /// What it was made from; a pin: what it holds.
    pub parents: Vec<SnapshotId>,
    /// Of what it is a copy, if it is one.
    pub copied: Option<Copied>,
    /// Keys that this version does not know.
    pub extra: Map,
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The snapshot counts.
    Commit,
    /// It never will.
    Revoke,
}

/// A committed, unforgotten snapshot: a recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its claim lies.
    pub name: ClaimName,
    /// The protected thing.
    pub workload: String,
    /// Free words.
    pub tags: Vec<String>,
    /// Who made it.
    pub identity: Identity,
    /// What it was made from.
    pub parents: Vec<SnapshotId>,
    /// Of what it is a copy, if it is one.
    pub copied: Option<Copied>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// What making it took.
    pub stats: ClaimStats,
    /// How long it wants what it needs to be locked against removal.
    pub lock_for: Option<LockFor>,
}

impl Snapshot {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.name.id
    }

    /// When its backup began; a copy: when that of its original did.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.name.time
    }

    /// Where it was made first, given that it lies in `repo`.
    #[must_use]
    pub fn origin(&self, repo: RepoId) -> Origin {
        self.copied.map_or(Origin { repo, snapshot: self.id() }, |copied| copied.origin)
    }

    /// The disk called `name`, or the nearest names in the error.
    pub fn disk(&self, name: &str) -> Result<&Disk> {
        self.disks.iter().find(|d| d.name == name).ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|d| d.name.as_str()).collect();
            Error::not_found(format!(
                "no disk '{name}' in {}@{}; it has: {}",
                self.workload,
                self.time(),
                names.join(", ")
            ))
        })
    }

    /// Bytes of all disks together.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        self.disks.iter().map(|d| d.size).fold(0, u64::saturating_add)
    }
}

/// What a forget record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    /// When it was written.
    pub time: Timestamp,
    /// The claim it ends.
    pub claim: ClaimName,
}

impl Forget {
    /// Prefix of all forgets.
    pub const PREFIX: &'static str = "forgets/";

    /// Name of the object that forgets `id`.
    #[must_use]
    pub fn name(id: SnapshotId) -> String {
        format!("{}{id}", Self::PREFIX)
    }

    /// The id that an object's name forgets.
    #[must_use]
    pub fn parse(name: &str) -> Option<SnapshotId> {
        name.strip_prefix(Self::PREFIX)?.parse().ok()
    }

    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let claim = &self.claim;
        Map::new()
            .with("tag", &claim.tag.0)
            .with("time", self.time.seconds())
            .with("utc", claim.time.to_string())
            .encode()
    }

    /// Reads the body of `forgets/<id>`.
    pub fn decode(id: SnapshotId, body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        let tag = WorkloadTag(map.array_of("tag")?);
        let time = map.text("utc")?.parse().map_err(|e: Error| e.with_kind(Kind::Corrupt))?;
        Ok(Forget { time: Timestamp::from_seconds(map.uint("time")?)?, claim: ClaimName { tag, time, id } })
    }
}

/// Packs that a collector is about to delete. A condemned pack never becomes live again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemned {
    /// Data and tree packs alike.
    pub packs: Vec<PackUid>,
    /// They are damaged: nobody is to rely on them anew, and nobody is about to remove them, so that collectors go by other
    /// records.
    pub damaged: bool,
}

impl Condemned {
    /// Packs that one record names, at most.
    pub const MOST: usize = 65_536;
    /// Prefix of all condemned records.
    pub const PREFIX: &'static str = "condemned/";

    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let packs: Vec<Value> = self.packs.iter().map(|p| Value::from(&p.0)).collect();
        let mut map = Map::new().with("packs", packs);
        if self.damaged {
            map.insert("damaged", true);
        }
        map.encode()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        let pack = |v: &Value| match v {
            Value::Bytes(b) => PackUid::from_slice(b),
            _ => Err(Error::corrupt("a condemned record names a pack by something else than bytes")),
        };
        let damaged = match map.get("damaged") {
            None => false,
            Some(Value::Bool(true)) => true,
            Some(_) => return Err(Error::corrupt("a condemned record's 'damaged' is not true")),
        };
        Ok(Condemned { packs: map.list("packs")?.iter().map(pack).collect::<Result<_>>()?, damaged })
    }
}

impl Decision {
    /// Body of the record.
    pub fn encode(self) -> Result<Vec<u8>> {
        Map::new().with("decision", if self == Decision::Commit { "COMMIT" } else { "REVOKE" }).encode()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        match Map::decode(body)?.text("decision")? {
            "COMMIT" => Ok(Decision::Commit),
            "REVOKE" => Ok(Decision::Revoke),
            other => Err(Error::corrupt(format!("a decision says '{other}'"))),
        }
    }
}

const VERSION: u64 = 1;

impl Claim {
    /// The key in [`Claim::extra`] of the term of a snapshot's locks, in seconds.
    pub const LOCK_FOR: &str = "lock_for";

    /// How long a snapshot wants what it needs to be locked.
    pub fn lock_for(&self) -> Result<Option<LockFor>> {
        let seconds = self.extra.opt_uint(Self::LOCK_FOR)?;
        seconds.map(|seconds| LockFor::from_seconds(seconds).map_err(|e| e.with_kind(Kind::Corrupt))).transpose()
    }

    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let texts = |list: &[String]| list.iter().map(|t| Value::from(t.as_str())).collect::<Vec<Value>>();
        let parents: Vec<Value> = self.parents.iter().map(|p| Value::from(&p.0)).collect();
        let mut map = self.extra.clone();
        map.insert("v", VERSION);
        map.insert("time", self.time.seconds());
        map.insert("workload", self.workload.as_str());
        map.insert("tags", texts(&self.tags));
        map.insert("host", self.identity.host.as_str());
        map.insert("user", self.identity.user.as_str());
        map.insert("program", self.identity.program.as_str());
        map.insert("parents", parents);
        if let Some(Copied { origin, begun }) = &self.copied {
            let origin = Map::new()
                .with("repo", &origin.repo.0)
                .with("snapshot", &origin.snapshot.0)
                .with("copied", begun.seconds());
            map.insert("origin", origin);
        }
        match &self.kind {
            ClaimKind::Pin { purpose } => {
                map.insert("kind", "pin");
                map.insert("purpose", purpose.as_str());
            }
            ClaimKind::Snapshot { disks, stats } => {
                map.insert("kind", "snapshot");
                map.insert("disks", disks.iter().map(|d| Value::from(encode_disk(d))).collect::<Vec<Value>>());
                let stats = Map::new()
                    .with("read", stats.read)
                    .with("new_chunks", stats.new_chunks)
                    .with("new_raw", stats.new_raw)
                    .with("new_stored", stats.new_stored);
                map.insert("stats", stats);
            }
        }
        map.encode()
    }

    /// Reads a body. A kind that this version does not know is [`Kind::Unsupported`].
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut map = Map::decode(body)?;
        if map.uint("v")? != VERSION {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a claim of version {}; use a newer coffer", map.uint("v")?),
            ));
        }
        let kind = match map.text("kind")? {
            "pin" => ClaimKind::Pin { purpose: map.text("purpose")?.to_owned() },
            "snapshot" => {
                let disk = |v: &Value| match v {
                    Value::Map(m) => decode_disk(m),
                    _ => Err(Error::corrupt("a claim's disk is not a map")),
                };
                let disks = map.list("disks")?.iter().map(disk).collect::<Result<_>>()?;
                let stats = map.map("stats")?;
                let stats = ClaimStats {
                    read: stats.uint("read")?,
                    new_chunks: stats.uint("new_chunks")?,
                    new_raw: stats.uint("new_raw")?,
                    new_stored: stats.uint("new_stored")?,
                };
                ClaimKind::Snapshot { disks, stats }
            }
            other => {
                return Err(Error::new(Kind::Unsupported, format!("a claim of kind '{other}'; use a newer coffer")));
            }
        };
        let tag = |v: &Value| match v {
            Value::Text(t) => Ok(t.clone()),
            _ => Err(Error::corrupt("a claim's tag is not text")),
        };
        let parent = |v: &Value| match v {
            Value::Bytes(b) => SnapshotId::from_slice(b),
            _ => Err(Error::corrupt("a claim's parent is not an id")),
        };
        let copied = |origin: &Map| -> Result<Copied> {
            let snapshot = SnapshotId(origin.array_of("snapshot")?);
            let origin_of = Origin { repo: RepoId(origin.array_of("repo")?), snapshot };
            Ok(Copied { origin: origin_of, begun: Timestamp::from_seconds(origin.uint("copied")?)? })
        };
        let claim = Claim {
            kind,
            time: Timestamp::from_seconds(map.uint("time")?)?,
            workload: map.text("workload")?.to_owned(),
            tags: map.list("tags")?.iter().map(tag).collect::<Result<_>>()?,
            identity: Identity {
                host: map.text("host")?.to_owned(),
                user: map.text("user")?.to_owned(),
                program: map.text("program")?.to_owned(),
            },
            parents: map.list("parents")?.iter().map(parent).collect::<Result<_>>()?,
            copied: map.opt_map("origin")?.map(copied).transpose()?,
            extra: Map::new(),
        };
        for known in [
            "v", "kind", "purpose", "disks", "stats", "time", "workload", "tags", "host", "user", "program", "parents",
            "origin",
        ] {
            map.remove(known);
        }
        Ok(Claim { extra: map, ..claim })
    }
}

fn encode_disk(disk: &Disk) -> Map {
    let mut map = Map::new()
        .with("name", disk.name.as_str())
        .with("size", disk.size)
        .with("block", disk.block_size)
        .with("root", disk.root.as_slice());
    if let Some(token) = &disk.token {
        map.insert("token", token.as_str());
    }
    if let Some(platform) = &disk.platform {
        map.insert("platform", platform.clone());
    }
    if disk.unreadable > 0 {
        map.insert("unreadable", disk.unreadable);
    }
    map
}

fn decode_disk(map: &Map) -> Result<Disk> {
    let block_size = map.u32("block")?;
    if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
        return Err(Error::corrupt(format!("a disk with logical blocks of {block_size} bytes")));
    }
    Ok(Disk {
        name: map.text("name")?.to_owned(),
        size: map.uint("size")?,
        block_size,
        root: map.bytes("root")?.to_vec(),
        token: map.opt_text("token")?.map(str::to_owned),
        platform: map.opt_map("platform")?.cloned(),
        unreadable: map.opt_uint("unreadable")?.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Claim {
        let disk = |name: &str, token: Option<&str>| Disk {
            name: name.into(),
            size: 1 << 40,
            block_size: 512,
            root: vec![1, 2, 3],
            token: token.map(str::to_owned),
            platform: token.map(|_| Map::new().with("bus", "virtio")),
            unreadable: token.map_or(0, |_| 4096),
        };
        Claim {
            kind: ClaimKind::Snapshot {
                disks: vec![disk("root", None), disk("data", Some("ck1"))],
                stats: ClaimStats { read: 1, new_chunks: 2, new_raw: 3, new_stored: 4 },
            },
            time: Timestamp::from_seconds(1_795_226_400).unwrap(),
            workload: "web 1".into(),
            tags: vec!["nightly".into(), "ä".into()],
            identity: Identity { host: "h".into(), user: "u".into(), program: "coffer 0.1.0".into() },
            parents: vec![SnapshotId([7; 16])],
            copied: None,
            extra: Map::new().with("future", 5u64),
        }
    }

    #[test]
    fn claims_round_trip_with_unknown_keys() {
        let claim = sample();
        assert_eq!(Claim::decode(&claim.encode().unwrap()).unwrap(), claim);
        let pin = Claim { kind: ClaimKind::Pin { purpose: "mount".into() }, ..claim };
        assert_eq!(Claim::decode(&pin.encode().unwrap()).unwrap(), pin);
    }

    #[test]
    fn a_copy_names_its_origin_by_the_keys_of_the_format() {
        let origin = Origin { repo: RepoId([8; 16]), snapshot: SnapshotId([9; 16]) };
        let claim = Claim { copied: Some(Copied { origin, begun: Timestamp::from_seconds(77).unwrap() }), ..sample() };
        let mut map = Map::decode(&claim.encode().unwrap()).unwrap();
        let expected = Map::new().with("repo", &[8; 16]).with("snapshot", &[9; 16]).with("copied", 77u64);
        assert_eq!(map.map("origin").unwrap(), &expected);
        assert_eq!(Claim::decode(&map.encode().unwrap()).unwrap(), claim);
        for bad in [
            Value::from(5u64),
            Map::new().into(),
            expected.clone().with("later", 1u64).into(),
            Map::new().with("repo", &[8; 16]).with("snapshot", &[9; 15]).with("copied", 77u64).into(),
        ] {
            let is_later = matches!(&bad, Value::Map(map) if map.get("later").is_some());
            map.remove("origin");
            map.insert("origin", bad);
            let decoded = Claim::decode(&map.encode().unwrap());
            assert_eq!(
                decoded.as_ref().map(|c| c.copied).map_err(Error::kind),
                match is_later {
                    true => Ok(claim.copied),
                    false => Err(Kind::Corrupt),
                }
            );
        }
    }

    #[test]
    fn the_term_of_locks_is_a_key_of_its_own() {
        let mut claim = sample();
        assert_eq!(claim.lock_for().unwrap(), None);
        for (seconds, is_term) in [(1, true), (LockFor::LONGEST, true), (0, false), (LockFor::LONGEST + 1, false)] {
            claim.extra.remove(Claim::LOCK_FOR);
            claim.extra.insert(Claim::LOCK_FOR, seconds);
            let read = Claim::decode(&claim.encode().unwrap()).unwrap().lock_for();
            match is_term {
                true => assert_eq!(read.unwrap().unwrap().seconds(), seconds),
                false => assert_eq!(read.unwrap_err().kind(), Kind::Corrupt),
            }
        }
    }

    #[test]
    fn unknown_kinds_and_versions_are_unsupported_not_corrupt() {
        let mut map = Map::decode(&sample().encode().unwrap()).unwrap();
        map.remove("kind");
        map.insert("kind", "tape");
        let e = Claim::decode(&map.encode().unwrap()).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().contains("tape"));
    }

    #[test]
    fn names_round_trip_and_foreign_names_are_none() {
        let name = ClaimName { tag: WorkloadTag([1; 16]), time: sample().time, id: SnapshotId([2; 16]) };
        assert_eq!(ClaimName::parse(&name.claim()), Some((name, ClaimPart::Claim)));
        assert_eq!(ClaimName::parse(&name.decision()), Some((name, ClaimPart::Decision)));
        assert_eq!(ClaimName::parse(&name.intent()), Some((name, ClaimPart::Intent)));
        assert_eq!(ClaimName::parse(&name.revoke()), Some((name, ClaimPart::Revoke)));
        for bad in
            ["snapshots/x/claim", "snapshots/", &format!("{name}/claim/x"), &format!("{name}/other"), "packs/00/00"]
        {
            assert_eq!(ClaimName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn small_records_round_trip() {
        let claim = ClaimName { tag: WorkloadTag([1; 16]), time: sample().time, id: SnapshotId([2; 16]) };
        let forget = Forget { time: sample().time, claim };
        assert_eq!(Forget::decode(claim.id, &forget.encode().unwrap()).unwrap(), forget);
        for d in [Decision::Commit, Decision::Revoke] {
            assert_eq!(Decision::decode(&d.encode().unwrap()).unwrap(), d);
        }
        let condemned = Condemned { packs: vec![PackUid([1; 16]), PackUid([2; 16])], damaged: true };
        assert_eq!(Condemned::decode(&condemned.encode().unwrap()).unwrap(), condemned);
    }
}
