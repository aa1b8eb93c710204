//! A layer on lossy media above a disk of known bytes: making it, and ending it in the ways that a process or a machine ends.

use crate::chance::Chance;
use crate::lossy::{Lossy, Plant};
use coffer_gateway::fork::{BootId, Layer, Media};
use coffer_gateway::{BlockDevice, Durability, MemoryDevice, Result, Zeroing};
use coffer_repo::entropy::{Entropy, Seeded, System};
use coffer_repo::fork_key::ForkKey;
use std::sync::Arc;

pub(crate) const UNMAP: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
pub(crate) const KEEP: Zeroing = Zeroing { may_unmap: false, ..UNMAP };
pub(crate) const FORCED: Zeroing = Zeroing { durability: Durability::Forced, ..UNMAP };

pub(crate) struct Rig {
    pub(crate) plant: Arc<Plant>,
    pub(crate) base: Arc<dyn BlockDevice>,
    pub(crate) data: Arc<Lossy>,
    pub(crate) journals: [Arc<Lossy>; 2],
    key: Arc<ForkKey>,
    boot: u8,
}

impl Rig {
    /// A new layer over `base`, not open.
    pub(crate) fn new(base: &[u8], seed: u64) -> Rig {
        let disk = MemoryDevice::new(base.len() as u64);
        for (number, block) in base.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
            disk.write_at(number as u64 * 4096, block, Durability::Cached).unwrap();
        }
        let entropy = Seeded::new(seed);
        let plant = Plant::new();
        let new = || Lossy::new(&plant);
        let rig = Rig {
            data: new(),
            journals: [new(), new()],
            plant: Arc::clone(&plant),
            base: Arc::new(disk.into_read_only()),
            key: Arc::new(ForkKey::generate(&entropy).unwrap()),
            boot: 1,
        };
        Layer::create(&rig.media(), &rig.key, base.len() as u64, rig.boot_id(), &entropy).unwrap();
        rig
    }

    fn media(&self) -> Media {
        let [a, b] = &self.journals;
        Media { data: self.data.clone(), journals: [a.clone(), b.clone()] }
    }

    fn boot_id(&self) -> BootId {
        BootId([self.boot; 16])
    }

    pub(crate) fn try_open(&self) -> Result<Layer> {
        let entropy: Arc<dyn Entropy> = Arc::new(System);
        Layer::open(Arc::clone(&self.base), self.media(), &self.key, self.boot_id(), entropy)
    }

    pub(crate) fn open(&self) -> Layer {
        self.try_open().unwrap()
    }

    /// The process is killed.
    pub(crate) fn kill(&mut self, layer: Option<Layer>) {
        self.plant.cut_after(0);
        drop(layer);
        self.plant.restore();
    }

    /// The power goes, and comes back.
    pub(crate) fn cut(&mut self, layer: Option<Layer>, chance: &Chance) {
        self.kill(layer);
        self.data = self.data.after_cut(chance);
        self.journals = [self.journals[0].after_cut(chance), self.journals[1].after_cut(chance)];
        self.boot += 1;
    }

    /// The machine is restarted in good order.
    pub(crate) fn restart(&mut self, layer: Layer) {
        drop(layer);
        self.boot += 1;
    }

    /// Copies of its media, to be harmed.
    pub(crate) fn copy(&self) -> Rig {
        Rig {
            plant: Plant::new(),
            base: Arc::clone(&self.base),
            data: self.data.copy(),
            journals: [self.journals[0].copy(), self.journals[1].copy()],
            key: Arc::clone(&self.key),
            boot: self.boot,
        }
    }
}

pub(crate) fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}
