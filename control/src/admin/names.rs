//! `ipop-fast names`: what the nodes are called, as `--json` prints it.

use super::client::ask;
use super::view::{chosen, line, name_of, print};
use super::{Request, Response, render};
use crate::Error;
use crate::cli::NamesArgs;
use crate::config::SOCKET_DIR;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::ExitCode;

/// The names that one node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The node that was asked.
    pub node: String,
    /// False: `[names]` says so, and there is no server.
    pub enabled: bool,
    /// Where its server answers: `172.16.10.2:53`.
    pub answering: Vec<String>,
    /// Where it does not, and why.
    pub problems: Vec<String>,
    /// `absent`, `told`, or what systemd-resolved has against it.
    pub resolved: String,
    /// Queries of other machines that were refused.
    pub refused: u64,
    /// Sorted by network; in it, this node first.
    pub names: Vec<Name>,
}

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Without a dot at the end.
    pub name: String,
    /// As this node sees them.
    pub addresses: Vec<String>,
    /// Whose node it is: bare JID.
    pub jid: String,
    /// `group:NAME`, `muc:ROOM`, `social`, `social:NAME`.
    pub network: String,
    /// It is the node that was asked.
    pub own: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    node: &'a str,
    #[serde(flatten)]
    name: &'a Name,
}

/// Lists the names that the running nodes know.
///
/// # Errors
/// If no node answers.
pub fn main(args: &NamesArgs) -> Result<ExitCode, Error> {
    let chosen = chosen(&args.choice, Path::new(SOCKET_DIR))?;
    // One named node that does not answer is the whole answer.
    let only = chosen.len() == 1;
    let (mut text, mut answered) = (String::new(), false);
    for socket in chosen {
        match ask(&socket, &Request::Names) {
            Ok(Response::Names(names)) => {
                if answered && !args.json {
                    text.push('\n');
                }
                text += &if args.json { lines(&names) } else { render::names(&names) };
                answered = true;
            }
            Ok(_) => eprintln!("ipop-fast: {}: an answer to another question", name_of(&socket)),
            Err(e) if only => return Err(e),
            Err(e) => eprintln!("ipop-fast: {}: {e}", name_of(&socket)),
        }
    }
    print(text.as_bytes())?;
    Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// JSON, one line a name.
fn lines(names: &Names) -> String {
    names.names.iter().map(|name| line(&Line { node: &names.node, name })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_whose_view_it_is() {
        let one = Name { name: "vm2.g.ipop".to_owned(), network: "group:g".to_owned(), ..Name::default() };
        let names = Names { node: "vm1".to_owned(), names: vec![one.clone(), one], ..Names::default() };
        let text = lines(&names);
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(value["node"] == "vm1" && value["name"] == "vm2.g.ipop" && value["own"] == false, "{value}");
        }
    }
}
