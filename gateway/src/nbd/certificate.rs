//! The common name in a certificate (X.509, DER), to tell clients apart by.
//!
//! Not here: whether the certificate is genuine: it was verified before anybody asks. What holds: no bytes make it panic or
//! allocate; a subject with no common name, several, or one that is not plain text has none, so that nobody is taken for
//! somebody else.

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const VERSION: u8 = 0xa0;
/// 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// No name is longer, says X.520; more is kept from nobody's memory but ours.
const MAX_NAME: usize = 64;

/// The subject's one common name.
pub(crate) fn common_name(certificate: &[u8]) -> Option<&str> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer, validity; then the subject.
    for _ in 0..4 {
        fields = next(fields)?.2;
    }
    let (mut names, _) = element(fields, SEQUENCE)?;
    let mut found = None;
    while !names.is_empty() {
        let (mut set, rest) = element(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (attribute, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(attribute, OBJECT_ID)?;
            if kind != COMMON_NAME {
                continue;
            }
            let (UTF8_STRING | PRINTABLE_STRING, text, []) = next(value)? else { return None };
            if found.replace(text).is_some() {
                return None;
            }
        }
    }
    let name = std::str::from_utf8(found?).ok()?;
    (!name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_control)).then_some(name)
}

/// The content of the element of this tag that `bytes` begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    next(bytes).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// The element that `bytes` begin with: tag, content, and what follows it. Lengths of up to three bytes, in their one form.
fn next(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let len = digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit));
            (len, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        // Enough of them that the lengths above the subject take two bytes.
        let others =
            ["one", "another", "a third", "a fourth"].map(|n| format!("{}.somewhere.example", n.replace(' ', "-")));
        let mut params = CertificateParams::new(others).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_subjects_common_name_is_found() {
        let names =
            [(DnType::CountryName, "DE"), (DnType::OrganizationName, "x"), (DnType::CommonName, "backup client ä")];
        assert_eq!(common_name(&certificate(&names)), Some("backup client ä"));
        assert_eq!(common_name(&certificate(&names[..2])), None);
        assert_eq!(common_name(&certificate(&[(DnType::CommonName, "")])), None);
        assert_eq!(common_name(&certificate(&[(DnType::CommonName, "root\0.example")])), None);
        assert_eq!(common_name(&certificate(&[(DnType::CommonName, &"x".repeat(65))])), None);
    }

    #[test]
    fn two_common_names_are_none() {
        let one = certificate(&[(DnType::CommonName, "a")]);
        // The attribute's set: 55 04 03, UTF-8 "a"; the same again behind it, all lengths above grown by as much.
        let set = [0x31, 10, 0x30, 8, 6, 3, 0x55, 4, 3, 0x0c, 1, b'a'];
        let subject = [&[SEQUENCE, 12][..], &set].concat();
        let at = one.windows(subject.len()).rposition(|w| w == subject).unwrap();
        let mut two = one.clone();
        two.splice(at + 1..at + 14, [&[24][..], &set, &set].concat());
        for at in [2, 6] {
            let len = u16::from_be_bytes([two[at], two[at + 1]]) + 12;
            two[at..at + 2].copy_from_slice(&len.to_be_bytes());
        }
        assert_eq!(common_name(&one), Some("a"));
        assert_eq!(common_name(&two), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let _ = common_name(&bytes);
            static SOUND: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut near = SOUND.get_or_init(|| certificate(&[(DnType::CommonName, "a")])).clone();
            let at = at.index(near.len());
            near[at] ^= 1 << bit;
            let _ = (common_name(&near), common_name(&near[..at]));
        }
    }
}
