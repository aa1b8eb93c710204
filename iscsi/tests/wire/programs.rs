//! Outside programs: libiscsi's and QEMU's initiators.

use crate::bench::{Bench, TARGET, target};
use coffer_gateway::{Export, MemoryDevice};
use coffer_iscsi::{Chap, Credentials, Guest, Secret, ServerOptions};
use std::process::{Command, Output};
use std::sync::Arc;

fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}; see tests/setup.sh"));
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {arguments:?}: {text}");
    text
}

#[test]
fn libiscsis_tools_find_the_target_and_its_disks() {
    let bench = Bench::new();
    let listed = run("iscsi-ls", &["-s", &format!("iscsi://{}", bench.address)]);
    assert!(listed.contains(TARGET) && listed.contains(&format!("{},1", bench.address)), "{listed}");
    assert_eq!(listed.matches("DIRECT_ACCESS").count(), 2, "{listed}");
    let inquired = run("iscsi-inq", &[&format!("iscsi://{}/{TARGET}/1", bench.address)]);
    assert!(inquired.contains("Peripheral Device Type:DIRECT_ACCESS"), "{inquired}");
}

#[test]
fn libiscsis_suite_has_nothing_to_say_against_the_protocol() {
    let bench = Bench::new();
    let url = format!("iscsi://{}/{TARGET}/0", bench.address);
    for family in ["iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF"] {
        let told = run("iscsi-test-cu", &["--dataloss", "-v", "-t", &format!("ALL.{family}"), &url]);
        // What is expected to fail says so in brackets.
        assert!(!told.lines().any(|line| line == "FAILED" || line.ends_with("...FAILED")), "{told}");
        assert!(told.lines().any(|line| line.ends_with("passed")), "{told}");
    }
}

#[test]
fn qemu_writes_and_reads_back() {
    let chap = |secret: &str| {
        let initiator = Credentials { name: "qemu".into(), secret: Secret::new(secret).unwrap() };
        Chap::new(initiator, None).unwrap()
    };
    let guest = Guest { chap: Some(chap("a secret of qemu")), ..Guest::default() };
    let options = ServerOptions { allow_md5: true, ..crate::bench::options() };
    let bench = Bench::with(options, Vec::new());
    let disk = Arc::new(Export::new("guarded", Arc::new(MemoryDevice::new(16 << 20))));
    bench.server.add_target(target("iqn.x:guarded", &[disk], vec![guest])).unwrap();
    let guarded = |password: &str| {
        format!(
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={},file.target=iqn.x:guarded,file.lun=0,file.user=qemu,file.password-secret={password}",
            bench.address
        )
    };
    let secret = |id: &str, data: &str| format!("secret,id={id},data={data}");
    let io = |commands: &[&str], how: &[&str]| {
        let commands = commands.iter().flat_map(|command| ["-c", *command]);
        run("qemu-io", &how.iter().copied().chain(commands).collect::<Vec<_>>())
    };
    let commands = [
        "write -P 0x5a 1M 3M",
        "write -P 3 8k 4k",
        "write -z -u 2M 64k",
        "discard 3M 64k",
        "flush",
        "read -P 0x5a 1M 1M",
        "read -P 0 2M 64k",
        "read -P 3 8k 4k",
        "aio_read 0 1M",
        "aio_write -P 9 5M 1M",
        "aio_flush",
        "read -P 9 5M 1M",
    ];
    let told = io(&commands, &["-f", "raw", &format!("iscsi://{}/{TARGET}/1", bench.address)]);
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
    let (object, image) = (secret("right", "a secret of qemu"), guarded("right"));
    let told = io(&commands, &["--object", &object, "--image-opts", &image]);
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
    let (object, image) = (secret("wrong", "another secret!"), guarded("wrong"));
    let arguments = ["--object", &object, "--image-opts", &image, "-c", "read 0 512"];
    let refused = Command::new("qemu-io").args(arguments).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
}
