//! Which repository, and what opens it: the command line before the environment before the configuration file.
//!
//! ```text
//!   repository = "/srv/backups"            $XDG_CONFIG_HOME/coffer/config.toml: these keys and no others
//!   password-file = "/etc/coffer/pass"
//!   key-file = "/etc/coffer/key"           one of the two
//!   options = ["region=eu-1"]              what is said about an object store
//!   lock-for = "30d"                       what --lock-for says when it is not said
//!   tier-secrets = ["deep=/etc/coffer/deep"]  what --tier-secret says about tiers of which it says nothing
//! ```
//! Not here: opening anything ([`crate::context`]). What holds: a password file and a key file of one layer contradict each
//! other and are refused; a layer that names either hides both of the layers below it. An option hides the same one of the
//! layers below it; the layer that names the repository hides all options below it, which are about another one.

use crate::budgets::parse_size;
use crate::environment::Environment;
use crate::exit::{Result, wrong_use};
use coffer_repo::backend::address;
use coffer_repo::lock_for::LockFor;
use coffer_repo::tier::TierName;
use std::path::{Path, PathBuf};
use toml_edit::Document;

/// What `--repository` and its like say; every command takes them.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Globals {
    /// The repository: a folder, or s3://BUCKET/PREFIX, azblob://, gcs://, swift://, oss://, cos://, b2://, webdav://, sftp://.
    /// Without it COFFER_REPOSITORY, or 'repository' in the configuration file
    #[arg(short, long, global = true, value_name = "LOCATION")]
    repository: Option<String>,

    /// Say something about the object store, as in endpoint=https://s3.example.org; the list is at the end of 'coffer --help'.
    /// As often as there is something to say. Also COFFER_OPTIONS, with ';' between them
    #[arg(short = 'o', long = "option", global = true, value_name = "NAME=VALUE", value_parser = parse_option)]
    options: Vec<StoreOption>,

    /// Open it by the passphrase in this file. Without it COFFER_PASSWORD_FILE, or a question on the terminal
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Open it by this key file. Without it COFFER_KEY_FILE
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Take the secrets of the cold tier NAME from this file, one NAME=VALUE a line; without it from where the repository's come.
    /// May be repeated
    #[arg(long, global = true, value_name = "NAME=FILE", value_parser = parse_tier_secret)]
    tier_secret: Vec<TierSecret>,

    /// Where the index is kept, which can always be made again. Without it XDG_CACHE_HOME/coffer
    #[arg(long, global = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// How much of the disk may keep what was read of the repository, for all processes together; 0: nothing. Without it 10G for
    /// object stores and nothing for folders
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size)]
    disk_cache: Option<u64>,

    /// Where forks are kept: what is written to them is nowhere else. Without it COFFER_STATE, or XDG_STATE_HOME/coffer
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Show no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// What the disk cache of an object store may take.
const DISK_CACHE_BYTES: u64 = 10 << 30;

/// What opens the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    /// The passphrase in a file.
    PasswordFile(PathBuf),
    /// A key file.
    KeyFile(PathBuf),
    /// A passphrase that is asked for.
    Question,
}

/// Something that is said about an object store: its name and its value.
pub(crate) type StoreOption = (String, String);

/// A cold tier and the file with its secrets.
pub(crate) type TierSecret = (TierName, PathBuf);

/// What was decided.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    location: Option<String>,
    /// What is said about the object store in which the repository is.
    pub(crate) options: Vec<StoreOption>,
    /// What opens the repository.
    pub(crate) opener: Opener,
    /// What the environment says that opens the repository that is copied to.
    pub(crate) to_opener: Option<Opener>,
    caches: Option<PathBuf>,
    disk_cache: Option<u64>,
    state: Option<PathBuf>,
    /// How long points are locked unless something else is said.
    pub(crate) lock_for: Option<LockFor>,
    /// The files with secrets of cold tiers; of several about one tier the first counts.
    pub(crate) tier_secrets: Vec<TierSecret>,
}

/// One layer.
#[derive(Default)]
struct Layer {
    repository: Option<String>,
    options: Vec<StoreOption>,
    password_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    lock_for: Option<LockFor>,
    tier_secrets: Vec<TierSecret>,
}

impl Settings {
    /// Lays the layers on top of each other.
    pub(crate) fn resolve(globals: &Globals, environment: Environment) -> Result<Settings> {
        let file = environment.configurations.map(|folder| folder.join("coffer/config.toml"));
        let file = file.map(|path| read_file(&path)).transpose()?.flatten().unwrap_or_default();
        let line = Layer {
            repository: globals.repository.clone(),
            options: globals.options.clone(),
            password_file: globals.password_file.clone(),
            key_file: globals.key_file.clone(),
            lock_for: None,
            tier_secrets: Vec::new(),
        };
        let variables = Layer {
            repository: environment.repository,
            options: parse_options(environment.options.as_deref().unwrap_or_default().split(';'))
                .map_err(|why| wrong_use(format!("COFFER_OPTIONS: {why}")))?,
            password_file: environment.password_file,
            key_file: environment.key_file,
            lock_for: None,
            tier_secrets: Vec::new(),
        };
        let mut settings = Settings {
            location: None,
            options: Vec::new(),
            opener: Opener::Question,
            to_opener: named(
                "the environment, for what is copied to,",
                environment.to_password_file,
                environment.to_key_file,
            )?,
            caches: globals.cache_dir.clone().or_else(|| environment.caches.map(|caches| caches.join("coffer"))),
            disk_cache: globals.disk_cache,
            state: globals.state.clone().or(environment.state),
            lock_for: file.lock_for,
            tier_secrets: [globals.tier_secret.clone(), file.tier_secrets.clone()].concat(),
        };
        for (where_from, layer) in
            [("the command line", line), ("the environment", variables), ("the configuration file", file)]
        {
            if settings.location.is_none() {
                let said: Vec<_> = settings.options.iter().map(|(name, _)| name.clone()).collect();
                settings.options.extend(layer.options.into_iter().filter(|(name, _)| !said.contains(name)));
            }
            settings.location = settings.location.or(layer.repository);
            let Some(named) = named(where_from, layer.password_file, layer.key_file)? else { continue };
            if settings.opener == Opener::Question {
                settings.opener = named;
            }
        }
        Ok(settings)
    }

    /// Where the repository is.
    pub(crate) fn location(&self) -> Result<&str> {
        self.location.as_deref().ok_or_else(|| {
            wrong_use("which repository? Name it with -r LOCATION, COFFER_REPOSITORY or the configuration file")
        })
    }

    /// The file with the secrets of a cold tier, if one was named.
    pub(crate) fn tier_secret(&self, name: &TierName) -> Option<&Path> {
        self.tier_secrets.iter().find(|(of, _)| of == name).map(|(_, file)| file.as_path())
    }

    /// Bytes of the disk that may keep what was read of the repository.
    pub(crate) fn disk_cache_bytes(&self) -> Result<u64> {
        let usual = if is_remote(self.location()?) { DISK_CACHE_BYTES } else { 0 };
        Ok(self.disk_cache.unwrap_or(usual))
    }

    /// The folder for everything of ours that can be made again.
    pub(crate) fn caches(&self) -> Result<&Path> {
        self.caches.as_deref().ok_or_else(|| {
            wrong_use("where may the index be kept? Neither XDG_CACHE_HOME nor HOME is set; say --cache-dir DIR")
        })
    }

    /// The folder for what cannot be made again.
    pub(crate) fn state(&self) -> Result<&Path> {
        self.state.as_deref().ok_or_else(|| {
            wrong_use("where are forks kept? Neither COFFER_STATE, XDG_STATE_HOME nor HOME is set; say --state DIR")
        })
    }
}

/// Whether a location is that of an object store: a URL.
fn is_remote(location: &str) -> bool {
    location.split_once("://").is_some_and(|(scheme, _)| !scheme.contains('/'))
}

/// The file that one layer names, if it names any.
fn named(where_from: &str, password_file: Option<PathBuf>, key_file: Option<PathBuf>) -> Result<Option<Opener>> {
    match (password_file, key_file) {
        (None, None) => Ok(None),
        (Some(file), None) => Ok(Some(Opener::PasswordFile(file))),
        (None, Some(file)) => Ok(Some(Opener::KeyFile(file))),
        (Some(_), Some(_)) => {
            Err(wrong_use(format!("{where_from} names both a password file and a key file; name one")))
        }
    }
}

/// Reads the configuration file; `None` when there is none.
fn read_file(path: &Path) -> Result<Option<Layer>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text)
            .map(Some)
            .map_err(|why| wrong_use(format!("configuration file {}: {}", path.display(), why.trim_end()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(wrong_use(format!("configuration file {} cannot be read: {e}", path.display()))),
    }
}

/// One option on the command line.
pub(crate) fn parse_option(text: &str) -> std::result::Result<StoreOption, String> {
    address::parse_option(text).map_err(|e| e.to_string())
}

/// A cold tier and its file, as they are written: NAME=FILE.
fn parse_tier_secret(text: &str) -> std::result::Result<TierSecret, String> {
    let (name, file) = text.split_once('=').filter(|(_, file)| !file.is_empty()).ok_or("it is written NAME=FILE")?;
    Ok((name.parse().map_err(|e: coffer_repo::Error| e.to_string())?, file.into()))
}

fn parse_options<'a>(texts: impl Iterator<Item = &'a str>) -> std::result::Result<Vec<StoreOption>, String> {
    texts.filter(|text| !text.trim().is_empty()).map(parse_option).collect()
}

fn parse(text: &str) -> std::result::Result<Layer, String> {
    let document = Document::parse(text).map_err(|e| e.to_string())?;
    let mut layer = Layer::default();
    for (key, value) in document.as_table() {
        if ["options", "tier-secrets"].contains(&key) {
            let texts =
                value.as_array().and_then(|list| list.iter().map(|text| text.as_str()).collect::<Option<Vec<_>>>());
            let texts = texts.ok_or_else(|| format!("'{key}' is not a list of texts"))?.into_iter();
            match key {
                "options" => layer.options = parse_options(texts)?,
                _ => layer.tier_secrets = texts.map(parse_tier_secret).collect::<std::result::Result<_, _>>()?,
            }
            continue;
        }
        let value = value.as_str().map(str::to_owned).ok_or_else(|| format!("'{key}' is not a text"))?;
        match key {
            "repository" => layer.repository = Some(value),
            "password-file" => layer.password_file = Some(value.into()),
            "key-file" => layer.key_file = Some(value.into()),
            "lock-for" => layer.lock_for = Some(value.parse().map_err(|e: coffer_repo::Error| e.to_string())?),
            _ => {
                let known = "repository, options, password-file, key-file, lock-for and tier-secrets";
                return Err(format!("'{key}' is not known: there are {known}"));
            }
        }
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Failure;

    fn globals(repository: Option<&str>, password: Option<&str>, key: Option<&str>) -> Globals {
        Globals {
            repository: repository.map(str::to_owned),
            password_file: password.map(PathBuf::from),
            key_file: key.map(PathBuf::from),
            ..Globals::default()
        }
    }

    #[test]
    fn a_layer_hides_those_below_it() {
        let environment = Environment {
            repository: Some("/env".into()),
            password_file: Some("/env/pass".into()),
            ..Environment::default()
        };
        let resolve = |globals: &Globals| Settings::resolve(globals, environment.clone()).unwrap();

        let from_environment = resolve(&globals(None, None, None));
        assert_eq!(from_environment.location().unwrap(), "/env");
        assert_eq!(from_environment.opener, Opener::PasswordFile("/env/pass".into()));

        let from_line = resolve(&globals(Some("/line"), None, Some("/line/key")));
        assert_eq!(from_line.location().unwrap(), "/line");
        assert_eq!(from_line.opener, Opener::KeyFile("/line/key".into()));
    }

    #[test]
    fn the_destination_of_copies_has_variables_of_its_own() {
        let environment = |password: Option<&str>, key: Option<&str>| Environment {
            to_password_file: password.map(PathBuf::from),
            to_key_file: key.map(PathBuf::from),
            ..Environment::default()
        };
        let resolve = |environment| Settings::resolve(&Globals::default(), environment);
        assert_eq!(resolve(environment(None, None)).unwrap().to_opener, None);
        let named = resolve(environment(None, Some("/k"))).unwrap();
        assert_eq!((named.opener, named.to_opener), (Opener::Question, Some(Opener::KeyFile("/k".into()))));
        assert!(matches!(resolve(environment(Some("/p"), Some("/k"))), Err(Failure::WrongUse(_))));
    }

    #[test]
    fn nothing_said_is_a_question_and_a_contradiction_is_refused() {
        let nothing = Settings::resolve(&Globals::default(), Environment::default()).unwrap();
        assert_eq!(nothing.opener, Opener::Question);
        assert!(matches!(nothing.location(), Err(Failure::WrongUse(_))));
        assert!(matches!(nothing.caches(), Err(Failure::WrongUse(_))));
        let both = Settings::resolve(&globals(None, Some("a"), Some("b")), Environment::default());
        assert!(matches!(both, Err(Failure::WrongUse(_))));
    }

    #[test]
    fn options_belong_to_the_repository_they_are_named_with() {
        let environment = Environment {
            repository: Some("s3://env".into()),
            options: Some("region=env; endpoint=http://env;".into()),
            ..Environment::default()
        };
        let options = |globals: Globals| Settings::resolve(&globals, environment.clone()).unwrap().options;
        let said = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let line = vec![said("region", "line")];
        let added = Globals { options: line.clone(), ..Globals::default() };
        assert_eq!(options(added), [said("region", "line"), said("endpoint", "http://env")]);
        let elsewhere = Globals { options: line.clone(), ..globals(Some("s3://line"), None, None) };
        assert_eq!(options(elsewhere), line);
        let bad = Environment { options: Some("secret".into()), ..Environment::default() };
        assert!(matches!(Settings::resolve(&Globals::default(), bad), Err(Failure::WrongUse(_))));
    }

    #[test]
    fn object_stores_have_a_disk_cache_unless_it_is_said_otherwise() {
        let bytes = |location: &str, said: Option<u64>| {
            let globals = Globals { disk_cache: said, ..globals(Some(location), None, None) };
            Settings::resolve(&globals, Environment::default()).unwrap().disk_cache_bytes().unwrap()
        };
        assert_eq!([bytes("/srv/b", None), bytes("./s3://b", None), bytes("s3://b/p", None)], [0, 0, DISK_CACHE_BYTES]);
        assert_eq!([bytes("/srv/b", Some(7)), bytes("s3://b/p", Some(0))], [7, 0]);
    }

    #[test]
    fn the_file_knows_its_keys_and_no_others() {
        let layer = parse("options = ['region=eu']\nrepository = \"/r\"\nkey-file = '/k' # ours\n").unwrap();
        assert_eq!(layer.options, [("region".to_owned(), "eu".to_owned())]);
        assert_eq!((layer.repository.as_deref(), layer.key_file), (Some("/r"), Some("/k".into())));
        let layer = parse("lock-for = '30d'").unwrap();
        assert_eq!(layer.lock_for.unwrap().to_string(), "30d");
        let layer = parse("tier-secrets = ['deep=/etc/deep', 'far=a=b']").unwrap();
        let secret = |name: &str, file: &str| (name.parse().unwrap(), PathBuf::from(file));
        assert_eq!(layer.tier_secrets, [secret("deep", "/etc/deep"), secret("far", "a=b")]);
        for (bad, says) in [
            ("tier-secrets = ['deep']", "NAME=FILE"),
            ("tier-secrets = ['De ep=x']", "cold tier"),
            ("tier-secrets = 'deep=x'", "'tier-secrets'"),
            ("password = 'hunter2'", "'password'"),
            ("lock-for = '30m'", "'30m'"),
            ("repository = 1", "'repository'"),
            ("options = 'region=eu'", "'options'"),
            ("options = [1]", "'options'"),
            ("=", "line 1"),
        ] {
            let why = parse(bad).err().unwrap();
            assert!(why.contains(says), "{bad}: {why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
