//! Parity of a pack, `parity/<hh>/<uid>` (FORMAT.md section 5.1): Reed-Solomon 64+4 over the whole object, and a hash of every
//! shard, so that damage is known to be an erasure.
//!
//! ```text
//!   pack    | shard 0 | shard 1 | ... | shard 63, short or absent |        any 4 of the 68 shards may be lost
//!   parity  | header | hashes of the shards | hash of all that | parity shards 0 to 3 |
//! ```
//!
//! Not here: I/O and when to repair ([`crate::detour`]). Pure: bytes in, bytes out. What holds: what is repaired has the hashes
//! that the parity object gives, and is believed no more than any other bytes: frames are authenticated and ids checked after it.
//! So the hashes need no key, whoever forges an object gains nothing, and a program without keys can repair a store. Besides its
//! input and output, neither direction takes more than 5 MiB, and the tables of the code once 9 MiB.

use crate::cursor::Cursor;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use std::ops::Range;

/// Prefix of all parity objects.
pub const PREFIX: &str = "parity/";
/// Longest pack that has parity, in bytes: what a reader would hold in memory to repair it.
pub const PACK_MAX: usize = 128 << 20;

/// Longest parity object, in bytes.
pub const OBJECT_MAX: usize = PARITY * PACK_MAX / DATA + HEAD + HASH * (DATA + PARITY + 1);

/// Shards that a pack is cut into, at most: those beyond its end are zero, and not stored.
const DATA: usize = 64;
/// Parity shards, each as long as a whole data shard.
const PARITY: usize = 4;
/// Shortest shard, in bytes. A lost sector of 4 KiB, which begins at a multiple of its size, then hits four shards at most.
const SHARD_MIN: usize = 1024;
/// Shard lengths are multiples of it: the code works on blocks of so many bytes.
const SHARD_STEP: usize = 64;
/// Columns that are worked on at a time, in bytes of a shard.
const STRIP: usize = 16 << 10;

const MAGIC: [u8; 8] = *b"CFPRTY\r\n";
const MAJOR: u16 = 1;
const HASH: usize = 16;
/// Bytes before the hashes.
const HEAD: usize = 48;

type Hash = [u8; HASH];

/// The name of the parity object of a pack.
#[must_use]
pub fn name(pack: PackUid) -> String {
    let [first, ..] = pack.0;
    format!("{PREFIX}{first:02x}/{pack}")
}

/// The pack of a parity object's name, `None` when it is not spelt as [`name`] spells it.
#[must_use]
pub fn parse_name(object: &str) -> Option<PackUid> {
    let (_, pack) = object.strip_prefix(PREFIX)?.split_once('/')?;
    let pack = pack.parse().ok()?;
    (name(pack) == object).then_some(pack)
}

/// How a pack is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    pack_len: usize,
    shard_len: usize,
}

impl Cut {
    /// The one cut of a pack of this length.
    fn of(pack_len: usize) -> Self {
        let shard_len = pack_len.div_ceil(DATA).next_multiple_of(SHARD_STEP).max(SHARD_MIN);
        Cut { pack_len, shard_len }
    }

    /// How many shards have bytes.
    fn shards(self) -> usize {
        self.pack_len.div_ceil(self.shard_len)
    }

    /// The bytes of shard `i`, empty beyond the pack's end.
    fn shard(self, i: usize) -> Range<usize> {
        let end = |n: usize| n.saturating_mul(self.shard_len).min(self.pack_len);
        end(i)..end(i + 1)
    }

    /// The columns, strip by strip, as ranges within a shard.
    fn strips(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.shard_len).step_by(STRIP).map(move |at| at..(at + STRIP).min(self.shard_len))
    }

    /// The columns `strip` of shard `i` of `pack`, filled up with zeroes in `scratch` where the shard ends within.
    fn columns<'a>(self, pack: &'a [u8], i: usize, strip: &Range<usize>, scratch: &'a mut [u8]) -> Result<&'a [u8]> {
        let shard = pack.get(self.shard(i)).ok_or_else(|| wrong_shard(i))?;
        let there = shard.get(strip.start.min(shard.len())..strip.end.min(shard.len())).unwrap_or_default();
        if there.len() == strip.len() {
            return Ok(there);
        }
        let scratch = scratch.get_mut(..strip.len()).ok_or_else(|| wrong_shard(i))?;
        let (front, rest) = scratch.split_at_mut_checked(there.len()).ok_or_else(|| wrong_shard(i))?;
        front.copy_from_slice(there);
        rest.fill(0);
        Ok(scratch)
    }
}

fn wrong_shard(i: usize) -> Error {
    Error::internal(format!("shard {i} of a pack lies outside of it"))
}

fn failed(e: reed_solomon_simd::Error) -> Error {
    Error::internal("computing parity").with_source(e)
}

fn hash(bytes: &[u8]) -> Hash {
    let mut out = Hash::default();
    blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut out);
    out
}

/// The parity object of the whole pack object `pack`. `Invalid` beyond [`PACK_MAX`].
pub fn encode(kind: PackKind, uid: PackUid, pack: &[u8]) -> Result<Vec<u8>> {
    if pack.is_empty() || pack.len() > PACK_MAX {
        return Err(Error::invalid(format!("a pack of {} bytes has no parity", pack.len())));
    }
    let cut = Cut::of(pack.len());
    let mut shards = [(); PARITY].map(|()| Vec::with_capacity(cut.shard_len));
    let mut scratch = vec![0; STRIP];
    let mut encoder = ReedSolomonEncoder::new(DATA, PARITY, STRIP.min(cut.shard_len)).map_err(failed)?;
    for strip in cut.strips() {
        encoder.reset(DATA, PARITY, strip.len()).map_err(failed)?;
        for i in 0..DATA {
            encoder.add_original_shard(cut.columns(pack, i, &strip, &mut scratch)?).map_err(failed)?;
        }
        let encoded = encoder.encode().map_err(failed)?;
        for (shard, columns) in shards.iter_mut().zip(encoded.recovery_iter()) {
            shard.extend_from_slice(columns);
        }
    }
    let too_long = |_| Error::internal("a pack longer than its parity can say");
    let hashes = cut.shards() + PARITY;
    let mut out = Vec::with_capacity(HEAD + HASH * (hashes + 1) + PARITY * cut.shard_len);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&MAJOR.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&u32::try_from(cut.shard_len).map_err(too_long)?.to_le_bytes());
    out.extend_from_slice(&(pack.len() as u64).to_le_bytes());
    out.push(kind.byte());
    out.extend_from_slice(&[0; 7]);
    out.extend_from_slice(&uid.0);
    for i in 0..cut.shards() {
        out.extend_from_slice(&hash(pack.get(cut.shard(i)).ok_or_else(|| wrong_shard(i))?));
    }
    for shard in &shards {
        out.extend_from_slice(&hash(shard));
    }
    out.extend_from_slice(&hash(&out));
    for shard in &shards {
        out.extend_from_slice(shard);
    }
    Ok(out)
}

/// A parity object whose head is whole; its shards may be damaged.
#[derive(Debug)]
pub struct Parity<'a> {
    cut: Cut,
    hashes: Vec<Hash>,
    shards: Vec<&'a [u8]>,
}

/// A pack that was repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The whole object.
    pub bytes: Vec<u8>,
    /// How many of its shards were damaged; none in a pack that is as its parity knows it.
    pub shards: usize,
}

impl<'a> Parity<'a> {
    /// Reads the parity object of the pack `uid`. `Corrupt` when its head is damaged or another pack's, `Unsupported` for a later
    /// format.
    pub fn decode(kind: PackKind, uid: PackUid, object: &'a [u8]) -> Result<Self> {
        let mut at = Cursor::new(object, "a parity object");
        if at.array()? != MAGIC {
            return Err(Error::corrupt("it does not begin with the magic of a parity object"));
        }
        let major = at.u16()?;
        if major != MAJOR {
            return Err(Error::new(Kind::Unsupported, format!("parity of format {major}; this version reads {MAJOR}")));
        }
        at.zeroes(2)?;
        let (shard_len, pack_len) = (at.u32()?, at.u64()?);
        let [kind_byte] = at.array()?;
        at.zeroes(7)?;
        let named = PackUid(at.array()?);
        if (kind_byte, named) != (kind.byte(), uid) {
            return Err(Error::corrupt(format!("it is the parity of pack {named}")));
        }
        let pack_len = usize::try_from(pack_len).unwrap_or(usize::MAX);
        let cut = Cut::of(pack_len.min(PACK_MAX));
        if pack_len != cut.pack_len || pack_len == 0 || shard_len as usize != cut.shard_len {
            return Err(Error::corrupt(format!("it cuts a pack of {pack_len} bytes into shards of {shard_len}")));
        }
        let hashes = (0..cut.shards() + PARITY).map(|_| at.array()).collect::<Result<Vec<Hash>>>()?;
        let (head, _) = object
            .split_at_checked(HEAD + HASH * hashes.len())
            .ok_or_else(|| Error::internal("a parity object shorter than what was read of it"))?;
        if at.array()? != hash(head) {
            return Err(Error::corrupt("the head of the parity object is damaged"));
        }
        let shards = (0..PARITY).map(|_| at.take(cut.shard_len)).collect::<Result<Vec<_>>>()?;
        at.end()?;
        Ok(Parity { cut, hashes, shards })
    }

    /// Length of the pack in bytes.
    #[must_use]
    pub fn pack_len(&self) -> usize {
        self.cut.pack_len
    }

    /// The stretches of the pack that are damaged or repaired as one.
    pub fn stretches(&self) -> impl Iterator<Item = Range<usize>> {
        let cut = self.cut;
        (0..cut.shards()).map(move |i| cut.shard(i))
    }

    /// Whether all of the parity itself is whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.sound_shards().count() == PARITY
    }

    fn sound_shards(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let due = self.hashes.iter().skip(self.cut.shards());
        self.shards
            .iter()
            .copied()
            .enumerate()
            .zip(due)
            .filter(|((_, shard), due)| hash(shard) == **due)
            .map(|(s, _)| s)
    }

    /// The pack, from what is there of it: damaged, cut short or grown. `Corrupt` when too much is damaged.
    pub fn repair(&self, mut pack: Vec<u8>) -> Result<Repaired> {
        pack.resize(self.cut.pack_len, 0);
        let damaged: Vec<usize> = self.damaged(&pack).collect();
        if damaged.is_empty() {
            return Ok(Repaired { bytes: pack, shards: 0 });
        }
        let sound: Vec<(usize, &[u8])> = self.sound_shards().take(damaged.len()).collect();
        if sound.len() < damaged.len() {
            return Err(Error::corrupt(format!(
                "{} of {} shards are damaged, and parity is left for {}",
                damaged.len(),
                self.cut.shards(),
                sound.len()
            )));
        }
        let mut scratch = vec![0; STRIP];
        let mut decoder = ReedSolomonDecoder::new(DATA, PARITY, STRIP.min(self.cut.shard_len)).map_err(failed)?;
        for strip in self.cut.strips() {
            decoder.reset(DATA, PARITY, strip.len()).map_err(failed)?;
            for i in (0..DATA).filter(|i| !damaged.contains(i)) {
                decoder.add_original_shard(i, self.cut.columns(&pack, i, &strip, &mut scratch)?).map_err(failed)?;
            }
            for (i, shard) in &sound {
                decoder.add_recovery_shard(*i, shard.get(strip.clone()).unwrap_or_default()).map_err(failed)?;
            }
            let restored = decoder.decode().map_err(failed)?;
            for (i, columns) in restored.restored_original_iter() {
                let shard = pack.get_mut(self.cut.shard(i)).unwrap_or_default();
                let len = shard.len();
                let into = shard.get_mut(strip.start.min(len)..strip.end.min(len)).unwrap_or_default();
                into.copy_from_slice(columns.get(..into.len()).ok_or_else(|| wrong_shard(i))?);
            }
        }
        if self.damaged(&pack).next().is_some() {
            return Err(Error::corrupt("what the parity restores is not what it has the hash of"));
        }
        Ok(Repaired { bytes: pack, shards: damaged.len() })
    }

    /// The shards of a pack of the right length that do not have their hashes.
    fn damaged<'p>(&'p self, pack: &'p [u8]) -> impl Iterator<Item = usize> + 'p {
        let is_damaged =
            |(i, due): &(usize, &Hash)| pack.get(self.cut.shard(*i)).is_none_or(|shard| hash(shard) != **due);
        self.hashes.iter().take(self.cut.shards()).enumerate().filter(is_damaged).map(|(i, _)| i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::{Entropy, Seeded};
    use proptest::prelude::*;

    const UID: PackUid = PackUid([0xab; 16]);

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Seeded::new(seed).fill(&mut bytes).unwrap();
        bytes
    }

    fn repair(object: &[u8], pack: Vec<u8>) -> Result<Repaired> {
        Parity::decode(PackKind::Data, UID, object)?.repair(pack)
    }

    /// What is stored today must be repaired for ever: this is the format.
    #[test]
    fn the_code_stays_what_it_is() {
        let of = |len| blake3::hash(&encode(PackKind::Tree, UID, &noise(1, len)).unwrap()).to_string();
        assert_eq!(
            [1, 70_000, 3_000_001].map(of),
            [
                "0a4e99c68a75bd3337d55226aa92bc9db56dcdc8f4e16ffa7336745945200a35",
                "4dbb084dce5191845c080e88003d92512ad8277f62dc19ecfc55d6da5e293bac",
                "3463412f671928eb1890fe3b5a5acd6e70dcb826965001da19ce257d3aebe4eb"
            ]
        );
    }

    /// Strips are an economy: the code is the same over whole shards.
    #[test]
    fn strips_change_nothing() {
        let pack = noise(2, 64 * (STRIP * 2 + 640) - 77);
        let cut = Cut::of(pack.len());
        assert!(cut.shard_len > 2 * STRIP);
        let mut padded = pack.clone();
        padded.resize(DATA * cut.shard_len, 0);
        let whole = reed_solomon_simd::encode(DATA, PARITY, padded.chunks(cut.shard_len)).unwrap();
        assert_eq!(encode(PackKind::Data, UID, &pack).unwrap()[HEAD + HASH * (DATA + PARITY + 1)..], whole.concat());
    }

    #[test]
    fn every_length_is_cut_into_at_most_64_shards_that_add_up() {
        for len in (1..5000).chain([65_535, 65_536, 65_537, 1 << 20, (32 << 20) + 12_345, PACK_MAX]) {
            let cut = Cut::of(len);
            assert!(
                cut.shards() <= DATA && cut.shard_len.is_multiple_of(SHARD_STEP) && cut.shard_len >= SHARD_MIN,
                "{len}"
            );
            let ends: Vec<_> = (0..cut.shards()).map(|i| cut.shard(i)).collect();
            assert!(ends.iter().all(|r| !r.is_empty()) && ends.iter().zip(&ends[1..]).all(|(a, b)| a.end == b.start));
            assert!(cut.shard_len * PARITY <= OBJECT_MAX);
            assert_eq!((ends[0].start, ends.last().unwrap().end), (0, len));
        }
        assert_eq!(encode(PackKind::Data, UID, &[]).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn names_round_trip_and_foreign_names_are_none() {
        assert_eq!(parse_name(&name(UID)), Some(UID));
        for bad in
            ["parity/", "parity/ab", &name(UID).replace("/ab/", "/ac/"), &format!("{}/x", name(UID)), "packs/00/00"]
        {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_damaged_head_is_refused_and_so_is_that_of_another_pack() {
        let object = encode(PackKind::Data, UID, &noise(3, 5000)).unwrap();
        let head = HEAD + HASH * (5 + PARITY + 1);
        for at in 0..head {
            let mut flipped = object.clone();
            flipped[at] ^= 1 << (at % 8);
            let kind = Parity::decode(PackKind::Data, UID, &flipped).unwrap_err().kind();
            assert_eq!(kind, if (8..10).contains(&at) { Kind::Unsupported } else { Kind::Corrupt }, "byte {at}");
        }
        for cut in 0..object.len() {
            assert_eq!(Parity::decode(PackKind::Data, UID, &object[..cut]).unwrap_err().kind(), Kind::Corrupt);
        }
        assert!(Parity::decode(PackKind::Data, UID, &[&object[..], &[0]].concat()).is_err());
        assert!(Parity::decode(PackKind::Tree, UID, &object).is_err());
        assert!(Parity::decode(PackKind::Data, PackUid([1; 16]), &object).is_err());
        assert!(Parity::decode(PackKind::Data, UID, &object).unwrap().is_whole());
    }

    #[test]
    fn a_pack_cut_short_or_grown_is_repaired() {
        let pack = noise(4, 300_000);
        let object = encode(PackKind::Data, UID, &pack).unwrap();
        let shard = Cut::of(pack.len()).shard_len;
        for (len, lost) in [(pack.len() - 1, 1), (pack.len() - 3 * shard, 4), (pack.len() + 9, 0)] {
            let mut bytes = pack.clone();
            bytes.resize(len, 7);
            assert_eq!(repair(&object, bytes).unwrap(), Repaired { bytes: pack.clone(), shards: lost }, "{len}");
        }
        for len in [pack.len() - 4 * shard, 0] {
            assert_eq!(repair(&object, pack[..len].to_vec()).unwrap_err().kind(), Kind::Corrupt, "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Damage in any four shards of the 68 is undone; damage in more, of which one is the pack's, is an error.
        #[test]
        fn four_shards_may_be_lost_and_no_more(
            len in 1usize..400_000,
            seed in any::<u64>(),
            lost in proptest::sample::subsequence((0..DATA + PARITY).collect::<Vec<_>>(), 0..=7),
        ) {
            let pack = noise(seed, len);
            let object = encode(PackKind::Data, UID, &pack).unwrap();
            let cut = Cut::of(len);
            let (mut bytes, mut parity) = (pack.clone(), object.clone());
            let head = object.len() - PARITY * cut.shard_len;
            let (mut in_pack, mut in_parity) = (0, 0);
            for (n, i) in lost.into_iter().enumerate() {
                let dice = usize::try_from(seed >> (n * 8) & 0xffff).unwrap();
                if i < cut.shards() {
                    let shard = cut.shard(i);
                    bytes[shard.start + dice % shard.len()] ^= 1 << (dice % 8);
                    in_pack += 1;
                } else if i >= DATA {
                    parity[head + (i - DATA) * cut.shard_len + dice % cut.shard_len] ^= 1 << (dice % 8);
                    in_parity += 1;
                }
            }
            prop_assert_eq!(Parity::decode(PackKind::Data, UID, &parity).unwrap().is_whole(), in_parity == 0);
            match repair(&parity, bytes) {
                Ok(repaired) => {
                    prop_assert!(in_pack == 0 || in_pack + in_parity <= PARITY);
                    prop_assert!(repaired.bytes == pack);
                    prop_assert_eq!(repaired.shards, in_pack);
                }
                Err(e) => {
                    prop_assert!(in_pack > 0 && in_pack + in_parity > PARITY, "{e}");
                    prop_assert_eq!(e.kind(), Kind::Corrupt);
                }
            }
        }
    }
}
