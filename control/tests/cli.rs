//! The program as a person runs it, beside a node that only answers. Needs no rights.

use control::admin::names::{Name, Names};
use control::admin::status::{FriendStatus, LinkStatus, NetworkStatus, PeerStatus, Status};
use control::admin::{Request, Response, listen, serve};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Everything here takes milliseconds.
const LIMIT: Duration = Duration::from_secs(30);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipop-fast"));
    command.args(args).env_remove("IPOP_FAST_XMPP_PASSWORD").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program(args).output().expect("it starts")
}

fn said(out: &Output) -> (String, String) {
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn status() -> Status {
    let link = LinkStatus { state: "up".to_owned(), path: Some("direct".to_owned()), ..LinkStatus::default() };
    let peer = PeerStatus {
        name: "vm2".to_owned(),
        jid: "vm2@example.org/r".to_owned(),
        pin: "pinned".to_owned(),
        link,
        ..PeerStatus::default()
    };
    let network = NetworkStatus { network: "group:g".to_owned(), peers: vec![peer], ..NetworkStatus::default() };
    Status { name: "vm1".to_owned(), networks: vec![network], ..Status::default() }
}

fn friends() -> Vec<FriendStatus> {
    let friend = |jid: &str, state: &str| FriendStatus {
        jid: jid.to_owned(),
        state: state.to_owned(),
        ..FriendStatus::default()
    };
    vec![friend("carol@example.org", "request"), friend("bob@example.org", "friend")]
}

fn names() -> Names {
    let name = Name {
        name: "vm2.g.ipop".to_owned(),
        addresses: vec!["172.16.10.3".to_owned()],
        jid: "vm2@example.org".to_owned(),
        network: "group:g".to_owned(),
        own: false,
    };
    Names { node: "vm1".to_owned(), enabled: true, names: vec![name], ..Names::default() }
}

/// Answers on `socket` while `body` runs.
fn with_node(socket: &Path, body: impl FnOnce()) {
    let listening = listen(socket).expect("listen");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|s| {
        s.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let answer = |request| async {
                match request {
                    Request::Status => Response::Status(Box::new(status())),
                    Request::AcceptPin { jid } if jid.starts_with("vm2@") => {
                        Response::Done { message: format!("{jid} is pinned anew") }
                    }
                    Request::AcceptPin { jid } | Request::ForgetPins { jid } => {
                        Response::Error { message: format!("nobody is called {jid}") }
                    }
                    Request::Names => Response::Names(Box::new(names())),
                    Request::Reload => Response::Done { message: String::new() },
                    Request::Friends => Response::Friends { friends: friends() },
                    Request::Befriend { action, jid } => Response::Done { message: format!("{action:?} {jid}") },
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = serve(listening, answer) => panic!("it serves for ever"),
                    _ = stopped => {}
                }
            });
        });
        // Also after a failed check: the scope waits for the server.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        drop(stop);
        if let Err(failure) = done {
            std::panic::resume_unwind(failure);
        }
    });
}

#[test]
fn a_running_node_is_shown_and_steered() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("vm1.sock");
    let path = socket.to_str().expect("text");
    with_node(&socket, || {
        for (command, words) in [("status", "1 direct"), ("peers", "vm2@example.org"), ("links", "HANDSHAKE")] {
            let out = run(&[command, "--socket", path]);
            assert!(out.status.success() && said(&out).0.contains(words), "{command}: {:?}", said(&out));
            let out = run(&[command, "--json", "--socket", path]);
            let value: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one line of JSON");
            assert!(value.is_object(), "{value}");
        }
        let out = run(&["names", "--socket", path]);
        assert!(out.status.success() && said(&out).0.contains("vm2.g.ipop"), "{:?}", said(&out));
        let out = run(&["names", "--json", "--socket", path]);
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one line of JSON");
        assert!(value["node"] == "vm1" && value["addresses"][0] == "172.16.10.3", "{value}");
        let out = run(&["pins", "list", "--socket", path]);
        assert!(said(&out).0.contains("pinned"), "{:?}", said(&out));
        let out = run(&["pins", "accept", "vm2@example.org", "--socket", path]);
        assert!(out.status.success() && said(&out).0 == "vm1: vm2@example.org is pinned anew\n", "{:?}", said(&out));
        let out = run(&["pins", "accept", "vm3@example.org", "--socket", path]);
        assert!(!out.status.success() && said(&out).1.contains("nobody is called vm3"), "{:?}", said(&out));
    });
    let out = run(&["status", "--socket", path]);
    assert!(!out.status.success() && said(&out).1.contains("no such node runs"), "{:?}", said(&out));
}

#[test]
fn watching_draws_again_and_ends_well_by_an_interrupt() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("vm1.sock");
    with_node(&socket, || {
        let mut child = program(&["status", "--watch", "--json", "--socket", socket.to_str().expect("text")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tell, hear) = mpsc::channel();
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|l| tell.send(l)));
        let twice: Vec<_> = (0..2).map(|_| hear.recv_timeout(LIMIT)).collect();
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
        kill_process(pid, Signal::INT).expect("signal");
        let deadline = Instant::now() + LIMIT;
        let ended = loop {
            match child.try_wait().expect("wait") {
                Some(ended) => break Some(ended),
                None if Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        if ended.is_none() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        drop(hear);
        let _ = reader.join().expect("reader");
        assert!(twice.iter().all(|l| l.as_ref().is_ok_and(|l| l.contains("\"vm1\""))), "{twice:?}");
        assert!(ended.is_some_and(|e| e.success()), "{ended:?}");
    });
}

#[test]
fn a_configuration_is_checked_and_imported() {
    let dir = tempfile::tempdir().expect("directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    std::fs::write(path("bad.toml"), "[xmpp]\njdi = 1\n").expect("write");
    let out = run(&["check", "-c", &path("bad.toml")]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        said(&out).0.contains("bad.toml:2:1: xmpp.jdi: is no known key; did you mean \"jid\"?"),
        "{:?}",
        said(&out)
    );
    let out = run(&["check", "--json", "-c", &path("bad.toml")]);
    let value: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(value["ok"] == false && value["problems"][0]["line"] == 1, "{value}");
    let out = run(&["up", "-c", &path("bad.toml")]);
    assert!(!out.status.success() && said(&out).1.contains("did you mean"), "{:?}", said(&out));

    let old =
        r#"{"xmpp_username": "a@b.example", "xmpp_password": "hidden", "ip4": "10.1.1.2", "ip4_mask": 24, "odd": 1}"#;
    std::fs::write(path("old.json"), old).expect("write");
    let printed = said(&run(&["import", &path("old.json")]));
    assert!(
        printed.0.contains("address = \"10.1.1.2/24\"") && printed.1.contains("odd: NOT carried over"),
        "{printed:?}"
    );
    assert!(!printed.0.contains("hidden") && !printed.1.contains("hidden"), "{printed:?}");
    let out = run(&["import", &path("old.json"), "--group", "g", "-o", &path("node.toml")]);
    assert!(out.status.success(), "{:?}", said(&out));
    let out = run(&["check", "--json", "-c", &path("node.toml")]);
    assert!(out.status.success() && said(&out).0.contains("\"ok\":true"), "{:?}", said(&out));
    // The environment's password goes before the file's.
    let file = std::fs::OpenOptions::new().write(true).truncate(true).mode(0o600).open(path("node.password"));
    file.expect("emptied");
    assert!(!run(&["check", "-c", &path("node.toml")]).status.success());
    let out =
        program(&["check", "-c", &path("node.toml")]).env("IPOP_FAST_XMPP_PASSWORD", "x").output().expect("starts");
    assert!(out.status.success() && said(&out).0.contains("note: "), "{:?}", said(&out));
}

#[test]
fn friends_are_listed_asked_accepted_and_removed() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("node.sock");
    let path = socket.to_str().expect("UTF-8");
    with_node(&socket, || {
        let (out, _) = said(&run(&["friends", "list", "--socket", path]));
        assert!(out.contains("carol@example.org  request") && out.contains("friends accept carol"), "{out}");
        let (out, _) = said(&run(&["friends", "list", "--json", "--socket", path]));
        let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert_eq!((lines.len(), &lines[1]["jid"], &lines[1]["node"]), (2, &"bob@example.org".into(), &"node".into()));
        for (word, action) in [("add", "Add"), ("accept", "Accept"), ("remove", "Remove")] {
            let done = run(&["friends", word, "Dave@Example.org", "--socket", path]);
            assert_eq!((done.status.success(), said(&done).0), (true, format!("{action} dave@example.org\n")));
        }
    });
    let refused = said(&run(&["friends", "add", "dave@example.org/phone"])).1;
    assert!(refused.contains("leave out the resource"), "{refused}");
}
