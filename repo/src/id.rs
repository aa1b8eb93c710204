//! Names of things: newtypes over fixed byte arrays, shown as lower-case hex.
//!
//! Not here: how an id is computed (that is [`crate::crypto`] for keyed hashes, [`crate::entropy`] for random ones). What
//! holds: two kinds of id never mix, since each is a type of its own.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Takes the bytes of an id; a wrong length is [`Kind::Corrupt`](crate::error::Kind::Corrupt).
            pub fn from_slice(bytes: &[u8]) -> Result<Self> {
                match <[u8; $len]>::try_from(bytes) {
                    Ok(a) => Ok($name(a)),
                    Err(_) => Err(Error::corrupt(format!(
                        concat!("a ", stringify!($name), " of {} bytes where ", stringify!($len), " are due"),
                        bytes.len()
                    ))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                let mut bytes = [0u8; $len];
                parse_hex(text, &mut bytes).ok_or_else(|| {
                    Error::invalid(format!(concat!("'{}' is not a ", stringify!($name)), text))
                })?;
                Ok($name(bytes))
            }
        }
    };
}

id!(
    /// Keyed BLAKE3 of a chunk's plaintext.
    ChunkId, 32
);
id!(
    /// Keyed BLAKE3 of a disk-map node without its hints.
    NodeId, 32
);
id!(
    /// Random name of a pack.
    PackUid, 16
);
id!(
    /// Random name of a repository.
    RepoId, 16
);
id!(
    /// Who signed: the first 16 bytes of BLAKE3 of an Ed25519 public key. The authority has one too.
    SignerId, 16
);
id!(
    /// Whom a pack key is sealed to: the first 16 bytes of BLAKE3 of an X25519 public key.
    RecipientId, 16
);
id!(
    /// Random name of a claim, and so of a snapshot or a pin.
    SnapshotId, 16
);
id!(
    /// Keyed hash of a workload's name: the folder its claims lie in.
    WorkloadTag, 16
);
id!(
    /// Random name of a key slot.
    SlotId, 16
);
id!(
    /// Random name of a session, a forget or another small record.
    RecordId, 16
);

/// Lower-case hex digits, two for each byte.
pub(crate) fn write_hex(f: &mut dyn fmt::Write, bytes: &[u8]) -> fmt::Result {
    for b in bytes {
        write!(f, "{b:02x}")?;
    }
    Ok(())
}

/// Parses exactly `2 * out.len()` lower-case hex digits; names in a store have one spelling only.
pub(crate) fn parse_hex(text: &str, out: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != out.len() * 2 {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    for (pair, byte) in digits.chunks_exact(2).zip(out.iter_mut()) {
        if let [hi, lo] = pair {
            *byte = nibble(*hi)? << 4 | nibble(*lo)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_other_spellings() {
        let id = PackUid([0x0f; 16]);
        assert_eq!(id.to_string().parse::<PackUid>().unwrap(), id);
        for bad in ["", "0f", &"0F".repeat(16), &"zz".repeat(16), &"0f".repeat(17)] {
            assert!(bad.parse::<PackUid>().is_err(), "{bad}");
        }
    }
}
