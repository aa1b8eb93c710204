//! `coffer init`: makes a repository.

use crate::context::{Context, entropy, local_path};
use crate::credential::{self, NewCredential, NewFile};
use crate::environment;
use crate::exit::Result;
use crate::settings::Opener;
use coffer_repo::Error;
use coffer_repo::backend::Backend;
use coffer_repo::backend::local::Local;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::descriptor;
use coffer_repo::repository::{InitOptions, Repository};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

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
        let location = context.settings.location()?;
        let path = local_path(location)?;
        check_place(&path)?;
        let entropy = entropy();
        let (credential, file) = match &context.settings.opener {
            // What opens it later may as well be there already.
            named if *named != Opener::Question && !self.credential.is_given() => {
                (credential::obtain(named, location)?, NewFile::default())
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
        let repo = Repository::init(Arc::new(Local::create(&path)?), options, entropy)?;
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
fn check_place(path: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| Error::io(format!("looking into {}", path.display()), e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("looking into {}", path.display()), e))?;
        if entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        let why = match Local::open(path)?.size(descriptor::OBJECT_NAME)? {
            Some(_) => format!("{} holds a repository already", path.display()),
            None => format!("{} is not empty, and not a repository; name a new or an empty folder", path.display()),
        };
        return Err(Error::invalid(why).into());
    }
    Ok(())
}
