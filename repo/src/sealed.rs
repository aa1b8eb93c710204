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
            ObjectKind::Certificate | ObjectKind::Forget | ObjectKind::Condemned | ObjectKind::Note => {
                Some(Signers::Authority)
            }
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
