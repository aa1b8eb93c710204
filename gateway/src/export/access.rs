//! Who may use an export: the kinds of proof that a client brings, and lists of them.
//!
//! Not here: how a proof is obtained (the doors), what follows from a refusal (the table of exports). What holds: an empty list
//! admits everybody, any other only whom one of its entries admits; a proof that a client does not bring admits nobody.

use crate::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A client, as far as a door knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where a client over the network comes from.
    pub address: Option<IpAddr>,
    /// The user that a client on a unix socket runs as, as the kernel tells.
    pub user: Option<u32>,
    /// The common name of the certificate that a client proved to have, once TLS is on and clients need certificates.
    pub certificate: Option<String>,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Leading bits that count.
    prefix: u8,
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Clients of this network.
    Network(Network),
    /// Clients whose certificate has this common name.
    Certificate(String),
    /// Clients on a unix socket that run as this user.
    User(u32),
}

/// Who may use an export. The default is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(Vec<Permit>);

impl Access {
    /// Those alone whom one of `permits` admits; everybody when there is none.
    #[must_use]
    pub fn only(permits: impl IntoIterator<Item = Permit>) -> Self {
        Access(permits.into_iter().collect())
    }

    /// Whether `peer` may use what this guards.
    #[must_use]
    pub fn admits(&self, peer: &Peer) -> bool {
        self.0.is_empty() || self.0.iter().any(|permit| permit.admits(peer))
    }
}

impl Permit {
    fn admits(&self, peer: &Peer) -> bool {
        match self {
            Permit::Network(network) => peer.address.is_some_and(|address| network.contains(address)),
            Permit::Certificate(name) => peer.certificate.as_ref() == Some(name),
            Permit::User(user) => peer.user == Some(*user),
        }
    }
}

impl Network {
    /// Whether `address` lies in it. An IPv4 address that came over an IPv6 socket counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let kept = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (ours.to_bits() ^ theirs.to_bits()) & kept == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let kept = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (ours.to_bits() ^ theirs.to_bits()) & kept == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    /// `10.0.0.0/8`, `::1/128`, or a single address.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("'{text}' is not a network such as 10.0.0.0/8 or fd00::/8"));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse::<u8>().map_err(|_| wrong())?,
            None => longest,
        };
        let network = Network { address, prefix };
        // An IPv4 network in the clothes of IPv6 would match nobody.
        if prefix > longest || address != address.to_canonical() {
            return Err(wrong());
        }
        Ok(network)
    }
}

impl FromStr for Permit {
    type Err = Error;

    /// A [`Network`], `cert:COMMON-NAME` or `uid:NUMBER`.
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("cert", "")) => Err(Error::invalid("'cert:' lacks the certificate's common name")),
            Some(("cert", name)) => Ok(Permit::Certificate(name.to_owned())),
            Some(("uid", number)) => match number.parse() {
                Ok(number) => Ok(Permit::User(number)),
                Err(_) => Err(Error::invalid(format!("'{text}' is not uid: and the number of a user"))),
            },
            _ => match text.parse() {
                Ok(network) => Ok(Permit::Network(network)),
                Err(_) => Err(Error::invalid(format!(
                    "'{text}' is neither a network such as 10.0.0.0/8 nor cert:NAME nor uid:NUMBER"
                ))),
            },
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.user) {
            (Some(address), _) => write!(f, "{address}")?,
            (None, Some(user)) => write!(f, "user {user}")?,
            (None, None) => write!(f, "somebody unknown")?,
        }
        match &self.certificate {
            Some(name) => write!(f, " with the certificate of '{}'", name.escape_debug()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Peer {
        Peer { address: Some(address.parse().unwrap()), ..Peer::default() }
    }

    #[test]
    fn networks_contain_what_they_say() {
        for (network, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/31", "::ffff:10.1.2.2", "::ffff:10.1.2.4"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::/0", "1::", "1.2.3.4"),
            ("::1/128", "::1", "::2"),
        ] {
            let access = Access::only([network.parse().unwrap()]);
            assert!(access.admits(&from(inside)), "{network} lacks {inside}");
            assert!(!access.admits(&from(outside)), "{network} has {outside}");
        }
    }

    #[test]
    fn a_proof_that_is_not_brought_admits_nobody() {
        let nobody = Peer::default();
        for text in ["0.0.0.0/0", "cert:web", "uid:0"] {
            assert!(!Access::only([text.parse().unwrap()]).admits(&nobody), "{text}");
        }
        assert!(Access::default().admits(&nobody));
        let several = Access::only(["cert:web".parse().unwrap(), "uid:0".parse().unwrap()]);
        assert!(several.admits(&Peer { user: Some(0), ..nobody.clone() }));
        assert!(several.admits(&Peer { certificate: Some("web".into()), ..nobody.clone() }));
        assert!(!several.admits(&Peer { certificate: Some("webs".into()), user: Some(1), ..nobody }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/",
            "host",
            "cert:",
            "uid:",
            "uid:x",
            "uid:-1",
            "::ffff:1.2.3.4/120",
        ] {
            assert!(bad.parse::<Permit>().is_err(), "{bad}");
        }
    }
}
