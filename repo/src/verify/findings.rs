//! What a verification found wrong, by object.
//!
//! Not here: what it hurts. What holds: one problem per object, however many things are wrong with it; whatever is not the
//! fault of an object (a request to stop, a bug of ours) is handed back instead of being filed.

use super::Problem;
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct Findings(Mutex<BTreeMap<String, Finding>>);

struct Finding {
    kind: Kind,
    what: String,
    more: u64,
}

impl Findings {
    /// Files `error` under `object`.
    pub(super) fn add(&self, object: &str, error: Error) -> Result<()> {
        let finding = Finding::of(error)?;
        self.lock().entry(object.to_owned()).and_modify(|f| f.more += 1).or_insert(finding);
        Ok(())
    }

    /// Files `error` unless something is filed under `object`: for what is met again and again.
    pub(super) fn add_once(&self, object: &str, error: Error) -> Result<()> {
        let finding = Finding::of(error)?;
        self.lock().entry(object.to_owned()).or_insert(finding);
        Ok(())
    }

    pub(super) fn has(&self, object: &str) -> bool {
        self.lock().contains_key(object)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Everything, without harm.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let problem = |(object, finding): (&String, &Finding)| Problem {
            object: object.clone(),
            kind: finding.kind,
            what: match finding.more {
                0 => finding.what.clone(),
                n => format!("{} (and {n} more)", finding.what),
            },
            hurts: Vec::new(),
            remedy: None,
        };
        self.lock().iter().map(problem).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Finding>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Finding {
    fn of(error: Error) -> Result<Self> {
        if matches!(error.kind(), Kind::Cancelled | Kind::Internal) {
            return Err(error);
        }
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what = format!("{what}: {cause}");
            source = cause.source();
        }
        Ok(Finding { kind: error.kind(), what, more: 0 })
    }
}

/// What is said of an object that this format has no name for.
pub(super) fn foreign(object: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{object}: the format has no object of this name; it was left alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_problem_per_object_with_the_first_reason_and_a_count() {
        let findings = Findings::default();
        assert!(findings.is_empty());
        for what in ["first", "second", "third"] {
            findings.add("b", Error::corrupt(what).with_source("why")).unwrap();
        }
        findings.add_once("b", Error::not_found("fourth")).unwrap();
        findings.add_once("a", Error::new(Kind::Unavailable, "alone")).unwrap();
        let problems = findings.problems();
        let shown: Vec<_> = problems.iter().map(|p| (p.object.as_str(), p.kind, p.what.as_str())).collect();
        assert_eq!(shown, [("a", Kind::Unavailable, "alone"), ("b", Kind::Corrupt, "first: why (and 2 more)")]);
    }

    #[test]
    fn what_is_no_damage_is_not_filed() {
        let findings = Findings::default();
        for kind in [Kind::Cancelled, Kind::Internal] {
            assert_eq!(findings.add("a", Error::new(kind, "x")).unwrap_err().kind(), kind);
            assert_eq!(findings.add_once("a", Error::new(kind, "x")).unwrap_err().kind(), kind);
        }
        assert!(findings.is_empty());
    }
}
