//! Key slots: a key bundle wrapped by a passphrase or a key file (FORMAT.md section 3).
//!
//! Not here: asking for a passphrase, reading `keys/` from a store, choosing among slots. What holds: damage is told from a
//! wrong passphrase (`Corrupt` against `WrongKey`); a slot cannot make the reader spend more than [`PassphraseCost::MOST`];
//! the key that seals a slot seals nothing else, since its salt is fresh.

use crate::cbor::Map;
use crate::crypto::{Key32, Secret, hkdf};
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::id::{RecipientId, SlotId, parse_hex, write_hex};
use crate::keys::Keys;
use crate::time::Timestamp;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

const SLOT_VERSION: u64 = 1;
const SLOT_LABEL: &[u8] = b"coffer v1 key slot";
const KEY_FILE_LABEL: &[u8] = b"coffer v1 key file";
const KEY_FILE_PREFIX: &str = "coffer-key-1:";
const DIGEST_LEN: usize = blake3::OUT_LEN;
/// No slot is longer: a bundle of hundreds of data keys fits.
const MAX_LEN: usize = 64 << 10;

/// What opens a slot.
#[derive(Clone)]
pub enum Credential {
    /// A passphrase: its UTF-8 bytes as they were typed.
    Passphrase(Zeroizing<String>),
    /// The key in a key file.
    KeyFile(Key32),
}

impl Credential {
    /// A key file's credential from the file's text; `Invalid` when it is none. The text is never repeated in the error.
    pub fn from_key_file(text: &str) -> Result<Self> {
        let mut key = Secret::new([0; 32]);
        text.strip_suffix('\n')
            .unwrap_or(text)
            .strip_prefix(KEY_FILE_PREFIX)
            .and_then(|digits| parse_hex(digits, key.expose_mut()))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "not a key file: its one line is '{KEY_FILE_PREFIX}' and 64 lower-case hex digits"
                ))
            })?;
        Ok(Credential::KeyFile(key))
    }

    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Credential::Passphrase(_) => "passphrase",
            Credential::KeyFile(_) => "key file",
        }
    }
}

/// The text of a key file that holds `key`.
pub fn key_file(key: &Key32) -> Result<Zeroizing<String>> {
    // Room for all of it, so that growing leaves no copies behind.
    let mut text = Zeroizing::new(String::with_capacity(128));
    text.push_str(KEY_FILE_PREFIX);
    write_hex(&mut *text, key.expose()).map_err(|_| Error::internal("hex could not be written to memory"))?;
    text.push('\n');
    Ok(text)
}

/// What one guess of a passphrase costs: Argon2id's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassphraseCost {
    /// Memory in KiB, at least 8 for each lane.
    pub memory_kib: u32,
    /// Passes over the memory, at least 1.
    pub passes: u32,
    /// Lanes, at least 1.
    pub lanes: u32,
}

impl PassphraseCost {
    /// The most that a slot may ask for: as much memory as RFC 9106's first recommendation, which its second is for
    /// machines without. A slot is read before anything about it is known to be genuine, so that more would let whoever can
    /// write to the store exhaust whoever opens the repository.
    pub const MOST: PassphraseCost = PassphraseCost { memory_kib: 2 << 20, passes: 16, lanes: 16 };

    fn check(self) -> Option<Params> {
        let most = PassphraseCost::MOST;
        if self.memory_kib > most.memory_kib || self.passes > most.passes || self.lanes > most.lanes {
            return None;
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }
}

impl Default for PassphraseCost {
    /// RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes. The first one (2 GiB) does not fit the small machines
    /// that backups must be restored on; this is above OWASP's minimum of 46 MiB and 1 pass.
    fn default() -> Self {
        PassphraseCost { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

/// What goes with a new slot.
#[derive(Clone, Debug)]
pub struct SlotOptions {
    /// Whose it is, for people; not secret.
    pub label: String,
    /// Now.
    pub created: Timestamp,
    /// For a passphrase.
    pub cost: PassphraseCost,
}

/// How a slot is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// By a passphrase, at this cost.
    Passphrase(PassphraseCost),
    /// By a key file.
    KeyFile,
    /// In a way that this version does not know.
    Unknown(String),
}

/// What can be said of a slot without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSummary {
    /// Its name.
    pub slot: SlotId,
    /// How it is locked.
    pub kind: SlotKind,
    /// Whether it opens a full bundle, and not a writer's.
    pub full: bool,
    /// The newest data key in it; `None` for a repository's first.
    pub recipient: Option<RecipientId>,
    /// Whose it is.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
}

/// Prefix of all key slots.
pub const PREFIX: &str = "keys/";

/// The name of the object that is the slot.
#[must_use]
pub fn object_name(slot: SlotId) -> String {
    format!("{PREFIX}{slot}")
}

/// The bytes of the new slot `slot`, which gives `keys` to whoever has `credential`.
pub fn seal_slot(
    keys: &Keys,
    credential: &Credential,
    slot: SlotId,
    options: &SlotOptions,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>> {
    let salt = fresh::<32>(entropy)?;
    let mut map = Map::new()
        .with("v", SLOT_VERSION)
        .with("bundle", if keys.is_full() { "full" } else { "writer" })
        .with("label", options.label.as_str())
        .with("created", options.created.seconds())
        .with("salt", &salt);
    if let Some(recipient) = keys.newest_recipient() {
        map.insert("recipient", &recipient.0);
    }
    let kek = match credential {
        Credential::Passphrase(passphrase) => {
            let cost = options.cost;
            let params = cost.check().ok_or_else(|| {
                Error::invalid(format!("{cost:?} is outside Argon2id's limits or above {:?}", PassphraseCost::MOST))
            })?;
            map.insert("kind", "passphrase");
            map.insert("m", cost.memory_kib);
            map.insert("t", cost.passes);
            map.insert("p", cost.lanes);
            stretch(passphrase, &salt, params)?
        }
        Credential::KeyFile(key) => {
            map.insert("kind", "keyfile");
            hkdf(&salt, key, &[KEY_FILE_LABEL])?
        }
    };
    let mut sealed = keys.encode()?;
    let tag = slot_key(&kek)?
        .seal_in_place_separate_tag(nonce(), aad(slot, &map)?, &mut sealed)
        .map_err(|_| Error::internal("a key slot cannot be sealed"))?;
    map.insert("sealed", [sealed.as_slice(), tag.as_ref()].concat());
    let mut bytes = map.encode()?;
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    if bytes.len() > MAX_LEN {
        return Err(Error::invalid(format!("a key slot of more than {MAX_LEN} bytes; use a shorter label")));
    }
    Ok(bytes)
}

/// The keys in the slot `slot`, opened by `credential`. `WrongKey` when the slot is for another passphrase or key file.
pub fn open_slot(slot: SlotId, bytes: &[u8], credential: &Credential) -> Result<Keys> {
    let (summary, mut map) = parse(slot, bytes)?;
    let wrong = |why: &str| Error::new(Kind::WrongKey, format!("key slot {slot} ('{}') {why}", summary.label));
    let within = |e: Error| e.within(format!("key slot {slot}"));
    let salt = map.array_of::<32>("salt").map_err(within)?;
    let kek = match (&summary.kind, credential) {
        (SlotKind::Passphrase(cost), Credential::Passphrase(passphrase)) => {
            let params = cost.check().ok_or_else(|| {
                within(Error::corrupt(format!(
                    "{cost:?} is not what coffer writes: at most {:?}",
                    PassphraseCost::MOST
                )))
            })?;
            stretch(passphrase, &salt, params)?
        }
        (SlotKind::KeyFile, Credential::KeyFile(key)) => hkdf(&salt, key, &[KEY_FILE_LABEL])?,
        (SlotKind::Unknown(kind), _) => {
            let why = format!("key slot {slot} is of kind '{kind}', which this version does not know");
            return Err(Error::new(Kind::Unsupported, why));
        }
        (SlotKind::Passphrase(_) | SlotKind::KeyFile, _) => {
            return Err(wrong(&format!("does not open with a {}", credential.noun())));
        }
    };
    let mut sealed = Zeroizing::new(map.bytes("sealed").map_err(within)?.to_vec());
    map.remove("sealed");
    let bundle = slot_key(&kek)?
        .open_in_place(nonce(), aad(slot, &map)?, &mut sealed)
        .map_err(|_| wrong(&format!("is not for this {}", credential.noun())))?;
    let keys = Keys::decode(bundle).map_err(within)?;
    if keys.is_full() != summary.full {
        return Err(within(Error::corrupt("the bundle in it is not of the kind it names")));
    }
    if keys.newest_recipient() != summary.recipient {
        return Err(within(Error::corrupt("the newest data key in it is not the one it names")));
    }
    Ok(keys)
}

/// What can be said of the slot `slot` without opening it.
pub fn summarise(slot: SlotId, bytes: &[u8]) -> Result<SlotSummary> {
    parse(slot, bytes).map(|(summary, _)| summary)
}

/// Checks a slot for damage and reads what is not secret; gives its map as well.
fn parse(slot: SlotId, bytes: &[u8]) -> Result<(SlotSummary, Map)> {
    let damaged = || Error::corrupt(format!("key slot {slot} is damaged"));
    if bytes.len() > MAX_LEN {
        return Err(damaged());
    }
    let (map, digest) = bytes.split_last_chunk::<DIGEST_LEN>().ok_or_else(damaged)?;
    if blake3::hash(map).as_bytes() != digest {
        return Err(damaged());
    }
    summary(slot, map).map_err(|e| e.within(format!("key slot {slot}")))
}

fn summary(slot: SlotId, bytes: &[u8]) -> Result<(SlotSummary, Map)> {
    let map = Map::decode(bytes)?;
    let version = map.uint("v")?;
    if version != SLOT_VERSION {
        let why = format!("version {version}, which this version of coffer does not know");
        return Err(Error::new(Kind::Unsupported, why));
    }
    let kind = match map.text("kind")? {
        "passphrase" => SlotKind::Passphrase(PassphraseCost {
            memory_kib: map.u32("m")?,
            passes: map.u32("t")?,
            lanes: map.u32("p")?,
        }),
        "keyfile" => SlotKind::KeyFile,
        other => SlotKind::Unknown(other.to_owned()),
    };
    let created = Timestamp::from_seconds(map.uint("created")?)?;
    let full = match map.text("bundle")? {
        "full" => true,
        "writer" => false,
        other => return Err(Error::new(Kind::Unsupported, format!("a bundle of kind '{other}'; use a newer coffer"))),
    };
    let recipient = map.opt_bytes("recipient")?.map(RecipientId::from_slice).transpose()?;
    Ok((SlotSummary { slot, kind, full, recipient, label: map.text("label")?.to_owned(), created }, map))
}

/// Argon2id: the key of a slot from a passphrase.
fn stretch(passphrase: &str, salt: &[u8; 32], params: Params) -> Result<Key32> {
    let mut blocks: Vec<Block> = Vec::new();
    blocks.try_reserve_exact(params.block_count()).map_err(|e| {
        let why = format!("a passphrase of this slot takes {} KiB of memory", params.m_cost());
        Error::new(Kind::Full, why).with_source(e)
    })?;
    blocks.resize(params.block_count(), Block::default());
    let mut key = Secret::new([0; 32]);
    let stretched = Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into_with_memory(
        passphrase.as_bytes(),
        salt,
        key.expose_mut(),
        &mut blocks,
    );
    blocks.iter_mut().for_each(Zeroize::zeroize);
    stretched.map_err(|e| Error::internal("Argon2id failed").with_source(e.to_string()))?;
    Ok(key)
}

fn slot_key(kek: &Key32) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, kek.expose())
        .map(LessSafeKey::new)
        .map_err(|_| Error::internal("the cipher refused a key of 32 bytes"))
}

/// Zero: the key seals once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// What the slot's tag vouches for beside the bundle: all of the slot.
fn aad(slot: SlotId, map_without_sealed: &Map) -> Result<Aad<Vec<u8>>> {
    Ok(Aad::from([SLOT_LABEL, &slot.0, &map_without_sealed.encode()?].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor::Value;
    use crate::entropy::Seeded;
    use crate::id::RepoId;

    const SLOT: SlotId = SlotId([4; 16]);
    const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 8, passes: 1, lanes: 1 };

    fn keys() -> Keys {
        Keys::generate(RepoId([3; 16]), &Seeded::new(1)).unwrap()
    }

    fn passphrase(text: &str) -> Credential {
        Credential::Passphrase(Zeroizing::new(text.to_owned()))
    }

    fn options(cost: PassphraseCost) -> SlotOptions {
        SlotOptions { label: "owner".into(), created: Timestamp::from_seconds(1_795_226_400).unwrap(), cost }
    }

    fn seal(credential: &Credential) -> Vec<u8> {
        seal_slot(&keys(), credential, SLOT, &options(CHEAP), &Seeded::new(2)).unwrap()
    }

    /// The slot with its map changed and its digest made right again: forged, not damaged.
    fn forge(bytes: &[u8], change: impl FnOnce(&mut Map)) -> Vec<u8> {
        let mut map = Map::decode(&bytes[..bytes.len() - DIGEST_LEN]).unwrap();
        change(&mut map);
        digested(&map)
    }

    fn digested(map: &Map) -> Vec<u8> {
        let mut forged = map.encode().unwrap();
        let digest = blake3::hash(&forged);
        forged.extend_from_slice(digest.as_bytes());
        forged
    }

    #[test]
    fn what_was_sealed_opens_with_its_credential_only() {
        let file = Credential::KeyFile(Secret::new([6; 32]));
        for (right, wrong, other) in [
            (passphrase("sesame"), passphrase("sesamf"), Credential::KeyFile(Secret::new([6; 32]))),
            (file, Credential::KeyFile(Secret::new([7; 32])), passphrase("sesame")),
        ] {
            let bytes = seal(&right);
            assert_eq!(open_slot(SLOT, &bytes, &right).unwrap().encode().unwrap(), keys().encode().unwrap());
            for wrong in [wrong, other] {
                let error = open_slot(SLOT, &bytes, &wrong).unwrap_err();
                assert_eq!(error.kind(), Kind::WrongKey, "{error}");
                assert!(error.context().contains("owner"), "{error}");
            }
            let elsewhere = SlotId([5; 16]);
            assert_eq!(open_slot(elsewhere, &bytes, &right).unwrap_err().kind(), Kind::WrongKey);
        }
    }

    #[test]
    fn damage_is_told_from_a_wrong_passphrase() {
        let right = passphrase("sesame");
        let bytes = seal(&right);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_slot(SLOT, &flipped, &right).unwrap_err().kind(), Kind::Corrupt, "bit {bit}");
            assert_eq!(summarise(SLOT, &flipped).unwrap_err().kind(), Kind::Corrupt, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(open_slot(SLOT, &bytes[..cut], &right).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
        assert_eq!(open_slot(SLOT, &vec![0; MAX_LEN + 1], &right).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn every_part_of_a_slot_is_vouched_for() {
        let right = passphrase("sesame");
        let bytes = seal(&right);
        let changes: [(&str, Value); 7] = [
            ("bundle", "writer".into()),
            ("label", "mallory".into()),
            ("created", 1u64.into()),
            ("salt", (&[0u8; 32]).into()),
            ("m", 16u64.into()),
            ("t", 2u64.into()),
            ("extra", true.into()),
        ];
        for (key, value) in changes {
            let forged = forge(&bytes, |map| map.insert(key, value));
            assert_eq!(open_slot(SLOT, &forged, &right).unwrap_err().kind(), Kind::WrongKey, "{key}");
        }
    }

    #[test]
    fn a_hostile_slot_cannot_exhaust_the_host() {
        let right = passphrase("sesame");
        let bytes = seal(&right);
        for (key, value) in [
            ("m", u64::from(PassphraseCost::MOST.memory_kib) + 1),
            ("m", u64::from(u32::MAX)),
            ("m", u64::MAX),
            ("m", 0),
            ("t", u64::from(PassphraseCost::MOST.passes) + 1),
            ("t", 0),
            ("p", u64::from(PassphraseCost::MOST.lanes) + 1),
            ("p", 2),
            ("p", 0),
        ] {
            let forged = forge(&bytes, |map| map.insert(key, value));
            assert_eq!(open_slot(SLOT, &forged, &right).unwrap_err().kind(), Kind::Corrupt, "{key} {value}");
        }
        for cost in [PassphraseCost { memory_kib: 7, ..CHEAP }, PassphraseCost { passes: 17, ..CHEAP }] {
            let error = seal_slot(&keys(), &right, SLOT, &options(cost), &Seeded::new(2)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
        }
    }

    #[test]
    fn a_slot_holds_the_kind_of_bundle_that_it_names() {
        let key = Secret::new([6; 32]);
        let bytes = seal(&Credential::KeyFile(key.clone()));
        assert!(summarise(SLOT, &bytes).unwrap().full);
        // Made by somebody who has the key file: the tag is right, the name is not.
        let mut map = Map::decode(&bytes[..bytes.len() - DIGEST_LEN]).unwrap().with("bundle", "writer");
        map.remove("sealed");
        let kek = hkdf(&map.array_of::<32>("salt").unwrap(), &key, &[KEY_FILE_LABEL]).unwrap();
        let mut sealed = keys().encode().unwrap().to_vec();
        slot_key(&kek).unwrap().seal_in_place_append_tag(nonce(), aad(SLOT, &map).unwrap(), &mut sealed).unwrap();
        let error = open_slot(SLOT, &digested(&map.with("sealed", sealed)), &Credential::KeyFile(key)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.context().contains("not of the kind"), "{error}");
        assert_eq!(
            summarise(SLOT, &forge(&bytes, |map| map.insert("bundle", "odd"))).unwrap_err().kind(),
            Kind::Unsupported
        );
    }

    #[test]
    fn a_slot_names_its_newest_data_key_but_for_a_repositorys_first() {
        let right = passphrase("sesame");
        assert_eq!(summarise(SLOT, &seal(&right)).unwrap().recipient, None);
        let keys = keys().successor(2, &Seeded::new(3)).unwrap();
        let bytes = seal_slot(&keys, &right, SLOT, &options(CHEAP), &Seeded::new(2)).unwrap();
        let named = summarise(SLOT, &bytes).unwrap().recipient;
        assert!(named.is_some() && named == keys.newest_recipient());
        assert_eq!(open_slot(SLOT, &bytes, &right).unwrap().encode().unwrap(), keys.encode().unwrap());
        for change in [&[0; 16][..], &[0; 15]] {
            let forged = forge(&bytes, |map| map.insert("recipient", change));
            assert!(open_slot(SLOT, &forged, &right).is_err());
        }
    }

    #[test]
    fn the_default_cost_works() {
        let right = passphrase("sesame");
        let bytes = seal_slot(&keys(), &right, SLOT, &options(PassphraseCost::default()), &Seeded::new(2)).unwrap();
        open_slot(SLOT, &bytes, &right).unwrap();
        let cost = PassphraseCost { memory_kib: 65_536, passes: 3, lanes: 4 };
        assert_eq!(summarise(SLOT, &bytes).unwrap().kind, SlotKind::Passphrase(cost));
    }

    #[test]
    fn slots_of_later_kinds_are_listed_and_named() {
        let right = passphrase("sesame");
        let later = forge(&seal(&right), |map| map.insert("kind", "kms"));
        let summary = summarise(SLOT, &later).unwrap();
        assert_eq!((summary.kind, summary.label.as_str()), (SlotKind::Unknown("kms".into()), "owner"));
        let error = open_slot(SLOT, &later, &right).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.context().contains("'kms'"), "{error}");
        let newer = forge(&seal(&right), |map| map.insert("v", 2u64));
        assert_eq!(open_slot(SLOT, &newer, &right).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn key_files_have_one_spelling_and_are_never_repeated_in_errors() {
        let text = key_file(&Secret::new([0xab; 32])).unwrap();
        assert_eq!(text.as_str(), format!("coffer-key-1:{}\n", "ab".repeat(32)));
        let Credential::KeyFile(key) = Credential::from_key_file(&text).unwrap() else { panic!("no key file") };
        assert_eq!(key.expose(), &[0xab; 32]);
        let digits = "ab".repeat(32);
        for bad in [
            String::new(),
            digits.clone(),
            format!("coffer-key-2:{digits}\n"),
            format!("coffer-key-1:{}\n", "AB".repeat(32)),
            format!("coffer-key-1:{digits}ab\n"),
            format!("coffer-key-1:{}\n", &digits[1..]),
            format!("coffer-key-1:{digits}\n\n"),
        ] {
            let error = Credential::from_key_file(&bad).err().unwrap();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(!error.context().contains(&digits[..8]), "{error}");
        }
    }
}
