//! TLS: our client, libnbd's and QEMU's against our server; who gets in, and who is told what.

use crate::certificates::Authority;
use crate::programs::{Server as Outside, run};
use coffer_gateway::nbd::{
    ClientOptions, Listener, NbdClient, NbdUri, Place, Server, ServerOptions, Tls, TlsDemand, TlsUri,
};
use coffer_gateway::{BlockDevice, Durability, Export, Exports, Kind, MemoryDevice, Permit};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

const MIB: u64 = 1 << 20;
const HOSTS: [&str; 2] = ["localhost", "127.0.0.1"];

struct Bench {
    server: Server,
    device: Arc<MemoryDevice>,
    reports: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

impl Bench {
    /// The exports `vda`, of everybody, and `private`, of whoever is called alice.
    fn new(tls: Option<Tls>, is_unix: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(MemoryDevice::new(16 * MIB));
        let bytes = (0..5 * MIB).map(|i| (i / 1000 + i) as u8 | 1).collect::<Vec<_>>();
        device.write_at(MIB, &bytes, Durability::Cached).unwrap();
        let exports = Arc::new(Exports::new());
        let shared: Arc<dyn BlockDevice> = device.clone();
        exports.add(Export::new("vda", Arc::clone(&shared))).unwrap();
        let access = coffer_gateway::Access::only([Permit::Certificate("alice".into())]);
        exports.add(Export { access, ..Export::new("private", shared) }).unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reports);
        let report: coffer_gateway::nbd::Report = Arc::new(move |e| sink.lock().unwrap().push(e.to_string()));
        let options = ServerOptions { tls, report: Some(report), ..ServerOptions::default() };
        let listener = match is_unix {
            true => Listener::Unix { path: dir.path().join("s"), mode: 0o600 },
            false => Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        };
        let server = Server::start(&listener, exports, options).unwrap();
        Bench { server, device, reports, dir }
    }

    fn uri(&self, export: &str, folder: &Path) -> NbdUri {
        let tls = Some(TlsUri { certificates: Some(folder.to_owned()), hostname: None });
        NbdUri { tls, ..self.server.uri(export) }
    }

    fn connect(&self, export: &str, folder: &Path) -> Result<NbdClient, coffer_gateway::Error> {
        NbdClient::connect(&self.uri(export, folder), &ClientOptions::default())
    }

    fn plain(&self, export: &str) -> Result<NbdClient, coffer_gateway::Error> {
        NbdClient::connect(&NbdUri { tls: None, ..self.server.uri(export) }, &ClientOptions::default())
    }

    /// An honest client is served as ever.
    fn is_well(&self, folder: &Path) {
        assert!(content(&self.connect("vda", folder).unwrap()) == content(&*self.device));
    }
}

fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut out = vec![0; device.size() as usize];
    device.read_at(0, &mut out).unwrap();
    out
}

#[test]
fn our_client_reads_and_writes_over_tls() {
    let authority = Authority::new();
    for is_unix in [true, false] {
        let bench = Bench::new(Some(authority.server(&HOSTS, false, TlsDemand::Required)), is_unix);
        let client = bench.connect("vda", &authority.client(None)).unwrap();
        assert!(content(&client) == content(&*bench.device), "unix: {is_unix}");
        std::thread::scope(|scope| {
            for t in 0..8_u64 {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..20_u64 {
                        let at = (round * 8 + t) * 65_536;
                        let bytes = vec![(t * 20 + round) as u8; if round == 7 { 65_536 } else { 5000 }];
                        client.write_at(at, &bytes, Durability::Cached).unwrap();
                        let mut out = vec![0; bytes.len()];
                        client.read_at(at, &mut out).unwrap();
                        assert!(out == bytes, "thread {t}, round {round}");
                    }
                });
            }
        });
        client.write_at(0, &vec![3; 4 * MIB as usize], Durability::Forced).unwrap();
        assert!(content(&client) == content(&*bench.device), "unix: {is_unix}");
        let connections = bench.server.connections();
        assert_eq!(connections.len(), 1);
        assert!(connections[0].is_encrypted && connections[0].export.as_deref() == Some("vda"), "{connections:?}");
        client.disconnect();
    }
}

#[test]
fn whoever_lacks_the_right_certificate_is_told_and_sent_away() {
    let (authority, other) = (Authority::new(), Authority::new());
    let bench = Bench::new(Some(authority.server(&HOSTS, true, TlsDemand::Required)), false);
    let alice = authority.client(Some("alice"));
    let refused = |attempt: Result<NbdClient, coffer_gateway::Error>| {
        let error = attempt.unwrap_err();
        (error.kind(), error.to_string())
    };
    let (kind, text) = refused(bench.plain("vda"));
    assert!(kind == Kind::Unsupported && text.contains("nbds://"), "{text}");
    let (kind, text) = refused(bench.connect("vda", &authority.client(None)));
    assert!(kind == Kind::Invalid && text.contains("CertificateRequired"), "{text}");
    let (kind, text) = refused(bench.connect("vda", &authority.client_of(&other, "alice")));
    assert_eq!(kind, Kind::Invalid, "a stranger's certificate: {text}");
    let (kind, text) = refused(bench.connect("vda", &other.client(Some("alice"))));
    assert!(
        kind == Kind::Invalid && text.contains("invalid peer certificate"),
        "a server that the client does not know: {text}"
    );
    let mut elsewhere = bench.uri("vda", &alice);
    elsewhere.tls.as_mut().unwrap().hostname = Some("elsewhere.example".into());
    let (kind, text) = refused(NbdClient::connect(&elsewhere, &ClientOptions::default()));
    assert!(kind == Kind::Invalid && text.contains("elsewhere.example"), "{text}");
    let unnamed = NbdUri { tls: Some(TlsUri::default()), ..bench.server.uri("vda") };
    let (kind, text) = refused(NbdClient::connect(&unnamed, &ClientOptions::default()));
    assert!(kind == Kind::Invalid && text.contains("tls-certificates"), "{text}");
    bench.is_well(&alice);
    let reports = std::mem::take(&mut *bench.reports.lock().unwrap());
    assert!(reports.iter().any(|r| r.contains("TLS with 127.0.0.1")), "{reports:?}");

    let without = Bench::new(None, true);
    let (kind, text) = refused(without.connect("vda", &alice));
    assert!(kind == Kind::Unsupported && text.contains("does not speak TLS"), "{text}");
}

#[test]
fn a_certificates_name_opens_what_it_is_allowed() {
    let authority = Authority::new();
    let bench = Bench::new(Some(authority.server(&HOSTS, true, TlsDemand::Allowed)), false);
    let (alice, bob) = (authority.client(Some("alice")), authority.client(Some("bob")));
    assert!(bench.connect("private", &alice).is_ok());
    assert_eq!(bench.connect("private", &bob).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(bench.plain("private").unwrap_err().kind(), Kind::NotFound);
    assert!(bench.connect("vda", &bob).is_ok() && bench.plain("vda").is_ok());
    let list = |folder: &Path| run("nbdinfo", &["--list", &bench.uri("", folder).to_string()]);
    assert!(list(&alice).contains("export=\"private\""));
    assert!(!list(&bob).contains("private"));
    // The empty name means the only one that bob may use.
    assert!(bench.connect("", &bob).is_ok());
    assert_eq!(bench.connect("", &alice).unwrap_err().kind(), Kind::NotFound);
    let reports = bench.reports.lock().unwrap();
    let due = "127.0.0.1 with the certificate of 'bob' asked for the export 'private', which it may not use";
    assert!(reports.iter().any(|r| r.contains(due)), "{reports:?}");
}

#[test]
fn others_read_over_tls() {
    let authority = Authority::new();
    let bench = Bench::new(Some(authority.server(&HOSTS, true, TlsDemand::Required)), false);
    let alice = authority.client(Some("alice"));
    let Place::Tcp(_, port) = bench.server.place() else { panic!("a port") };
    let due = content(&*bench.device);
    let uri = format!("nbds://localhost:{port}/private?tls-certificates={}", alice.display());
    let info = run("nbdinfo", &[&uri]);
    assert!(info.contains("protocol: newstyle-fixed with TLS"), "{info}");
    let copy = bench.dir.path().join("copy");
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == due);
    let object = format!("tls-creds-x509,id=t,dir={},endpoint=client", alice.display());
    let image =
        format!("driver=raw,file.driver=nbd,file.host=localhost,file.port={port},file.export=private,file.tls-creds=t");
    let converted = bench.dir.path().join("converted");
    let arguments = ["convert", "--object", &object, "--image-opts", &image, "-O", "raw", converted.to_str().unwrap()];
    run("qemu-img", &arguments);
    assert!(std::fs::read(&converted).unwrap() == due);
    let bob = format!("tls-creds-x509,id=t,dir={},endpoint=client", authority.client(Some("bob")).display());
    let refused =
        std::process::Command::new("qemu-img").args(["info", "--object", &bob, "--image-opts", &image]).output();
    assert!(!refused.unwrap().status.success());
    bench.is_well(&alice);
}

#[test]
fn our_client_reads_what_qemu_nbd_serves_over_tls() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let folder = authority.qemu_server(&HOSTS);
    let disk = dir.path().join("disk.raw");
    let due = (0..3 * MIB).map(|i| (i / 777) as u8).collect::<Vec<_>>();
    std::fs::write(&disk, &due).unwrap();
    let socket = dir.path().join("s");
    let at = format!("--socket={}", socket.display());
    let object = format!("--object=tls-creds-x509,id=t,endpoint=server,verify-peer=yes,dir={}", folder.display());
    let arguments =
        ["--persistent", "--shared=0", "--format=raw", &at, &object, "--tls-creds=t", disk.to_str().unwrap()];
    let server = Outside::start("qemu-nbd", &arguments, &socket);
    let tls = |folder| Some(TlsUri { certificates: Some(folder), hostname: None });
    let uri = NbdUri { tls: tls(authority.client(Some("alice"))), ..server.uri.clone() };
    let client = NbdClient::connect(&uri, &ClientOptions::default()).unwrap();
    assert!(content(&client) == due);
    let plain = NbdClient::connect(&server.uri, &ClientOptions::default()).unwrap_err();
    assert!(plain.kind() == Kind::Unsupported && plain.to_string().contains("nbds"), "{plain}");
    let nobody = NbdUri { tls: tls(authority.client(None)), ..server.uri.clone() };
    assert!(NbdClient::connect(&nobody, &ClientOptions::default()).is_err());
}
