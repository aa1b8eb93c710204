//! What a disk is called: names that are equal on every path and after every restart, and different for different disks.
//!
//! Not here: pages that carry them. What holds: all names come from one hash of what the disk is, so that nothing has to be
//! remembered. The NAA name is a locally assigned one (3h), since nobody gave Coffer a number of the registration authority.

/// Names of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    hash: [u8; 32],
}

impl Identity {
    /// The names of what `text` says, which is the disk and nothing else.
    pub(super) fn of(text: &str) -> Self {
        Identity { hash: blake3::derive_key("coffer iscsi logical unit 1", text.as_bytes()) }
    }

    /// NAA 3h and 60 bits.
    pub(super) fn naa(&self) -> [u8; 8] {
        let mut name: [u8; 8] = std::array::from_fn(|i| self.hash.get(i).copied().unwrap_or(0));
        if let Some(first) = name.first_mut() {
            *first = 0x30 | (*first & 0x0f);
        }
        name
    }

    /// The same as text, "naa.3...".
    pub(super) fn naa_text(&self) -> String {
        format!("naa.{}", hex(&self.naa()))
    }

    /// 20 hexadecimal digits.
    pub(super) fn serial(&self) -> String {
        hex(self.hash.get(8..18).unwrap_or_default())
    }

    /// Vendor and 12 digits of the serial number, which is 20 bytes: what third-party copies have room for.
    pub(super) fn vendor_name(&self) -> [u8; 20] {
        let mut name = *b"COFFER  ............";
        let digits = hex(self.hash.get(8..14).unwrap_or_default());
        name.iter_mut().skip(8).zip(digits.bytes()).for_each(|(place, digit)| *place = digit);
        name
    }

    /// For names of files.
    pub(super) fn file_name(&self) -> String {
        hex(self.hash.get(..16).unwrap_or_default())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_were_and_differ() {
        let a = Identity::of("fork:web");
        assert_eq!(a, Identity::of("fork:web"));
        // Initiators remember these: they must not change from one version to the next.
        assert_eq!(a.naa_text(), "naa.35407edd3848e433");
        assert_eq!(a.serial(), "d277e6f147a85292f9d4");
        assert_eq!(a.vendor_name().to_vec(), format!("COFFER  {}", &a.serial()[..12]).into_bytes());
        let b = Identity::of("fork:db");
        assert!(a.naa() != b.naa() && a.serial() != b.serial() && a.file_name() != b.file_name());
    }
}
