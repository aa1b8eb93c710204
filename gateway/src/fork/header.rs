//! What a fork is, as its file `fork` says it: canonical CBOR. Pure: bytes in, values out.
//!
//! Not here: files ([`super::folder`]), how keys are sealed. What holds: decoding never panics; each generation's key is sealed under
//! everything that stands here but the keys, so that a header whose fields were exchanged opens nothing.

use crate::{Error, Kind, Result};
use coffer_repo::cbor::{Map, Value};
use coffer_repo::fork_key::WrappedForkKey;
use coffer_repo::id::RepoId;
use coffer_repo::snapshot::ClaimName;
use coffer_repo::time::Timestamp;
use std::collections::BTreeMap;

const VERSION: u64 = 1;

/// A fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkHeader {
    /// Whose point it is of.
    pub repo: RepoId,
    /// The point.
    pub point: ClaimName,
    /// Of what the point is.
    pub workload: String,
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its logical blocks, in bytes.
    pub block_size: u32,
    /// When the fork was made.
    pub created: Timestamp,
    /// What holds the point for it.
    pub pin: ClaimName,
    /// A pin that this one took the place of, and that may not have been ended yet.
    pub ending: Option<ClaimName>,
    /// What it was handed over to, and is no longer here.
    pub handed_to: Option<String>,
    /// Its layers by number, the lowest first, with their keys.
    pub keys: BTreeMap<u64, WrappedForkKey>,
}

impl ForkHeader {
    /// Everything but the keys.
    fn core(&self) -> Map {
        let core = Map::new()
            .with("v", VERSION)
            .with("repo", &self.repo.0)
            .with("point", self.point.to_string())
            .with("workload", self.workload.as_str())
            .with("disk", self.disk.as_str())
            .with("size", self.size)
            .with("block", self.block_size)
            .with("created", self.created.seconds())
            .with("pin", self.pin.to_string());
        let core = match &self.ending {
            Some(pin) => core.with("ending", pin.to_string()),
            None => core,
        };
        match &self.handed_to {
            Some(target) => core.with("handed_to", target.as_str()),
            None => core,
        }
    }

    /// What the key of a generation is sealed under.
    pub fn binding(&self, generation: u64) -> Result<Vec<u8>> {
        self.core().with("generation", generation).encode()
    }

    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let key = |(number, key): (&u64, &WrappedForkKey)| key.to_map().with("generation", *number).into();
        let keys: Vec<Value> = self.keys.iter().map(key).collect();
        self.core().with("keys", keys).encode()
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let map = Map::decode(bytes)?;
        let version = map.uint("v")?;
        if version != VERSION {
            let why = format!("a fork of version {version}, which this version does not know");
            return Err(Error::new(Kind::Unsupported, why));
        }
        let claim = |name: &str| {
            let claim = ClaimName::parse(&format!("{name}/claim")).map(|(claim, _)| claim);
            claim.ok_or_else(|| Error::corrupt(format!("'{name}' is no claim")))
        };
        let mut keys = BTreeMap::new();
        for value in map.list("keys")? {
            let Value::Map(map) = value else { return Err(Error::corrupt("a fork's key is not a map")) };
            let last = keys.last_key_value().map_or(0, |(last, _)| *last);
            let number = map.uint("generation")?;
            if number <= last {
                return Err(Error::corrupt("a fork's layers are out of order"));
            }
            keys.insert(number, WrappedForkKey::from_map(map)?);
        }
        if keys.is_empty() {
            return Err(Error::corrupt("a fork without keys"));
        }
        Ok(ForkHeader {
            repo: RepoId(map.array_of("repo")?),
            point: claim(map.text("point")?)?,
            workload: map.text("workload")?.to_owned(),
            disk: map.text("disk")?.to_owned(),
            size: map.uint("size")?,
            block_size: map.u32("block")?,
            created: Timestamp::from_seconds(map.uint("created")?)?,
            pin: claim(map.text("pin")?)?,
            ending: map.opt_text("ending")?.map(claim).transpose()?,
            handed_to: map.opt_text("handed_to")?.map(str::to_owned),
            keys,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_repo::id::{RecipientId, SnapshotId, WorkloadTag};

    fn sample() -> ForkHeader {
        let time = Timestamp::from_seconds(1_795_226_400).unwrap();
        let claim = |id| ClaimName { tag: WorkloadTag([1; 16]), time, id: SnapshotId([id; 16]) };
        ForkHeader {
            repo: RepoId([3; 16]),
            point: claim(1),
            workload: "web".into(),
            disk: "vda".into(),
            size: 1 << 40,
            block_size: 512,
            created: time,
            pin: claim(2),
            ending: Some(claim(3)),
            handed_to: Some("/dev/vg/web".into()),
            keys: [(2, key()), (5, key())].into(),
        }
    }

    fn key() -> WrappedForkKey {
        WrappedForkKey { recipient: RecipientId([4; 16]), sealed: vec![5; 80] }
    }

    #[test]
    fn headers_round_trip_and_no_cut_of_one_is_one() {
        let bytes = sample().encode().unwrap();
        assert_eq!(ForkHeader::decode(&bytes).unwrap(), sample());
        for cut in 0..bytes.len() {
            assert!(ForkHeader::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        let simple = ForkHeader { ending: None, handed_to: None, ..sample() };
        assert_eq!(ForkHeader::decode(&simple.encode().unwrap()).unwrap(), simple);
        for keys in [BTreeMap::new(), [(0, key())].into()] {
            assert!(ForkHeader::decode(&ForkHeader { keys, ..sample() }.encode().unwrap()).is_err());
        }
    }

    #[test]
    fn a_key_is_bound_to_every_field_and_its_generation() {
        let binding = sample().binding(1).unwrap();
        assert_ne!(binding, sample().binding(2).unwrap());
        let other = ForkHeader { disk: "vdb".into(), ..sample() };
        assert_ne!(binding, other.binding(1).unwrap());
        assert_ne!(binding, ForkHeader { ending: None, ..sample() }.binding(1).unwrap());
        assert_ne!(binding, ForkHeader { handed_to: None, ..sample() }.binding(1).unwrap());
        let more = ForkHeader { keys: [(1, key())].into(), ..sample() };
        assert_eq!(binding, more.binding(1).unwrap());
    }
}
