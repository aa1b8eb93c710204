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
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The key that is known, as AWS calls its two halves.
pub const KEY: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "COFFERKEY"), ("AWS_SECRET_ACCESS_KEY", "COFFERSECRET")];

/// Whether its S3 gateway speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    Off,
    /// With a certificate that it signed itself, for `localhost` and 127.0.0.1.
    On,
}

/// A running SeaweedFS.
pub struct SeaweedFs {
    site: Site,
    ports: Ports,
    tls: Tls,
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
        SHARED.get_or_init(|| SeaweedFs::start(Tls::Off))
    }

    /// One of the caller's own, which may be stopped. About 4 s.
    #[must_use]
    pub fn start(tls: Tls) -> SeaweedFs {
        let site = Site::new("seaweedfs");
        let [s3, filer, others @ ..] = free_ports::<8>();
        let seaweed = SeaweedFs { site, ports: Ports { s3, filer, others }, tls };
        let credentials = json!([{ "accessKey": KEY[0].1, "secretKey": KEY[1].1 }]);
        let identity = json!({
            "name": "coffer",
            "credentials": credentials,
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        });
        let identities = json!({ "identities": [identity] }).to_string();
        std::fs::write(seaweed.site.folder().join("s3.json"), identities).unwrap();
        std::fs::create_dir(seaweed.site.folder().join("store")).unwrap();
        if tls == Tls::On {
            let names = ["localhost", "127.0.0.1"].map(str::to_owned);
            let pair = rcgen::generate_simple_self_signed(names).unwrap();
            std::fs::write(seaweed.certificate(), pair.cert.pem()).unwrap();
            std::fs::write(seaweed.site.folder().join("s3.key"), pair.signing_key.serialize_pem()).unwrap();
        }
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
        if self.tls == Tls::On {
            weed.args(["-s3.cert.file=s3.pem", "-s3.key.file=s3.key"]);
        }
        self.site.spawn("weed", &mut weed);
        // It can store once the filer has written something through a volume, and the gateway answers.
        self.site.wait_until("SeaweedFS that stores", || {
            let put = Request { method: "PUT", target: "/ready/yes", fields: &[], body: b"yes" };
            let health = Request { method: "GET", target: "/healthz", fields: &[], body: b"" };
            let is_healthy = || match self.tls {
                Tls::Off => health.ask(s3).is_ok_and(|answer| answer.head.status() == 200),
                // What it says to who does not speak TLS.
                Tls::On => health.ask(s3).is_ok_and(|answer| answer.head.status() == 400),
            };
            put.ask(filer).is_ok_and(|answer| answer.head.status() == 201) && is_healthy()
        });
    }

    /// Ends it at once, as a loss of power does.
    pub fn kill(&self) {
        self.site.kill("weed");
    }

    /// The file with the certificate of TLS.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.site.folder().join("s3.pem")
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
        let scheme = if self.tls == Tls::On { "https" } else { "http" };
        Place {
            location: format!("s3://{name}/"),
            options: vec![format!("endpoint={scheme}://127.0.0.1:{}", self.ports.s3), "region=us-east-1".to_owned()],
            environment: KEY.map(|(name, value)| (name, value.to_owned())).to_vec(),
        }
    }
}
