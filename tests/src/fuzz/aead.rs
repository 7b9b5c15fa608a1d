//! Ciphers and their back ends.

use dataplane::crypto::{self, Backend, Cipher, Job, TAG_LEN};

/// Batches for the cipher: records of seven bytes, a packet each (key, length, counter, offset in memory, what is
/// done to it on the way), at most 64. Every back end has to make the same of them; AES-256-GCM, of which there is
/// only one, has to open what it sealed and nothing else.
pub fn aead(data: &[u8]) {
    struct Packet {
        key: usize,
        counter: u64,
        align: usize,
        text: Vec<u8>,
        flip: Option<usize>,
    }
    let packets: Vec<Packet> = (data.as_chunks::<7>().0.iter().take(64))
        .map(|&[key, low, high, counter, align, fill, flip]| {
            let len = usize::from(u16::from_le_bytes([low, high])) % 2100;
            let text: Vec<u8> = (0..len).map(|i| fill.wrapping_mul(i as u8).wrapping_add(counter)).collect();
            let flip = (flip >= 128).then(|| usize::from(flip) * 8111 % ((len + TAG_LEN) * 8));
            Packet {
                key: usize::from(key % 3),
                counter: u64::from(counter) << (key / 4),
                align: align.into(),
                text,
                flip,
            }
        })
        .collect();
    let run = |cipher: Cipher, backend: Backend| {
        let keys = [1u8, 2, 3].map(|k| cipher.key(backend, &[k; 32].into()));
        let mut bufs: Vec<Vec<u8>> =
            packets.iter().map(|p| [&vec![0xee; p.align][..], &p.text, &[0; TAG_LEN]].concat()).collect();
        let jobs = |bufs: &mut [Vec<u8>], task: fn(&mut [Job<'_>])| {
            let parts = bufs.iter_mut().zip(&packets);
            let mut jobs: Vec<Job<'_>> =
                parts.map(|(b, p)| Job::new(&keys[p.key], p.counter, &mut b[p.align..])).collect();
            task(&mut jobs);
            jobs.iter().map(|j| j.ok).collect::<Vec<_>>()
        };
        assert!(jobs(&mut bufs, crypto::seal).iter().all(|ok| *ok));
        let sealed = bufs.clone();
        for (buf, p) in bufs.iter_mut().zip(&packets) {
            if let Some(bit) = p.flip {
                buf[p.align + bit / 8] ^= 1 << (bit % 8);
            }
        }
        for (ok, p) in jobs(&mut bufs, crypto::open).iter().zip(&packets) {
            assert_eq!(*ok, p.flip.is_none());
        }
        for (buf, p) in bufs.iter().zip(&packets) {
            let (before, text) = buf.split_at(p.align);
            assert!(before.iter().all(|b| *b == 0xee), "wrote before the packet");
            match p.flip {
                None => assert_eq!(text[..p.text.len()], p.text),
                Some(_) => assert!(text.iter().all(|b| *b == 0), "something is left"),
            }
        }
        sealed
    };
    let expected = run(Cipher::ChaCha20Poly1305, Backend::Portable);
    for backend in Backend::available() {
        assert_eq!(run(Cipher::ChaCha20Poly1305, backend), expected, "{backend}");
    }
    run(Cipher::Aes256Gcm, Backend::AwsLc);
}
