//! Ends what the dead left behind: undecided claims are revoked, pins forgotten.
//!
//! Not here: safety, which needs no clock: a writer that wakes up finds its claim revoked and fails loudly, and loses nothing;
//! a reader whose pin was forgotten goes on reading until something it needs was collected, which it is told. What holds: only
//! claims older than [`CollectOptions::dead_after`] are ended, those of copies counted from when copying began; pins only when their
//! session beats no more; a fork's pin never.

use super::roots::Roots;
use super::{CollectOptions, CollectReport};
use crate::catalog::Pin;
use crate::error::{Error, Kind, Result};
use crate::id::RecordId;
use crate::repository::Repository;
use crate::session::Sessions;
use crate::snapshot::{Claim, ClaimKind, Decision};
use crate::time::Timestamp;
use std::collections::HashSet;

pub(super) fn tidy(repo: &Repository, options: &CollectOptions, report: &mut CollectReport) -> Result<()> {
    let roots = Roots::list(repo)?;
    // Sessions after pins: whoever put one of these said before that it runs.
    let running: HashSet<RecordId> = Sessions::list(repo, options.now)?.running.into_values().collect();
    for (name, parts) in &roots.claims {
        let is_old = |begun: Timestamp| begun.seconds().saturating_add(options.dead_after) <= options.now.seconds();
        if !is_old(name.time) || parts.decision || roots.is_forgotten(repo, name.id)? {
            continue;
        }
        let claim = match repo.read_claim(*name) {
            Ok(claim) => claim,
            // Swept meanwhile; or damaged, which the survey finds and names.
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => continue,
            Err(e) => return Err(e),
        };
        match &claim.kind {
            ClaimKind::Snapshot { .. } => {
                if claim.copied.is_some_and(|copied| !is_old(copied.begun)) {
                    continue;
                }
                let decision = match options.dry_run {
                    true => Some(Decision::Revoke),
                    false => repo.decide(*name, Decision::Revoke)?,
                };
                match decision {
                    Some(Decision::Revoke) => report.revoked.push(*name),
                    Some(Decision::Commit) => {}
                    None => report.contested.push(*name),
                }
            }
            ClaimKind::Pin { purpose } if purpose == Pin::FORK => {}
            ClaimKind::Pin { .. } => {
                if session_of(&claim)?.is_some_and(|session| running.contains(&session)) {
                    continue;
                }
                if !options.dry_run {
                    repo.forget(*name, options.now)?;
                }
                report.unpinned.push(*name);
            }
        }
    }
    Ok(())
}

/// The session that holds a pin.
fn session_of(claim: &Claim) -> Result<Option<RecordId>> {
    let bytes = claim.extra.opt_bytes("session").map_err(|e: Error| e.with_kind(Kind::Corrupt))?;
    bytes.map(RecordId::from_slice).transpose()
}
