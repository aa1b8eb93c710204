//! Object lock of S3 stores.
//!
//! ```text
//!   lock    PUT name?retention          COMPLIANCE until a date       refused when a longer one stands, which is as well
//!   delete  GET ?versions -> DELETE name?versionId=.., oldest first   403: a HEAD's fields tell whether a lock or the credentials
//!   hidden  GET ?versions, page by page                               reveal: DELETE of all versions but one
//!   check   GET ?object-lock            once, and remembered
//! ```
//! What it takes besides reading and writing: `s3:PutObjectRetention`, `s3:GetObjectRetention` (or a HEAD tells nothing of locks),
//! `s3:GetBucketObjectLockConfiguration`, and for who collects `s3:DeleteObjectVersion` and `s3:ListBucketVersions`.
//!
//! Not here: what is locked ([`crate::locks`]); signatures ([`super::signed`]); the listing's bytes ([`super::versions`]). What holds: a
//! bucket with object lock never gets a delete marker from here; a name that was deleted shows no older version, such as puts that raced
//! leave; only compliance mode counts as a lock, since whoever is permitted to
//! can get round governance mode, but the store's refusal to delete counts in any mode; the store's clock is the one of its answers.

use super::signed::{Notary, Refused, escaped_all};
use super::versions::{Page, Version};
use super::witness::Purpose;
use super::{Call, ObjectStore};
use crate::backend::check_name;
use crate::backend::lock::{Hidden, Hiding, Kept, ObjectLock};
use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;
use http::{HeaderMap, Method};

/// Whether objects can be locked in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lockable {
    Yes,
    No,
    /// The credentials may not ask.
    Unknown,
}

/// What a HEAD tells of an object's lock.
struct Shown {
    /// In compliance mode.
    until: Option<Timestamp>,
    /// Whether the store keeps it now.
    kept: Option<Kept>,
}

impl ObjectStore {
    /// Whether objects can be locked here; asked once.
    fn lockable(&self, notary: &Notary) -> Result<Lockable> {
        if let Some(known) = self.lockable.get() {
            return Ok(*known);
        }
        let call = Call { doing: "asking for object lock of", name: "", purpose: Purpose::default() };
        let asked = self.ask(notary, &call, (Method::GET, format!("{}?object-lock=", notary.bucket)), None);
        let found = match asked {
            Ok(answer) if answer.has("<ObjectLockEnabled>Enabled<") => Lockable::Yes,
            Ok(_) => Lockable::No,
            Err(Refused { status, code, error }) => match (status, code.as_str()) {
                (404, "NoSuchBucket") => return Err(error),
                (400 | 404 | 405 | 501, _) => Lockable::No,
                (403, "AccessDenied") => Lockable::Unknown,
                _ => return Err(error),
            },
        };
        Ok(*self.lockable.get_or_init(|| found))
    }

    /// What signs, when objects can be locked here.
    fn lockable_notary(&self) -> Result<&Notary> {
        let unsupported =
            |why: &str| Error::new(Kind::Unsupported, format!("objects cannot be locked in {}: {why}", self.address));
        let notary = self.notary.as_ref().ok_or_else(|| unsupported("only S3 stores have object lock"))?;
        match self.lockable(notary)? {
            Lockable::Yes => Ok(notary),
            Lockable::No => Err(unsupported(
                "the bucket is without object lock, which most stores switch on only when a bucket is made",
            )),
            Lockable::Unknown => Err(unsupported(
                "these credentials may not ask for it; permit them s3:GetBucketObjectLockConfiguration",
            )),
        }
    }

    /// What a HEAD tells of an object, or of one `version` of it; `None`: it is not there.
    fn look(&self, notary: &Notary, name: &str, version: Option<&str>) -> Result<Option<Shown>> {
        let call = Call { doing: "looking for the lock of", name, purpose: Purpose::default() };
        let url = version.map_or_else(|| notary.object(name), |id| version_url(notary, name, id));
        match self.ask(notary, &call, (Method::HEAD, url), None) {
            Ok(answer) => Ok(Some(Shown::of(&answer.headers))),
            Err(Refused { status: 404 | 405, .. }) => self.see_bucket().map(|()| None),
            Err(refused) => Err(refused.error),
        }
    }

    /// Removes an object as [`Backend::delete`](crate::backend::Backend::delete) does in a bucket with object lock. `None`: the bucket
    /// has none, and nothing was done.
    pub(super) fn delete_versions(&self, name: &str) -> Result<Option<()>> {
        let Some(notary) = &self.notary else { return Ok(None) };
        if self.lockable(notary)? != Lockable::Yes {
            return Ok(None);
        }
        let versions = self.versions_of(notary, name)?;
        if versions.first().is_none_or(|newest| newest.is_marker) {
            return Ok(Some(()));
        }
        // The oldest first: should one be locked, or this be cut short, the name shows what it did.
        for version in versions.iter().rev() {
            let Some(error) = self.remove(notary, name, &version.id)? else { continue };
            let kept = self.look(notary, name, Some(&version.id))?.and_then(|shown| shown.kept);
            let kept = match kept {
                Some(Kept { until: Some(until) }) => format!("locked until {until}"),
                Some(Kept { until: None }) => "under a legal hold".to_owned(),
                None => return Err(error),
            };
            return Err(
                Error::new(Kind::Retained, format!("'{name}' in {} is {kept}", self.address)).with_source(error)
            );
        }
        Ok(Some(()))
    }

    /// Removes one version; one that is not there counts as removed. Where the store refuses it, the refusal.
    fn remove(&self, notary: &Notary, name: &str, version: &str) -> Result<Option<Error>> {
        let call = Call { doing: "deleting", name, purpose: Purpose::default() };
        match self.ask(notary, &call, (Method::DELETE, version_url(notary, name, version)), None) {
            Ok(_) | Err(Refused { status: 404, .. }) => Ok(None),
            Err(Refused { status: 403, error, .. }) => Ok(Some(error)),
            Err(refused) => Err(refused.error),
        }
    }

    /// Which of its versions, the newest first, an object is: the oldest that is locked, or the oldest of all. What lies below a locked
    /// one was put at the same time as that, by somebody who was told that he came too late.
    fn object_among<'a>(&self, notary: &Notary, name: &str, versions: &'a [Version]) -> Result<Option<&'a Version>> {
        let contents: Vec<&Version> = versions.iter().rev().filter(|version| !version.is_marker).collect();
        if contents.len() > 1 {
            for version in &contents {
                let shown = self.look(notary, name, Some(&version.id))?;
                if shown.is_some_and(|shown| shown.kept.is_some()) {
                    return Ok(Some(version));
                }
            }
        }
        Ok(contents.first().copied())
    }

    /// All versions of one object, the newest first.
    fn versions_of(&self, notary: &Notary, name: &str) -> Result<Vec<Version>> {
        let mut versions = Vec::new();
        self.each_version(notary, name, &mut |version| {
            if version.key == name {
                versions.push(version);
            }
            Ok(())
        })?;
        Ok(versions)
    }

    /// Calls `each` for every version of what begins with `prefix`, of one object the newest first.
    fn each_version(&self, notary: &Notary, prefix: &str, each: &mut dyn FnMut(Version) -> Result<()>) -> Result<()> {
        let call = Call { doing: "listing versions of", name: prefix, purpose: Purpose::default() };
        let begin = format!("{}{prefix}", notary.prefix);
        let mut next: Option<(String, String)> = None;
        loop {
            let mut url = format!("{}?prefix={}&versions=", notary.bucket, escaped_all(&begin));
            if let Some((key, id)) = &next {
                url += &format!("&key-marker={}&version-id-marker={}", escaped_all(key), escaped_all(id));
            }
            let answer = self.ask(notary, &call, (Method::GET, url), None).map_err(|refused| refused.error)?;
            let page = Page::parse(&answer.body).map_err(|e| e.within(&self.address))?;
            for version in page.versions {
                if let Some(name) = version.key.strip_prefix(&notary.prefix).filter(|name| check_name(name).is_ok()) {
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

fn version_url(notary: &Notary, name: &str, version: &str) -> String {
    format!("{}?versionId={}", notary.object(name), escaped_all(version))
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
        Shown { until: until.filter(|_| is_compliant), kept }
    }
}

impl ObjectLock for ObjectStore {
    fn check(&self) -> Result<()> {
        self.lockable_notary().map(drop)
    }

    fn lock(&self, name: &str, until: Timestamp) -> Result<()> {
        check_name(name)?;
        let notary = self.lockable_notary()?;
        let date = i64::try_from(until.seconds()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        let date = date.ok_or_else(|| Error::invalid(format!("{until} is no date for a lock")))?;
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>COMPLIANCE</Mode>\
             <RetainUntilDate>{}</RetainUntilDate></Retention>",
            date.strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        let call = Call { doing: "locking", name, purpose: Purpose::default() };
        let url = format!("{}?retention=", notary.object(name));
        let Refused { status, error, .. } = match self.ask(notary, &call, (Method::PUT, url), Some(&body)) {
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
        let shown = self.look(self.lockable_notary()?, name, None)?.ok_or_else(|| self.not_there(name))?;
        Ok(shown.until)
    }

    fn kept(&self, name: &str) -> Result<Option<Kept>> {
        check_name(name)?;
        Ok(self.look(self.lockable_notary()?, name, None)?.ok_or_else(|| self.not_there(name))?.kept)
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
        self.each_version(self.lockable_notary()?, prefix, &mut |version| {
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
        let notary = self.lockable_notary()?;
        let versions = self.versions_of(notary, name)?;
        let object = self.object_among(notary, name, &versions)?.ok_or_else(|| self.not_there(name))?;
        let why = "hidden by a version that the store does not let go, by a lock of its own or for want of permission";
        for version in versions.iter().filter(|version| version.id != object.id) {
            if let Some(error) = self.remove(notary, name, &version.id)? {
                let what = format!("'{name}' in {} is {why}", self.address);
                return Err(Error::new(Kind::Retained, what).with_source(error));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

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
        let locked = shown(&[now, (MODE, "COMPLIANCE"), later]);
        assert_eq!(locked.until.unwrap().to_string(), "2026-11-22T18-35-11Z");
        assert_eq!(locked.kept, Some(Kept { until: locked.until }));
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
}
