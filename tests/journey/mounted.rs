//! Outside programs read the mounted points as the files they are.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{outside, run};
use std::process::Command;

/// fio on `file` with checksums in every block of 4 KiB.
fn fio(coffer: &Coffer, file: &str, how: &[&str]) -> Command {
    let mut fio = coffer.outside("fio");
    fio.args(["--name=verify", "--bs=4k", "--verify=crc32c", "--size=16m", "--randseed=7", "--invalidate=0"])
        .args([&format!("--filename={file}"), "--ioengine=psync", "--verify_state_save=0"])
        .args(how);
    fio
}

#[test]
fn outside_programs_read_a_mount_while_backups_go_on() {
    let coffer = Coffer::new();
    image::make_ext4(&coffer.path("root.raw"), 64 * MIB, 20_263);
    run(&mut fio(&coffer, "checked.raw", &["--rw=write", "--do_verify=0"]));
    let made = coffer.json(&["backup", "-w", "web", "root.raw", "checked.raw"]);
    let time = made["snapshot"]["time"].as_str().unwrap();

    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mut mount = coffer.start(&["mount", "mnt"], "mounted at");
    let list = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(coffer.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(list("mnt"), ["web"]);
    assert_eq!(list("mnt/web"), [time, "latest"]);
    assert_eq!(list(&format!("mnt/web/{time}")), ["checked.raw", "root.raw"]);
    coffer.assert_same("root.raw", "mnt/web/latest/root.raw");
    run(outside("e2fsck").arg("-fn").arg(coffer.path("mnt/web/latest/root.raw")));
    for order in ["read", "randread"] {
        let file = format!("mnt/web/{time}/checked.raw");
        run(&mut fio(&coffer, &file, &[&format!("--rw={order}"), "--verify_only", "--readonly"]));
    }

    image::make_ext4(&coffer.path("mail.raw"), 32 * MIB, 20_264);
    let made = coffer.json(&["backup", "-w", "mail", "mail.raw"]);
    let file = format!("mnt/mail/{}/mail.raw", made["snapshot"]["time"].as_str().unwrap());
    mount.wait_until("the new point", |_| coffer.path(&file).exists());
    coffer.assert_same("mail.raw", &file);
    assert_eq!(list("mnt"), ["mail", "web"]);

    let ended = mount.terminate();
    assert!(ended.status.success(), "{ended}");
    assert_eq!(list("mnt"), [""; 0]);
}
