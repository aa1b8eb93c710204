//! NBD URIs: `nbd://host[:port]/export` and `nbd+unix:///export?socket=path`, with TLS `nbds://` and `nbds+unix://`.
//!
//! With TLS, as libnbd has it: `tls-certificates=folder` (ca-cert.pem, and perhaps client-cert.pem and client-key.pem) and
//! `tls-hostname=name` (who the server has to be; else its host, or localhost for a socket file).
//!
//! Not here: connecting. What holds: percent escapes are decoded in host, export and parameters; what this client cannot do
//! (pre-shared keys, user names, unknown parameters) is refused by name, never ignored.

use super::tls::no_psk;
use crate::serving::Place;
use crate::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port that is registered for NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// Which export of which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub place: Place,
    /// The export; empty for the server's default one.
    pub export: String,
    /// With TLS, which then is a must; `None` without.
    pub tls: Option<TlsUri>,
}

/// What a URI says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsUri {
    /// The folder with the authority's certificate and perhaps the client's.
    pub certificates: Option<PathBuf>,
    /// Who the server has to be; its host, or localhost for a socket file, unless said otherwise.
    pub hostname: Option<String>,
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self> {
        let wrong = |why: &str| Error::invalid(format!("'{uri}' is not an NBD URI: {why}"));
        let (scheme, rest) =
            uri.split_once("://").ok_or_else(|| wrong("it does not begin with nbd:// or nbd+unix://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let decoded = |text: &str| percent_decoded(text).ok_or_else(|| wrong("a percent escape is malformed"));
        if uri.contains('#') || authority.contains('@') {
            return Err(wrong("it has a fragment or a user name"));
        }
        let export = decoded(path)?;
        let (scheme, mut tls) = match scheme {
            "nbds" => ("nbd", Some(TlsUri::default())),
            "nbds+unix" => ("nbd+unix", Some(TlsUri::default())),
            plain => (plain, None),
        };
        let mut socket = None;
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            match (parameter.split_once('='), &mut tls) {
                (Some(("socket", path)), _) if scheme == "nbd+unix" => socket = Some(PathBuf::from(decoded(path)?)),
                (Some(("tls-certificates", folder)), Some(tls)) => {
                    tls.certificates = Some(PathBuf::from(decoded(folder)?));
                }
                (Some(("tls-hostname", name)), Some(tls)) => tls.hostname = Some(decoded(name)?),
                (Some(("tls-verify-peer", "true" | "1")), Some(_)) => {}
                (Some(("tls-verify-peer", _)), Some(_)) => {
                    return Err(wrong("a server is always verified; name its authority by tls-certificates"));
                }
                (Some(("tls-psk-file" | "tls-username", _)), _) => return Err(no_psk(&format!("'{uri}'"))),
                _ => return Err(wrong(&format!("the parameter '{parameter}' is not known"))),
            }
        }
        let place = match scheme {
            "nbd" => {
                let (host, port) = split_port(authority).ok_or_else(|| wrong("the port is not a number"))?;
                if host.is_empty() {
                    return Err(wrong("it has no host"));
                }
                Place::Tcp(decoded(host)?, port)
            }
            "nbd+unix" if authority.is_empty() => {
                Place::Unix(socket.ok_or_else(|| wrong("the parameter 'socket' is missing"))?)
            }
            "nbd+unix" => return Err(wrong("nbd+unix has no host: write three slashes")),
            _ => return Err(wrong("the scheme is none of nbd, nbds, nbd+unix and nbds+unix")),
        };
        Ok(NbdUri { place, export, tls })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encoded(&self.export);
        let s = if self.tls.is_some() { "s" } else { "" };
        let mut parameters = Vec::new();
        match &self.place {
            Place::Unix(path) => {
                write!(f, "nbd{s}+unix:///{export}")?;
                parameters.push(("socket", percent_encoded(&path.to_string_lossy())));
            }
            Place::Tcp(host, port) if host.contains(':') => write!(f, "nbd{s}://[{host}]:{port}/{export}")?,
            Place::Tcp(host, port) => write!(f, "nbd{s}://{host}:{port}/{export}")?,
        }
        if let Some(TlsUri { certificates, hostname }) = &self.tls {
            let folder = certificates.as_ref().map(|folder| percent_encoded(&folder.to_string_lossy()));
            parameters.extend(folder.map(|folder| ("tls-certificates", folder)));
            parameters.extend(hostname.as_ref().map(|name| ("tls-hostname", percent_encoded(name))));
        }
        let mut before = '?';
        for (name, value) in parameters {
            write!(f, "{before}{name}={value}")?;
            before = '&';
        }
        Ok(())
    }
}

/// Host (without brackets) and port of an authority.
fn split_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    match port {
        Some(port) => Some((host, port.parse().ok()?)),
        None => Some((host, DEFAULT_PORT)),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        out.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(out).ok().filter(|s| !s.contains('\0'))
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => out.push(b.into()),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn parsed(uri: &str) -> NbdUri {
        uri.parse().unwrap()
    }

    #[test]
    fn uris_of_both_kinds_are_read() {
        let tcp = |host: &str, port, export: &str| NbdUri {
            place: Place::Tcp(host.into(), port),
            export: export.into(),
            tls: None,
        };
        assert_eq!(parsed("nbd://localhost"), tcp("localhost", DEFAULT_PORT, ""));
        assert_eq!(parsed("nbd://10.0.0.1:99/disk/0"), tcp("10.0.0.1", 99, "disk/0"));
        assert_eq!(parsed("nbd://[::1]:99/a%20b"), tcp("::1", 99, "a b"));
        let unix = NbdUri { place: Place::Unix("/run/a b.sock".into()), export: "vda".into(), tls: None };
        assert_eq!(parsed("nbd+unix:///vda?socket=/run/a%20b.sock"), unix);
        let tls = TlsUri { certificates: Some("/etc/a b".into()), hostname: Some("nas".into()) };
        let secret = "nbds+unix:///vda?socket=/run/a%20b.sock&tls-certificates=/etc/a%20b&tls-hostname=nas";
        assert_eq!(parsed(secret), NbdUri { tls: Some(tls), ..unix });
        assert_eq!(parsed("nbds://h?tls-verify-peer=true").tls, Some(TlsUri::default()));
        for uri in [
            "nbd://h:99/a%25",
            "nbd://[::1]:9/",
            "nbd+unix:///x%20y?socket=/run/%26.sock",
            "nbds://h:99/a%25",
            "nbds://[::1]:9/?tls-hostname=x",
            secret,
        ] {
            assert_eq!(parsed(&parsed(uri).to_string()), parsed(uri), "{uri}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for uri in [
            "",
            "nbd:localhost",
            "http://a/b",
            "nbd:///x",
            "nbd://h:port/",
            "nbd://h:70000/",
            "nbd://[::1/",
            "nbd://[::1]x/",
            "nbd://u@h/",
            "nbd://h/%zz",
            "nbd://h/%4",
            "nbd://h/%00",
            "nbd://h/%ff",
            "nbd://h/?socket=/a",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/a",
            "nbd+unix:///x?socket=/a&tls=1",
            "nbd://h/x?tls-certificates=/a",
            "nbds://h/x?tls-verify-peer=false",
            "nbds+unix:///x",
        ] {
            assert_eq!(uri.parse::<NbdUri>().unwrap_err().kind(), Kind::Invalid, "{uri}");
        }
        for uri in ["nbds://h/x?tls-psk-file=/k", "nbds://h/x?tls-username=me", "nbd://h/x?tls-psk-file=/k"] {
            let error = uri.parse::<NbdUri>().unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{uri}");
            assert!(error.to_string().contains("pre-shared keys"), "{error}");
        }
    }
}
