//! Cold tiers of S3 stores: which objects are frozen, and thawing them.
//!
//! ```text
//!   may_freeze  the class of new packs, else GET ?lifecycle      once, and remembered
//!   survey      GET ?list-type=2, page by page                   with the class of each object
//!   state       HEAD name                                        x-amz-storage-class, x-amz-restore, x-amz-archive-status
//!   thaw        POST name?restore                                409: it is being thawed already
//! ```
//! What it takes besides reading: `s3:RestoreObject`, and `s3:GetLifecycleConfiguration` to be spared the survey.
//!
//! Not here: what is thawed ([`crate::thaw`]); signatures ([`super::signed`]); the listing's bytes ([`super::listing`]). What holds: what
//! answers at once however cold it is called (`GLACIER_IR`, Google's `ARCHIVE`) is not cold here; intelligent tiering may have
//! archived an object or not, which only its HEAD tells.

use super::listing::Page;
use super::signed::{Answered, Notary, Refused, escaped_all};
use super::witness::Purpose;
use super::{Call, ObjectStore};
use crate::backend::archive::{Archive, Order, Speed, State, Surveyed};
use crate::backend::{check_name, check_prefix};
use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;
use http::Method;

/// Classes whose objects are always frozen.
const FROZEN: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];
/// The class whose objects may be.
const INTELLIGENT: &str = "INTELLIGENT_TIERING";

/// Whether what is put with this class cannot be read from then on.
pub(super) fn freezes(class: &str) -> bool {
    FROZEN.contains(&class)
}

fn is_cold(class: &str) -> bool {
    freezes(class) || class == INTELLIGENT
}

impl ObjectStore {
    fn notary(&self) -> Result<&Notary> {
        self.notary.as_ref().ok_or_else(|| Error::internal("asked about cold tiers where requests are not signed"))
    }

    /// Whether a rule of the bucket freezes objects.
    fn has_freezing_rule(&self) -> Result<bool> {
        let notary = self.notary()?;
        let call = Call { doing: "asking for lifecycle rules of", name: "", purpose: Purpose::default() };
        match self.ask(notary, &call, (Method::GET, format!("{}?lifecycle=", notary.bucket)), None) {
            Ok(answer) => {
                let classes = FROZEN.iter().chain([&INTELLIGENT]);
                Ok(classes.map(|class| format!("<StorageClass>{class}<")).any(|words| answer.has(&words)))
            }
            Err(Refused { status, code, error }) => match (status, code.as_str()) {
                (404, "NoSuchBucket") => Err(error),
                // There are no rules, or the store knows no such thing.
                (400 | 404 | 405 | 501, _) => Ok(false),
                // There may be.
                (403, "AccessDenied") => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// What a HEAD tells; `NotFound` when there is no such object.
    fn head(&self, doing: &str, name: &str) -> Result<Answered> {
        let notary = self.notary()?;
        let call = Call { doing, name, purpose: Purpose::default() };
        self.ask(notary, &call, (Method::HEAD, notary.object(name)), None).map_err(|refused| match refused.status {
            404 | 405 => self.see_bucket().err().unwrap_or_else(|| self.not_there(name)),
            _ => refused.error,
        })
    }
}

impl Archive for ObjectStore {
    fn may_freeze(&self) -> Result<bool> {
        if self.address.option("storage-class").is_some_and(is_cold) {
            return Ok(true);
        }
        match self.freezing.get() {
            Some(known) => Ok(*known),
            None => self.has_freezing_rule().map(|found| *self.freezing.get_or_init(|| found)),
        }
    }

    fn survey(&self, prefix: &str, each: &mut dyn FnMut(Surveyed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let notary = self.notary()?;
        let call = Call { doing: "listing", name: prefix, purpose: Purpose::default() };
        let begin = escaped_all(&format!("{}{prefix}", notary.prefix));
        let mut next: Option<String> = None;
        loop {
            let from = next.as_ref().map(|token| format!("continuation-token={}&", escaped_all(token)));
            let url = format!("{}?{}list-type=2&prefix={begin}", notary.bucket, from.unwrap_or_default());
            let answer = self.ask(notary, &call, (Method::GET, url), None).map_err(|refused| refused.error)?;
            let page = Page::parse(&answer.body).map_err(|e| e.within(&self.address))?;
            for line in page.lines {
                if let Some(name) = line.key.strip_prefix(&notary.prefix).filter(|name| check_name(name).is_ok()) {
                    each(Surveyed { name: name.to_owned(), size: line.size, is_cold: is_cold(&line.class) })?;
                }
            }
            if page.next.is_some() && page.next == next {
                return Err(Error::corrupt(format!("{}: a listing does not go on", self.address)));
            }
            next = page.next;
            if next.is_none() {
                return Ok(());
            }
        }
    }

    fn state(&self, name: &str) -> Result<State> {
        check_name(name)?;
        self.head("asking for the state of", name).map(|answer| state(|field| answer.field(field)))
    }

    fn thaw(&self, name: &str, order: Order) -> Result<()> {
        check_name(name)?;
        let notary = self.notary()?;
        let call = Call { doing: "thawing", name, purpose: Purpose::default() };
        let url = format!("{}?restore=", notary.object(name));
        let post = |days| self.ask(notary, &call, (Method::POST, url.clone()), Some(&body(days, order.speed)));
        let Refused { status, code, error } = match post(Some(order.days)) {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        match (status, code.as_str()) {
            (409, _) => Ok(()),
            (404 | 405, _) => self.see_bucket().and_then(|()| Err(self.not_there(name))),
            (403, "AccessDenied") => Err(error.within("thawing takes the permission s3:RestoreObject")),
            // What needs no thawing is refused so, too.
            (403, "InvalidObjectState") if matches!(self.state(name), Ok(State::Ready { .. })) => Ok(()),
            (403, "InvalidObjectState") => Err(error.with_kind(Kind::Unsupported)),
            // Intelligent tiering brings an object back for good, and takes no number of days.
            (400, _) => match self.head("asking for the class of", name) {
                Ok(answer) if answer.field("x-amz-storage-class") == Some(INTELLIGENT) => {
                    post(None).map(drop).map_err(|refused| refused.error)
                }
                _ => Err(error.within(format!("the store does not thaw this at speed {}", order.speed))),
            },
            _ => Err(error),
        }
    }
}

/// The request to thaw something.
fn body(days: Option<u32>, speed: Speed) -> String {
    let days = days.map(|days| format!("<Days>{days}</Days>")).unwrap_or_default();
    let tier = match speed {
        Speed::Standard => "Standard",
        Speed::Bulk => "Bulk",
        Speed::Expedited => "Expedited",
    };
    format!(
        "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{days}<GlacierJobParameters>\
         <Tier>{tier}</Tier></GlacierJobParameters></RestoreRequest>"
    )
}

/// What the fields of a HEAD say. `x-amz-restore` is there once somebody asked: `ongoing-request="true"`, and then
/// `ongoing-request="false", expiry-date="Fri, 23 Dec 2026 00:00:00 GMT"`.
fn state<'a>(field: impl Fn(&str) -> Option<&'a str>) -> State {
    let class = field("x-amz-storage-class").unwrap_or_default();
    let is_archived = freezes(class) || (class == INTELLIGENT && field("x-amz-archive-status").is_some());
    let restore = field("x-amz-restore").unwrap_or_default();
    match is_archived {
        false => State::Ready { until: None },
        true if restore.contains("ongoing-request=\"true\"") => State::Thawing,
        true if restore.contains("ongoing-request=\"false\"") => State::Ready { until: expiry(restore) },
        true => State::Frozen,
    }
}

fn expiry(restore: &str) -> Option<Timestamp> {
    let (_, date) = restore.split_once("expiry-date=\"")?;
    let date = jiff::fmt::rfc2822::parse(date.split_once('"')?.0).ok()?;
    Timestamp::from_seconds(u64::try_from(date.timestamp().as_second()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &[(&str, &'static str)]) -> State {
        state(|name| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| *value))
    }

    #[test]
    fn a_head_tells_the_state() {
        const CLASS: &str = "x-amz-storage-class";
        const RESTORE: &str = "x-amz-restore";
        let forever = State::Ready { until: None };
        for warm in [&[][..], &[(CLASS, "STANDARD_IA")], &[(CLASS, "GLACIER_IR")], &[(CLASS, INTELLIGENT)]] {
            assert_eq!(told(warm), forever, "{warm:?}");
        }
        for class in FROZEN {
            assert_eq!(told(&[(CLASS, class)]), State::Frozen);
            assert_eq!(told(&[(CLASS, class), (RESTORE, "ongoing-request=\"true\"")]), State::Thawing);
            let date = "ongoing-request=\"false\", expiry-date=\"Fri, 25 Dec 2026 00:00:00 GMT\"";
            let State::Ready { until: Some(until) } = told(&[(CLASS, class), (RESTORE, date)]) else { panic!() };
            assert_eq!(until.to_string(), "2026-12-25T00-00-00Z");
            // A date that nobody understands ends nothing.
            assert_eq!(told(&[(CLASS, class), (RESTORE, "ongoing-request=\"false\", expiry-date=\"soon\"")]), forever);
        }
        let archived = ("x-amz-archive-status", "DEEP_ARCHIVE_ACCESS");
        assert_eq!(told(&[(CLASS, INTELLIGENT), archived]), State::Frozen);
        assert_eq!(told(&[(CLASS, INTELLIGENT), archived, (RESTORE, "ongoing-request=\"true\"")]), State::Thawing);
    }

    #[test]
    fn a_request_names_days_and_tier() {
        assert!(body(Some(3), Speed::Bulk).contains("<Days>3</Days><GlacierJobParameters><Tier>Bulk</Tier>"));
        assert!(!body(None, Speed::Standard).contains("Days"));
    }
}
