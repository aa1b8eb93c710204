//! `coffer init`: makes a repository.

use crate::context::{Context, entropy};
use crate::credential::{self, NewCredential, NewFile};
use crate::environment;
use crate::exit::{Failure, Result};
use crate::settings::Opener;
use crate::store;
use coffer_repo::backend::Backend;
use coffer_repo::backend::address::Address;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::descriptor;
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::{Error, Kind};
use serde_json::json;
use std::path::Path;

/// What a new repository may find in its folder: file systems put it into their root.
const LOST_AND_FOUND: &str = "lost+found";

/// Make a repository
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Whose the first key is, in words for 'coffer key list'. Without it USER@HOST
    #[arg(long)]
    label: Option<String>,

    /// Whether 6 % more is stored for every pack, with which small damage to it is repaired when it is read
    #[arg(long, value_enum, default_value_t = Switch::On)]
    parity: Switch,

    #[command(flatten)]
    credential: NewCredential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let address = context.address()?;
        match &address {
            Address::Folder(path) => check_folder(&address, path)?,
            Address::Object(_) => check_store(&*store::create(&address)?)?,
        }
        let entropy = entropy();
        let (credential, file) = match &context.settings.opener {
            // What opens it later may as well be there already.
            named if *named != Opener::Question && !self.credential.is_given() => {
                (credential::obtain(named)?, NewFile::default())
            }
            _ => self.credential.prepare(&*entropy)?,
        };
        let options = InitOptions {
            credential,
            slot: environment::slot_options(self.label.clone())?,
            disk: DiskParams::default(),
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: self.parity == Switch::On,
        };
        let repo = Repository::init(store::create(&address)?, options, entropy)?;
        file.keep();
        let (id, location) = (repo.keys().repo().to_string(), repo.backend().location());
        let text = format!(
            "Made repository {id} at {location}.\n\
             Whoever loses every passphrase and key file loses every backup in it: keep one elsewhere.\n"
        );
        context.print(json!({ "id": id, "location": location, "parity": repo.wants_parity() }), &text)
    }
}

/// Sees that the folder can become a repository: it does not exist, or it holds nothing.
fn check_folder(address: &Address, path: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| Error::io(format!("looking into {}", path.display()), e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("looking into {}", path.display()), e))?;
        if entry.file_name() != LOST_AND_FOUND {
            return Err(not_empty(&*store::open(address)?));
        }
    }
    Ok(())
}

/// Sees that the place in an object store can become a repository: nothing lies there. Before anybody is asked for a passphrase
/// in vain, it also sees that the store can be reached and that its bucket is there.
fn check_store(store: &dyn Backend) -> Result<()> {
    let first = store.list("", &mut |_| Err(Error::new(Kind::Cancelled, "one is enough")));
    match first {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == Kind::Cancelled => Err(not_empty(store)),
        Err(e) => Err(e.into()),
    }
}

/// Why there can be no repository where something lies already.
fn not_empty(store: &dyn Backend) -> Failure {
    let location = store.location();
    let why = match store.size(descriptor::OBJECT_NAME) {
        Ok(Some(_)) => format!("{location} holds a repository already"),
        Ok(None) => format!("{location} is not empty, and not a repository; name a new or an empty place"),
        Err(e) => return e.into(),
    };
    Error::invalid(why).into()
}
