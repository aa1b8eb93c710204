//! Locks what a snapshot needs, between the check and the decision; and the decision after it.
//!
//! ```text
//!   packs relied on, packs inherited -> trail: where moved records lead -> + claim, descriptor, keys ... -> padlock
//! ```
//!
//! Not here: raising locks of points that there are ([`crate::locks`]). What holds: a snapshot that asks for locks is committed only when
//! everything that it needs, but for its decision, is locked until its time and term at least; packs are locked here and not when they
//! are uploaded: until the decision nobody needs them, and who removes one before has the check fail. Of the parent's packs those are
//! left out that are gone: verification names them. Memory: 40 bytes a pack.

use super::Writer;
use super::commit::lost;
use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::error::Result;
use crate::lock_for::Due;
use crate::locks::needs::Packs;
use crate::locks::padlock::{self, Deed};
use crate::locks::{own_objects, trail};
use crate::pack;
use crate::snapshot::ClaimName;

/// Locks that are asked for at a time.
const AT_ONCE: usize = 16;

impl Writer {
    /// Locks everything that the snapshot whose claim is at `name` needs.
    pub(super) fn lock_needs(&self, name: ClaimName) -> Result<()> {
        let Some(term) = self.options.lock_for else { return Ok(()) };
        let due = Due::at(term.until(self.time)?);
        let mut packs = Packs::default();
        let (relied_on, inherited) = (self.packer.relied_on(), self.packer.inherited());
        for (kind, uid) in relied_on.iter().chain(inherited) {
            packs.need(*kind, *uid, due);
        }
        let records = trail::follow(&self.repo, &mut packs)?.records;
        let own = own_objects(&self.repo)?;
        let crew = Crew { threads: AT_ONCE, cancel: &Cancel::default() };
        let tally = padlock::work(self.repo.object_lock()?, Deed::Raise, crew, |hand| {
            hand((name.claim(), due))?;
            own.into_iter().try_for_each(|name| hand((name, due)))?;
            records.into_iter().try_for_each(&mut *hand)?;
            packs.iter().try_for_each(|(kind, uid, due)| hand((pack::name(kind, uid), due)))
        });
        let tally = tally.map_err(|e| e.within("the backup was not committed, since it cannot be locked"))?;
        let is_relied_on = |name: &&String| pack::parse_name(name).is_none_or(|at| relied_on.contains(&at));
        match tally.missing.iter().find(is_relied_on) {
            Some(name) => Err(lost(format!("{name} is gone"))),
            None => Ok(()),
        }
    }

    /// Locks the decision, which cannot be before it is there.
    pub(super) fn lock_decision(&self, name: ClaimName) -> Result<()> {
        let Some(term) = self.options.lock_for else { return Ok(()) };
        let lock = || self.repo.object_lock()?.lock(&name.decision(), term.until(self.time)?);
        let made =
            format_args!("point {} was made, but its decision is not locked; 'coffer locks extend' does that", name.id);
        lock().map_err(|e| e.within(made))
    }
}
