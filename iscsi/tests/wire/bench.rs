//! A server with disks that can be made to hang.

use crate::initiator::{Initiator, Login};
use coffer_gateway::serving::{Listener, Place};
use coffer_gateway::{BlockDevice, Durability, Error, Export, Extent, Kind, MemoryDevice, Result, Zeroing};
use coffer_iscsi::scsi::{Device, DeviceOptions, LunOptions, PortOptions};
use coffer_iscsi::{Guest, IscsiServer, PortalOptions, ServerOptions, TargetOptions};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(crate) const TARGET: &str = "iqn.2026-01.test:disk";
pub(crate) const SIZE: u64 = 64 << 20;

/// Waits for what comes soon; nothing is asserted about when.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < patience, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A disk in memory that hangs while it is closed: storage that does not answer.
pub(crate) struct Gate {
    below: MemoryDevice,
    state: Mutex<Closed>,
    opened: Condvar,
}

#[derive(Default)]
struct Closed {
    is_closed: bool,
    waiting: usize,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Gate { below: MemoryDevice::new(SIZE), state: Mutex::default(), opened: Condvar::new() })
    }

    pub(crate) fn close(&self) {
        self.state.lock().unwrap().is_closed = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().is_closed = false;
        self.opened.notify_all();
    }

    /// Waits until so many calls hang.
    pub(crate) fn until_waiting(&self, calls: usize) {
        eventually("calls that hang", || self.state.lock().unwrap().waiting >= calls);
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        while state.is_closed {
            state = self.opened.wait(state).unwrap();
        }
        state.waiting -= 1;
    }
}

impl BlockDevice for Gate {
    fn size(&self) -> u64 {
        SIZE
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.pass();
        if offset == 99 * 512 {
            return Err(Error::new(Kind::Corrupt, "block 99 is bad, on purpose"));
        }
        self.below.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        match self.state.lock().unwrap().is_closed || offset == 99 * 512 {
            true => Ok(false),
            false => self.below.try_read_at(offset, out),
        }
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.below.extents(range, max)
    }

    /// It says so even when it is closed: devices may be wrong.
    fn writes_swiftly(&self, _range: Range<u64>) -> bool {
        true
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.pass();
        self.below.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.below.zero(range, how)
    }
}

/// A server on a free port with a target of two disks.
pub(crate) struct Bench {
    pub(crate) server: IscsiServer,
    pub(crate) address: SocketAddr,
    pub(crate) gate: Arc<Gate>,
    pub(crate) exports: Vec<Arc<Export>>,
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions { stop_timeout: Duration::from_millis(200), ..ServerOptions::default() }
}

pub(crate) fn portal() -> PortalOptions {
    PortalOptions { listener: Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))), group: 1 }
}

/// A target of these exports.
pub(crate) fn target(name: &str, exports: &[Arc<Export>], guests: Vec<Guest>) -> TargetOptions {
    let ports = (1..=3).map(|group| PortOptions { relative: group, group }).collect();
    let device = Device::new(DeviceOptions { iqn: name.into(), ports, state: None, report: None }).unwrap();
    for (number, export) in exports.iter().enumerate() {
        let lun = LunOptions {
            export: Arc::clone(export),
            block_size: None,
            physical_block_size: None,
            identity: export.name.clone(),
        };
        device.add_lun(number as u16, lun).unwrap();
    }
    TargetOptions { name: name.into(), alias: Some("a disk".into()), device: Arc::new(device), guests }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Bench::with(options(), Vec::new())
    }

    pub(crate) fn with(options: ServerOptions, guests: Vec<Guest>) -> Self {
        let gate = Gate::new();
        let exports = [
            Arc::new(Export::new("memory", Arc::new(MemoryDevice::new(SIZE)))),
            Arc::new(Export::new("gate", Arc::clone(&gate) as Arc<dyn BlockDevice>)),
        ];
        let targets = vec![target(TARGET, &exports, guests)];
        let server = IscsiServer::start(&[portal()], targets, options).unwrap();
        let Some(Place::Tcp(host, port)) = server.places().next() else { panic!("no port") };
        let address = SocketAddr::new(host.parse().unwrap(), *port);
        Bench { server, address, gate, exports: exports.into() }
    }

    /// A session of its own for each number.
    pub(crate) fn session(&self, number: u8, keys: &[(&'static str, &'static str)]) -> Initiator {
        let mut login = Login::to(TARGET).with(keys);
        login.isid[5] = number;
        let mut initiator = Initiator::login(self.address, &login).unwrap();
        initiator.settle();
        initiator
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Else the server would wait for storage for ever.
        self.gate.open();
    }
}

impl Initiator {
    /// Has unit attentions told that a new session finds, at both disks.
    pub(crate) fn settle(&mut self) {
        for lun in 0..2 {
            for _ in 0..8 {
                let command = self.command(lun, &[0; 6], 0, 0);
                let tag = command.tag();
                self.send(command);
                if self.finish(tag, &[]).status == 0 {
                    break;
                }
            }
        }
    }
}
