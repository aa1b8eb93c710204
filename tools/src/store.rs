//! From a location and its options to a store that is open: folders and object stores alike.
//!
//! Not here: what locations and options there are (the repository room's), what opens a repository ([`crate::credential`]). What
//! holds: secrets of a store come from the file that `-o secret-file` names (of a cold tier `--tier-secret`), or else from variables, never from both; where
//! there is neither, the provider's own chain is asked.

use crate::context::entropy;
use crate::credential;
use crate::environment;
use crate::exit::{Failure, Result, wrong_use};
use crate::settings::{Settings, StoreOption};
use coffer_repo::Kind;
use coffer_repo::backend::address::{Address, ObjectAddress};
use coffer_repo::backend::secrets::Secrets;
use coffer_repo::backend::{self, Backend, Given};
use coffer_repo::tiers::OpenTier;
use std::path::Path;
use std::sync::Arc;

/// What a location means. What cannot be meant is wrong use.
pub(crate) fn address(location: &str, options: &[StoreOption]) -> Result<Address> {
    Address::parse(location, options).map_err(|e| wrong_use(e.to_string()))
}

/// Opens the store at an address.
pub(crate) fn open(address: &Address) -> Result<Arc<dyn Backend>> {
    Ok(backend::open(address, &given(address)?)?)
}

/// Opens the store of a repository.
pub(crate) fn open_existing(address: &Address) -> Result<Arc<dyn Backend>> {
    open(address).map_err(|failure| match failure {
        Failure::Failed(e) if e.kind() == Kind::NotFound => {
            e.within("there is no repository; 'coffer init' makes one").into()
        }
        other => other,
    })
}

/// Opens the store at an address for a new repository.
pub(crate) fn create(address: &Address) -> Result<Arc<dyn Backend>> {
    Ok(backend::create(address, &given(address)?)?)
}

/// Opens the store of a cold tier, or makes its folder.
pub(crate) fn create_tier(address: &Address, secret_file: Option<&Path>) -> Result<Arc<dyn Backend>> {
    Ok(backend::create(address, &given_by(address, secret_file)?)?)
}

/// What opens the stores of cold tiers: by their records, and by the secrets that this host has for them.
pub(crate) fn tiers(settings: &Settings) -> OpenTier {
    let settings = settings.clone();
    Arc::new(move |name, tier| {
        let address = Address::parse(&tier.url, &tier.options)?;
        let given = given_by(&address, settings.tier_secret(name)).map_err(Failure::into_error)?;
        backend::open(&address, &given)
    })
}

fn given(address: &Address) -> Result<Given> {
    let file = match address {
        Address::Folder(_) => None,
        Address::Object(address) => address.option("secret-file").map(Path::new),
    };
    given_by(address, file)
}

fn given_by(address: &Address, secret_file: Option<&Path>) -> Result<Given> {
    let secrets = match address {
        Address::Folder(_) => Secrets::default(),
        Address::Object(address) => secrets(address, secret_file)?,
    };
    Ok(Given { secrets, entropy: entropy(), minute: Arc::new(environment::minute) })
}

fn secrets(address: &ObjectAddress, file: Option<&Path>) -> Result<Secrets> {
    let Some(path) = file else {
        return Ok(Secrets::gather(address.scheme(), environment::secret));
    };
    let text = credential::read_secret(path, "secret file")?;
    Secrets::parse(address.scheme(), &text).map_err(|e| e.within(format!("secret file {}", path.display())).into())
}
