//! A source with bad blocks: the backup fails and names them, or goes on and never passes them off as anything else.

use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::nbd::{self, NbdKit};
use coffer_tests::program::attempt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const SIZE: u64 = 4 * MIB;
const EXPORT: &str = "nbd+unix:///vda?socket=nbd.sock";
/// Two blocks.
const LOST: Range<u64> = MIB + 12_288..MIB + 20_480;

#[test]
fn what_cannot_be_read_is_named_and_stays_an_error() {
    let coffer = Coffer::new();
    image::make(&coffer.path("disk.raw"), SIZE, &[0..SIZE / 2, 3 * MIB..SIZE], 20_269);
    let disk = coffer.path("disk.raw");
    let pread = format!(
        "pread=if [ $4 -lt {} ] && [ $(($4 + $3)) -gt {} ]; then echo EIO a bad block >&2; exit 1; fi; \
         dd if={} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=64k status=none",
        LOST.end,
        LOST.start,
        disk.display()
    );
    let server = NbdKit::start(&["eval", &format!("get_size=echo {SIZE}"), &pread]);
    let source = format!("vda={}", server.uri);

    // The source's request that failed, and the way out.
    coffer.fails(&["backup", "-w", "web", &source], &["disk vda", "at offset 1048576: EIO", "keeping going"]);
    assert!(coffer.snapshots().is_empty());

    let made = coffer.warned(&["backup", "-w", "web", "--keep-going", &source]);
    let ranges = serde_json::json!([[LOST.start, LOST.end]]);
    assert_eq!(made["unreadable"]["vda"]["ranges"], ranges, "{made}");
    assert_eq!(made["snapshot"]["disks"][0]["unreadable"], LOST.end - LOST.start, "{made}");
    let named = format!("{} to {}", LOST.start, LOST.end);
    assert!(made["warnings"].to_string().contains(&named), "{made}");

    coffer.fails(&["restore", "web@latest", "--to", "failed.raw"], &[&named, "--keep-going"]);
    let restored = coffer.warned(&["restore", "web@latest", "--to", "restored.raw", "--keep-going"]);
    assert_eq!(restored["unreadable"]["ranges"], ranges, "{restored}");
    let zeroes = vec![0; usize::try_from(LOST.end - LOST.start).unwrap()];
    File::options().write(true).open(&disk).unwrap().write_all_at(&zeroes, LOST.start).unwrap();
    coffer.assert_same("disk.raw", "restored.raw");

    let _server = coffer.start(&["serve", "nbd", "--listen", "unix:nbd.sock", "vda=web@latest"], "listening on");
    let read = |range: Range<u64>| {
        let command = format!("read {} {}", range.start, range.end - range.start);
        let mut qemu_io = coffer.outside("qemu-io");
        attempt(qemu_io.args(["-r", "-f", "raw", "-c", &command, EXPORT]))
    };
    for lost in [LOST, LOST.start..LOST.start + 512, LOST.end - 512..LOST.end, LOST.start - 4096..LOST.end + 4096] {
        let ended = read(lost);
        assert!((ended.out.clone() + &ended.err).contains("Input/output error"), "{ended}");
    }
    for readable in [0..LOST.start, LOST.end..SIZE] {
        let ended = read(readable);
        assert!(ended.status.success() && !ended.out.contains("error"), "{ended}");
    }
    // What is lost is no hole, and nobody is to skip it.
    let data = nbd::data(&mut coffer.outside("nbdinfo"), EXPORT);
    assert_eq!(data, [0..SIZE / 2, 3 * MIB..SIZE]);
}
