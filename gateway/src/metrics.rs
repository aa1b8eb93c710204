//! What exports are doing, for Prometheus: the text format 0.0.4 over a little HTTP.
//!
//! ```text
//!   metrics     the text                    this file, pure
//!     page      one GET, and its answer     pure
//! ```
//! Not here: the counts (exports and servers have them). What holds: a caller costs one of 16 threads for 5 seconds at most, and
//! 8 KiB; the text is made from counts alone, without a lock that a request would wait for.

mod page;

use crate::Result;
use crate::door::{Caller, Door};
use crate::export::{Export, LATENCY_BOUNDS};
use crate::serving::{Listener, Place, Statistics};
use page::Head;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{Read, Write as _};
use std::sync::Arc;
use std::time::Duration;

/// For a request, and then for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A place where the text can be had, as long as it lives.
pub struct MetricsServer {
    door: Door,
}

/// An export as it is offered.
#[derive(Clone, Debug)]
pub struct Offered {
    /// What is offered.
    pub export: Arc<Export>,
    /// As which LUN of which target; by its name otherwise.
    pub lun: Option<(String, u16)>,
}

/// What a server did.
#[derive(Clone, Debug)]
pub struct Served {
    /// What it speaks, as in the names of its metrics.
    pub protocol: &'static str,
    /// Where it listens.
    pub place: String,
    /// What it did.
    pub statistics: Statistics,
    /// Logins that it refused, where the protocol has logins.
    pub refused: Option<u64>,
}

impl Offered {
    fn labels(&self) -> String {
        let export = format!("export={}", Quoted(&self.export.name));
        match &self.lun {
            Some((target, number)) => format!("{export},target={},lun=\"{number}\"", Quoted(target)),
            None => export,
        }
    }
}

/// A label's value, in quotes and escaped.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// One metric: its name, its type, what it is, and what it is for an export.
type Metric = (&'static str, &'static str, &'static str, fn(&Export) -> u64);

const EXPORT_METRICS: [Metric; 9] = [
    ("coffer_export_clients", "gauge", "Clients that have the export now.", Export::clients),
    ("coffer_export_size_bytes", "gauge", "Size of the export's device.", |e| e.device.size()),
    ("coffer_export_reads_total", "counter", "Reads answered.", |e| e.activity().totals().reads),
    ("coffer_export_read_bytes_total", "counter", "Bytes that reads asked for.", |e| e.activity().totals().bytes_read),
    ("coffer_export_writes_total", "counter", "Writes answered.", |e| e.activity().totals().writes),
    ("coffer_export_written_bytes_total", "counter", "Bytes that writes brought.", |e| {
        e.activity().totals().bytes_written
    }),
    ("coffer_export_other_requests_total", "counter", "Flushes, trims, zeroes and queries answered.", |e| {
        e.activity().totals().others
    }),
    ("coffer_export_failures_total", "counter", "Requests that failed or were refused.", |e| {
        e.activity().totals().failures
    }),
    ("coffer_export_delays_total", "counter", "Times that a request waited for the export's limits.", |e| {
        e.activity().totals().delays
    }),
];
const DURATION: &str = "coffer_export_request_duration_seconds";

/// The text: of what is offered, and of servers.
#[must_use]
pub fn text(exports: &[Offered], servers: &[Served]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_exports(&mut out, exports).and_then(|()| write_servers(&mut out, servers));
    out
}

fn describe(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn write_exports(out: &mut String, exports: &[Offered]) -> fmt::Result {
    for (name, kind, help, value) in EXPORT_METRICS {
        describe(out, name, kind, help)?;
        for offered in exports {
            writeln!(out, "{name}{{{}}} {}", offered.labels(), value(&offered.export))?;
        }
    }
    describe(out, DURATION, "histogram", "From when a request was whole to when its answer was ready.")?;
    for offered in exports {
        let (labels, totals) = (offered.labels(), offered.export.activity().totals());
        let mut answers = 0;
        for (bound, count) in LATENCY_BOUNDS.iter().zip(totals.latencies) {
            answers += count;
            writeln!(out, "{DURATION}_bucket{{{labels},le=\"{}\"}} {answers}", bound.as_secs_f64())?;
        }
        let all: u64 = totals.latencies.iter().sum();
        writeln!(out, "{DURATION}_bucket{{{labels},le=\"+Inf\"}} {all}")?;
        let sum = Duration::from_nanos(totals.latency_nanos).as_secs_f64();
        writeln!(out, "{DURATION}_sum{{{labels}}} {sum}\n{DURATION}_count{{{labels}}} {all}")?;
    }
    Ok(())
}

fn write_servers(out: &mut String, servers: &[Served]) -> fmt::Result {
    type Count = fn(&Served) -> Option<u64>;
    let metrics: [(&str, &str, &str, Count); 6] = [
        ("connections", "gauge", "Connections open now.", |s| Some(s.statistics.open_connections)),
        ("connections_total", "counter", "Connections accepted.", |s| Some(s.statistics.connections)),
        ("requests_total", "counter", "Requests taken.", |s| Some(s.statistics.requests)),
        ("received_bytes_total", "counter", "Bytes received after the handshake.", |s| {
            Some(s.statistics.bytes_received)
        }),
        ("sent_bytes_total", "counter", "Bytes sent after the handshake.", |s| Some(s.statistics.bytes_sent)),
        ("refused_logins_total", "counter", "Logins that were refused.", |s| s.refused),
    ];
    let protocols: BTreeSet<&str> = servers.iter().map(|server| server.protocol).collect();
    for (protocol, (metric, kind, help, value)) in
        protocols.iter().flat_map(|protocol| metrics.iter().map(move |metric| (protocol, metric)))
    {
        let name = format!("coffer_{protocol}_{metric}");
        let counted = servers.iter().filter(|server| server.protocol == *protocol);
        let counted: Vec<(&str, u64)> = counted.filter_map(|server| Some((&*server.place, value(server)?))).collect();
        if !counted.is_empty() {
            describe(out, &name, kind, help)?;
        }
        for (place, count) in counted {
            writeln!(out, "{name}{{place={}}} {count}", Quoted(place))?;
        }
    }
    Ok(())
}

impl MetricsServer {
    /// Answers `GET /metrics` at `listener` with what `text` returns. A place in use is `Locked`.
    pub fn start(listener: &Listener, text: impl Fn() -> String + Send + Sync + 'static) -> Result<Self> {
        let serve = move |caller: &mut Caller| {
            let head = receive(caller);
            caller.give(PATIENCE);
            // A caller that hung up needs no answer.
            let _ = head.and_then(|head| caller.write_all(&head.answer(&text)));
        };
        Ok(MetricsServer { door: Door::open(listener, "metrics", PATIENCE, Arc::new(serve))? })
    }

    /// Where it can be had; with the port that was chosen.
    #[must_use]
    pub fn place(&self) -> &Place {
        self.door.place()
    }
}

/// Reads until the end of a request's head.
fn receive(caller: &mut Caller) -> std::io::Result<Head> {
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    loop {
        if let Some(head) = Head::decode(&bytes) {
            return Ok(head);
        }
        match caller.read(&mut part)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;
    use crate::export::Deed;

    #[test]
    fn histograms_add_up_and_labels_are_escaped() {
        let export = Export::new("a\"b\\c\nd", Arc::new(MemoryDevice::new(512)));
        let activity = export.activity();
        activity.answered(Deed::Read(4096), true, Some(Duration::ZERO));
        activity.answered(Deed::Write(512), false, Some(Duration::from_millis(5)));
        activity.answered(Deed::Other, true, Some(Duration::from_secs(60)));
        let statistics = Statistics { connections: 7, ..Statistics::default() };
        let export = Arc::new(export);
        let server = |protocol, refused| Served { protocol, place: "unix:/run/x".to_owned(), statistics, refused };
        let lun = Some(("iqn.x:t".to_owned(), 3));
        let offered = [Offered { export: Arc::clone(&export), lun: None }, Offered { export, lun }];
        let text = text(&offered, &[server("nbd", None), server("iscsi", Some(4))]);
        let label = r#"export="a\"b\\c\nd""#;
        for line in [
            format!("coffer_export_reads_total{{{label}}} 1"),
            format!("coffer_export_read_bytes_total{{{label}}} 4096"),
            format!("coffer_export_failures_total{{{label}}} 1"),
            format!("{DURATION}_bucket{{{label},le=\"0.0001\"}} 1"),
            format!("{DURATION}_bucket{{{label},le=\"0.001\"}} 1"),
            format!("{DURATION}_bucket{{{label},le=\"0.01\"}} 2"),
            format!("{DURATION}_bucket{{{label},le=\"10\"}} 2"),
            format!("{DURATION}_bucket{{{label},le=\"+Inf\"}} 3"),
            format!("{DURATION}_sum{{{label}}} 60.005"),
            format!("{DURATION}_count{{{label}}} 3"),
            "coffer_nbd_connections_total{place=\"unix:/run/x\"} 7".to_owned(),
            "coffer_iscsi_connections_total{place=\"unix:/run/x\"} 7".to_owned(),
            "coffer_iscsi_refused_logins_total{place=\"unix:/run/x\"} 4".to_owned(),
            format!("coffer_export_reads_total{{{label},target=\"iqn.x:t\",lun=\"3\"}} 1"),
            format!("{DURATION}_bucket{{{label},target=\"iqn.x:t\",lun=\"3\",le=\"0.01\"}} 2"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert_eq!(text.matches(&format!("# TYPE {family} ")).count(), 1, "{line}");
        }
        assert!(!text.contains("coffer_nbd_refused"), "it has no logins");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn callers_that_say_too_little_or_too_much_keep_nobody_from_the_text() {
        use std::os::unix::net::UnixStream;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let listener = Listener::Unix { path: path.clone(), mode: 0o600 };
        let server = MetricsServer::start(&listener, || "a 1\n".repeat(100_000)).unwrap();
        let ask = |text: &[u8]| {
            let mut socket = UnixStream::connect(&path).unwrap();
            let (mut answer, _) = (String::new(), socket.write_all(text));
            socket.read_to_string(&mut answer).map(|_| answer)
        };
        let half_open: Vec<UnixStream> = (0..8)
            .map(|_| {
                let mut socket = UnixStream::connect(&path).unwrap();
                socket.write_all(b"GET /metr").unwrap();
                socket
            })
            .collect();
        // One that asks and never takes the answer.
        let mut greedy = UnixStream::connect(&path).unwrap();
        greedy.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let whole = ask(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(whole.matches("a 1\n").count(), 100_000);
        assert!(ask(b"\x16\x03\x01\n\n").unwrap().starts_with("HTTP/1.1 400"));
        // The rest of what is too long is not taken, which may cost the answer.
        let too_long = ask(&[b'x'; 1 << 20]);
        assert!(too_long.is_err() || too_long.is_ok_and(|text| text.starts_with("HTTP/1.1 431")));
        let crowd: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
        drop((half_open, greedy, crowd));
        // Those that hung up free their threads; until then one more is turned away.
        let again = std::iter::repeat_with(|| ask(b"HEAD /metrics HTTP/1.0\n\n")).take(100_000);
        let well = again.flatten().find(|text| text.starts_with("HTTP/1.1 200"));
        assert!(well.is_some_and(|text| text.contains("Content-Length: 400000\r\n")));
        drop(server);
        assert!(!path.exists());
    }
}
