//! Object lock of S3 stores: the requests that OpenDAL does not have, signed here and made by the transport that all others use.
//!
//! ```text
//!   lock    PUT name?retention          COMPLIANCE until a date       refused when a longer one stands, which is as well
//!   delete  HEAD name -> its version -> DELETE name?versionId=..      403: the HEAD's fields tell whether a lock or the credentials
//!   hidden  GET ?versions, page by page                               reveal: DELETE of all versions but the oldest
//!   check   GET ?object-lock            once, and remembered
//! ```
//! What it takes besides reading and writing: `s3:PutObjectRetention`, `s3:GetObjectRetention` (or a HEAD tells nothing of locks),
//! `s3:GetBucketObjectLockConfiguration`, and for who collects `s3:DeleteObjectVersion` and `s3:ListBucketVersions`.
//!
//! Not here: what is locked ([`crate::locks`]); the listing's bytes ([`super::versions`]). What holds: a bucket with object lock never
//! gets a delete marker from here; only compliance mode counts as a lock, since whoever is permitted to can get round governance
//! mode, but the store's refusal to delete counts in any mode; the store's clock is the one of its answers.

use super::failure::{Answer, Failure};
use super::transport::Transport;
use super::versions::{Page, Version};
use super::witness::{Purpose, Witness};
use super::{Call, ObjectStore, service};
use crate::backend::address::{ObjectAddress, Scheme};
use crate::backend::check_name;
use crate::backend::lock::{Hidden, Hiding, Kept, ObjectLock};
use crate::backend::secrets::Secrets;
use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;
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
use std::sync::{Arc, OnceLock};

/// What signs, and where objects lie.
pub(super) struct Locksmith {
    signer: Signer<Credential>,
    /// The bucket's URL, without a slash at the end.
    bucket: String,
    /// What the names of objects begin with in the bucket: empty, or ending in a slash.
    prefix: String,
    lockable: OnceLock<Lockable>,
}

/// Whether objects can be locked in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lockable {
    Yes,
    No,
    /// The credentials may not ask.
    Unknown,
}

/// An answer that is no failure.
struct Answered {
    headers: HeaderMap,
    body: Vec<u8>,
}

/// A request that failed.
struct Refused {
    /// The answer's status; 0: there was none.
    status: u16,
    /// The store's own word for it.
    code: String,
    error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused { status: 0, code: String::new(), error }
    }
}

/// What a HEAD tells of an object's lock.
struct Shown {
    version: Option<String>,
    /// In compliance mode.
    until: Option<Timestamp>,
    /// Whether the store keeps it now.
    kept: Option<Kept>,
}

impl Locksmith {
    /// `None` for stores that have no such requests, or are asked without credentials.
    pub(super) fn open(address: &ObjectAddress, secrets: &Secrets) -> Result<Option<Locksmith>> {
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
        Ok(Some(Locksmith { signer, bucket, prefix, lockable: OnceLock::new() }))
    }

    fn object(&self, name: &str) -> String {
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
    fn ask(
        &self,
        smith: &Locksmith,
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
            // Stores want to be sure of what a lock says.
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
            smith.signer.clone().with_context(context().with_http_send(HttpTransporter::new(transport.clone())));
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

    /// Whether objects can be locked here; asked once.
    fn lockable(&self, smith: &Locksmith) -> Result<Lockable> {
        if let Some(known) = smith.lockable.get() {
            return Ok(*known);
        }
        let call = Call { doing: "asking for object lock of", name: "", purpose: Purpose::default() };
        let asked = self.ask(smith, &call, (Method::GET, format!("{}?object-lock=", smith.bucket)), None);
        let found = match asked {
            Ok(answer) if contains(&answer.body, b"<ObjectLockEnabled>Enabled<") => Lockable::Yes,
            Ok(_) => Lockable::No,
            Err(Refused { status, code, error }) => match (status, code.as_str()) {
                (404, "NoSuchBucket") => return Err(error),
                (400 | 404 | 405 | 501, _) => Lockable::No,
                (403, "AccessDenied") => Lockable::Unknown,
                _ => return Err(error),
            },
        };
        Ok(*smith.lockable.get_or_init(|| found))
    }

    /// What signs, when objects can be locked here.
    fn locksmith(&self) -> Result<&Locksmith> {
        let unsupported =
            |why: &str| Error::new(Kind::Unsupported, format!("objects cannot be locked in {}: {why}", self.address));
        let smith = self.locksmith.as_ref().ok_or_else(|| unsupported("only S3 stores have object lock"))?;
        match self.lockable(smith)? {
            Lockable::Yes => Ok(smith),
            Lockable::No => Err(unsupported(
                "the bucket is without object lock, which most stores switch on only when a bucket is made",
            )),
            Lockable::Unknown => Err(unsupported(
                "these credentials may not ask for it; permit them s3:GetBucketObjectLockConfiguration",
            )),
        }
    }

    fn look(&self, smith: &Locksmith, name: &str) -> Result<Option<Shown>> {
        let call = Call { doing: "looking for the lock of", name, purpose: Purpose::default() };
        match self.ask(smith, &call, (Method::HEAD, smith.object(name)), None) {
            Ok(answer) => Ok(Some(Shown::of(&answer.headers))),
            Err(Refused { status: 404 | 405, .. }) => self.see_bucket().map(|()| None),
            Err(refused) => Err(refused.error),
        }
    }

    /// Removes an object as [`Backend::delete`](crate::backend::Backend::delete) does in a bucket with object lock. `None`: the bucket
    /// has none, and nothing was done.
    pub(super) fn delete_version(&self, name: &str) -> Result<Option<()>> {
        let Some(smith) = &self.locksmith else { return Ok(None) };
        if self.lockable(smith)? != Lockable::Yes {
            return Ok(None);
        }
        let Some(shown) = self.look(smith, name)? else { return Ok(Some(())) };
        let Some(version) = &shown.version else { return Ok(None) };
        let kept = shown.kept.map(|kept| match kept.until {
            Some(until) => format!("locked until {until}"),
            None => "under a legal hold".to_owned(),
        });
        self.remove(smith, name, version, kept.as_deref()).map(Some)
    }

    /// Removes one version, which the store is known to keep for the reason `kept`, or not.
    fn remove(&self, smith: &Locksmith, name: &str, version: &str, kept: Option<&str>) -> Result<()> {
        let call = Call { doing: "deleting", name, purpose: Purpose::default() };
        let url = format!("{}?versionId={}", smith.object(name), escaped_all(version));
        match (self.ask(smith, &call, (Method::DELETE, url), None), kept) {
            (Ok(_), _) => Ok(()),
            (Err(Refused { status: 404, .. }), _) => Ok(()),
            (Err(Refused { status: 403, error, .. }), Some(kept)) => {
                Err(Error::new(Kind::Retained, format!("'{name}' in {} is {kept}", self.address)).with_source(error))
            }
            (Err(refused), _) => Err(refused.error),
        }
    }

    /// Calls `each` for every version of what begins with `prefix`, of one object the newest first.
    fn each_version(&self, smith: &Locksmith, prefix: &str, each: &mut dyn FnMut(Version) -> Result<()>) -> Result<()> {
        let call = Call { doing: "listing versions of", name: prefix, purpose: Purpose::default() };
        let begin = format!("{}{prefix}", smith.prefix);
        let mut next: Option<(String, String)> = None;
        loop {
            let mut url = format!("{}?prefix={}&versions=", smith.bucket, escaped_all(&begin));
            if let Some((key, id)) = &next {
                url += &format!("&key-marker={}&version-id-marker={}", escaped_all(key), escaped_all(id));
            }
            let answer = self.ask(smith, &call, (Method::GET, url), None).map_err(|refused| refused.error)?;
            let page = Page::parse(&answer.body).map_err(|e| e.within(&self.address))?;
            for version in page.versions {
                if let Some(name) = version.key.strip_prefix(&smith.prefix).filter(|name| check_name(name).is_ok()) {
                    let key = name.to_owned();
                    each(Version { key, ..version })?;
                }
            }
            if page.next.is_some() && page.next == next {
                return Err(Error::corrupt(format!("{}: a listing of versions does not go on", self.address)));
            }
            next = page.next;
            if next.is_none() {
                return Ok(());
            }
        }
    }
}

impl Shown {
    fn of(headers: &HeaderMap) -> Shown {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let date = text("x-amz-object-lock-retain-until-date").and_then(|date| date.parse::<jiff::Timestamp>().ok());
        let until = date.and_then(|date| Timestamp::from_seconds(u64::try_from(date.as_second()).ok()?).ok());
        let now = text("date").and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let is_over = |date: jiff::Timestamp| now.as_ref().is_some_and(|now| now.timestamp() >= date);
        let kept = match (date, until) {
            _ if text("x-amz-object-lock-legal-hold") == Some("ON") => Some(Kept { until: None }),
            (Some(date), Some(_)) if !is_over(date) => Some(Kept { until }),
            _ => None,
        };
        let is_compliant = text("x-amz-object-lock-mode") == Some("COMPLIANCE");
        let version = text("x-amz-version-id").filter(|id| !id.is_empty()).map(str::to_owned);
        Shown { version, until: until.filter(|_| is_compliant), kept }
    }
}

impl ObjectLock for ObjectStore {
    fn check(&self) -> Result<()> {
        self.locksmith().map(drop)
    }

    fn lock(&self, name: &str, until: Timestamp) -> Result<()> {
        check_name(name)?;
        let smith = self.locksmith()?;
        let date = i64::try_from(until.seconds()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        let date = date.ok_or_else(|| Error::invalid(format!("{until} is no date for a lock")))?;
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>COMPLIANCE</Mode>\
             <RetainUntilDate>{}</RetainUntilDate></Retention>",
            date.strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        let call = Call { doing: "locking", name, purpose: Purpose::default() };
        let url = format!("{}?retention=", smith.object(name));
        let Refused { status, error, .. } = match self.ask(smith, &call, (Method::PUT, url), Some(&body)) {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        match status {
            404 | 405 => {
                self.see_bucket()?;
                Err(self.not_there(name))
            }
            // Refused, perhaps since a longer lock stands.
            403 => match self.locked_until(name) {
                Ok(Some(stands)) if stands >= until => Ok(()),
                _ => Err(error),
            },
            400 => {
                let why =
                    format!("the store takes no lock until {until}; the date must lie in the future of its clock");
                Err(error.with_kind(Kind::Invalid).within(why))
            }
            _ => Err(error),
        }
    }

    fn locked_until(&self, name: &str) -> Result<Option<Timestamp>> {
        check_name(name)?;
        let shown = self.look(self.locksmith()?, name)?.ok_or_else(|| self.not_there(name))?;
        Ok(shown.until)
    }

    fn kept(&self, name: &str) -> Result<Option<Kept>> {
        check_name(name)?;
        Ok(self.look(self.locksmith()?, name)?.ok_or_else(|| self.not_there(name))?.kept)
    }

    fn each_hidden(&self, prefix: &str, each: &mut dyn FnMut(Hidden) -> Result<()>) -> Result<()> {
        crate::backend::check_prefix(prefix)?;
        // The key that is being listed, what it shows, and how many versions it has.
        let mut open: Option<(String, bool, u64)> = None;
        let mut close = |open: Option<(String, bool, u64)>| match open {
            Some((name, true, 1..)) => each(Hidden { name, by: Hiding::Marker }),
            Some((name, false, 2..)) => each(Hidden { name, by: Hiding::Version }),
            _ => Ok(()),
        };
        self.each_version(self.locksmith()?, prefix, &mut |version| {
            let contents = u64::from(!version.is_marker);
            match &mut open {
                Some((name, _, count)) if *name == version.key => *count += contents,
                _ => close(open.replace((version.key, version.is_marker, contents)))?,
            }
            Ok(())
        })?;
        close(open)
    }

    fn reveal(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let smith = self.locksmith()?;
        let mut versions = Vec::new();
        self.each_version(smith, name, &mut |version| {
            if version.key == name {
                versions.push(version);
            }
            Ok(())
        })?;
        let oldest = versions.iter().rposition(|version| !version.is_marker).ok_or_else(|| self.not_there(name))?;
        let kept = "hidden by a version that the store does not let go, by a lock of its own or for want of permission";
        versions.iter().take(oldest).try_for_each(|version| self.remove(smith, name, &version.id, Some(kept)))
    }
}

fn contains(body: &[u8], wanted: &[u8]) -> bool {
    body.windows(wanted.len()).any(|window| window == wanted)
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
fn escaped_all(text: &str) -> String {
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

    fn shown(fields: &[(&'static str, &'static str)]) -> Shown {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        Shown::of(&fields.iter().map(pair).collect())
    }

    #[test]
    fn a_head_tells_of_locks() {
        const MODE: &str = "x-amz-object-lock-mode";
        const DATE: &str = "x-amz-object-lock-retain-until-date";
        let now = ("date", "Sun, 22 Nov 2026 18:32:52 GMT");
        let later = (DATE, "2026-11-22T18:35:11.000000000Z");
        let locked = shown(&[now, (MODE, "COMPLIANCE"), later, ("x-amz-version-id", "v")]);
        assert_eq!(locked.until.unwrap().to_string(), "2026-11-22T18-35-11Z");
        assert_eq!((locked.kept, locked.version.as_deref()), (Some(Kept { until: locked.until }), Some("v")));
        let over = shown(&[now, (MODE, "COMPLIANCE"), (DATE, "2026-11-22T18:32:51Z")]);
        assert!(over.until.is_some() && over.kept.is_none());
        // It can be got round, and is refused for the time being.
        let governed = shown(&[now, (MODE, "GOVERNANCE"), later]);
        assert!(governed.until.is_none() && governed.kept.is_some());
        let held = shown(&[now, ("x-amz-object-lock-legal-hold", "ON")]);
        assert_eq!((held.until, held.kept), (None, Some(Kept { until: None })));
        let free = shown(&[now, ("x-amz-object-lock-legal-hold", "OFF")]);
        assert!(free.until.is_none() && free.kept.is_none());
    }

    #[test]
    fn names_are_escaped_as_signatures_want_them() {
        assert_eq!(escaped("a/b=c+d e~"), "a/b%3Dc%2Bd%20e~");
        assert_eq!(escaped_all("a/\u{e4}"), "a%2F%C3%A4");
        assert_eq!(hex(&[0, 0xab, 9]), "00ab09");
    }
}
