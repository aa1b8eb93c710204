//! A store that speaks S3's protocol from memory, and fails as its script says: each fault once, at the next request it fits. Objects
//! can be frozen, as in a cold tier, and are thawed after so many looks.
//!
//! Not here: signatures (it believes everybody), real servers. What holds: it listens on loopback; between faults it keeps the
//! contract, put-if-absent and multipart uploads included; it remembers every request. Its threads end with their
//! connections.

// A harness speaks by failing, also when it is a library.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// The bucket that is there; there is no other.
pub const BUCKET: &str = "bucket";
/// Most names on a page of a listing.
const PAGE: usize = 100;
/// When copies that were thawed end.
const EXPIRY: &str = "Fri, 25 Dec 2026 00:00:00 GMT";
/// The class whose objects are brought back for good.
const INTELLIGENT: &str = "INTELLIGENT_TIERING";

/// What happens to a request instead of an answer, or to the answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer: status, headers, body.
    Answer(u16, &'static [(&'static str, &'static str)], String),
    /// The connection ends before anything is answered; nothing was done.
    Reset,
    /// The request is carried out, and the connection ends before its answer.
    LoseAnswer,
    /// So many bytes of the body, and the connection ends.
    CutBody(usize),
    /// The range's beginning, as a whole answer: fewer bytes than were asked for.
    ShortRange(usize),
    /// The answer comes after so long.
    Late(Duration),
}

/// The store. It is gone when this is dropped, as far as new connections go.
pub struct Scripted {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    /// By key; what is in no cold tier is not here.
    cold: BTreeMap<String, Cold>,
    /// How many HEADs find a thawing object not ready.
    looks: u32,
    lifecycle: Option<String>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    script: Vec<(&'static str, &'static str, Fault)>,
    requests: Vec<String>,
    next_upload: u32,
    ended: bool,
}

/// An object in a cold tier.
#[derive(Clone)]
struct Cold {
    class: String,
    ice: Ice,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ice {
    Frozen,
    /// For so many more looks.
    Thawing(u32),
    Thawed,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Scripted {
    /// Starts one, empty.
    #[must_use]
    pub fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().ended {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A connection that breaks is the other side's matter.
                thread::spawn(move || stream.and_then(|stream| serve(stream, &shared)));
            }
        });
        Scripted { port, state }
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next request with this method, and `part` in its path and query, meets the fault.
    pub fn fail(&self, method: &'static str, part: &'static str, fault: Fault) {
        self.state().script.push((method, part, fault));
    }

    /// Faults that no request met yet.
    #[must_use]
    pub fn unmet(&self) -> usize {
        self.state().script.len()
    }

    /// The requests so far: method, path and query.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Puts bytes under a key, behind the store's back.
    pub fn plant(&self, key: &str, bytes: &[u8]) {
        self.state().objects.insert(key.to_owned(), Arc::new(bytes.to_vec()));
    }

    /// Takes an object away, behind the store's back.
    pub fn lose(&self, key: &str) {
        let mut state = self.state();
        state.cold.remove(key);
        assert!(state.objects.remove(key).is_some(), "{key} is not there");
    }

    /// Keys that begin so.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.state().objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Moves every object whose key begins so to a cold tier.
    pub fn freeze(&self, prefix: &str, class: &str) {
        let keys = self.keys(prefix);
        let cold = Cold { class: class.to_owned(), ice: Ice::Frozen };
        self.state().cold.extend(keys.into_iter().map(|key| (key, cold.clone())));
    }

    /// Objects that are asked for from now on are found thawing by so many HEADs each, and then thawed; those on their way, too.
    pub fn thaw_after(&self, looks: u32) {
        let mut state = self.state();
        state.looks = looks;
        for cold in state.cold.values_mut() {
            if let Ice::Thawing(left) = &mut cold.ice {
                *left = looks;
            }
        }
    }

    /// The bucket has a rule that moves objects to this class.
    pub fn rule(&self, class: &str) {
        self.state().lifecycle = Some(format!(
            "<LifecycleConfiguration><Rule><Status>Enabled</Status><Transition><Days>30</Days>\
             <StorageClass>{class}</StorageClass></Transition></Rule></LifecycleConfiguration>"
        ));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.state().ended = true;
        // The listener looks up once more, and ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    while let Some(request) = read(&mut reader, &mut writer)? {
        let line = format!("{} {}", request.method, target(&request));
        let fault = {
            let mut state = state.lock().unwrap();
            state.requests.push(line.clone());
            let fits = |(method, part, _): &(&str, &str, Fault)| *method == request.method && line.contains(part);
            let at = state.script.iter().position(fits);
            at.map(|at| state.script.remove(at).2)
        };
        let answer = match &fault {
            Some(Fault::Reset) => return Ok(()),
            Some(Fault::Answer(status, headers, body)) => Answer {
                status: *status,
                headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                body: body.clone().into_bytes(),
            },
            other => {
                if let Some(Fault::Late(time)) = other {
                    thread::sleep(*time);
                }
                state.lock().unwrap().answer(&request)
            }
        };
        let mut head = format!("HTTP/1.1 {} x\r\n", answer.status);
        for (name, value) in &answer.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        let is_head = request.method == "HEAD";
        let mut body = if is_head { &[][..] } else { &answer.body[..] };
        match fault {
            Some(Fault::LoseAnswer) => return Ok(()),
            Some(Fault::ShortRange(bytes)) => body = &body[..bytes],
            _ => {}
        }
        if !answer.headers.iter().any(|(name, _)| name == "content-length") {
            write!(head, "content-length: {}\r\n", body.len()).unwrap();
        }
        writer.write_all(head.as_bytes())?;
        writer.write_all(b"\r\n")?;
        if let Some(Fault::CutBody(bytes)) = fault {
            return writer.write_all(&body[..bytes]);
        }
        writer.write_all(body)?;
    }
    Ok(())
}

fn target(request: &Request) -> String {
    let query: Vec<_> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{}?{}", request.path, query.join("&"))
}

fn read(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            None => break,
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
        };
    }
    if headers.contains_key("expect") {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let query =
        query.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (plain(n), plain(v))).collect();
    Ok(Some(Request { method, path: plain(path), query, headers, body }))
}

/// Without percent signs.
fn plain(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match first {
            b'%' => {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap());
                rest = &after[2..];
            }
            other => {
                bytes.push(*other);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// An error as S3 writes it.
#[must_use]
pub fn error(code: &str, message: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return refuse(404, "NoSuchBucket");
        }
        let said = |name: &str| request.query.get(name).map(String::as_str);
        match (request.method.as_str(), said("uploadId")) {
            ("GET", _) if key.is_empty() && said("lifecycle").is_some() => match &self.lifecycle {
                Some(rules) => done(200, rules.clone().into_bytes()),
                None => refuse(404, "NoSuchLifecycleConfiguration"),
            },
            ("POST", None) if said("restore").is_some() => self.thaw(key, &String::from_utf8_lossy(&request.body)),
            ("GET", _) if key.is_empty() => {
                self.list(said("prefix").unwrap_or(""), said("continuation-token").unwrap_or(""))
            }
            ("GET", _) if self.cold.get(key).is_some_and(|cold| cold.ice != Ice::Thawed) => {
                refuse(403, "InvalidObjectState")
            }
            ("HEAD", _) => {
                let fields = self.temperature(key);
                let mut answer = self.get(key, request.headers.get("range").map(String::as_str));
                answer.headers.extend(fields);
                answer
            }
            ("GET", _) => self.get(key, request.headers.get("range").map(String::as_str)),
            ("POST", None) => {
                self.next_upload += 1;
                let id = self.next_upload.to_string();
                self.uploads.insert(id.clone(), BTreeMap::new());
                self.chill(key, request);
                let body =
                    format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
                done(200, body.into_bytes())
            }
            ("PUT", Some(id)) => match self.uploads.get_mut(id) {
                None => refuse(404, "NoSuchUpload"),
                Some(parts) => {
                    let number = said("partNumber").unwrap().parse().unwrap();
                    parts.insert(number, request.body.clone());
                    Answer { headers: vec![("etag".into(), format!("\"{number}\""))], ..done(200, Vec::new()) }
                }
            },
            ("POST", Some(id)) => match self.uploads.get(id) {
                None => refuse(404, "NoSuchUpload"),
                Some(parts) => {
                    let whole = parts.values().flatten().copied().collect();
                    let id = id.to_owned();
                    let answer = self.put(key, whole, request.headers.contains_key("if-none-match"));
                    if answer.status != 200 {
                        return answer;
                    }
                    self.uploads.remove(&id);
                    done(
                        200,
                        b"<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>".to_vec(),
                    )
                }
            },
            ("PUT", None) => {
                let answer = self.put(key, request.body.clone(), request.headers.contains_key("if-none-match"));
                if answer.status == 200 {
                    self.chill(key, request);
                }
                answer
            }
            ("DELETE", Some(id)) => {
                self.uploads.remove(id);
                done(204, Vec::new())
            }
            ("DELETE", None) => {
                self.objects.remove(key);
                self.cold.remove(key);
                done(204, Vec::new())
            }
            _ => refuse(405, "MethodNotAllowed"),
        }
    }

    /// What is put with a class that freezes is frozen.
    fn chill(&mut self, key: &str, request: &Request) {
        if let Some(class) = request.headers.get("x-amz-storage-class").filter(|class| *class != "STANDARD") {
            self.cold.insert(key.to_owned(), Cold { class: class.clone(), ice: Ice::Frozen });
        }
    }

    fn thaw(&mut self, key: &str, body: &str) -> Answer {
        if !self.objects.contains_key(key) {
            return refuse(404, "NoSuchKey");
        }
        let looks = self.looks;
        let Some(cold) = self.cold.get_mut(key) else { return refuse(403, "InvalidObjectState") };
        if body.contains("<Days>") == (cold.class == INTELLIGENT) || !body.contains("<Tier>") {
            return refuse(400, "MalformedXML");
        }
        match cold.ice {
            Ice::Frozen => {
                cold.ice = Ice::Thawing(looks);
                done(202, Vec::new())
            }
            Ice::Thawing(_) => refuse(409, "RestoreAlreadyInProgress"),
            Ice::Thawed => done(200, Vec::new()),
        }
    }

    /// What a HEAD tells of an object's tier. It brings a thaw further.
    fn temperature(&mut self, key: &str) -> Vec<(String, String)> {
        let Some(cold) = self.cold.get_mut(key) else { return Vec::new() };
        if cold.ice == Ice::Thawing(0) {
            cold.ice = Ice::Thawed;
        }
        let mut fields = vec![("x-amz-storage-class".to_owned(), cold.class.clone())];
        if cold.class == INTELLIGENT && cold.ice != Ice::Thawed {
            fields.push(("x-amz-archive-status".to_owned(), "ARCHIVE_ACCESS".to_owned()));
        }
        let restore = match &mut cold.ice {
            Ice::Frozen => return fields,
            Ice::Thawing(left) => {
                *left -= 1;
                "ongoing-request=\"true\"".to_owned()
            }
            Ice::Thawed => format!("ongoing-request=\"false\", expiry-date=\"{EXPIRY}\""),
        };
        fields.push(("x-amz-restore".to_owned(), restore));
        fields
    }

    fn put(&mut self, key: &str, body: Vec<u8>, must_create: bool) -> Answer {
        if must_create && self.objects.contains_key(key) {
            return refuse(412, "PreconditionFailed");
        }
        self.objects.insert(key.to_owned(), Arc::new(body));
        Answer { headers: vec![("etag".into(), "\"x\"".into())], ..done(200, Vec::new()) }
    }

    fn get(&self, key: &str, range: Option<&str>) -> Answer {
        let Some(object) = self.objects.get(key) else { return refuse(404, "NoSuchKey") };
        let Some(range) = range else {
            return Answer {
                headers: vec![("content-length".into(), object.len().to_string())],
                ..done(200, object.to_vec())
            };
        };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (from, end) = match (from, to) {
            ("", last) => (object.len().saturating_sub(last.parse().unwrap()), object.len()),
            (from, "") => (from.parse().unwrap(), object.len()),
            (from, to) => (from.parse().unwrap(), to.parse::<usize>().unwrap().saturating_add(1).min(object.len())),
        };
        if from >= end {
            return refuse(416, "InvalidRange");
        }
        let headers = vec![("content-range".into(), format!("bytes {from}-{}/{}", end - 1, object.len()))];
        Answer { headers, ..done(206, object[from..end].to_vec()) }
    }

    fn list(&self, prefix: &str, after: &str) -> Answer {
        let mut body = String::from("<ListBucketResult>");
        let mut listed =
            self.objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after).peekable();
        let mut last = String::new();
        for (key, object) in listed.by_ref().take(PAGE) {
            let (size, time) = (object.len(), "2026-11-22T00:00:00.000Z");
            let class = self.cold.get(key).map_or("STANDARD", |cold| &cold.class);
            write!(
                body,
                "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified><ETag>\"x\"</ETag>\
                 <StorageClass>{class}</StorageClass></Contents>"
            )
            .unwrap();
            last.clone_from(key);
        }
        match listed.peek() {
            Some(_) => {
                write!(body, "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>")
            }
            None => write!(body, "<IsTruncated>false</IsTruncated>"),
        }
        .unwrap();
        body.push_str("</ListBucketResult>");
        done(200, body.into_bytes())
    }
}

fn done(status: u16, body: Vec<u8>) -> Answer {
    Answer { status, headers: Vec::new(), body }
}

fn refuse(status: u16, code: &str) -> Answer {
    done(status, error(code, "says the script").into_bytes())
}
