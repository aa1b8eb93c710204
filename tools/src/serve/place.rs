//! Where to listen, as a person writes it.
//!
//! Not here: listening.

use super::activation;
use crate::exit::Result;
use coffer_gateway::nbd::Listener;
use coffer_repo::Error;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Socket(PathBuf),
    /// Looked up when it is needed.
    HostAndPort(String),
    /// All sockets that systemd hands over.
    Systemd,
}

/// Permission bits of a socket file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketMode(u32);

impl Place {
    /// The same with the path of a socket taken to be below `folder`, unless it is absolute.
    pub(super) fn below(self, folder: &Path) -> Place {
        match self {
            Place::Socket(path) => Place::Socket(folder.join(path)),
            other => other,
        }
    }
}

impl SocketMode {
    /// For the owner alone.
    pub(super) const OWN: SocketMode = SocketMode(0o600);
}

/// What to listen on. Sockets that were handed over are taken once, however often they are named.
pub(super) fn listeners(places: &[Place], SocketMode(mode): SocketMode) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for place in places {
        match place {
            Place::Socket(path) => listeners.push(Listener::Unix { path: path.clone(), mode }),
            Place::HostAndPort(text) => match text.to_socket_addrs().map(|mut addresses| addresses.next()) {
                Ok(Some(address)) => listeners.push(Listener::Tcp(address)),
                Ok(None) => return Err(Error::invalid(format!("{text} has no address")).into()),
                Err(e) => return Err(Error::invalid(format!("looking up {text}")).with_source(e).into()),
            },
            Place::Systemd => {}
        }
    }
    if places.contains(&Place::Systemd) {
        listeners.extend(activation::sockets()?.into_iter().map(|socket| Listener::Inherited(Arc::new(socket))));
    }
    Ok(listeners)
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "systemd" {
            return Ok(Place::Systemd);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: lacks the path of the socket".to_owned()),
                path => Ok(Place::Socket(path.into())),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Place::HostAndPort(text.to_owned()))
            }
            _ => Err("neither HOST:PORT, as in 127.0.0.1:10809, nor unix:PATH, nor systemd".to_owned()),
        }
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(SocketMode(mode)),
            _ => Err("not permission bits in octal, such as 0660".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sockets_or_ports() {
        for (text, place) in [
            ("unix:/run/x.sock", Place::Socket("/run/x.sock".into())),
            ("unix:a:1", Place::Socket("a:1".into())),
            ("unix:systemd", Place::Socket("systemd".into())),
            ("localhost:10809", Place::HostAndPort("localhost:10809".into())),
            ("[::1]:0", Place::HostAndPort("[::1]:0".into())),
            ("systemd", Place::Systemd),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
        for bad in ["", "unix:", ":10809", "localhost", "localhost:", "localhost:99999", "/run/x.sock", "Systemd"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!("0660".parse(), Ok(SocketMode(0o660)));
        assert_eq!("666".parse(), Ok(SocketMode(0o666)));
        for bad in ["", "0680", "4755", "u=rw", "-1", "+600"] {
            assert!(bad.parse::<SocketMode>().is_err(), "{bad}");
        }
    }
}
