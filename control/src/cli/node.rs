//! Arguments of the commands around a node.

use super::EngineArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Where a node's configuration is looked for.
const DEFAULT_CONFIG: &str = "/etc/ipop-fast/node.toml";

/// Arguments of `up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// How packets are carried.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Arguments of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Print the problems as JSON
    #[arg(long)]
    pub json: bool,
}

/// Which node.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct NodeChoice {
    /// Name of the node; without it, all that run
    #[arg(long, value_name = "NAME", value_parser = crate::config::values::node_name)]
    pub node: Option<String>,
    /// Its control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `status`, `peers` and `links`.
#[derive(Args, Clone, Debug, Default)]
pub struct ViewArgs {
    /// Which node.
    #[command(flatten)]
    pub choice: NodeChoice,
    /// Print JSON, one line for each node, peer or link
    #[arg(long)]
    pub json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Shorten nothing, whatever the width
    #[arg(long)]
    pub wide: bool,
}

/// Arguments of `names`.
#[derive(Args, Clone, Debug)]
pub struct NamesArgs {
    /// Which node.
    #[command(flatten)]
    pub choice: NodeChoice,
    /// Print JSON, one line a name
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `pins`.
#[derive(Args, Clone, Debug)]
pub struct PinsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PinsCommand,
}

/// What to do with pinned keys.
#[derive(Clone, Debug, Subcommand)]
pub enum PinsCommand {
    /// Show the pinned key of each peer, and changed ones that were refused
    List {
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
        /// Print JSON, one line a peer
        #[arg(long)]
        json: bool,
    },
    /// Take the changed key of a peer, after asking its owner whether it is right
    Accept {
        /// Bare JID (all its devices) or full JID
        #[arg(value_parser = jid)]
        jid: String,
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
    },
    /// Forget the pinned keys of a peer, as of devices that are gone; what it shows next is pinned
    Forget {
        /// Bare JID (all its devices) or full JID
        #[arg(value_parser = jid)]
        jid: String,
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
    },
}

/// Arguments of `friends`.
#[derive(Args, Clone, Debug)]
pub struct FriendsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: FriendsCommand,
}

/// What to do about friends.
#[derive(Clone, Debug, Subcommand)]
pub enum FriendsCommand {
    /// Show friends, who asks to be one, and who was asked
    List {
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
        /// Print JSON, one line for each
        #[arg(long)]
        json: bool,
    },
    /// Ask an account to be a friend, or accept its request
    Add {
        /// Bare JID
        #[arg(value_parser = account)]
        jid: String,
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
    },
    /// Accept the request of an account
    Accept {
        /// Bare JID
        #[arg(value_parser = account)]
        jid: String,
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
    },
    /// End a friendship, for all clients and at once, or decline a request
    Remove {
        /// Bare JID
        #[arg(value_parser = account)]
        jid: String,
        /// Which node.
        #[command(flatten)]
        choice: NodeChoice,
    },
}

/// Arguments of `import`.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Configuration of an IPOP controller
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Write the result there, and passwords into files beside it; without it, it is printed
    #[arg(short, long, value_name = "OUT")]
    pub output: Option<PathBuf>,
    /// Roster group whose members make up the network (IPOP took the whole roster)
    #[arg(long, value_name = "NAME", value_parser = crate::config::values::group_name)]
    pub group: Option<String>,
}

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Of this shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Args, Clone, Debug)]
pub struct ManArgs {
    /// The page of this command instead of the program's
    pub command: Option<String>,
    /// Write the pages of the program and of all its commands into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub directory: Option<PathBuf>,
}

fn account(s: &str) -> Result<String, String> {
    crate::config::values::bare_jid(s).map(|j| j.to_string())
}

fn jid(s: &str) -> Result<String, String> {
    let jid = xmpp_parsers::jid::Jid::new(s).map_err(|e| format!("no JID: {e}"))?;
    match jid.node() {
        Some(_) => Ok(jid.to_string()),
        None => Err("write it as vm1@example.org".to_owned()),
    }
}
