//! `coffer forget`: points that shall no longer count, by their names or by rules about which ones to keep.

use crate::context::{Context, choose_all, whole_points};
use crate::environment;
use crate::exit::{Result, wrong_use};
use crate::output::{self, short};
use coffer_repo::point::{self, PointName};
use coffer_repo::protection::Protected;
use coffer_repo::repository::Repository;
use coffer_repo::retention::{Candidate, Count, Rules, Stretch, TagList, Verdict, judge};
use coffer_repo::snapshot::Snapshot;
use coffer_repo::time::Timestamp;
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Forget points: they are listed no more, and their space becomes free for collection
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXPLANATION)]
pub(crate) struct Arguments {
    /// The points to forget. With rules: the workloads they are applied to, all if none is named
    #[arg(value_name = "POINT|WORKLOAD")]
    names: Vec<String>,

    #[command(flatten)]
    rules: RuleArguments,

    /// Look only at points with this tag, or all of several tags with commas between them; may be repeated
    #[arg(long, value_name = "TAG[,TAG..]", requires = "rules", help_heading = RULES)]
    tag: Vec<TagList>,

    /// Also apply rules that keep none of a workload's points
    #[arg(long, requires = "rules", help_heading = RULES)]
    allow_empty: bool,

    /// End a backup that is neither a point nor revoked, as 'coffer gc' names it
    #[arg(long, value_name = "ID", conflicts_with_all = ["names", "rules"])]
    undecided: Option<String>,

    /// Tell what would be forgotten, and forget nothing
    #[arg(long)]
    dry_run: bool,
}

const RULES: &str = "Rules";

const EXPLANATION: &str = "\
Rules are applied to each workload for itself, and a point stays when any of them keeps it. Hours, days, weeks (from \
Monday on), months and years are those of the calendar in UTC, and only those with a point count. While a rule has some \
of its count left at the oldest point, that stays too.

N is a number or 'unlimited'. LENGTH is years, months, days and hours, as in 2y5m7d3h, and counts back from the \
workload's newest point that is not in the future. TAG may be empty, for points without tags.

A protected point stays whatever the rules say; see 'coffer protect'.";

#[derive(Debug, clap::Args)]
#[group(id = "rules", multiple = true)]
struct RuleArguments {
    /// Keep the N newest points
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_last: Option<Count>,

    /// Keep the newest point of each of the last N hours that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_hourly: Option<Count>,

    /// Keep the newest point of each of the last N days that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_daily: Option<Count>,

    /// Keep the newest point of each of the last N weeks that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_weekly: Option<Count>,

    /// Keep the newest point of each of the last N months that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_monthly: Option<Count>,

    /// Keep the newest point of each of the last N years that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = RULES)]
    keep_yearly: Option<Count>,

    /// Keep the points that are younger than this
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within: Option<Stretch>,

    /// Of the points that are younger than this, keep the newest of each hour
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within_hourly: Option<Stretch>,

    /// Of the points that are younger than this, keep the newest of each day
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within_daily: Option<Stretch>,

    /// Of the points that are younger than this, keep the newest of each week
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within_weekly: Option<Stretch>,

    /// Of the points that are younger than this, keep the newest of each month
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within_monthly: Option<Stretch>,

    /// Of the points that are younger than this, keep the newest of each year
    #[arg(long, value_name = "LENGTH", help_heading = RULES)]
    keep_within_yearly: Option<Stretch>,

    /// Keep the points with this tag, or all of several tags with commas between them; may be repeated
    #[arg(long, value_name = "TAG[,TAG..]", help_heading = RULES)]
    keep_tag: Vec<TagList>,
}

impl RuleArguments {
    fn rules(&self) -> Rules {
        Rules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            within_hourly: self.keep_within_hourly,
            within_daily: self.keep_within_daily,
            within_weekly: self.keep_within_weekly,
            within_monthly: self.keep_within_monthly,
            within_yearly: self.keep_within_yearly,
            tags: self.keep_tag.clone(),
        }
    }
}

/// What the rules say of one workload.
struct Judged<'a> {
    workload: &'a str,
    /// Oldest first.
    points: Vec<(&'a Snapshot, Verdict)>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        if let Some(id) = &self.undecided {
            return self.end_undecided(id, context);
        }
        let rules = self.rules.rules();
        if rules == Rules::default() {
            return self.by_name(context);
        }
        if self.names.iter().any(|name| name.contains(['@', ':'])) {
            return Err(wrong_use("rules go with names of workloads: forget single points without rules"));
        }
        self.by_rules(context, &rules)
    }

    /// Gives up a backup that nobody decides any more.
    fn end_undecided(&self, id: &str, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let contested = repo.contested()?;
        let name = contested.iter().find(|name| name.id.to_string() == id).ok_or_else(|| {
            Error::not_found(format!(
                "there is no backup {id} that is neither a point nor revoked; 'coffer gc' names those"
            ))
        })?;
        if !self.dry_run {
            repo.forget(*name, environment::now()?)?;
        }
        let text = format!("{id} of {}\n{}", name.time, self.conclusion(1));
        context.print(json!({ "dry_run": self.dry_run, "ended": id }), &text)
    }

    fn by_name(&self, context: &Context) -> Result<()> {
        if self.names.is_empty() {
            return Err(wrong_use(
                "which points? Name them, or say by rules such as --keep-daily 7 which ones to keep",
            ));
        }
        let names = whole_points(&self.names)?;
        let repo = context.open()?;
        let all = context.points(&repo)?;
        // All are looked up before any is forgotten: "latest" means one thing in one command.
        let points = choose_all(&names, &all)?;
        self.carry_out(&repo, &repo.protected()?, &points)?;
        let lines: String =
            points.iter().map(|s| format!("{}@{} ({})\n", s.workload, s.time(), short(s.id()))).collect();
        let locked = locked_until(&repo, &points)?;
        let text = format!("{lines}{}{}", self.conclusion(points.len()), waiting(locked));
        let mut object = json!({ "dry_run": self.dry_run, "forgotten": objects(&points) });
        object["locked_until"] = locked.map(|time| time.to_string()).into();
        context.print(object, &text)
    }

    fn by_rules(&self, context: &Context, rules: &Rules) -> Result<()> {
        let repo = context.open()?;
        let all = context.points(&repo)?;
        let concerned = self.concerned(&all)?;
        let protected = repo.protected()?;
        let now = environment::now()?;
        let judged: Vec<Judged<'_>> = concerned
            .into_iter()
            .map(|(workload, points)| {
                let candidates: Vec<Candidate<'_>> = points.iter().map(|point| candidate(point, &protected)).collect();
                Judged { workload, points: points.into_iter().zip(judge(&candidates, rules, now)).collect() }
            })
            .collect();
        if !self.allow_empty {
            refuse_emptying(&judged)?;
        }
        let verdicts = judged.iter().flat_map(|workload| &workload.points);
        let going: Vec<&Snapshot> = verdicts.filter(|(_, verdict)| !verdict.stays()).map(|(point, _)| *point).collect();
        self.carry_out(&repo, &protected, &going)?;
        let tables: String = judged.iter().map(table).collect();
        let locked = locked_until(&repo, &going)?;
        let object = json!({
            "dry_run": self.dry_run,
            "locked_until": locked.map(|time| time.to_string()),
            "workloads": judged.iter().map(|workload| object(workload, &protected)).collect::<Vec<_>>(),
            "forgotten": objects(&going),
        });
        context.print(object, &format!("{tables}{}{}", self.conclusion(going.len()), waiting(locked)))
    }

    /// The points that rules look at, by workload and time.
    fn concerned<'a>(&self, all: &'a [Snapshot]) -> Result<BTreeMap<&'a str, Vec<&'a Snapshot>>> {
        for name in &self.names {
            let of = point::of_workload(all, name);
            if of.is_err() && PointName::parse(name).is_ok_and(|name| name.find(all).is_ok()) {
                return Err(wrong_use(format!("'{name}' is a point: forget single points without rules")));
            }
            of?;
        }
        let is_named = |point: &Snapshot| self.names.is_empty() || self.names.contains(&point.workload);
        let is_tagged = |point: &Snapshot| self.tag.is_empty() || self.tag.iter().any(|tag| tag.matches(&point.tags));
        let mut concerned = BTreeMap::<_, Vec<_>>::new();
        for point in all.iter().filter(|point| is_named(point) && is_tagged(point)) {
            concerned.entry(point.workload.as_str()).or_default().push(point);
        }
        Ok(concerned)
    }

    fn carry_out(&self, repo: &Repository, protected: &Protected, points: &[&Snapshot]) -> Result<()> {
        match self.dry_run {
            true => protected.allow_forgetting(points)?,
            false => repo.forget_points(points, protected, environment::now()?)?,
        }
        Ok(())
    }

    fn conclusion(&self, forgotten: usize) -> String {
        let points = if forgotten == 1 { "1 point".to_owned() } else { format!("{forgotten} points") };
        match (forgotten, self.dry_run) {
            (0, _) => "no point is forgotten\n".to_owned(),
            (_, true) => format!("{points} would be forgotten; this was a dry run\n"),
            (_, false) => format!("forgot {points}; 'coffer gc' frees the space that only they took\n"),
        }
    }
}

/// When the last of the claims' own locks ends: space that only these points took waits until then, at least in part.
fn locked_until(repo: &Repository, points: &[&Snapshot]) -> Result<Option<Timestamp>> {
    let locked = points.iter().filter(|point| point.lock_for.is_some());
    let Some(lock) = repo.backend().object_lock() else { return Ok(None) };
    let mut last = None;
    for point in locked {
        match lock.locked_until(&point.name.claim()) {
            Ok(until) => last = last.max(until),
            // Swept meanwhile.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(last)
}

fn waiting(locked: Option<Timestamp>) -> String {
    locked.map_or(String::new(), |until| {
        format!("locks hold their space until {until}; 'coffer gc' says how much waits\n")
    })
}

fn candidate<'a>(point: &'a Snapshot, protected: &Protected) -> Candidate<'a> {
    let is_protected = !protected.of(point.id()).is_empty();
    Candidate { id: point.id(), time: point.time(), tags: &point.tags, is_protected }
}

/// Rules that keep nothing are more likely a mistake than a wish.
fn refuse_emptying(judged: &[Judged<'_>]) -> Result<()> {
    let emptied = judged.iter().filter(|workload| workload.points.iter().all(|(_, verdict)| !verdict.stays()));
    let emptied: Vec<String> =
        emptied.map(|workload| format!("'{}' ({})", workload.workload, workload.points.len())).collect();
    if emptied.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the rules keep none of the points of {}; nothing was forgotten; if that is meant, say --allow-empty",
        emptied.join(", ")
    );
    Err(Error::new(Kind::Retained, why).into())
}

fn objects(points: &[&Snapshot]) -> Vec<Value> {
    points.iter().map(|point| output::snapshot(point)).collect()
}

fn object(judged: &Judged<'_>, protected: &Protected) -> Value {
    let points = judged.points.iter().map(|(point, verdict)| {
        let mut object = output::point(point, protected);
        object["keep"] = verdict.stays().into();
        object["reasons"] = verdict.keep.iter().map(ToString::to_string).collect::<Vec<_>>().into();
        object
    });
    json!({ "workload": judged.workload, "points": points.collect::<Vec<_>>() })
}

fn table(judged: &Judged<'_>) -> String {
    let rows = judged.points.iter().map(|(point, verdict)| {
        vec![
            point.time().to_string(),
            short(point.id()),
            point.tags.join(","),
            if verdict.stays() { "keep" } else { "remove" }.to_owned(),
            verdict.keep.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        ]
    });
    let staying = judged.points.iter().filter(|(_, verdict)| verdict.stays()).count();
    let table = output::table(&["time", "id", "tags", "action", "reasons"], usize::MAX, rows);
    format!("{}: {staying} of {} points stay\n{table}\n", judged.workload, judged.points.len())
}
