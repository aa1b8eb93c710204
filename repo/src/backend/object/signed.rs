//! Requests that OpenDAL does not have, for S3 stores: signed here, and made by the transport that all others use.
//!
//! ```text
//!   object_lock, archive ──> ask: method, URL, body ──> sign (reqsign) ──> transport ──> answer, or why it was refused
//! ```
//! Not here: what is asked ([`super::object_lock`], [`super::archive`]). What holds: the credentials are those that OpenDAL is told to
//! use; a body goes with its SHA-256 as a checksum; an answer is read whole.

use super::failure::{Answer, Failure};
use super::transport::Transport;
use super::witness::Witness;
use super::{Call, ObjectStore, service};
use crate::backend::address::{ObjectAddress, Scheme};
use crate::backend::secrets::Secrets;
use crate::error::{Error, Result};
use aws_lc_rs::digest;
use http::{HeaderMap, HeaderValue, Method, Request};
use opendal::raw::Operation;
use opendal::{Buffer, HttpTransport, HttpTransporter};
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{Context, OsEnv, ProvideCredentialChain, Signer};
use reqsign_file_read_tokio::TokioFileRead;
use std::fmt::Write as _;
use std::sync::Arc;

/// What signs, and where objects lie.
pub(super) struct Notary {
    signer: Signer<Credential>,
    /// The bucket's URL, without a slash at the end.
    pub(super) bucket: String,
    /// What the names of objects begin with in the bucket: empty, or ending in a slash.
    pub(super) prefix: String,
}

/// An answer that is no failure.
pub(super) struct Answered {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answered {
    /// Whether these words are in the body.
    pub(super) fn has(&self, words: &str) -> bool {
        self.body.windows(words.len()).any(|window| window == words.as_bytes())
    }

    /// A field of the answer's head.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A request that failed.
pub(super) struct Refused {
    /// The answer's status; 0: there was none.
    pub(super) status: u16,
    /// The store's own word for it.
    pub(super) code: String,
    pub(super) error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused { status: 0, code: String::new(), error }
    }
}

impl Notary {
    /// `None` for stores that have no such requests, or are asked without credentials.
    pub(super) fn open(address: &ObjectAddress, secrets: &Secrets) -> Result<Option<Notary>> {
        if address.scheme() != Scheme::S3 || address.is_on("anonymous", false) {
            return Ok(None);
        }
        let site = service::s3_site(address, secrets)?;
        let credentials = credentials(address, secrets, &site.region)?;
        let signer = Signer::new(context(), credentials, RequestSigner::new("s3", &site.region));
        let bucket = match site.is_virtual {
            false => format!("{}/{}", site.endpoint.trim_end_matches('/'), escaped(address.place())),
            true => {
                let (scheme, host) = site.endpoint.split_once("://").unwrap_or(("https", &site.endpoint));
                format!("{scheme}://{}.{}", address.place(), host.trim_end_matches('/'))
            }
        };
        let prefix = if address.prefix().is_empty() { String::new() } else { format!("{}/", address.prefix()) };
        Ok(Some(Notary { signer, bucket, prefix }))
    }

    /// An object's URL.
    pub(super) fn object(&self, name: &str) -> String {
        format!("{}/{}{}", self.bucket, escaped(&self.prefix), escaped(name))
    }
}

fn context() -> Context {
    Context::new().with_file_read(TokioFileRead).with_env(OsEnv)
}

/// The same as OpenDAL is told to use.
fn credentials(address: &ObjectAddress, secrets: &Secrets, region: &str) -> Result<ProvideCredentialChain<Credential>> {
    let named = match secrets.get("AWS_ACCESS_KEY_ID") {
        None => None,
        Some(id) => {
            let provider =
                StaticCredentialProvider::new(id, service::required(address, secrets, "AWS_SECRET_ACCESS_KEY")?);
            Some(match secrets.get("AWS_SESSION_TOKEN") {
                Some(token) => provider.with_session_token(token),
                None => provider,
            })
        }
    };
    let chain = ProvideCredentialChain::new();
    let chain = match (named, address.option("profile")) {
        (Some(named), _) => chain.push(named),
        (None, Some(profile)) => chain.push(DefaultCredentialProvider::builder().with_profile(profile).build()),
        (None, None) => chain.push(DefaultCredentialProvider::builder().build()),
    };
    let Some(role) = address.option("role") else { return Ok(chain) };
    let signer = Signer::new(context(), chain, RequestSigner::new("sts", region));
    let role = AssumeRoleCredentialProvider::new(role.to_owned(), signer).with_region(region.to_owned());
    Ok(ProvideCredentialChain::new().push(role.with_regional_sts_endpoint()))
}

impl ObjectStore {
    /// Makes one signed request.
    pub(super) fn ask(
        &self,
        notary: &Notary,
        call: &Call<'_>,
        (method, url): (Method, String),
        body: Option<&str>,
    ) -> Result<Answered, Refused> {
        let body = body.unwrap_or_default().as_bytes().to_vec();
        let internal = |text: String| Error::internal(format!("asking {}: {text}", self.address));
        let hash = digest::digest(&digest::SHA256, &body);
        let mut request = Request::builder().method(method).uri(url);
        request = request.header("x-amz-content-sha256", hex(hash.as_ref()));
        if !body.is_empty() {
            // Stores want to be sure of what a lock says, say.
            request = request.header("x-amz-sdk-checksum-algorithm", "SHA256");
            request = request.header("x-amz-checksum-sha256", service::base64(hash.as_ref()));
        }
        let (mut parts, body) = request.body(Buffer::from(body)).map_err(|e| internal(e.to_string()))?.into_parts();
        if !body.is_empty() {
            parts.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        parts.extensions.insert(Operation::Stat);
        let witness = Arc::new(Witness::new(call.purpose, self.patience));
        let transport =
            Transport { wires: Arc::clone(&self.wires), witness: Arc::clone(&witness), swift: self.swift.clone() };
        let signer =
            notary.signer.clone().with_context(context().with_http_send(HttpTransporter::new(transport.clone())));
        let done = self.runtime.call(async move {
            let unsigned = |e: reqsign_core::Error| {
                opendal::Error::new(opendal::ErrorKind::Unexpected, "signing the request, which takes credentials")
                    .set_source(e)
            };
            signer.sign(&mut parts, None).await.map_err(unsigned)?;
            let (parts, mut body) = transport.fetch(Request::from_parts(parts, body)).await?.into_parts();
            Ok((parts.status, parts.headers, body.to_buffer().await?.to_vec()))
        });
        let error = match done? {
            Ok((status, headers, body)) if status.is_success() => return Ok(Answered { headers, body }),
            Ok((status, ..)) => {
                opendal::Error::new(opendal::ErrorKind::Unexpected, format!("the store answers {status}"))
            }
            Err(e) => e,
        };
        let (status, code) = match &witness.seen().failure {
            Some(Failure::Answer(Answer { status, code, .. })) => (*status, code.clone()),
            _ => (0, String::new()),
        };
        Err(Refused { status, code, error: self.explain(call, &witness, &error) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// As a path has it: everything but what every signature leaves alone, and slashes.
fn escaped(text: &str) -> String {
    escape(text, b"-_.~/")
}

/// As a query has it: slashes as well.
pub(super) fn escaped_all(text: &str) -> String {
    escape(text, b"-_.~")
}

fn escape(text: &str, plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            true => out.push(char::from(byte)),
            false => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_signatures_want_them() {
        assert_eq!(escaped("a/b=c+d e~"), "a/b%3Dc%2Bd%20e~");
        assert_eq!(escaped_all("a/\u{e4}"), "a%2F%C3%A4");
        assert_eq!(hex(&[0, 0xab, 9]), "00ab09");
    }
}
