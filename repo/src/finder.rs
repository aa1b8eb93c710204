//! Finds the one point that a name means, reading little: names of claims say workload, time and id.
//!
//! ```text
//!   WORKLOAD@latest, @-N    LIST snapshots/<tag>/    from the newest claim on: forgotten? decision, claim
//!   WORKLOAD@TIME           LIST snapshots/<tag>/    the claim of that time
//!   beginning of an id      LIST snapshots/          the claim of that id
//! ```
//! Not here: what is not found, or not one, or damaged. Whoever says that to people reads all points, so that he can name the
//! nearest ([`Repository::points`], [`PointName::find`]). What holds: what is found is what those would find; forgets are looked
//! for before claims are read.

use crate::error::{Kind, Result};
use crate::point::{PointName, Select};
use crate::repository::Repository;
use crate::snapshot::{ClaimName, ClaimPart, Snapshot};
use std::collections::BTreeSet;

impl Repository {
    /// The point that is meant; `None` when it takes all points to say what is.
    pub fn find_point(&self, name: &PointName) -> Result<Option<Snapshot>> {
        match &name.select {
            Select::Before(workload, n) => self.nth_before(workload, *n),
            Select::At(workload, time) => self.only(&self.folder_of(workload), |claim| claim.time == *time),
            Select::Id(prefix) if PointName::is_id_prefix(prefix) => {
                self.only("snapshots/", |claim| claim.id.to_string().starts_with(prefix.as_str()))
            }
            Select::Id(_) => Ok(None),
        }
    }

    fn folder_of(&self, workload: &str) -> String {
        format!("snapshots/{}/", self.keys().id_key().workload_tag(workload))
    }

    /// The Nth before the latest.
    fn nth_before(&self, workload: &str, n: usize) -> Result<Option<Snapshot>> {
        let mut left = n;
        for name in self.decided_below(&self.folder_of(workload))?.into_iter().rev() {
            if self.is_forgotten(name.id)? {
                continue;
            }
            match self.read_snapshot(name) {
                Ok(None) => {}
                Ok(Some(snapshot)) if left == 0 => return Ok(Some(snapshot)),
                Ok(Some(_)) => left -= 1,
                Err(e) if e.kind() == Kind::Unavailable => return Err(e),
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The one decided claim below `prefix` that `is_meant`, if it is a point.
    fn only(&self, prefix: &str, is_meant: impl Fn(&ClaimName) -> bool) -> Result<Option<Snapshot>> {
        let mut meant = self.decided_below(prefix)?;
        meant.retain(is_meant);
        let (Some(name), 1) = (meant.first(), meant.len()) else { return Ok(None) };
        if self.is_forgotten(name.id)? {
            return Ok(None);
        }
        match self.read_snapshot(*name) {
            Err(e) if e.kind() != Kind::Unavailable => Ok(None),
            read => read,
        }
    }

    /// Claims below `prefix` that have a decision, by time and id.
    fn decided_below(&self, prefix: &str) -> Result<BTreeSet<ClaimName>> {
        let mut decided = BTreeSet::new();
        self.backend().list(prefix, &mut |object| {
            if let Some((name, ClaimPart::Decision)) = ClaimName::parse(&object.name) {
                decided.insert(name);
            }
            Ok(())
        })?;
        Ok(decided)
    }
}
