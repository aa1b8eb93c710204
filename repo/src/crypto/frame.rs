//! Frames (FORMAT.md section 4.1): the sealed stretches of bytes that objects and packs are made of.
//!
//! Not here: compression, the layout around a frame. What holds: a frame opens only as what it was sealed as, in the object,
//! at the offset and with the lengths it was sealed with; its codec follows from its lengths.

use super::Key32;
use crate::error::{Error, Result};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes that sealing adds.
pub const TAG_LEN: usize = 16;

/// The authenticated ciphers of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Aead {
    /// AES-256-GCM.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305 = 2,
}

impl Aead {
    /// The faster one on this machine: AES-256-GCM where the processor has instructions for it.
    #[must_use]
    pub fn preferred() -> Self {
        #[cfg(target_arch = "x86_64")]
        let fast = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let fast = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let fast = false;
        if fast { Aead::Aes256Gcm } else { Aead::ChaCha20Poly1305 }
    }

    /// The cipher of a stored byte; `Corrupt` when version 1 of the format has none of that number.
    pub fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            1 => Ok(Aead::Aes256Gcm),
            2 => Ok(Aead::ChaCha20Poly1305),
            other => Err(Error::corrupt(format!("there is no cipher {other}"))),
        }
    }

    /// The stored byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        self as u8
    }
}

/// How the bytes in a frame are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame, shorter than the raw bytes.
    Zstd = 1,
}

impl Codec {
    /// The codec of a frame of `stored_len` bytes, tag included, that holds `raw_len` bytes. A frame too short for its tag
    /// or longer than its raw bytes allow is `Corrupt`.
    pub fn of(stored_len: u32, raw_len: u32) -> Result<Self> {
        // In 64 bits: the sum of raw length and tag may not fit in 32.
        let (stored, raw_stored) = (u64::from(stored_len), u64::from(raw_len) + TAG_LEN as u64);
        if stored == raw_stored {
            Ok(Codec::Raw)
        } else if (TAG_LEN as u64..raw_stored).contains(&stored) {
            Ok(Codec::Zstd)
        } else {
            Err(Error::corrupt(format!("a frame of {stored_len} bytes cannot hold {raw_len} bytes")))
        }
    }

    /// The stored byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        self as u8
    }
}

/// What a frame is and where: everything its tag vouches for beside its bytes, but for the stored length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt<'a> {
    /// Name of the object that the frame lies in.
    pub object: &'a str,
    /// Kind byte of the object; 0x80 is added for a table of contents.
    pub kind: u8,
    /// Where in the object the frame begins, in bytes.
    pub offset: u64,
    /// Length of the content before compression, in bytes.
    pub raw_len: u32,
    /// How the content is packed.
    pub codec: Codec,
}

impl FrameAt<'_> {
    fn nonce(&self) -> Nonce {
        let mut nonce = [0; 12];
        let (_, offset) = nonce.split_at_mut(4);
        offset.copy_from_slice(&self.offset.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// The associated data. `stored_len` includes the tag; `None` when lengths and codec contradict each other, or the name
    /// is longer than 65,535 bytes.
    fn aad(&self, stored_len: usize) -> Option<Aad<Vec<u8>>> {
        let stored_len = u32::try_from(stored_len).ok()?;
        let name_len = u16::try_from(self.object.len()).ok()?;
        if Codec::of(stored_len, self.raw_len).ok()? != self.codec {
            return None;
        }
        let mut aad = Vec::with_capacity(self.object.len() + 20);
        aad.extend_from_slice(&name_len.to_le_bytes());
        aad.extend_from_slice(self.object.as_bytes());
        aad.push(self.kind);
        aad.extend_from_slice(&self.offset.to_le_bytes());
        aad.extend_from_slice(&stored_len.to_le_bytes());
        aad.extend_from_slice(&self.raw_len.to_le_bytes());
        aad.push(self.codec.byte());
        Some(Aad::from(aad))
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::corrupt(format!("{}, frame at byte {}: {why}", self.object, self.offset))
    }
}

/// A key that seals and opens frames, with its schedule computed once.
pub struct FrameKey(LessSafeKey);

impl FrameKey {
    /// Makes `key` ready for use with `aead`. One key is for one cipher only.
    pub fn new(aead: Aead, key: &Key32) -> Result<Self> {
        let algorithm = match aead {
            Aead::Aes256Gcm => &AES_256_GCM,
            Aead::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        UnboundKey::new(algorithm, key.expose())
            .map(|key| FrameKey(LessSafeKey::new(key)))
            .map_err(|_| Error::internal("the cipher refused a key of 32 bytes"))
    }

    /// Seals the bytes of `buffer` from `start` on where they are, and appends the tag: what lies there becomes the frame.
    /// The bytes are content as `at.codec` packs it; on an error they are left unsealed and must not be published.
    pub fn seal_in_place(&self, at: FrameAt<'_>, buffer: &mut Vec<u8>, start: usize) -> Result<()> {
        let unsealable = || Error::internal(format!("{}: a frame at byte {} cannot be sealed", at.object, at.offset));
        let content = buffer.get_mut(start..).ok_or_else(unsealable)?;
        let aad = at.aad(content.len() + TAG_LEN).ok_or_else(unsealable)?;
        let tag = self.0.seal_in_place_separate_tag(at.nonce(), aad, content).map_err(|_| unsealable())?;
        buffer.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Appends the frame of `content`, packed as `at.codec` says, to `out`. On an error `out` is as it was.
    pub fn seal_append(&self, at: FrameAt<'_>, content: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.reserve(content.len() + TAG_LEN);
        out.extend_from_slice(content);
        self.seal_in_place(at, out, start).inspect_err(|_| out.truncate(start))
    }

    /// Opens a whole frame where it lies and gives its content, still packed as `at.codec` says. Whatever differs from what
    /// was sealed is `Corrupt`, naming object and offset.
    pub fn open_in_place<'f>(&self, at: FrameAt<'_>, frame: &'f mut [u8]) -> Result<&'f mut [u8]> {
        let aad = at.aad(frame.len()).ok_or_else(|| at.corrupt("its lengths contradict each other"))?;
        self.0
            .open_in_place(at.nonce(), aad, frame)
            .map_err(|_| at.corrupt("the stored bytes are not those that were sealed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const AT: FrameAt<'_> = FrameAt { object: "packs/00/x", kind: 1, offset: 4096, raw_len: 40, codec: Codec::Raw };

    fn keys() -> [FrameKey; 2] {
        [Aead::Aes256Gcm, Aead::ChaCha20Poly1305].map(|aead| FrameKey::new(aead, &Key32::new([7; 32])).unwrap())
    }

    #[test]
    fn a_frame_opens_as_what_it_was_sealed_as_only() {
        for key in keys() {
            let mut frame = b"head".to_vec();
            key.seal_append(AT, &[5; 40], &mut frame).unwrap();
            assert_eq!(frame.len(), 4 + 40 + TAG_LEN);
            let frame = frame.split_off(4);
            assert_eq!(key.open_in_place(AT, &mut frame.clone()).unwrap(), [5; 40]);
            for other in [
                FrameAt { object: "packs/00/y", ..AT },
                FrameAt { kind: 2, ..AT },
                FrameAt { offset: 4097, ..AT },
                FrameAt { raw_len: 41, codec: Codec::Zstd, ..AT },
                FrameAt { raw_len: 41, ..AT },
                FrameAt { codec: Codec::Zstd, ..AT },
            ] {
                let error = key.open_in_place(other, &mut frame.clone()).unwrap_err();
                assert_eq!(error.kind(), Kind::Corrupt, "{other:?}");
                assert!(error.context().contains(other.object) && error.context().contains(&other.offset.to_string()));
            }
        }
    }

    #[test]
    fn flips_and_truncations_are_corrupt() {
        for key in keys() {
            let mut frame = Vec::new();
            key.seal_append(AT, &[5; 40], &mut frame).unwrap();
            for bit in 0..frame.len() * 8 {
                let mut flipped = frame.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open_in_place(AT, &mut flipped).unwrap_err().kind(), Kind::Corrupt, "bit {bit}");
            }
            for cut in 0..frame.len() {
                assert_eq!(key.open_in_place(AT, &mut frame[..cut].to_vec()).unwrap_err().kind(), Kind::Corrupt);
            }
        }
    }

    #[test]
    fn content_that_contradicts_its_description_is_not_sealed() {
        for key in keys() {
            let mut out = b"kept".to_vec();
            for (at, len) in [(AT, 39), (AT, 41), (FrameAt { codec: Codec::Zstd, ..AT }, 40)] {
                assert_eq!(key.seal_append(at, &vec![5; len], &mut out).unwrap_err().kind(), Kind::Internal);
                assert_eq!(out, b"kept");
            }
        }
    }

    #[test]
    fn the_codec_follows_from_the_lengths() {
        assert_eq!(Codec::of(16, 0).unwrap(), Codec::Raw);
        assert_eq!(Codec::of(4112, 4096).unwrap(), Codec::Raw);
        assert_eq!(Codec::of(4111, 4096).unwrap(), Codec::Zstd);
        assert_eq!(Codec::of(16, u32::MAX).unwrap(), Codec::Zstd);
        for (stored, raw) in [(0, 0), (15, 0), (15, 4096), (4113, 4096), (u32::MAX, 0)] {
            assert_eq!(Codec::of(stored, raw).unwrap_err().kind(), Kind::Corrupt, "{stored} {raw}");
        }
    }
}
