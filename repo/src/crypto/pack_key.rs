//! The key of a data pack and the slots in the pack's header that hold it (FORMAT.md section 5), sealed with HPKE.
//!
//! Not here: the header around the slots, the frames. What holds: whoever holds a public key can seal, and only the holder
//! of the private key opens; a pack key that comes out of a slot is the one that the header commits to.

use super::{Key32, Secret};
use crate::entropy::Entropy;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecipientId, RepoId};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use std::convert::Infallible;
use zeroize::Zeroizing;

/// KEM id of DHKEM(X25519, HKDF-SHA256); the suite is completed by HKDF-SHA256 and AES-256-GCM, in base mode.
pub const KEM_X25519: u16 = 0x0020;
/// Bytes of an encapsulated X25519 key.
const ENC_LEN: usize = 32;
/// Bytes of a slot before its sealed key: KEM id, length, recipient id.
const SLOT_HEAD_LEN: usize = 2 + 2 + RecipientId::LEN;
const INFO: &[u8] = b"coffer v1 pack key";
const COMMITMENT: &str = "coffer v1 pack key commitment";

/// A public key that pack keys are sealed to: X25519.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPublic([u8; 32]);

impl DataPublic {
    /// The key with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        DataPublic(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name of the key in the slots of packs.
    #[must_use]
    pub fn recipient_id(&self) -> RecipientId {
        let mut id = [0; RecipientId::LEN];
        blake3::Hasher::new().update(&self.0).finalize_xof().fill(&mut id);
        RecipientId(id)
    }
}

/// The private half of a [`DataPublic`].
#[derive(Clone)]
pub struct DataPrivate(Key32);

impl DataPrivate {
    /// The key with these bytes.
    #[must_use]
    pub fn new(key: Key32) -> Self {
        DataPrivate(key)
    }

    /// The public half.
    pub fn public(&self) -> Result<DataPublic> {
        let public = X25519HkdfSha256::sk_to_pk(&self.parsed()?);
        Ok(DataPublic(public.to_bytes().into()))
    }

    /// The bytes, for the key bundle.
    pub(crate) fn secret(&self) -> &Key32 {
        &self.0
    }

    fn parsed(&self) -> Result<<X25519HkdfSha256 as Kem>::PrivateKey> {
        Deserializable::from_bytes(self.0.expose()).map_err(|_| Error::internal("X25519 refused a key of 32 bytes"))
    }
}

/// Seals `plain` to the holder of `public`'s private half: the encapsulated key, then the ciphertext and its tag. `info` and
/// `aad` must be the same for opening. A public key that is no point of large order is `Corrupt`.
pub fn seal_to(public: &DataPublic, info: &[u8], aad: &[u8], plain: &[u8], entropy: &dyn Entropy) -> Result<Vec<u8>> {
    let refused = |e| Error::corrupt("a data public key that nothing can be sealed to").with_source(e);
    let recipient = Deserializable::from_bytes(&public.0).map_err(refused)?;
    let mut draw = Draw { entropy, failure: None };
    let sealed = hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &recipient,
        info,
        plain,
        aad,
        &mut draw,
    );
    if let Some(failure) = draw.failure {
        return Err(failure);
    }
    let (enc, ciphertext) = sealed.map_err(refused)?;
    Ok([enc.to_bytes().as_slice(), &ciphertext].concat())
}

/// Opens what [`seal_to`] sealed. What was not sealed to this key, with this `info` and `aad`, is `Corrupt`.
pub fn open_with(private: &DataPrivate, info: &[u8], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let (enc, ciphertext) =
        sealed.split_at_checked(ENC_LEN).ok_or_else(|| Error::corrupt("a sealed key is truncated"))?;
    let refused = |e| Error::corrupt("a sealed key does not open").with_source(e);
    let enc = Deserializable::from_bytes(enc).map_err(refused)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &private.parsed()?,
        &enc,
        info,
        ciphertext,
        aad,
    )
    .map(Zeroizing::new)
    .map_err(refused)
}

/// Our randomness in the shape that HPKE asks for, which knows no failure: a failure is kept aside, and whoever drew must
/// throw the result away when there is one.
struct Draw<'a> {
    entropy: &'a dyn Entropy,
    failure: Option<Error>,
}

impl TryRng for Draw<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        if let Err(failure) = self.entropy.fill(out) {
            self.failure.get_or_insert(failure);
        }
        Ok(())
    }
}

impl TryCryptoRng for Draw<'_> {}

/// The key of one data pack.
pub struct PackKey(Key32);

impl PackKey {
    /// A fresh key.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self> {
        Secret::random(entropy).map(PackKey)
    }

    /// The key that seals the pack's frames.
    #[must_use]
    pub fn secret(&self) -> &Key32 {
        &self.0
    }

    /// What the pack's header commits to, so that no slot can yield another key than the rest.
    #[must_use]
    pub fn commitment(&self) -> [u8; 16] {
        let mut commitment = [0; 16];
        blake3::Hasher::new_derive_key(COMMITMENT).update(self.0.expose()).finalize_xof().fill(&mut commitment);
        commitment
    }

    /// The slot that gives the key to the holder of `recipient`'s private half.
    pub fn wrap(&self, recipient: &DataPublic, uid: PackUid, repo: RepoId, entropy: &dyn Entropy) -> Result<KeySlot> {
        let sealed = seal_to(recipient, INFO, &aad(uid, repo), self.0.expose(), entropy)?;
        Ok(KeySlot { kem: KEM_X25519, recipient: recipient.recipient_id(), sealed })
    }

    /// The key from `slot`, which is one for `private`, checked against the header's `commitment`.
    pub fn unwrap(
        slot: &KeySlot,
        private: &DataPrivate,
        uid: PackUid,
        repo: RepoId,
        commitment: &[u8; 16],
    ) -> Result<Self> {
        if slot.kem != KEM_X25519 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("pack {uid} has a key sealed with KEM {:#06x}, which this version does not know", slot.kem),
            ));
        }
        let opened =
            open_with(private, INFO, &aad(uid, repo), &slot.sealed).map_err(|e| e.within(format!("pack {uid}")))?;
        let key = PackKey(Secret::from_slice(&opened)?);
        // Not a comparison of secrets: the commitment is public.
        if key.commitment() != *commitment {
            return Err(Error::corrupt(format!(
                "pack {uid}: the key in its slot is not the one its header commits to"
            )));
        }
        Ok(key)
    }
}

fn aad(uid: PackUid, repo: RepoId) -> [u8; 32] {
    let mut aad = [0; 32];
    let (first, second) = aad.split_at_mut(PackUid::LEN);
    first.copy_from_slice(&uid.0);
    second.copy_from_slice(&repo.0);
    aad
}

/// One key slot of a data pack's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// How the key is sealed.
    pub kem: u16,
    /// To whom.
    pub recipient: RecipientId,
    /// The sealed key.
    pub sealed: Vec<u8>,
}

impl KeySlot {
    /// Appends the slot's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        let len = u16::try_from(self.sealed.len()).map_err(|_| Error::internal("a sealed key of over 65,535 bytes"))?;
        out.extend_from_slice(&self.kem.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&self.recipient.0);
        out.extend_from_slice(&self.sealed);
        Ok(())
    }

    /// The slot that `bytes` begins with, and what follows it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let truncated = || Error::corrupt("a key slot is truncated");
        let (head, rest) = bytes.split_at_checked(SLOT_HEAD_LEN).ok_or_else(truncated)?;
        let [kem_low, kem_high, len_low, len_high, recipient @ ..] = head else {
            return Err(truncated());
        };
        let len = u16::from_le_bytes([*len_low, *len_high]);
        let (sealed, rest) = rest.split_at_checked(usize::from(len)).ok_or_else(truncated)?;
        let slot = KeySlot {
            kem: u16::from_le_bytes([*kem_low, *kem_high]),
            recipient: RecipientId::from_slice(recipient)?,
            sealed: sealed.to_vec(),
        };
        Ok((slot, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Seeded;
    use crate::vectors::Scripted;

    const UID: PackUid = PackUid([1; 16]);
    const REPO: RepoId = RepoId([2; 16]);

    fn pair() -> (DataPrivate, DataPublic) {
        let private = DataPrivate::new(Secret::new([9; 32]));
        let public = private.public().unwrap();
        (private, public)
    }

    #[test]
    fn a_slot_opens_for_its_pack_repository_and_key_only() {
        let (private, public) = pair();
        let key = PackKey::generate(&Seeded::new(1)).unwrap();
        let slot = key.wrap(&public, UID, REPO, &Seeded::new(2)).unwrap();
        let opened = PackKey::unwrap(&slot, &private, UID, REPO, &key.commitment()).unwrap();
        assert_eq!(opened.secret().expose(), key.secret().expose());

        let stranger = DataPrivate::new(Secret::new([8; 32]));
        for (private, uid, repo, commitment) in [
            (&stranger, UID, REPO, key.commitment()),
            (&private, PackUid([0; 16]), REPO, key.commitment()),
            (&private, UID, RepoId([0; 16]), key.commitment()),
            (&private, UID, REPO, [0; 16]),
        ] {
            assert_eq!(PackKey::unwrap(&slot, private, uid, repo, &commitment).err().unwrap().kind(), Kind::Corrupt);
        }
        let later = KeySlot { kem: 0x647a, ..slot };
        let error = PackKey::unwrap(&later, &private, UID, REPO, &key.commitment()).err().unwrap();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.context().contains("0x647a"), "{error}");
    }

    #[test]
    fn flips_and_truncations_of_a_slot_never_give_a_key() {
        let (private, public) = pair();
        let key = PackKey::generate(&Seeded::new(1)).unwrap();
        let slot = key.wrap(&public, UID, REPO, &Seeded::new(2)).unwrap();
        // The top bit of an X25519 point is ignored by definition (RFC 7748); HPKE hashes the point's bytes all the same.
        for bit in 0..slot.sealed.len() * 8 {
            let mut flipped = slot.clone();
            flipped.sealed[bit / 8] ^= 1 << (bit % 8);
            let error = PackKey::unwrap(&flipped, &private, UID, REPO, &key.commitment()).err().unwrap();
            assert_eq!(error.kind(), Kind::Corrupt, "bit {bit}");
        }
        let mut encoded = Vec::new();
        slot.encode(&mut encoded).unwrap();
        for cut in 0..encoded.len() {
            assert_eq!(KeySlot::decode(&encoded[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
        encoded.extend_from_slice(b"rest");
        assert_eq!(KeySlot::decode(&encoded).unwrap(), (slot.clone(), &b"rest"[..]));
        for cut in 0..slot.sealed.len() {
            let short = KeySlot { sealed: slot.sealed[..cut].to_vec(), ..slot.clone() };
            assert!(PackKey::unwrap(&short, &private, UID, REPO, &key.commitment()).is_err(), "{cut}");
        }
    }

    #[test]
    fn nothing_is_sealed_without_randomness_or_to_a_point_of_small_order() {
        let (_, public) = pair();
        let dry = Scripted::new(&[]);
        assert_eq!(seal_to(&public, b"", b"", b"x", &dry).unwrap_err().kind(), Kind::Internal);
        let weak = DataPublic::new([0; 32]);
        assert_eq!(seal_to(&weak, b"", b"", b"x", &Seeded::new(1)).unwrap_err().kind(), Kind::Corrupt);
    }
}
