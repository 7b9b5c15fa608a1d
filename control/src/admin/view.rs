//! `ipop-fast status`, `peers`, `links`, `pins` and `friends`: ask the running nodes and show what they say.

use super::client::{ask, sockets};
use super::{FriendAction, Request, Response, Status, render};
use crate::Error;
use crate::cli::{FriendsArgs, FriendsCommand, NodeChoice, PinsArgs, PinsCommand, ViewArgs};
use crate::config::SOCKET_DIR;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left, and clear.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// A summary.
    Status,
    /// Peers.
    Peers,
    /// Links.
    Links,
    /// Pinned keys.
    Pins,
}

/// What all nodes that were asked said.
struct Shown {
    text: String,
    /// What nodes that did not answer are told for.
    failures: Vec<String>,
    answered: bool,
}

/// Shows nodes, once or until it is interrupted.
///
/// # Errors
/// If no node answers.
pub fn main(view: View, args: &ViewArgs) -> Result<ExitCode, Error> {
    if args.watch {
        return watch(view, args);
    }
    let shown = look(view, args)?;
    for failure in &shown.failures {
        eprintln!("ipop-fast: {failure}");
    }
    print(shown.text.as_bytes())?;
    Ok(if shown.answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows or accepts pinned keys.
///
/// # Errors
/// If no node answers, or the node refuses.
pub fn pins(args: &PinsArgs) -> Result<ExitCode, Error> {
    match &args.command {
        PinsCommand::List { choice, json } => {
            main(View::Pins, &ViewArgs { choice: choice.clone(), json: *json, ..ViewArgs::default() })
        }
        PinsCommand::Accept { jid, choice } => order(choice, &Request::AcceptPin { jid: jid.clone() }),
        PinsCommand::Forget { jid, choice } => order(choice, &Request::ForgetPins { jid: jid.clone() }),
    }
}

/// Has every chosen node do something, and says what each made of it.
fn order(choice: &NodeChoice, request: &Request) -> Result<ExitCode, Error> {
    let (mut text, mut refusals) = (String::new(), Vec::new());
    for socket in chosen(choice, Path::new(SOCKET_DIR))? {
        match ask(&socket, request) {
            Ok(Response::Done { message }) => text += &format!("{}: {message}\n", name_of(&socket)),
            Ok(_) => refusals.push(format!("{}: an answer to another question", name_of(&socket))),
            Err(e) => refusals.push(format!("{}: {e}", name_of(&socket))),
        }
    }
    print(text.as_bytes())?;
    // With several nodes, the peer may be known to one of them only.
    if text.is_empty() { Err(Error::Client(refusals.join("\n"))) } else { Ok(ExitCode::SUCCESS) }
}

/// Shows friends, or does something about one.
///
/// # Errors
/// If no node answers, or the node refuses.
pub fn friends(args: &FriendsArgs) -> Result<ExitCode, Error> {
    let (action, jid, choice) = match &args.command {
        FriendsCommand::List { choice, json } => return list_friends(choice, *json),
        FriendsCommand::Add { jid, choice } => (FriendAction::Add, jid, choice),
        FriendsCommand::Accept { jid, choice } => (FriendAction::Accept, jid, choice),
        FriendsCommand::Remove { jid, choice } => (FriendAction::Remove, jid, choice),
    };
    let nodes = chosen(choice, Path::new(SOCKET_DIR))?;
    let [socket] = nodes.as_slice() else {
        let names: Vec<String> = nodes.iter().map(|n| name_of(n)).collect();
        let names = names.join(", ");
        return Err(Error::Client(format!("several nodes run ({names}): say whose friend it is with --node NAME")));
    };
    match ask(socket, &Request::Befriend { action, jid: jid.clone() })? {
        Response::Done { message } => print(format!("{}\n", render::text::plain(&message)).as_bytes()),
        _ => Err(Error::Client(format!("{}: an answer to another question", name_of(socket)))),
    }
}

fn list_friends(choice: &NodeChoice, json: bool) -> Result<ExitCode, Error> {
    let nodes = chosen(choice, Path::new(SOCKET_DIR))?;
    let (mut text, mut refusals) = (String::new(), Vec::new());
    for socket in &nodes {
        match ask(socket, &Request::Friends) {
            Ok(Response::Friends { friends }) if json => {
                for f in friends {
                    let mut entry = serde_json::to_value(f).unwrap_or_default();
                    if let Value::Object(map) = &mut entry {
                        map.insert("node".to_owned(), json!(name_of(socket)));
                    }
                    text += &line(&entry);
                }
            }
            Ok(Response::Friends { friends }) => {
                if nodes.len() > 1 {
                    text += &format!("{}:\n", name_of(socket));
                }
                text += &render::friends(&friends);
            }
            Ok(_) => refusals.push(format!("{}: an answer to another question", name_of(socket))),
            Err(e) => refusals.push(format!("{}: {e}", name_of(socket))),
        }
    }
    print(text.as_bytes())?;
    // With several nodes, some may have groups only.
    if refusals.len() == nodes.len() { Err(Error::Client(refusals.join("\n"))) } else { Ok(ExitCode::SUCCESS) }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// Anything else.
pub fn print(bytes: &[u8]) -> Result<ExitCode, Error> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("write to standard output", e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The sockets of the nodes that are asked.
pub(super) fn chosen(choice: &NodeChoice, directory: &Path) -> Result<Vec<PathBuf>, Error> {
    match (&choice.node, &choice.socket) {
        (_, Some(socket)) => Ok(vec![socket.clone()]),
        (Some(node), None) => Ok(vec![directory.join(format!("{node}.sock"))]),
        (None, None) => {
            let all = sockets(directory);
            if all.is_empty() {
                return Err(Error::Client(format!(
                    "no node runs: there is no socket in {}. Start one with: ipop-fast up -c FILE",
                    directory.display()
                )));
            }
            Ok(all)
        }
    }
}

pub(super) fn name_of(socket: &Path) -> String {
    render::text::plain(&socket.file_stem().unwrap_or_default().to_string_lossy())
}

fn look(view: View, args: &ViewArgs) -> Result<Shown, Error> {
    let chosen = chosen(&args.choice, Path::new(SOCKET_DIR))?;
    // One named node that does not answer is the whole answer.
    let only = chosen.len() == 1;
    let mut shown = Shown { text: String::new(), failures: Vec::new(), answered: false };
    for socket in chosen {
        match ask(&socket, &Request::Status) {
            Ok(Response::Status(status)) => {
                if !shown.text.is_empty() && !args.json {
                    shown.text.push('\n');
                }
                shown.text += &if args.json { lines(view, &status) } else { people(view, &status, args.wide) };
                shown.answered = true;
            }
            Ok(_) => shown.failures.push(format!("{}: an answer to another question", name_of(&socket))),
            Err(e) if only => return Err(e),
            Err(e) => shown.failures.push(format!("{}: {e}", name_of(&socket))),
        }
    }
    Ok(shown)
}

fn people(view: View, status: &Status, wide: bool) -> String {
    match view {
        View::Status => render::status(status),
        View::Peers => render::peers(status, wide),
        View::Links => render::links(status, wide),
        View::Pins => render::pins(status),
    }
}

/// JSON, one line a node, peer or link. Peers and links say whose they are in `node` and `network`.
fn lines(view: View, status: &Status) -> String {
    if view == View::Status {
        return line(status);
    }
    let mut text = String::new();
    for n in &status.networks {
        for p in &n.peers {
            let mut entry = match view {
                View::Links => serde_json::to_value(&p.link),
                _ => serde_json::to_value(p),
            }
            .unwrap_or_default();
            if let Value::Object(map) = &mut entry {
                map.insert("node".to_owned(), json!(status.name));
                map.insert("network".to_owned(), json!(n.network));
                if view == View::Links {
                    map.insert("name".to_owned(), json!(p.name));
                    map.insert("jid".to_owned(), json!(p.jid));
                }
            }
            text += &line(&entry);
        }
    }
    text
}

pub(super) fn line(value: &impl Serialize) -> String {
    // Strings, numbers and maps with string keys only: nothing that JSON refuses.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Draws again and again, also while no node runs, so that a restart can be watched. Ctrl-C ends it well.
fn watch(view: View, args: &ViewArgs) -> Result<ExitCode, Error> {
    let clear = !args.json && io::stdout().is_terminal();
    let failed = |e: io::Error| Error::io("watch", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let done = runtime.block_on(async {
        let mut interrupt =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
        loop {
            let args = args.clone();
            let looked = tokio::task::spawn_blocking(move || look(view, &args));
            let looked = tokio::select! {
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                looked = looked => looked.map_err(|e| Error::io("watch", io::Error::other(e)))?,
            };
            if draw(&looked, clear)? {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::select! {
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
    // A question that is still under way shall not hold it up.
    runtime.shutdown_background();
    if clear && done.is_ok() {
        print(b"\n")?;
    }
    done
}

/// Draws once; true if nobody reads any more.
fn draw(looked: &Result<Shown, Error>, clear: bool) -> Result<bool, Error> {
    let (text, failures) = match looked {
        Ok(shown) => (shown.text.clone(), shown.failures.join("\n")),
        Err(e) => (String::new(), e.to_string()),
    };
    let mut out = io::stdout().lock();
    let start = if clear { CLEAR } else { "" };
    let written = write!(out, "{start}{text}").and_then(|()| out.flush());
    if !failures.is_empty() {
        eprintln!("{failures}");
    }
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(e) => Err(Error::io("write to standard output", e)),
        Ok(()) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{LinkStatus, NetworkStatus, PeerStatus};

    #[test]
    fn nodes_are_chosen_by_name_by_socket_or_all() {
        let dir = tempfile::tempdir().expect("directory");
        let names = |choice: &NodeChoice| chosen(choice, dir.path());
        let none = names(&NodeChoice::default()).expect_err("none").to_string();
        assert!(none.contains("no node runs") && none.contains("ipop-fast up"), "{none}");
        for name in ["b.sock", "a.sock", "notes.txt"] {
            std::fs::write(dir.path().join(name), "").expect("write");
        }
        let all = names(&NodeChoice::default()).expect("all");
        assert_eq!(all, [dir.path().join("a.sock"), dir.path().join("b.sock")]);
        let one = NodeChoice { node: Some("x".to_owned()), socket: None };
        assert_eq!(names(&one).expect("one"), [dir.path().join("x.sock")]);
        let path = NodeChoice { node: None, socket: Some("/tmp/s".into()) };
        assert_eq!(names(&path).expect("one"), [PathBuf::from("/tmp/s")]);
    }

    #[test]
    fn json_comes_in_lines_that_say_whose_they_are() {
        let peer = PeerStatus {
            name: "vm2".to_owned(),
            jid: "vm2@b/r".to_owned(),
            link: LinkStatus { state: "up".to_owned(), ..LinkStatus::default() },
            ..PeerStatus::default()
        };
        let network = NetworkStatus {
            network: "group:g".to_owned(),
            peers: vec![peer.clone(), peer],
            ..NetworkStatus::default()
        };
        let status = Status { name: "vm1".to_owned(), networks: vec![network], ..Status::default() };
        assert_eq!(serde_json::from_str::<Status>(&lines(View::Status, &status)).expect("status"), status);
        for view in [View::Peers, View::Links, View::Pins] {
            let text = lines(view, &status);
            assert_eq!(text.lines().count(), 2);
            for line in text.lines() {
                let v: Value = serde_json::from_str(line).expect("json");
                assert_eq!((&v["node"], &v["network"], &v["name"]), (&json!("vm1"), &json!("group:g"), &json!("vm2")));
                let state = if view == View::Links { &v["state"] } else { &v["link"]["state"] };
                assert_eq!(state, "up");
            }
        }
    }
}
