//! Standard output as a target: every byte in order, zeroes included.
//!
//! Not here: putting pieces in order; the transfer does that. What holds: a byte out of order is refused, not written.

use super::{DiskTarget, Order, write_zeroes};
use crate::source::RandomDisk;
use crate::{Error, Kind, Result};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Mutex;

/// Something that takes bytes in order.
pub(super) struct StreamTarget {
    state: Mutex<State>,
}

struct State {
    bytes: Box<dyn Write + Send>,
    written: u64,
}

/// Opens standard output. A terminal is refused: a disk would only garble it.
pub(super) fn open_standard_output() -> Result<StreamTarget> {
    let output = std::io::stdout();
    if std::io::IsTerminal::is_terminal(&output) {
        return Err(Error::invalid("standard output is a terminal; a pipe or a file is due"));
    }
    // A descriptor of our own, past the library's line buffer.
    let own = output.as_fd().try_clone_to_owned().map_err(|e| Error::io("taking standard output", e))?;
    Ok(StreamTarget::new(File::from(own)))
}

impl StreamTarget {
    /// Writes to `bytes`.
    fn new(bytes: impl Write + Send + 'static) -> Self {
        StreamTarget { state: Mutex::new(State { bytes: Box::new(bytes), written: 0 }) }
    }
}

impl DiskTarget for StreamTarget {
    fn order(&self) -> Order {
        Order::Ascending
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Error::internal("a thread died while it wrote"))?;
        if state.written != offset {
            let context = format!("byte {offset} was due to be written when byte {} was next", state.written);
            return Err(Error::internal(context));
        }
        state.bytes.write_all(bytes).map_err(|e| Error::io(format!("writing to the output at byte {offset}"), e))?;
        state.written += bytes.len() as u64;
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> Result<()> {
        write_zeroes(self, range)
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Error::internal("a thread died while it wrote"))?;
        state.bytes.flush().map_err(|e| Error::io("flushing the output", e))
    }

    fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
        Err(Error::new(Kind::Unsupported, "what went to standard output cannot be read back to verify it"))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, PoisonError};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_out_in_order_or_not_at_all() {
        let kept = Kept::default();
        let target = StreamTarget::new(kept.clone());
        target.write_at(0, b"abc").unwrap();
        assert_eq!(target.write_at(4, b"x").unwrap_err().kind(), Kind::Internal);
        target.zero(3..5).unwrap();
        target.write_at(5, b"d").unwrap();
        assert_eq!(*kept.0.lock().unwrap(), b"abc\0\0d");
    }
}
