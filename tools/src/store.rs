//! From a location and its options to a store that is open: folders and object stores alike.
//!
//! Not here: what locations and options there are (the repository room's), what opens a repository ([`crate::credential`]). What
//! holds: secrets of a store come from the file that `-o secret-file` names, or else from variables, never from both; where
//! there is neither, the provider's own chain is asked.

use crate::context::entropy;
use crate::credential;
use crate::environment;
use crate::exit::{Failure, Result, wrong_use};
use crate::settings::StoreOption;
use coffer_repo::Kind;
use coffer_repo::backend::address::{Address, ObjectAddress};
use coffer_repo::backend::secrets::Secrets;
use coffer_repo::backend::{self, Backend, Given};
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

fn given(address: &Address) -> Result<Given> {
    let secrets = match address {
        Address::Folder(_) => Secrets::default(),
        Address::Object(address) => secrets(address)?,
    };
    Ok(Given { secrets, entropy: entropy(), minute: Arc::new(environment::minute) })
}

fn secrets(address: &ObjectAddress) -> Result<Secrets> {
    let Some(path) = address.option("secret-file") else {
        return Ok(Secrets::gather(address.scheme(), environment::secret));
    };
    let text = credential::read_secret(Path::new(path), "secret file")?;
    Secrets::parse(address.scheme(), &text).map_err(|e| e.within(format!("secret file {path}")).into())
}
