//! Big-endian fields of CDBs, parameter lists and replies.
//!
//! Not here: which fields there are. What holds: nothing panics; a field that lies beyond the end reads as zero, so that whoever
//! needs to know asks for the length first.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(at.saturating_add(i)).copied().unwrap_or(0))
}

/// The byte at `at`.
pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Whether `mask` has a bit in common with the byte at `at`.
pub(super) fn has(bytes: &[u8], at: usize, mask: u8) -> bool {
    byte(bytes, at) & mask != 0
}

/// Two bytes from `at` on.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// Three.
pub(super) fn be24(bytes: &[u8], at: usize) -> u32 {
    let [a, b, c] = array(bytes, at);
    u32::from_be_bytes([0, a, b, c])
}

/// Four.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// Eight.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// Puts `value` into `out` at `at`, as far as there is room.
pub(super) fn put(out: &mut [u8], at: usize, value: &[u8]) {
    out.iter_mut().skip(at).zip(value).for_each(|(place, byte)| *place = *byte);
}

/// A count as two bytes; what does not fit is all ones.
pub(super) fn count16(count: usize) -> [u8; 2] {
    u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes()
}

/// A count as four bytes, likewise.
pub(super) fn count32(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()
}

/// `text` in `len` bytes of ASCII: cut, or filled up with blanks.
pub(super) fn ascii(text: &str, len: usize) -> Vec<u8> {
    let mut out: Vec<u8> = text.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' }).take(len).collect();
    out.resize(len, b' ');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_end_are_zeroes() {
        assert_eq!(be16(&[1, 2, 3], 1), 0x0203);
        assert_eq!(be24(&[1, 2, 3], 0), 0x0001_0203);
        assert_eq!(be32(&[1, 2, 3], 1), 0x0203_0000);
        assert_eq!(be64(&[1], usize::MAX), 0);
        let mut out = [0; 3];
        put(&mut out, 2, &[7, 8]);
        assert_eq!(out, [0, 0, 7]);
        assert_eq!(ascii("a\u{e9}bc", 4), b"a??b");
        assert_eq!(ascii("a", 3), b"a  ");
    }
}
