//! The metadata contexts that a server has for an export: their names, their numbers, and what they say about a range.
//!
//! ```text
//!   base:allocation         what reads as zeroes, and what takes no space
//!   qemu:allocation-depth   0 nothing, 1 this layer, 2 the one below ... as qemu-nbd has it
//!   coffer:changed:POINT    bit 0: may differ from that point; see Export::changes
//! ```
//! Not here: the wire, and who asked. What holds: a context's number is its own for as long as the export is offered; nothing is
//! computed before it is asked for.

use super::super::proto::transmission::{Status, allocation, changed};
use crate::Result;
use crate::device::Content;
use crate::export::{ChangeSource, Export};
use std::ops::Range;
use std::sync::Arc;

/// Contexts that one connection may have turned on: each adds to the memory of a block status.
pub(super) const MAX_CONTEXTS: usize = 8;
/// Before the name of what is compared with.
const CHANGED: &str = "coffer:changed:";

/// A context that a client turned on.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) id: u32,
    pub(super) name: String,
    aspect: Aspect,
}

#[derive(Clone)]
enum Aspect {
    Allocation,
    Depth,
    Changed(Arc<dyn ChangeSource>),
}

impl Context {
    /// All that an export has.
    pub(super) fn all(export: &Export) -> impl Iterator<Item = Context> {
        let fixed = [("base:allocation", Aspect::Allocation), ("qemu:allocation-depth", Aspect::Depth)];
        let fixed = fixed.into_iter().map(|(name, aspect)| (name.to_owned(), aspect));
        let since =
            export.changes.iter().map(|c| (format!("{CHANGED}{}", c.since), Aspect::Changed(Arc::clone(&c.source))));
        (1..).zip(fixed.chain(since)).map(|(id, (name, aspect))| Context { id, name, aspect })
    }

    /// Whether a listing for `query` shows it: its own name, or a part of that which ends with a colon.
    pub(super) fn is_listed_for(&self, query: &str) -> bool {
        self.name == query || (query.ends_with(':') && self.name.starts_with(query))
    }

    /// What it says about `range`: `max` stretches at most.
    pub(super) fn status(&self, export: &Export, range: Range<u64>, max: usize) -> Result<Vec<Status>> {
        let mut found: Vec<Status> = Vec::new();
        let mut add = |range: Range<u64>, flags: u64| {
            let length = range.end.saturating_sub(range.start);
            match found.last_mut() {
                Some(last) if last.flags == flags => last.length += length,
                _ => found.push(Status { length, flags }),
            }
        };
        match &self.aspect {
            Aspect::Allocation => {
                for extent in export.device.extents(range, max)? {
                    let flags = match extent.content {
                        Content::Zero => allocation::HOLE | allocation::ZERO,
                        // What cannot be read is no hole: a client must try, and fail.
                        Content::Bytes | Content::Unreadable => 0,
                    };
                    add(extent.range, flags);
                }
            }
            Aspect::Depth => {
                export.device.depths(range, max)?.into_iter().for_each(|(range, depth)| add(range, depth.into()));
            }
            Aspect::Changed(source) => {
                let flags = |has_changed| if has_changed { changed::CHANGED } else { 0 };
                source.changes(range, max)?.into_iter().for_each(|(range, has_changed)| add(range, flags(has_changed)));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BlockDevice, Durability};
    use crate::export::Changes;
    use crate::{Error, MemoryDevice};

    /// Says that every other KiB changed.
    struct Stripes;

    impl ChangeSource for Stripes {
        fn changes(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, bool)>> {
            let cut = |at: u64| ((at / 1024 + 1) * 1024).min(range.end);
            let stripes =
                std::iter::successors(Some(range.start..cut(range.start)), |last| Some(last.end..cut(last.end)));
            Ok(stripes.take_while(|r| !r.is_empty()).take(max).map(|r| (r.clone(), r.start / 1024 % 2 == 1)).collect())
        }
    }

    fn export() -> Export {
        let device = MemoryDevice::new(8192);
        device.write_at(0, &[1; 4096], Durability::Cached).unwrap();
        let changes = ["web@-1", "web@-2"].map(|since| Changes { since: since.into(), source: Arc::new(Stripes) });
        Export { changes: changes.into(), ..Export::new("vda", Arc::new(device)) }
    }

    #[test]
    fn contexts_have_numbers_and_names() {
        let all = Context::all(&export()).map(|c| (c.id, c.name)).collect::<Vec<_>>();
        let due = ["base:allocation", "qemu:allocation-depth", "coffer:changed:web@-1", "coffer:changed:web@-2"];
        assert_eq!(all, (1..).zip(due.map(str::to_owned)).collect::<Vec<_>>());
    }

    #[test]
    fn a_query_lists_a_name_or_all_below_a_colon() {
        let export = export();
        let listed =
            |query: &str| Context::all(&export).filter(|c| c.is_listed_for(query)).map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(listed("base:"), [1]);
        assert_eq!(listed("qemu:"), [2]);
        assert_eq!(listed("coffer:"), [3, 4]);
        assert_eq!(listed("coffer:changed:"), [3, 4]);
        assert_eq!(listed("coffer:changed:web@-2"), [4]);
        for nothing in ["", "base", "coffer:changed", "coffer:changed:web", "x:"] {
            assert_eq!(listed(nothing), [0; 0], "{nothing}");
        }
    }

    #[test]
    fn each_says_its_own() -> Result<()> {
        let export = export();
        let say = |id: u32, range, max| -> Result<Vec<(u64, u64)>> {
            let context = Context::all(&export).find(|c| c.id == id).ok_or_else(|| Error::internal("no context"))?;
            Ok(context.status(&export, range, max)?.into_iter().map(|s| (s.length, s.flags)).collect())
        };
        assert_eq!(say(1, 0..8192, 9)?, [(4096, 0), (4096, 3)]);
        assert_eq!(say(2, 0..8192, 9)?, [(4096, 1), (4096, 0)]);
        assert_eq!(say(3, 512..3072, 9)?, [(512, 0), (1024, 1), (1024, 0)]);
        assert_eq!(say(4, 1024..8192, 1)?, [(1024, 1)]);
        assert!(say(1, 8192..8193, 9).is_err());
        Ok(())
    }
}
