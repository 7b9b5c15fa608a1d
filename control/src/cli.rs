//! The command line. `wg-quick` passes the interface's name and nothing else, so every option can also be set
//! by an environment variable. An interface with the name of a command is served as `ipop-fast -- NAME`.

mod generate;
mod node;

pub use generate::{completions, man};
pub use node::{
    CheckArgs, CompletionsArgs, FriendsArgs, FriendsCommand, ImportArgs, ManArgs, NamesArgs, NodeChoice, PinsArgs,
    PinsCommand, UpArgs, ViewArgs,
};

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use dataplane::crypto::{Backend, Cipher};
use dataplane::{CipherChoice, Config, EbpfChoice, IoChoice, Xdp};

const EXAMPLES: &str = "\
Examples:
  ipop-fast wg0                       create wg0 and serve it in the background
  ipop-fast -f --log-level debug wg0  the same in the foreground, and tell more
  wg setconf wg0 wg0.conf             then configure it as any WireGuard interface
  WG_QUICK_USERSPACE_IMPLEMENTATION=ipop-fast wg-quick up ./wg0.conf
  ipop-fast up -c node.toml           join the networks of a configuration file
  ipop-fast status --watch            how they are
  ipop-fast friends add bob@x.org     ask somebody to be a friend, or accept it
  ipop-fast names                     what their nodes are called: vm2.my_group.ipop
  ipop-fast doctor                    what this machine offers, and what to do about the rest
  ipop-fast stats wg0 --watch         live counters

Environment: LOG_LEVEL, WG_TUN_FD, WG_UAPI_FD and WG_PROCESS_FOREGROUND as wireguard-go.
Ends when the interface or its socket /var/run/wireguard/NAME.sock is deleted, or by SIGTERM.";

/// A WireGuard tunnel in user space: a drop-in for wireguard-go.
#[derive(Debug, Parser)]
#[command(
    name = "ipop-fast",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Something else than serving an interface.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Serving an interface.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Everything but serving an interface.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join the networks of a configuration file, in the foreground
    Up(UpArgs),
    /// Tell what is wrong with a configuration file, by line and key
    Check(CheckArgs),
    /// Show the running nodes: what does not work first, then servers, networks and counts
    Status(ViewArgs),
    /// Show the other members, one a line
    Peers(ViewArgs),
    /// Show the links to them: path, why that one, round trip and traffic
    Links(ViewArgs),
    /// List the DNS names of all nodes that are known, with addresses and accounts
    Names(NamesArgs),
    /// Show the pinned keys of the others, or accept a changed one
    Pins(PinsArgs),
    /// Show friends and who asks to be one; ask, accept or end it
    Friends(FriendsArgs),
    /// Make a configuration file from one of an IPOP controller (JSON)
    Import(ImportArgs),
    /// Show what this machine offers for speed, and what to do about what is missing
    Doctor(DoctorArgs),
    /// Show the counters of a running interface
    Stats(StatsArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, for man -l -
    Man(ManArgs),
}

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Interface; without it, all sockets are listed
    #[arg(value_parser = interface_name)]
    pub interface: Option<String>,
    /// Print JSON, one line an interface
    #[arg(long)]
    pub json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// Arguments of serving an interface.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of the network interface to create, as wg0
    #[arg(required = true, value_parser = interface_name)]
    pub interface: Option<String>,
    /// Stay in the foreground (also WG_PROCESS_FOREGROUND=1)
    #[arg(short, long)]
    pub foreground: bool,
    /// Cipher (auto, chacha20poly1305, aes256gcm); aes256gcm with peers that are told the same
    ///
    /// aes256gcm is for ipop-fast at both ends: each says so in the handshake, and a peer that does not gets
    /// ChaCha20-Poly1305 as from any WireGuard. auto is ChaCha20-Poly1305 too, as nobody tells here what a peer has.
    /// Nodes of `ipop-fast up` tell each other: there it is cipher in the file
    #[arg(long, env = "IPOP_FAST_CIPHER", value_name = "NAME", default_value = "chacha20poly1305")]
    pub cipher: CipherChoice,
    /// How packets are carried.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How packets are carried: the same for one interface and for a node.
#[derive(Args, Clone, Debug)]
pub struct EngineArgs {
    /// I/O back end; auto takes io_uring where it works
    #[arg(long, env = "IPOP_FAST_IO", default_value = "auto", value_name = "auto|uring|mmsg")]
    pub io: IoChoice,
    /// Number of worker threads; default: one a core
    #[arg(long, env = "IPOP_FAST_SHARDS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub shards: Option<u16>,
    /// Back end of ChaCha20-Poly1305 (auto, avx512, avx2, aws-lc, portable); auto goes by CPU features
    #[arg(long, env = "IPOP_FAST_AEAD", value_name = "NAME", default_value = "auto", value_parser = aead)]
    pub aead: Aead,
    /// Pin each worker thread to a core
    #[arg(long, env = "IPOP_FAST_PIN", default_value = "auto")]
    pub pin: Pin,
    /// Do without segmentation offload on TUN
    #[arg(long, env = "IPOP_FAST_NO_TUN_OFFLOAD", value_parser = FalseyValueParser::new())]
    pub no_tun_offload: bool,
    /// Do without UDP_SEGMENT
    #[arg(long, env = "IPOP_FAST_NO_UDP_GSO", value_parser = FalseyValueParser::new())]
    pub no_udp_gso: bool,
    /// Do without UDP_GRO
    #[arg(long, env = "IPOP_FAST_NO_UDP_GRO", value_parser = FalseyValueParser::new())]
    pub no_udp_gro: bool,
    /// Receive buffer of each UDP socket; k and M are allowed; default: bounded by queueing delay
    #[arg(long, env = "IPOP_FAST_RECEIVE_BUFFER", value_name = "BYTES", value_parser = bytes)]
    pub receive_buffer: Option<usize>,
    /// Kernel programs that steer datagrams and drop junk; auto takes them where the kernel lets us
    #[arg(long, env = "IPOP_FAST_EBPF", default_value = "auto", value_name = "auto|on|off")]
    pub ebpf: EbpfChoice,
    /// Also drop junk at this interface, before the kernel's stack sees it (XDP)
    #[arg(long, env = "IPOP_FAST_XDP", value_name = "IFACE[:generic|:native]")]
    pub xdp: Option<Xdp>,
    /// silent, error, warn, info, debug or trace; default: LOG_LEVEL, else info
    #[arg(long, value_name = "LEVEL", value_parser = crate::logging::level)]
    pub log_level: Option<crate::logging::Level>,
}

/// Whether shards are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pin {
    /// Each to a core.
    On,
    /// Not.
    Off,
    /// The engine decides.
    Auto,
}

/// A cipher back end or none in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aead(pub Option<Backend>);

impl RunArgs {
    /// The engine's settings.
    #[must_use]
    pub fn config(&self) -> Config {
        Config { aes: self.cipher == CipherChoice::Only(Cipher::Aes256Gcm), ..self.engine.config() }
    }

    /// TUN queues to ask for: one a shard.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.engine.queues()
    }
}

impl EngineArgs {
    /// The engine's settings. `tun_gso` follows `--no-tun-offload` in both directions.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            io: self.io,
            aead: self.aead.0,
            aes: false,
            pin: match self.pin {
                Pin::On => Some(true),
                Pin::Off => Some(false),
                Pin::Auto => None,
            },
            udp_gso: !self.no_udp_gso,
            udp_gro: !self.no_udp_gro,
            tun_gso: !self.no_tun_offload,
            receive_buffer: self.receive_buffer,
            ebpf: self.ebpf,
            xdp: self.xdp.clone(),
        }
    }

    /// TUN queues to ask for: one a shard.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.shards.map_or_else(dataplane::Engine::default_shards, usize::from)
    }
}

fn aead(s: &str) -> Result<Aead, String> {
    if s == "auto" { Ok(Aead(None)) } else { s.parse().map(|b| Aead(Some(b))) }
}

fn bytes(s: &str) -> Result<usize, String> {
    let (digits, unit) = match s.strip_suffix(['k', 'K', 'M']) {
        Some(digits) if s.ends_with('M') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 10),
        None => (s, 1),
    };
    let n: Option<usize> = digits.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    n.filter(|n| *n > 0 && i32::try_from(*n).is_ok()).ok_or_else(|| "write it as 4194304 or 4M".to_owned())
}

/// Checks what the kernel's `dev_valid_name` (net/core/dev.c) would: 1 to 15 bytes, not "." or "..", no slash,
/// colon or white space. The name is also part of the socket's path.
///
/// # Errors
/// What is wrong, for people.
pub fn interface_name(s: &str) -> Result<String, String> {
    let problem = if s.is_empty() {
        "is empty"
    } else if s.len() > 15 {
        "is longer than 15 bytes"
    } else if s == "." || s == ".." {
        "is a directory"
    } else if s.bytes().any(|b| b == b'/' || b == b':' || b <= b' ' || b == 0x7f) {
        "has a slash, colon, space or control character"
    } else {
        return Ok(s.to_owned());
    };
    Err(format!("no interface can be called \"{}\": it {problem}", s.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        Cli::try_parse_from([&["ipop-fast"], args].concat()).map(|c| c.run)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::command().render_version().starts_with("ipop-fast "));
    }

    #[test]
    fn it_is_called_like_wireguard_go() {
        let a = run(&["wg0"]).expect("plain");
        assert_eq!((a.interface.as_deref(), a.foreground), (Some("wg0"), false));
        for args in [["-f", "wg0"], ["--foreground", "wg0"], ["wg0", "-f"]] {
            let a = run(&args).expect("foreground");
            assert_eq!((a.interface.as_deref(), a.foreground), (Some("wg0"), true));
        }
    }

    #[test]
    fn options_reach_the_engine_settings() {
        let a = run(&[
            "--io=mmsg",
            "--shards=3",
            "--aead=portable",
            "--cipher=aes256gcm",
            "--pin=off",
            "--no-udp-gso",
            "--no-udp-gro",
            "--no-tun-offload",
            "--receive-buffer=4M",
            "--ebpf=off",
            "--xdp=eth0:generic",
            "--log-level=debug",
            "wg0",
        ])
        .expect("valid");
        let c = a.config();
        assert_eq!((c.ebpf, c.xdp), (EbpfChoice::Off, "eth0:generic".parse().ok()));
        assert_eq!((c.io, c.pin, a.queues()), (IoChoice::Mmsg, Some(false), 3));
        assert_eq!((c.udp_gso, c.udp_gro, c.tun_gso), (false, false, false));
        assert_eq!((c.aead, c.receive_buffer), (Some(Backend::Portable), Some(4 << 20)));
        assert!(c.aes);
        for args in [&["wg0"][..], &["--cipher=auto", "wg0"], &["--cipher=chacha20poly1305", "wg0"]] {
            assert!(!run(args).expect("valid").config().aes, "{args:?}");
        }
        let c = run(&["wg0"]).expect("valid").config();
        assert_eq!((c.io, c.pin, c.aead), (IoChoice::Auto, None, None));
        assert!(c.ebpf == EbpfChoice::Auto && c.xdp.is_none());
        assert!(c.udp_gso && c.udp_gro && c.tun_gso && c.receive_buffer.is_none());
    }

    #[test]
    fn subcommands_need_no_interface() {
        let command = |args: &[&str]| Cli::try_parse_from(args).expect("valid").command;
        assert!(matches!(command(&["ipop-fast", "doctor", "--json"]), Some(Command::Doctor(a)) if a.json));
        let Some(Command::Stats(a)) = command(&["ipop-fast", "stats", "wg0", "--watch"]) else { panic!("stats") };
        assert!(a.watch && !a.json && a.interface.as_deref() == Some("wg0"));
        assert!(matches!(command(&["ipop-fast", "stats"]), Some(Command::Stats(a)) if a.interface.is_none()));
    }

    #[test]
    fn bad_arguments_are_refused() {
        for args in [
            &["sixteen-bytes-xx"][..],
            &["a/b"],
            &["a b"],
            &[""],
            &[".."],
            &["a\nb"],
            &["wg0", "wg1"],
            &["-f"],
            &["--io=kqueue", "wg0"],
            &["--shards=0", "wg0"],
            &["--shards=65", "wg0"],
            &["--aead=rot13", "wg0"],
            &["--cipher=rot13", "wg0"],
            &["--pin=maybe", "wg0"],
            &["--receive-buffer=-1", "wg0"],
            &["--receive-buffer=4G", "wg0"],
            &["--ebpf=maybe", "wg0"],
            &["--xdp=eth0:fast", "wg0"],
            &["--xdp=", "wg0"],
            &["--log-level=loud", "wg0"],
            &[],
        ] {
            assert!(run(args).is_err(), "{args:?}");
        }
        assert!(run(&["fifteen-bytes-x"]).is_ok());
    }
}
