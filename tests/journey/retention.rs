//! Points of three years are thinned out by rules; what is protected stays; what stays can be read.

use coffer_repo::time::Timestamp;
use coffer_tests::coffer::Coffer;
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskContent;
use coffer_tests::rig::{Job, open_index};
use serde_json::Value;
use std::sync::Arc;

const SEED: u64 = 20_271;

const RULES: [&str; 12] = [
    "forget",
    "--keep-last=2",
    "--keep-hourly=4",
    "--keep-daily=5",
    "--keep-weekly=3",
    "--keep-monthly=4",
    "--keep-yearly=3",
    "--keep-within=1h",
    "--keep-tag=audit,2025",
    "--keep-tag=legal",
    "web",
    "web",
];

/// The points of `web`, oldest first: when each is made, and what keeps it.
fn story() -> Vec<(String, &'static str)> {
    let mut points = Vec::new();
    for (day, kept) in [("2023-07-01", "protected"), ("2024-02-29", ""), ("2024-12-31", "yearly")] {
        points.push((format!("{day}T12-00-00Z"), kept));
    }
    for month in 1..=12 {
        let kept = match month {
            3 => "tags audit,2025",
            10 | 11 => "monthly",
            12 => "monthly, yearly",
            _ => "",
        };
        points.push((format!("2025-{month:02}-15T12-00-00Z"), kept));
    }
    for day in 1..=20 {
        let kept = match day {
            3 => "protected",
            11 => "weekly",
            16 | 17 | 19 => "daily",
            // A Sunday.
            18 => "daily, weekly",
            _ => "",
        };
        points.push((format!("2026-01-{day:02}T02-00-00Z"), kept));
    }
    for hour in 3..=8 {
        let kept = match hour {
            5 | 6 => "hourly",
            7 => "last, hourly",
            8 => "within 1h, last, hourly, daily, weekly, monthly, yearly",
            _ => "",
        };
        points.push((format!("2026-01-20T{hour:02}-00-00Z"), kept));
    }
    points
}

/// Backs up a disk at times of the past: the program itself goes by the clock.
fn back_up(coffer: &Coffer, workload: &str, times: &[&str], disk: &DiskContent) {
    let repo = coffer.open(|local| Arc::new(local));
    let index = open_index(&repo, &coffer.path("index")).unwrap();
    for time in times {
        let tags: &[&str] = match &time[..7] {
            "2025-03" => &["2025", "audit"],
            "2025-04" => &["audit"],
            _ => &[],
        };
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let seconds = time.parse::<Timestamp>().unwrap().seconds();
        Job::new(workload, seconds, vec![("disk", disk)]).prepare(&repo, &index).unwrap().commit(tags).unwrap();
    }
}

fn times(points: &Value) -> Vec<&str> {
    points.as_array().unwrap().iter().map(|point| point["time"].as_str().unwrap()).collect()
}

#[test]
fn rules_thin_out_years_and_protected_points_stay() {
    println!("seed {SEED}");
    let coffer = Coffer::new();
    let mut bytes = vec![0; 200_000];
    Dice::new(SEED).noise(&mut bytes);
    std::fs::write(coffer.path("disk.raw"), &bytes).unwrap();
    let disk = DiskContent::from(bytes);
    let story = story();
    let of_web: Vec<&str> = story.iter().map(|(time, _)| time.as_str()).collect();
    let of_db = ["2025-12-30T00-00-00Z", "2025-12-31T00-00-00Z"];
    back_up(&coffer, "web", &of_web, &disk);
    back_up(&coffer, "db", &of_db, &disk);
    coffer.run(&["protect", "web@2023-07-01T12-00-00Z", "web@2026-01-03T02-00-00Z", "--reason", "before the move"]);

    // The plan: what stays and why, of the workload that was named, and nothing is done.
    let objects = coffer.objects("");
    let plan = coffer.json(&[&RULES[..], &["--dry-run"]].concat());
    let [web] = plan["workloads"].as_array().unwrap().as_slice() else { panic!("{plan}") };
    assert_eq!((&web["workload"], &plan["dry_run"]), (&"web".into(), &true.into()));
    for ((time, kept), point) in story.iter().zip(web["points"].as_array().unwrap()) {
        let reasons: Vec<&str> = point["reasons"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        assert_eq!((point["time"].as_str().unwrap(), reasons.join(", ").as_str()), (time.as_str(), *kept));
        assert_eq!(point["keep"], !kept.is_empty(), "{point}");
    }
    let table = coffer.run(&[&RULES[..], &["--dry-run"]].concat());
    assert!(table.starts_with("web: 16 of 41 points stay\ntime "), "{table}");
    assert!(table.ends_with("25 points would be forgotten; this was a dry run\n"), "{table}");
    let rows = |action: &str| table.lines().filter(|line| line.split_whitespace().any(|word| word == action)).count();
    assert_eq!((rows("keep"), rows("remove")), (16, 25), "{table}");
    assert_eq!(coffer.objects(""), objects);

    // The same for real; doing it twice changes nothing.
    let done = coffer.json(&RULES);
    assert_eq!((&done["forgotten"], &done["workloads"]), (&plan["forgotten"], &plan["workloads"]));
    assert_eq!((times(&done["forgotten"]).len(), coffer.objects("forgets").len()), (25, 25));
    let stay: Vec<&str> = story.iter().filter(|(_, kept)| !kept.is_empty()).map(|(time, _)| time.as_str()).collect();
    assert_eq!(times(&coffer.json(&["snapshots", "web"])["snapshots"]), stay);
    assert_eq!(coffer.json(&RULES)["forgotten"], Value::Array(Vec::new()));
    assert_eq!(times(&coffer.json(&["snapshots", "db"])["snapshots"]), of_db);
    for point in [format!("web@{}", stay[0]), "web@latest".to_owned()] {
        coffer.assert_restores(&point, "disk.raw");
    }

    // Rules that empty one workload do nothing to the others either.
    let points = coffer.snapshots();
    coffer.fails(&["forget", "--keep-last=0"], &["'db' (2)", "nothing was forgotten", "--allow-empty"]);
    coffer.fails(&["forget", "--keep-tag=tpyo", "db"], &["'db' (2)", "--allow-empty"]);
    assert_eq!(coffer.snapshots(), points);
    let text = coffer.run(&["forget", "--keep-last=0", "--allow-empty"]);
    assert!(text.contains("db: 0 of 2 points stay\n") && text.contains("web: 2 of 16 points stay\n"), "{text}");
    assert!(text.ends_with("forgot 16 points; 'coffer gc' frees the space that only they took\n"), "{text}");

    // What is protected goes neither by rules nor by name, until it is not any more.
    let oldest = format!("web@{}", stay[0]);
    coffer.fails(&["forget", "web@latest", &oldest], &["is protected (before the move)", "coffer unprotect"]);
    assert_eq!(coffer.snapshots().len(), 2);
    coffer.run(&["unprotect", &oldest]);
    let forgotten = coffer.json(&["forget", "--keep-last=0", "--allow-empty", "web"]);
    assert_eq!(times(&forgotten["forgotten"]), [stay[0]]);
    let left = coffer.snapshots();
    assert_eq!(times(&left.into()), ["2026-01-03T02-00-00Z"]);
    coffer.run(&["gc"]);
    coffer.assert_restores("web@latest", "disk.raw");
    coffer.run(&["verify", "--data", "all"]);
}

#[test]
fn only_points_with_a_tag_are_looked_at() {
    let coffer = Coffer::new();
    let disk = DiskContent::from(vec![7; 4096]);
    let times_made = ["2025-03-01T00-00-00Z", "2025-03-02T00-00-00Z", "2025-04-01T00-00-00Z", "2025-05-01T00-00-00Z"];
    back_up(&coffer, "web", &times_made, &disk);
    let both = coffer.json(&["forget", "--keep-last=1", "--tag=2025,audit", "--dry-run"]);
    assert_eq!(times(&both["workloads"][0]["points"]), times_made[..2]);
    let either = coffer.json(&["forget", "--keep-last=1", "--tag=2025", "--tag=audit", "--dry-run"]);
    assert_eq!(times(&either["forgotten"]), times_made[..2]);
    // Others of the workload are no reason to empty what is looked at.
    coffer.fails(&["forget", "--keep-last=0", "--tag=audit"], &["'web' (3)", "--allow-empty"]);
    let done = coffer.json(&["forget", "--keep-last=0", "--tag=audit", "--allow-empty"]);
    assert_eq!(times(&done["forgotten"]), times_made[..3]);
    assert_eq!(times(&coffer.snapshots().into()), times_made[3..]);
}
