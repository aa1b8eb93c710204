//! TLS by certificates, both sides: which files, which rules, one provider of cryptography.
//!
//! Not here: when it begins (the handshakes), bytes on sockets. What holds: TLS 1.2 and 1.3 only; a private key is not used when
//! others than its owner can read it; a server that was given an authority for clients takes none without a certificate of
//! that authority; a client takes no server without one that fits the server's name. Pre-shared keys are refused by name:
//! rustls has none. The provider is passed along, and what a process installed as its default does not matter here.

use crate::{Error, Kind, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No file of certificates or keys is longer.
const MAX_FILE: u64 = 1 << 20;
/// What QEMU's and libnbd's folders call their files.
const CA: &str = "ca-cert.pem";
const CLIENT_CERTIFICATE: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";
const PSK: &str = "keys.psk";

/// Files of a server, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Its certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities whose certificates clients have to have; without, clients need none.
    pub client_ca: Option<PathBuf>,
}

/// Whether clients may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsDemand {
    /// All have to encrypt.
    Required,
    /// Each decides.
    Allowed,
}

/// A server's TLS, ready to use.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    demand: TlsDemand,
}

impl Tls {
    /// Reads `files`. What is missing is `NotFound`; what does not fit together, or is open to others, `Invalid`.
    pub fn open(files: &TlsFiles, demand: TlsDemand) -> Result<Tls> {
        let provider = provider();
        let certificates = certificates(&files.certificate)?;
        let key = private_key(&files.key)?;
        let builder = versions(ServerConfig::builder_with_provider(Arc::clone(&provider)))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(path)?), provider);
                let verifier = verifier.build().map_err(|e| unusable(path, "authority").with_source(e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(certificates, key).map_err(|e| {
            let text = format!("{} does not go with {}", files.key.display(), files.certificate.display());
            Error::invalid(text).with_source(e)
        })?;
        Ok(Tls { config: Arc::new(config), demand })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    pub(super) fn is_required(&self) -> bool {
        self.demand == TlsDemand::Required
    }
}

/// A client's TLS, from a folder with the names that QEMU and libnbd use: the authority, and perhaps a certificate and its key.
pub(super) fn client(folder: &Path) -> Result<Arc<ClientConfig>> {
    refuse_psk(folder)?;
    let builder = versions(ClientConfig::builder_with_provider(provider()))?;
    let builder = builder.with_root_certificates(authorities(&folder.join(CA))?);
    let (certificate, key) = (folder.join(CLIENT_CERTIFICATE), folder.join(CLIENT_KEY));
    let config = match certificate.exists() {
        false => builder.with_no_client_auth(),
        true => builder.with_client_auth_cert(certificates(&certificate)?, private_key(&key)?).map_err(|e| {
            Error::invalid(format!("{} does not go with {}", key.display(), certificate.display())).with_source(e)
        })?,
    };
    Ok(Arc::new(config))
}

/// An error of a TLS connection, in words.
pub(super) fn failed(what: &str, e: io::Error) -> Error {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(why) => Error::invalid(format!("{what}: {why}")),
        None => Error::io(what, e).with_kind(Kind::Unavailable),
    }
}

/// The refusal of pre-shared keys.
#[must_use]
pub fn no_psk(what: &str) -> Error {
    let text = format!(
        "{what}: TLS with pre-shared keys is not spoken here; use X.509 certificates, which may be signed by an authority of \
         your own"
    );
    Error::new(Kind::Unsupported, text)
}

fn refuse_psk(folder: &Path) -> Result<()> {
    let keys = folder.join(PSK);
    if keys.exists() { Err(no_psk(&keys.display().to_string())) } else { Ok(()) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn versions<S: rustls::ConfigSide>(
    builder: rustls::ConfigBuilder<S, rustls::WantsVersions>,
) -> Result<rustls::ConfigBuilder<S, rustls::WantsVerifier>> {
    builder.with_safe_default_protocol_versions().map_err(|e| Error::internal("TLS without versions").with_source(e))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let (bytes, _) = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes).collect::<std::result::Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(path, "certificate")),
        Err(e) => Err(unusable(path, "certificate").with_source(e)),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|e| unusable(path, "authority").with_source(e))?;
    }
    Ok(store)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let (bytes, metadata) = read(path)?;
    check_private(path, &metadata)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| unusable(path, "private key").with_source(e))
}

/// As ssh does, a secret that others can read is refused (`Invalid`), unless somebody else keeps it that way for a group of which we are.
pub fn check_private(path: &Path, metadata: &std::fs::Metadata) -> Result<()> {
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let open_to = if is_ours { 0o077 } else { 0o007 };
    if metadata.mode() & open_to != 0 {
        let text = format!("{} can be read by others; 'chmod 600' it, and think of it as known", path.display());
        return Err(Error::invalid(text));
    }
    Ok(())
}

fn read(path: &Path) -> Result<(Vec<u8>, std::fs::Metadata)> {
    let failed = |e| Error::io(format!("reading {}", path.display()), e);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        refuse_psk(path)?;
        return Err(Error::invalid(format!("{} is a folder; name the file", path.display())));
    }
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok((bytes, metadata))
}

fn unusable(path: &Path, what: &str) -> Error {
    Error::invalid(format!("{} holds no {what} that can be used (PEM)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Files(tempfile::tempdir().unwrap());
            for name in ["a", "b"] {
                let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
                files.write(&format!("{name}.pem"), &pair.cert.pem(), 0o644);
                files.write(&format!("{name}.key"), &pair.signing_key.serialize_pem(), 0o600);
            }
            files
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            fs::write(self.path(name), text).unwrap();
            fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(&self, certificate: &str, key: &str, client_ca: Option<&str>) -> Result<bool> {
            let [certificate, key] = [certificate, key].map(|name| self.path(name));
            let client_ca = client_ca.map(|name| self.path(name));
            Tls::open(&TlsFiles { certificate, key, client_ca }, TlsDemand::Required).map(|tls| tls.is_required())
        }
    }

    #[test]
    fn files_that_fit_are_taken_and_others_named() {
        let files = Files::new();
        assert!(files.open("a.pem", "a.key", None).unwrap());
        assert!(files.open("a.pem", "a.key", Some("b.pem")).unwrap());
        files.write("empty", "", 0o600);
        for (certificate, key, ca, kind, says) in [
            ("a.pem", "b.key", None, Kind::Invalid, "b.key does not go with"),
            ("a.key", "a.key", None, Kind::Invalid, "a.key holds no certificate"),
            ("a.pem", "a.pem", None, Kind::Invalid, "a.pem can be read by others"),
            ("a.pem", "empty", None, Kind::Invalid, "empty holds no private key"),
            ("a.pem", "a.key", Some("empty"), Kind::Invalid, "empty holds no certificate"),
            ("a.pem", "none", None, Kind::NotFound, "none"),
            (".", "a.key", None, Kind::Invalid, "is a folder"),
        ] {
            let error = files.open(certificate, key, ca).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let files = Files::new();
        for mode in [0o640, 0o604, 0o644] {
            fs::set_permissions(files.path("a.key"), Permissions::from_mode(mode)).unwrap();
            let error = files.open("a.pem", "a.key", None).unwrap_err();
            assert!(error.to_string().contains("can be read by others"), "{mode:o}: {error}");
        }
        fs::set_permissions(files.path("a.key"), Permissions::from_mode(0o400)).unwrap();
        files.open("a.pem", "a.key", None).unwrap();
    }

    #[test]
    fn pre_shared_keys_are_refused_by_name() {
        let files = Files::new();
        files.write("keys.psk", "user:0011", 0o600);
        for error in [client(files.0.path()).unwrap_err(), files.open(".", "a.key", None).unwrap_err()] {
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains("keys.psk") && error.to_string().contains("X.509"), "{error}");
        }
    }

    #[test]
    fn a_client_needs_an_authority_and_may_have_a_certificate() {
        let files = Files::new();
        let folder = files.0.path();
        assert_eq!(client(folder).unwrap_err().kind(), Kind::NotFound);
        fs::copy(files.path("a.pem"), files.path(CA)).unwrap();
        client(folder).unwrap();
        fs::copy(files.path("b.pem"), files.path(CLIENT_CERTIFICATE)).unwrap();
        assert_eq!(client(folder).unwrap_err().kind(), Kind::NotFound);
        fs::copy(files.path("b.key"), files.path(CLIENT_KEY)).unwrap();
        client(folder).unwrap();
    }
}
