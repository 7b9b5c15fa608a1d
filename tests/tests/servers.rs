//! The harness's XMPP servers: they come up, and come back.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use ipop_tests::ns::Namespace;
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{Ca, Ejabberd, Prosody, Server, Setup, ejabberd_needs, prosody_needs};

fn setup() -> Setup {
    Setup::new("xmpp.test", IpAddr::V4(Ipv4Addr::LOCALHOST))
        .users(&[("a", "secret-a"), ("b", "secret-b")])
        .group("g", &["a", "b"])
        .room("r", &["a", "b"])
}

fn lives_dies_and_lives(server: &mut dyn Server) -> Result<()> {
    let first = server.process().pid();
    server.remove_from_group("g", "b")?;
    server.set_room_member("r", "b", false)?;
    server.kill()?;
    ensure!(!server.process().running(), "killed, but runs");
    server.restart()?;
    ensure!(server.process().pid() != first && server.process().running(), "the same process");
    server.add_to_group("g", "b")?;
    server.set_room_member("r", "b", true)
}

#[test]
fn prosody_comes_up_with_a_group_and_a_room_and_survives_a_kill() {
    play(Share::Shared, &prosody_needs(), || {
        let ns = Namespace::new("prosody")?;
        lives_dies_and_lives(&mut Prosody::start(&ns, &Ca::new()?, &setup())?)
    });
}

#[test]
fn ejabberd_comes_up_with_a_group_and_a_room_and_survives_a_kill() {
    play(Share::Shared, &ejabberd_needs(), || {
        let ns = Namespace::new("ejabberd")?;
        let mut server = Ejabberd::start(&ns, &Ca::new()?, &setup())?;
        lives_dies_and_lives(&mut server)?;
        let members = server.command("srg_get_members", &serde_json::json!({"group": "g", "host": "xmpp.test"}))?;
        ensure!(members == serde_json::json!(["a@xmpp.test", "b@xmpp.test"]), "{members}");
        Ok(())
    });
}
