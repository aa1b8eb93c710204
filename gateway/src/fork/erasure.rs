//! CONDUCTOR of erasing a fork by its keys: whatever is read through it is zeroes from then on.
//!
//! ```text
//!   new layer, new key, all of it zeroed, durable       (a crash: no header names it, and the next opening removes it)
//!   -> barrier -> header names it alone, durable -> it takes the place of all layers
//!                                                       (a crash: the fork is zeroes; the next opening removes what was)
//!   -> the other layers' keys and files go
//! ```
//! Not here: what lies below the fork, which is a backup and stays. What holds: the fork is what it was or zeroes at every moment, and
//! after every crash; what was written before the barrier goes, what is written after it stays. The sealed key of what is gone lay in
//! a file that has no name any more: whoever digs it out of the free space of the file system needs the repository's own key as well.
//!
//! The header is placed with the gate closed, against the rule: a write that comes between would be acknowledged and lost.

use super::folder::{layer_folder, place_header};
use super::opened::{Fork, Keys};
use crate::Result;
use crate::device::{BlockDevice, Durability, Zeroing};
use std::fs;
use std::sync::Arc;

impl Fork {
    /// Erases it. `Locked` while it is committed or hydrated, `Invalid` once it was handed over. When placing the header fails
    /// nobody knows which one counts: then the fork takes no more writes until it is opened again.
    pub(super) fn erase(&self) -> Result<()> {
        let mut ledger = self.take_ledger()?;
        self.stack.check()?;
        let base = Arc::clone(&ledger.base) as Arc<dyn BlockDevice>;
        let (number, key, layer) = self.make(&mut ledger, base)?;
        let how = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
        let keys = Keys::from([(number, key)]);
        let drafted = layer.zero(0..self.size(), how).and_then(|()| layer.flush());
        let drafted = drafted.and_then(|()| self.draft(&keys, self.header()));
        let header = drafted.inspect_err(|_| {
            // No header names it. As good as can be.
            let _ = fs::remove_dir_all(layer_folder(&self.folder, number));
        })?;
        let old = self.stack.barrier().supersede(Arc::new(layer), || place_header(&self.folder))?;
        self.set_header(header);
        let gone = std::mem::replace(&mut ledger.keys, keys);
        // They flush as they end.
        drop(old);
        for number in gone.keys() {
            // What fails here is done when the fork is opened the next time.
            let _ = fs::remove_dir_all(layer_folder(&self.folder, *number));
        }
        Ok(())
    }
}
