//! Which cipher links get, with nodes that say different things and change their minds.

use anyhow::{Context, Result, ensure};
use ipop_tests::internet::Gateway;
use ipop_tests::node::Node;
use ipop_tests::process::{run, wait_for};
use ipop_tests::scene::Share;
use ipop_tests::traffic::{tcp_transfer, udp_echo};
use nix::sys::signal::Signal;
use std::time::Duration;

use crate::cast::{Cast, FIND, Xmpp, group_scene};

const AES: &str = "aes256gcm";
const CHACHA: &str = "chacha20poly1305";
const TRANSFER: Duration = Duration::from_secs(60);

/// Waits until both ends say `cipher` of their link, after traffic in both directions.
fn agree(cast: &Cast, a: usize, b: usize, cipher: &str) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        cast.reach(from, to)?;
        wait_for(&format!("{cipher} from {from} to {to}"), FIND, || {
            let link = cast.link(from, to)?;
            ensure!(link.cipher.as_deref() == Some(cipher), "{link:?}");
            Ok(true)
        })?;
        let address = cast.nodes[to].address()?;
        tcp_transfer(cast.ns(from), cast.ns(to), address, 5_000_000, TRANSFER).context("TCP")?;
        udp_echo(cast.ns(from), cast.ns(to), address, [0, 1, 100, 1_200]).context("UDP")?;
    }
    Ok(())
}

/// Writes another cipher into a node's file.
fn rewrite(node: &Node, from: &str, to: &str) -> Result<()> {
    let file = node.dir().join("node.toml");
    let (old, new) = (format!("cipher = \"{from}\""), format!("cipher = \"{to}\""));
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains(&old), "no {old} in {text}");
    Ok(std::fs::write(&file, text.replace(&old, &new))?)
}

#[test]
fn nodes_that_both_have_aes_use_it_and_status_says_so() {
    group_scene(Share::Shared, Xmpp::Ejabberd, || {
        let mut cast = Cast::at_sites(
            Xmpp::Ejabberd,
            &[Gateway::Symmetric, Gateway::PortRestricted, Gateway::Public, Gateway::Public],
        )?;
        let options = [AES, AES, CHACHA, "auto"].iter().enumerate().map(|(n, c)| cast.options(n).with_cipher(c));
        let options = options.collect();
        cast.start(options)?;
        cast.wait_known(3)?;
        let said = cast.nodes.iter().map(|n| Ok(n.status()?.cipher)).collect::<Result<Vec<_>>>()?;
        ensure!(said[0].aes256gcm && !said[2].aes256gcm && said[2].setting == CHACHA, "{said:?}");
        ensure!(said.iter().all(|c| c.chacha20poly1305_gb_s > 0.0 && c.aes256gcm_gb_s > 0.0), "{said:?}");
        // What auto comes to is this machine's business.
        let auto = if said[3].aes256gcm { AES } else { CHACHA };
        // The first pair is relayed.
        for (a, b, cipher) in [(0, 1, AES), (0, 2, CHACHA), (2, 3, CHACHA), (1, 3, auto)] {
            agree(&cast, a, b, cipher).with_context(|| format!("{a} to {b}"))?;
        }
        let links = run(&mut cast.nodes[0].ask(&["links"])?)?;
        ensure!(links.contains("relayed aes") && links.contains("direct "), "{links}");
        let status = run(&mut cast.nodes[0].status_command()?)?;
        ensure!(status.contains("  ciphers     1 chacha20poly1305, 1 aes256gcm"), "{status}");
        let log = cast.nodes[3].log();
        ensure!(log.contains("GB/s a core; cipher = \"auto\""), "{log}");
        cast.alive()
    });
}

#[test]
fn a_node_that_comes_back_with_another_cipher_is_linked_to_with_that() {
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::on_a_lan(Xmpp::Prosody, 2)?;
        cast.start((0..2).map(|n| cast.options(n).with_cipher(AES)).collect())?;
        cast.wait_known(1)?;
        agree(&cast, 0, 1, AES)?;
        // Killed, it takes no leave: the other believes what it said before until it says something else.
        for (from, to, killed) in
            [(AES, CHACHA, true), (CHACHA, AES, true), (AES, CHACHA, false), (CHACHA, "auto", false)]
        {
            rewrite(&cast.nodes[1], from, to)?;
            if killed {
                cast.nodes[1].kill()?
            } else {
                cast.nodes[1].leave()?
            }
            cast.nodes[1].start_again()?;
            let offers = cast.nodes[1].status()?.cipher.aes256gcm;
            ensure!(offers == (to == AES) || to == "auto", "{to} offers {offers}");
            // From its side first: nobody told it yet what the other has.
            cast.reach(1, 0)?;
            cast.reach(0, 1)?;
            let ciphers = [cast.link(0, 1)?.cipher, cast.link(1, 0)?.cipher];
            if to == CHACHA {
                agree(&cast, 0, 1, CHACHA).with_context(|| format!("{from} to {to}, first {ciphers:?}"))?;
            }
        }
        // And while it runs.
        rewrite(&cast.nodes[0], AES, CHACHA)?;
        cast.nodes[0].signal(Signal::SIGHUP)?;
        wait_for("the other cipher", FIND, || Ok(!cast.nodes[0].status()?.cipher.aes256gcm))?;
        // The session in use goes on; the next one has the other cipher.
        cast.reach(0, 1)?;
        cast.nodes[1].kill()?;
        cast.nodes[1].start_again()?;
        agree(&cast, 0, 1, CHACHA)?;
        cast.alive()
    });
}
