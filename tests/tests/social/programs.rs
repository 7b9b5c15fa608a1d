//! Programs that know nothing of translation, between two friends who call themselves, and their subnets, the same.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::internet::Gateway;
use ipop_tests::node::INTERFACE;
use ipop_tests::ns::Namespace;
use ipop_tests::process::{Process, output, run, state_file, wait_for, wait_some};
use ipop_tests::require::{Need, can_run};
use ipop_tests::scene::Share;
use serde_json::Value;

use crate::cast::{Cast, Xmpp, befriend, lease, options, reach, scene};

/// Servers are there within this.
const THERE: Duration = Duration::from_secs(15);
const SSH_PORT: u16 = 2222;
/// What is offered by multicast DNS.
const OFFER: (&str, u16) = ("_ipop-test._tcp", 8080);

/// Two friends with a link between them, and what each calls the other.
fn friends(name: &str, programs: &[&'static str], body: impl FnOnce(&Cast, [IpAddr; 2]) -> Result<()>) {
    let needs: Vec<Need> = programs.iter().map(|p| Need::Program(p)).collect();
    if !can_run(name, &needs) {
        return;
    }
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::PortRestricted, Gateway::Public])?;
        let all = [0, 1].map(|n| {
            let mut o = options(n);
            o.network_lines = "multicast = true\n".into();
            o
        });
        cast.start(all.into())?;
        befriend(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        let names = [lease(&cast, 0, 1)?, lease(&cast, 1, 0)?];
        body(&cast, names)?;
        cast.alive()
    });
}

/// A directory that goes with the scene.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let dir = state_file(name)?;
        std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program in a namespace, ended when dropped.
struct Server(Process);

impl Server {
    fn start(name: &str, command: &mut Command) -> Result<Self> {
        Ok(Self(Process::start(name, command)?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn traceroute_and_pings_of_every_kind_name_the_address_that_the_friend_has_here() {
    friends("traceroute", &["traceroute"], |cast, [friend, _]| {
        let ns = cast.ns(0);
        let hop = |text: &str| text.lines().nth(1).unwrap_or_default().split_whitespace().nth(1).map(str::to_owned);
        // To dead UDP ports: what comes back is an ICMP error that quotes the packet.
        let text = run(ns.command("traceroute").args(["-n", "-q1", "-w3", "-m3", &friend.to_string()]))?;
        ensure!(hop(&text) == Some(friend.to_string()), "{text}");
        let ping = |args: &[&str]| -> Result<(bool, String)> {
            let out = output(ns.command("ping").args(["-n", "-c1", "-W3"]).args(args).arg(friend.to_string()))?;
            let text = [out.stdout, out.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
            Ok((out.status.success(), text))
        };
        let (answered, text) = ping(&["-t1"])?;
        ensure!(answered, "the friend is one hop away: {text}");
        let mtu = mtu(ns)?;
        let whole = (mtu - 28).to_string();
        let (answered, text) = ping(&["-M", "do", "-s", &whole])?;
        ensure!(answered, "a packet of {mtu} bytes: {text}");
        let (answered, text) = ping(&["-M", "do", "-s", "3000"])?;
        ensure!(!answered && text.contains(&format!("mtu={mtu}")), "too large, and not to be cut: {text}");
        let (answered, text) = ping(&["-M", "dont", "-s", "3000"])?;
        ensure!(answered, "fragments: {text}");
        Ok(())
    });
}

fn mtu(ns: &Namespace) -> Result<u64> {
    let text = ns.ip(&format!("-j link show dev {INTERFACE}"))?;
    serde_json::from_str::<Value>(&text)?[0]["mtu"].as_u64().context("no MTU")
}

#[test]
fn a_hop_behind_the_friend_that_ends_a_packet_is_seen_under_the_friends_address() {
    friends("a hop behind", &["nft", "traceroute"], |cast, [friend, _]| {
        // The friend hands a port on to a machine behind it, so that it forwards, and counts hops.
        let behind = Namespace::new("behind")?;
        ipop_tests::ns::link((cast.ns(1), "inner", &["192.168.77.1/24"]), (&behind, "eth0", &["192.168.77.2/24"]))?;
        behind.ip("route add default via 192.168.77.1")?;
        run(cast.ns(1).command("sysctl").args(["-q", "-w", "net.ipv4.ip_forward=1"]))?;
        let dir = Scratch::new("rules")?;
        let rules = "table ip t {\nchain c {\ntype nat hook prerouting priority dstnat;\n\
             iifname ipop0 udp dport 33434-33534 dnat to 192.168.77.2\n\
             iifname ipop0 icmp type echo-request dnat to 192.168.77.2\n}\n}\n";
        run(cast.ns(1).command("nft").arg("-f").arg(dir.write("nft", rules)?))?;
        let text = run(cast.ns(0).command("traceroute").args(["-n", "-q1", "-w3", "-m2", &friend.to_string()]))?;
        let hops: Vec<&str> = text.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        // Both are the friend to us: where the packet's life ended, and what it was handed on to.
        ensure!(hops == vec![friend.to_string(); 2], "{text}");
        // Path MTU discovery: what does not fit behind the friend is told by it, and remembered for its address here.
        cast.ns(1).ip("link set inner mtu 1300")?;
        let mut large = cast.ns(0).command("ping");
        let out = output(large.args(["-n", "-c2", "-i0.3", "-W3", "-M", "do", "-s", "1350", &friend.to_string()]))?;
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        ensure!(text.contains(&format!("From {friend}")) && text.contains("mtu = 1300"), "{text}");
        let learned = cast.ns(0).ip(&format!("route get {friend}"))?;
        ensure!(learned.contains("mtu 1300"), "{learned}");
        Ok(())
    });
}

#[test]
fn a_shell_and_a_copy_go_to_the_friend_and_it_sees_us_under_the_address_that_it_gave_us() {
    friends("ssh", &["ssh", "scp", "ssh-keygen", "sshd"], |cast, [friend, us]| {
        let dir = Scratch::new("ssh")?;
        for key in ["host", "user"] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.0.join(key)))?;
        }
        std::fs::copy(dir.0.join("user.pub"), dir.0.join("authorized"))?;
        let at = dir.0.display();
        let config = dir.write(
            "sshd_config",
            &format!(
                "Port {SSH_PORT}\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\n\
                 PermitRootLogin yes\nPasswordAuthentication no\nPidFile {at}/pid\nSubsystem sftp internal-sftp\n"
            ),
        )?;
        std::fs::create_dir_all("/run/sshd").context("where sshd separates its privileges")?;
        let mut sshd = cast.ns(1).command("/usr/sbin/sshd");
        let mut sshd = Server::start("sshd", sshd.args(["-D", "-e", "-f"]).arg(&config))?;
        let options = |c: &mut Command, port: &str| {
            c.args([port, &SSH_PORT.to_string(), "-i"]).arg(dir.0.join("user"));
            c.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            c.args(["-o", "ConnectTimeout=5"]);
        };
        let said = wait_some("a shell", THERE, || {
            ensure!(sshd.0.running(), "sshd has ended: {}", sshd.0.tail());
            let mut ssh = cast.ns(0).command("ssh");
            options(&mut ssh, "-p");
            Ok(Some(run(ssh.args([&format!("root@{friend}"), "echo $SSH_CONNECTION"]))?))
        })?;
        let words: Vec<&str> = said.split_whitespace().collect();
        ensure!(words.first() == Some(&us.to_string().as_str()), "it sees us as {said}");
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(dir.0.join("file"), &bytes)?;
        let mut scp = cast.ns(0).command("scp");
        options(&mut scp, "-P");
        run(scp.arg("-q").arg(dir.0.join("file")).arg(format!("root@{friend}:{at}/copy")))?;
        ensure!(std::fs::read(dir.0.join("copy"))? == bytes, "the copy differs");
        Ok(())
    });
}

#[test]
fn iperf_over_udp_and_tcp_arrives_both_ways() {
    friends("iperf3", &["iperf3"], |cast, [friend, _]| {
        let mut server = cast.ns(1).command("iperf3");
        let _server = Server::start("iperf3", server.arg("-s"))?;
        for args in [&["-u", "-b20M"][..], &["-u", "-b20M", "-R"], &["-C", "cubic"], &["-C", "cubic", "-R"]] {
            let sum = wait_some(&format!("iperf3 {args:?}"), THERE, || {
                let mut client = cast.ns(0).command("iperf3");
                client.args(["-J", "-t1", "-c", &friend.to_string()]).args(args);
                let said: Value = serde_json::from_str(&run(&mut client)?)?;
                // It says nothing of the end if it could not begin: the server may not be there yet.
                ensure!(said["error"].is_null() && said["end"]["streams"].is_array(), "{said}");
                Ok(Some(said["end"].clone()))
            })?;
            let received = if args[0] == "-u" { &sum["sum"] } else { &sum["sum_received"] };
            let bytes = received["bytes"].as_f64().unwrap_or_default();
            ensure!(bytes > 1e6, "{args:?}: {sum}");
            if let Some(lost) = received["lost_percent"].as_f64() {
                ensure!(lost < 20.0, "{args:?}: {lost} % were lost");
            }
        }
        Ok(())
    });
}

/// What a machine with multicast DNS runs, with everything that it writes in a mount namespace of its own.
fn discovery(ns: &Namespace, dir: &Scratch, name: &str, then: &str) -> Result<Command> {
    let config = dir.write(
        &format!("{name}.conf"),
        &format!(
            "[server]\nhost-name={name}\nuse-ipv4=yes\nuse-ipv6=no\nallow-interfaces={INTERFACE}\n\
             allow-point-to-point=yes\nratelimit-interval-usec=1000000\nratelimit-burst=1000\n\
             [wide-area]\nenable-wide-area=no\n[publish]\npublish-workstation=no\npublish-hinfo=no\n"
        ),
    )?;
    let service = dir.write(
        &format!("{name}.service"),
        &format!(
            "<?xml version=\"1.0\" standalone='no'?><!DOCTYPE service-group SYSTEM \"avahi-service.dtd\">\n\
             <service-group><name>offer of {name}</name><service><type>{}</type><port>{}</port></service></service-group>\n",
            OFFER.0, OFFER.1
        ),
    )?;
    let script = format!(
        "set -e\nmount -t tmpfs none /run\nmkdir -p /run/dbus /run/avahi-daemon\nmount -t tmpfs none /etc/avahi/services\n\
         cp {} /etc/avahi/services/offer.service\n\
         dbus-daemon --system --nofork --nopidfile &\n\
         until [ -S /run/dbus/system_bus_socket ]; do sleep 0.1; done\n\
         avahi-daemon --no-drop-root --no-rlimits --no-chroot -f {} &\n{then}\n",
        service.display(),
        config.display()
    );
    let mut command = ns.command("unshare");
    // With the shell everything that it started ends.
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
    Ok(command)
}

#[test]
fn a_service_that_a_friend_offers_is_found_under_the_address_that_the_friend_has_here() {
    let programs = ["avahi-daemon", "avahi-browse", "dbus-daemon", "unshare"];
    friends("avahi", &programs, |cast, [friend, _]| {
        let dir = Scratch::new("avahi")?;
        let _offers = Server::start("avahi of 1", &mut discovery(cast.ns(1), &dir, "one", "wait")?)?;
        let browse = format!("while sleep 1; do avahi-browse -rpt {} || true; done", OFFER.0);
        let looks = Server::start("avahi of 0", &mut discovery(cast.ns(0), &dir, "zero", &browse)?)?;
        let found = |line: &str| {
            let fields: Vec<&str> = line.split(';').collect();
            let wanted = fields.first() == Some(&"=") && fields.get(6) == Some(&"one.local");
            wanted.then(|| {
                (fields.get(7).copied().unwrap_or_default().to_owned(), fields.get(8).map(|p| (*p).to_owned()))
            })
        };
        let (address, port) = wait_some("the friend's service", Duration::from_secs(40), || {
            let log = looks.0.log();
            ensure!(!log.is_empty(), "nothing yet");
            Ok(log.lines().find_map(found))
        })
        .with_context(|| looks.0.tail())?;
        ensure!(address == friend.to_string() && port == Some(OFFER.1.to_string()), "it is at {address}, {port:?}");
        wait_for("the friend to answer there", THERE, || {
            Ok(output(cast.ns(0).command("ping").args(["-n", "-c1", "-W2", &address]))?.status.success())
        })?;
        ensure!(Path::new("/etc/avahi").exists(), "the machine's own files are not touched");
        Ok(())
    });
}
