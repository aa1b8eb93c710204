//! The HTTP client: TLS, proxy, pool, and how long it waits for a connection.
//!
//! Not here: requests ([`super::transport`]). What holds: one TLS, rustls with aws-lc-rs, named here and not taken from the
//! process; the machine's certificates count, and those of `ca-file` besides; no variable and no redirect is followed: a
//! signed request means one host. HTTP/1.1 only: many connections carry more than one that all share.

use crate::backend::address::ObjectAddress;
use crate::error::{Error, Result};
use reqwest::redirect::Policy;
use reqwest::{Client, Proxy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);
/// An idle connection is closed before servers and firewalls forget it.
const IDLE: Duration = Duration::from_secs(30);

pub(super) fn build(address: &ObjectAddress) -> Result<Client> {
    let mut builder = Client::builder()
        .user_agent(concat!("coffer/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls(address.option("ca-file"))?)
        .redirect(Policy::none())
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .no_proxy();
    if let Some(url) = address.option("proxy") {
        let proxy = Proxy::all(url)
            .map_err(|e| Error::invalid("option 'proxy' is no usable URL").with_source(e.without_url()))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|e| Error::internal("making the HTTP client").with_source(e.without_url()))
}

fn tls(ca_file: Option<&str>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // A machine without certificates can still speak to a store that is trusted by `ca-file`, or by HTTP.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let unusable = |e: &dyn std::fmt::Display| {
            Error::invalid(format!("option 'ca-file': {path} holds no usable certificates: {e}"))
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))?;
        let before = roots.len();
        for certificate in certificates {
            roots.add(certificate.map_err(|e| unusable(&e))?).map_err(|e| unusable(&e))?;
        }
        if roots.len() == before {
            return Err(unusable(&"it has none"));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(|e| Error::internal("choosing versions of TLS").with_source(e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
