//! A gateway: one process that offers disks while exports come and go, by its configuration file and by command.
//!
//! ```text
//!   signals ----+
//!   commands ---+-> events -> one thread that opens, adds, removes and closes     this file
//!                                |                 \
//!                            Exports (table)     remembered (what was added by command)
//!                                |
//!                             Servers, metrics        targets (iSCSI: disks of their own)
//! ```
//! Not here: what an export is made of ([`super::offer`]), what is said over the control socket ([`coffer_gateway::control`]). What holds:
//! one gateway at a time has a state folder; all changes are made by one thread, in the order in which they were asked for; an
//! addition by command is answered when it is remembered durably; what one export lacks is no other's affair. Clients of an export
//! that is removed keep it, and its fork is closed within a second of the last one's leaving.

use super::configuration::{self, Configuration, Frame};
use super::offer::{ExportSpec, Offer, OpenFork, Opened, Opener, refuse_unused};
use super::place::{self, Place};
use super::remembered::{Remembered, name_of};
use super::targets::{Followed, Targets};
use crate::context::Context;
use crate::exit::{Failure, Result, describe, wrong_use};
use crate::settings::Settings;
use crate::signal::{self, Wish};
use coffer_gateway::control::{Addition, Answer, ControlServer, ExportReport, Question};
use coffer_gateway::nbd::{Server, ServerOptions};
use coffer_gateway::{Export, Exports};
use coffer_repo::{Error, Kind};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Between two looks at clients of exports that were removed.
const LOOK: Duration = Duration::from_millis(500);
/// Signals and commands that may wait.
const EVENTS: usize = 64;

/// Something to be done.
enum Event {
    Signal(Wish),
    /// A question, and where its answer goes.
    Question(Question, SyncSender<Answer>),
}

/// Where an export that is offered comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Configuration(Box<Offer>),
    Command,
}

/// An export that is offered, or was.
struct Standing {
    export: Arc<Export>,
    origin: Origin,
    fork: Option<OpenFork>,
}

/// What the one thread works with.
struct Gateway<'a> {
    context: &'a Context,
    opener: Opener<'a>,
    exports: Arc<Exports>,
    servers: Arc<Vec<Server>>,
    standing: BTreeMap<String, Standing>,
    /// Removed, and perhaps still in the hands of clients.
    leaving: Vec<Standing>,
    remembered: Remembered,
    targets: Option<Targets>,
    frame: Frame,
    has_certificates: bool,
}

/// Where the control socket is, unless the configuration says otherwise.
pub(crate) fn control_path(settings: &Settings) -> Result<PathBuf> {
    Ok(settings.state()?.join("gateway.sock"))
}

/// Sees whether a configuration is right, as far as that can be told without opening anything.
pub(super) fn check(file: &Path) -> Result<()> {
    configuration::read(file).map(|_| ())
}

/// Runs a gateway until a signal ends it.
pub(super) fn run(context: &Context, file: &Path, metrics: Option<&Place>) -> Result<()> {
    let Configuration { frame, exports, targets } = configuration::read(file)?;
    let _lock = lock(context.settings.state()?)?;
    let tls = frame.encryption.open()?;
    let listeners = place::listeners(&frame.listen, frame.socket_mode)?;
    let (events, due) = sync_channel(EVENTS);
    let signals = events.clone();
    signal::wishes(&context.terminal, move |wish| {
        // Whoever does not receive any more is ending anyway; nobody waits for a reload that is due already.
        let _ = match wish {
            Wish::Stop => signals.send(Event::Signal(wish)).is_ok(),
            Wish::Reload => signals.try_send(Event::Signal(wish)).is_ok(),
        };
    })?;
    let opener = Opener::new(context, frame.budgets.reader_options())?;
    let folder = opener.state_folder()?;
    let table = Arc::new(Exports::new());
    let mut gateway = Gateway {
        context,
        opener,
        targets: None,
        exports: Arc::clone(&table),
        servers: Arc::default(),
        standing: BTreeMap::new(),
        leaving: Vec::new(),
        remembered: Remembered::open(&folder)?,
        has_certificates: frame.encryption.tls_client_ca.is_some(),
        frame,
    };
    for offer in exports {
        gateway.configure(offer)?;
    }
    gateway.restore();
    if let Some(iscsi) = &gateway.frame.iscsi {
        gateway.targets = Some(Targets::start(context, iscsi, &targets, &mut gateway.opener)?);
    }
    let options = ServerOptions {
        max_connections: gateway.frame.max_connections,
        requests_in_flight: gateway.frame.max_requests.into(),
        tls,
        report: Some(super::report(context)),
        ..ServerOptions::default()
    };
    gateway.servers = super::start(&listeners, &table, &options)?;
    let place = metrics.or(gateway.frame.metrics.as_ref());
    let iscsi = gateway.targets.as_ref().map(Targets::server);
    let metrics =
        place.map(|place| super::start_metrics(context, place, &table, &gateway.servers, iscsi)).transpose()?;
    let path = match &gateway.frame.control {
        Some(path) => path.clone(),
        None => control_path(&context.settings)?,
    };
    let control = ControlServer::start(&path, move |question| pass_on(&events, question))?;
    for server in gateway.servers.iter() {
        context.terminal.notice(format_args!("listening on {}", server.uri("")));
    }
    context.terminal.notice(format_args!("{} exports; controlled at {}", gateway.standing.len(), path.display()));
    gateway.work(&due, file);
    // Nobody waits for an answer any more that would not come.
    drop(due);
    drop(control);
    drop(metrics);
    drop(table);
    gateway.end();
    Ok(())
}

/// One gateway has a state folder.
fn lock(state: &Path) -> Result<File> {
    let path = state.join("gateway.lock");
    let failed = |e: std::io::Error| Error::io(path.display().to_string(), e);
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            let way_out = "'coffer export add' adds to it, and --state DIR names another folder";
            let text = format!("another gateway runs on the state folder {}; {way_out}", state.display());
            Err(Error::new(Kind::Locked, text).into())
        }
        Err(e) => Err(failed(e.into()).into()),
    }
}

/// Hands a question to the one thread, and waits for its answer.
fn pass_on(events: &SyncSender<Event>, question: Question) -> Answer {
    let ending = || Answer::Failed(Error::new(Kind::Unavailable, "the gateway is stopping"));
    let (answer, answered) = sync_channel(1);
    match events.send(Event::Question(question, answer)) {
        Ok(()) => answered.recv().unwrap_or_else(|_| ending()),
        Err(_) => ending(),
    }
}

impl Gateway<'_> {
    /// Does what is asked for until it is to stop.
    fn work(&mut self, due: &Receiver<Event>, file: &Path) {
        loop {
            // An error otherwise says that nobody can ask for anything any more.
            let is_waiting = !self.leaving.is_empty() || self.targets.as_ref().is_some_and(Targets::is_leaving);
            let event = match !is_waiting {
                true => due.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => due.recv_timeout(LOOK),
            };
            match event {
                Ok(Event::Signal(Wish::Reload)) => self.reload(file),
                Ok(Event::Question(question, answer)) => {
                    let said = self.answer(question).unwrap_or_else(Answer::Failed);
                    // Whoever asked may have gone.
                    let _ = answer.send(said);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Signal(Wish::Stop)) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.let_go();
        }
    }

    fn answer(&mut self, question: Question) -> coffer_repo::Result<Answer> {
        match question {
            Question::List => Ok(Answer::Exports(self.list())),
            Question::Targets => self.targets().map(|targets| Answer::Objects(targets.targets())),
            Question::Sessions => self.targets().map(|targets| Answer::Objects(targets.sessions())),
            Question::Add(addition) => self.add(addition).map(Answer::Done).map_err(Failure::into_error),
            Question::Remove { name, disconnect } => self.remove(&name, disconnect).map(Answer::Done),
        }
    }

    fn targets(&self) -> coffer_repo::Result<&Targets> {
        let none = "this gateway has no iSCSI portal: its configuration lacks [iscsi]";
        self.targets.as_ref().ok_or_else(|| Error::not_found(none))
    }

    /// Opens an export and offers it.
    fn offer(&mut self, offer: &Offer, origin: Origin) -> Result<(Arc<Export>, String)> {
        let name = &offer.spec.name;
        if self.standing.contains_key(name) {
            let text = format!("there is an export '{name}' already; choose another name, or remove it");
            return Err(Error::new(Kind::Locked, text).into());
        }
        if offer.names_certificate() && !self.has_certificates {
            return Err(wrong_use("cert: needs TLS with client certificates: 'client-ca' in the configuration"));
        }
        let Opened { export, fork, meant, is_compared, .. } = self.opener.open(offer)?;
        refuse_unused(&offer.changed_since, &is_compared, "there is no such point of that machine")?;
        let export = self.exports.add(export)?;
        self.standing.insert(name.clone(), Standing { export: Arc::clone(&export), origin, fork });
        Ok((export, meant))
    }

    /// Offers what the configuration says.
    fn configure(&mut self, offer: Offer) -> Result<()> {
        let origin = Origin::Configuration(Box::new(offer.clone()));
        let name = offer.spec.name.clone();
        match self.offer(&offer, origin) {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.into_error().within(format_args!("export '{name}'")).into()),
        }
    }

    /// Offers again what was added by command. What cannot be is warned of, and stays remembered.
    fn restore(&mut self) {
        for addition in self.remembered.additions().to_vec() {
            let offered = parse(&addition).and_then(|offer| self.offer(&offer, Origin::Command));
            if let Err(failure) = offered {
                let (name, why) = (name_of(&addition), describe(&failure.into_error()));
                let way_out = format!("'coffer export remove {name}' forgets it");
                self.context.terminal.warn(format_args!("export '{name}' is not offered again: {why}; {way_out}"));
            }
        }
    }

    /// Offers what a command says, from now on and after a restart.
    fn add(&mut self, addition: Addition) -> Result<String> {
        let offer = parse(&addition)?;
        let name = offer.spec.name.clone();
        if self.remembered.additions().iter().any(|other| name_of(other) == name) {
            let text = format!("there is an export '{name}' already; choose another name, or remove it");
            return Err(Error::new(Kind::Locked, text).into());
        }
        self.opener.refresh()?;
        let (export, meant) = self.offer(&offer, Origin::Command)?;
        if let Err(e) = self.remembered.add(Addition { export: meant, ..addition }) {
            self.withdraw(&name);
            return Err(e.within("the export could not be remembered and is not offered").into());
        }
        let places: Vec<String> = self.servers.iter().map(|server| server.uri(&name).to_string()).collect();
        Ok(format!("{name} is {}, at {}", export.description, places.join(" and ")))
    }

    /// Offers it no more; one of the configuration is there again after a restart.
    fn remove(&mut self, name: &str, disconnect: bool) -> coffer_repo::Result<String> {
        let was_remembered = self.remembered.remove(name)?;
        let Some(export) = self.withdraw(name) else {
            let leaving: Vec<_> = self.leaving.iter().filter(|standing| standing.export.name == name).collect();
            if disconnect && !leaving.is_empty() {
                leaving.iter().for_each(|standing| self.disconnect(&standing.export));
                return Ok(format!("{name} was removed before, and its last clients are disconnected"));
            }
            let names: Vec<&str> = self.standing.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return match was_remembered {
                true => Ok(format!("{name} is forgotten; it was not offered")),
                false => Err(Error::not_found(format!("there is no export '{name}'; there are: {names}"))),
            };
        };
        let clients = export.clients();
        Ok(match (clients, disconnect) {
            (0, _) => format!("{name} is removed"),
            (_, true) => {
                self.disconnect(&export);
                format!("{name} is removed, and its {clients} clients are disconnected")
            }
            (_, false) => format!("{name} is removed; {clients} clients still have it"),
        })
    }

    /// Sends its clients away.
    fn disconnect(&self, export: &Arc<Export>) {
        for server in self.servers.iter() {
            server.disconnect(export);
        }
    }

    /// Takes an export out of the table.
    fn withdraw(&mut self, name: &str) -> Option<Arc<Export>> {
        let standing = self.standing.remove(name)?;
        // It is there: the table changes here only.
        let _ = self.exports.remove(name);
        let export = Arc::clone(&standing.export);
        self.leaving.push(standing);
        Some(export)
    }

    /// Closes what was removed and has no client any more.
    fn let_go(&mut self) {
        let (unused, used): (Vec<_>, Vec<_>) =
            self.leaving.drain(..).partition(|standing| Arc::strong_count(&standing.export) == 1);
        self.leaving = used;
        unused.into_iter().for_each(|standing| self.close(standing));
        if let Some(targets) = &mut self.targets {
            targets.let_go(self.context);
        }
    }

    fn close(&self, standing: Standing) {
        drop(standing.export);
        standing.fork.into_iter().for_each(|fork| fork.close(&self.context.terminal));
    }

    fn list(&self) -> Vec<ExportReport> {
        let standing = self.standing.values().map(|standing| (standing, false));
        let leaving = self.leaving.iter().map(|standing| (standing, true));
        let report = |(Standing { export, origin, .. }, is_leaving): (&Standing, bool)| ExportReport {
            name: export.name.clone(),
            description: export.description.clone(),
            origin: match origin {
                Origin::Configuration(_) => "configuration".to_owned(),
                Origin::Command => "command".to_owned(),
            },
            size: export.device.size(),
            is_read_only: export.is_read_only(),
            is_leaving,
            clients: export.clients(),
            activity: export.activity().totals(),
        };
        standing.chain(leaving).map(report).collect()
    }

    /// Brings the exports of the configuration in step with the file. What is wrong with it is warned of, and the rest goes on.
    fn reload(&mut self, file: &Path) {
        let terminal = &self.context.terminal;
        let Configuration { frame, exports, targets } = match configuration::read(file) {
            Ok(configuration) => configuration,
            Err(failure) => {
                let why = describe(&failure.into_error());
                return terminal.warn(format_args!("the configuration was not read again: {why}"));
            }
        };
        if frame != self.frame {
            terminal.notice("places, TLS, limits of the whole and budgets change with a restart only");
        }
        if let Err(failure) = self.opener.refresh() {
            let why = describe(&failure.into_error());
            return terminal.warn(format_args!("the configuration was read again and not followed: {why}"));
        }
        let is_meant = |standing: &Standing| match &standing.origin {
            Origin::Configuration(offer) => exports.contains(offer),
            Origin::Command => true,
        };
        let gone: Vec<String> =
            self.standing.iter().filter(|(_, s)| !is_meant(s)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| drop(self.withdraw(name)));
        let (mut added, mut failed) = (0, 0);
        for offer in exports {
            let is_there = self
                .standing
                .get(&offer.spec.name)
                .is_some_and(|standing| matches!(&standing.origin, Origin::Configuration(old) if **old == offer));
            if is_there {
                continue;
            }
            match self.configure(offer) {
                Ok(()) => added += 1,
                Err(failure) => {
                    failed += 1;
                    self.context.terminal.warn(describe(&failure.into_error()));
                }
            }
        }
        let mut removed = gone.len();
        if let Some(standing) = &mut self.targets {
            let followed = standing.follow(&targets, &mut self.opener);
            let Followed { added: more, removed: fewer, failed: wrong } = followed;
            (added, removed, failed) = (added + more, removed + fewer, failed + wrong.len());
            wrong.iter().for_each(|error| self.context.terminal.warn(describe(error)));
        }
        let text = format!("read the configuration again: {added} exports added, {removed} removed, {failed} failed");
        self.context.terminal.notice(text);
    }

    /// Answers what is in flight, sends clients away, flushes and closes forks, and lets points go.
    fn end(mut self) {
        super::stop(std::mem::take(&mut self.servers));
        if let Some(targets) = self.targets.take() {
            targets.end(self.context);
        }
        let all: Vec<Standing> =
            std::mem::take(&mut self.standing).into_values().chain(self.leaving.drain(..)).collect();
        let names: Vec<String> = self.exports.all().iter().map(|export| export.name.clone()).collect();
        for name in names {
            // It is there: the table changes here only.
            let _ = self.exports.remove(&name);
        }
        all.into_iter().for_each(|standing| self.close(standing));
    }
}

/// What an addition means.
fn parse(addition: &Addition) -> Result<Offer> {
    let spec: ExportSpec = addition.export.parse()?;
    Offer::of(spec, &addition.allow, addition.limit.as_deref(), &[]).map_err(wrong_use)
}
