//! `coffer probe`: what the store can be relied on for.

use crate::context::{Context, entropy};
use crate::environment;
use crate::exit::Result;
use crate::output;
use crate::signal;
use crate::store;
use coffer_repo::backend::Backend;
use coffer_repo::cancel::Cancel;
use coffer_repo::descriptor;
use coffer_repo::probe::{ProbeOptions, ProbeReport, Promise, probe};
use coffer_repo::store_class::StoreClass;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Connections that look at each other's work.
const CONNECTIONS: usize = 3;

/// Find out by trying what the store can be relied on for; what a repository's store is found to be is remembered in it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often everything is tried
    #[arg(long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u32).range(3..=1_000_000))]
    rounds: u32,

    /// How many put the same name at the same time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u8).range(2..=64))]
    racers: u8,

    /// Seconds after which no further round is begun
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: u64,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let address = context.address()?;
        let connections = connect(|| store::open_existing(&address))?;
        let [first, ..] = &connections;
        // Whoever is asked for a passphrase should not be asked in vain, nor wait for it.
        let repo = match first.size(descriptor::OBJECT_NAME)? {
            Some(_) => Some(context.open()?),
            None => None,
        };
        let options = ProbeOptions {
            racers: usize::from(self.racers),
            rounds: self.rounds,
            limit: Duration::from_secs(self.limit),
            now: environment::now()?,
        };
        let cancel = signal::cancel(&context.terminal)?;
        let report = probe(&connections, &options, &*entropy(), &cancel)?;
        let recorded = match &repo {
            Some(repo) => Some((repo.store_class(), repo.record_store_class(report.class)?)),
            None => None,
        };
        if let Some((Some(before), now)) = recorded
            && now > before
        {
            context.terminal.warn(format_args!(
                "the store was taken for '{before}' so far; backups that run now should be ended and begun again"
            ));
        }
        let counts = recorded.map(|(_, now)| now);
        context.print(object(&report, counts), &text(&report, counts))
    }
}

/// Tries the store of a repository that is to be, and says in it what it was found to be.
pub(crate) fn before_init(connect_one: impl Fn() -> Result<Arc<dyn Backend>>) -> Result<ProbeReport> {
    let connections = connect(connect_one)?;
    let options = ProbeOptions { racers: 4, rounds: 12, limit: Duration::from_secs(20), now: environment::now()? };
    let report = probe(&connections, &options, &*entropy(), &Cancel::default())?;
    let [first, ..] = &connections;
    report.class.record(&**first)?;
    Ok(report)
}

fn connect(one: impl Fn() -> Result<Arc<dyn Backend>>) -> Result<[Arc<dyn Backend>; CONNECTIONS]> {
    Ok([one()?, one()?, one()?])
}

pub(crate) fn class_object(class: Option<StoreClass>) -> Value {
    class.map_or(Value::Null, |class| Value::String(class.to_string()))
}

fn object(report: &ProbeReport, recorded: Option<StoreClass>) -> Value {
    let promises = Promise::ALL.map(|promise| {
        let breach = report.breaches.get(&promise);
        json!({
            "promise": promise.to_string(),
            "broken_rounds": breach.map_or(0, |breach| breach.rounds),
            "example": breach.map(|breach| breach.example.clone()),
        })
    });
    json!({
        "class": report.class.to_string(),
        "meaning": report.class.meaning(),
        "rounds": report.rounds,
        "disturbed_rounds": report.troubled,
        "promises": promises,
        "known": report.known.as_ref().map(|(_, why)| why.clone()),
        "recorded": class_object(recorded),
    })
}

fn text(report: &ProbeReport, recorded: Option<StoreClass>) -> String {
    let promises = Promise::ALL.map(|promise| match report.breaches.get(&promise) {
        None => vec![promise.to_string(), "kept".to_owned(), String::new()],
        Some(breach) => vec![promise.to_string(), format!("broken in {}", breach.rounds), breach.example.clone()],
    });
    let title = format!("of {} rounds", report.rounds);
    let mut text = format!(
        "{}\nclass      {}: {}\n",
        output::table(&["promise", &title, "for example"], 3, promises.into_iter()),
        report.class,
        report.class.meaning()
    );
    if let Some((_, why)) = &report.known {
        text += &format!("known      {why}\n");
    }
    if report.troubled > 0 {
        text += &format!("disturbed  {} rounds, by errors that pass\n", report.troubled);
    }
    text += &match recorded {
        None => "recorded   nowhere: there is no repository here\n".to_owned(),
        Some(recorded) if recorded == report.class => format!("recorded   {recorded}\n"),
        Some(recorded) => format!(
            "recorded   {recorded}, by an earlier probe, and that goes on to count: what a store broke once it may break again\n"
        ),
    };
    text
}
