//! Standard input: bytes in order, once, of a length that is known only at their end.
//!
//! Not here: where the bytes come from before that; a pipe whose writer failed ends like any other, so a shell's `pipefail`
//! is the caller's matter. What holds: reads happen under the stream's own lock, since they have an order; an empty stream
//! is an error, because it is always a failed producer and never a disk.

use super::{Access, DiskSource, SourceDisk};
use crate::{Error, Kind, Result};
use coffer_repo::window::{Filled, Window, WindowSource};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Mutex;

/// Bytes that can be read once.
pub struct Stream {
    state: Mutex<State>,
}

struct State {
    bytes: Box<dyn Read + Send>,
    read: u64,
    ended: bool,
}

impl Stream {
    /// A stream of what `bytes` yields.
    pub fn new(bytes: impl Read + Send + 'static) -> Self {
        Stream { state: Mutex::new(State { bytes: Box::new(bytes), read: 0, ended: false }) }
    }

    /// The stream in windows of `window_size` bytes; messages call it `name`.
    #[must_use]
    pub fn windows<'a>(&'a self, name: &'a str, window_size: u32) -> StreamFeed<'a> {
        StreamFeed { stream: self, name, window_size }
    }
}

/// A stream cut into windows.
pub struct StreamFeed<'a> {
    stream: &'a Stream,
    name: &'a str,
    window_size: u32,
}

impl WindowSource for StreamFeed<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let mut state = self.stream.state.lock().map_err(|_| died())?;
        if state.ended {
            return Ok(Filled::End);
        }
        let start = state.read;
        window.bytes.clear();
        window.unreadable.clear();
        let wanted = u64::from(self.window_size);
        let length = (&mut state.bytes)
            .take(wanted)
            .read_to_end(&mut window.bytes)
            .map_err(|e| Error::io(format!("reading disk {} after byte {start}", self.name), e))?
            as u64;
        state.read += length;
        state.ended = length < wanted;
        if state.read == 0 {
            return Err(Error::invalid(format!("disk {}: the input is empty; did its producer fail?", self.name)));
        }
        Ok(if length == 0 { Filled::End } else { Filled::Bytes(start / wanted) })
    }

    fn size(&self) -> Result<u64> {
        let state = self.stream.state.lock().map_err(|_| died())?;
        if state.ended { Ok(state.read) } else { Err(Error::internal("a stream's size was asked before its end")) }
    }
}

/// A session with one stream.
struct StreamSource {
    disks: [SourceDisk; 1],
}

/// Opens standard input. A terminal is refused: nobody types a disk.
pub(super) fn open_standard_input(disk: String) -> Result<Box<dyn DiskSource>> {
    let input = std::io::stdin();
    if std::io::IsTerminal::is_terminal(&input) {
        return Err(Error::invalid("standard input is a terminal; a pipe or a file is due"));
    }
    // A descriptor of our own, past the library's buffer: windows are large.
    let own = input.as_fd().try_clone_to_owned().map_err(|e| Error::io("taking standard input", e))?;
    let access = Access::Sequential(Stream::new(File::from(own)));
    Ok(Box::new(StreamSource { disks: [SourceDisk { name: disk, block_size: 512, access }] }))
}

impl DiskSource for StreamSource {
    fn disks(&self) -> &[SourceDisk] {
        &self.disks
    }

    fn warnings(&self) -> &[String] {
        &[]
    }

    fn finish(self: Box<Self>) -> Result<Vec<Option<String>>> {
        Ok(vec![None])
    }
}

fn died() -> Error {
    Error::new(Kind::Internal, "a thread died while it read a stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Yields at most seven bytes a call.
    struct Trickle(std::io::Cursor<Vec<u8>>);

    impl Read for Trickle {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let length = out.len().min(7);
            self.0.read(&mut out[..length])
        }
    }

    #[test]
    fn a_stream_of_any_length_comes_in_full_windows_and_knows_its_size_at_the_end() {
        for length in [1usize, 99, 100, 101, 200, 250] {
            let bytes: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let stream = Stream::new(Trickle(std::io::Cursor::new(bytes.clone())));
            let feed = stream.windows("stdin", 100);
            let mut window = Window::default();
            let mut got = Vec::new();
            assert_eq!(feed.size().unwrap_err().kind(), Kind::Internal);
            for index in 0.. {
                match feed.next(&mut window).unwrap() {
                    Filled::Bytes(i) => assert_eq!(i, index),
                    Filled::End => break,
                    other => panic!("{other:?}"),
                }
                got.extend_from_slice(&window.bytes);
            }
            assert_eq!(got, bytes);
            assert_eq!(feed.size().unwrap(), length as u64);
            assert_eq!(feed.next(&mut window).unwrap(), Filled::End);
        }
        let empty = Stream::new(std::io::empty());
        let error = empty.windows("stdin", 100).next(&mut Window::default()).unwrap_err();
        assert!(error.to_string().contains("empty"), "{error}");
    }
}
