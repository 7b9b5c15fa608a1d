//! The real `wg` and `wg-quick`, and the daemon's life: to the background and back, signals, handed-over descriptors.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Daemon, Implementation, environment, uapi_socket};
use ipop_tests::ns::{Namespace, unique_interface};
use ipop_tests::pair::{Options, Pair, Side, UNDERLAY, joined};
use ipop_tests::process::{Process, alive, output, run, signal, state_file, wait_for, wait_some};
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::wg::{Dump, Keys, preshared_key, setconf, wg, wg_with_file};
use nix::sys::signal::Signal;

const HANDSHAKE: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(5);

fn scene(body: impl FnOnce(&Implementation) -> Result<()>) {
    let ours = Implementation::under_test();
    let mut needs = tunnel();
    needs.push(Need::Daemon(ours.clone()));
    play(Share::Shared, &needs, || body(&ours));
}

fn quick_scene(body: impl FnOnce(&Implementation) -> Result<()>) {
    let ours = Implementation::under_test();
    let mut needs = tunnel();
    needs.extend([Need::Daemon(ours.clone()), Need::Program("wg-quick"), Need::Program("nft")]);
    play(Share::Shared, &needs, || body(&ours));
}

/// A `wg-quick` configuration file named after its interface.
struct Quick<'a> {
    ns: &'a Namespace,
    interface: String,
    file: PathBuf,
    binary: PathBuf,
}

impl<'a> Quick<'a> {
    fn new(ns: &'a Namespace, ours: &Implementation, config: &str) -> Result<Self> {
        let interface = unique_interface();
        let directory = state_file("quick")?;
        std::fs::create_dir(&directory)?;
        let file = directory.join(format!("{interface}.conf"));
        std::fs::write(&file, config)?;
        // wg-quick complains about a file that others can read.
        run(Command::new("chmod").arg("600").arg(&file))?;
        Ok(Self { ns, interface, file, binary: ours.binary()? })
    }

    fn wg_quick(&self, verb: &str) -> Result<String> {
        let mut c = self.ns.command("wg-quick");
        c.arg(verb).arg(&self.file).envs(environment("error"));
        c.env("WG_QUICK_USERSPACE_IMPLEMENTATION", &self.binary);
        // Its output to a file, not a pipe: the daemon may keep it open for as long as it lives.
        let mut process = Process::start(&format!("wg-quick {verb}"), &mut c)?;
        let status = process.wait(Duration::from_secs(20))?;
        ensure!(status.success(), "wg-quick {verb}: {status}:\n{}", process.log());
        Ok(process.log())
    }

    fn pid(&self) -> Result<u32> {
        daemon_pid(self.ns, &self.binary)
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        let _ = self.file.parent().map(std::fs::remove_dir_all);
        let _ = std::fs::remove_file(uapi_socket(&self.interface));
    }
}

/// The one process in a namespace that runs `binary`.
fn daemon_pid(ns: &Namespace, binary: &Path) -> Result<u32> {
    let binary = binary.canonicalize()?;
    wait_some("the daemon's process", SOON, || {
        let pids = run(Command::new("ip").args(["netns", "pids", ns.name()]))?;
        let ours = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|e| e == binary);
        Ok(pids.lines().filter_map(|p| p.trim().parse().ok()).find(ours))
    })
}

/// Interface, socket and process are all gone.
fn wait_gone(ns: &Namespace, interface: &str, pid: u32) -> Result<()> {
    wait_for("the daemon to end", SOON, || Ok(!alive(pid)))?;
    wait_for("the interface to go", SOON, || Ok(!ns.has_link(interface)))?;
    wait_for("the socket to go", SOON, || Ok(!uapi_socket(interface).exists()))
}

#[test]
fn wg_quick_brings_two_sites_up_and_down_again() {
    quick_scene(|ours| {
        let (a, b) = joined()?;
        let (ka, kb, psk) = (Keys::generate()?, Keys::generate()?, preshared_key()?);
        let config = |own: &Keys, other: &Keys, me: u8, you: u8| {
            format!(
                "[Interface]\nPrivateKey = {}\nListenPort = 51820\nAddress = 172.16.10.{me}/24, fd10::{me}/64\n\
                 PostUp = ip link set %i txqueuelen 1000\n\
                 [Peer]\nPublicKey = {}\nPresharedKey = {psk}\nAllowedIPs = 172.16.10.{you}/32, fd10::{you}/128\n\
                 Endpoint = 10.99.0.{you}:51820\nPersistentKeepalive = 25\n",
                own.private, other.public
            )
        };
        let qa = Quick::new(&a, ours, &config(&ka, &kb, 1, 2))?;
        let qb = Quick::new(&b, ours, &config(&kb, &ka, 2, 1))?;
        qa.wg_quick("up")?;
        qb.wg_quick("up")?;
        wait_for("a ping", HANDSHAKE, || {
            Ok(output(a.command("ping").args(["-qc1", "-W1", "172.16.10.2"]))?.status.success())
        })?;
        ensure!(output(b.command("ping").args(["-qc1", "-W1", "fd10::1"]))?.status.success(), "no ping by IPv6");
        let dump = Dump::read(&qa.interface)?;
        let peer = dump.peer(&kb.public)?;
        ensure!(dump.listen_port == 51820 && peer.keepalive == Some(25), "{dump:?}");
        ensure!(peer.preshared_key.as_deref() == Some(psk.as_str()) && peer.latest_handshake.is_some(), "{dump:?}");
        let shown = wg(&format!("show {}", qa.interface))?;
        for part in ["public key", "listening port: 51820", "latest handshake", "transfer", "persistent keepalive"] {
            ensure!(shown.contains(part), "wg show has no {part:?}:\n{shown}");
        }
        ensure!(wg("show interfaces")?.split_whitespace().any(|i| i == qa.interface), "not among wg's interfaces");
        let again = qa.wg_quick("up").err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(again.contains("already exists"), "a second up: {again:?}");
        let saved = wg(&format!("showconf {}", qa.interface))?;
        ensure!(saved.contains(&ka.private) && saved.contains(&psk), "wg showconf:\n{saved}");
        for q in [&qa, &qb] {
            let pid = q.pid()?;
            q.wg_quick("down")?;
            wait_gone(q.ns, &q.interface, pid)?;
        }
        Ok(())
    });
}

/// The usual road-warrior set-up: everything through the tunnel, told apart by fwmark and policy routing.
#[test]
fn wg_quick_sends_all_traffic_through_the_tunnel() {
    quick_scene(|ours| {
        let (a, b) = joined()?;
        let server = Daemon::start(&b, ours)?;
        let (ka, kb) = (Keys::generate()?, Keys::generate()?);
        setconf(
            server.interface(),
            &format!(
                "[Interface]\nPrivateKey={}\nListenPort=51820\n[Peer]\nPublicKey={}\nAllowedIPs=172.16.10.1/32\n",
                kb.private, ka.public
            ),
        )?;
        b.ip(&format!("addr add 172.16.10.2/24 dev {}", server.interface()))?;
        b.ip(&format!("link set {} mtu 1420 up", server.interface()))?;
        b.ip("addr add 198.51.100.7/32 dev lo")?;
        let q = Quick::new(
            &a,
            ours,
            &format!(
                "[Interface]\nPrivateKey={}\nAddress=172.16.10.1/24\n[Peer]\nPublicKey={}\nAllowedIPs=0.0.0.0/0\n\
             Endpoint=10.99.0.2:51820\n",
                ka.private, kb.public
            ),
        )?;
        q.wg_quick("up")?;
        ensure!(Dump::read(&q.interface)?.fwmark != 0, "no fwmark");
        let route = a.ip("route get 198.51.100.7")?;
        ensure!(route.contains(&q.interface), "routed {route}");
        wait_for("an answer from beyond", HANDSHAKE, || {
            Ok(output(a.command("ping").args(["-qc1", "-W1", "198.51.100.7"]))?.status.success())
        })?;
        let pid = q.pid()?;
        q.wg_quick("down")?;
        wait_gone(&a, &q.interface, pid)
    });
}

#[test]
fn wg_set_and_syncconf_change_a_running_tunnel() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        let dev = pair.interface(Side::A).to_owned();
        let known = pair.site(Side::B).keys.public.clone();
        let stranger = Keys::generate()?.public;

        wg(&format!(
            "set {dev} fwmark 0x2a peer {stranger} allowed-ips 192.0.2.0/24,2001:db8::/32 endpoint \
                     [fd99::9]:4242 persistent-keepalive 21"
        ))?;
        let dump = Dump::read(&dev)?;
        let p = dump.peer(&stranger)?;
        ensure!(dump.fwmark == 0x2a && p.keepalive == Some(21) && p.allowed_ips.len() == 2, "{dump:?}");
        ensure!(p.endpoint == Some("[fd99::9]:4242".parse()?), "{p:?}");

        // A prefix belongs to one peer: giving it to another takes it away.
        wg(&format!("set {dev} peer {stranger} allowed-ips {}/32", Side::B.inner4()))?;
        ensure!(Dump::read(&dev)?.peer(&known)?.allowed_ips.len() == 1, "the prefix has two owners");
        ensure!(!pair.pings(Side::A, Side::B.inner4()), "a ping to a prefix that moved away");
        ensure!(pair.pings(Side::A, Side::B.inner6()), "the other prefix went with it");
        wg(&format!("set {dev} peer {known} allowed-ips {}/32,{}/128", Side::B.inner4(), Side::B.inner6()))?;
        pair.wait_ping(Side::A, HANDSHAKE).context("after the prefix came back")?;

        wg(&format!("set {dev} peer {stranger} persistent-keepalive off"))?;
        ensure!(Dump::read(&dev)?.peer(&stranger)?.keepalive.is_none(), "keepalive off");
        wg(&format!("set {dev} peer {stranger} remove"))?;
        ensure!(Dump::read(&dev)?.peers.len() == 1, "a removed peer is still there");

        wg(&format!("set {dev} listen-port 50999 fwmark 0"))?;
        let dump = Dump::read(&dev)?;
        ensure!(dump.listen_port == 50999 && dump.fwmark == 0, "{dump:?}");
        pair.wait_ping(Side::A, HANDSHAKE).context("after the port changed")?;

        let psk = preshared_key()?;
        for side in [Side::A, Side::B] {
            let other = &pair.site(side.other()).keys.public;
            wg_with_file(&format!("set {} peer {other} preshared-key {{}}", pair.interface(side)), &psk)?;
        }
        ensure!(pair.peer(Side::A)?.preshared_key == Some(psk), "the preshared key was not taken");
        pair.wait_ping(Side::A, HANDSHAKE)?;

        // syncconf with what is there leaves the session alone; with one peer more it adds that one.
        let before = pair.peer(Side::A)?.latest_handshake;
        let config = wg(&format!("showconf {dev}"))?;
        let more = format!("{config}\n[Peer]\nPublicKey = {stranger}\nAllowedIPs = 192.0.2.0/24\n");
        wg_with_file(&format!("syncconf {dev} {{}}"), &more)?;
        ensure!(Dump::read(&dev)?.peers.len() == 2, "syncconf did not add");
        ensure!(pair.pings(Side::A, Side::B.inner4()), "syncconf broke a running session");
        wg_with_file(&format!("syncconf {dev} {{}}"), &config)?;
        ensure!(Dump::read(&dev)?.peers.len() == 1, "syncconf did not remove");
        ensure!(pair.peer(Side::A)?.latest_handshake == before, "syncconf made a new handshake");

        wg(&format!("addconf {dev} /dev/null"))?;
        ensure!(wg(&format!("set {dev} peer {stranger} allowed-ips 300.0.0.0/8")).is_err(), "nonsense was taken");
        pair.both_run()
    });
}

#[test]
fn a_new_private_key_ends_old_sessions_and_removes_itself_as_a_peer() {
    scene(|ours| {
        let pair = Pair::start(ours, ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        let fresh = Keys::generate()?;
        let dev = pair.interface(Side::A);
        wg_with_file(&format!("set {dev} private-key {{}}"), &fresh.private)?;
        ensure!(Dump::read(dev)?.public_key == fresh.public, "the key was not taken");
        let (old, b) = (&pair.site(Side::A).keys.public, pair.interface(Side::B));
        let allowed = format!("{}/32,{}/128", Side::A.inner4(), Side::A.inner6());
        wg(&format!("set {b} peer {old} remove peer {} allowed-ips {allowed}", fresh.public))?;
        let to = Side::B.inner4();
        wait_for("a ping under the new key", HANDSHAKE, || Ok(pair.pings(Side::A, to)))
    });
}

/// Starts the daemon as `wg-quick` does, without `-f`, and gives its interface and pid after the parent has ended.
fn in_background(ns: &Namespace, ours: &Implementation) -> Result<(String, u32)> {
    let interface = unique_interface();
    let line = ours.command_line(&interface, false)?;
    let mut command = ns.command(&line[0]);
    command.args(&line[1..]).envs(environment("error"));
    let mut parent = Process::start("the starting process", &mut command)?;
    let status = parent.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "{line:?}: {status}:\n{}", parent.tail());
    // At once, with no waiting: that is what wg-quick counts on.
    ensure!(ns.has_link(&interface), "the parent ended before the interface was there");
    Dump::read(&interface).context("the parent ended before the socket was there")?;
    let pid = daemon_pid(ns, &ours.binary()?)?;
    Ok((interface, pid))
}

#[test]
fn it_goes_to_the_background_once_interface_and_socket_are_there_and_sigterm_ends_it() {
    scene(|ours| {
        for s in [Signal::SIGTERM, Signal::SIGINT] {
            let ns = Namespace::new("bg")?;
            let (interface, pid) = in_background(&ns, ours)?;
            signal(pid, s)?;
            wait_gone(&ns, &interface, pid).with_context(|| format!("after {s}"))?;
        }
        Ok(())
    });
}

/// Whoever starts it again at once, as `systemctl restart` does, finds the name free.
#[test]
fn the_interface_is_gone_when_the_program_has_ended() {
    scene(|ours| {
        let ns = Namespace::new("gone")?;
        for round in 0..10 {
            let interface = unique_interface();
            let line = ours.command_line(&interface, true)?;
            let mut child = ns.command(&line[0]).args(&line[1..]).envs(environment("error")).spawn()?;
            let up = wait_for("the interface", SOON, || {
                Dump::read(&interface)?;
                ns.ip(&format!("link set {interface} up")).map(|_| true)
            });
            signal(child.id(), Signal::SIGTERM)?;
            // Not `Process::wait`: it looks every few milliseconds, and this is about those.
            let status = child.wait()?;
            up?;
            ensure!(status.success(), "{status}");
            ensure!(!ns.has_link(&interface), "round {round}: the interface is still there");
        }
        Ok(())
    });
}

#[test]
fn deleting_the_interface_ends_it() {
    scene(|ours| {
        let ns = Namespace::new("del")?;
        let (interface, pid) = in_background(&ns, ours)?;
        ns.ip(&format!("link set {interface} up"))?;
        ns.ip(&format!("link del {interface}"))?;
        wait_gone(&ns, &interface, pid)
    });
}

#[test]
fn removing_the_uapi_socket_ends_it() {
    scene(|ours| {
        let ns = Namespace::new("sock")?;
        let (interface, pid) = in_background(&ns, ours)?;
        std::fs::remove_file(uapi_socket(&interface))?;
        wait_gone(&ns, &interface, pid)
    });
}

#[test]
fn the_foreground_can_be_asked_for_by_environment() {
    scene(|ours| {
        let ns = Namespace::new("fg")?;
        let interface = unique_interface();
        let line = ours.command_line(&interface, false)?;
        let mut command = ns.command(&line[0]);
        command.args(&line[1..]).envs(environment("verbose")).env("WG_PROCESS_FOREGROUND", "1");
        let mut process = Process::start("foreground", &mut command)?;
        wait_for("interface and socket", Duration::from_secs(10), || Dump::read(&interface).map(|_| true))?;
        ensure!(process.running(), "it left the foreground");
        let pid = process.pid();
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(SOON)?;
        ensure!(status.success(), "SIGTERM: {status}");
        wait_gone(&ns, &interface, pid)
    });
}

#[test]
fn log_level_silent_is_silent_and_no_log_has_a_key_in_it() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options { level: "silent", ..Options::default() })?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        for side in [Side::A, Side::B] {
            let said = pair.daemon(side).process().log();
            ensure!(!said.contains("andshake"), "silent, but it said:\n{said}");
        }
        let psk = preshared_key()?;
        let preshared = [Some(psk.clone()), Some(psk.clone())];
        let mut pair = Pair::start(ours, ours, Options { preshared, ..Options::default() })?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        for side in [Side::A, Side::B] {
            let private = pair.site(side).keys.private.clone();
            let said = pair.daemon(side).process().log();
            ensure!(!said.contains(&private) && !said.contains(&psk), "a secret in the log");
        }
        Ok(())
    });
}

#[test]
fn a_second_one_on_the_same_interface_is_refused_and_the_first_goes_on() {
    scene(|ours| {
        let ns = Namespace::new("two")?;
        let mut first = Daemon::start(&ns, ours)?;
        let interface = first.interface().to_owned();
        let line = ours.command_line(&interface, true)?;
        let mut command = ns.command(&line[0]);
        command.args(&line[1..]).envs(environment("error"));
        let mut second = Process::start("the second", &mut command)?;
        let status = second.wait(Duration::from_secs(10))?;
        ensure!(!status.success(), "a second one started");
        let said = second.log().to_lowercase();
        ensure!(["busy", "in use", "already", "exists"].iter().any(|w| said.contains(w)), "unclear: {said:?}");
        ensure!(first.process().running(), "the first one ended");
        Dump::read(&interface).context("the first one lost its socket").map(drop)
    });
}

#[test]
fn bad_arguments_are_refused_with_usage() {
    scene(|ours| {
        let ns = Namespace::new("args")?;
        let binary = ours.binary()?;
        let said = |args: &[&str]| -> Result<(bool, String)> {
            let mut command = ns.command(&binary);
            let mut process = Process::start("bad arguments", command.args(args).envs(environment("error")))?;
            Ok((process.wait(SOON)?.success(), process.log()))
        };
        for args in [&[][..], &["-f"]] {
            let (_, text) = said(args)?;
            ensure!(text.to_lowercase().contains("usage"), "{args:?}: {text:?}");
        }
        // IFNAMSIZ is 16 with the closing zero.
        let (ok, text) = said(&["-f", "an-interface-name-that-is-far-too-long"])?;
        ensure!(!ok && !text.trim().is_empty(), "a name that is too long: {text:?}");
        ensure!(run(Command::new(&binary).arg("--version"))?.chars().any(|c| c.is_ascii_digit()), "no version");
        Ok(())
    });
}

#[test]
fn a_port_in_use_is_refused_with_a_message_and_the_daemon_lives() {
    scene(|ours| {
        let ns = Namespace::new("port")?;
        let _held = ns.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:4999")?))?;
        let mut daemon = Daemon::start(&ns, ours)?;
        let dev = daemon.interface().to_owned();
        wg_with_file(&format!("set {dev} private-key {{}}"), &Keys::generate()?.private)?;
        ns.ip(&format!("link set {dev} up"))?;
        wait_for("a port of its own", SOON, || Ok(Dump::read(&dev)?.listen_port != 0))?;
        let refused = wg(&format!("set {dev} listen-port 4999")).err().map(|e| format!("{e:#}"));
        ensure!(refused.is_some_and(|m| m.contains("in use")), "a port in use was taken");
        ensure!(daemon.process().running(), "it ended");
        wg(&format!("set {dev} listen-port 4998"))?;
        ensure!(Dump::read(&dev)?.listen_port == 4998, "it did not recover");
        Ok(())
    });
}

#[test]
fn traffic_returns_after_the_tunnel_interface_was_down() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        for side in [Side::A, Side::B] {
            let dev = pair.interface(side).to_owned();
            pair.ns(side).ip(&format!("link set {dev} down"))?;
            ensure!(!pair.pings(side, side.other().inner4()), "a ping through an interface that is down");
            pair.ns(side).ip(&format!("link set {dev} up"))?;
            pair.wait_ping(side, Duration::from_secs(20)).with_context(|| format!("after {side:?} was down"))?;
            wait_for("the other way", HANDSHAKE, || Ok(pair.pings(side.other(), side.inner4())))?;
        }
        pair.both_run()
    });
}

#[test]
fn traffic_returns_after_the_underlay_was_down() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        pair.ns(Side::A).ip(&format!("link set {UNDERLAY} down"))?;
        ensure!(!pair.pings(Side::A, Side::B.inner4()), "a ping through a dead underlay");
        ensure!(!pair.pings(Side::B, Side::A.inner4()), "a ping through a dead underlay");
        pair.ns(Side::A).ip(&format!("link set {UNDERLAY} up"))?;
        pair.wait_ping(Side::A, Duration::from_secs(20))?;
        pair.wait_ping(Side::B, HANDSHAKE)?;
        pair.both_run()
    });
}

#[test]
fn an_endpoint_without_a_route_or_a_listener_harms_nobody_else() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options::default())?;
        let dev = pair.interface(Side::A).to_owned();
        // 203.0.113.0/24: no route. 10.99.0.2:9: refused by ICMP. 10.99.0.200: nobody answers ARP.
        for (n, endpoint) in
            ["203.0.113.5:1", "10.99.0.2:9", "10.99.0.200:51820", "[fd00:dead::1]:1"].iter().enumerate()
        {
            let key = Keys::generate()?.public;
            wg(&format!("set {dev} peer {key} endpoint {endpoint} allowed-ips 172.16.10.{}/32", 100 + n))?;
            ensure!(!pair.pings(Side::A, [172, 16, 10, 100 + u8::try_from(n)?].into()), "an answer from nowhere");
        }
        pair.wait_ping(Side::A, HANDSHAKE)?;
        pair.both_run()
    });
}

#[test]
fn a_changed_mtu_is_followed() {
    scene(|ours| {
        let mut pair = Pair::start(ours, ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        // Larger than the underlay's: the datagrams travel in fragments, as with any tunnel.
        for mtu in [1280_usize, 9000, 1420] {
            for side in [Side::A, Side::B] {
                pair.ns(side).ip(&format!("link set {} mtu {mtu}", pair.interface(side)))?;
            }
            // ICMP payload that fills one packet: 20 bytes of IPv4 and 8 of ICMP less.
            let size = (mtu - 28).to_string();
            wait_for(&format!("a ping of {mtu} bytes"), SOON, || {
                let mut ping = pair.ns(Side::A).command("ping");
                ping.args(["-qc1", "-W1", "-M", "do", "-s", &size]).arg(Side::B.inner4().to_string());
                Ok(output(&mut ping)?.status.success())
            })?;
            ipop_tests::traffic::tcp_transfer(
                pair.ns(Side::A),
                pair.ns(Side::B),
                Side::B.inner4(),
                2_000_000,
                Duration::from_secs(20),
            )
            .with_context(|| format!("TCP at MTU {mtu}"))?;
        }
        pair.both_run()
    });
}

/// Descriptors are handed over as a service manager does: an open TUN device, a listening socket.
#[test]
fn tun_and_uapi_descriptors_can_be_handed_over() {
    scene(|ours| {
        let ns = Namespace::new("fd")?;
        let interface = unique_interface();
        let device = ns.run(|| {
            // Packet information off, no offload, one queue: what `ip tuntap add mode tun` makes.
            Ok(tun_rs::DeviceBuilder::new().name(&interface).enable(false).build_sync()?)
        })?;
        let tun = device.as_fd().try_clone_to_owned()?;
        // Ours closed: the interface must live by the descriptor handed over.
        drop(device);
        let socket = uapi_socket(&interface);
        std::fs::create_dir_all(socket.parent().context("socket directory")?)?;
        let listener = UnixListener::bind(&socket)?;
        let line = ours.command_line(&interface, true)?;
        let log = state_file("log")?;
        let mut command = ns.command("sh");
        // As stdin and stdout they reach this child and no other; it gives them their numbers.
        let script = "exec 3<&0 4<&1 0</dev/null 1>&2; WG_TUN_FD=3 WG_UAPI_FD=4 exec \"$@\"";
        command.args(["-c", script, "sh"]).args(&line).envs(environment("verbose"));
        command.stdin(Stdio::from(tun)).stdout(Stdio::from(OwnedFd::from(listener)));
        command.stderr(std::fs::File::create(&log)?);
        let mut process = Process::adopt("with descriptors", log.clone(), &mut command)?;
        drop(command);
        wait_for("an answer on the handed-over socket", Duration::from_secs(10), || {
            ensure!(process.running(), "it ended:\n{}", process.tail());
            Dump::read(&interface).map(|_| true)
        })
        .with_context(|| process.tail())?;
        let link = ns.ip(&format!("link show {interface}"))?;
        ensure!(link.contains(" mtu 1420 "), "not the tunnel's MTU: {link}");
        wg_with_file(&format!("set {interface} listen-port 4100 private-key {{}}"), &Keys::generate()?.private)?;
        ns.ip(&format!("addr add 172.16.10.1/24 dev {interface}"))?;
        ns.ip(&format!("link set {interface} up"))?;
        // The other side of the tunnel, in the same namespace.
        let other = Daemon::start(&ns, ours)?;
        let (keys, peer) = (Keys::generate()?, Dump::read(&interface)?.public_key);
        setconf(
            other.interface(),
            &format!(
                "[Interface]\nPrivateKey={}\nListenPort=4101\n[Peer]\nPublicKey={peer}\nEndpoint=127.0.0.1:4100\n\
             AllowedIPs=0.0.0.0/0\nPersistentKeepalive=1\n",
                keys.private
            ),
        )?;
        wg(&format!("set {interface} peer {} allowed-ips 172.16.10.2/32", keys.public))?;
        ns.ip(&format!("link set {} up", other.interface()))?;
        wait_for("a handshake over the handed-over device", HANDSHAKE, || {
            Ok(Dump::read(&interface)?.peer(&keys.public)?.latest_handshake.is_some())
        })
        .with_context(|| process.tail())?;
        process.signal(Signal::SIGTERM)?;
        process.wait(SOON)?;
        let _ = std::fs::remove_file(log);
        let _ = std::fs::remove_file(socket);
        Ok(())
    });
}
