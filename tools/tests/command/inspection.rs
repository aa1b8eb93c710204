//! Looking into a repository: what differs, what takes how much, what is damaged.

use crate::stage::{Stage, disk, noise};
use serde_json::{Value, json};

#[test]
fn a_difference_is_exact_to_a_chunk() {
    let stage = Stage::with_repository();
    let mut bytes = disk(1);
    stage.back_up(&bytes);
    bytes[2 << 20] ^= 1;
    bytes.extend_from_slice(&noise(9, 4096));
    stage.back_up(&bytes);

    let found = stage.json(0, &["diff", "web@-1", "web@latest"]);
    let of = &found["disks"][0];
    assert_eq!(
        (&of["name"], &of["old_size"], &of["new_size"]),
        (&json!("disk"), &json!(bytes.len() - 4096), &json!(bytes.len()))
    );
    let ranges: Vec<(u64, u64)> = serde_json::from_value(of["ranges"].clone()).unwrap();
    let holds = |at: u64| ranges.iter().any(|(start, end)| (*start..*end).contains(&at));
    assert!(holds(2 << 20) && holds(bytes.len() as u64 - 1) && !holds(0), "{found}");
    assert_eq!(of["changed"], ranges.iter().map(|(start, end)| end - start).sum::<u64>());
    assert_eq!(found["changed"], of["changed"]);
    assert_eq!(found["old"]["workload"], "web");

    let text = stage.ok(&["diff", "web@-1:disk", "web@latest"]);
    assert!(
        text.contains("disk  2097152 to ") && text.contains(" changed, in ") && text.contains("disk: was "),
        "{text}"
    );
    let same = stage.json(0, &["diff", "web@latest", "web@latest"]);
    assert_eq!((&same["disks"][0]["ranges"], &same["changed"]), (&json!([]), &json!(0)));
}

#[test]
fn disks_that_only_one_point_has_are_named() {
    let stage = Stage::with_repository();
    stage.write("a.raw", &noise(1, 4096));
    stage.ok(&["backup", "-w", "web", "a=a.raw", "old=a.raw"]);
    stage.ok(&["backup", "-w", "web", "a=a.raw", "new=a.raw"]);
    let text = stage.ok(&["diff", "web@-1", "web@latest"]);
    assert_eq!(
        text,
        "a: 0 B of 4.00 KiB changed, in 0 ranges\nnew: only in the newer point\nold: only in the older point\n"
    );
    let found = stage.json(0, &["diff", "web@-1", "web@latest"]);
    assert_eq!(
        found["disks"][1],
        json!({ "name": "new", "ranges": [], "old_size": null, "new_size": 4096, "changed": 0 })
    );
    // Disks of two names are compared when they are named.
    assert_eq!(stage.json(0, &["diff", "web@-1:old", "web@latest:new"])["changed"], 0);
    stage.fails(2, "several disks", &["diff", "web@-1:a", "web@latest"]);
}

#[test]
fn what_is_unique_is_counted_once() {
    let stage = Stage::with_repository();
    assert_eq!(stage.json(0, &["stats"])["total"]["chunks"], 0);
    stage.write("shared.raw", &noise(1, 1 << 20));
    stage.write("own.raw", &noise(2, 1 << 20));
    stage.ok(&["backup", "-w", "web", "shared.raw"]);
    stage.ok(&["backup", "-w", "db", "shared.raw", "own.raw"]);
    let found = stage.json(0, &["stats"]);
    assert_eq!(found["logical"], 3 << 20);
    assert_eq!(found["total"]["bytes"], 2 << 20);
    assert!(found["total"]["stored_bytes"].as_u64().unwrap() > 2 << 20, "{found}");
    let unique = |list: &str, workload: &str| {
        let entries = found[list].as_array().unwrap();
        entries.iter().find(|entry| entry["workload"] == workload).unwrap()["unique"]["bytes"].clone()
    };
    for list in ["points", "workloads"] {
        assert_eq!((unique(list, "web"), unique(list, "db")), (json!(0), json!(1 << 20)), "{list}");
    }
    let text = stage.ok(&["stats"]);
    assert!(text.contains("2 points in 2 workloads, 3.00 MiB in all: made of 2.00 MiB"), "{text}");
}

#[test]
fn a_sound_repository_has_no_problems_and_a_damaged_one_says_what_is_hurt() {
    let stage = Stage::with_repository();
    stage.back_up(&disk(1));
    stage.write("other.raw", &noise(40, 1 << 20));
    stage.ok(&["backup", "-w", "db", "other.raw"]);
    for arguments in [&["verify"][..], &["verify", "--data", "50%"], &["verify", "--data", "all"]] {
        let sound = stage.json(0, arguments);
        assert_eq!((&sound["problems"], &sound["points"]), (&json!([]), &json!(2)), "{arguments:?}: {sound}");
    }
    assert!(stage.ok(&["verify"]).ends_with("nothing is wrong\n"));
    assert_eq!(stage.json(0, &["verify", "--data", "all"])["data_packs"], 2);
    assert_eq!(stage.json(0, &["verify"])["data_packs"], 0);

    // The first of the two data packs, somewhere in its chunks.
    let larger = |(_, bytes): &(_, Vec<u8>)| bytes.len();
    let packs = stage.objects().into_iter().filter(|(path, _)| path.starts_with(stage.path("r/packs")));
    let (path, mut bytes) = packs.max_by_key(larger).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(stage.json(0, &["verify"])["problems"], json!([]), "structure is whole");
    let repairable = stage.json(3, &["verify", "--data", "all"]);
    let problem = &repairable["problems"][0];
    assert_eq!((&problem["repairable"], &problem["hurts"]), (&json!(true), &json!([])), "{repairable}");
    assert!(stage.run(&["verify", "--data", "all"]).text().contains("hurts nothing yet"));
    stage.json(3, &["restore", "web@latest", "--to", "out.raw"]);
    assert_eq!(std::fs::read(stage.path("out.raw")).unwrap(), disk(1));

    let file = path.strip_prefix(stage.path("r/packs")).unwrap();
    std::fs::remove_file(stage.path("r/parity").join(file)).unwrap();
    let damaged = stage.json(1, &["verify", "--data", "all"]);
    let [problem] = damaged["problems"].as_array().unwrap().as_slice() else { panic!("{damaged}") };
    assert!(path.ends_with(problem["object"].as_str().unwrap()), "{problem}");
    let [hurt] = problem["hurts"].as_array().unwrap().as_slice() else { panic!("{damaged}") };
    assert_eq!((&hurt["workload"], &hurt["disk"]), (&json!("web"), &json!("disk")));
    let run = stage.run(&["verify", "--data", "all"]);
    assert_eq!((&damaged["without_parity"], &problem["repairable"]), (&json!(1), &json!(false)));
    assert!(run.code == 1 && run.text().contains("hurts web@") && run.stderr.contains("1 problem"), "{run:?}");

    // Where a pack is gone, its content is.
    std::fs::remove_file(&path).unwrap();
    let gone = stage.json(1, &["verify"]);
    let ranges = |found: &Value| found["problems"][0]["hurts"][0]["ranges"].clone();
    assert_eq!(ranges(&gone), json!([[0, 1 << 20], [2 << 20, disk(1).len()]]), "{gone}");
    for bad in ["0%", "most"] {
        stage.fails(2, "neither 'all' nor a share", &["verify", "--data", bad]);
    }
}

#[test]
fn a_writer_verifies_structure_only() {
    let stage = Stage::with_repository();
    stage.ok(&["key", "export-writer", "--new-key-file", "writer"]);
    stage.back_up(&disk(1));
    assert_eq!(stage.json(0, &["--key-file", "writer", "verify"])["problems"], json!([]));
    stage.fails(1, "writer's", &["--key-file", "writer", "verify", "--data", "all"]);
}
