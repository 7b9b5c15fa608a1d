//! Two nodes, and a shard between them, that get anything from anybody.

use super::craft::{edit, mend};
use super::world::{self, Node, OFFLOADS, address, channel_data, joined, public, strangers};
use dataplane::crypto::{Cipher, Job, TAG_LEN};
use dataplane::tunnel::data_header;
use std::time::Duration;

/// Puts the MAC1 on a handshake message to node `n` (WireGuard paper, section 5.4.4), and an empty MAC2.
fn authenticate(message: &mut [u8], n: u8) {
    use blake2::digest::{FixedOutput, KeyInit, Update};
    let key = blake2::Blake2s256::default().chain(b"mac1----").chain(public(n).0).finalize_fixed();
    let at = message.len() - 32;
    let mut mac = blake2::Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.update(&message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
    message[at + 16..].fill(0);
}

/// Handshake messages of any bytes, and valid ones that were changed: whatever is authenticated in them must be
/// as it was sent, and afterwards a handshake works, with whichever cipher each end would take.
pub fn handshake(data: &[u8]) {
    let (mut a, mut b) = strangers(OFFLOADS);
    let (to_b, from) = (a.tunnel.peer(&public(2)).expect("a peer"), address(1).into());
    let to_a = b.tunnel.peer(&public(1)).expect("a peer");
    let wall = |n: &Node| dataplane::WallTime(Duration::from_secs(1_700_000_000) + n.now.since(dataplane::Time::ZERO));
    for record in data.chunks(64).take(8) {
        let [op, bytes @ ..] = record else { continue };
        let under_load = op & 4 != 0;
        to_b.set_aes(op & 16 != 0);
        to_a.set_aes(op & 32 != 0);
        for n in [&mut a, &mut b] {
            n.now += Duration::from_secs(6);
        }
        let (now, time) = (b.now, wall(&b));
        if op & 3 == 0 {
            let mut m = vec![0; [148, 92, 64, 256][usize::from(op >> 6)]];
            m.iter_mut().zip(bytes).for_each(|(m, b)| *m = *b);
            if op & 8 != 0 {
                authenticate(&mut m, 2);
            }
            let _ = b.tunnel.handle(now, time, from, &m, under_load);
            b.keep();
            b.sent();
            continue;
        }
        a.tunnel.initiate(now, time, &to_b);
        a.keep();
        let Some((_, initiation)) = a.sent().pop() else { continue };
        let mut sent = initiation.clone();
        if op & 3 == 1 {
            edit(&mut sent, bytes);
            if op & 8 != 0 {
                authenticate(&mut sent, 2);
            }
        }
        let answered = b.tunnel.handle(now, time, from, &sent, under_load);
        assert!(answered.is_err() || sent[8..116] == initiation[8..116], "a changed initiation was taken");
        b.keep();
        let Some((_, answer)) = b.sent().pop() else { continue };
        let mut sent = answer.clone();
        if op & 3 == 2 {
            edit(&mut sent, bytes);
            if op & 8 != 0 && sent.len() == 92 {
                authenticate(&mut sent, 1);
            }
        }
        let taken = a.tunnel.handle(now, time, address(2).into(), &sent, false);
        let authentic = if answer.len() == 92 { 8..60 } else { 4..64 };
        assert!(taken.is_err() || sent[authentic.clone()] == answer[authentic], "a changed answer was taken");
        a.keep();
        a.sent();
    }
    // Time for attempts to end and for a cookie to be forgotten.
    for n in [&mut a, &mut b] {
        n.wait(Duration::from_secs(300));
        n.sent();
    }
    a.shared.request_handshake(&to_b);
    world::settle(&mut a, &mut b);
    let session = to_b.current().expect("a session");
    assert!(!session.expired(a.now), "a new session");
    let theirs = to_a.current().expect("a session that was confirmed");
    assert_eq!((theirs.cipher(), theirs.remote_index), (session.cipher(), session.local_index));
    assert_eq!(session.cipher() == Cipher::Aes256Gcm, to_a.aes() && to_b.aes());
}

/// A shard between two nodes that gets anything from anybody: no panic, and every packet is accounted for.
pub fn shard(mut data: &[u8]) {
    let (a, mut b) = joined(OFFLOADS);
    let server = address(200);
    b.shared.relays.store(std::sync::Arc::new(vec![server]));
    let session = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session");
    let mut last = Vec::new();
    while let [op, len, rest @ ..] = data {
        let (bytes, after) = rest.split_at(rest.len().min(usize::from(*len)));
        data = after;
        let mut bytes = bytes.to_vec();
        match op & 7 {
            0 => b.receive(address(op >> 3), bytes),
            1 => b.receive_all(server, bytes.chunks(1 + usize::from(op >> 3)).map(<[u8]>::to_vec)),
            2 => b.read(bytes),
            3 | 4 => {
                // An authentic datagram with any text in it.
                if op & 7 == 4 {
                    mend(&mut bytes);
                }
                let counter = session.reserve(1).expect("a counter");
                last = [&data_header(session.remote_index, counter)[..], &bytes, &[0; TAG_LEN]].concat();
                dataplane::crypto::seal(&mut [Job::new(session.send_key(), counter, &mut last[16..])]);
                b.receive(address(1), last.clone());
            }
            5 => {
                edit(&mut last, &bytes);
                b.receive(address(1), last.clone());
            }
            6 => b.receive(server, channel_data(0x4000 | u16::from(op >> 3), &last)),
            _ => {
                b.now += Duration::from_secs(u64::from(op >> 3));
                b.turn();
            }
        }
    }
    b.run();
    b.stop();
}
