//! Where frames of needed packs lie as well, or instead: moved records lead there, and are needed themselves.
//!
//! ```text
//!   needed pack A -> moved/A/* -> packs B, C -> moved/B/* ...      all due as long as A is
//! ```
//!
//! Not here: which packs maps name ([`super::needs`]). What holds: whole packs are followed and not single frames, which locks too much
//! rather than too little; records are hints, and a forged one costs space and no more; every record is read once. Memory: 100 bytes a
//! moved record, 16 a pack that one leads to.

use super::needs::Packs;
use crate::error::{Kind, Result};
use crate::id::PackUid;
use crate::lock_for::Due;
use crate::moved::{self, Moved};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Where moved records lead from needed packs.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Names of the records, and until when they are needed.
    pub(crate) records: Vec<(String, Due)>,
    /// Packs that records lead from or to: one that is gone is not missed on their account.
    pub(crate) packs: HashSet<PackUid>,
}

/// Adds to `packs` what records lead to.
pub(crate) fn follow(repo: &Repository, packs: &mut Packs) -> Result<Trail> {
    let mut records: HashMap<PackUid, Vec<String>> = HashMap::new();
    repo.backend().list(moved::PREFIX, &mut |object| {
        if let Some((from, _)) = moved::parse_name(&object.name) {
            records.entry(from).or_default().push(object.name);
        }
        Ok(())
    })?;
    let mut targets: HashMap<PackUid, BTreeSet<PackUid>> = HashMap::new();
    let mut waiting: Vec<PackUid> = records.keys().filter(|from| packs.due(**from).is_some()).copied().collect();
    while let Some(from) = waiting.pop() {
        let (Some((kind, due)), Some(names)) = (packs.due(from), records.get(&from)) else { continue };
        let to = match targets.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(read(repo, names)?),
        };
        for uid in to.iter() {
            let is_new = packs.due(*uid).is_none();
            if packs.need(kind, *uid, due) || is_new {
                waiting.push(*uid);
            }
        }
    }
    let due = |from: PackUid| packs.due(from).map(|(_, due)| due);
    let of_needed = records.into_iter().filter_map(|(from, names)| Some((due(from)?, names)));
    Ok(Trail {
        records: of_needed.flat_map(|(due, names)| names.into_iter().map(move |name| (name, due))).collect(),
        packs: targets.into_iter().flat_map(|(from, to)| to.into_iter().chain([from])).collect(),
    })
}

/// The packs that these records lead to. One that is gone or damaged leads nowhere.
fn read(repo: &Repository, names: &[String]) -> Result<BTreeSet<PackUid>> {
    let mut packs = BTreeSet::new();
    for name in names {
        match repo.get_record(ObjectKind::Moved, name).and_then(|record| Moved::decode(&record.body)) {
            Ok(moved) => packs.extend(moved.lines.iter().map(|line| line.to.pack)),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(packs)
}
