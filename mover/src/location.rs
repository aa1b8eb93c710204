//! Where a disk comes from or goes to, as a person writes it: `[DISK=]LOCATION`.
//!
//! Not here: opening anything. What holds: parsing looks at the text only, so that one spelling means one thing whatever
//! files lie about; a path that looks like something else is written with a leading `./`.

use crate::{Error, Kind, Result};
use coffer_gateway::nbd::NbdUri;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest name of a disk, in bytes: it becomes a file's name in a mount.
const LONGEST_NAME: usize = 64;

/// A place that holds or takes a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Standard input or output, written `-`.
    Standard,
    /// A file or a block device.
    Path(PathBuf),
    /// An NBD export.
    Nbd(NbdUri),
}

impl FromStr for Location {
    type Err = Error;

    /// Takes `-`, an NBD URI, or a path. Another scheme is `Unsupported`, by name.
    fn from_str(text: &str) -> Result<Self> {
        match scheme(text) {
            _ if text.is_empty() => Err(Error::invalid("an empty location: a path, an nbd:// URI or - is due")),
            _ if text == "-" => Ok(Location::Standard),
            None => Ok(Location::Path(PathBuf::from(text))),
            Some("nbd" | "nbd+unix" | "nbds" | "nbds+unix") => Ok(Location::Nbd(text.parse()?)),
            Some(other) => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "'{text}': '{other}:' is not a kind of location this version knows; \
                     it knows paths, nbd://, nbd+unix:// and - (a file of that name is written ./{text})"
                ),
            )),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Standard => f.write_str("-"),
            Location::Path(path) => write!(f, "{}", path.display()),
            Location::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

/// A disk to be backed up: its name in the snapshot and where it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// The disk's name in the snapshot: given, or taken from the location.
    pub disk: String,
    /// Where it is read.
    pub location: Location,
}

impl FromStr for SourceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // A name holds neither '/' nor ':', so `./a=b.raw` and `nbd://host/a=b` are locations.
        if let Some((name, location)) = text.split_once('=')
            && !name.contains(['/', ':'])
        {
            check_name(name)?;
            return Ok(SourceSpec { disk: name.to_owned(), location: location.parse()? });
        }
        let location: Location = text.parse()?;
        Ok(SourceSpec { disk: default_name(&location), location })
    }
}

/// The text before a `:` that comes before any `/`.
fn scheme(text: &str) -> Option<&str> {
    let (before, _) = text.split_once(':')?;
    (!before.contains('/')).then_some(before)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn check_name(name: &str) -> Result<()> {
    let fits =
        !name.is_empty() && name.len() <= LONGEST_NAME && !name.starts_with('.') && name.bytes().all(is_name_byte);
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "'{name}' cannot be a disk's name: up to {LONGEST_NAME} letters, digits, '.', '_' and '-', not starting with '.', \
         are due (a file of that name is written with a leading ./)"
    )))
}

/// The name a disk gets when none is given: the same for the same location, so that the next run finds its parent.
fn default_name(location: &Location) -> String {
    let raw = match location {
        Location::Standard => "stdin".to_owned(),
        Location::Path(path) => stem(path),
        Location::Nbd(uri) => uri.export.clone(),
    };
    let mut name: String =
        raw.chars().map(|c| if u8::try_from(c).is_ok_and(is_name_byte) { c } else { '_' }).take(LONGEST_NAME).collect();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    if name.is_empty() { "disk".to_owned() } else { name }
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (String, Location) {
        let s: SourceSpec = text.parse().unwrap();
        (s.disk, s.location)
    }

    fn path(text: &str) -> Location {
        Location::Path(PathBuf::from(text))
    }

    fn nbd(uri: &str) -> Location {
        Location::Nbd(uri.parse().unwrap())
    }

    #[test]
    fn names_come_from_the_text_before_the_sign_or_from_the_location() {
        for (text, name, location) in [
            ("vda=/srv/a.qcow2", "vda", path("/srv/a.qcow2")),
            ("/srv/web 1.qcow2", "web_1", path("/srv/web 1.qcow2")),
            ("./a=b.raw", "a_b", path("./a=b.raw")),
            ("/dev/vg/root", "root", path("/dev/vg/root")),
            ("./nbd:x", "nbd_x", path("./nbd:x")),
            (".hidden", "_hidden", path(".hidden")),
            ("..", "disk", path("..")),
            ("-", "stdin", Location::Standard),
            ("sda=-", "sda", Location::Standard),
            ("nbd://host/disk", "disk", nbd("nbd://host/disk")),
            ("nbd://host", "disk", nbd("nbd://host")),
            ("nbd+unix:///sda?socket=/run/a=b", "sda", nbd("nbd+unix:///sda?socket=/run/a=b")),
            ("x=nbd+unix:///?socket=s", "x", nbd("nbd+unix:///?socket=s")),
            (
                "nbds://host/disk?tls-certificates=/etc/pki/x",
                "disk",
                nbd("nbds://host/disk?tls-certificates=/etc/pki/x"),
            ),
        ] {
            assert_eq!(spec(text), (name.to_owned(), location), "{text}");
        }
    }

    #[test]
    fn other_schemes_are_named_and_bad_names_refused() {
        for (text, kind) in [
            ("libvirt:web1", Kind::Unsupported),
            ("a=rbd:pool/image", Kind::Unsupported),
            ("nbds://host/x?tls-psk-file=/k", Kind::Unsupported),
            ("", Kind::Invalid),
            ("=/srv/a.raw", Kind::Invalid),
            ("a b=/srv/a.raw", Kind::Invalid),
            (".a=/srv/a.raw", Kind::Invalid),
            ("a=", Kind::Invalid),
        ] {
            assert_eq!(text.parse::<SourceSpec>().unwrap_err().kind(), kind, "{text}");
        }
        let error = "libvirt:web1".parse::<Location>().unwrap_err();
        assert!(error.to_string().contains("'libvirt:'"), "{error}");
    }
}
