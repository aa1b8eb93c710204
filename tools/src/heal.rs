//! `coffer heal`: replaces what is damaged, from wherever its bytes may still be had.

use crate::context::Context;
use crate::environment;
use crate::exit::Result;
use crate::output::size;
use crate::settings::{Opener, StoreOption, parse_option};
use crate::signal;
use crate::store;
use crate::terminal::{Sample, Unit};
use crate::verify;
use coffer_mover::donor;
use coffer_mover::source::{self, DiskSource, SourceOptions};
use coffer_repo::backend::Backend;
use coffer_repo::backend::address::Address;
use coffer_repo::backend::local::Local;
use coffer_repo::descriptor;
use coffer_repo::heal::{Donor, DonorDisk, HealOptions, HealProgress, HealReport, heal};
use coffer_repo::verify::{DataCheck, VerifyOptions};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Heal: replace damaged content by its parity, and from other repositories, disks and files that hold it
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where damaged bytes may still be had: a repository, the live disk, any file that holds them; it is known by its id what
    /// they are. As often as there are such places
    #[arg(long, value_name = "LOCATION|[DISK=]SOURCE")]
    from: Vec<String>,

    /// Say something about the object stores after --from, as -o does about this one
    #[arg(long, value_name = "NAME=VALUE", requires = "from", value_parser = parse_option)]
    from_option: Vec<StoreOption>,

    /// Open the repositories after --from by the passphrase in this file. Without it by what opens this one
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "from_key_file")]
    from_password_file: Option<PathBuf>,

    /// Open the repositories after --from by this key file
    #[arg(long, value_name = "FILE", requires = "from")]
    from_key_file: Option<PathBuf>,

    /// How much content is read to find what is damaged, as with 'verify'; 'none' finds what is missing only
    #[arg(long, value_name = "all|none|N%|oldest:N%", default_value = "all", value_parser = parse_share)]
    data: DataCheck,

    /// Show what could be healed, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Also make parity for packs that have none, and for all new ones from now on
    #[arg(long)]
    parity: bool,
}

/// What `--from` names, open.
enum Opened {
    Repository(Donor<'static>),
    Source(Box<dyn DiskSource>),
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open()?;
        let opened = self.from.iter().map(|from| self.open(context, from)).collect::<Result<Vec<_>>>()?;
        let mut sources = Vec::new();
        let mut donors = Vec::new();
        for opened in opened {
            match opened {
                Opened::Repository(donor) => donors.push(donor),
                Opened::Source(source) => sources.push(source),
            }
        }
        let mut disks = Vec::new();
        for source in &sources {
            source.warnings().iter().for_each(|warning| context.terminal.warn(warning));
            disks.extend(donor::disks(&**source)?);
        }
        donors.extend(disks.iter().map(|disk| Donor::Disk(disk as &dyn DonorDisk)));
        let now = environment::now()?;
        let keep = (!self.dry_run).then_some(now);
        let options = HealOptions {
            verify: VerifyOptions { data: self.data, keep, ..VerifyOptions::default() },
            dry_run: self.dry_run,
            parity: self.parity,
            identity: environment::identity(),
            now,
        };
        let cancel = signal::cancel(&context.terminal)?;
        let progress = HealProgress::default();
        let work = || heal(&repo, &donors, &options, &progress, &cancel);
        let report = context.terminal.during("healing", Unit::Count, &|| sample(&progress), work)?;
        if !self.dry_run {
            verify::warn(context, &report.after);
        }
        context.print(self.object(&report), &self.text(&report))?;
        match self.dry_run {
            true => Ok(()),
            false => verify::fail_if_lost(&report.after, &repo.backend().location()),
        }
    }

    /// An object store or a folder with a repository in it is one; anything else is a source.
    fn open(&self, context: &Context, from: &str) -> Result<Opened> {
        let repository = match Address::is_object_store(from) {
            true => Some(store::address(from, &self.from_option)?),
            false => Some(Address::Folder(PathBuf::from(from))).filter(is_repository),
        };
        if let Some(address) = repository {
            let opener = match (&self.from_password_file, &self.from_key_file) {
                (Some(file), _) => Opener::PasswordFile(file.clone()),
                (None, Some(file)) => Opener::KeyFile(file.clone()),
                (None, None) => context.settings.opener.clone(),
            };
            return Ok(Opened::Repository(Donor::Repository(context.open_at(&address, &opener)?)));
        }
        // A disk in use may be changing: what is found in it is known by its id.
        let options = SourceOptions { live: true, scratch: environment::scratch(), ..SourceOptions::default() };
        Ok(Opened::Source(source::open(from, &options)?))
    }

    fn object(&self, report: &HealReport) -> Value {
        json!({
            "dry_run": self.dry_run,
            "healed": { "chunks": report.chunks, "nodes": report.nodes, "bytes": report.bytes },
            "sources": report.sources,
            "parities": report.parities,
            "after": verify::object(&report.after, !self.dry_run && report.after.not_kept.is_none()),
        })
    }

    fn text(&self, report: &HealReport) -> String {
        let verb = if self.dry_run { "could heal" } else { "healed" };
        let mut text = format!(
            "{verb} {} chunks and {} nodes of disk maps, {} in all\n",
            report.chunks,
            report.nodes,
            size(report.bytes)
        );
        for (source, count) in &report.sources {
            text += &format!("  {count} by {source}\n");
        }
        if report.parities > 0 {
            text += &format!("made parity for {} packs\n", report.parities);
        }
        if self.dry_run {
            return text + "nothing was changed: it was a dry run\n";
        }
        text + &verify::text(&report.after)
    }
}

/// Whether a folder holds a repository.
fn is_repository(address: &Address) -> bool {
    let Address::Folder(path) = address else { return false };
    path.is_dir() && Local::open(path).is_ok_and(|store| matches!(store.size(descriptor::OBJECT_NAME), Ok(Some(_))))
}

fn parse_share(text: &str) -> std::result::Result<DataCheck, String> {
    if text == "none" { Ok(DataCheck::None) } else { verify::parse_share(text) }
}

/// Wounds once they are known; until then what verification tells.
fn sample(progress: &HealProgress) -> Sample {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    match load(&progress.wounds) {
        0 => verify::sample(&progress.verify),
        wounds => {
            Sample { done: load(&progress.healed), total: Some(wounds), note: "chunks and nodes healed".to_owned() }
        }
    }
}
