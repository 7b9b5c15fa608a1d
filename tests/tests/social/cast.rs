//! Who plays: users of one server who are nobody's friends yet.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::status::{FriendStatus, PeerStatus};
use ipop_tests::cast::password;
pub(crate) use ipop_tests::cast::{Cast, FIND, GROUP, Xmpp, group_scene as scene, user};
use ipop_tests::node::{Members, Node, Options, first_ping};
use ipop_tests::process::{output, wait_for};
use ipop_tests::traffic::{Seen, tcp_transfer, udp_echo};

/// What everybody calls the subnet of friends.
pub(crate) const SUBNET: &str = "172.31.0.0/16";
/// What everybody calls itself.
pub(crate) const OWN: &str = "172.31.0.100";
/// An attempt that must fail is given so long.
pub(crate) const TRY: Duration = Duration::from_secs(3);
/// The links of somebody who is no friend any more are closed so soon.
pub(crate) const CLOSED: Duration = Duration::from_secs(5);
const TRANSFER: Duration = Duration::from_secs(60);

/// What node `n` is told.
pub(crate) fn options(n: usize) -> Options {
    let mut o = Options::new(&user(n), &password(&user(n)), Members::Friends(SUBNET.into()));
    o.address = OWN.parse().ok();
    o
}

/// `ipop-fast friends`: whether it was done, and what it said.
pub(crate) fn friends(node: &Node, words: &[&str]) -> Result<(bool, String)> {
    let out = output(&mut node.ask(&[&["friends"], words].concat())?)?;
    let said = [out.stdout, out.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    Ok((out.status.success(), said))
}

/// Does something about a friend.
pub(crate) fn tell(node: &Node, action: &str, jid: &str) -> Result<()> {
    let (done, said) = friends(node, &[action, jid])?;
    ensure!(done, "friends {action} {jid}: {said}");
    Ok(())
}

/// What a node knows of friends.
pub(crate) fn list(node: &Node) -> Result<Vec<FriendStatus>> {
    let (done, said) = friends(node, &["list", "--json"])?;
    ensure!(done, "friends list: {said}");
    said.lines().map(|l| serde_json::from_str(l).with_context(|| format!("friends list printed {l}"))).collect()
}

/// What a node knows of one account.
pub(crate) fn friend(node: &Node, jid: &str) -> Result<FriendStatus> {
    list(node)?.into_iter().find(|f| f.jid == jid).with_context(|| format!("{jid} is not in the list"))
}

/// Node `a` asks node `b`'s account to be friends, which accepts; then they know each other's nodes.
pub(crate) fn befriend(cast: &Cast, a: usize, b: usize) -> Result<()> {
    let (from, to) = (&cast.nodes[a], &cast.nodes[b]);
    wait_for("both to be online", FIND, || Ok(from.status()?.xmpp.online && to.status()?.xmpp.online))?;
    wait_for("the request to be taken", FIND, || {
        let (done, said) = friends(from, &["add", &to.jid])?;
        ensure!(done, "{said}");
        Ok(true)
    })?;
    wait_for("the request", FIND, || Ok(to.status()?.requests.contains(&from.jid)))?;
    tell(to, "accept", &from.jid)?;
    wait_friends(cast, a, b)
}

/// Waits until two nodes know each other as friends' nodes with addresses, and as being there.
pub(crate) fn wait_friends(cast: &Cast, a: usize, b: usize) -> Result<()> {
    wait_for(&format!("{a} and {b} to be friends"), FIND, || {
        for (from, to) in [(a, b), (b, a)] {
            let peer = cast.nodes[from].peer(&cast.nodes[to])?;
            ensure!(peer.online && four(&peer).is_some(), "{from} knows {peer:?}");
            ensure!(friend(&cast.nodes[from], &cast.nodes[to].jid)?.state == "friend");
        }
        Ok(true)
    })
}

/// The IPv4 address of a peer.
pub(crate) fn four(peer: &PeerStatus) -> Option<IpAddr> {
    peer.addresses.iter().filter_map(|a| a.parse().ok()).find(IpAddr::is_ipv4)
}

/// What `from` calls `to`.
pub(crate) fn lease(cast: &Cast, from: usize, to: usize) -> Result<IpAddr> {
    let peer = cast.nodes[from].peer(&cast.nodes[to])?;
    four(&peer).with_context(|| format!("{from} has no address for {peer:?}"))
}

/// Pings until it is answered.
pub(crate) fn reach(cast: &Cast, from: usize, to: usize) -> Result<Duration> {
    let address = lease(cast, from, to)?;
    first_ping(cast.ns(from), address, FIND)
        .with_context(|| format!("{from} to {to}: {:?}", cast.nodes[from].peer(&cast.nodes[to])))
}

/// TCP and UDP of every size from one to the other; both have answers.
pub(crate) fn carries(cast: &Cast, from: usize, to: usize) -> Result<()> {
    let (there, here) = (cast.nodes[to].address()?, lease(cast, from, to)?);
    let address = Seen { there, here };
    tcp_transfer(cast.ns(from), cast.ns(to), address, 10_000_000, TRANSFER)
        .with_context(|| format!("TCP from {from} to {to}"))?;
    udp_echo(cast.ns(from), cast.ns(to), address, [0, 1, 100, 1_000, 1_200])
        .with_context(|| format!("UDP from {from} to {to}"))
}

/// Rewrites a node's configuration, to be read at its next start.
pub(crate) fn edit(node: &Node, change: impl FnOnce(String) -> String) -> Result<()> {
    let path: &Path = &node.dir().join("node.toml");
    let text = std::fs::read_to_string(path)?;
    let new = change(text.clone());
    ensure!(new != text, "nothing was changed in {text}");
    Ok(std::fs::write(path, new)?)
}
