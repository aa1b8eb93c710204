//! SeaweedFS: master, volume server, filer and S3 gateway in one process.
//!
//! Not here: where its ports come from. What holds: one key is known; a bucket is a folder of the filer, made by its plain
//! interface, so that nothing here signs requests.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use super::site::Site;
use super::{Place, free_ports, installed};
use crate::http::Request;
use serde_json::json;
use std::process::Command;
use std::sync::OnceLock;

/// The key that is known, as AWS calls its two halves.
pub const KEY: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "COFFERKEY"), ("AWS_SECRET_ACCESS_KEY", "COFFERSECRET")];

/// A running SeaweedFS.
pub struct SeaweedFs {
    site: Site,
    ports: Ports,
}

struct Ports {
    s3: u16,
    filer: u16,
    others: [u16; 6],
}

impl SeaweedFs {
    /// The one that the tests of this binary share.
    #[must_use]
    pub fn shared() -> &'static SeaweedFs {
        static SHARED: OnceLock<SeaweedFs> = OnceLock::new();
        SHARED.get_or_init(SeaweedFs::start)
    }

    /// One of the caller's own, which may be stopped. About 4 s.
    #[must_use]
    pub fn start() -> SeaweedFs {
        let site = Site::new("seaweedfs");
        let [s3, filer, others @ ..] = free_ports::<8>();
        let seaweed = SeaweedFs { site, ports: Ports { s3, filer, others } };
        let credentials = json!([{ "accessKey": KEY[0].1, "secretKey": KEY[1].1 }]);
        let identity = json!({
            "name": "coffer",
            "credentials": credentials,
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        });
        let identities = json!({ "identities": [identity] }).to_string();
        std::fs::write(seaweed.site.folder().join("s3.json"), identities).unwrap();
        std::fs::create_dir(seaweed.site.folder().join("store")).unwrap();
        seaweed.resume();
        seaweed
    }

    /// Starts it again on what it has.
    pub fn resume(&self) {
        let Ports { s3, filer, others: [master, master_grpc, volume, volume_grpc, filer_grpc, s3_grpc] } = self.ports;
        let mut weed = Command::new(installed("venv/bin/weed"));
        weed.current_dir(self.site.folder())
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-dir=store",
                "-filer",
                "-s3",
                "-s3.config=s3.json",
            ])
            .args(["-volume.max=0", "-master.volumeSizeLimitMB=256", "-master.telemetry=false"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        // Each is set: those that follow from others by default collide.
        for (name, port) in [
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
            ("s3.port", s3),
            ("s3.port.grpc", s3_grpc),
        ] {
            weed.arg(format!("-{name}={port}"));
        }
        self.site.spawn("weed", &mut weed);
        // It can store once the filer has written something through a volume, and the gateway answers.
        self.site.wait_until("SeaweedFS that stores", || {
            let put = Request { method: "PUT", target: "/ready/yes", fields: &[], body: b"yes" };
            let health = Request { method: "GET", target: "/healthz", fields: &[], body: b"" };
            put.ask(filer).is_ok_and(|answer| answer.head.status() == 201)
                && health.ask(s3).is_ok_and(|answer| answer.head.status() == 200)
        });
    }

    /// Ends it at once, as a loss of power does.
    pub fn kill(&self) {
        self.site.kill("weed");
    }

    /// Port of the S3 gateway.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.s3
    }

    /// A new bucket.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Place {
        let target = format!("/buckets/{name}/");
        let _ =
            Request { method: "POST", target: &target, fields: &[], body: b"" }.ask(self.ports.filer).unwrap().good();
        Place {
            location: format!("s3://{name}/"),
            options: vec![format!("endpoint=http://127.0.0.1:{}", self.ports.s3), "region=us-east-1".to_owned()],
            environment: KEY.map(|(name, value)| (name, value.to_owned())).to_vec(),
        }
    }
}
