//! Received bytes that were not looked at yet.
//!
//! Not here: payloads, which go straight into their own buffer. What holds: it takes a few bytes until more than a request at a time
//! comes, and never more than [`INPUT`].

/// The most that waits here.
pub const INPUT: usize = 64 << 10;
/// With so much a connection begins, and goes on after a rest.
const RESTING: usize = 64;

/// What was received.
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Input {
    fn default() -> Self {
        Input { bytes: vec![0; RESTING], start: 0, end: 0 }
    }
}

impl Input {
    /// What waits to be looked at.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes `n` bytes off its front, or what there is.
    pub fn take(&mut self, n: usize) -> &[u8] {
        let from = self.start;
        self.start = self.end.min(from + n);
        self.bytes.get(from..self.start).unwrap_or_default()
    }

    /// Makes room for requests of about `len` bytes, several at a time.
    pub fn expect(&mut self, len: usize) {
        let len = len.saturating_mul(16).min(INPUT);
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
    }

    /// Where the next bytes go; [`Input::received`] says how many came.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() && self.end < INPUT {
            // Few requests at a time never need much of it.
            self.bytes.resize((self.end * 64).min(INPUT), 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Counts `n` bytes that were put into [`Input::space`].
    pub fn received(&mut self, n: usize) {
        self.end = self.bytes.len().min(self.end + n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_keeps_order() {
        let (mut input, mut sent, mut seen) = (Input::default(), 0u8, 0u8);
        for round in 0..1000usize {
            input.expect(round % 200);
            let space = input.space();
            let n = space.len().min(round * 37 % 70_000);
            for place in space.iter_mut().take(n) {
                (*place, sent) = (sent, sent.wrapping_add(1));
            }
            input.received(n);
            assert!(input.filled().len() <= INPUT);
            for byte in input.take(round * 53 % 70_000) {
                assert_eq!(*byte, seen);
                seen = seen.wrapping_add(1);
            }
        }
    }
}
