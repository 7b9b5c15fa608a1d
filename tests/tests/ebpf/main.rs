//! Kernel programs: their verdicts on a table of packets, against a model in plain Rust; and what they do for tunnels.

mod attach;
mod guard;
mod model;
mod sieve;
mod steer;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{Program, SocketFilter, Xdp};
use aya::{Ebpf, EbpfLoader};
use ipop_ebpf::{BUCKETS, Reason, SLOTS, Settings, Slot, blake2s, mark_of, slot_of, slot_word};
use ipop_tests::ns::Namespace;
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};

/// Receiver indices that are in use in every table.
const KNOWN: [u32; 3] = [0xabcd_0007, 0x0000_0000, 0xffff_ffff];
/// UDP port of every table.
const PORT: u16 = 51820;
/// What marks are made with in every table.
const SEED: u64 = 0x1234_5678_9abc_def0;

/// How much data from elsewhere every session may still get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bucket {
    Full,
    Empty,
}

/// The object with its maps filled, in a namespace of its own.
struct Bench {
    ebpf: Ebpf,
    drops: PerCpuArray<MapData, u64>,
    buckets: Array<MapData, u64>,
    settings: Array<MapData, [u64; 6]>,
}

fn bench(body: impl FnOnce(&mut Bench) -> Result<()> + Send) {
    play(Share::Shared, &[Need::Root, Need::Program("ip")], || {
        let ns = Namespace::new("bpf")?;
        ns.run(|| body(&mut Bench::new()?))
    });
}

impl Bench {
    fn new() -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(dataplane::io::bpf::OBJECT)?;
        for (_, program) in ebpf.programs_mut() {
            match program {
                Program::SkReuseport(p) => p.load()?,
                Program::SocketFilter(p) => p.load()?,
                Program::Xdp(p) => p.load()?,
                _ => bail!("a program of another type"),
            }
        }
        let mut map = |name| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let mut slots: Array<_, u64> = map("SLOTS")?.try_into()?;
        anyhow::ensure!(slots.len() == SLOTS, "{} slots", slots.len());
        for (i, index) in KNOWN.into_iter().enumerate() {
            let mark = mark_of(&model::homes()[i], SEED);
            slots.set(slot_of(index), slot_word(index, Slot { shard: i as u32, mark }), 0)?;
        }
        let settings = map("SETTINGS")?.try_into()?;
        let buckets = map("ELSEWHERE")?.try_into()?;
        let mut relays: HashMap<_, [u32; 5], u8> = map("RELAYS")?.try_into()?;
        for key in model::relays() {
            relays.insert(key.words(), 1, 0)?;
        }
        let drops = map("DROPS")?.try_into()?;
        let mut bench = Self { ebpf, drops, buckets, settings };
        bench.set_key(Some(model::us().key()))?;
        Ok(bench)
    }

    /// The key of MAC1, and with it all other settings.
    fn set_key(&mut self, key: Option<&[u8; 32]>) -> Result<()> {
        let mac1 = key.map(blake2s::keyed).unwrap_or_default();
        let settings = Settings { seed: SEED, mac1, keyed: u32::from(key.is_some()), port: u32::from(PORT) };
        Ok(self.settings.set(0, settings.words(), 0)?)
    }

    /// The buckets of all known indices. An empty one does not fill in the time of a test.
    fn set_buckets(&mut self, to: Bucket) -> Result<()> {
        let due = if to == Bucket::Full { 0 } else { u64::MAX };
        KNOWN.iter().try_for_each(|i| Ok(self.buckets.set(slot_of(*i) % BUCKETS, due, 0)?))
    }

    fn sieve(&mut self) -> Result<&mut SocketFilter> {
        match self.ebpf.program_mut("sieve") {
            Some(Program::SocketFilter(p)) => Ok(p),
            _ => bail!("no sieve"),
        }
    }

    fn guard(&mut self) -> Result<&mut Xdp> {
        match self.ebpf.program_mut("guard") {
            Some(Program::Xdp(p)) => Ok(p),
            _ => bail!("no guard"),
        }
    }

    /// What the programs have dropped so far.
    fn drops(&self) -> Result<Vec<(Reason, u64)>> {
        Reason::ALL.iter().map(|r| Ok((*r, self.drops.get(&(*r as u32), 0)?.iter().sum()))).collect()
    }
}
