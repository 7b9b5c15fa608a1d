//! No key and nonce are ever used twice.

use super::cipher::{AES, CHACHA, willing};
use super::*;
use crate::crypto::Cipher;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// What was sealed: raw key and counter.
#[derive(Default)]
struct Sealed(HashSet<([u8; 32], u64)>);

impl Sealed {
    fn note(&mut self, key: [u8; 32], counter: u64) {
        assert!(self.0.insert((key, counter)), "a nonce was used twice: counter {counter}");
    }

    /// What tunnels sent by themselves: each keepalive was sealed with the key that its receiver opens it with.
    fn note_all(&mut self, messages: &[Vec<u8>], to: &Node) {
        for m in messages.iter().filter(|m| classify(m) == Kind::Data) {
            let index = u32::from_le_bytes(m[4..8].try_into().expect("four bytes"));
            let counter = u64::from_le_bytes(m[8..16].try_into().expect("eight bytes"));
            let session = to.table.get(index).expect("both ends have it");
            self.note(session.raw_keys()[1], counter);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many shards take so many batches of so many counters each, at the same time.
    Send {
        from_a: bool,
        shards: usize,
        batches: usize,
        size: u64,
    },
    /// Time passes, with its keepalives and renewals.
    Wait(u64),
    Handshake {
        from_a: bool,
    },
    Willing {
        of_a: bool,
        aes: bool,
    },
    /// The session's counters come to their end.
    NearEnd {
        of_a: bool,
        left: u64,
    },
    Restart {
        of_a: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let b = any::<bool>;
    prop_oneof![
        6 => (b(), 1..5usize, 1..20usize, 1..65u64)
            .prop_map(|(from_a, shards, batches, size)| Step::Send { from_a, shards, batches, size }),
        3 => (1..130u64).prop_map(Step::Wait),
        3 => b().prop_map(|from_a| Step::Handshake { from_a }),
        3 => (b(), b()).prop_map(|(of_a, aes)| Step::Willing { of_a, aes }),
        1 => (b(), 0..200u64).prop_map(|(of_a, left)| Step::NearEnd { of_a, left }),
        1 => b().prop_map(|of_a| Step::Restart { of_a }),
    ]
}

/// Shards on threads of their own, all with one peer's session: what they sealed.
fn seal_on_shards(peer: &Arc<Peer>, now: Time, shards: usize, batches: usize, size: u64) -> Vec<([u8; 32], u64)> {
    let one = || {
        let mut sealed = Vec::new();
        for _ in 0..batches {
            let Some(s) = peer.current().filter(|s| !s.expired(now)) else { break };
            let Some(first) = s.reserve(size) else { break };
            let mut bufs = vec![[0u8; TAG_LEN]; size as usize];
            let mut jobs: Vec<Job<'_>> =
                bufs.iter_mut().zip(first..).map(|(b, n)| Job::new(s.send_key(), n, &mut b[..])).collect();
            crypto::seal(&mut jobs);
            sealed.extend(jobs.iter().map(|j| (s.raw_keys()[0], j.counter)));
            peer.note_sent(now, &s, 0, true);
        }
        sealed
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shards).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect()
    })
}

/// Carries everything, and notes what was sealed in it.
fn exchange_noting(a: &mut Node, b: &mut Node, sealed: &mut Sealed) {
    loop {
        let (from_a, from_b) = (a.sent(), b.sent());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        deliver(a, b, from_a, from_b, sealed);
    }
}

fn deliver(a: &mut Node, b: &mut Node, from_a: Vec<Vec<u8>>, from_b: Vec<Vec<u8>>, sealed: &mut Sealed) {
    sealed.note_all(&from_a, b);
    sealed.note_all(&from_b, a);
    // What was refused was late: both ends have the keys that it was sealed with.
    for m in from_a {
        assert_ne!(b.receive(address(a.n), &m), Err(Drop::Forged));
    }
    for m in from_b {
        assert_ne!(a.receive(address(b.n), &m), Err(Drop::Forged));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The one rule that both ciphers stand on. A raw key is that of one cipher and one direction, so no key serves two
    /// of either.
    #[test]
    fn no_key_and_nonce_are_used_twice_across_shards_rekeys_and_ciphers(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let (mut a, to_b, mut b, to_a) = willing(true, true);
        let mut sealed = Sealed::default();
        let mut owners: HashMap<[u8; 32], (bool, Cipher)> = HashMap::new();
        a.initiate(&to_b);
        exchange_noting(&mut a, &mut b, &mut sealed);
        for step in steps {
            match step {
                Step::Send { from_a, shards, batches, size } => {
                    let (peer, now) = if from_a { (&to_b, a.now) } else { (&to_a, b.now) };
                    for (key, counter) in seal_on_shards(peer, now, shards, batches, size) {
                        sealed.note(key, counter);
                    }
                }
                Step::Wait(n) => {
                    let end = a.now + secs(n);
                    while a.now < end {
                        let next = (a.now + secs(5)).min(end);
                        let (from_a, from_b) = (a.run_until(next), b.run_until(next));
                        let bare = |v: Vec<(Time, Vec<u8>)>| v.into_iter().map(|m| m.1).collect();
                        deliver(&mut a, &mut b, bare(from_a), bare(from_b), &mut sealed);
                        exchange_noting(&mut a, &mut b, &mut sealed);
                    }
                }
                Step::Handshake { from_a } => {
                    let (node, peer) = if from_a { (&mut a, &to_b) } else { (&mut b, &to_a) };
                    node.initiate(peer);
                    exchange_noting(&mut a, &mut b, &mut sealed);
                }
                Step::Willing { of_a, aes } => (if of_a { &to_b } else { &to_a }).set_aes(aes),
                Step::NearEnd { of_a, left } => {
                    if let Some(s) = (if of_a { &to_b } else { &to_a }).current() {
                        let end = match s.cipher() {
                            AES => limits::AES_REJECT_AFTER_MESSAGES,
                            CHACHA => limits::REJECT_AFTER_MESSAGES,
                        };
                        // Only ever forwards.
                        if s.reserve(0).is_some_and(|n| n < end - left) {
                            s.set_counter(end - left);
                        }
                    }
                }
                Step::Restart { of_a } => (if of_a { &mut a } else { &mut b }).tunnel.clear_sessions(),
            }
            for (of_a, peer) in [(true, &to_b), (false, &to_a)] {
                if let Some(s) = peer.current() {
                    let [send, recv] = *s.raw_keys();
                    for (key, from_a) in [(send, of_a), (recv, !of_a)] {
                        prop_assert_eq!(*owners.entry(key).or_insert((from_a, s.cipher())), (from_a, s.cipher()));
                    }
                }
            }
        }
        prop_assert!(!sealed.0.is_empty());
    }
}
