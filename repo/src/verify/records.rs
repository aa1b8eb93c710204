//! The stage of verification that opens every small object: the descriptor, key slots and sealed records.
//!
//! Not here: maps and packs. What holds: an object that goes away between the listing and the reading is not damage, since
//! nothing here goes without a reason that others check (a missing claim under a decision: [`crate::catalog`]).

use super::VerifyProgress;
use super::findings::{Findings, foreign};
use crate::certificate::Certificate;
use crate::crew::Crew;
use crate::descriptor::{self, Descriptor};
use crate::epoch::Epoch;
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::index_delta::{self, IndexDelta};
use crate::key_slot;
use crate::moved::{self, Moved};
use crate::note::Note;
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::{ClaimName, ClaimPart, Condemned, Decision, Forget};
use crate::tier::{self, Tier, TierName};
use crate::verified::{self, Verified};
use std::sync::atomic::Ordering::Relaxed;

/// Where records lie, tombstones last: what they explain is listed before.
const PREFIXES: [&str; 12] = [
    key_slot::PREFIX,
    "writers/",
    Epoch::PREFIX,
    index_delta::PREFIX,
    "sessions/",
    "snapshots/",
    moved::PREFIX,
    verified::PREFIX,
    Note::PREFIX,
    tier::PREFIX,
    Condemned::PREFIX,
    Forget::PREFIX,
];

/// Opens every record in the store.
pub(super) fn check_all(
    repo: &Repository,
    crew: Crew<'_>,
    findings: &Findings,
    progress: &VerifyProgress,
) -> Result<()> {
    let check = |name: String, (): &mut ()| {
        progress.records.fetch_add(1, Relaxed);
        match check(repo, &name) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => findings.add(&name, e),
        }
    };
    let feed = |hand: &mut dyn FnMut(String) -> Result<()>| {
        hand(descriptor::OBJECT_NAME.to_owned())?;
        for prefix in PREFIXES {
            repo.backend().list(prefix, &mut |object| {
                progress.bytes.fetch_add(object.size, Relaxed);
                hand(object.name)
            })?;
        }
        Ok(())
    };
    crew.run(|| Ok(()), check, feed)?;
    Ok(())
}

fn check(repo: &Repository, name: &str) -> Result<()> {
    let record = |kind| repo.get_record(kind, name);
    let (folder, rest) = name.split_once('/').unwrap_or((name, ""));
    match folder {
        "repo" => {
            // It was there when the repository was opened, and nothing may remove it.
            let bytes = repo.backend().get(name).map_err(|e| match e.kind() {
                Kind::NotFound => e.with_kind(Kind::Corrupt),
                _ => e,
            })?;
            Descriptor::decode(repo.keys(), &bytes).map(drop)
        }
        "keys" => {
            let id = rest.parse().map_err(|_| foreign(name))?;
            key_slot::summarise(id, &repo.backend().get(name)?).map(drop)
        }
        "writers" => {
            let certificate = Certificate::decode(&record(ObjectKind::Certificate)?.body)?;
            if certificate.object_name() != name {
                return Err(Error::corrupt(format!("{name} certifies the key of {}", certificate.object_name())));
            }
            Ok(())
        }
        "epochs" => {
            let number = Epoch::parse_name(name).ok_or_else(|| foreign(name))?;
            Epoch::decode(number, &record(ObjectKind::Epoch)?.body).map(drop)
        }
        "index" => {
            if index_delta::parse_name(name).is_none() {
                return Err(foreign(name));
            }
            IndexDelta::counting(name, &record(ObjectKind::IndexDelta)?, &repo.certificates()).map(drop)
        }
        "snapshots" => match ClaimName::parse(name).ok_or_else(|| foreign(name))? {
            (claim, ClaimPart::Claim) => repo.read_claim(claim).map(drop),
            (_, ClaimPart::Decision | ClaimPart::Intent | ClaimPart::Revoke) => {
                Decision::decode(&record(ObjectKind::Decision)?.body).map(drop)
            }
        },
        "forgets" => {
            let id: SnapshotId = Forget::parse(name).ok_or_else(|| foreign(name))?;
            Forget::decode(id, &record(ObjectKind::Forget)?.body).map(drop)
        }
        "condemned" => Condemned::decode(&record(ObjectKind::Condemned)?.body).map(drop),
        "verified" => {
            let _ = verified::parse_name(name).ok_or_else(|| foreign(name))?;
            Verified::decode(&record(ObjectKind::Verified)?.body).map(drop)
        }
        "sessions" => record(ObjectKind::Session).map(drop),
        "moved" => {
            let _ = moved::parse_name(name).ok_or_else(|| foreign(name))?;
            Moved::decode(&record(ObjectKind::Moved)?.body).map(drop)
        }
        "notes" => {
            let _ = Note::parse(name).ok_or_else(|| foreign(name))?;
            Note::decode(&record(ObjectKind::Note)?.body).map(drop)
        }
        "tiers" => {
            let _ = TierName::of_object(name).ok_or_else(|| foreign(name))?;
            Tier::decode(&record(ObjectKind::Tier)?.body).map(drop)
        }
        _ => Err(foreign(name)),
    }
    .map_err(|e| if e.context().contains(name) { e } else { e.within(name) })
}
