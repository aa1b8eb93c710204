//! Real object stores that tests start for themselves: SeaweedFS, Ceph, Azurite and fake-gcs-server, on free ports of loopback.
//!
//! ```text
//!  test binary ---- a pipe that says pids ----> warden (bash)
//!      |                                          | at the pipe's end, however that came
//!      +-- weed | ceph-mon, ceph-osd, radosgw <---+ kills them by pid, removes their folder
//!          | node azurite | fake-gcs-server
//! ```
//!
//! A store takes seconds to start, so the tests of a binary share one of each kind (`shared`), and have buckets of their
//! own. It lives in a static, which is never dropped: that is what the warden is for.
//!
//! Not here: what the backend does with a store. What holds: nothing outlives the test binary, even if that is killed; where a
//! test failed the logs stay, and where they lie is told; a program that is missing fails the test and names what installs it.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod azurite;
pub mod ceph;
pub mod gcs;
pub mod seaweedfs;
mod site;

use crate::dice::Dice;
use coffer_repo::backend::address::Address;
use coffer_repo::backend::secrets::Secrets;
use coffer_repo::backend::{Backend, Given, address, open};
use coffer_repo::entropy::{Entropy, System};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a repository may lie in a store, and all that `coffer` has to be told to reach it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The URL.
    pub location: String,
    /// KEY=VALUE, each for one `-o`.
    pub options: Vec<String>,
    /// Secrets, as the provider's own tools take them.
    pub environment: Vec<(&'static str, String)>,
}

impl Place {
    /// The store at this place, opened by this process.
    #[must_use]
    pub fn open(&self) -> Arc<dyn Backend> {
        let options: Vec<_> = self.options.iter().map(|option| address::parse_option(option).unwrap()).collect();
        let address = Address::parse(&self.location, &options).unwrap();
        let Address::Object(object) = &address else { panic!("{} is a folder", self.location) };
        let secret =
            |name: &str| self.environment.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone().into());
        let secrets = Secrets::gather(object.scheme(), secret);
        open(&address, &Given { secrets, entropy: Arc::new(System), minute: Arc::new(|| 0) }).unwrap()
    }

    /// A place of its own below this one.
    #[must_use]
    pub fn below(mut self, name: &str) -> Place {
        self.location = format!("{}/{name}", self.location.trim_end_matches('/'));
        self
    }

    /// The same place, with the endpoint at another port, as that of a proxy.
    #[must_use]
    pub fn through(mut self, port: u16) -> Place {
        let endpoint = self.options.iter_mut().find(|option| option.starts_with("endpoint=")).unwrap();
        let (address, path) = endpoint.rsplit_once(':').unwrap();
        let path = path.trim_start_matches(|c: char| c.is_ascii_digit());
        *endpoint = format!("{address}:{port}{path}");
        self
    }

    /// The same, with an option added.
    #[must_use]
    pub fn with(mut self, option: &str) -> Place {
        self.options.push(option.to_owned());
        self
    }

    /// The same, with another value in the environment.
    #[must_use]
    pub fn with_secret(mut self, name: &'static str, value: &str) -> Place {
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.to_owned()));
        self
    }
}

/// `N` ports that nobody listens on. Below those that the kernel gives to clients, so that none is taken before it is used.
#[must_use]
pub fn free_ports<const N: usize>() -> [u16; N] {
    let mut seed = [0; 8];
    System.fill(&mut seed).unwrap();
    let mut dice = Dice::new(u64::from_le_bytes(seed));
    // Held until all are found, so that they differ.
    let mut held = Vec::new();
    while held.len() < N {
        let port = 11_000 + u16::try_from(dice.below(20_000)).unwrap();
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    std::array::from_fn(|i| held[i].local_addr().unwrap().port())
}

/// A file that `tests/setup.sh` has put below `target`.
#[must_use]
pub fn installed(path: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target").join(path);
    file.canonicalize().unwrap_or_else(|e| panic!("{}: {e}; tests/setup.sh installs it", file.display()))
}
