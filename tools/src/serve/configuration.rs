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
//!   [iscsi]                                                   listen, allow-md5, max-connections
//!   listen = ["10.0.0.1:3260"]
//!   [[target]]                                                name, and any number of [[target.lun]] and [[target.initiator]]
//!   name = "iqn.2026-01.com.example:web1"
//!   [[target.lun]]                                            number, point or fork, and perhaps block-size, physical-block-size, limit
//!   number = 0
//!   fork = "lab"
//!   [[target.initiator]]                                      all of name, allow, chap-user, chap-secret (a file), target-user,
//!   name = "iqn.1993-08.org.debian:01:abc"                    target-secret, luns may be left out; without any everybody may
//! ```
//! Not here: opening anything. What holds: a key that is not known is refused by its name and line; files and sockets are looked for
//! beside the configuration file, unless their paths are absolute; no value is told that could be a secret.

use super::iscsi::PortalSpec;
use super::offer::{ExportSpec, Offer};
use super::place::{Place, SocketMode};
use super::target::{CredentialSpec, GuestSpec, LunSpec, TargetSpec};
use super::targets::IscsiFrame;
use super::{Demand, Encryption};
use crate::budgets::{Budgets, parse_size};
use crate::exit::{Result, wrong_use};
use coffer_gateway::Permit;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use toml_edit::{Document, Item, TableLike};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    /// What takes a restart to be changed.
    pub(super) frame: Frame,
    pub(super) exports: Vec<Offer>,
    pub(super) targets: Vec<TargetSpec>,
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
    pub(super) iscsi: Option<IscsiFrame>,
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

impl<'a> Section<'a> {
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

    fn flag(&self, key: &str) -> Parsed<bool> {
        let Some(item) = self.table.get(key) else { return Ok(false) };
        item.as_bool().ok_or_else(|| self.wrong(key, "is neither true nor false"))
    }

    /// The tables of a list, in order.
    fn tables(&self, key: &str, name: &'a str) -> Parsed<Vec<Section<'a>>> {
        let section = |table: &'a dyn TableLike| Section { text: self.text, table, name };
        match self.table.get(key) {
            None => Ok(Vec::new()),
            Some(Item::ArrayOfTables(tables)) => Ok(tables.iter().map(|table| section(table)).collect()),
            Some(_) => Err(self.wrong(key, &format!("is not a list of tables: write {name}"))),
        }
    }

    /// What `point` or `fork` says, and which of them.
    fn export(&self, name: Option<&str>) -> Parsed<(ExportSpec, &'static str)> {
        let (spec, key) = match (self.text("point")?, self.text("fork")?) {
            (Some(point), None) => (ExportSpec::of_point(name.unwrap_or(point), point), "point"),
            (None, Some(fork)) => (ExportSpec::of_fork(name.unwrap_or(fork), fork), "fork"),
            (Some(_), Some(_)) => {
                return Err(self.wrong("fork", "stands beside 'point'; an export is of one of them"));
            }
            (None, None) => {
                let name = name.map_or_else(String::new, |name| format!(" '{name}'"));
                return Err(format!("the {}{name} lacks 'point' or 'fork'", self.name));
            }
        };
        Ok((spec.map_err(|e| self.wrong(key, &format!("is not what it should be: {e}")))?, key))
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
        "iscsi",
        "target",
    ])?;
    let place = |text: &str| Ok(text.parse::<Place>()?.below(folder));
    let listen = file.texts("listen")?;
    let listen = listen.iter().map(|text| place(text).map_err(|why| file.wrong("listen", &format!("{text}: {why}"))));
    let listen = listen.collect::<Parsed<Vec<Place>>>()?;
    let (iscsi, targets) = (iscsi(&file)?, targets(&file, folder)?);
    if let (Some(target), None) = (targets.first(), &iscsi) {
        return Err(format!("target '{}' cannot be reached: [iscsi] with 'listen' is missing", target.name));
    }
    if listen.is_empty() && iscsi.is_none() {
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
        iscsi,
    };
    let exports = exports(&file)?;
    if frame.encryption.tls_client_ca.is_none()
        && let Some(export) = exports.iter().find(|export| export.names_certificate())
    {
        let name = &export.spec.name;
        return Err(format!("export '{name}' allows certificates: that needs TLS with 'client-ca'"));
    }
    Ok(Configuration { frame, exports, targets })
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
    let mut exports: Vec<Offer> = Vec::new();
    for section in file.tables("export", "[[export]]")? {
        section.check_keys(&["name", "point", "fork", "allow", "limit", "changed-since"])?;
        let (spec, key) = section.export(section.text("name")?)?;
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

fn iscsi(file: &Section<'_>) -> Parsed<Option<IscsiFrame>> {
    let Some(item) = file.table.get("iscsi") else { return Ok(None) };
    let table = item.as_table_like().ok_or_else(|| file.wrong("iscsi", "is not a table"))?;
    let section = Section { text: file.text, table, name: "[iscsi]" };
    section.check_keys(&["listen", "allow-md5", "max-connections"])?;
    let listen = section.texts("listen")?;
    let portal =
        |text: &String| text.parse::<PortalSpec>().map_err(|why| section.wrong("listen", &format!("{text}: {why}")));
    let listen = listen.iter().map(portal).collect::<Parsed<Vec<_>>>()?;
    if listen.is_empty() {
        return Err(file.wrong("iscsi", "lacks 'listen', the portals, as in listen = [\"10.0.0.1:3260\"]"));
    }
    let max_connections = section.number("max-connections", 1, 100_000, 512)?;
    Ok(Some(IscsiFrame { listen, allow_md5: section.flag("allow-md5")?, max_connections }))
}

fn targets(file: &Section<'_>, folder: &Path) -> Parsed<Vec<TargetSpec>> {
    let mut targets: Vec<TargetSpec> = Vec::new();
    for section in file.tables("target", "[[target]]")? {
        section.check_keys(&["name", "lun", "initiator"])?;
        let name =
            section.text("name")?.ok_or("a [[target]] lacks 'name', as in name = \"iqn.2026-01.com.example:web1\"")?;
        if targets.iter().any(|other| other.name == name) {
            return Err(section.wrong("name", "is that of another target"));
        }
        let mut luns: Vec<LunSpec> = Vec::new();
        for section in section.tables("lun", "[[target.lun]]")? {
            let lun = lun(&section, name)?;
            if luns.iter().any(|other| other.number == lun.number) {
                return Err(section.wrong("number", "is that of another LUN of the target"));
            }
            luns.push(lun);
        }
        let guests = section.tables("initiator", "[[target.initiator]]")?;
        let guests = guests.iter().map(|section| guest(section, folder)).collect::<Parsed<_>>()?;
        targets.push(TargetSpec { name: name.to_owned(), luns, guests });
    }
    Ok(targets)
}

fn lun(section: &Section<'_>, target: &str) -> Parsed<LunSpec> {
    section.check_keys(&["number", "point", "fork", "block-size", "physical-block-size", "limit"])?;
    if !section.table.contains_key("number") {
        return Err(format!("a [[target.lun]] of '{target}' lacks 'number'"));
    }
    let number = section.number("number", 0, 0x3fff, 0)?;
    let (spec, key) = section.export(Some(&format!("{target}/{number}")))?;
    let offer = Offer::of(spec, &[], section.text("limit")?, &[]);
    let offer = offer.map_err(|why| section.wrong(key, &format!("is exported with something amiss: {why}")))?;
    let block_size = |key| {
        let size: u32 = section.number(key, 512, 4096, 0)?;
        match size == 0 || size.is_power_of_two() {
            true => Ok((size != 0).then_some(size)),
            false => Err(section.wrong(key, "is not a power of two")),
        }
    };
    let (block_size, physical_block_size) = (block_size("block-size")?, block_size("physical-block-size")?);
    Ok(LunSpec { number, offer, block_size, physical_block_size })
}

fn guest(section: &Section<'_>, folder: &Path) -> Parsed<GuestSpec> {
    section.check_keys(&["name", "allow", "chap-user", "chap-secret", "target-user", "target-secret", "luns"])?;
    let credential = |user: &str, secret: &str| match (section.text(user)?, section.text(secret)?) {
        (None, None) => Ok(None),
        (Some(name), Some(file)) => Ok(Some(CredentialSpec { name: name.to_owned(), secret: folder.join(file) })),
        (Some(_), None) => Err(section.wrong(user, &format!("lacks '{secret}', the file of the secret"))),
        (None, Some(_)) => Err(section.wrong(secret, &format!("lacks '{user}', the name"))),
    };
    let (initiator, target) = (credential("chap-user", "chap-secret")?, credential("target-user", "target-secret")?);
    if initiator.is_none() && target.is_some() {
        return Err(section.wrong("target-user", "lacks 'chap-user': targets prove who they are to whoever did"));
    }
    let permits = section.texts("allow")?.into_iter().map(|text| match text.parse() {
        Ok(permit @ Permit::Network(_)) => Ok(permit),
        Ok(_) => Err(section.wrong("allow", &format!("{text}: initiators are told apart by networks and names"))),
        Err(e) => Err(section.wrong("allow", &format!("{text}: {e}"))),
    });
    let numbers = |item: &Item| {
        let numbers = item.as_array()?.iter().map(|n| n.as_integer().and_then(|n| u16::try_from(n).ok()));
        numbers.collect::<Option<BTreeSet<u16>>>()
    };
    let luns = section.table.get("luns");
    let luns = luns.map(|item| numbers(item).ok_or_else(|| section.wrong("luns", "is not a list of numbers")));
    Ok(GuestSpec {
        initiator: section.text("name")?.map(str::to_owned),
        permits: permits.collect::<Parsed<_>>()?,
        chap: initiator.map(|initiator| (initiator, target)),
        luns: luns.transpose()?,
    })
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
        let Configuration { frame, exports, targets } = parse(WHOLE, Path::new("/etc/coffer")).unwrap();
        assert!(targets.is_empty() && frame.iscsi.is_none());
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

    const SAN: &str = r#"
[iscsi]
listen = ["10.0.0.1", "[::1]:4000"]
allow-md5 = true

[[target]]
name = "iqn.2026-01.test:a"
[[target.lun]]
number = 0
point = "web1@latest:vda"
physical-block-size = 4096
[[target.lun]]
number = 7
fork = "lab"
block-size = 4096
limit = "7/"
[[target.initiator]]
name = "iqn.2026-01.test:me"
allow = ["10.0.0.0/8"]
chap-user = "me"
chap-secret = "me.secret"
target-user = "it"
target-secret = "/etc/it.secret"
luns = [7]
[[target.initiator]]
allow = ["127.0.0.1"]

[[target]]
name = "iqn.2026-01.test:b"
"#;

    #[test]
    fn targets_have_disks_and_guests() {
        let Configuration { frame, exports, targets } = parse(SAN, Path::new("/etc/coffer")).unwrap();
        let iscsi = frame.iscsi.unwrap();
        assert!(frame.listen.is_empty() && exports.is_empty() && iscsi.allow_md5);
        assert_eq!((iscsi.listen.len(), iscsi.max_connections, targets.len()), (2, 512, 2));
        let TargetSpec { name, luns, guests } = &targets[0];
        assert_eq!((name.as_str(), luns.len(), guests.len()), ("iqn.2026-01.test:a", 2, 2));
        assert_eq!((luns[0].number, luns[0].block_size, luns[1].number, luns[1].block_size), (0, None, 7, Some(4096)));
        assert_eq!((luns[0].physical_block_size, luns[1].physical_block_size), (Some(4096), None));
        assert_eq!(luns[1].offer.spec, "iqn.2026-01.test:a/7=fork:lab".parse().unwrap());
        let (initiator, target) = guests[0].chap.clone().unwrap();
        assert_eq!((initiator.name.as_str(), initiator.secret.to_str()), ("me", Some("/etc/coffer/me.secret")));
        assert_eq!(target.unwrap().secret.to_str(), Some("/etc/it.secret"));
        assert_eq!((guests[0].luns.clone(), guests[0].permits.len()), (Some(BTreeSet::from([7])), 1));
        assert_eq!((&guests[1].initiator, &guests[1].luns), (&None, &None));
        assert_eq!((targets[1].luns.len(), targets[1].guests.len()), (0, 0));
    }

    #[test]
    fn what_is_wrong_with_a_target_is_named() {
        let with = |more: &str| format!("[iscsi]\nlisten = ['x']\n[[target]]\nname = 'iqn.t'\n{more}");
        for (bad, words) in [
            ("[[target]]\nname = 'iqn.t'".to_owned(), &["'iqn.t'", "[iscsi]"] as &[&str]),
            ("[iscsi]\nlisten = []".to_owned(), &["line 1", "'listen'"]),
            ("[iscsi]\nlisten = ['unix:x']".to_owned(), &["line 2", "HOST:PORT"]),
            (with("alias = 'x'"), &["line 5", "'alias'"]),
            (with("[[target]]\nname = 'iqn.t'"), &["line 6", "another target"]),
            (with("[[target]]"), &["'name'"]),
            (with("[[target.lun]]\npoint = 'a@latest'"), &["'number'", "'iqn.t'"]),
            (with("[[target.lun]]\nnumber = 0"), &["'point' or 'fork'", "iqn.t/0"]),
            (with("[[target.lun]]\nnumber = -1\nfork = 'a'"), &["line 6", "16383"]),
            (with("[[target.lun]]\nnumber = 0\nfork = 'a'\nblock-size = 513"), &["line 8", "power of two"]),
            (
                with("[[target.lun]]\nnumber = 0\nfork = 'a'\n[[target.lun]]\nnumber = 0\nfork = 'b'"),
                &["line 9", "another LUN"],
            ),
            (with("[[target.initiator]]\nchap-user = 'a'"), &["line 6", "'chap-secret'"]),
            (with("[[target.initiator]]\ntarget-user = 'a'\ntarget-secret = 'b'"), &["line 6", "'chap-user'"]),
            (with("[[target.initiator]]\nallow = ['cert:x']"), &["line 6", "networks"]),
            (with("[[target.initiator]]\nluns = ['x']"), &["line 6", "list of numbers"]),
            (with("lun = 1"), &["line 5", "[[target.lun]]"]),
        ] {
            let why = parse(&bad, Path::new("")).unwrap_err();
            for word in words {
                assert!(why.contains(word), "{bad}\n{why}");
            }
        }
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
