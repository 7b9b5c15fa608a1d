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
use ipop_ebpf::{Reason, RelayKey, SLOTS, slot_of, slot_word};
use ipop_tests::ns::Namespace;
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};

/// Receiver indices that are in use in every table.
const KNOWN: [u32; 3] = [0xabcd_0007, 0x0000_0000, 0xffff_ffff];
/// UDP port of every table.
const PORT: u16 = 51820;

/// The object with its maps filled, in a namespace of its own.
struct Bench {
    ebpf: Ebpf,
    drops: PerCpuArray<MapData, u64>,
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
            slots.set(slot_of(index), slot_word(index, i as u32), 0)?;
        }
        let mut port: Array<_, u32> = map("PORT")?.try_into()?;
        port.set(0, u32::from(PORT), 0)?;
        let mut relays: HashMap<_, [u8; 20], u8> = map("RELAYS")?.try_into()?;
        for key in model::relays() {
            relays.insert(bytes_of(key), 1, 0)?;
        }
        let drops = map("DROPS")?.try_into()?;
        Ok(Self { ebpf, drops })
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

fn bytes_of(key: RelayKey) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(&key.address);
    bytes[16..18].copy_from_slice(&key.port);
    bytes
}
