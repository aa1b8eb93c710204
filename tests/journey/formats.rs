//! One disk in every image format, and through a pipe: all come out as the same bytes, and are stored once.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::run;
use std::fs::File;

const SIZE: u64 = 32 * MIB;

#[test]
fn every_image_format_is_the_disk_in_it() {
    let coffer = Coffer::new();
    let qemu_img = |arguments: &[&str]| run(coffer.outside("qemu-img").args(arguments));
    // A base of some age, changes above it in an overlay, and the disk that both make.
    image::make(&coffer.path("base.raw"), SIZE, &[0..5 * MIB, 9 * MIB + 512..12 * MIB, SIZE - MIB..SIZE], 20_272);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2"]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "chain.qcow2"]);
    let writes = ["-c", "write -P 0x5a 1M 200k", "-c", "write -z 10M 1M", "-c", "write -P 0xa5 20M 300k"];
    run(coffer.outside("qemu-io").args(["-f", "qcow2"]).args(writes).arg("chain.qcow2"));
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", "chain.qcow2", "disk.raw"]);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "compressed.qcow2"]);
    for format in ["vmdk", "vhdx", "vdi"] {
        qemu_img(&["convert", "-f", "raw", "-O", format, "disk.raw", &format!("disk.{format}")]);
    }

    let first = coffer.json(&["backup", "-w", "raw", "disk.raw"]);
    assert!(first["new_bytes"].as_u64().unwrap() > 8 * MIB, "{first}");
    let disks = ["chain", "compressed", "vmdk", "vhdx", "vdi", "raw"];
    let files = ["chain.qcow2", "compressed.qcow2", "disk.vmdk", "disk.vhdx", "disk.vdi", "disk.raw"];
    let sources: Vec<String> = disks.iter().zip(files).map(|(disk, file)| format!("{disk}={file}")).collect();
    let mut backup = vec!["backup", "-w", "all"];
    backup.extend(sources.iter().map(String::as_str));
    let made = coffer.json(&backup);
    assert_eq!(made["new_bytes"], 0, "{made}");
    let listed = made["snapshot"]["disks"].as_array().unwrap();
    assert_eq!(listed.iter().map(|disk| disk["name"].as_str().unwrap()).collect::<Vec<_>>(), disks);
    for disk in disks {
        coffer.assert_restores(&format!("all@latest:{disk}"), "disk.raw");
    }

    let input = File::open(coffer.path("disk.raw")).unwrap();
    run(coffer.command(&["backup", "-w", "pipe", "-"]).stdin(input));
    coffer.assert_restores("pipe@latest", "disk.raw");
    let restored = File::create(coffer.path("piped.raw")).unwrap();
    assert!(coffer.command(&["restore", "pipe@latest", "--to", "-"]).stdout(restored).status().unwrap().success());
    coffer.assert_same("disk.raw", "piped.raw");

    let left: Vec<_> = std::fs::read_dir(coffer.path("scratch")).unwrap().collect();
    assert!(left.is_empty(), "sockets of qemu-nbd stayed behind: {left:?}");
}
