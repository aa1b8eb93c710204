//! An authority of the tests' own, and what it signs, in folders as QEMU and libnbd want them.

use coffer_gateway::nbd::{Tls, TlsDemand, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = named("the tests' authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { issuer, folder: tempfile::tempdir().unwrap() };
        write(&authority.path("ca.pem"), &authority.issuer.pem(), 0o644);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server's TLS, with a certificate for these names.
    pub(crate) fn server(&self, names: &[&str], wants_clients: bool, demand: TlsDemand) -> Tls {
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        self.sign(named("server", names), ExtendedKeyUsagePurpose::ServerAuth, &certificate, &key);
        let client_ca = wants_clients.then(|| self.path("ca.pem"));
        Tls::open(&TlsFiles { certificate, key, client_ca }, demand).unwrap()
    }

    /// The folder of a server as QEMU wants it.
    pub(crate) fn qemu_server(&self, names: &[&str]) -> PathBuf {
        let folder = self.path("qemu-server");
        fs::create_dir_all(&folder).unwrap();
        write(&folder.join("ca-cert.pem"), &self.issuer.pem(), 0o644);
        let (certificate, key) = (folder.join("server-cert.pem"), folder.join("server-key.pem"));
        self.sign(named("server", names), ExtendedKeyUsagePurpose::ServerAuth, &certificate, &key);
        folder
    }

    /// A client's folder: with a certificate of that name, or none.
    pub(crate) fn client(&self, name: Option<&str>) -> PathBuf {
        let folder = self.path(&format!("client-{}", name.unwrap_or("nobody")));
        fs::create_dir_all(&folder).unwrap();
        write(&folder.join("ca-cert.pem"), &self.issuer.pem(), 0o644);
        if let Some(name) = name {
            let (certificate, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
            self.sign(named(name, &[]), ExtendedKeyUsagePurpose::ClientAuth, &certificate, &key);
        }
        folder
    }

    /// A client that trusts this authority and has a certificate of another one.
    pub(crate) fn client_of(&self, other: &Authority, name: &str) -> PathBuf {
        let folder = other.client(Some(name));
        write(&folder.join("ca-cert.pem"), &self.issuer.pem(), 0o644);
        folder
    }

    fn sign(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose, certificate: &Path, key: &Path) {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        let pair = KeyPair::generate().unwrap();
        write(certificate, &params.signed_by(&pair, &self.issuer).unwrap().pem(), 0o644);
        write(key, &pair.serialize_pem(), 0o600);
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts = hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
