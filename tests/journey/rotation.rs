//! Keys are rotated, and everything is sealed anew, killed in the middle, while a mount and a backup go on; afterwards the old
//! key opens nothing.

use coffer_repo::Kind;
use coffer_repo::backend::list_sorted;
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_tests::coffer::Coffer;
use coffer_tests::image::{self, MIB};
use coffer_tests::program::{Running, run};
use serde_json::Value;

const SEED: u64 = 20_271;
const MOVER: [&str; 2] = ["--key-file", "mover"];
const VAULT: [&str; 2] = ["--key-file", "vault"];
/// Memory for a few hundred frames at a time: sealing anew takes many batches.
const GC: [&str; 4] = ["gc", "--rotate", "--max-memory", "128K"];

fn status(coffer: &Coffer) -> Value {
    coffer.json(&["key", "status"])
}

fn left(coffer: &Coffer) -> u64 {
    status(coffer)["left"]["packs"].as_u64().unwrap()
}

/// How many data packs there are, and how many of them the repository's key opens.
fn opens(repo: &Repository) -> (usize, usize) {
    let packs = list_sorted(repo.backend(), PackKind::Data.prefix()).unwrap();
    let open = packs.iter().filter(|object| {
        let (kind, uid) = pack::parse_name(&object.name).unwrap();
        match repo.open_pack(kind, uid) {
            Ok(_) => true,
            Err(e) if e.kind() == Kind::WrongKey => false,
            Err(e) => panic!("{e:?}"),
        }
    });
    (packs.len(), open.count())
}

#[test]
fn everything_is_sealed_anew_while_it_is_used() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    let disk = |name: &str, megabytes: u64, seed: u64| {
        let size = megabytes * MIB;
        image::make(&coffer.path(&format!("{name}.raw")), size, &[0..size], SEED + seed);
    };
    for (seed, (name, megabytes)) in (1..).zip([("web", 160), ("mail", 32), ("db", 48), ("new", 24), ("late", 24)]) {
        disk(name, megabytes, seed);
    }
    coffer.run(&["key", "export-writer", "--new-key-file", "mover"]);
    let vault = coffer.json(&["key", "add", "--new-key-file", "vault", "--label", "vault"]);
    let vault = vault["id"].as_str().unwrap();
    coffer.run(&["backup", "-w", "web", "web.raw"]);
    run(&mut coffer.command_with(MOVER, &["backup", "-w", "mail", "mail.raw"]));
    std::fs::create_dir(coffer.path("mnt")).unwrap();
    let mount = coffer.start(&["mount", "mnt"], "mounted at");
    run(coffer.outside("bash").args(["-c", "cp -r repo/keys old-keys"]));

    let rotated = coffer.json(&["key", "rotate"]);
    assert_eq!((&rotated["epoch"], &rotated["finished"]), (&2.into(), &false.into()), "{rotated}");
    assert_eq!(rotated["behind"].as_array().unwrap().len(), 1, "{rotated}");
    assert_eq!(rotated["behind"][0]["id"], vault);
    // Both seal to the new key; the key that is behind reads what is old, says what it lacks, and can be added anew.
    coffer.run(&["backup", "-w", "db", "db.raw"]);
    run(&mut coffer.command_with(MOVER, &["backup", "-w", "new", "new.raw"]));
    let told = status(&coffer);
    let packs: Vec<u64> = (0..2).map(|n| told["epochs"][n]["packs"].as_u64().unwrap()).collect();
    assert!(packs[0] > 5 && packs[1] > 1 && told["left"]["packs"] == packs[0], "{told}");
    run(&mut coffer.command_with(VAULT, &["restore", "web@latest", "--to", "old.raw"]));
    coffer.assert_same("web.raw", "old.raw");
    let refused =
        coffer_tests::program::attempt(&mut coffer.command_with(VAULT, &["restore", "db@latest", "--to", "x"]));
    assert!(refused.status.code() == Some(1) && refused.err.contains("before data-key epoch 2"), "{refused}");
    coffer.run(&["key", "remove", vault]);
    coffer.run(&["key", "add", "--new-key-file", "vault-2"]);
    assert_eq!(status(&coffer)["behind"], Value::Array(Vec::new()));

    // Killed when the first pack is gone, several batches before its end.
    let old = coffer.objects("packs");
    let mut killed = Running::start(&mut coffer.command(&GC));
    killed.wait_until("a batch", |_| {
        let now = coffer.objects("packs");
        old.keys().any(|name| !now.contains_key(name))
    });
    killed.kill();
    let before = left(&coffer);
    assert!(before > 0 && before < packs[0], "{before} of {}", packs[0]);

    let sealing = Running::start(&mut coffer.command(&GC));
    let made = coffer.json(&["backup", "-w", "late", "late.raw"]);
    coffer.assert_same("mail.raw", "mnt/mail/latest/mail.raw");
    let ended = sealing.wait();
    assert!(ended.status.success(), "{ended}");
    assert_eq!(left(&coffer), 0);
    println!("{} packs were left after the kill, {}", before, ended.out.replace('\n', "; "));

    // The mount began when there was only the old key, and reads on; so does everybody who has the new one.
    for disk in ["web", "mail", "db", "new", "late"] {
        coffer.assert_same(&format!("{disk}.raw"), &format!("mnt/{disk}/latest/{disk}.raw"));
        coffer.assert_restores(&format!("{disk}@latest"), &format!("{disk}.raw"));
    }
    assert!(made["snapshot"]["id"].is_string(), "{made}");
    assert!(mount.terminate().status.success());
    let verified = coffer.json(&["verify", "--data", "all"]);
    assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
    let (packs, open) = opens(&coffer.open(|local| std::sync::Arc::new(local)));
    assert!(packs > 5 && open == packs, "{open} of {packs}");

    // The old slots, put back: they open the repository, and not one of its packs.
    run(coffer.outside("bash").args(["-c", "rm -r repo/keys && cp -r old-keys repo/keys"]));
    let (again, open) = opens(&coffer.open(|local| std::sync::Arc::new(local)));
    assert_eq!((again, open), (packs, 0));
    coffer.fails(&["restore", "web@latest", "--to", "y"], &["before data-key epoch 2"]);
}
