//! Whether bytes read as zeroes: asked of every block by chunking, sources and restore.
//!
//! Not here: what is done about a zero block. What holds: pure, and a block that is not zero is mostly known by its first
//! bytes, so the cost of asking falls on zero blocks alone.

/// Bytes looked at before the next decision: enough for several vector registers, little enough to stop early.
const STRIDE: usize = 128;

/// Whether all of `bytes` are zero; true of none at all.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    // Folding a whole stride without a branch is what lets the compiler use wide registers.
    strides.iter().all(|stride| stride.iter().fold(0, |seen, byte| seen | byte) == 0) && rest.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_seen_at_every_length() {
        for length in (0..=3 * STRIDE).chain([4095, 4096, 4097]) {
            let mut bytes = vec![0u8; length];
            assert!(is_zero(&bytes), "{length} zeroes");
            for at in 0..length {
                for bit in [0x01, 0x80] {
                    bytes[at] = bit;
                    assert!(!is_zero(&bytes), "{bit:#x} at {at} of {length}");
                }
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn alignment_does_not_matter() {
        let mut bytes = vec![0u8; 1024];
        bytes[0] = 1;
        bytes[1023] = 1;
        for start in 1..64 {
            assert!(is_zero(&bytes[start..1023]), "from {start}");
            assert!(!is_zero(&bytes[start..]), "from {start} to the end");
        }
        assert!(!is_zero(&bytes[..1023]));
    }
}
