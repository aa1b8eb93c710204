//! fake-gcs-server: an emulator of Google Cloud Storage, in memory.
//!
//! Not here: Google's tokens; it takes any request. What holds: it is told under which host it is asked, since it tells its
//! two interfaces apart by that.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use super::site::Site;
use super::{Place, free_ports, installed};
use crate::http::Request;
use serde_json::json;
use std::process::Command;
use std::sync::OnceLock;

/// A running fake-gcs-server.
pub struct FakeGcs {
    /// Keeps it running.
    _site: Site,
    port: u16,
}

impl FakeGcs {
    /// The one that the tests of this binary share. Less than a second.
    #[must_use]
    pub fn shared() -> &'static FakeGcs {
        static SHARED: OnceLock<FakeGcs> = OnceLock::new();
        SHARED.get_or_init(FakeGcs::start)
    }

    fn start() -> FakeGcs {
        let site = Site::new("gcs");
        let [port] = free_ports();
        let host = format!("127.0.0.1:{port}");
        let mut server = Command::new(installed("venv/bin/fake-gcs-server"));
        server
            .args(["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", &port.to_string()])
            .args(["-public-host", &host, "-external-url", &format!("http://{host}"), "-log-level", "warn"])
            .current_dir(site.folder());
        site.spawn("fake-gcs-server", &mut server);
        site.wait_until("fake-gcs-server that answers", || {
            Request { method: "GET", target: "/storage/v1/b?project=coffer", fields: &[], body: b"" }
                .ask(port)
                .is_ok_and(|answer| answer.head.status() == 200)
        });
        FakeGcs { _site: site, port }
    }

    /// A new bucket.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Place {
        let body = json!({ "name": name }).to_string();
        let fields = [("Content-Type", "application/json")];
        let made =
            Request { method: "POST", target: "/storage/v1/b?project=coffer", fields: &fields, body: body.as_bytes() };
        let _ = made.ask(self.port).unwrap().good();
        Place {
            location: format!("gcs://{name}/"),
            options: vec![format!("endpoint=http://127.0.0.1:{}", self.port), "anonymous=yes".to_owned()],
            environment: Vec::new(),
        }
    }
}
