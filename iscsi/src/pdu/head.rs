//! What every header has: 48 bytes with an opcode, two lengths and a tag.
//!
//! Not here: what each PDU has besides. What holds: reading a field outside the header is impossible by construction.

/// Bytes of a header, without additional segments.
pub const HEAD: usize = 48;
/// Instead of a tag: none.
pub const NO_TAG: u32 = u32::MAX;

/// A header as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub [u8; HEAD]);

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes of additional header segments, padding included.
    pub ahs: usize,
    /// Bytes of data, without padding.
    pub data: usize,
}

/// `len` with padding.
#[must_use]
pub const fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

impl Head {
    /// All zero but for the opcode.
    #[must_use]
    pub fn new(opcode: u8) -> Self {
        let mut head = Head([0; HEAD]);
        head.0[0] = opcode;
        head
    }

    /// The header that `bytes` begin with.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Head> {
        bytes.first_chunk().copied().map(Head)
    }

    /// What kind of PDU it is.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// Whether it is for immediate delivery.
    #[must_use]
    pub fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The second byte, with the flags of each kind.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Whether it is the last of its sequence.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// What follows.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        let [words, a, b, c] = self.bytes(4);
        Lengths { ahs: usize::from(words) * 4, data: u32::from_be_bytes([0, a, b, c]) as usize }
    }

    /// The initiator's task tag.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.u32(16)
    }

    /// Where a LUN is, if the PDU has one.
    #[must_use]
    pub fn lun(&self) -> [u8; 8] {
        self.bytes(8)
    }

    /// `N` bytes at `at`; zeroes where they do not exist.
    #[must_use]
    pub fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    /// One byte.
    #[must_use]
    pub fn u8(&self, at: usize) -> u8 {
        u8::from_be_bytes(self.bytes(at))
    }

    /// Two bytes.
    #[must_use]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes(at))
    }

    /// Four bytes.
    #[must_use]
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes(at))
    }

    /// Puts `bytes` at `at`; what lies outside is left out.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.0.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    }

    /// Notes how much data follows: below 16 MiB.
    pub fn set_data(&mut self, len: usize) {
        let [_, a, b, c] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
        self.put(5, &[a, b, c]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_standard_has_them() {
        let mut head = Head::new(0x41);
        head.put(1, &[0x80]);
        head.put(4, &[2]);
        head.set_data(0x01_0203);
        head.put(16, &7u32.to_be_bytes());
        assert!(head.is_immediate() && head.is_final());
        assert_eq!((head.opcode(), head.tag()), (1, 7));
        assert_eq!(head.lengths(), Lengths { ahs: 8, data: 0x01_0203 });
        assert_eq!((head.u32(46), head.u8(99)), (0, 0), "outside there is nothing");
        head.put(46, &[1, 2, 3, 4]);
        assert_eq!(head.u16(46), 0x0102);
        assert_eq!((padded(0), padded(1), padded(4)), (0, 4, 4));
    }
}
