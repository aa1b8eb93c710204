//! The descriptor, object `repo`: what was decided for a repository when it was made (FORMAT.md section 2).
//!
//! Not here: storage, the objects under `features/` ([`crate::features`]). What holds: nothing of a descriptor is acted
//! on before the signature of the key bundle's authority over all of it was checked, but for refusing a format that this
//! version does not know; parameters that come out of it are ones that this version can work with.

use crate::cbor::Map;
use crate::chunker::{DiskParams, StreamParams};
use crate::crypto::{Aead, SIGNATURE_LEN};
use crate::error::{Error, Kind, Result};
use crate::features::{Access, FeatureBits};
use crate::keys::Keys;
use crate::time::Timestamp;

/// Name of the object.
pub const OBJECT_NAME: &str = "repo";

const MAGIC: &[u8; 8] = b"COFFER\r\n";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
/// Magic, versions, feature bits, length of the body.
const HEADER_LEN: usize = 28;
const LABEL: &[u8] = b"coffer v1 descriptor";
const DISK_ALGORITHM: &str = "aligned-cdc-1";
const STREAM_ALGORITHM: &str = "fastcdc-2020";
/// Entries of a disk-map node.
const FANOUT: u64 = 256;

/// What was decided when the repository was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// When that was.
    pub created: Timestamp,
    /// The cipher of new objects.
    pub aead: Aead,
    /// How disks are cut.
    pub disk: DiskParams,
    /// How streams are cut.
    pub stream: StreamParams,
}

impl Descriptor {
    /// The object's bytes, signed by the authority: `keys` must be a full bundle, else `WrongKey`.
    pub fn encode(&self, keys: &Keys) -> Result<Vec<u8>> {
        if !keys.is_full() {
            return Err(Error::new(Kind::WrongKey, "a repository is made with a full key bundle only"));
        }
        self.disk.validate()?;
        self.stream.validate()?;
        sign(keys, FeatureBits::default(), &self.body(keys).encode()?)
    }

    /// Whether `bytes` are a descriptor of a format that this version knows, as far as that can be said before a key was found:
    /// so that a newer format is not taken for a wrong passphrase. `Corrupt` or `Unsupported` when not.
    pub fn check_format(bytes: &[u8]) -> Result<()> {
        Parts::parse(bytes)?.bits.access("this repository").map(drop)
    }

    /// The descriptor in `bytes`, and what this version may do with the repository. `Corrupt` unless the authority of `keys`
    /// signed it for the repository of `keys`; `Unsupported` when it asks for what this version does not know.
    pub fn decode(keys: &Keys, bytes: &[u8]) -> Result<(Self, Access)> {
        let (bits, body) = verify(keys, bytes)?;
        let access = bits.access("this repository")?;
        let descriptor = Map::decode(body)
            .and_then(|body| Descriptor::from_body(keys, &body))
            .map_err(|e| e.within(format!("descriptor '{OBJECT_NAME}'")))?;
        Ok((descriptor, access))
    }

    fn body(&self, keys: &Keys) -> Map {
        let DiskParams { block, min, mean, max, window } = self.disk;
        let disk = Map::new()
            .with("algorithm", DISK_ALGORITHM)
            .with("block", block)
            .with("min", min)
            .with("mean", mean)
            .with("max", max)
            .with("window", window);
        let StreamParams { min, mean, max } = self.stream;
        let stream =
            Map::new().with("algorithm", STREAM_ALGORITHM).with("min", min).with("mean", mean).with("max", max);
        Map::new()
            .with("repo", &keys.repo().0)
            .with("created", self.created.seconds())
            .with("authority", keys.authority().as_bytes())
            .with("aead", u32::from(self.aead.byte()))
            .with("disk", disk)
            .with("stream", stream)
            .with("fanout", FANOUT)
    }

    fn from_body(keys: &Keys, body: &Map) -> Result<Self> {
        if body.bytes("repo")? != keys.repo().0 || body.bytes("authority")? != keys.authority().as_bytes() {
            return Err(Error::corrupt("it names another repository or authority than the key bundle"));
        }
        let fanout = body.uint("fanout")?;
        if fanout != FANOUT {
            return Err(unsupported("disk maps with a fan-out of", &fanout.to_string()));
        }
        let aead = body.uint("aead")?;
        let aead = u8::try_from(aead)
            .ok()
            .and_then(|byte| Aead::from_byte(byte).ok())
            .ok_or_else(|| unsupported("cipher", &aead.to_string()))?;
        let disk = algorithm(body.map("disk")?, DISK_ALGORITHM)?;
        let disk = DiskParams {
            block: disk.u32("block")?,
            min: disk.u32("min")?,
            mean: disk.u32("mean")?,
            max: disk.u32("max")?,
            window: disk.uint("window")?,
        };
        let stream = algorithm(body.map("stream")?, STREAM_ALGORITHM)?;
        let stream = StreamParams { min: stream.u32("min")?, mean: stream.u32("mean")?, max: stream.u32("max")? };
        disk.validate().and_then(|()| stream.validate()).map_err(unusable)?;
        Ok(Descriptor { created: Timestamp::from_seconds(body.uint("created")?)?, aead, disk, stream })
    }
}

/// The parameters in `map`, if they are those of the one algorithm this version knows.
fn algorithm<'a>(map: &'a Map, known: &str) -> Result<&'a Map> {
    let algorithm = map.text("algorithm")?;
    if algorithm == known { Ok(map) } else { Err(unsupported("chunking algorithm", &format!("'{algorithm}'"))) }
}

fn unsupported(what: &str, which: &str) -> Error {
    let version = env!("CARGO_PKG_VERSION");
    Error::new(
        Kind::Unsupported,
        format!("{what} {which}, which this version ({version}) does not know; use a newer coffer"),
    )
}

/// Parameters out of range are the caller's mistake in general; out of a store they are damage.
fn unusable(error: Error) -> Error {
    if error.kind() == Kind::Invalid { error.with_kind(Kind::Corrupt) } else { error }
}

fn sign(keys: &Keys, bits: FeatureBits, body: &[u8]) -> Result<Vec<u8>> {
    let body_len = u32::try_from(body.len()).map_err(|_| Error::internal("a descriptor of over 4 GiB"))?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len() + SIGNATURE_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&MAJOR.to_le_bytes());
    bytes.extend_from_slice(&MINOR.to_le_bytes());
    bytes.extend_from_slice(&bits.encode());
    bytes.extend_from_slice(&body_len.to_le_bytes());
    bytes.extend_from_slice(body);
    let signature = keys.signer().sign(&[LABEL, &bytes]);
    bytes.extend_from_slice(&signature);
    Ok(bytes)
}

/// Checks magic, version and signature; gives the feature bits and the body.
fn verify<'a>(keys: &Keys, bytes: &'a [u8]) -> Result<(FeatureBits, &'a [u8])> {
    let parts = Parts::parse(bytes)?;
    keys.authority()
        .verify(&[LABEL, parts.signed], parts.signature)
        .map_err(|e| e.within("the descriptor is damaged, or another repository's"))?;
    Ok((parts.bits, parts.body))
}

/// A descriptor taken apart, its signature unchecked.
struct Parts<'a> {
    bits: FeatureBits,
    body: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8; SIGNATURE_LEN],
}

impl<'a> Parts<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let damaged = |why: &str| Error::corrupt(format!("descriptor '{OBJECT_NAME}' {why}"));
        let truncated = || damaged("is truncated");
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(truncated)?;
        if magic != MAGIC {
            return Err(damaged("is not one of a Coffer repository"));
        }
        let (major, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
        let major = u16::from_le_bytes(*major);
        if major != MAJOR {
            return Err(unsupported("repository format", &major.to_string()));
        }
        // A larger minor version only adds keys that may be ignored.
        let (_minor, rest) = rest.split_first_chunk::<2>().ok_or_else(truncated)?;
        let (bits, rest) = rest.split_first_chunk::<{ FeatureBits::LEN }>().ok_or_else(truncated)?;
        let (body_len, rest) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let (body, signature) = rest.split_last_chunk::<SIGNATURE_LEN>().ok_or_else(truncated)?;
        if usize::try_from(u32::from_le_bytes(*body_len)) != Ok(body.len()) {
            return Err(damaged("is truncated, or longer than it says"));
        }
        let signed = bytes.strip_suffix(signature).ok_or_else(truncated)?;
        Ok(Parts { bits: FeatureBits::decode(bits), body, signed, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Seeded;
    use crate::id::RepoId;

    fn keys() -> Keys {
        Keys::generate(RepoId([3; 16]), &Seeded::new(1)).unwrap()
    }

    fn descriptor() -> Descriptor {
        Descriptor {
            created: Timestamp::from_seconds(1_795_226_400).unwrap(),
            aead: Aead::ChaCha20Poly1305,
            disk: DiskParams::default(),
            stream: StreamParams::default(),
        }
    }

    /// What a descriptor signed by the authority with this body gives.
    fn decode_body(keys: &Keys, body: &Map) -> Result<(Descriptor, Access)> {
        Descriptor::decode(keys, &sign(keys, FeatureBits::default(), &body.encode().unwrap()).unwrap())
    }

    #[test]
    fn round_trip_with_either_bundle() {
        let keys = keys();
        let (writer, _) = keys.export_writer("w", descriptor().created, &Seeded::new(2)).unwrap();
        let bytes = descriptor().encode(&keys).unwrap();
        assert_eq!(Descriptor::decode(&keys, &bytes).unwrap(), (descriptor(), Access::ReadWrite));
        assert_eq!(Descriptor::decode(&writer, &bytes).unwrap(), (descriptor(), Access::ReadWrite));
        assert_eq!(descriptor().encode(&writer).unwrap_err().kind(), Kind::WrongKey);
    }

    #[test]
    fn flips_truncations_and_additions_are_refused() {
        let keys = keys();
        let bytes = descriptor().encode(&keys).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Another major version may sign in another way: it is refused by its number.
            let due = if (8..10).contains(&(bit / 8)) { Kind::Unsupported } else { Kind::Corrupt };
            assert_eq!(Descriptor::decode(&keys, &flipped).unwrap_err().kind(), due, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Descriptor::decode(&keys, &bytes[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
        assert_eq!(Descriptor::decode(&keys, &[&bytes[..], &[0]].concat()).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn another_authority_or_repository_is_refused() {
        let keys = keys();
        let other = Keys::generate(keys.repo(), &Seeded::new(9)).unwrap();
        let error = Descriptor::decode(&other, &descriptor().encode(&keys).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        for key in ["repo", "authority"] {
            let mut body = descriptor().body(&keys);
            let Some(crate::cbor::Value::Bytes(mut bytes)) = body.remove(key) else { panic!("no {key}") };
            bytes[0] ^= 1;
            assert_eq!(decode_body(&keys, &body.with(key, bytes)).unwrap_err().kind(), Kind::Corrupt, "{key}");
        }
    }

    #[test]
    fn unknown_feature_bits_are_named() {
        let keys = keys();
        let body = descriptor().body(&keys).encode().unwrap();
        let decode = |bits| Descriptor::decode(&keys, &sign(&keys, bits, &body).unwrap());
        let none = FeatureBits::default();
        let refused = decode(FeatureBits { incompat: 1 << 5, ..none }).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.context().contains("this repository needs feature incompat bit 5"), "{refused}");
        let (_, access) = decode(FeatureBits { ro_compat: 4, ..none }).unwrap();
        assert!(matches!(access, Access::ReadOnly(why) if why.contains("ro_compat bit 2")));
        assert_eq!(decode(FeatureBits { compat: 4, ..none }).unwrap().1, Access::ReadWrite);
    }

    #[test]
    fn a_newer_format_is_told_before_a_key_is_found() {
        let keys = keys();
        let body = descriptor().body(&keys).encode().unwrap();
        let check = |bits| Descriptor::check_format(&sign(&keys, bits, &body).unwrap());
        check(FeatureBits { ro_compat: 1, compat: 1, ..FeatureBits::default() }).unwrap();
        let refused = check(FeatureBits { incompat: 2, ..FeatureBits::default() }).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.context().contains("incompat bit 1"), "{refused}");
        let bytes = descriptor().encode(&keys).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(Descriptor::check_format(&bytes[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
        let newer = [&bytes[..8], &[2], &bytes[9..]].concat();
        let refused = Descriptor::check_format(&newer).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.context().contains("repository format 2"), "{refused}");
    }

    #[test]
    fn unknown_keys_are_ignored_and_unknown_choices_named() {
        let keys = keys();
        let body = descriptor().body(&keys);
        assert_eq!(decode_body(&keys, &body.clone().with("later", 1u64)).unwrap().0, descriptor());
        let disk = body.map("disk").unwrap().clone();
        let stream = body.map("stream").unwrap().clone();
        for (changed, kind, named) in [
            (body.clone().with("aead", 3u64), Kind::Unsupported, "cipher 3"),
            (body.clone().with("aead", 258u64), Kind::Unsupported, "cipher 258"),
            (body.clone().with("fanout", 128u64), Kind::Unsupported, "128"),
            (body.clone().with("disk", disk.clone().with("algorithm", "new-2")), Kind::Unsupported, "'new-2'"),
            (body.clone().with("stream", stream.clone().with("algorithm", "s-3")), Kind::Unsupported, "'s-3'"),
            (body.clone().with("disk", disk.clone().with("block", 512u64)), Kind::Unsupported, "512"),
            (body.clone().with("disk", disk.with("max", 4096u64)), Kind::Corrupt, "max: 4096"),
            (body.clone().with("stream", stream.with("min", 0u64)), Kind::Corrupt, "min: 0"),
            (body.clone().with("created", u64::MAX), Kind::Corrupt, "year 9999"),
            (body.clone().with("created", "now"), Kind::Corrupt, "'created'"),
        ] {
            let error = decode_body(&keys, &changed).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.context().contains(named), "{error}");
        }
        let mut without = body;
        without.remove("aead");
        assert!(decode_body(&keys, &without).unwrap_err().context().contains("'aead' is missing"));
    }

    #[test]
    fn parameters_that_no_version_could_work_with_are_not_written() {
        let bad = Descriptor { disk: DiskParams { min: 0, ..DiskParams::default() }, ..descriptor() };
        assert_eq!(bad.encode(&keys()).unwrap_err().kind(), Kind::Invalid);
    }
}
