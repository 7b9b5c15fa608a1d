//! Kernel programs that sort datagrams before a shard sees them: `steer` and `sieve` at the sockets, and `guard` at an
//! interface. What they do is in `ebpf/programs`. Nothing of them outlives the process: they hang on sockets and a link.

mod guard;
mod slots;

use super::udp::Socket;
use crate::config::Xdp;
use crate::tunnel::{IndexWatch, MacVerifier};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, ReusePortSockArray};
use aya::programs::{Program, ProgramError, SkReuseport, SocketFilter};
use aya::{Ebpf, EbpfError, EbpfLoader};
use guard::Guard;
use ipop_ebpf::{Endpoint, MAX_RELAYS, MAX_SOCKETS, Reason, Settings, blake2s};
use slots::Slots;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// The programs as they are built.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/programs/programs.o");

/// Why kernel programs cannot be used, with what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct BpfError {
    what: &'static str,
    why: String,
}

impl BpfError {
    fn new(what: &'static str) -> impl FnOnce(&(dyn std::error::Error + 'static)) -> Self {
        move |e| Self { what, why: reason(e) }
    }

    fn missing(what: &'static str) -> Self {
        Self { what, why: "it is not in the object".into() }
    }
}

/// The innermost of errors: what the kernel said, without the verifier's log.
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    innermost(error).downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
}

fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    match errno_of(error) {
        Some(libc::EPERM) => "not permitted: it takes CAP_BPF and CAP_NET_ADMIN".into(),
        _ => innermost(error).to_string(),
    }
}

/// The programs of one engine.
pub struct Programs {
    ebpf: Ebpf,
    slots: Arc<Slots>,
    relays: HashMap<MapData, [u32; 5], u8>,
    listed: Vec<[u32; 5]>,
    sockets: ReusePortSockArray<MapData>,
    drops: PerCpuArray<MapData, u64>,
    settings: Settings,
    told: Array<MapData, [u64; 6]>,
    guard: Option<Guard>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Programs({:?})", self.slots)
    }
}

impl Programs {
    /// Loads the programs for `shards` shards; the guard too if it is `guarded`.
    ///
    /// # Errors
    /// What the kernel has against it: no right to, too old, or a verifier of another opinion.
    pub fn load(shards: usize, guarded: bool) -> Result<Self, BpfError> {
        let mut ebpf = load_maps(guarded)?;
        // Before the maps are taken: a program is told of them by their descriptors.
        let refused = |e: ProgramError| BpfError::new("the kernel refuses the programs for sockets")(&e);
        steer(&mut ebpf)?.load().map_err(refused)?;
        sieve(&mut ebpf)?.load().map_err(refused)?;
        if guarded {
            guard::load(&mut ebpf)?;
        }
        let map = |e: &mut Ebpf, name| e.take_map(name).ok_or(BpfError::missing(name));
        let wrong = |e: aya::maps::MapError| BpfError::new("the maps are not as expected")(&e);
        let array = |map| match map {
            Map::Array(data) => Ok(data),
            _ => Err(BpfError::missing("an array")),
        };
        let (slots, buckets) = (array(map(&mut ebpf, "SLOTS")?)?, array(map(&mut ebpf, "ELSEWHERE")?)?);
        let settings = Settings { seed: seed()?, ..Settings::default() };
        let slots = Slots::new(slots.fd().as_fd(), buckets.fd().as_fd(), settings.seed, shards)
            .map_err(|e| BpfError::new("cannot map the map of slots")(&e))?;
        let relays = HashMap::try_from(map(&mut ebpf, "RELAYS")?).map_err(wrong)?;
        let sockets = ReusePortSockArray::try_from(map(&mut ebpf, "SOCKETS")?).map_err(wrong)?;
        let drops = PerCpuArray::try_from(map(&mut ebpf, "DROPS")?).map_err(wrong)?;
        let told = Array::try_from(map(&mut ebpf, "SETTINGS")?).map_err(wrong)?;
        let (slots, listed) = (Arc::new(slots), Vec::new());
        let mut programs = Self { ebpf, slots, relays, listed, sockets, drops, settings, told, guard: None };
        // Before they are attached: marks are made with the seed from then on.
        programs.tell()?;
        Ok(programs)
    }

    fn tell(&mut self) -> Result<(), BpfError> {
        let told = self.told.set(0, self.settings.words(), 0);
        told.map_err(|e| BpfError::new("cannot tell the programs their settings")(&e))
    }

    /// By what key handshake messages to us are told from those of others. `None`: they all are for a shard to see.
    ///
    /// # Errors
    /// What the kernel has against it.
    pub fn set_mac(&mut self, mac: Option<&MacVerifier>) -> Result<(), BpfError> {
        self.settings.keyed = u32::from(mac.is_some());
        self.settings.mac1 = mac.map(|m| blake2s::keyed(m.key())).unwrap_or_default();
        self.tell()
    }

    /// What keeps the programs informed of receiver indices.
    #[must_use]
    pub fn watch(&self) -> Arc<dyn IndexWatch> {
        self.slots.clone()
    }

    /// Attaches the programs to the sockets of all shards, in order. They take the place of earlier ones.
    ///
    /// # Errors
    /// What the kernel has against it; then datagrams go where they went before, in whole or in part.
    pub fn attach(&mut self, sockets: &[Arc<Socket>]) -> Result<(), BpfError> {
        let Some(first) = sockets.first() else { return Ok(()) };
        for (i, socket) in sockets.iter().enumerate().take(MAX_SOCKETS as usize) {
            let entry = self.sockets.set(i as u32, &**socket, 0);
            entry.map_err(|e| BpfError::new("cannot list a socket for steering")(&e))?;
        }
        let refused = |e: ProgramError| BpfError::new("cannot attach to a socket")(&e);
        for socket in sockets {
            sieve(&mut self.ebpf)?.attach(fd(socket)).map_err(refused)?;
        }
        steer(&mut self.ebpf)?.attach(fd(first)).map_err(refused)?;
        let port = first.port().map_err(|e| BpfError::new("cannot tell our port")(&e))?;
        self.settings.port = u32::from(port);
        self.tell()
    }

    /// Puts the guard at an interface. The programs have to be loaded as guarded.
    ///
    /// # Errors
    /// Another program is there, or what the kernel has against it.
    pub fn guard(&mut self, to: &Xdp) -> Result<(), BpfError> {
        self.guard = Some(Guard::attach(&mut self.ebpf, to)?);
        Ok(())
    }

    /// What they do, in a few words.
    #[must_use]
    pub fn text(&self) -> String {
        let guard = self.guard.as_ref().map(|g| format!(", {}", g.text())).unwrap_or_default();
        format!("steer and sieve at the sockets{guard}")
    }

    /// The TURN servers whose ChannelData is let through. Those beyond [`MAX_RELAYS`] are not.
    ///
    /// # Errors
    /// What the kernel has against it.
    pub fn set_relays(&mut self, servers: &[SocketAddr]) -> Result<(), BpfError> {
        let failed = |e: aya::maps::MapError| BpfError::new("cannot list a TURN server")(&e);
        let wanted: Vec<[u32; 5]> = servers.iter().take(MAX_RELAYS as usize).map(|s| endpoint(s).words()).collect();
        for gone in self.listed.iter().filter(|k| !wanted.contains(k)) {
            self.relays.remove(gone).map_err(failed)?;
        }
        self.listed.retain(|k| wanted.contains(k));
        for key in wanted {
            if !self.listed.contains(&key) {
                self.relays.insert(key, 1, 0).map_err(failed)?;
                self.listed.push(key);
            }
        }
        Ok(())
    }

    /// Datagrams that the programs dropped, by reason.
    #[must_use]
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let count = |r: Reason| self.drops.get(&(r as u32), 0).map_or(0, |cpus| cpus.iter().sum());
        Reason::ALL.iter().map(|r| (r.name(), count(*r))).collect()
    }
}

fn fd(socket: &Arc<Socket>) -> BorrowedFd<'_> {
    // SAFETY: the socket is open as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

fn load_maps(guarded: bool) -> Result<Ebpf, BpfError> {
    let mut loader = EbpfLoader::new();
    // The programs know nothing of the kernel's own types.
    loader.btf(None);
    if !guarded {
        // Nobody asks for it: an entry, not a megabyte.
        loader.map_max_entries("SOURCES", 1);
    }
    loader.load(OBJECT).map_err(|e: EbpfError| BpfError::new("cannot load kernel programs")(&e))
}

fn steer(ebpf: &mut Ebpf) -> Result<&mut SkReuseport, BpfError> {
    match ebpf.program_mut("steer") {
        Some(Program::SkReuseport(p)) => Ok(p),
        _ => Err(BpfError::missing("steer")),
    }
}

fn sieve(ebpf: &mut Ebpf) -> Result<&mut SocketFilter, BpfError> {
    match ebpf.program_mut("sieve") {
        Some(Program::SocketFilter(p)) => Ok(p),
        _ => Err(BpfError::missing("sieve")),
    }
}

/// An address and a port as programs have them.
fn endpoint(address: &SocketAddr) -> Endpoint {
    let port = address.port().to_be_bytes();
    match address.ip().to_canonical() {
        IpAddr::V4(a) => Endpoint::v4(a.octets(), port),
        IpAddr::V6(a) => Endpoint::v6(a.octets(), port),
    }
}

/// What marks are made with: nobody outside can tell which sources have the same.
fn seed() -> Result<u64, BpfError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| BpfError::new("no random numbers")(&e))?;
    Ok(u64::from_ne_bytes(bytes))
}
