//! Ceph on one node, in memory: a monitor, a manager, an object store and the RADOS Gateway, which speaks S3 and Swift.
//!
//! Not here: RBD. What holds: buckets of S3 are containers of Swift, and are made by the latter, so that nothing here signs
//! requests. All keys are in the monitor's keyring before it starts: the cluster is asked nothing that it can be told.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::seaweedfs::KEY;
use super::site::Site;
use super::{Place, free_ports};
use crate::http::Request;
use crate::program::{attempt, outside, run};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// User and key of Swift's first protocol.
pub const SWIFT: [(&str, &str); 2] = [("ST_USER", "coffer:swift"), ("ST_KEY", "SWIFTSECRET")];
/// Any: there is one cluster a folder.
const FSID: &str = "0c0ffe40-0000-4000-8000-0000000c0ffe";
const OSD: &str = "0c0ffe40-0000-4000-8000-00000000d15c";

/// A running Ceph.
pub struct Ceph {
    site: Site,
    rgw: u16,
}

/// `{folder}` is this cluster's; the daemons write nowhere else.
const CONF: &str = "
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
keyring = {folder}/keyring
log file = {folder}/log/$name.log
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
crash dir = {folder}
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{rgw}
rgw data = {folder}/rgw
rgw swift account in url = true
rgw bucket quota ttl = 0
";

impl Ceph {
    /// The one that the tests of this binary share. About 15 s.
    #[must_use]
    pub fn shared() -> &'static Ceph {
        static SHARED: OnceLock<Ceph> = OnceLock::new();
        SHARED.get_or_init(Ceph::start)
    }

    fn start() -> Ceph {
        let site = Site::new("ceph");
        let [v1, v2, rgw] = free_ports();
        let ceph = Ceph { site, rgw };
        let folder = ceph.folder();
        for sub in ["mon", "mgr", "osd", "rgw"] {
            std::fs::create_dir(folder.join(sub)).unwrap();
        }
        let mut conf = CONF.to_owned();
        let values = [("v1", v1.to_string()), ("v2", v2.to_string()), ("rgw", rgw.to_string())];
        for (name, value) in
            values.into_iter().chain([("fsid", FSID.to_owned()), ("folder", folder.to_str().unwrap().to_owned())])
        {
            conf = conf.replace(&format!("{{{name}}}"), &value);
        }
        std::fs::write(folder.join("ceph.conf"), conf).unwrap();
        ceph.make_keyring();
        ceph.start_cluster(v1, v2);
        ceph.start_gateway();
        ceph
    }

    fn folder(&self) -> &Path {
        self.site.folder()
    }

    /// One of its programs, told where the cluster is.
    fn program(&self, name: &str) -> Command {
        let mut command = outside(name);
        command.current_dir(self.folder()).args(["-c", "ceph.conf"]);
        command
    }

    fn make_keyring(&self) {
        let all: &[&str] = &["mon", "allow *", "osd", "allow *", "mgr", "allow *"];
        let entities: [(&str, &[&str]); 5] = [
            ("mon.", &["mon", "allow *"]),
            ("client.admin", all),
            ("client.rgw", all),
            ("mgr.x", &["mon", "allow profile mgr", "osd", "allow *"]),
            ("osd.0", &["mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd"]),
        ];
        run(outside("ceph-authtool").arg("--create-keyring").arg(self.folder().join("keyring")));
        for (name, caps) in entities {
            let mut tool = outside("ceph-authtool");
            tool.arg(self.folder().join("keyring")).args(["--gen-key", "-n", name]);
            for cap in caps.chunks(2) {
                tool.arg("--cap").args(cap);
            }
            run(&mut tool);
        }
    }

    fn start_cluster(&self, v1: u16, v2: u16) {
        let addresses = format!("[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]");
        let mut map = outside("monmaptool");
        map.current_dir(self.folder()).args(["--create", "--fsid", FSID, "--addv", "a", &addresses, "monmap"]);
        run(&mut map);
        run(self.program("ceph-mon").args(["-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "keyring"]));
        std::fs::copy(self.folder().join("keyring"), self.folder().join("mon/keyring")).unwrap();
        self.site.spawn("mon", self.program("ceph-mon").args(["-i", "a", "-f"]));
        self.site.spawn("mgr", self.program("ceph-mgr").args(["-i", "x", "-f"]));
        // It waits for the monitor by itself.
        run(self.program("ceph").args(["--connect-timeout", "60", "osd", "new", OSD]));
        run(self.program("ceph-osd").args(["-i", "0", "--mkfs", "--osd-uuid", OSD]));
        self.site.spawn("osd", self.program("ceph-osd").args(["-i", "0", "-f"]));
    }

    fn start_gateway(&self) {
        let mut admin = self.program("radosgw-admin");
        admin.args(["user", "create", "--uid=coffer", "--display-name=coffer"]);
        run(admin.args([format!("--access-key={}", KEY[0].1), format!("--secret={}", KEY[1].1)]));
        let mut admin = self.program("radosgw-admin");
        admin.args(["subuser", "create", "--uid=coffer", "--access=full", "--key-type=swift"]);
        run(admin.args([format!("--subuser={}", SWIFT[0].1), format!("--secret={}", SWIFT[1].1)]));
        self.site.spawn("rgw", self.program("radosgw").args(["-n", "client.rgw", "-f"]));
        self.site.wait_until("a gateway that knows the user", || self.token().is_some());
    }

    /// Where Swift's account is, and a token for it.
    fn token(&self) -> Option<(String, String)> {
        let fields = [("X-Auth-User", SWIFT[0].1), ("X-Auth-Key", SWIFT[1].1)];
        let answer = Request { method: "GET", target: "/auth/v1.0", fields: &fields, body: b"" }.ask(self.rgw).ok()?;
        let url = answer.head.field("X-Storage-Url")?;
        // http://127.0.0.1:7480/swift/v1/AUTH_coffer -> /swift/v1/AUTH_coffer
        let path = url.splitn(4, '/').nth(3)?;
        Some((format!("/{path}"), answer.head.field("X-Auth-Token")?.to_owned()))
    }

    /// Port of the gateway.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.rgw
    }

    fn make(&self, bucket: &str) {
        let (account, token) = self.token().unwrap();
        let target = format!("{account}/{bucket}");
        let fields = [("X-Auth-Token", token.as_str())];
        let _ = Request { method: "PUT", target: &target, fields: &fields, body: b"" }.ask(self.rgw).unwrap().good();
    }

    /// A new bucket, by S3.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Place {
        self.make(name);
        Place {
            location: format!("s3://{name}/"),
            options: vec![format!("endpoint=http://127.0.0.1:{}", self.rgw), "region=us-east-1".to_owned()],
            environment: KEY.map(|(name, value)| (name, value.to_owned())).to_vec(),
        }
    }

    /// A new container, by Swift.
    #[must_use]
    pub fn container(&self, name: &str) -> Place {
        self.make(name);
        Place {
            location: format!("swift://{name}/"),
            options: vec![format!("auth-url=http://127.0.0.1:{}/auth/v1.0", self.rgw), "auth=v1".to_owned()],
            environment: SWIFT.map(|(name, value)| (name, value.to_owned())).to_vec(),
        }
    }

    /// From now on the bucket takes no more than so many bytes.
    pub fn limit(&self, bucket: &str, bytes: u64) {
        let (bucket, size) = (format!("--bucket={bucket}"), format!("--max-size={bytes}"));
        run(self.program("radosgw-admin").args(["quota", "set", "--quota-scope=bucket", &bucket, &size]));
        run(self.program("radosgw-admin").args(["quota", "enable", "--quota-scope=bucket", &bucket]));
    }

    /// Whether anything keeps the cluster from working, in its own words.
    #[must_use]
    pub fn status(&self) -> String {
        attempt(self.program("ceph").args(["--connect-timeout", "30", "-s"])).out
    }
}
