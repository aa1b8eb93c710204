//! Sealed objects: the small records that everything but packs, key slots and the descriptor is kept in (FORMAT.md
//! section 4): compressed, encrypted under the structure key, and signed inside.
//!
//! Not here: what the bodies say, storage. What holds: an object opens only under the name and as the kind it was sealed
//! with, in its own repository, and counts only when somebody who may sign that kind signed it. Whatever is not so is
//! `Corrupt`, naming the object.

use crate::certificate::Certificates;
use crate::crypto::{Aead, Codec, FrameAt, SIGNATURE_LEN, TAG_LEN};
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::id::SignerId;
use crate::keys::Keys;

/// The most bytes of an object, and the most bytes of its content before compression.
pub const MAX_LEN: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"CFOBJ\r\n\0";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 48;
const RECORD_LABEL: &[u8] = b"coffer v1 record";
/// Small records: what zstd's default level saves matters more than its speed.
const ZSTD_LEVEL: i32 = 3;

/// What an object is; the number is its kind byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// A pack of chunks.
    DataPack = 1,
    /// A pack of disk-map nodes.
    TreePack = 2,
    /// Parity of a pack.
    Parity = 3,
    /// Where chunks and nodes are.
    IndexDelta = 4,
    /// A writer's certificate.
    Certificate = 5,
    /// A running writer.
    Session = 6,
    /// A snapshot or a pin.
    Claim = 7,
    /// Whether a claim counts.
    Decision = 8,
    /// The removal of a claim.
    Forget = 9,
    /// Packs about to be deleted.
    Condemned = 10,
    /// Where the chunks of a pack lie now.
    Moved = 11,
    /// A remark on a snapshot.
    Note = 12,
    /// What a verification found sound.
    Verified = 13,
    /// A data key that new packs are sealed to.
    Epoch = 14,
    /// Another store in which packs lie.
    Tier = 15,
}

impl ObjectKind {
    /// The stored byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// Who may sign objects of this kind, when they are sealed objects at all.
    fn signers(self) -> Option<Signers> {
        match self {
            ObjectKind::DataPack | ObjectKind::TreePack | ObjectKind::Parity => None,
            ObjectKind::Certificate
            | ObjectKind::Forget
            | ObjectKind::Condemned
            | ObjectKind::Note
            | ObjectKind::Verified
            | ObjectKind::Epoch
            | ObjectKind::Tier => Some(Signers::Authority),
            ObjectKind::IndexDelta
            | ObjectKind::Session
            | ObjectKind::Claim
            | ObjectKind::Decision
            | ObjectKind::Moved => Some(Signers::AuthorityAndWriters),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Signers {
    Authority,
    AuthorityAndWriters,
}

/// An object's content after every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who signed it.
    pub signer: SignerId,
    /// What it says.
    pub body: Vec<u8>,
}

/// Makes the object `name`: `body`, signed by this session and sealed with the cipher `aead`. `WrongKey` when only the
/// authority may sign this kind and `keys` are a writer's, `Invalid` when the body is too long.
pub fn seal(
    keys: &Keys,
    kind: ObjectKind,
    name: &str,
    body: &[u8],
    aead: Aead,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>> {
    match kind.signers() {
        Some(Signers::AuthorityAndWriters) => {}
        Some(Signers::Authority) if keys.is_full() => {}
        Some(Signers::Authority) => {
            return Err(Error::new(Kind::WrongKey, format!("{name} can be written with a full key bundle only")));
        }
        None => return Err(Error::internal(format!("{name} is not a sealed object"))),
    }
    let too_long = || Error::invalid(format!("{name} would be longer than {MAX_LEN} bytes"));
    let signer = keys.signer();
    let mut content = Vec::with_capacity(SignerId::LEN + SIGNATURE_LEN + body.len());
    content.extend_from_slice(&signer.id().0);
    content.extend_from_slice(&signer.sign(&[&signed_head(keys, kind, name)?, body]));
    content.extend_from_slice(body);
    if content.len() > MAX_LEN {
        return Err(too_long());
    }
    let raw_len = u32::try_from(content.len()).map_err(|_| too_long())?;
    let packed = zstd::bulk::compress(&content, ZSTD_LEVEL)
        .map_err(|e| Error::internal(format!("{name} cannot be compressed")).with_source(e))?;
    let (codec, packed) = if packed.len() < content.len() { (Codec::Zstd, packed) } else { (Codec::Raw, content) };
    if HEADER_LEN + packed.len() + TAG_LEN > MAX_LEN {
        return Err(too_long());
    }

    let salt = fresh::<32>(entropy)?;
    let mut object = Vec::with_capacity(HEADER_LEN + packed.len() + TAG_LEN);
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&[VERSION, kind.byte(), aead.byte(), codec.byte()]);
    object.extend_from_slice(&raw_len.to_le_bytes());
    object.extend_from_slice(&salt);
    let at = FrameAt { object: name, kind: kind.byte(), offset: HEADER_LEN as u64, raw_len, codec };
    keys.object_key(kind.byte(), &salt, aead)?.seal_append(at, &packed, &mut object)?;
    Ok(object)
}

/// Opens the object `name` and checks that somebody who may sign this kind signed it.
pub fn open(keys: &Keys, certificates: &Certificates, kind: ObjectKind, name: &str, bytes: &[u8]) -> Result<Record> {
    Unverified::open(keys, kind, name, bytes)?.verify(keys, certificates)
}

/// An object that was sealed by somebody with the structure key, but whose signature was not looked at yet: for the one who
/// has to fetch the signer's certificate first.
#[derive(Debug)]
pub struct Unverified {
    kind: ObjectKind,
    name: String,
    signer: SignerId,
    signature: [u8; SIGNATURE_LEN],
    body: Vec<u8>,
}

impl Unverified {
    /// Decrypts the object `name`, which has to be of this kind.
    pub fn open(keys: &Keys, kind: ObjectKind, name: &str, bytes: &[u8]) -> Result<Self> {
        let mut content = decrypt(keys, kind, name, bytes)?;
        let short = || Error::corrupt(format!("{name} is too short for a signed record"));
        let (signer, rest) = content.split_first_chunk::<{ SignerId::LEN }>().ok_or_else(short)?;
        let (signature, _) = rest.split_first_chunk::<SIGNATURE_LEN>().ok_or_else(short)?;
        let (signer, signature) = (SignerId(*signer), *signature);
        content.drain(..SignerId::LEN + SIGNATURE_LEN);
        Ok(Unverified { kind, name: name.to_owned(), signer, signature, body: content })
    }

    /// Who is said to have signed it.
    #[must_use]
    pub fn signer(&self) -> SignerId {
        self.signer
    }

    /// The content, if its signer may sign this kind and did.
    pub fn verify(self, keys: &Keys, certificates: &Certificates) -> Result<Record> {
        let Unverified { kind, name, signer, signature, body } = self;
        let public = certificates
            .public(signer)
            .ok_or_else(|| Error::corrupt(format!("{name} is signed by {signer}, who has no certificate here")))?;
        match kind.signers() {
            Some(Signers::AuthorityAndWriters) => {}
            Some(Signers::Authority) if certificates.is_authority(signer) => {}
            Some(Signers::Authority) => {
                return Err(Error::corrupt(format!("{name} is signed by the writer {signer}, which does not count")));
            }
            None => return Err(Error::internal(format!("{name} is not a sealed object"))),
        }
        public.verify(&[&signed_head(keys, kind, &name)?, &body], &signature).map_err(|e| e.within(&name))?;
        Ok(Record { signer, body })
    }
}

/// The content of an object, decrypted and decompressed.
fn decrypt(keys: &Keys, kind: ObjectKind, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let corrupt = |why: &str| Error::corrupt(format!("{name}: {why}"));
    if bytes.len() > MAX_LEN {
        return Err(corrupt("longer than any sealed object"));
    }
    let (header, frame) =
        bytes.split_first_chunk::<HEADER_LEN>().ok_or_else(|| corrupt("truncated within its header"))?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let ([version, kind_byte, aead, codec, l0, l1, l2, l3], salt) =
        rest.split_first_chunk::<8>().ok_or_else(|| corrupt("truncated within its header"))?;
    if magic != MAGIC {
        return Err(corrupt("not a sealed object"));
    }
    if *version != VERSION {
        let why = format!("{name} has version {version}; it is damaged, or needs a newer version of coffer");
        return Err(Error::new(Kind::Unsupported, why));
    }
    if *kind_byte != kind.byte() {
        return Err(corrupt(&format!("an object of kind {kind_byte} where kind {} ({kind:?}) is due", kind.byte())));
    }
    let aead = Aead::from_byte(*aead).map_err(|e| e.within(name))?;
    let raw_len = u32::from_le_bytes([*l0, *l1, *l2, *l3]);
    let capacity =
        usize::try_from(raw_len).ok().filter(|n| *n <= MAX_LEN).ok_or_else(|| corrupt("content too long"))?;
    let stored_len = u32::try_from(frame.len()).map_err(|_| corrupt("longer than any sealed object"))?;
    let at_codec = Codec::of(stored_len, raw_len).map_err(|e| e.within(name))?;
    if *codec != at_codec.byte() {
        return Err(corrupt("its codec contradicts its lengths"));
    }
    let salt = <&[u8; 32]>::try_from(salt).map_err(|_| corrupt("truncated within its header"))?;
    let at = FrameAt { object: name, kind: kind.byte(), offset: HEADER_LEN as u64, raw_len, codec: at_codec };
    let mut frame = frame.to_vec();
    let packed = keys.object_key(kind.byte(), salt, aead)?.open_in_place(at, &mut frame)?;
    match at_codec {
        Codec::Raw => {
            let len = packed.len();
            frame.truncate(len);
            Ok(frame)
        }
        Codec::Zstd => {
            let content = zstd::bulk::decompress(packed, capacity)
                .map_err(|e| corrupt("its content does not decompress").with_source(e))?;
            if content.len() == capacity { Ok(content) } else { Err(corrupt("its content is shorter than declared")) }
        }
    }
}

/// What a record's signature covers, up to the body.
fn signed_head(keys: &Keys, kind: ObjectKind, name: &str) -> Result<Vec<u8>> {
    let name_len = u16::try_from(name.len()).map_err(|_| Error::invalid("an object name of over 65,535 bytes"))?;
    Ok([RECORD_LABEL, &[kind.byte()], &keys.repo().0, &name_len.to_le_bytes(), name.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Certificate;
    use crate::entropy::Seeded;
    use crate::id::RepoId;
    use crate::time::Timestamp;

    const NAME: &str = "snapshots/aa/x/claim";

    struct World {
        full: Keys,
        writer: Keys,
        certificate: Certificate,
        certificates: Certificates,
    }

    fn world() -> World {
        let full = Keys::generate(RepoId([3; 16]), &Seeded::new(1)).unwrap();
        let created = Timestamp::from_seconds(1_795_226_400).unwrap();
        let (writer, certificate) = full.export_writer("mover 1", created, &Seeded::new(2)).unwrap();
        let mut certificates = Certificates::new(&full);
        let name = certificate.object_name();
        certificates
            .admit(&full, &name, &seal_as(&full, ObjectKind::Certificate, &name, &certificate.encode().unwrap()))
            .unwrap();
        World { full, writer, certificate, certificates }
    }

    fn seal_as(keys: &Keys, kind: ObjectKind, name: &str, body: &[u8]) -> Vec<u8> {
        seal(keys, kind, name, body, Aead::Aes256Gcm, &Seeded::new(7)).unwrap()
    }

    /// What somebody who holds a writer's bundle, but not our scruples, can make.
    fn seal_anyway(keys: &Keys, kind: ObjectKind, name: &str, content: &[u8]) -> Vec<u8> {
        let salt = [1; 32];
        let raw_len = u32::try_from(content.len()).unwrap();
        let mut object = MAGIC.to_vec();
        object.extend_from_slice(&[VERSION, kind.byte(), Aead::Aes256Gcm.byte(), Codec::Raw.byte()]);
        object.extend_from_slice(&raw_len.to_le_bytes());
        object.extend_from_slice(&salt);
        let at = FrameAt { object: name, kind: kind.byte(), offset: 48, raw_len, codec: Codec::Raw };
        let key = keys.object_key(kind.byte(), &salt, Aead::Aes256Gcm).unwrap();
        key.seal_append(at, content, &mut object).unwrap();
        object
    }

    fn signed(keys: &Keys, kind: ObjectKind, name: &str, body: &[u8]) -> Vec<u8> {
        let signature = keys.signer().sign(&[&signed_head(keys, kind, name).unwrap(), body]);
        [&keys.signer().id().0, &signature[..], body].concat()
    }

    #[test]
    fn round_trips_of_both_ciphers_and_codecs_by_both_signers() {
        let World { full, writer, certificates, .. } = world();
        for keys in [&full, &writer] {
            for body in [&[][..], b"short", &[7; 100_000]] {
                for aead in [Aead::Aes256Gcm, Aead::ChaCha20Poly1305] {
                    let object = seal(keys, ObjectKind::Claim, NAME, body, aead, &Seeded::new(7)).unwrap();
                    assert!(object.len() < 1000, "{} bytes", object.len());
                    let record = open(&full, &certificates, ObjectKind::Claim, NAME, &object).unwrap();
                    assert_eq!((record.signer, record.body.as_slice()), (keys.signer().id(), body));
                }
            }
        }
    }

    #[test]
    fn flips_truncations_and_additions_are_refused() {
        let World { writer, certificates, .. } = world();
        for body in [&b"short"[..], &[7; 1000]] {
            let object = seal_as(&writer, ObjectKind::Claim, NAME, body);
            let open = |bytes: &[u8]| open(&writer, &certificates, ObjectKind::Claim, NAME, bytes);
            for bit in 0..object.len() * 8 {
                let mut flipped = object.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                // Another version may look otherwise from there on: it is refused by its number.
                let due = if bit / 8 == 8 { Kind::Unsupported } else { Kind::Corrupt };
                let error = open(&flipped).unwrap_err();
                assert_eq!(error.kind(), due, "bit {bit}: {error}");
                assert!(error.context().contains(NAME), "{error}");
            }
            for cut in 0..object.len() {
                assert_eq!(open(&object[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
            }
            assert_eq!(open(&[&object[..], &[0]].concat()).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn an_object_is_bound_to_its_name_kind_and_repository() {
        let World { full, writer, certificates, .. } = world();
        let object = seal_as(&writer, ObjectKind::Claim, NAME, b"body");
        for (kind, name) in [(ObjectKind::Claim, "snapshots/aa/y/claim"), (ObjectKind::Session, NAME)] {
            assert_eq!(open(&full, &certificates, kind, name, &object).unwrap_err().kind(), Kind::Corrupt);
        }
        let other = Keys::generate(full.repo(), &Seeded::new(9)).unwrap();
        let error = open(&other, &Certificates::new(&other), ObjectKind::Claim, NAME, &object).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        // The signature binds them once more: a record cannot be moved by somebody who has the structure key.
        let content = signed(&full, ObjectKind::Claim, NAME, b"body");
        let moved = seal_anyway(&writer, ObjectKind::Claim, "snapshots/aa/y/claim", &content);
        assert!(open(&full, &certificates, ObjectKind::Claim, "snapshots/aa/y/claim", &moved).is_err());
        let turned = seal_anyway(&writer, ObjectKind::Forget, NAME, &content);
        assert!(open(&full, &certificates, ObjectKind::Forget, NAME, &turned).is_err());
        let changed = seal_anyway(&writer, ObjectKind::Claim, NAME, &[&content[..], b"!"].concat());
        assert!(open(&full, &certificates, ObjectKind::Claim, NAME, &changed).is_err());
        let whole = seal_anyway(&writer, ObjectKind::Claim, NAME, &content);
        assert_eq!(open(&full, &certificates, ObjectKind::Claim, NAME, &whole).unwrap().signer, full.signer().id());
    }

    #[test]
    fn a_writer_signs_what_writers_sign_and_nothing_else() {
        let World { full, writer, certificates, .. } = world();
        for kind in
            [ObjectKind::IndexDelta, ObjectKind::Session, ObjectKind::Claim, ObjectKind::Decision, ObjectKind::Moved]
        {
            for keys in [&full, &writer] {
                let object = seal_as(keys, kind, NAME, b"body");
                assert_eq!(open(&writer, &certificates, kind, NAME, &object).unwrap().signer, keys.signer().id());
            }
        }
        for kind in
            [ObjectKind::Certificate, ObjectKind::Forget, ObjectKind::Condemned, ObjectKind::Note, ObjectKind::Epoch]
        {
            let refused = seal(&writer, kind, NAME, b"body", Aead::Aes256Gcm, &Seeded::new(7)).unwrap_err();
            assert_eq!(refused.kind(), Kind::WrongKey);
            let forged = seal_anyway(&writer, kind, NAME, &signed(&writer, kind, NAME, b"body"));
            let error = open(&full, &certificates, kind, NAME, &forged).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.context().contains("does not count"), "{error}");
            // In the authority's name, with a signature of its own.
            let mut content = signed(&writer, kind, NAME, b"body");
            content[..16].copy_from_slice(&full.signer().id().0);
            let forged = seal_anyway(&writer, kind, NAME, &content);
            assert_eq!(open(&full, &certificates, kind, NAME, &forged).unwrap_err().kind(), Kind::Corrupt);
            open(&full, &certificates, kind, NAME, &seal_as(&full, kind, NAME, b"body")).unwrap();
        }
        for kind in [ObjectKind::DataPack, ObjectKind::TreePack, ObjectKind::Parity] {
            assert_eq!(
                seal(&full, kind, NAME, b"", Aead::Aes256Gcm, &Seeded::new(7)).unwrap_err().kind(),
                Kind::Internal
            );
        }
    }

    #[test]
    fn a_writer_counts_once_its_certificate_was_seen() {
        let World { full, writer, certificate, certificates } = world();
        let object = seal_as(&writer, ObjectKind::Claim, NAME, b"body");
        let nobody = Certificates::new(&writer);
        let error = open(&full, &nobody, ObjectKind::Claim, NAME, &object).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.context().contains("no certificate"), "{error}");
        let unverified = Unverified::open(&full, ObjectKind::Claim, NAME, &object).unwrap();
        assert_eq!(unverified.signer(), writer.signer().id());
        assert_eq!(unverified.verify(&full, &certificates).unwrap().body, b"body");
        assert_eq!(certificates.writers().collect::<Vec<_>>(), [&certificate]);
    }

    #[test]
    fn certificates_are_the_authoritys_and_bear_their_keys_name() {
        let World { full, writer, certificate, certificates } = world();
        let body = certificate.encode().unwrap();
        let name = certificate.object_name();
        let mut fresh = Certificates::new(&full);
        let forged = seal_anyway(
            &writer,
            ObjectKind::Certificate,
            &name,
            &signed(&writer, ObjectKind::Certificate, &name, &body),
        );
        // Not even a writer that is certified already may certify, itself included.
        for known in [&mut fresh, &mut certificates.clone()] {
            assert_eq!(known.admit(&full, &name, &forged).unwrap_err().kind(), Kind::Corrupt);
        }
        let elsewhere = format!("writers/{}", full.signer().id());
        let misnamed = seal_as(&full, ObjectKind::Certificate, &elsewhere, &body);
        assert_eq!(fresh.admit(&full, &elsewhere, &misnamed).unwrap_err().kind(), Kind::Corrupt);
        let garbled = seal_as(&full, ObjectKind::Certificate, &name, b"\xa0");
        assert_eq!(fresh.admit(&full, &name, &garbled).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(fresh.public(writer.signer().id()), None);
        assert_eq!(fresh.public(full.signer().id()), Some(full.authority()));
    }

    #[test]
    fn content_is_bounded_by_what_is_declared() {
        let World { full, certificates, .. } = world();
        // A frame that unpacks to more or less than its header says, sealed by somebody with the structure key.
        let packed = zstd::bulk::compress(&[7; 10_000], 3).unwrap();
        for raw_len in [9_999u32, 10_001, 64 << 20, (64 << 20) + 1, u32::MAX] {
            let mut object = MAGIC.to_vec();
            object.extend_from_slice(&[VERSION, 7, 1, 1]);
            object.extend_from_slice(&raw_len.to_le_bytes());
            object.extend_from_slice(&[1; 32]);
            let at = FrameAt { object: NAME, kind: 7, offset: 48, raw_len, codec: Codec::Zstd };
            let key = full.object_key(7, &[1; 32], Aead::Aes256Gcm).unwrap();
            key.seal_append(at, &packed, &mut object).unwrap();
            let error = open(&full, &certificates, ObjectKind::Claim, NAME, &object).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{raw_len}");
        }
        let longest = MAX_LEN - SignerId::LEN - SIGNATURE_LEN;
        let object = seal_as(&full, ObjectKind::IndexDelta, NAME, &vec![7; longest]);
        assert_eq!(open(&full, &certificates, ObjectKind::IndexDelta, NAME, &object).unwrap().body.len(), longest);
        let too_long = vec![7; longest + 1];
        let error = seal(&full, ObjectKind::IndexDelta, NAME, &too_long, Aead::Aes256Gcm, &Seeded::new(7)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert_eq!(
            open(&full, &certificates, ObjectKind::IndexDelta, NAME, &vec![0; MAX_LEN + 1]).unwrap_err().kind(),
            Kind::Corrupt
        );
    }
}
