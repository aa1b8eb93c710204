//! CHAP, one-way and mutual, as RFC 7143 (12.1.3) has it.
//!
//! ```text
//!   initiator: CHAP_A=8,7,6,5          target: CHAP_A=8 CHAP_I=.. CHAP_C=..
//!   initiator: CHAP_N=.. CHAP_R=..     target: done
//!          and CHAP_I=.. CHAP_C=..             CHAP_N=.. CHAP_R=..
//! ```
//! Not here: where secrets come from, and when a login has to bring proof. What holds: answers are compared in constant time; a
//! challenge of ours that comes back as the initiator's is refused, so that nobody has us answer ourselves; secrets are wiped and
//! never shown; MD5 only where it is allowed.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, rand};
use coffer_gateway::{Error, Result};
use md5::{Digest as _, Md5};
use std::fmt;
use zeroize::Zeroizing;

/// A shorter secret can be guessed from one login that somebody overheard.
const MIN_SECRET: usize = 12;
const MAX_SECRET: usize = 256;
/// Of a challenge, in bytes.
const MAX_CHALLENGE: usize = 1024;
const OWN_CHALLENGE: usize = 32;

/// A hash that both sides know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 5; broken, for initiators that know nothing else.
    Md5,
    /// 6.
    Sha1,
    /// 7.
    Sha256,
    /// 8.
    Sha3,
}

impl Algorithm {
    /// All, the best one first.
    pub const ALL: [Algorithm; 4] = [Algorithm::Sha3, Algorithm::Sha256, Algorithm::Sha1, Algorithm::Md5];

    /// Its number in CHAP_A.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha1 => 6,
            Algorithm::Sha256 => 7,
            Algorithm::Sha3 => 8,
        }
    }

    /// What a side that has `secret` answers to a challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let parts = [&[id], secret.0.as_slice(), challenge];
        let hash = |algorithm: &'static digest::Algorithm| {
            let mut context = digest::Context::new(algorithm);
            parts.iter().for_each(|part| context.update(part));
            context.finish().as_ref().to_vec()
        };
        match self {
            Algorithm::Md5 => {
                let mut context = Md5::new();
                parts.iter().for_each(|part| context.update(part));
                context.finalize().to_vec()
            }
            Algorithm::Sha1 => hash(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            Algorithm::Sha256 => hash(&digest::SHA256),
            Algorithm::Sha3 => hash(&digest::SHA3_256),
        }
    }
}

/// What is shared between two and told to nobody.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// 12 to 256 bytes; else `Invalid`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = Zeroizing::new(bytes.into());
        if !(MIN_SECRET..=MAX_SECRET).contains(&bytes.len()) {
            let text = format!("a CHAP secret has {MIN_SECRET} to {MAX_SECRET} bytes, this one {}", bytes.len());
            return Err(Error::invalid(text));
        }
        Ok(Secret(bytes))
    }

    fn is(&self, other: &Secret) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Who proves to be somebody, and by what.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// CHAP_N.
    pub name: String,
    /// The secret.
    pub secret: Secret,
}

/// What is asked of an initiator.
#[derive(Clone, Debug)]
pub struct Chap {
    initiator: Credentials,
    target: Option<Credentials>,
}

impl Chap {
    /// The initiator has to prove to be `initiator`, and the target proves to be `target` if it is asked to. The same secret for both
    /// is `Invalid`: whoever can have one answered had the other. So is a name that is empty.
    pub fn new(initiator: Credentials, target: Option<Credentials>) -> Result<Self> {
        if initiator.name.is_empty() || target.as_ref().is_some_and(|target| target.name.is_empty()) {
            return Err(Error::invalid("who proves to be somebody by CHAP needs a name"));
        }
        if target.as_ref().is_some_and(|target| target.secret.is(&initiator.secret)) {
            let text =
                format!("the CHAP secrets of '{}' and of the target are the same; choose another one", initiator.name);
            return Err(Error::invalid(text));
        }
        Ok(Chap { initiator, target })
    }
}

/// A challenge on its way.
#[derive(Debug)]
pub(super) struct Challenge {
    algorithm: Algorithm,
    id: u8,
    bytes: Vec<u8>,
}

/// The login ends: the initiator did not prove to be who it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

type Pairs = Vec<(String, String)>;

impl Challenge {
    /// Answers the algorithms that the initiator offers: the first of them that is allowed.
    pub(super) fn new(offered: &str, allow_md5: bool) -> Result<(Self, Pairs), Refused> {
        let is_allowed = |algorithm: &Algorithm| *algorithm != Algorithm::Md5 || allow_md5;
        let known = |number: &str| Algorithm::ALL.into_iter().find(|a| a.number().to_string() == number);
        let algorithm = offered.split(',').filter_map(known).find(is_allowed).ok_or(Refused)?;
        let mut random = [0; OWN_CHALLENGE + 1];
        rand::fill(&mut random).map_err(|_| Refused)?;
        let [id, bytes @ ..] = random;
        let answer = vec![
            ("CHAP_A".to_owned(), algorithm.number().to_string()),
            ("CHAP_I".to_owned(), id.to_string()),
            ("CHAP_C".to_owned(), hex(&bytes)),
        ];
        Ok((Challenge { algorithm, id, bytes: bytes.to_vec() }, answer))
    }

    /// Judges the initiator's answer, and answers its own challenge if there is one.
    pub(super) fn judge(&self, chap: &Chap, said: &[(String, String)]) -> Result<Pairs, Refused> {
        let find = |key: &str| said.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let (name, response) = (find("CHAP_N").ok_or(Refused)?, find("CHAP_R").ok_or(Refused)?);
        let response = binary(response).ok_or(Refused)?;
        let due = self.algorithm.response(self.id, &chap.initiator.secret, &self.bytes);
        let is_right = verify_slices_are_equal(&due, &response).is_ok();
        if !is_right || name != chap.initiator.name {
            return Err(Refused);
        }
        let (Some(id), Some(challenge)) = (find("CHAP_I"), find("CHAP_C")) else {
            return match (find("CHAP_I"), find("CHAP_C")) {
                (None, None) => Ok(Vec::new()),
                _ => Err(Refused),
            };
        };
        let own = chap.target.as_ref().ok_or(Refused)?;
        let id = id.parse::<u8>().map_err(|_| Refused)?;
        let challenge = binary(challenge).filter(|c| (1..=MAX_CHALLENGE).contains(&c.len())).ok_or(Refused)?;
        if challenge == self.bytes {
            return Err(Refused);
        }
        let response = self.algorithm.response(id, &own.secret, &challenge);
        Ok(vec![("CHAP_N".to_owned(), own.name.clone()), ("CHAP_R".to_owned(), hex(&response))])
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold("0x".to_owned(), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// A binary value: hexadecimal after `0x`, base64 after `0b`.
fn binary(text: &str) -> Option<Vec<u8>> {
    let (radix, digits) = text.split_at_checked(2)?;
    if digits.len() > 2 * MAX_CHALLENGE {
        return None;
    }
    match radix {
        "0x" | "0X" => {
            let nibble = |byte: u8| char::from(byte).to_digit(16).and_then(|n| u8::try_from(n).ok());
            let nibbles = digits.bytes().map(nibble).collect::<Option<Vec<u8>>>()?;
            // An odd digit is the first byte's.
            let (first, rest) = nibbles.split_at(nibbles.len() % 2);
            let bytes = rest.chunks_exact(2).filter_map(|pair| Some(pair.first()? << 4 | pair.last()?));
            Some(first.iter().copied().chain(bytes).collect())
        }
        "0b" | "0B" => base64(digits),
        _ => None,
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=').bytes().map(sextet).collect::<Option<Vec<u8>>>()?;
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len());
    for group in digits.chunks(4) {
        let all = group.iter().fold(0u32, |all, digit| all << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        let [_, bytes @ ..] = all.to_be_bytes();
        out.extend(bytes.iter().take(group.len() * 6 / 8));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(name: &str, secret: &str) -> Credentials {
        Credentials { name: name.into(), secret: Secret::new(secret).unwrap() }
    }

    fn pairs(pairs: &[(&str, String)]) -> Pairs {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
    }

    /// Computed with another program: `printf '\001secretsecret\002' | md5sum` and so on.
    #[test]
    fn known_answers() {
        let secret = Secret::new("secretsecret").unwrap();
        for (algorithm, due) in [
            (Algorithm::Md5, "239e51867bb10478e992c33085ac52a2"),
            (Algorithm::Sha1, "62dcce059cc4420b9d6e2ae9490cdbce3a3fefae"),
            (Algorithm::Sha256, "f1d2f6c7bd90ea0c42f36a81dbc17b2292a321ced89cf5ac2847108a14776607"),
            (Algorithm::Sha3, "a26256bb1f6dd353b1216c3813a5a09f3234f8b2a4b6b08b84a185628a8c34a4"),
        ] {
            assert_eq!(hex(&algorithm.response(1, &secret, &[2])), format!("0x{due}"), "{algorithm:?}");
        }
    }

    #[test]
    fn the_first_that_is_offered_and_allowed_is_taken() {
        let taken = |offered, md5| Challenge::new(offered, md5).map(|(c, _)| c.algorithm.number()).ok();
        assert_eq!(taken("5,6,7,8", false), Some(6));
        assert_eq!(taken("5,7", true), Some(5));
        assert_eq!(taken("8,7,6,5", false), Some(8));
        assert_eq!(taken("5", false), None);
        assert_eq!(taken("05,x,,256", true), None);
    }

    #[test]
    fn who_knows_both_secrets_gets_in_and_nobody_else() {
        let chap = Chap::new(credentials("joe", "initiators secret"), Some(credentials("disk", "the targets secret")))
            .unwrap();
        for algorithm in Algorithm::ALL {
            let (challenge, said) = Challenge::new(&algorithm.number().to_string(), true).unwrap();
            let sent = binary(&said[2].1).unwrap();
            let id: u8 = said[1].1.parse().unwrap();
            let right = hex(&algorithm.response(id, &Secret::new("initiators secret").unwrap(), &sent));
            let wrong = hex(&algorithm.response(id, &Secret::new("another secret").unwrap(), &sent));
            let judge = |said: &[(&str, String)]| challenge.judge(&chap, &pairs(said));
            let name = ("CHAP_N", "joe".to_owned());
            assert_eq!(judge(&[name.clone(), ("CHAP_R", right.clone())]), Ok(Vec::new()));
            for refused in [
                &[name.clone(), ("CHAP_R", wrong)][..],
                &[("CHAP_N", "jim".to_owned()), ("CHAP_R", right.clone())],
                std::slice::from_ref(&name),
                &[("CHAP_R", right.clone())],
                &[name.clone(), ("CHAP_R", "0x".to_owned())],
                &[name.clone(), ("CHAP_R", right.clone()), ("CHAP_I", "1".to_owned())],
                &[name.clone(), ("CHAP_R", right.clone()), ("CHAP_I", "1".into()), ("CHAP_C", "0x".into())],
                &[name.clone(), ("CHAP_R", right.clone()), ("CHAP_I", "256".into()), ("CHAP_C", "0x01".into())],
                // Our own challenge, sent back.
                &[name.clone(), ("CHAP_R", right.clone()), ("CHAP_I", "1".into()), ("CHAP_C", hex(&sent))],
            ] {
                assert_eq!(judge(refused), Err(Refused), "{refused:?}");
            }
            let answered =
                judge(&[name, ("CHAP_R", right), ("CHAP_I", "200".into()), ("CHAP_C", "0bAQID".into())]).unwrap();
            let due = algorithm.response(200, &Secret::new("the targets secret").unwrap(), &[1, 2, 3]);
            assert_eq!(answered, pairs(&[("CHAP_N", "disk".into()), ("CHAP_R", hex(&due))]));
        }
    }

    #[test]
    fn secrets_are_long_and_different_and_not_shown() {
        assert!(Secret::new("short").is_err());
        let same = || credentials("a", "the same secret");
        assert!(Chap::new(same(), Some(same())).unwrap_err().to_string().contains("'a'"));
        assert!(Chap::new(credentials("", "some secret of it"), None).is_err());
        assert!(Chap::new(same(), Some(credentials("", "some secret of it"))).is_err());
        assert!(!format!("{:?}", same()).contains("same"));
    }

    #[test]
    fn binary_values_come_in_two_spellings() {
        assert_eq!(binary("0x0102fF").unwrap(), [1, 2, 255]);
        assert_eq!(binary("0x102").unwrap(), [1, 2]);
        assert_eq!(binary("0bAQL/").unwrap(), [1, 2, 255]);
        assert_eq!(binary("0bAQI=").unwrap(), [1, 2]);
        assert_eq!(binary("0bAQ==").unwrap(), [1]);
        for wrong in ["", "0", "0102", "0xg0", "0bA", "0b?", "é"] {
            assert_eq!(binary(wrong), None, "{wrong}");
        }
    }
}
