//! `coffer restore`: a disk of a point becomes a file, a device or a stream.

use crate::context::{Context, choose_disk};
use crate::environment;
use crate::exit::{Result, wrong_use};
use crate::output::{self, size};
use crate::signal;
use crate::terminal::{Sample, Unit};
use crate::thaw::{self, Wish};
use coffer_gateway::SnapshotDevice;
use coffer_mover::image_format::ImageFormat;
use coffer_mover::restore::{RestoreOptions, RestoreProgress, RestoreReport, restore};
use coffer_mover::target::{self, RestoredDisk, Space, TargetOptions};
use coffer_repo::backend::archive::{Order, Speed};
use coffer_repo::backend::cached::Intake;
use coffer_repo::point::PointName;
use coffer_repo::reader::ReaderOptions;
use coffer_repo::{Error, Kind};
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How a target says that it is standard output.
const STANDARD_OUTPUT: &str = "-";

/// Restore a disk. Started again after it was interrupted, it goes on where it was, if the target is a file
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which disk
    #[arg(value_name = "POINT[:DISK]", value_parser = PointName::parse)]
    point: PointName,

    /// Where to: a file, a block device, an nbd:// URI or - for standard output
    #[arg(long, value_name = "TARGET")]
    to: String,

    /// The format of a file that is made: raw or qcow2. Without it qcow2 if it is named so, else raw
    #[arg(long, value_parser = str::parse::<ImageFormat>)]
    format: Option<ImageFormat>,

    /// Overwrite what the target holds
    #[arg(long)]
    force: bool,

    /// Restore as zeroes what could not be read when the backup was made or is damaged now, and name it
    #[arg(long)]
    keep_going: bool,

    /// Allocate the space of zeroes too
    #[arg(long)]
    preallocate: bool,

    /// Read the target back and compare it
    #[arg(long)]
    verify: bool,

    /// Have the store thaw what lies in a cold tier, and wait for it. Without it such a restore ends before it writes anything
    #[arg(long)]
    thaw: bool,

    /// For how many days what was thawed can be read
    #[arg(long, value_name = "N", requires = "thaw", default_value_t = Order::default().days, value_parser = thaw::days)]
    thaw_days: u32,

    /// How soon: standard, bulk or expedited, as 'coffer thaw' explains
    #[arg(long, value_name = "SPEED", requires = "thaw", default_value_t = Speed::default(), value_parser = str::parse::<Speed>)]
    thaw_speed: Speed,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let is_stream = self.to == STANDARD_OUTPUT;
        if is_stream && context.output.is_json {
            return Err(wrong_use("--json and the restored disk cannot both go to standard output"));
        }
        if self.point.path.is_some() {
            let why = "restoring files out of a disk is not in this version; name POINT[:DISK]";
            return Err(Error::new(Kind::Unsupported, why).into());
        }
        let repo = context.open_cached(Intake::Pass)?;
        let snapshot = context.find(&repo, &self.point)?;
        let disk = choose_disk(&self.point, &snapshot)?;
        let cancel = signal::cancel(&context.terminal)?;
        let pin = context.pin(&repo, &snapshot, "restore")?;
        let wish = match self.thaw {
            true => Wish::Wait(Order { days: self.thaw_days, speed: self.thaw_speed }),
            false => Wish::Refuse,
        };
        thaw::before_restore(context, &repo, (&snapshot, &disk.name), wish, &cancel)?;
        // The workers themselves are a crowd that reads long stretches: fetching ahead of them would only cost copies.
        let reader = context.reader(&repo, ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() })?;
        let device = SnapshotDevice::new(reader.disk(&snapshot, &disk.name)?, Some(pin));
        let device = if self.keep_going { device.salvaged() } else { device };

        let restored = RestoredDisk { snapshot: snapshot.id(), name: disk.name.clone(), size: disk.size };
        let options = TargetOptions {
            force: self.force,
            format: self.format,
            space: if self.preallocate { Space::Allocated } else { Space::Sparse },
            scratch: environment::scratch(),
        };
        let target = target::open(&self.to, &restored, &options)?;
        let options = RestoreOptions { keep_going: self.keep_going, verify: self.verify, ..RestoreOptions::default() };
        let progress = RestoreProgress::default();
        let sample = || self.sample(&progress, disk.size);
        let began = Instant::now();
        let report = context
            .terminal
            .during("restoring", Unit::Bytes, &sample, || restore(&device, target, &options, &progress, &cancel))?;
        let took = began.elapsed().as_secs_f64();
        for warning in &report.warnings {
            context.terminal.warn(warning);
        }
        if !report.unreadable.is_empty() {
            let named = output::ranges(&report.unreadable);
            context.terminal.warn(format_args!("disk {}: restored as zeroes, since lost: {named}", disk.name));
        }
        let text = format!(
            "restored {}@{}:{} to {} in {took:.1} s\n{}",
            snapshot.workload,
            snapshot.time(),
            disk.name,
            self.to,
            describe(&report)
        );
        if is_stream {
            context.terminal.notice(text.trim_end().replace('\n', "; "));
            return Ok(());
        }
        let object = json!({
            "snapshot": output::snapshot(&snapshot),
            "disk": disk.name,
            "target": self.to,
            "duration_seconds": took,
            "size": disk.size,
            "written": report.written,
            "zero": report.zero,
            "resumed": report.resumed,
            "verified": report.is_verified,
            "unreadable": output::ranges_object(&report.unreadable),
        });
        context.print(object, &text)
    }

    fn sample(&self, progress: &RestoreProgress, disk_size: u64) -> Sample {
        let RestoreProgress { written, zero, resumed, verified } = progress;
        let sum: u64 = [written, zero, resumed, verified].iter().map(|n| n.load(Ordering::Relaxed)).sum();
        let total = if self.verify { disk_size.saturating_mul(2) } else { disk_size };
        Sample { done: sum, total: Some(total), note: String::new() }
    }
}

fn describe(report: &RestoreReport) -> String {
    let mut text = format!("wrote {}, left out {} of zeroes", size(report.written), size(report.zero));
    if report.resumed > 0 {
        text += &format!(", found {} done by an earlier run", size(report.resumed));
    }
    if report.is_verified {
        text += ", read it back and found it right";
    }
    text + "\n"
}
