//! Locks objects in numbers, or says which ones lack a lock.
//!
//! Not here: which objects, and until when. What holds: an object whose lock reaches far enough is asked about and not locked anew; a
//! store that refuses a lock ends the work, but for objects that are not there, which are named. Memory: the names of
//! [`MOST_NAMED`] objects a thread.

use crate::backend::lock::ObjectLock;
use crate::crew::Crew;
use crate::error::{Kind, Result};
use crate::lock_for::Due;
use crate::time::Timestamp;

/// Objects that are named one by one, at most; all are counted.
pub const MOST_NAMED: usize = 10_000;

/// An object whose lock does not reach far enough, or did not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Short {
    /// Its name.
    pub name: String,
    /// Until when it was locked; `None`: never.
    pub until: Option<Timestamp>,
    /// What that has to reach.
    pub least: Timestamp,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Objects that were looked at.
    pub(crate) objects: u64,
    /// How many of them are short.
    pub(crate) short: u64,
    /// The first of those.
    pub(crate) named: Vec<Short>,
    /// Objects that are not there.
    pub(crate) missing: Vec<String>,
}

/// Whether locks are made, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Nothing is changed.
    Look,
    /// What is short is locked anew.
    Raise,
}

/// Looks at the locks of all objects that `feed` hands out, and raises those that are short if that is the deed.
pub(crate) fn work(
    lock: &dyn ObjectLock,
    deed: Deed,
    crew: Crew<'_>,
    feed: impl FnOnce(&mut dyn FnMut((String, Due)) -> Result<()>) -> Result<()>,
) -> Result<Tally> {
    let one = |(name, due): (String, Due), tally: &mut Tally| {
        let looked = lock.locked_until(&name).and_then(|until| {
            let is_short = until < Some(due.least);
            if is_short && deed == Deed::Raise {
                lock.lock(&name, due.until).map_err(|e| match e.kind() {
                    Kind::NotFound => e,
                    _ => e.within(format_args!("locking '{name}' until {}", due.until)),
                })?;
            }
            Ok(is_short.then_some(until))
        });
        match looked {
            Ok(Some(until)) => {
                tally.short += 1;
                if tally.named.len() < MOST_NAMED {
                    tally.named.push(Short { name, until, least: due.least });
                }
            }
            Ok(None) => {}
            Err(e) if e.kind() == Kind::NotFound => {
                if tally.missing.len() < MOST_NAMED {
                    tally.missing.push(name);
                }
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        tally.objects += 1;
        Ok(())
    };
    let parts = crew.run(|| Ok(Tally::default()), one, feed)?;
    let mut all = parts.into_iter().fold(Tally::default(), |mut all, part| {
        all.objects += part.objects;
        all.short += part.short;
        all.named.extend(part.named);
        all.missing.extend(part.missing);
        all
    });
    all.missing.sort_unstable();
    all.missing.truncate(MOST_NAMED);
    all.named.sort_unstable();
    all.named.truncate(MOST_NAMED);
    Ok(all)
}
