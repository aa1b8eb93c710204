//! Layers on lossy media above a disk of known bytes: making them, and ending them in the ways that a process or a machine ends.

use crate::chance::Chance;
use crate::lossy::{Lossy, Plant};
use coffer_gateway::fork::{BootId, Layer, Media, Stack};
use coffer_gateway::{BlockDevice, Durability, MemoryDevice, Result, Zeroing};
use coffer_repo::entropy::{Entropy, Seeded, System};
use coffer_repo::fork_key::ForkKey;
use std::sync::Arc;

pub(crate) const UNMAP: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
pub(crate) const KEEP: Zeroing = Zeroing { may_unmap: false, ..UNMAP };
pub(crate) const FORCED: Zeroing = Zeroing { durability: Durability::Forced, ..UNMAP };

/// What one layer lies on.
#[derive(Clone)]
struct Floor {
    data: Arc<Lossy>,
    journals: [Arc<Lossy>; 2],
    key: Arc<ForkKey>,
}

pub(crate) struct Rig {
    pub(crate) plant: Arc<Plant>,
    pub(crate) base: Arc<dyn BlockDevice>,
    /// The top's.
    pub(crate) data: Arc<Lossy>,
    pub(crate) journals: [Arc<Lossy>; 2],
    key: Arc<ForkKey>,
    /// Those below, from the lowest: together with the top what a header names.
    frozen: Vec<Floor>,
    boot: u8,
}

impl Floor {
    fn media(&self) -> Media {
        let [a, b] = &self.journals;
        Media { data: self.data.clone(), journals: [a.clone(), b.clone()] }
    }

    fn after_cut(&self, chance: &Chance) -> Floor {
        let journals = [self.journals[0].after_cut(chance), self.journals[1].after_cut(chance)];
        Floor { data: self.data.after_cut(chance), journals, key: Arc::clone(&self.key) }
    }
}

/// What a disk in memory holds, read-only.
fn disk(bytes: &[u8]) -> Arc<dyn BlockDevice> {
    let disk = MemoryDevice::new(bytes.len() as u64);
    for (number, block) in bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
        disk.write_at(number as u64 * 4096, block, Durability::Cached).unwrap();
    }
    Arc::new(disk.into_read_only())
}

impl Rig {
    /// A new layer over `base`, not open.
    pub(crate) fn new(base: &[u8], seed: u64) -> Rig {
        let entropy = Seeded::new(seed);
        let plant = Plant::new();
        let new = || Lossy::new(&plant);
        let rig = Rig {
            data: new(),
            journals: [new(), new()],
            plant: Arc::clone(&plant),
            base: disk(base),
            key: Arc::new(ForkKey::generate(&entropy).unwrap()),
            frozen: Vec::new(),
            boot: 1,
        };
        Layer::create(&rig.media(), &rig.key, base.len() as u64, rig.boot_id(), &entropy).unwrap();
        rig
    }

    fn top(&self) -> Floor {
        Floor { data: self.data.clone(), journals: self.journals.clone(), key: Arc::clone(&self.key) }
    }

    fn media(&self) -> Media {
        self.top().media()
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

    /// All layers.
    pub(crate) fn try_open_stack(&self) -> Result<Stack> {
        let (mut below, mut layers) = (Arc::clone(&self.base), Vec::new());
        for floor in self.frozen.iter().chain([&self.top()]) {
            let layer = Arc::new(Layer::open(below, floor.media(), &floor.key, self.boot_id(), Arc::new(System))?);
            below = layer.clone();
            layers.push(layer);
        }
        let top = layers.pop().unwrap();
        Ok(Stack::new(layers, top))
    }

    /// Another layer on top, as a commit begins. Nothing is flushed for it.
    pub(crate) fn freeze(&mut self, stack: &Stack) -> Result<()> {
        let new = || Lossy::new(&self.plant);
        let floor = Floor { data: new(), journals: [new(), new()], key: Arc::new(ForkKey::generate(&System).unwrap()) };
        Layer::create(&floor.media(), &floor.key, stack.size(), self.boot_id(), &System)?;
        let layer = Layer::open(stack.top()?, floor.media(), &floor.key, self.boot_id(), Arc::new(System))?;
        // The header names it from here on.
        self.frozen.push(self.top());
        (self.data, self.journals, self.key) = (floor.data, floor.journals, floor.key);
        stack.push(Arc::new(layer))
    }

    /// What is frozen becomes the base, as a commit ends. `dies`: before the stack hears of it.
    pub(crate) fn settle(&mut self, stack: &Stack, dies: bool) -> Result<()> {
        let frozen = stack.frozen();
        let Some(last) = frozen.last() else { return Ok(()) };
        let mut bytes = vec![0; stack.size() as usize];
        last.read_at(0, &mut bytes)?;
        // The header, again.
        self.base = disk(&bytes);
        self.frozen.clear();
        if dies { Ok(()) } else { stack.settle(Arc::clone(&self.base)) }
    }

    /// How many layers there are.
    pub(crate) fn layers(&self) -> usize {
        self.frozen.len() + 1
    }

    /// The process is killed.
    pub(crate) fn kill<T>(&mut self, layer: Option<T>) {
        self.plant.cut_after(0);
        drop(layer);
        self.plant.restore();
    }

    /// The power goes, and comes back.
    pub(crate) fn cut<T>(&mut self, layer: Option<T>, chance: &Chance) {
        self.kill(layer);
        for floor in &mut self.frozen {
            *floor = floor.after_cut(chance);
        }
        let top = self.top().after_cut(chance);
        (self.data, self.journals) = (top.data, top.journals);
        self.boot += 1;
    }

    /// The machine is restarted in good order.
    pub(crate) fn restart<T>(&mut self, layer: T) {
        drop(layer);
        self.boot += 1;
    }

    /// Copies of the top's media, to be harmed.
    pub(crate) fn copy(&self) -> Rig {
        Rig {
            plant: Plant::new(),
            base: Arc::clone(&self.base),
            data: self.data.copy(),
            journals: [self.journals[0].copy(), self.journals[1].copy()],
            key: Arc::clone(&self.key),
            frozen: Vec::new(),
            boot: self.boot,
        }
    }
}

pub(crate) fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}
