use super::values::{duration, host_port, nearest};
use super::*;
use proptest::prelude::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

const GOOD: &str = r#"
[node]
name = "vm1"
state_dir = "/var/lib/ipop-fast"
[xmpp]
jid = "vm1@example.org"
password_file = "password"
server = "xmpp.example.org:5222"
ca_file = "ca.pem"
[[network]]
kind = "group"
group = "my_pragma_group_1"
interface = "ipop0"
address = "172.16.10.2/24"
secret_file = "group-secret"
routes = ["10.1.0.0/16"]
accept_routes = true
links = "proactive"
idle_timeout = "10m"
[ice]
stun = ["stun.example.org:3478"]
turn = [{ server = "turn.example.org", username = "u", password_file = "turn" }]
"#;

/// As short as can be.
const SHORT: &str = "[xmpp]\njid = \"a@b\"\npassword_file = \"password\"\n[[network]]\ngroup = \"g\"\n\
                     subnet = \"172.16.10.0/24\"\n";

fn secret_file(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("mode");
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    for (name, text) in [("password", "pass word\n"), ("group-secret", "0123456789abcdef\n"), ("turn", "t")] {
        secret_file(dir.path(), name, text);
    }
    std::fs::write(dir.path().join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").expect("write");
    dir
}

fn around(dir: &Path) -> Surroundings {
    Surroundings { directory: dir.to_owned(), hostname: "host-7.example.org\n".to_owned(), password: None }
}

fn problems(text: &str) -> Vec<Problem> {
    let dir = directory();
    match parse(Path::new("node.toml"), text, &around(dir.path())) {
        Ok(_) => Vec::new(),
        Err(p) => p.problems,
    }
}

/// The problems of the short configuration with a line more in `[[network]]`.
fn with_line(line: &str) -> Vec<Problem> {
    problems(&format!("{SHORT}{line}\n"))
}

/// The one problem that is expected.
fn only(found: Vec<Problem>, key: &str, words: &str) {
    let [p] = found.as_slice() else { panic!("one problem about {key} with \"{words}\" was expected: {found:?}") };
    assert!(p.key == key && p.message.contains(words), "expected {key}: {words}; got {p:?}");
}

#[test]
fn a_whole_file_is_read() {
    let dir = directory();
    let c = parse(Path::new("x"), GOOD, &around(dir.path())).expect("valid");
    assert_eq!(
        (c.name.as_str(), c.xmpp.jid.as_str(), c.xmpp.password.as_str()),
        ("vm1", "vm1@example.org", "pass word")
    );
    assert_eq!(c.xmpp.server, Some(("xmpp.example.org".to_owned(), 5222)));
    assert_eq!(c.xmpp.ca_file, Some(dir.path().join("ca.pem")));
    assert_eq!(c.control_socket, Path::new("/run/ipop-fast/vm1.sock"));
    let n = &c.networks[0];
    let g = n.group().expect("a group");
    assert_eq!(g.source, GroupSource::Roster("my_pragma_group_1".to_owned()));
    assert_eq!(n.address, AddressChoice::Fixed("172.16.10.2".parse().expect("address"), 24));
    assert_eq!(g.secret.as_ref().map(|s| s.as_slice()), Some(&b"0123456789abcdef"[..]));
    assert_eq!(
        (g.routes[0].to_string().as_str(), g.accept_routes, n.links),
        ("10.1.0.0/16", true, LinkPolicy::Proactive)
    );
    assert_eq!(
        (c.ice.stun[0].as_str(), c.ice.turn[0].server.as_str()),
        ("stun.example.org:3478", "turn.example.org:3478")
    );
    assert!(c.notes.is_empty(), "{:?}", c.notes);
    let shown = format!("{c:?}");
    for secret in ["pass word", "0123456789abcdef", &format!("{:?}", b"0123456789abcdef")] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let dir = directory();
    let text =
        format!("{SHORT}[[network]]\nmuc = \"Room@conference.b\"\naddress = \"10.9.0.7\"\nsubnet = \"10.9.0.0/16\"\n");
    let c = parse(Path::new("x"), &text, &around(dir.path())).expect("valid");
    assert_eq!((c.name.as_str(), c.state_dir.to_str()), ("host-7", Some("/var/lib/ipop-fast")));
    assert!(c.xmpp.server.is_none() && !c.xmpp.direct_tls && c.xmpp.ca_file.is_none());
    assert!(c.ice.stun.is_empty() && c.ice.turn.is_empty() && !c.ice.relay_private);
    assert_eq!(c.cipher, CipherChoice::Auto);
    let [a, b] = c.networks.as_slice() else { panic!("two networks") };
    assert_eq!((a.interface.as_str(), b.interface.as_str()), ("ipop0", "ipop1"));
    assert!(matches!(a.address, AddressChoice::Within(p) if p.to_string() == "172.16.10.0/24"));
    assert_eq!(b.address, AddressChoice::Fixed("10.9.0.7".parse().expect("address"), 16));
    assert_eq!(b.network(), "muc:room@conference.b");
    assert_eq!((a.mtu, a.listen_port, a.group().map(|g| g.accept_routes)), (1416, None, Some(false)));
    assert_eq!((a.links, a.idle_timeout), (LinkPolicy::OnDemand, Duration::from_secs(600)));
}

#[test]
fn the_environment_goes_before_the_password_file() {
    let dir = directory();
    let mut around = around(dir.path());
    around.password = Some(Zeroizing::new("of the environment".to_owned()));
    let c = parse(Path::new("x"), SHORT, &around).expect("valid");
    assert_eq!(c.xmpp.password.as_str(), "of the environment");
    assert!(c.notes[0].contains(PASSWORD_VARIABLE));
    let without = SHORT.replace("password_file = \"password\"\n", "");
    assert!(parse(Path::new("x"), &without, &around).expect("valid").notes.is_empty());
}

#[test]
fn all_problems_are_told_with_their_places() {
    let text = "[xmpp]\njdi = \"a@b\"\njid = \"a@b/phone\"\npassword_file = 7\n\n[[network]]\ngroup = \"g\"\n  \
                adress = \"1.2.3.4\"\nmtu = 100\n[[network]]\nmuc = \"m@c\"\nsubnet = \"10.0.0.1/8\"\n";
    let dir = directory();
    let p = parse(Path::new("/etc/node.toml"), text, &around(dir.path())).expect_err("wrong");
    let lines: Vec<String> = p.to_string().lines().map(str::to_owned).collect();
    let expected = [
        "/etc/node.toml:2:1: xmpp.jdi: is no known key; did you mean \"jid\"?",
        "/etc/node.toml:3:7: xmpp.jid: leave out the resource \"/phone\": the node makes its own",
        "/etc/node.toml:4:17: xmpp.password_file: has to be a string in quotes, and is a number",
        "/etc/node.toml:6:1: network.address: is missing: address = \"172.16.10.2/24\", or subnet = \
         \"172.16.10.0/24\" to let the node choose",
        "/etc/node.toml:8:3: network.adress: is no known key; did you mean \"address\"?",
        "/etc/node.toml:9:7: network.mtu: has to be a whole number from 1280 to 9000, and is 100",
        "/etc/node.toml:12:10: network.subnet: \"10.0.0.1/8\" is an address in a subnet: the subnet is 10.0.0.0/8",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn bad_values_in_a_network_are_told() {
    for (line, key, words) in [
        ("kind = \"social\"", "group", "choose among them with allow"),
        ("kind = \"mesh\"", "kind", "use \"group\" or \"social\""),
        ("kind = 7", "kind", "has to be a string"),
        ("name = \"g\"", "name", "goes into group"),
        ("allow = [\"a@b\"]", "allow", "kind = \"social\""),
        ("multicast = true", "multicast", "kind = \"social\""),
        ("muc = \"m@c\"", "muc", "remove the other"),
        ("interface = \"sixteen-bytes-xx\"", "interface", "longer than 15 bytes"),
        ("interface = \"a/b\"", "interface", "slash"),
        ("interface = \"\"", "interface", "is empty"),
        ("address = \"172.16.11.2\"", "address", "not in the subnet 172.16.10.0/24"),
        ("address = \"172.16.10.2/16\"", "address", "write 172.16.10.2/24"),
        ("address = \"172.16.10.0\"", "address", "the subnet's own address"),
        ("address = \"172.16.10.255\"", "address", "broadcast"),
        ("address = \"172.16.10\"", "address", "is no address"),
        ("address = \"172.16.10.2/33\"", "address", "no length"),
        ("address = \"fd00::2\"", "address", "not in the subnet"),
        ("address = true", "address", "has to be a string in quotes, and is true or false"),
        ("secret_file = \"nowhere\"", "secret_file", "there is no file"),
        ("secret_file = \".\"", "secret_file", "no regular file"),
        ("routes = \"10.0.0.0/8\"", "routes", "list of strings"),
        ("routes = [\"10.0.0.0/8\", 3]", "routes", "each entry has to be a string"),
        ("routes = [\"172.16.10.128/25\"]", "routes", "belong to members"),
        ("routes = [\"10.0.0.0\"]", "routes", "has no length"),
        ("routes = [\"127.0.0.0/8\"]", "routes", "loopback"),
        ("accept_routes = \"yes\"", "accept_routes", "true or false, and is a string"),
        ("links = \"lazy\"", "links", "on-demand"),
        ("idle_timeout = \"soon\"", "idle_timeout", "is no time"),
        ("idle_timeout = 1", "idle_timeout", "out of range"),
        ("idle_timeout = 1.5", "idle_timeout", "number of seconds"),
        ("listen_port = 0", "listen_port", "from 1 to 65535"),
        ("listen_port = 99999999999999999999", "listen_port", "from 1 to 65535"),
        ("listen_port = \"51820\"", "listen_port", "and is a string"),
        ("mtu = 1279", "mtu", "1280"),
        ("secret = \"x\"", "secret", "secret_file"),
        ("zzzzzz = 1", "zzzzzz", "known are kind, group"),
        ("Accept-Routes = true", "Accept-Routes", "did you mean \"accept_routes\""),
    ] {
        only(with_line(line), &format!("network.{key}"), words);
    }
}

/// A network of friends.
const FRIENDS: &str = "[xmpp]\njid = \"a@b\"\npassword_file = \"password\"\n[[network]]\nkind = \"social\"\n\
                       subnet = \"172.31.0.0/16\"\naddress = \"172.31.0.100\"\n";

#[test]
fn a_network_of_friends_is_read() {
    let dir = directory();
    let text = format!(
        "{FRIENDS}interface = \"social0\"\nname = \"work\"\nallow = [\"Bob@Example.org\", \"*@Uni.example.edu\"]\n\
         multicast = true\nlinks = \"proactive\"\nlisten_port = 4242\nmtu = 1300\nidle_timeout = 30\n\
         [network.leases]\n\"bob@example.org/laptop\" = \"172.31.0.7\"\n\"Carol@example.org\" = \"172.31.1.0\"\n\
         [[network]]\ngroup = \"g\"\nsubnet = \"10.0.0.0/8\"\n"
    );
    let c = parse(Path::new("x"), &text, &around(dir.path())).expect("valid");
    let n = &c.networks[0];
    assert_eq!((n.network().as_str(), n.interface.as_str()), ("social:work", "social0"));
    assert_eq!(n.address, AddressChoice::Fixed("172.31.0.100".parse().expect("address"), 16));
    assert_eq!((n.links, n.listen_port, n.mtu), (LinkPolicy::Proactive, Some(4242), 1300));
    let s = n.social().expect("social");
    assert!(s.multicast && n.group().is_none());
    for (account, allowed) in [
        ("bob@example.org", true),
        ("x@uni.example.edu", true),
        ("x@example.org", false),
        ("a@sub.uni.example.edu", false),
    ] {
        assert_eq!(s.allow.lets_in(account), allowed, "{account}");
    }
    let lease = |account: &str, node: Option<&str>, a: &str| FixedLease {
        account: account.to_owned(),
        node: node.map(str::to_owned),
        address: a.parse().expect("address"),
    };
    assert_eq!(
        s.leases,
        [lease("bob@example.org", Some("laptop"), "172.31.0.7"), lease("carol@example.org", None, "172.31.1.0")]
    );
    assert_eq!(c.networks[1].network(), "group:g");
    let c = parse(Path::new("x"), FRIENDS, &around(dir.path())).expect("valid");
    let s = c.networks[0].social().expect("social");
    assert_eq!(*s, SocialConfig { name: "social".to_owned(), ..SocialConfig::default() });
    assert!(s.allow.lets_in("anybody@anywhere"));
}

#[test]
fn bad_values_in_a_network_of_friends_are_told() {
    let lease = |line: &str| format!("[network.leases]\n{line}");
    for (line, key, words) in [
        ("name = \"a b\"".to_owned(), "name", "no name for a social network"),
        ("secret_file = \"group-secret\"".to_owned(), "secret_file", "friends share no secret"),
        ("routes = [\"10.0.0.0/8\"]".to_owned(), "routes", "each address is that of a node"),
        ("accept_routes = true".to_owned(), "accept_routes", "kind = \"group\""),
        ("muc = \"m@c\"".to_owned(), "muc", "kind = \"group\""),
        ("block = [\"e@x\"]".to_owned(), "block", "any XMPP client"),
        ("allow = \"bob@x\"".to_owned(), "allow", "list of strings"),
        ("allow = [\"bob\"]".to_owned(), "allow", "no name before an @"),
        ("allow = [\"bob@x/phone\"]".to_owned(), "allow", "leave out the resource"),
        ("allow = [\"*\"]".to_owned(), "allow", "leave allow out"),
        ("allow = [\"*@\"]".to_owned(), "allow", "no domain"),
        ("allow = [\"*@a@b\"]".to_owned(), "allow", "no domain"),
        ("multicast = \"yes\"".to_owned(), "multicast", "true or false"),
        ("leases = [\"a\"]".to_owned(), "leases", "[network.leases]"),
        (lease("\"bob@x\" = 7"), "leases.\"bob@x\"", "has to be a string"),
        (lease("\"bob@x\" = \"172.31.0\""), "leases.\"bob@x\"", "no IPv4 address"),
        (lease("\"bob@x\" = \"172.30.0.1\""), "leases.\"bob@x\"", "not in the subnet 172.31.0.0/16"),
        (lease("\"bob@x\" = \"172.31.255.255\""), "leases.\"bob@x\"", "broadcast"),
        (lease("\"bob@x\" = \"172.31.0.100\""), "leases.\"bob@x\"", "own address"),
        (lease("\"bob\" = \"172.31.0.7\""), "leases.\"bob\"", "no name before an @"),
        (lease("\"bob@x/\" = \"172.31.0.7\""), "leases.\"bob@x/\"", "no name of a node"),
        (lease("\"bob@x\" = \"172.31.0.7\"\n\"eve@x\" = \"172.31.0.7\""), "leases.\"eve@x\"", "of \"bob@x\""),
        (lease("\"bob@x\" = \"172.31.0.7\"\n\"Bob@X\" = \"172.31.0.8\""), "leases.\"Bob@X\"", "another way"),
    ] {
        only(problems(&format!("{FRIENDS}{line}\n")), &format!("network.{key}"), words);
    }
    let six = FRIENDS.replace("172.31.0.0/16", "fd00:1::/64").replace("172.31.0.100", "fd00:1::2");
    only(problems(&six), "network.subnet", "has to be IPv4");
    let twice = format!("{FRIENDS}[[network]]\nkind = \"social\"\nsubnet = \"10.0.0.0/8\"\n");
    only(problems(&twice), "network.name", "one is enough");
    let many: String = (0..=MAX_ALLOW).map(|i| format!("\"a{i}@x\",")).collect();
    only(problems(&format!("{FRIENDS}allow = [{many}]\n")), "network.allow", "at most 1024");
}

#[test]
fn bad_values_elsewhere_are_told() {
    let replaced = |from: &str, to: &str| problems(&SHORT.replace(from, to));
    only(replaced("a@b", "b"), "xmpp.jid", "no name before an @");
    only(replaced("a@b", "a@@b"), "xmpp.jid", "more than one @");
    only(replaced("a@b", "@b"), "xmpp.jid", "is no JID");
    only(replaced("jid = \"a@b\"\n", ""), "xmpp.jid", "is missing");
    only(replaced("password_file = \"password\"\n", ""), "xmpp.password_file", PASSWORD_VARIABLE);
    only(replaced("password_file = \"password\"\n", "password_file = \"\"\n"), "xmpp.password_file", "is empty");
    only(replaced("[[network]]", "[network]"), "network", "double brackets");
    only(replaced("[[network]]", "[[netwrok]]").into_iter().take(1).collect(), "network", "is missing");
    only(replaced("group = \"g\"\n", ""), "network.group", "muc = ");
    only(replaced("[xmpp]\n", "[xmpp]\npassword = \"p\"\n"), "xmpp.password", "chmod 600");
    only(replaced("[xmpp]\n", "[xmpp]\nserver = \"::1\"\n"), "xmpp.server", "[::1]:5222");
    only(replaced("[xmpp]\n", "[xmpp]\nca_file = \"password\"\n"), "xmpp.ca_file", "no certificate");
    only(replaced("[xmpp]\n", "[node]\nname = \"a b\"\n[xmpp]\n"), "node.name", "letters, digits");
    only(replaced("[xmpp]\n", "[node]\ncipher = \"rot13\"\n[xmpp]\n"), "node.cipher", "aes256gcm");
    let long = format!("[node]\ncontrol_socket = \"/{}\"\n[xmpp]\n", "x".repeat(107));
    only(replaced("[xmpp]\n", &long), "node.control_socket", "107 bytes");
    only(
        problems(&format!("{SHORT}[ice]\nturn = [{{ server = \"a\", username = \"u\" }}]\n")),
        "ice.turn.password_file",
        "is missing",
    );
    only(problems(&format!("{SHORT}[ice]\nstun = [\"stun:a.b:1\"]\n")), "ice.stun", "is a URL");
    only(problems(&format!("jid = \"a@b\"\n{SHORT}")), "jid", "below a line [xmpp]");
    only(problems("  \n"), "", "is empty");
    // Of a text that is no TOML only that is told, and what is wrong on other lines.
    let both = problems(&SHORT.replace("a@b\"", "a@b").replace("172.16.10.0/24", "172.16.10.1/24"));
    assert!(both.len() == 2 && both[0].line == 2 && both[0].key.is_empty(), "{both:?}");
    assert!(both[1].line == 6 && both[1].key == "network.subnet", "{both:?}");
}

#[test]
fn names_are_answered_unless_it_says_otherwise() {
    let dir = directory();
    let enabled = |lines: &str| {
        let text = format!("{SHORT}{lines}");
        parse(Path::new("x"), &text, &around(dir.path())).unwrap_or_else(|e| panic!("{lines}: {e}")).names.enabled
    };
    assert!(enabled("") && enabled("[names]\n") && enabled("[names]\nenabled = true\n"));
    assert!(!enabled("[names]\nenabled = false\n"));
    let wrong = |line: &str| problems(&format!("{SHORT}[names]\n{line}\n"));
    only(wrong("enabled = \"no\""), "names.enabled", "true or false");
    only(wrong("enable = false"), "names.enable", "is called enabled");
    only(wrong("domain = \"vpn\""), "names.domain", "end in .ipop");
    only(problems(&format!("{SHORT}[name]\nenabled = false\n")), "name", "did you mean \"names\"");
}

#[test]
fn networks_do_not_get_in_each_others_way() {
    let second = |text: &str| problems(&format!("{SHORT}listen_port = 7\n[[network]]\n{text}"));
    only(second("group = \"g\"\nsubnet = \"10.0.0.0/8\"\n"), "network.group", "one is enough");
    only(second("group = \"h\"\nsubnet = \"172.16.0.0/16\"\n"), "network.subnet", "overlaps 172.16.10.0/24");
    only(second("group = \"h\"\naddress = \"172.16.10.9/28\"\n"), "network.subnet", "overlaps");
    only(second("group = \"h\"\nsubnet = \"10.0.0.0/8\"\ninterface = \"ipop0\"\n"), "network.interface", "ipop0");
    only(second("group = \"h\"\nsubnet = \"10.0.0.0/8\"\nlisten_port = 7\n"), "network.listen_port", "its own");
    let many: String =
        (0..=MAX_NETWORKS).map(|i| format!("[[network]]\ngroup = \"g{i}\"\nsubnet = \"10.{i}.0.0/16\"\n")).collect();
    only(problems(&format!("{}{many}", &SHORT[..SHORT.find("[[").expect("network")])), "network", "at most 16");
}

#[test]
fn files_open_to_others_are_refused() {
    let dir = directory();
    let path = dir.path().join("password");
    for (mode, fine) in [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false), (0o604, false)] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode");
        let done = parse(Path::new("x"), SHORT, &around(dir.path()));
        match done {
            Ok(_) => assert!(fine, "{mode:o}"),
            Err(p) => {
                assert!(!fine, "{mode:o}: {p}");
                only(p.problems, "xmpp.password_file", &format!("chmod 600 {}", path.display()));
            }
        }
    }
    for (contents, words) in [("\n", "is empty"), ("a\nb\n", "more than one line"), (&*"x".repeat(5000), "4096 bytes")]
    {
        secret_file(dir.path(), "password", contents);
        let p = parse(Path::new("x"), SHORT, &around(dir.path())).expect_err("refused");
        only(p.problems, "xmpp.password_file", words);
    }
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("node.toml");
    let told = |path: &Path| load(path).expect_err("refused").to_string();
    assert!(told(&path).ends_with("node.toml: there is no such file"));
    assert!(told(dir.path()).contains("is a directory"));
    std::fs::write(&path, b"[xmpp]\njid = \"\xff\"\n").expect("write");
    assert!(told(&path).contains("line 2 has bytes that are no UTF-8"));
    std::fs::write(&path, vec![b'#'; MAX_FILE + 1]).expect("write");
    assert!(told(&path).contains("longer than 1024 KiB"));
}

#[test]
fn a_hopeless_file_is_given_up_soon() {
    let text: String = (0..60_000).map(|i| format!("k{i} = 1\n")).collect();
    let found = problems(&text);
    assert!(found.len() <= 110, "{}", found.len());
    let open = "[".repeat(MAX_FILE / 4);
    assert!(!problems(&open).is_empty());
}

#[test]
fn servers_are_written_in_many_ways() {
    let ok = |s: &str| host_port(s, 9).unwrap_or_else(|e| panic!("{s}: {e}"));
    assert_eq!(ok("a.example"), ("a.example".to_owned(), 9));
    assert_eq!(ok("a_b.example.:1"), ("a_b.example.".to_owned(), 1));
    assert_eq!(ok("192.0.2.1:65535"), ("192.0.2.1".to_owned(), 65535));
    assert_eq!(ok("[2001:db8::1]"), ("2001:db8::1".to_owned(), 9));
    assert_eq!(ok("[::1]:5"), ("::1".to_owned(), 5));
    for bad in [
        "",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a b",
        "[::1",
        "[::1]1",
        "[a]:1",
        "::1",
        "300.1.1.1",
        "-a",
        "a..b",
        "http://a",
    ] {
        assert!(host_port(bad, 9).is_err(), "{bad}");
    }
    assert_eq!(values::join_host_port("::1", 5), "[::1]:5");
}

#[test]
fn times_have_units() {
    let seconds = |s: &str| duration(s).map(|d| d.as_secs()).ok();
    assert_eq!(
        [seconds("90"), seconds("90s"), seconds("10m"), seconds("2h")],
        [Some(90), Some(90), Some(600), Some(7200)]
    );
    for bad in ["", "m", "-1", "9", "31d", "10 weeks", "99999999999999999999d", "1e3"] {
        assert_eq!(seconds(bad), None, "{bad}");
    }
}

#[test]
fn slips_of_the_pen_are_recognised() {
    let known = ["jid", "server", "password_file", "ca_file"];
    assert_eq!(nearest("sevrer", &known), Some("server"));
    assert_eq!(nearest("password-file", &known), Some("password_file"));
    assert_eq!(nearest("passwordfile", &known), Some("password_file"));
    assert_eq!(nearest("frobnicate", &known), None);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        problems(&text);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        at in 0..GOOD.len(),
        len in 0..20usize,
        put in "[\\[\\]{}=\"'#\n a-z0-9.äö\u{0}-]{0,6}",
    ) {
        let end = (at + len).min(GOOD.len());
        let found = problems(&format!("{}{put}{}", &GOOD[..at], &GOOD[end..]));
        // Each has a place in the file, or is about all of it.
        prop_assert!(found.iter().all(|p| (p.line == 0) == (p.column == 0) && !p.message.is_empty()));
    }

    #[test]
    fn values_of_any_kind_are_told_and_not_fatal(key in "([a-z_]{1,14}|allow|leases|name|kind)", value in "[-0-9a-z\".\\[\\]{}=@*, ]{0,20}") {
        with_line(&format!("{key} = {value}"));
        problems(&format!("{FRIENDS}{key} = {value}\n"));
        problems(&SHORT.replace("[xmpp]\n", &format!("[xmpp]\n{key} = {value}\n")));
    }
}
