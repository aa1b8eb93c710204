//! Azurite: Microsoft's emulator of Azure's blobs.
//!
//! Not here: tables and queues, which it has as well. What holds: one account is known, and a container is made by a
//! request signed with its key, since Azurite has no other way.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use super::site::Site;
use super::{Place, free_ports, installed};
use crate::http::Request;
use crate::program::outside;
use aws_lc_rs::hmac;
use std::sync::OnceLock;

const ACCOUNT: &str = "coffer";
/// 33 bytes, so that their base64 has no padding.
const KEY: &[u8; 33] = b"the-key-of-an-account-for-testing";
const VERSION: &str = "2021-12-02";

/// A running Azurite.
pub struct Azurite {
    /// Keeps it running.
    _site: Site,
    port: u16,
}

impl Azurite {
    /// The one that the tests of this binary share. About 2 s.
    #[must_use]
    pub fn shared() -> &'static Azurite {
        static SHARED: OnceLock<Azurite> = OnceLock::new();
        SHARED.get_or_init(Azurite::start)
    }

    fn start() -> Azurite {
        let site = Site::new("azurite");
        let [port] = free_ports();
        let mut node = outside("node");
        node.arg(installed("azurite/node_modules/azurite/dist/src/blob/main.js"))
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location", "store"])
            .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"])
            .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{}", base64(KEY)))
            .current_dir(site.folder());
        site.spawn("azurite", &mut node);
        site.wait_until("Azurite that answers", || {
            Request { method: "GET", target: "/", fields: &[], body: b"" }.ask(port).is_ok()
        });
        Azurite { _site: site, port }
    }

    /// A new container.
    #[must_use]
    pub fn container(&self, name: &str) -> Place {
        // Azurite does not look at how old a request is.
        let date = "Sun, 22 Nov 2026 12:00:00 GMT";
        // With the account in the path it is there twice: once as the resource's owner, once as a part of its path.
        let signed = format!(
            "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{VERSION}\n\
             /{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        );
        let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), signed.as_bytes());
        let authorization = format!("SharedKey {ACCOUNT}:{}", base64(code.as_ref()));
        let fields = [("x-ms-date", date), ("x-ms-version", VERSION), ("Authorization", authorization.as_str())];
        let target = format!("/{ACCOUNT}/{name}?restype=container");
        let _ = Request { method: "PUT", target: &target, fields: &fields, body: b"" }.ask(self.port).unwrap().good();
        Place {
            location: format!("azblob://{name}/"),
            options: vec![format!("endpoint=http://127.0.0.1:{}/{ACCOUNT}", self.port), format!("account={ACCOUNT}")],
            environment: vec![("AZURE_STORAGE_KEY", base64(KEY))],
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|three| {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        let digit = move |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]);
        (0..4).map(move |i| if i <= three.len() { digit(i) } else { '=' })
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_what_its_standard_says() {
        let known =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\u{ff}", "w78=")];
        known.iter().for_each(|(bytes, text)| assert_eq!(base64(bytes.as_bytes()), *text));
    }
}
