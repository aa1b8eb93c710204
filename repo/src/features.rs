//! Features that a later version may turn on, and what a version that does not know them may still do (FORMAT.md section 2).
//!
//! Not here: what a feature does. Version 1.0 of the format assigns [`PARITY`], [`TIERS`] and those of
//! [`StoreClass`]. What holds: what is unknown
//! is named, never skipped.

use crate::error::{Error, Kind, Result};
use crate::store_class::StoreClass;

/// The object that says that packs get parity. Whoever does not know it writes packs without, which are as good to read.
pub const PARITY: &str = "features/compat-parity";

/// The object that says that data packs may lie in cold tiers. Whoever does not know of them would take those packs for lost.
pub const TIERS: &str = "features/incompat-tiers";

/// What this version may do with a repository or a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Reading; the text says which feature forbids more.
    ReadOnly(String),
}

impl Access {
    /// What both allow.
    #[must_use]
    pub fn and(self, other: Access) -> Access {
        match self {
            Access::ReadWrite => other,
            Access::ReadOnly(why) => Access::ReadOnly(why),
        }
    }
}

/// The feature bits of a descriptor or a pack's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureBits {
    /// Needed to read.
    pub incompat: u32,
    /// Needed to write.
    pub ro_compat: u32,
    /// Not needed by whoever does not know it.
    pub compat: u32,
}

impl FeatureBits {
    /// Length of the encoding in bytes.
    pub const LEN: usize = 12;

    /// The encoding.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let words = [self.incompat, self.ro_compat, self.compat];
        let (fields, _) = out.as_chunks_mut::<4>();
        fields.iter_mut().zip(words).for_each(|(field, word)| *field = word.to_le_bytes());
        out
    }

    /// The bits with this encoding.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3] = *bytes;
        FeatureBits {
            incompat: u32::from_le_bytes([a0, a1, a2, a3]),
            ro_compat: u32::from_le_bytes([b0, b1, b2, b3]),
            compat: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// What this version may do with `what`, which has these bits; `Unsupported` when it may not even read.
    pub fn access(&self, what: &str) -> Result<Access> {
        if self.incompat != 0 {
            let bit = format!("incompat bit {}", self.incompat.trailing_zeros());
            return Err(Error::new(Kind::Unsupported, needs(what, &bit)));
        }
        if self.ro_compat != 0 {
            let bit = format!("ro_compat bit {}", self.ro_compat.trailing_zeros());
            return Ok(Access::ReadOnly(needs(what, &bit)));
        }
        Ok(Access::ReadWrite)
    }
}

/// What this version may do with a repository that has the object `name`, of the form `features/<class>-<name>`. A class
/// that it does not know counts as `incompat`.
pub fn access_with(name: &str) -> Result<Access> {
    if name == TIERS || StoreClass::of_feature(name).is_some() {
        return Ok(Access::ReadWrite);
    }
    let feature = name.strip_prefix("features/").unwrap_or(name);
    match feature.split_once('-') {
        Some(("compat", _)) => Ok(Access::ReadWrite),
        Some(("rocompat", _)) => Ok(Access::ReadOnly(needs("this repository", &format!("'{feature}'")))),
        _ => Err(Error::new(Kind::Unsupported, needs("this repository", &format!("'{feature}'")))),
    }
}

fn needs(what: &str, feature: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{what} needs feature {feature}, which this version ({version}) does not know; use a newer coffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_round_trip_in_their_order() {
        let bits = FeatureBits { incompat: 0x0403_0201, ro_compat: 0x0807_0605, compat: 0x0c0b_0a09 };
        assert_eq!(bits.encode(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(FeatureBits::decode(&bits.encode()), bits);
    }

    #[test]
    fn an_unknown_feature_is_named() {
        let none = FeatureBits::default();
        assert_eq!(none.access("pack x").unwrap(), Access::ReadWrite);
        assert_eq!(FeatureBits { compat: u32::MAX, ..none }.access("pack x").unwrap(), Access::ReadWrite);

        let refused = FeatureBits { incompat: 1 << 5, ro_compat: 1, ..none }.access("pack x").unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.context().starts_with("pack x needs feature incompat bit 5, which"), "{refused}");

        let Access::ReadOnly(why) = (FeatureBits { ro_compat: 1 << 31, ..none }).access("pack x").unwrap() else {
            panic!("writing is allowed");
        };
        assert!(why.starts_with("pack x needs feature ro_compat bit 31, which"), "{why}");
    }

    #[test]
    fn names_follow_the_same_rules() {
        for known in StoreClass::ALL.map(StoreClass::feature).iter().chain([&"features/compat-x", &PARITY]) {
            assert_eq!(access_with(known).unwrap(), Access::ReadWrite);
        }
        let Access::ReadOnly(why) = access_with("features/rocompat-shiny").unwrap() else {
            panic!("writing is allowed");
        };
        assert!(why.contains("feature 'rocompat-shiny'"), "{why}");
        for name in ["features/incompat-shiny", "features/shiny", "features/quantum-shiny", "features/"] {
            let refused = access_with(name).unwrap_err();
            assert_eq!(refused.kind(), Kind::Unsupported);
            assert!(refused.context().contains(&name["features/".len()..]), "{refused}");
        }
    }

    #[test]
    fn the_narrower_access_wins() {
        let narrow = || Access::ReadOnly("why".into());
        assert_eq!(Access::ReadWrite.and(Access::ReadWrite), Access::ReadWrite);
        assert_eq!(Access::ReadWrite.and(narrow()), narrow());
        assert_eq!(narrow().and(Access::ReadWrite), narrow());
    }
}
