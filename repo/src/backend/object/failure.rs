//! How requests fail, and what that means: the one place where HTTP, TLS and OpenDAL's errors become ours.
//!
//! ```text
//!   answer: status, code and message of its body, headers ─┐
//!   wire: no connection, TLS, reset, timeout ──────────────┼─> Kind, and words that name the way out
//!   OpenDAL: what never became a request ──────────────────┘
//! ```
//! Not here: whether to try again ([`super::retry`]). What holds: an error's text has the store's code and message, cut to a
//! line, and never a URL, a header or a body: these may hold signatures and tokens. A missing bucket is no missing object.
//! A store that says a range lies beyond the object's end says `Corrupt`: the caller knew the length.

use crate::error::{Error, Kind};
use std::error::Error as StdError;
use std::time::Duration;

/// Longest part of a store's message that is repeated, in characters.
const MESSAGE: usize = 200;

/// How a request failed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The store said so.
    Answer(Answer),
    /// There was no whole answer.
    Wire(Wire),
}

/// What a store said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The store's own word for it, empty when it has none.
    pub(super) code: String,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// The region in which the bucket is, when it is another one.
    pub(super) region: Option<String>,
    /// The store's clock.
    pub(super) date: Option<String>,
}

/// What went wrong between us and the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    pub(super) trouble: Trouble,
    pub(super) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody answers there; nothing was sent.
    Connect,
    /// The other side is not who it should be, or speaks no TLS.
    Tls,
    /// Reset, cut short, not HTTP.
    Broken,
    /// Nothing moved for too long.
    Timeout,
}

impl Failure {
    /// What it means, and what to do about it.
    pub(super) fn verdict(&self) -> (Kind, String) {
        match self {
            Failure::Answer(answer) => answer.verdict(),
            Failure::Wire(wire) => wire.verdict(),
        }
    }

    pub(super) fn is_transient(&self) -> bool {
        self.verdict().0.is_transient()
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Answer(answer) => answer.retry_after,
            Failure::Wire(_) => None,
        }
    }

    /// Whether the request may have been carried out all the same.
    pub(super) fn is_unsure(&self) -> bool {
        match self {
            Failure::Answer(answer) => answer.status >= 500 && self.is_transient(),
            Failure::Wire(wire) => !matches!(wire.trouble, Trouble::Connect | Trouble::Tls),
        }
    }

    /// Whether it says that there is an object of that name already.
    pub(super) fn is_taken(&self) -> bool {
        match self {
            Failure::Answer(answer) => answer.status == 412 || TAKEN.contains(&answer.code.as_str()),
            Failure::Wire(_) => false,
        }
    }

    /// The answer's status; 0: there was none.
    pub(super) fn status(&self) -> u16 {
        match self {
            Failure::Answer(answer) => answer.status,
            Failure::Wire(_) => 0,
        }
    }

    /// As an error about `what`, say "reading 'packs/00/a' in s3://b".
    pub(super) fn to_error(&self, what: &str) -> Error {
        let (kind, words) = self.verdict();
        Error::new(kind, format!("{what}: {words}"))
    }
}

/// Codes by which stores say that a name is taken, when they do not say it by the status 412.
const TAKEN: &[&str] = &["BlobAlreadyExists", "FileAlreadyExists", "PreconditionFailed", "ConditionNotMet"];

/// Codes that say the same in words; the first row that names the code, or else the status, counts.
const CODES: &[(&[&str], Kind, &str)] = &[
    (
        &["RequestTimeTooSkewed", "RequestExpired", "RequestNotInTime"],
        Kind::Invalid,
        "this machine's clock and the store's differ too much; set this one",
    ),
    (
        &[
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidSecurity",
            "InvalidToken",
            "NotSignedUp",
            "AuthFailure",
        ],
        Kind::Invalid,
        "the store does not know these credentials; check them, and the region and the endpoint they belong to",
    ),
    (
        &[
            "AuthenticationFailed",
            "InvalidAuthenticationInfo",
            "NoAuthenticationInformation",
            "bad_auth_token",
            "unauthorized",
        ],
        Kind::Invalid,
        "the store does not take these credentials; check them, and the account they belong to",
    ),
    (
        &["ExpiredToken", "TokenRefreshRequired", "expired_auth_token", "SecurityTokenExpired"],
        Kind::Invalid,
        "the credentials have expired; get new ones",
    ),
    (
        &[
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "TemporaryRedirect",
            "IllegalLocationConstraintException",
        ],
        Kind::Invalid,
        "the bucket is in another region or at another endpoint; say -o region=REGION or -o endpoint=URL",
    ),
    (
        &["NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "NoSuchContainer", "bad_bucket_id"],
        Kind::Invalid,
        "there is no such bucket; check its name, or make it",
    ),
    (&["ContainerBeingDeleted"], Kind::Invalid, "the bucket is being deleted"),
    (
        &[
            "QuotaExceeded",
            "QuotaExceededException",
            "InsufficientStorage",
            "cap_exceeded",
            "storage_cap_exceeded",
            "UserQuotaExceeded",
        ],
        Kind::Full,
        "the store's quota is used up; raise it, or free space with 'coffer forget' and 'coffer gc'",
    ),
    (
        &["EntityTooLarge", "RequestBodyTooLarge", "TooManyBuckets"],
        Kind::Full,
        "the store takes no object of this length",
    ),
    (
        &[
            "SlowDown",
            "TooManyRequests",
            "ServerBusy",
            "RequestLimitExceeded",
            "rateLimitExceeded",
            "userRateLimitExceeded",
            "too_many_requests",
        ],
        Kind::Unavailable,
        "the store asks to go slower; -o connections=N and -o upload=RATE make us do so",
    ),
    (
        &[
            "RequestTimeout",
            "InternalError",
            "ServiceUnavailable",
            "OperationAborted",
            "ConditionalRequestConflict",
            "OperationTimedOut",
            "service_unavailable",
            "internal_error",
            "request_timeout",
            "backendError",
        ],
        Kind::Unavailable,
        "the store cannot do it now",
    ),
    (
        &["InvalidObjectState"],
        Kind::Frozen,
        "the object is frozen in a cold tier; 'coffer thaw POINT' has the store thaw what a point needs (rules of a bucket must leave \
         alone everything but packs/)",
    ),
    (
        &["BlobArchived", "BlobBeingRehydrated"],
        Kind::Frozen,
        "the blob is in the archive tier; set another tier with the provider's tools ('az storage blob set-tier') and wait until it is \
         rehydrated",
    ),
    (&["RestoreAlreadyInProgress"], Kind::Locked, "the object is being thawed already"),
    (
        &["GlacierExpeditedRetrievalNotAvailable"],
        Kind::Unsupported,
        "the store has no room for expedited thawing now; say --speed standard, or try later",
    ),
    (
        &[
            "ObjectLocked",
            "BlobImmutableDueToPolicy",
            "BlobImmutableDueToLegalHold",
            "retentionPolicyNotMet",
            "objectUnderActiveHold",
        ],
        Kind::Retained,
        "the store keeps the object until its retention ends",
    ),
    (&["InvalidRange"], Kind::Corrupt, "the object is shorter than it was written"),
    (&["NoSuchKey", "BlobNotFound", "NoSuchUpload", "not_found"], Kind::NotFound, "there is no such object"),
];

impl Answer {
    fn verdict(&self) -> (Kind, String) {
        let (kind, words) = self.meaning();
        let mut text = words.to_owned();
        if kind == Kind::Invalid {
            if let Some(region) = &self.region {
                text += &format!(" (it says: {region})");
            }
            if let Some(date) = self.date.as_ref().filter(|_| text.contains("clock")) {
                text += &format!(" (the store's says {date})");
            }
        }
        text += &format!(" (HTTP {}", self.status);
        if !self.code.is_empty() {
            text += &format!(", {}", line(&self.code));
        }
        let message = line(&self.message);
        if !message.is_empty() && message != self.code {
            text += &format!(": {message}");
        }
        text.push(')');
        (kind, text)
    }

    fn meaning(&self) -> (Kind, &'static str) {
        if self.status == 403 && self.is_about_retention() {
            return (Kind::Retained, "the store keeps the object until its retention ends");
        }
        if self.status == 412 || TAKEN.contains(&self.code.as_str()) {
            return (Kind::Locked, "there is an object of that name already");
        }
        if let Some((_, kind, words)) = CODES.iter().find(|(codes, ..)| codes.contains(&self.code.as_str())) {
            return (*kind, words);
        }
        match self.status {
            301 | 302 | 307 | 308 => (Kind::Invalid, "the store is elsewhere; say -o region=REGION or -o endpoint=URL"),
            401 => (Kind::Invalid, "the store does not take these credentials; check them"),
            403 => (Kind::Invalid, "these credentials may not do that; grant it to them, or name others"),
            404 | 410 => (Kind::NotFound, "there is no such object"),
            405 | 501 => (Kind::Unsupported, "the store cannot do that"),
            408 | 425 | 429 => {
                (Kind::Unavailable, "the store asks to go slower; -o connections=N and -o upload=RATE make us do so")
            }
            409 | 423 => (Kind::Unavailable, "the store is busy with this object"),
            413 => (Kind::Full, "the store takes no object of this length"),
            416 => (Kind::Corrupt, "the object is shorter than it was written"),
            507 => (Kind::Full, "the store is full; free space with 'coffer forget' and 'coffer gc', or enlarge it"),
            500..=599 => (Kind::Unavailable, "the store cannot do it now"),
            _ => (Kind::Invalid, "the store refuses the request; check bucket, region and endpoint"),
        }
    }

    /// S3 has no code of its own for what object lock forbids.
    fn is_about_retention(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        ["object lock", "worm", "retention", "retain"].iter().any(|word| message.contains(word))
    }

    /// Code and message of an error's body: XML (S3, Azure, OSS, COS, GCS), JSON (GCS, B2, Keystone) or text.
    pub(super) fn read_body(&mut self, body: &str) {
        let code =
            ["Code", "code"].iter().find_map(|tag| element(body, tag)).or_else(|| field(body, &["reason", "code"]));
        let message = element(body, "Message").or_else(|| field(body, &["message"]));
        if self.code.is_empty() {
            self.code = code.unwrap_or_default().to_owned();
        }
        let fallback = || if body.trim_start().starts_with(['<', '{']) { "" } else { body };
        self.message = message.unwrap_or_else(fallback).to_owned();
        if let Some(region) = element(body, "Region").or_else(|| element(body, "Endpoint")) {
            self.region.get_or_insert_with(|| line(region));
        }
    }
}

impl Wire {
    fn verdict(&self) -> (Kind, String) {
        let (kind, words) = match self.trouble {
            Trouble::Connect => (Kind::Unavailable, "the store cannot be reached; check endpoint, network and proxy"),
            Trouble::Tls => (
                Kind::Invalid,
                "no safe connection to the store; trust its certificate by -o ca-file=FILE, or check the endpoint",
            ),
            Trouble::Broken => (Kind::Unavailable, "the connection to the store broke"),
            Trouble::Timeout => (Kind::Unavailable, "the store does not answer"),
        };
        (kind, format!("{words} ({})", line(&self.text)))
    }

    /// Nothing came for so long.
    pub(super) fn late(after: Duration) -> Wire {
        Wire { trouble: Trouble::Timeout, text: format!("nothing for {} s", after.as_secs()) }
    }

    /// Out of what the HTTP client says.
    pub(super) fn from_client(error: reqwest::Error) -> Wire {
        let error = error.without_url();
        let mut trouble = match &error {
            e if e.is_timeout() && !e.is_connect() => Trouble::Timeout,
            e if e.is_connect() => Trouble::Connect,
            _ => Trouble::Broken,
        };
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(source) = next {
            if is_tls(source) {
                trouble = Trouble::Tls;
            }
            let more = source.to_string();
            if !text.contains(&more) {
                text += &format!(": {more}");
            }
            next = source.source();
        }
        Wire { trouble, text }
    }
}

/// Whether an error is one of TLS, also when I/O errors are wrapped around it.
fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref).is_some_and(|inner| is_tls(inner))
}

/// What OpenDAL says about a request that was never made, or whose answer it did not understand.
pub(super) fn of_opendal(error: &opendal::Error, what: &str) -> Error {
    use opendal::ErrorKind as E;
    let mut text = line(error.message());
    if let Some(source) = StdError::source(error) {
        text = format!("{text}: {}", line(&source.to_string()));
    }
    let is_about_credentials = {
        let text = text.to_ascii_lowercase();
        text.contains("credential") || text.contains("sign")
    };
    let (kind, words) = match error.kind() {
        E::NotFound | E::IsADirectory | E::NotADirectory => (Kind::NotFound, "there is no such object"),
        E::RangeNotSatisfied => (Kind::Corrupt, "the object is shorter than it was written"),
        E::PermissionDenied => (Kind::Invalid, "the store does not permit it"),
        E::ConfigInvalid => (Kind::Invalid, "the store's options are not complete or contradict each other"),
        E::Unsupported => (Kind::Unsupported, "this kind of store cannot do it"),
        _ if is_about_credentials => (
            Kind::Invalid,
            "no credentials; name them by -o secret-file=FILE, by variables, or where the provider's own tools look",
        ),
        _ => (Kind::Unavailable, "the store did something unexpected"),
    };
    Error::new(kind, format!("{what}: {words} ({text})"))
}

/// What `Retry-After` asks for: seconds, or a time that is compared with the store's own clock.
pub(super) fn parse_retry_after(after: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(seconds) = after.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text: &str| jiff::fmt::rfc2822::parse(text.trim()).ok();
    Duration::try_from(time(after)?.duration_since(&time(date?)?)).ok()
}

/// One line of what a store said: what does not show is gone, what is long is cut.
fn line(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let joined = words.join(" ");
    match joined.char_indices().nth(MESSAGE) {
        Some((at, _)) => format!("{}...", joined.get(..at).unwrap_or_default()),
        None => joined,
    }
}

/// The text of the first XML element of that name, without any in it.
fn element<'a>(body: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{tag}>"))?;
    let (text, _) = rest.split_once('<')?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// The text or number of the first JSON field of one of these names. An error's body is small and ours to show only, so it is
/// searched, not parsed.
fn field<'a>(body: &'a str, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| {
        let (_, rest) = body.split_once(&format!("\"{name}\""))?;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start();
        let rest = rest.strip_prefix('"')?;
        rest.split_once('"').map(|(text, _)| text).filter(|text| !text.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> (Kind, String) {
        let mut answer = Answer { status, ..Answer::default() };
        answer.read_body(body);
        Failure::Answer(answer).verdict()
    }

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    #[test]
    fn what_stores_say_means_something() {
        let table: &[(u16, &str, Kind, &str)] = &[
            (403, "RequestTimeTooSkewed", Kind::Invalid, "clock"),
            (403, "InvalidAccessKeyId", Kind::Invalid, "credentials"),
            (403, "SignatureDoesNotMatch", Kind::Invalid, "region"),
            (403, "AuthenticationFailed", Kind::Invalid, "account"),
            (400, "ExpiredToken", Kind::Invalid, "expired"),
            (403, "AccessDenied", Kind::Invalid, "may not"),
            (403, "", Kind::Invalid, "may not"),
            (401, "", Kind::Invalid, "credentials"),
            (400, "AuthorizationHeaderMalformed", Kind::Invalid, "-o region="),
            (301, "PermanentRedirect", Kind::Invalid, "-o region="),
            (307, "", Kind::Invalid, "-o region="),
            (404, "NoSuchBucket", Kind::Invalid, "no such bucket"),
            (404, "ContainerNotFound", Kind::Invalid, "no such bucket"),
            (404, "NoSuchKey", Kind::NotFound, "no such object"),
            (404, "", Kind::NotFound, "no such object"),
            (416, "InvalidRange", Kind::Corrupt, "shorter"),
            (416, "", Kind::Corrupt, "shorter"),
            (403, "QuotaExceeded", Kind::Full, "quota"),
            (507, "", Kind::Full, "full"),
            (413, "", Kind::Full, "length"),
            (429, "", Kind::Unavailable, "slower"),
            (503, "SlowDown", Kind::Unavailable, "slower"),
            (503, "", Kind::Unavailable, "now"),
            (500, "InternalError", Kind::Unavailable, "now"),
            (412, "PreconditionFailed", Kind::Locked, "already"),
            (409, "BlobAlreadyExists", Kind::Locked, "already"),
            (409, "ConditionalRequestConflict", Kind::Unavailable, "now"),
            (409, "BlobImmutableDueToPolicy", Kind::Retained, "retention"),
            (403, "InvalidObjectState", Kind::Frozen, "coffer thaw"),
            (501, "NotImplemented", Kind::Unsupported, "cannot"),
            (400, "MalformedXML", Kind::Invalid, "refuses"),
        ];
        for (status, code, kind, word) in table {
            let (got, text) = answer(*status, &xml(code, "because"));
            assert_eq!(got, *kind, "{status} {code}: {text}");
            assert!(text.contains(word) && text.contains(&status.to_string()) && text.contains(code), "{text}");
            assert!(text.contains("because"), "{text}");
        }
        let (kind, text) = answer(403, &xml("AccessDenied", "Access Denied because object protected by object lock."));
        assert_eq!(kind, Kind::Retained, "{text}");
    }

    #[test]
    fn bodies_of_all_kinds_are_read() {
        let (kind, text) = answer(401, r#"{"code": "bad_auth_token", "message": "no  good", "status": 401}"#);
        assert_eq!((kind, text.contains("bad_auth_token: no good")), (Kind::Invalid, true), "{text}");
        let (kind, text) =
            answer(429, r#"{"error":{"code":429,"errors":[{"reason":"rateLimitExceeded"}],"message":"m"}}"#);
        assert_eq!((kind, text.contains("rateLimitExceeded")), (Kind::Unavailable, true), "{text}");
        let (_, text) = answer(502, "<html><body>bad gateway, token=hunter2</body></html>");
        assert!(!text.contains("hunter2"), "{text}");
        let (_, text) = answer(500, &"x\n\u{7}y ".repeat(1000));
        assert!(text.len() < 400 && !text.contains('\n') && !text.contains('\u{7}'), "{text}");
        let with_region =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-7</Region></Error>";
        assert!(answer(400, with_region).1.contains("eu-7"));
        let (_, text) = answer(
            403,
            "<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message><StringToSign>hunter2</StringToSign></Error>",
        );
        assert!(!text.contains("hunter2"), "{text}");
        for broken in ["", "<", "<Code>", "<Code>x", "{\"code\"", "{\"code\":", "{\"code\":\"", "\u{fffd}"] {
            assert_eq!(answer(500, broken).0, Kind::Unavailable, "{broken}");
        }
    }

    #[test]
    fn a_time_to_come_back_is_taken_by_the_stores_clock() {
        let now = Some("Sun, 22 Nov 2026 12:00:00 GMT");
        let seconds = |after: &str, date| parse_retry_after(after, date).map(|time| time.as_secs());
        assert_eq!((seconds(" 7 ", None), seconds("Sun, 22 Nov 2026 12:01:30 GMT", now)), (Some(7), Some(90)));
        for (after, date) in [
            ("soon", now),
            ("Sun, 22 Nov 2026 12:01:30 GMT", None),
            ("Sun, 22 Nov 2026 11:00:00 GMT", now),
            ("-1", now),
        ] {
            assert_eq!(seconds(after, date), None, "{after}");
        }
    }

    #[test]
    fn only_what_may_have_been_carried_out_is_unsure() {
        let wire = |trouble| Failure::Wire(Wire { trouble, text: "t".to_owned() });
        let said = |status| Failure::Answer(Answer { status, ..Answer::default() });
        assert!(wire(Trouble::Broken).is_unsure() && wire(Trouble::Timeout).is_unsure() && said(500).is_unsure());
        assert!(!wire(Trouble::Connect).is_unsure() && !wire(Trouble::Tls).is_unsure() && !said(412).is_unsure());
        assert!(wire(Trouble::Connect).is_transient() && !wire(Trouble::Tls).is_transient());
    }
}
