//! CRC32C, which guards headers and data segments when both sides want it. The processor computes it.
//!
//! Not here: when it is wanted. What holds: the bytes on the wire are the checksum's, lowest first.

use crc_fast::{CrcAlgorithm, Digest as Running};

/// Bytes of a digest.
pub const DIGEST: usize = 4;

/// A checksum that grows with what it covers.
pub struct Digest(Running);

impl Default for Digest {
    fn default() -> Self {
        Digest(Running::new(CrcAlgorithm::Crc32Iscsi))
    }
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> [u8; DIGEST] {
        let mut digest = Digest::default();
        digest.update(bytes);
        digest.bytes()
    }

    /// Covers `bytes`, too.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As it travels.
    #[must_use]
    pub fn bytes(&self) -> [u8; DIGEST] {
        let [a, b, c, d, ..] = self.0.finalize().to_le_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143, appendix A.4.
    #[test]
    fn the_standards_examples_hold() {
        assert_eq!(Digest::of(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(Digest::of(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(Digest::of(&rising), [0x4e, 0x79, 0xdd, 0x46]);
        let mut digest = Digest::default();
        rising.chunks(5).for_each(|part| digest.update(part));
        assert_eq!(digest.bytes(), Digest::of(&rising));
    }
}
