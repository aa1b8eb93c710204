//! HTTP/1.1 messages, as far as the harness needs them: to ask the services that it starts, and to pass messages on
//! ([`crate::proxy`]).
//!
//! Not here: what is asked, TLS, redirects, and what a client under test speaks: that is the backend's own business. What
//! holds: heads and pieces of bodies are bounded, and a message that ends early is an error, never a shorter message.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// Most bytes of a line.
const MAX_LINE: u64 = 64 << 10;
/// Most fields of a head.
const MAX_FIELDS: usize = 200;
/// Bytes of a body that are handed on at once.
const PIECE: usize = 16 << 10;
/// How long a service may take for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes before a message's body.
#[derive(Clone, Debug)]
pub struct Head {
    /// The request line or the status line.
    pub start: String,
    /// Names and values, in order.
    pub fields: Vec<(String, String)>,
}

/// How a message tells where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After a chunk of no bytes.
    Chunked,
    /// With the connection.
    ToTheEnd,
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// A line without its end; `None` where the connection ended before it began.
fn line(from: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    from.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.pop() != Some(b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map(Some).map_err(|_| broken("a head that is not text"))
}

impl Head {
    /// Reads one. `None`: the other side has ended the connection.
    pub fn read(from: &mut impl BufRead) -> Result<Option<Head>> {
        let Some(start) = line(from)? else { return Ok(None) };
        let mut fields = Vec::new();
        loop {
            let field = line(from)?.ok_or(ErrorKind::UnexpectedEof)?;
            if field.is_empty() {
                return Ok(Some(Head { start, fields }));
            }
            let (name, value) = field.split_once(':').ok_or_else(|| broken("a field without a colon"))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
            if fields.len() > MAX_FIELDS {
                return Err(broken("too many fields"));
            }
        }
    }

    /// Writes it.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.fields {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        to.write_all(text.as_bytes())?;
        to.write_all(b"\r\n")
    }

    /// The value of a field.
    #[must_use]
    pub fn field(&self, wanted: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    }

    /// Replaces a field, or adds it.
    pub fn set(&mut self, name: &str, value: String) {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.fields.push((name.to_owned(), value));
    }

    /// A request's method.
    #[must_use]
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// A request's target: path and query.
    #[must_use]
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// An answer's status; 0 where there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    fn told(&self) -> Result<Option<Framing>> {
        if self.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Ok(Some(Framing::Chunked));
        }
        let length = self.field("content-length").map(str::parse).transpose().map_err(|_| broken("no length"))?;
        Ok(length.map(Framing::Length))
    }

    /// Where the body of this request ends.
    pub fn request_framing(&self) -> Result<Framing> {
        Ok(self.told()?.unwrap_or(Framing::Length(0)))
    }

    /// Where the body of this answer to a request of that method ends.
    pub fn answer_framing(&self, method: &str) -> Result<Framing> {
        if method == "HEAD" || matches!(self.status(), 100..200 | 204 | 304) {
            return Ok(Framing::Length(0));
        }
        Ok(self.told()?.unwrap_or(Framing::ToTheEnd))
    }
}

/// Reads a body and calls `each` with its pieces, as they come.
pub fn read_body(framing: Framing, from: &mut impl BufRead, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    match framing {
        Framing::Length(length) => read_exactly(length, from, each),
        Framing::Chunked => loop {
            let size = line(from)?.ok_or(ErrorKind::UnexpectedEof)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| broken("a chunk without a size"))?;
            read_exactly(size, from, each)?;
            if size == 0 {
                // What follows the last chunk up to an empty line is not passed on.
                while line(from)?.is_some_and(|trailer| !trailer.is_empty()) {}
                return Ok(());
            }
            line(from)?;
        },
        Framing::ToTheEnd => {
            let mut piece = vec![0; PIECE];
            loop {
                let got = from.read(&mut piece)?;
                if got == 0 {
                    return Ok(());
                }
                each(&piece[..got])?;
            }
        }
    }
}

fn read_exactly(mut left: u64, from: &mut impl BufRead, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let got = from.read(&mut piece[..most])?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        each(&piece[..got])?;
        left -= got as u64;
    }
    Ok(())
}

/// A service's answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and fields.
    pub head: Head,
    /// All of the body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The same, if its status is one of the 200s; else this fails the test.
    #[must_use]
    pub fn good(self) -> Answer {
        let good = (200..300).contains(&self.head.status());
        assert!(good, "{}\n{}", self.head.start, String::from_utf8_lossy(&self.body));
        self
    }
}

/// A request to whoever listens at `port` of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// GET, PUT ...
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Beyond host, length and the wish to end the connection.
    pub fields: &'a [(&'a str, &'a str)],
    /// What is sent.
    pub body: &'a [u8],
}

impl Request<'_> {
    /// Asks, over a connection of its own.
    pub fn ask(self, port: u16) -> Result<Answer> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let field = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut head = Head {
            start: format!("{} {} HTTP/1.1", self.method, self.target),
            fields: self.fields.iter().map(field).collect(),
        };
        head.set("Host", format!("127.0.0.1:{port}"));
        head.set("Content-Length", self.body.len().to_string());
        head.set("Connection", "close".to_owned());
        head.write(&mut &stream)?;
        (&stream).write_all(self.body)?;
        let mut from = BufReader::new(&stream);
        let head = Head::read(&mut from)?.ok_or(ErrorKind::UnexpectedEof)?;
        let mut body = Vec::new();
        read_body(head.answer_framing(self.method)?, &mut from, &mut |piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Answer { head, body })
    }
}
