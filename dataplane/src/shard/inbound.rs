//! UDP -> demux -> open -> replay check -> translate -> source check -> coalesce -> TUN.

use super::Shard;
use super::routing::Router;
use crate::Time;
use crate::crypto::{self, Job, TAG_LEN};
use crate::io::{CALL_BATCH, Driver, Outcomes, Piece, Turn, Write};
use crate::packet::translate::{Refused, Translation};
use crate::packet::virtio::VNET_LEN;
use crate::packet::{Coalescer, Inner};
use crate::path::Path;
use crate::shared::{Shared, SideDatagram, ToKeeper, ToShard};
use crate::stats::{Drop, add};
use crate::tunnel::Session;
use arrayvec::ArrayVec;
use ipop_ebpf::{CHANNEL_HEADER_LEN, DATA_HEADER_LEN, Kind, classify};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Datagrams that are opened and coalesced together.
pub(super) const BATCH: usize = 1024;
/// Jobs per call of the cipher.
const JOBS: usize = 64;

/// A data message on its way in.
#[derive(Clone, Copy)]
struct Message {
    /// Which of the turn's receive buffers.
    datagrams: u32,
    /// Where its text starts, and text with tag.
    offset: u32,
    len: u32,
    session: u32,
    counter: u64,
    ok: bool,
}

/// A session used in this batch.
struct Used {
    session: Arc<Session>,
    path: Path,
    /// The peer's, read once for the batch.
    translation: Option<Translation>,
    bytes: u64,
    authentic: bool,
    data: bool,
    /// This shard is the session's own.
    own: bool,
    /// The counter that came last.
    counter: u64,
}

pub(super) struct Inbox {
    messages: Vec<Message>,
    used: Vec<Used>,
    /// Some session's counters do not ascend.
    shuffled: bool,
    /// Where in `used` a receiver index was seen last, by its low bits.
    slots: [u16; 256],
    coalescer: Coalescer,
    pieces: Vec<Piece>,
    writes: Vec<Write>,
    /// Packets in each write.
    counts: Vec<u32>,
    outcomes: Outcomes,
    router: Router,
}

impl Inbox {
    pub(super) fn new(coalescer: Coalescer, shared: &Arc<Shared>) -> Self {
        Self {
            messages: Vec::with_capacity(BATCH),
            used: Vec::with_capacity(BATCH),
            shuffled: false,
            slots: [0; 256],
            coalescer,
            pieces: Vec::with_capacity(BATCH),
            writes: Vec::with_capacity(CALL_BATCH),
            counts: Vec::with_capacity(CALL_BATCH),
            outcomes: Outcomes::with_capacity(CALL_BATCH),
            router: Router::new(shared),
        }
    }

    /// Decrypts every message in place and marks those with a right tag.
    fn open(&mut self, turn: &mut Turn) {
        let mut jobs: ArrayVec<Job<'_>, JOBS> = ArrayVec::new();
        let (mut next, mut done) = (0, 0);
        for (i, d) in turn.datagrams.iter_mut().enumerate() {
            let (mut rest, mut base) = (d.bytes_mut(), 0);
            while let Some(m) = self.messages.get(next).filter(|m| m.datagrams as usize == i) {
                let (_, tail) = rest.split_at_mut(m.offset as usize - base);
                let (buf, tail) = tail.split_at_mut(m.len as usize);
                (rest, base) = (tail, (m.offset + m.len) as usize);
                jobs.push(Job::new(self.used[m.session as usize].session.recv_key(), m.counter, buf));
                next += 1;
                if jobs.is_full() {
                    crypto::open(&mut jobs);
                    mark(&mut self.messages[done..next], &jobs);
                    done = next;
                    jobs.clear();
                }
            }
        }
        crypto::open(&mut jobs);
        mark(&mut self.messages[done..next], &jobs);
    }
}

fn mark(messages: &mut [Message], jobs: &[Job<'_>]) {
    for (m, j) in messages.iter_mut().zip(jobs) {
        m.ok = j.ok;
    }
}

fn reason(why: Refused) -> Drop {
    match why {
        Refused::Spoofed => Drop::Spoofed,
        Refused::Multicast => Drop::MulticastOff,
        Refused::Malformed => Drop::Untranslatable,
    }
}

impl<D: Driver> Shard<D> {
    pub(super) fn inbound(&mut self, now: Time) -> io::Result<()> {
        let mut turn = std::mem::take(&mut self.turn);
        let mut r = Ok(());
        for i in 0..turn.datagrams.len() {
            let d = &turn.datagrams[i];
            let (from, segment, len) = (d.from, d.segment, d.bytes().len());
            add(&self.counters.udp_reads, 1);
            if d.truncated {
                let n = len.div_ceil(segment).max(1) as u64;
                add(&self.counters.udp_in, n);
                self.counters.count_drop(Drop::Truncated, n);
                continue;
            }
            if len == 0 {
                add(&self.counters.udp_in, 1);
                self.counters.count_drop(Drop::UnknownDatagram, 1);
            }
            let mut at = 0;
            while at < len {
                if self.inbox.messages.len() == BATCH {
                    r = r.and(self.deliver(&mut turn, now));
                }
                let end = len.min(at + segment);
                add(&self.counters.udp_in, 1);
                self.demux(&turn, i, at..end, Path::Direct(from), now);
                at = end;
            }
        }
        r = r.and(self.deliver(&mut turn, now));
        self.turn = turn;
        r
    }

    /// Tells what one datagram is and sends it its way.
    fn demux(&mut self, turn: &Turn, at: usize, range: Range<usize>, path: Path, now: Time) {
        let bytes = &turn.datagrams[at].bytes()[range.clone()];
        match classify(bytes) {
            Kind::Data => self.data(at, range.start, bytes, path, now),
            kind @ (Kind::Initiation | Kind::Response | Kind::CookieReply) => self.handshake(kind, bytes, path),
            Kind::Stun => self.side(bytes, path),
            Kind::ChannelData if self.shared.relays.load().contains(&path.address()) => {
                let (channel, len) =
                    (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]));
                let inner = range.start + CHANNEL_HEADER_LEN..range.start + CHANNEL_HEADER_LEN + usize::from(len);
                let relay = Path::Relay { server: path.address(), channel };
                // ChannelData does not nest: whatever is no tunnel message is for the engine's user.
                match turn.datagrams[at].bytes().get(inner.clone()).filter(|_| inner.end <= range.end).map(classify) {
                    Some(Kind::Data | Kind::Initiation | Kind::Response | Kind::CookieReply) => {
                        self.demux(turn, at, inner, relay, now);
                    }
                    Some(_) => self.side(bytes, path),
                    None => self.counters.count_drop(Drop::UnknownDatagram, 1),
                }
            }
            Kind::ChannelData | Kind::Unknown => self.counters.count_drop(Drop::UnknownDatagram, 1),
        }
    }

    fn data(&mut self, at: usize, start: usize, bytes: &[u8], path: Path, now: Time) {
        let receiver = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let counter =
            u64::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]]);
        let inbox = &mut self.inbox;
        let slot = usize::from(inbox.slots[receiver as usize % 256]);
        let slot = match inbox.used.get(slot) {
            Some(u) if u.session.local_index == receiver && u.path == path => slot,
            _ => {
                let Some(session) = self.shared.sessions.get(receiver).filter(|s| s.live()) else {
                    self.counters.count_drop(Drop::UnknownReceiver, 1);
                    return;
                };
                if session.expired(now) {
                    self.counters.count_drop(Drop::SessionExpired, 1);
                    return;
                }
                let translation = session.peer().translation();
                let own = session.peer().id as usize % self.shared.mailboxes.len() == self.number;
                let (authentic, data) = (false, false);
                inbox.used.push(Used { session, path, translation, bytes: 0, authentic, data, own, counter });
                let slot = inbox.used.len() - 1;
                inbox.slots[receiver as usize % 256] = slot as u16;
                slot
            }
        };
        add(if inbox.used[slot].own { &self.counters.udp_at_owner } else { &self.counters.udp_elsewhere }, 1);
        let before = std::mem::replace(&mut inbox.used[slot].counter, counter);
        inbox.shuffled |= counter < before;
        inbox.messages.push(Message {
            datagrams: at as u32,
            offset: (start + DATA_HEADER_LEN) as u32,
            len: (bytes.len() - DATA_HEADER_LEN) as u32,
            session: slot as u32,
            counter,
            ok: false,
        });
    }

    fn handshake(&mut self, kind: Kind, bytes: &[u8], from: Path) {
        // A cookie reply carries no MAC1; it is authenticated by what it answers.
        if kind != Kind::CookieReply && !self.shared.mac.load().as_ref().is_some_and(|m| m.verify_mac1(bytes)) {
            self.counters.count_drop(Drop::BadMac, 1);
            return;
        }
        let mut message = [0; ipop_ebpf::INITIATION_LEN];
        message[..bytes.len()].copy_from_slice(bytes);
        let len = bytes.len() as u8;
        match self.shared.keeper.try_send(ToKeeper::Handshake { from, message, len }) {
            Ok(()) => add(&self.counters.handshakes_in, 1),
            Err(_) => self.counters.count_drop(Drop::HandshakeQueueFull, 1),
        }
    }

    fn side(&mut self, bytes: &[u8], path: Path) {
        if self.shared.side.is_full() {
            self.counters.count_drop(Drop::SideQueueFull, 1);
            return;
        }
        match self.shared.side.try_send(SideDatagram { from: path.address(), bytes: bytes.to_vec() }) {
            Ok(()) => add(&self.counters.side_in, 1),
            Err(_) => self.counters.count_drop(Drop::SideQueueFull, 1),
        }
    }

    /// Opens the gathered messages and writes what they hold to TUN.
    fn deliver(&mut self, turn: &mut Turn, now: Time) -> io::Result<()> {
        if self.inbox.messages.is_empty() {
            self.inbox.used.clear();
            return Ok(());
        }
        self.inbox.open(turn);
        self.check_replay();
        self.note_received(now);
        self.put_in_order();
        let r = self.coalesce(turn);
        self.inbox.messages.clear();
        self.inbox.used.clear();
        r
    }

    /// Takes out forged and replayed messages. Each session's window is locked once a stretch.
    fn check_replay(&mut self) {
        let Inbox { messages, used, .. } = &mut self.inbox;
        let mut at = 0;
        while at < messages.len() {
            let slot = messages[at].session;
            let u = &mut used[slot as usize];
            let mut window = u.session.replay();
            while let Some(m) = messages.get_mut(at).filter(|m| m.session == slot) {
                at += 1;
                if !m.ok {
                    self.counters.count_drop(Drop::Forged, 1);
                } else if !window.check_and_update(m.counter) {
                    m.ok = false;
                    self.counters.count_drop(Drop::Replayed, 1);
                } else {
                    u.authentic = true;
                    u.bytes += u64::from(m.len) + DATA_HEADER_LEN as u64;
                    u.data |= m.len as usize > TAG_LEN;
                }
            }
        }
    }

    /// Everything that an authentic message means for its session and peer.
    fn note_received(&mut self, now: Time) {
        for u in self.inbox.used.iter().filter(|u| u.authentic) {
            let peer = u.session.peer();
            peer.roam(u.path);
            self.shared.sessions.heard(&u.session, u.path);
            if peer.confirm(&u.session) {
                self.shared.post_all(|| ToShard::Flush(peer.clone()));
            }
            if peer.note_received(now, &u.session, u.bytes, u.data) {
                self.shared.request_handshake(peer);
            }
        }
    }

    /// Sorts each session's messages by counter if the network or the kernel changed their order: TCP takes
    /// reordering for loss.
    fn put_in_order(&mut self) {
        if std::mem::take(&mut self.inbox.shuffled) {
            self.inbox.messages.sort_unstable_by_key(|m| (m.session, m.counter));
        }
    }

    /// Translates and checks the packets, puts them together and writes them.
    fn coalesce(&mut self, turn: &mut Turn) -> io::Result<()> {
        self.inbox.coalescer.clear();
        for i in 0..self.inbox.messages.len() {
            let m = self.inbox.messages[i];
            if !m.ok {
                continue;
            }
            let text = m.len as usize - TAG_LEN;
            if text == 0 {
                add(&self.counters.keepalives_in, 1);
                continue;
            }
            // The tag is used up: it is the room that a packet may grow into.
            let bytes = &mut turn.datagrams[m.datagrams as usize].bytes_mut()[m.offset as usize..][..m.len as usize];
            let Ok(inner) = Inner::parse(&bytes[..text]) else {
                self.counters.count_drop(Drop::InnerMalformed, 1);
                continue;
            };
            let (mut source, mut len) = (inner.source(), inner.total_len());
            let used = &self.inbox.used[m.session as usize];
            if let (Some(t), IpAddr::V4(_)) = (&used.translation, source) {
                match t.translate(bytes, &inner) {
                    Ok(new) => (source, len) = (t.lease.into(), new),
                    Err(why) => {
                        self.counters.count_drop(reason(why), 1);
                        continue;
                    }
                }
            }
            let peer = used.session.peer().id;
            if self.inbox.router.lookup(source).is_none_or(|owner| owner.id != peer) {
                self.counters.count_drop(Drop::WrongSource, 1);
                continue;
            }
            let pushed = self.inbox.coalescer.push(i as u32, &bytes[..len]);
            debug_assert!(pushed, "it has room for every message of a batch");
            self.inbox.messages[i].len = len as u32;
        }
        self.write_groups(turn)
    }

    fn write_groups(&mut self, turn: &mut Turn) -> io::Result<()> {
        for g in self.inbox.coalescer.groups() {
            let Inbox { coalescer, messages, pieces, writes, counts, .. } = &mut self.inbox;
            let first_piece = pieces.len() as u32;
            let header = coalescer.header_len(g) as u32;
            for (k, i) in coalescer.members(g).enumerate() {
                let m = messages[i as usize];
                let (mut offset, mut len) = (m.offset, m.len);
                if k > 0 {
                    (offset, len) = (offset + header, len - header);
                } else if self.tun.vnet {
                    // The data header in front of the text is used up: the virtio header takes its place.
                    (offset, len) = (offset - VNET_LEN as u32, len + VNET_LEN as u32);
                    let first =
                        &mut turn.datagrams[m.datagrams as usize].bytes_mut()[offset as usize..][..len as usize];
                    coalescer.finish(g, first);
                }
                pieces.push(Piece { datagrams: m.datagrams, offset, len });
            }
            writes.push(Write { first: first_piece, count: pieces.len() as u32 - first_piece });
            counts.push(coalescer.count(g) as u32);
            if writes.len() == CALL_BATCH {
                self.write(turn)?;
            }
        }
        self.write(turn)
    }

    fn write(&mut self, turn: &Turn) -> io::Result<()> {
        let Inbox { coalescer, pieces, writes, counts, outcomes, .. } = &mut self.inbox;
        if writes.is_empty() {
            return Ok(());
        }
        let r = self.driver.write(turn, pieces, writes, outcomes);
        for (outcome, n) in outcomes.iter().zip(counts.iter()) {
            let count = u64::from(*n);
            match *outcome {
                Ok(()) => {
                    add(&self.counters.tun_writes, 1);
                    add(&self.counters.tun_out, count);
                }
                Err(libc::EIO) => self.counters.count_drop(Drop::TunDown, count),
                Err(errno) => {
                    self.counters.count_drop(Drop::TunWriteFailed, count);
                    // Some 6.6 kernels refuse super-packets (EINVAL): the flows in flight lose one.
                    if errno == libc::EINVAL && count > 1 && self.shared.tun_gso.swap(false, Relaxed) {
                        tracing::info!("the TUN device refuses super-packets (EINVAL): coalescing switched off");
                    }
                }
            }
        }
        coalescer.set_enabled(self.tun.vnet && self.tun.tso && self.shared.tun_gso.load(Relaxed));
        pieces.clear();
        writes.clear();
        counts.clear();
        r
    }
}
