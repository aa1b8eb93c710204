//! Where a repository is, as people write it: a folder, or an object store's URL and options.
//!
//! ```text
//!   /srv/backups                      a folder; also ./s3://x, since "://" after a '/' is no scheme
//!   s3://bucket/prefix                azblob gcs swift oss cos b2: container or bucket, then a prefix
//!   webdav://host[:port]/path         sftp://[user@]host[:port]/path
//!   -o endpoint=https://... -o region=eu-1 ...     OPTIONS: what may be said about which store, and no more
//! ```
//! Not here: opening it ([`super::open`]), secrets ([`super::secrets`]). What holds: it is pure; what passes here is complete and
//! means one thing; nothing that looks like a secret is accepted or repeated, since addresses are shown, stored and logged.

use super::schedule::Schedule;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The kinds of object store there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Amazon S3 and whatever speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Azblob,
    /// Google Cloud Storage.
    Gcs,
    /// OpenStack Swift.
    Swift,
    /// Alibaba Cloud OSS.
    Oss,
    /// Tencent Cloud COS.
    Cos,
    /// Backblaze B2 by its own protocol.
    B2,
    /// A WebDAV server.
    Webdav,
    /// A folder behind SSH.
    Sftp,
}

use Scheme::{Azblob, B2, Cos, Gcs, Oss, S3, Sftp, Swift, Webdav};

/// All of them, with the names they have in URLs.
const SCHEMES: &[(&str, Scheme)] = &[
    ("s3", S3),
    ("azblob", Azblob),
    ("gcs", Gcs),
    ("swift", Swift),
    ("oss", Oss),
    ("cos", Cos),
    ("b2", B2),
    ("webdav", Webdav),
    ("sftp", Sftp),
];
/// Those that are spoken to by HTTP.
const HTTP: &[Scheme] = &[S3, Azblob, Gcs, Swift, Oss, Cos, B2, Webdav];
const ALL: &[Scheme] = &[S3, Azblob, Gcs, Swift, Oss, Cos, B2, Webdav, Sftp];

/// What an option's value may be.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Any text that is not empty.
    Text,
    /// An `http://` or `https://` URL without user or query.
    Url,
    /// One of these words.
    One(&'static [&'static str]),
    /// A whole number in a range.
    Count(u64, u64),
    /// Bytes: a number with K, M or G, at least so many.
    Size(u64),
    /// Bytes a second, by the time of day: a [`Schedule`].
    Rates,
}

/// One row of the table of options.
struct Row {
    name: &'static str,
    schemes: &'static [Scheme],
    form: Form,
    says: &'static str,
}

/// A row on one line: name, schemes, form, what it says.
const fn row(name: &'static str, schemes: &'static [Scheme], form: Form, says: &'static str) -> Row {
    Row { name, schemes, form, says }
}

/// The least memory for uploads: what one large object takes.
const LEAST_MEMORY: u64 = 64 << 20;

/// What may be said about which store. Names are format: configuration files hold them.
const OPTIONS: &[Row] = &[
    row("endpoint", &[S3, Azblob, Gcs, Oss, Cos], Form::Url, "the store's URL, without the bucket"),
    row("region", &[S3, Swift], Form::Text, "the region, as the store names it"),
    row("style", &[S3], Form::One(&["path", "virtual"]), "whether the bucket is in the URL's path or its host name"),
    row(
        "storage-class",
        &[S3, Gcs],
        Form::Text,
        "the storage class of new objects; one that freezes them (GLACIER, DEEP_ARCHIVE) is for packs only",
    ),
    row(
        "checksum",
        &[S3],
        Form::One(&["crc32c", "md5"]),
        "send this checksum with every object, as object lock wants it",
    ),
    row("profile", &[S3], Form::Text, "the profile of the AWS configuration to take credentials from"),
    row("role", &[S3], Form::Text, "the ARN of the role to assume"),
    row("account", &[Azblob], Form::Text, "the storage account"),
    row("anonymous", &[S3, Azblob, Gcs], Form::One(&["yes", "no"]), "send no credentials at all"),
    row("auth-url", &[Swift], Form::Url, "where tokens are had: .../auth/v1.0 or Keystone's .../v3"),
    row("auth", &[Swift], Form::One(&["v1", "v3"]), "how: v1 and tempauth, or Keystone v3 (the default)"),
    row("project", &[Swift], Form::Text, "the project (tenant)"),
    row("user-domain", &[Swift], Form::Text, "the user's domain; 'Default' if not said"),
    row("project-domain", &[Swift], Form::Text, "the project's domain; 'Default' if not said"),
    row("storage-url", &[Swift], Form::Url, "the account's URL, where it is not the one that comes with the token"),
    row("bucket-id", &[B2], Form::Text, "the bucket's id, as B2 shows it beside its name"),
    row("protocol", &[Webdav], Form::One(&["https", "http"]), "whether to speak TLS (the default)"),
    row("identity-file", &[Sftp], Form::Text, "the file with ssh's private key; without it as ssh is configured"),
    row(
        "known-hosts",
        &[Sftp],
        Form::One(&["strict", "add", "accept"]),
        "what to do about a host that ssh does not know",
    ),
    row("secret-file", ALL, Form::Text, "the file with the store's secrets, one NAME=VALUE a line"),
    row("proxy", HTTP, Form::Url, "the HTTP proxy to go through"),
    row("ca-file", HTTP, Form::Text, "certificates (PEM) to trust besides the machine's own"),
    row("connections", HTTP, Form::Count(1, 512), "most requests at once"),
    row("memory", ALL, Form::Size(LEAST_MEMORY), "most bytes held for uploads at once"),
    row(
        "part",
        ALL,
        Form::Size(5 << 20),
        "the size of the parts of large objects, and of what goes in one request; 16M",
    ),
    row("upload", HTTP, Form::Rates, "most bytes a second up: 20M, or by local time: 08:00-18:00=20M,*=0"),
    row("download", HTTP, Form::Rates, "the same down"),
    row("hedge", HTTP, Form::One(&["on", "off"]), "whether a read that takes unusually long is asked for twice"),
    row("patience", ALL, Form::Count(1, 86_400), "seconds for which a store that fails is asked again"),
];

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A place in an object store.
    Object(ObjectAddress),
}

/// A place in an object store, and what was said about the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectAddress {
    scheme: Scheme,
    /// The bucket or container; for WebDAV and SFTP the host with user and port.
    place: String,
    /// The path below it, without a slash at either end; may be empty.
    prefix: String,
    options: BTreeMap<&'static str, String>,
}

impl Address {
    /// Reads a location and what was said about it as `(name, value)`. `Invalid`: an unknown scheme, option or value, what
    /// cannot be a bucket or a prefix, or what looks like a secret; the error names it and says what there is.
    pub fn parse(location: &str, options: &[(String, String)]) -> Result<Address> {
        match location.split_once("://") {
            _ if location.is_empty() => Err(Error::invalid("the repository's location is empty")),
            Some((scheme, rest)) if !scheme.contains('/') => {
                Ok(Address::Object(ObjectAddress::parse(Scheme::parse(scheme)?, rest, options)?))
            }
            _ => match options.first() {
                None => Ok(Address::Folder(PathBuf::from(location))),
                Some((name, _)) => Err(Error::invalid(format!(
                    "option '{}' says something about an object store, and {location} is a folder",
                    shown(name)
                ))),
            },
        }
    }
}

impl Address {
    /// Whether a location begins like an object store's, whatever follows.
    #[must_use]
    pub fn is_object_store(location: &str) -> bool {
        location.split_once("://").is_some_and(|(scheme, _)| Scheme::parse(scheme).is_ok())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Folder(path) => path.display().fmt(f),
            Address::Object(address) => address.fmt(f),
        }
    }
}

impl Scheme {
    /// By its name in a URL; `Invalid` lists those there are.
    fn parse(name: &str) -> Result<Scheme> {
        SCHEMES.iter().find(|(known, _)| *known == name).map(|(_, scheme)| *scheme).ok_or_else(|| {
            let known: Vec<_> = SCHEMES.iter().map(|(known, _)| format!("{known}://")).collect();
            let why =
                format!("{}:// is no place for a repository: there are folders, {}", shown(name), known.join(", "));
            Error::invalid(why)
        })
    }

    /// Its name in a URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        SCHEMES.iter().find(|(_, scheme)| *scheme == self).map_or("", |(name, _)| name)
    }

    /// Whether it is spoken to by HTTP.
    #[must_use]
    pub fn is_http(self) -> bool {
        HTTP.contains(&self)
    }
}

impl ObjectAddress {
    fn parse(scheme: Scheme, rest: &str, said: &[(String, String)]) -> Result<ObjectAddress> {
        let name = scheme.name();
        if let Some(at) = rest.find(['?', '#']) {
            let before = rest.get(..at).unwrap_or_default();
            let why =
                format!("{name}://{}: nothing follows the path; options go into -o NAME=VALUE", without_user(before));
            return Err(Error::invalid(why));
        }
        let (place, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_place(scheme, place)?;
        let prefix = prefix.trim_end_matches('/');
        check_prefix(scheme, place, prefix)?;
        let mut options = BTreeMap::new();
        for (option, value) in said {
            let row = find_option(scheme, option)?;
            row.form.check(row.name, value)?;
            if options.insert(row.name, value.clone()).is_some() {
                return Err(Error::invalid(format!("option '{}' is said twice", row.name)));
            }
        }
        Ok(ObjectAddress { scheme, place: place.to_owned(), prefix: prefix.to_owned(), options })
    }

    /// Which kind of store.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket or container; for WebDAV and SFTP the host with user and port.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The path below it, without a slash at either end; may be empty.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What was said under that name.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        debug_assert!(OPTIONS.iter().any(|row| row.name == name), "{name} is in the table");
        self.options.get(name).map(String::as_str)
    }

    /// Whether that was said to be so: `yes` or `on`.
    #[must_use]
    pub fn is_on(&self, name: &str, default: bool) -> bool {
        self.option(name).map_or(default, |value| value == "yes" || value == "on")
    }

    /// A number, or bytes; the form was checked when the address was read.
    #[must_use]
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.option(name).and_then(|value| parse_size(value).ok()).unwrap_or(default)
    }

    /// A limit by the time of day.
    #[must_use]
    pub fn rates(&self, name: &str) -> Schedule {
        self.option(name).and_then(|value| Schedule::parse(value).ok()).unwrap_or_default()
    }
}

impl fmt::Display for ObjectAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.place)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// One option as it is written: NAME=VALUE. `Invalid` never repeats the value.
pub fn parse_option(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(Error::invalid("an option is written NAME=VALUE")),
    }
}

/// The table of options as text for help: a line each.
#[must_use]
pub fn options_help() -> String {
    let line = |row: &Row| {
        let schemes: Vec<_> = row.schemes.iter().map(|scheme| scheme.name()).collect();
        let schemes = match row.schemes.len() {
            n if n == ALL.len() => "all".to_owned(),
            n if n == HTTP.len() => "all but sftp".to_owned(),
            _ => schemes.join(" "),
        };
        let values = match row.form {
            Form::One(words) => words.join("|"),
            Form::Text => "TEXT".to_owned(),
            Form::Url => "URL".to_owned(),
            Form::Count(..) => "N".to_owned(),
            Form::Size(_) => "BYTES".to_owned(),
            Form::Rates => "RATES".to_owned(),
        };
        let name = format!("{}={values}", row.name);
        format!("  {name:<24}{} ({schemes})\n", row.says)
    };
    OPTIONS.iter().map(line).collect()
}

fn find_option(scheme: Scheme, name: &str) -> Result<&'static Row> {
    let mine = |row: &&Row| row.schemes.contains(&scheme);
    if let Some(row) = OPTIONS.iter().filter(mine).find(|row| row.name == name) {
        return Ok(row);
    }
    let lower = name.to_ascii_lowercase();
    if ["secret", "password", "passwd", "token", "key", "credential", "sas"].iter().any(|word| lower.contains(word)) {
        return Err(Error::invalid(format!(
            "option '{}' looks like a secret, and others can read command lines: put it into a file and say \
             -o secret-file=FILE, or into the environment",
            shown(name)
        )));
    }
    let known: Vec<_> = OPTIONS.iter().filter(mine).map(|row| row.name).collect();
    let why = format!("{}:// has no option '{}': there are {}", scheme.name(), shown(name), known.join(", "));
    Err(Error::invalid(why))
}

impl Form {
    /// Refuses a value that does not have the form.
    fn check(self, name: &str, value: &str) -> Result<()> {
        let refuse = |why: String| Err(Error::invalid(format!("option '{name}': {why}")));
        if value.is_empty() {
            return refuse("it is empty".to_owned());
        }
        if value.chars().any(char::is_control) {
            return refuse("it holds control characters".to_owned());
        }
        match self {
            Form::Text => Ok(()),
            Form::Url => {
                let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
                match rest {
                    None | Some("") => refuse("it is a URL that begins with https:// or http://".to_owned()),
                    Some(rest) if rest.contains('@') => refuse(
                        "a URL with a user or password in it is not taken; say secrets by -o secret-file=FILE"
                            .to_owned(),
                    ),
                    Some(rest) if rest.contains(['?', '#', ' ']) => {
                        refuse("it is a URL without '?', '#' and spaces".to_owned())
                    }
                    Some(_) => Ok(()),
                }
            }
            Form::One(words) if words.contains(&value) => Ok(()),
            Form::One(words) => refuse(format!("'{}' is none of {}", shown(value), words.join(", "))),
            Form::Count(least, most) => match value.parse::<u64>() {
                Ok(n) if (least..=most).contains(&n) => Ok(()),
                _ => refuse(format!("'{}' is no number from {least} to {most}", shown(value))),
            },
            Form::Size(least) => match parse_size(value) {
                Ok(bytes) if bytes >= least => Ok(()),
                Ok(_) => refuse(format!("at least {} MiB", least >> 20)),
                Err(e) => Err(e.within(format!("option '{name}'"))),
            },
            Form::Rates => Schedule::parse(value).map(|_| ()).map_err(|e| e.within(format!("option '{name}'"))),
        }
    }
}

/// Bytes: a number, with K, M, G or T for powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64> {
    let refuse = || Error::invalid(format!("'{}' is no number of bytes: write 20M, 512K or 1G", shown(text)));
    let (digits, shift) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(refuse()),
            };
            (text.get(..at).unwrap_or_default(), shift)
        }
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

/// Refuses what cannot be a bucket, or a host with user and port.
fn check_place(scheme: Scheme, place: &str) -> Result<()> {
    let name = scheme.name();
    let (user, host) = match place.rsplit_once('@') {
        None => (None, place),
        Some((user, host)) => (Some(user), host),
    };
    let what = if matches!(scheme, Webdav | Sftp) { "host" } else { "bucket" };
    match user {
        Some(user) if user.contains(':') => {
            return Err(Error::invalid(format!(
                "{name}://{host}: a password in a URL can be read by others; put it into a file and say -o secret-file=FILE{}",
                if scheme == Sftp { ", or a key where ssh finds it" } else { "" }
            )));
        }
        Some(user) if scheme != Sftp || !is_plain(user, "._-") => {
            let why = format!("{name}://{host}: the part before '@' is not understood; users and secrets go elsewhere");
            return Err(Error::invalid(why));
        }
        _ => {}
    }
    let (host, port) = match (what, host.rsplit_once(':')) {
        ("host", Some((host, port))) => (host, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err(Error::invalid(format!("{name}://{host}: the port is no number from 1 to 65535")));
    }
    if !is_plain(host, "._-") || host.len() > 255 || host.starts_with('-') {
        return Err(Error::invalid(format!("{name}://: '{}' cannot be the name of a {what}", shown(host))));
    }
    Ok(())
}

/// Refuses a path whose parts a store might understand in its own way.
fn check_prefix(scheme: Scheme, place: &str, prefix: &str) -> Result<()> {
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && is_plain(part, "._=+- ~");
    if prefix.is_empty() || (prefix.len() <= 512 && prefix.split('/').all(is_part)) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{}://{place}: '{}' cannot be a path: it has parts of letters, digits and ._=+-~ joined by one '/', and is at most 512 \
         bytes long",
        scheme.name(),
        shown(prefix)
    )))
}

fn is_plain(text: &str, besides: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
}

/// What a user wrote, fit for an error's line.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn without_user(text: &str) -> String {
    shown(text.rsplit_once('@').map_or(text, |(_, host)| host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::path::Path;

    fn said(options: &[&str]) -> Vec<(String, String)> {
        options.iter().map(|option| parse_option(option).unwrap()).collect()
    }

    fn parse(location: &str, options: &[&str]) -> Result<ObjectAddress> {
        match Address::parse(location, &said(options))? {
            Address::Object(address) => Ok(address),
            Address::Folder(path) => panic!("a folder: {path:?}"),
        }
    }

    #[test]
    fn folders_stay_folders() {
        for path in ["/srv/b", "./a:b", "./s3://x", "relative", "s3:/x", "s3"] {
            assert_eq!(Address::parse(path, &[]).unwrap(), Address::Folder(Path::new(path).to_owned()));
        }
        assert_eq!(Address::parse("", &[]).unwrap_err().kind(), Kind::Invalid);
        let error = Address::parse("/srv/b", &said(&["region=x"])).unwrap_err();
        assert!(error.context().contains("'region'") && error.context().contains("/srv/b"), "{error}");
    }

    #[test]
    fn urls_are_taken_apart() {
        let good = [
            ("s3://bucket", S3, "bucket", ""),
            ("s3://bucket/", S3, "bucket", ""),
            ("s3://my.bucket/a/b/", S3, "my.bucket", "a/b"),
            ("azblob://c/p", Azblob, "c", "p"),
            ("gcs://b_1/p", Gcs, "b_1", "p"),
            ("swift://c/a b", Swift, "c", "a b"),
            ("oss://b", Oss, "b", ""),
            ("cos://b-125", Cos, "b-125", ""),
            ("b2://b/x", B2, "b", "x"),
            ("webdav://host:8080/dav/x", Webdav, "host:8080", "dav/x"),
            ("sftp://me@host:2222/srv/x", Sftp, "me@host:2222", "srv/x"),
            ("sftp://host/x", Sftp, "host", "x"),
        ];
        for (url, scheme, place, prefix) in good {
            let address = parse(url, &[]).unwrap();
            assert_eq!((address.scheme(), address.place(), address.prefix()), (scheme, place, prefix), "{url}");
            assert_eq!(address.to_string(), url.trim_end_matches('/'));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let bad: &[(&str, &[&str], &[&str])] = &[
            ("ftp://host/x", &[], &["ftp://", "s3://", "sftp://", "folders"]),
            ("S3://b", &[], &["S3://", "s3://"]),
            ("s3://", &[], &["bucket"]),
            ("s3:///x", &[], &["bucket"]),
            ("s3://b/a//b", &[], &["'a//b'"]),
            ("s3://b/../x", &[], &["'../x'"]),
            ("s3://b/a%20b", &[], &["a%20b"]),
            ("s3://b/x?region=1", &[], &["-o"]),
            ("s3://b:80/x", &[], &["b:80"]),
            ("webdav://h:0/x", &[], &["port"]),
            ("sftp://h:99999/x", &[], &["port"]),
            ("sftp://-oProxyCommand=x/x", &[], &["host"]),
            ("sftp://-x/x", &[], &["host"]),
            ("s3://b", &["colour=red"], &["'colour'", "endpoint", "region"]),
            ("azblob://b", &["region=red"], &["azblob://", "'region'", "account"]),
            ("sftp://h/x", &["proxy=http://x"], &["'proxy'", "identity-file"]),
            ("s3://b", &["style=both"], &["'style'", "'both'", "path, virtual"]),
            ("s3://b", &["endpoint=host:80"], &["'endpoint'", "https://"]),
            ("s3://b", &["connections=0"], &["'connections'", "1 to 512"]),
            ("s3://b", &["memory=1M"], &["'memory'", "64 MiB"]),
            ("s3://b", &["memory=1Q"], &["'memory'", "1Q"]),
            ("s3://b", &["upload=fast"], &["'upload'", "fast"]),
            ("s3://b", &["region="], &["'region'", "empty"]),
            ("s3://b", &["region=a", "region=b"], &["'region'", "twice"]),
        ];
        for (location, options, says) in bad {
            let error = Address::parse(location, &said(options)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(says.iter().all(|word| error.context().contains(word)), "{location} {options:?}: {error}");
        }
        assert!(parse_option("region").is_err() && parse_option("=x").is_err());
    }

    #[test]
    fn secrets_are_refused_and_never_repeated() {
        let bad: &[(&str, &[&str])] = &[
            ("s3://AKIA:hunter2@bucket/x", &[]),
            ("webdav://me:hunter2@host/x", &[]),
            ("sftp://me:hunter2@host/x", &[]),
            ("s3://me:hunter2@bucket/x?y", &[]),
            ("s3://b", &["secret=hunter2"]),
            ("s3://b", &["secret_access_key=hunter2"]),
            ("azblob://b", &["account-key=hunter2"]),
            ("azblob://b", &["sas-token=hunter2"]),
            ("swift://b", &["password=hunter2"]),
            ("s3://b", &["endpoint=https://me:hunter2@host"]),
            ("s3://b", &["proxy=http://me:hunter2@host"]),
        ];
        for (location, options) in bad {
            let error = Address::parse(location, &said(options)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            let text = format!("{error:?}");
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains("secret-file") || text.contains("-o"), "no way out: {text}");
        }
    }

    #[test]
    fn options_have_values() {
        let options = ["endpoint=http://h:1", "region=eu", "memory=64M", "connections=7", "hedge=off", "upload=1M"];
        let address = parse("s3://b/p", &options).unwrap();
        assert_eq!(address.option("region"), Some("eu"));
        assert_eq!((address.number("memory", 0), address.number("connections", 1)), (64 << 20, 7));
        assert_eq!(address.number("patience", 9), 9);
        assert!(!address.is_on("hedge", true) && !address.is_on("anonymous", false));
        assert_eq!(address.rates("upload").rate_at(0), Some(1 << 20));
        assert_eq!(address.rates("download").rate_at(0), None);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("7", 7), ("2K", 2048), ("20m", 20 << 20), ("1G", 1 << 30), ("1T", 1 << 40)] {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        for bad in ["", "M", "-1", "1.5M", "1MB", "99999999999999999999", "99999999999T", "\u{e4}", "1\u{e4}"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn help_names_every_option() {
        let help = options_help();
        assert_eq!(help.lines().count(), OPTIONS.len());
        assert!(help.contains("style=path|virtual") && help.contains("all but sftp"), "{help}");
    }
}
