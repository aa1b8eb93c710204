//! The configuration of a gateway: a file in TOML.
//!
//! ```text
//!   listen = ["127.0.0.1:10809", "unix:/run/coffer.sock"]     keys are spelled as the options of 'serve nbd'
//!   socket-mode = "0660"                                      max-connections, max-requests, cache-size, readahead
//!   metrics = "127.0.0.1:9109"                                and control, the path of the control socket
//!   [tls]                                                     cert, key, client-ca, demand = "required" or "allowed"
//!   cert = "server.pem"
//!   [[export]]                                                point or fork, and perhaps allow, limit, changed-since
//!   name = "vda"
//!   point = "web1@latest:vda"
//! ```
//! Not here: opening anything. What holds: a key that is not known is refused by its name and line; files and sockets are looked for
//! beside the configuration file, unless their paths are absolute; no value is told that could be a secret.

use super::offer::{ExportSpec, Offer};
use super::place::{Place, SocketMode};
use super::{Demand, Encryption};
use crate::budgets::{Budgets, parse_size};
use crate::exit::{Result, wrong_use};
use std::path::{Path, PathBuf};
use toml_edit::{Document, Item, TableLike};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    /// What takes a restart to be changed.
    pub(super) frame: Frame,
    pub(super) exports: Vec<Offer>,
}

/// What is the same for all exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) listen: Vec<Place>,
    pub(super) socket_mode: SocketMode,
    pub(super) max_connections: u32,
    pub(super) max_requests: u16,
    pub(super) budgets: Budgets,
    pub(super) metrics: Option<Place>,
    pub(super) control: Option<PathBuf>,
    pub(super) encryption: Encryption,
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Configuration> {
    let wrong = |why: &str| wrong_use(format!("configuration {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&format!("it cannot be read: {e}")))?;
    parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(|why| wrong(why.trim_end()))
}

type Parsed<T> = std::result::Result<T, String>;

/// A table of the file, with what is needed to say where something stands.
struct Section<'a> {
    text: &'a str,
    table: &'a dyn TableLike,
    /// What it is called in messages.
    name: &'a str,
}

impl Section<'_> {
    /// Refuses keys that are not among `known`.
    fn check_keys(&self, known: &[&str]) -> Parsed<()> {
        match self.table.iter().find(|(key, _)| !known.contains(key)) {
            Some((key, _)) => Err(self.wrong(key, &format!("is not known; {} has {}", self.name, known.join(", ")))),
            None => Ok(()),
        }
    }

    /// Says what is wrong with a key, and where it stands.
    fn wrong(&self, key: &str, why: &str) -> String {
        let span = self.table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span()));
        match span.and_then(|span| self.text.get(..span.start)) {
            Some(before) => format!("line {}: '{key}' {why}", before.matches('\n').count() + 1),
            None => format!("{}: '{key}' {why}", self.name),
        }
    }

    fn text(&self, key: &str) -> Parsed<Option<&str>> {
        let item = self.table.get(key);
        item.map(|item| item.as_str().ok_or_else(|| self.wrong(key, "is not a text"))).transpose()
    }

    /// A text that means something.
    fn parsed<T>(&self, key: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Parsed<Option<T>> {
        let text = self.text(key)?;
        text.map(|text| parse(text).map_err(|why| self.wrong(key, &format!("is not what it should be: {why}"))))
            .transpose()
    }

    fn number<T: TryFrom<i64>>(&self, key: &str, least: i64, most: i64, default: T) -> Parsed<T> {
        let Some(item) = self.table.get(key) else { return Ok(default) };
        let number = item.as_integer().filter(|number| (least..=most).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.wrong(key, &format!("is not a number from {least} to {most}")))
    }

    fn texts(&self, key: &str) -> Parsed<Vec<String>> {
        let Some(item) = self.table.get(key) else { return Ok(Vec::new()) };
        let texts = item.as_array().and_then(|array| {
            array.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
        });
        texts.ok_or_else(|| self.wrong(key, "is not a list of texts"))
    }
}

fn parse(text: &str, folder: &Path) -> Parsed<Configuration> {
    let document = Document::parse(text).map_err(|e| e.to_string())?;
    let file = Section { text, table: document.as_table(), name: "the file" };
    file.check_keys(&[
        "listen",
        "socket-mode",
        "max-connections",
        "max-requests",
        "cache-size",
        "readahead",
        "metrics",
        "control",
        "tls",
        "export",
    ])?;
    let place = |text: &str| Ok(text.parse::<Place>()?.below(folder));
    let listen = file.texts("listen")?;
    let listen = listen.iter().map(|text| place(text).map_err(|why| file.wrong("listen", &format!("{text}: {why}"))));
    let listen = listen.collect::<Parsed<Vec<Place>>>()?;
    if listen.is_empty() {
        return Err("it lacks 'listen', the places to listen at, as in listen = [\"unix:/run/coffer.sock\"]".to_owned());
    }
    let default = Budgets::default();
    let frame = Frame {
        listen,
        socket_mode: file.parsed("socket-mode", str::parse)?.unwrap_or(SocketMode::OWN),
        max_connections: file.number("max-connections", 1, 100_000, 128)?,
        max_requests: file.number("max-requests", 1, 4096, 128)?,
        budgets: Budgets {
            cache_size: file.parsed("cache-size", parse_size)?.unwrap_or(default.cache_size),
            readahead: file.parsed("readahead", parse_size)?.unwrap_or(default.readahead),
        },
        metrics: file.parsed("metrics", |text| place(text))?,
        control: file.text("control")?.map(|path| folder.join(path)),
        encryption: encryption(&file, folder)?,
    };
    let exports = exports(&file)?;
    if frame.encryption.tls_client_ca.is_none()
        && let Some(export) = exports.iter().find(|export| export.names_certificate())
    {
        let name = &export.spec.name;
        return Err(format!("export '{name}' allows certificates: that needs TLS with 'client-ca'"));
    }
    Ok(Configuration { frame, exports })
}

fn encryption(file: &Section<'_>, folder: &Path) -> Parsed<Encryption> {
    let Some(item) = file.table.get("tls") else { return Ok(Encryption::default()) };
    let table = item.as_table_like().ok_or_else(|| file.wrong("tls", "is not a table"))?;
    let section = Section { text: file.text, table, name: "[tls]" };
    section.check_keys(&["cert", "key", "client-ca", "demand"])?;
    let path = |key: &str| Ok::<_, String>(section.text(key)?.map(|path| folder.join(path)));
    let (tls_cert, tls_key, tls_client_ca) = (path("cert")?, path("key")?, path("client-ca")?);
    if tls_cert.is_none() || tls_key.is_none() {
        return Err(file.wrong("tls", "lacks 'cert' or 'key'"));
    }
    let tls = section.parsed("demand", |text| match text {
        "required" => Ok(Demand::Required),
        "allowed" => Ok(Demand::Allowed),
        _ => Err("there are required and allowed".to_owned()),
    })?;
    Ok(Encryption { tls_cert, tls_key, tls_client_ca, tls: tls.unwrap_or(Demand::Required), tls_psk: None })
}

fn exports(file: &Section<'_>) -> Parsed<Vec<Offer>> {
    let tables: Vec<&dyn TableLike> = match file.table.get("export") {
        None => Vec::new(),
        Some(Item::ArrayOfTables(tables)) => tables.iter().map(|table| table as &dyn TableLike).collect(),
        Some(_) => return Err(file.wrong("export", "is not a list of tables: write [[export]]")),
    };
    let mut exports: Vec<Offer> = Vec::new();
    for table in tables {
        let section = Section { text: file.text, table, name: "[[export]]" };
        section.check_keys(&["name", "point", "fork", "allow", "limit", "changed-since"])?;
        let (name, point, fork) = (section.text("name")?, section.text("point")?, section.text("fork")?);
        let (spec, key) = match (point, fork) {
            (Some(point), None) => (ExportSpec::of_point(name.unwrap_or(point), point), "point"),
            (None, Some(fork)) => (ExportSpec::of_fork(name.unwrap_or(fork), fork), "fork"),
            (Some(_), Some(_)) => {
                return Err(section.wrong("fork", "stands beside 'point'; an export is of one of them"));
            }
            (None, None) => {
                let name = name.map_or_else(String::new, |name| format!(" '{name}'"));
                return Err(format!("the [[export]]{name} lacks 'point' or 'fork'"));
            }
        };
        let spec = spec.map_err(|e| section.wrong(key, &format!("is not what it should be: {e}")))?;
        let (allow, limit) = (section.texts("allow")?, section.text("limit")?);
        let offer = Offer::of(spec, &allow, limit, &section.texts("changed-since")?);
        let offer = offer.map_err(|why| section.wrong(key, &format!("is exported with something amiss: {why}")))?;
        if exports.iter().any(|other| other.spec.name == offer.spec.name) {
            let why = format!("is exported as '{}', which is taken; choose another name", offer.spec.name);
            return Err(section.wrong(key, &why));
        }
        exports.push(offer);
    }
    Ok(exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
listen = ["127.0.0.1:10809", "unix:nbd.sock"] # two places
socket-mode = "0660"
max-connections = 1000
cache-size = "1G"
metrics = "unix:/run/metrics"
control = "control"

[tls]
cert = "server.pem"
key = "/etc/server.key"
client-ca = "ca.pem"
demand = "allowed"

[[export]]
name = "vda"
point = "web1@latest:vda"
allow = ["10.0.0.0/8", "cert:hypervisor"]
limit = "2000/100M"
changed-since = ["web1@-1", "all"]

[[export]]
fork = "lab"
"#;

    #[test]
    fn a_file_says_what_the_command_line_says() {
        let Configuration { frame, exports } = parse(WHOLE, Path::new("/etc/coffer")).unwrap();
        assert_eq!(
            frame.listen,
            [Place::HostAndPort("127.0.0.1:10809".into()), Place::Socket("/etc/coffer/nbd.sock".into())]
        );
        assert_eq!((frame.max_connections, frame.max_requests, frame.budgets.cache_size), (1000, 128, 1 << 30));
        assert_eq!(frame.metrics, Some(Place::Socket("/run/metrics".into())));
        assert_eq!(frame.control, Some("/etc/coffer/control".into()));
        assert_eq!(frame.encryption.tls_cert, Some("/etc/coffer/server.pem".into()));
        assert_eq!(frame.encryption.tls_key, Some("/etc/server.key".into()));
        assert_eq!(frame.encryption.tls, Demand::Allowed);
        let vda: ExportSpec = "vda=web1@latest:vda".parse().unwrap();
        assert_eq!((&exports[0].spec, exports[0].permits.len()), (&vda, 2));
        assert_eq!((exports[0].changed_since.len(), exports[0].limits.operations.unwrap().get()), (2, 2000));
        assert_eq!(exports[1].spec, "lab=fork:lab".parse().unwrap());
        let least = parse("listen = ['unix:s']", Path::new("")).unwrap();
        assert_eq!(least.frame.listen, [Place::Socket("s".into())]);
        assert!(least.exports.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (bad, words) in [
            ("listen = ['unix:s']\n\nlistne = 1", &["line 3", "'listne'"] as &[&str]),
            ("listen = ['unix:s']\n[tls]\ncertificate = 'x'", &["line 3", "'certificate'", "[tls]"]),
            ("listen = ['unix:s']\n[[export]]\npoint = 'a@latest'\nreadonly = true", &["line 4", "'readonly'"]),
            ("listen = ['unix:s']\n[tls]\ncert = 'x'", &["line 2", "'key'"]),
            ("listen = ['nowhere']", &["line 1", "nowhere"]),
            ("listen = 'unix:s'", &["line 1", "list of texts"]),
            ("socket-mode = '0600'", &["'listen'"]),
            ("listen = ['unix:s']\nmax-requests = 0", &["line 2", "1 to 4096"]),
            ("listen = ['unix:s']\nsocket-mode = '999'", &["line 2", "octal"]),
            ("listen = ['unix:s']\n[[export]]\nname = 'x'", &["'x'", "'point' or 'fork'"]),
            ("listen = ['unix:s']\n[[export]]\npoint = 'a@latest'\nfork = 'f'", &["line 4", "'point'"]),
            ("listen = ['unix:s']\n[[export]]\npoint = 'a@noon'", &["line 3", "noon"]),
            ("listen = ['unix:s']\n[[export]]\npoint = 'a@latest'\nlimit = '0/'", &["line 3", "limit of 0"]),
            ("listen = ['unix:s']\n[[export]]\npoint = 'a@latest'\nallow = ['cert:x']", &["client-ca"]),
            (
                "listen = ['unix:s']\n[[export]]\nname = 'x'\nfork = 'a'\n[[export]]\nname = 'x'\nfork = 'b'",
                &["line 7", "'x'", "taken"],
            ),
            ("listen = ['unix:s']\nexport = 1", &["line 2", "[[export]]"]),
            ("listen = ", &["line 1"]),
        ] {
            let why = parse(bad, Path::new("")).unwrap_err();
            for word in words {
                assert!(why.contains(word), "{bad}\n{why}");
            }
        }
    }
}
