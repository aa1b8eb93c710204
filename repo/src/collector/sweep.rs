//! Removes the records of what is gone: dead claims, tombstones, notes, sessions of the dead, superseded verified records, what
//! probes left.
//!
//! Not here: packs. What holds: of a dead snapshot go claim, decision, forget, in this order, so that a tombstone never goes
//! before what it entombs; a REVOKE is never removed, since its writer may wake up; what a pin holds stays; a condemned record
//! goes when all its packs are gone from a listing that began after the record was read, a note when its claim is. While packs
//! exist that another run condemned, claims stay: that run may be listing them. Moved records go in [`super::judgement`].

use super::CollectReport;
use super::removal::remove;
use super::roots::{Parts, Roots};
use super::stock::Stock;
use super::survey::Survey;
use crate::backend::{Listed, list_sorted};
use crate::error::{Kind, Result};
use crate::id::PackUid;
use crate::note::Note;
use crate::probe;
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::session::Sessions;
use crate::snapshot::{ClaimKind, ClaimName, Condemned, Decision, Forget};
use crate::time::Timestamp;
use crate::verified;
use std::collections::HashSet;

/// Sweeps.
pub(super) fn sweep(
    repo: &Repository,
    survey: &mut Survey<'_>,
    sessions: &Sessions,
    orphaned_parity: &[String],
    own: &HashSet<PackUid>,
    now: Timestamp,
    report: &mut CollectReport,
) -> Result<()> {
    // Before the claims: a note that is seen here was put after its claim, which is seen then, or is gone.
    let notes = list_sorted(repo.backend(), Note::PREFIX)?;
    let roots = survey.look()?;
    if survey.is_incomplete() {
        return Ok(());
    }
    // Forgets first (they were listed with the roots), condemned records second, existence third.
    let condemned = read_condemned(repo)?;
    let stock = Stock::list(repo)?;
    // Whoever found packs damaged lists no claims on their account.
    let is_foreign =
        |record: &Condemned| !record.damaged && record.packs.iter().any(|uid| stock.has(*uid) && !own.contains(uid));
    if !condemned.iter().any(|(_, record)| record.as_ref().is_none_or(is_foreign)) {
        sweep_claims(repo, survey, &roots, &notes, report)?;
    }
    for (name, record) in condemned {
        if record.is_some_and(|record| !record.packs.iter().any(|uid| stock.has(*uid))) {
            remove(repo, &name, 0, report)?;
        }
    }
    for name in sessions.ended.iter().chain(orphaned_parity) {
        remove(repo, name, 0, report)?;
    }
    for name in probe::left_over(repo.backend(), now)? {
        repo.backend().delete(&name)?;
    }
    for record in repo.proven()?.superseded {
        remove(repo, &verified::name(record), 0, report)?;
    }
    Ok(())
}

/// The condemned records. A damaged one (`None`) condemns for good, since nobody knows what.
fn read_condemned(repo: &Repository) -> Result<Vec<(String, Option<Condemned>)>> {
    let mut records = Vec::new();
    for object in list_sorted(repo.backend(), Condemned::PREFIX)? {
        match repo.get_record(ObjectKind::Condemned, &object.name).and_then(|r| Condemned::decode(&r.body)) {
            Ok(record) => records.push((object.name, Some(record))),
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) if e.kind() == Kind::Corrupt => records.push((object.name, None)),
            Err(e) => return Err(e),
        }
    }
    Ok(records)
}

/// Removes dead claims, their tombstones and their notes. Never while another collector may be listing claims for packs that it
/// condemned: it could see neither the claim that goes nor one that was built on it meanwhile.
fn sweep_claims(
    repo: &Repository,
    survey: &Survey<'_>,
    roots: &Roots,
    notes: &[Listed],
    report: &mut CollectReport,
) -> Result<()> {
    for (name, parts) in &roots.claims {
        if !survey.is_pinned(name.id) && sweep_claim(repo, *name, *parts, roots, survey, report)? {
            report.swept += 1;
        }
    }
    let claimed: HashSet<_> = roots.claims.keys().map(|name| name.id).collect();
    for id in roots.forgets.iter().filter(|id| !claimed.contains(id)) {
        remove(repo, &Forget::name(*id), 0, report)?;
    }
    for object in notes {
        match repo.get_record(ObjectKind::Note, &object.name).and_then(|r| Note::decode(&r.body)) {
            Ok(note) if !claimed.contains(&note.snapshot) => {
                remove(repo, &object.name, 0, report)?;
            }
            Err(e) if !matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what led to the decision of a commit that is forgotten. Beside a REVOKE it stays: its writer may wake up and look.
fn delete_looks(repo: &Repository, name: ClaimName, parts: Parts) -> Result<()> {
    for (is_there, object) in [(parts.intent, name.intent()), (parts.revoke, name.revoke())] {
        if is_there {
            repo.backend().delete(&object)?;
        }
    }
    Ok(())
}

/// Removes the records of a dead claim; whether it was one. What is locked keeps what comes after it: its tombstone stays as long as it
/// does.
fn sweep_claim(
    repo: &Repository,
    name: ClaimName,
    parts: Parts,
    roots: &Roots,
    survey: &Survey<'_>,
    report: &mut CollectReport,
) -> Result<bool> {
    let forgotten = roots.is_forgotten(repo, name.id)?;
    let revoked = survey.is_revoked(name.id);
    if !forgotten && !revoked {
        return Ok(false);
    }
    if parts.decision {
        let decision = match repo.get_record(ObjectKind::Decision, &name.decision()) {
            Ok(record) => Decision::decode(&record.body)?,
            Err(e) if e.kind() == Kind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if parts.claim && !remove(repo, &name.claim(), 0, report)? {
            return Ok(false);
        }
        if decision == Decision::Commit {
            if !remove(repo, &name.decision(), 0, report)? {
                return Ok(false);
            }
            delete_looks(repo, name, parts)?;
        }
    } else {
        let is_snapshot = match repo.read_claim(name) {
            Ok(claim) => matches!(claim.kind, ClaimKind::Snapshot { .. }),
            Err(e) if e.kind() == Kind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        // Its writer may be about to commit: the register decides.
        if is_snapshot && repo.decide(name, Decision::Revoke)? != Some(Decision::Revoke) {
            return Ok(false);
        }
        if !remove(repo, &name.claim(), 0, report)? {
            return Ok(false);
        }
    }
    if forgotten {
        remove(repo, &Forget::name(name.id), 0, report)?;
    }
    // Of what was revoked before, the decision stays for good and is no news.
    Ok(parts.claim)
}
