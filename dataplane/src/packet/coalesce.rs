//! Received packets put together into super-packets for TUN (GRO in software): one write for many segments.
//!
//! What goes together is what the kernel takes apart into the same packets again (net/ipv4/tcp_offload.c,
//! net/ipv4/udp_offload.c): the receiver sees every packet as it was sent, in its flow's order. Where Linux
//! GRO asks for equality so does this, the TCP window and urgent pointer included: a super-packet has one of
//! each. The one freedom is the ID of an IPv4 packet with DF, which carries no meaning (RFC 6864 section 4)
//! and which senders count up, fix or zero as they like; without DF it has to count up, as the kernel will
//! make it.

use super::checksum::Sum;
use super::flows::{Flows, Slot};
use super::header::{Class, Header, Kind, Seen};
use super::virtio::{self, VNET_LEN};
use super::{MAX_PACKET, MAX_SEGMENTS, TCP_CHECKSUM, UDP_CHECKSUM, flag, put16};

/// Datagrams of one UDP super-packet, at most: `UDP_MAX_SEGMENTS` before Linux 6.9 (128 since). Above it the
/// write fails.
pub const MAX_DATAGRAMS: usize = 64;

/// A group of packets that are written to TUN at once; see [`Coalescer::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(u32);

/// Ends a list of members.
const END: u32 = u32::MAX;

/// A packet of a group.
#[derive(Clone, Copy, Debug)]
struct Member {
    /// The caller's number of it.
    index: u32,
    /// The group's next one.
    next: u32,
}

/// One packet or several that continue each other.
#[derive(Clone, Debug)]
struct Group {
    first: u32,
    last: u32,
    count: u32,
    /// Payload bytes of all members.
    payload: u32,
    /// Whether another packet may be appended.
    open: bool,
    /// The last member has PSH.
    push: bool,
    /// The first member's.
    header: Header,
}

/// Finds out which packets of a batch form super-packets. Holds positions only: the packets stay where they
/// are.
#[derive(Debug)]
pub struct Coalescer {
    members: Vec<Member>,
    groups: Vec<Group>,
    flows: Flows,
    /// The flow of the latest packet that has one.
    previous: Option<Slot>,
    capacity: usize,
    udp: bool,
    enabled: bool,
}

impl Coalescer {
    /// For batches of at most `capacity` packets. `udp`: the device takes UDP super-packets (USO). Nothing is
    /// allocated afterwards.
    #[must_use]
    pub fn new(capacity: usize, udp: bool) -> Self {
        let capacity = capacity.min(END as usize);
        Self {
            members: Vec::with_capacity(capacity),
            groups: Vec::with_capacity(capacity),
            flows: Flows::new(capacity),
            previous: None,
            capacity,
            udp,
            enabled: true,
        }
    }

    /// Forgets the batch. Takes the same time for any batch.
    pub fn clear(&mut self) {
        self.members.clear();
        self.groups.clear();
        self.flows.clear();
        self.previous = None;
    }

    /// Whether UDP is coalesced from the next batch on.
    pub const fn set_udp(&mut self, udp: bool) {
        self.udp = udp;
    }

    /// When off, every packet of the next batches is its own group.
    pub const fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Takes the next packet: exactly one IP packet, padding stripped. `index`, below `u32::MAX`, is the
    /// caller's number of it. False, and nothing taken, if the capacity is used up.
    #[must_use]
    pub fn push(&mut self, index: u32, packet: &[u8]) -> bool {
        if self.members.len() >= self.capacity {
            return false;
        }
        let class = if self.enabled { Class::of(packet, self.udp) } else { Class::Apart };
        match class {
            Class::Apart => self.start(index, None),
            Class::Hidden => {
                // Which flow it belongs to is not known, so none may overtake it.
                self.flows.clear();
                self.previous = None;
                self.start(index, None);
            }
            Class::Flow(shape) => self.push_flow(index, &Seen { shape, packet }),
        }
        true
    }

    fn push_flow(&mut self, index: u32, next: &Seen<'_>) {
        let Some((slot, latest)) = self.flow(next) else { return self.start(index, None) };
        self.previous = Some(slot);
        if let Some(g) = latest
            && self.groups[g as usize].takes(next)
        {
            return self.append(g, index, next);
        }
        self.flows.set(slot, self.groups.len() as u32);
        self.start(index, Some(next));
    }

    /// The packet's flow and that flow's latest group. `None`: the table has no place for the flow, and will
    /// not have one until the next batch, so that its packets stay apart and in order.
    #[inline]
    fn flow(&mut self, next: &Seen<'_>) -> Option<(Slot, Option<u32>)> {
        let same = |g: u32| self.groups[g as usize].header.same_flow(next);
        // Most often it is the flow of the packet before.
        if let Some(slot) = self.previous {
            let g = self.flows.latest(slot);
            if same(g) {
                return Some((slot, Some(g)));
            }
        }
        self.flows.find(next.hash(), same)
    }

    fn start(&mut self, index: u32, seen: Option<&Seen<'_>>) {
        let at = self.members.len() as u32;
        let push = seen.is_some_and(Seen::has_push);
        self.members.push(Member { index, next: END });
        self.groups.push(Group {
            first: at,
            last: at,
            count: 1,
            payload: seen.map_or(0, Seen::payload) as u32,
            open: seen.is_some_and(|s| s.shape.kind != Kind::Closing) && !push,
            push,
            header: seen.map_or(Header::NONE, Header::of),
        });
    }

    fn append(&mut self, g: u32, index: u32, next: &Seen<'_>) {
        let at = self.members.len() as u32;
        self.members.push(Member { index, next: END });
        let group = &mut self.groups[g as usize];
        self.members[group.last as usize].next = at;
        group.last = at;
        group.count += 1;
        group.payload += next.payload() as u32;
        group.push = next.has_push();
        // A super-packet can have PSH and a short segment only at its end.
        group.open = !group.push && next.shape.payload == group.header.shape.payload;
    }

    /// The batch's groups, in the order of their first members. Writing them in this order keeps the order of
    /// every flow.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.groups.len() as u32).map(GroupId)
    }

    /// The caller's numbers of the group's packets, in order.
    pub fn members(&self, g: GroupId) -> impl Iterator<Item = u32> {
        let mut at = self.groups[g.0 as usize].first;
        std::iter::from_fn(move || {
            let member = self.members.get(at as usize)?;
            at = member.next;
            Some(member.index)
        })
    }

    /// Packets of the group.
    #[must_use]
    pub fn count(&self, g: GroupId) -> usize {
        self.groups[g.0 as usize].count as usize
    }

    /// Bytes of IP and transport header: what the group's packets after the first leave out. Zero for a
    /// packet that nothing can be appended to.
    #[must_use]
    pub fn header_len(&self, g: GroupId) -> usize {
        usize::from(self.groups[g.0 as usize].header.shape.header_len)
    }

    /// Makes the group ready to write. `first` is [`VNET_LEN`] bytes of room and the group's first packet;
    /// followed by the other members' payloads it is one write to TUN.
    ///
    /// # Panics
    /// If `first` is shorter than the room and the first packet.
    pub fn finish(&self, g: GroupId, first: &mut [u8]) {
        let group = &self.groups[g.0 as usize];
        let (vnet, packet) = first.split_at_mut(VNET_LEN);
        if group.count == 1 {
            vnet.fill(0);
        } else {
            let shape = group.header.shape;
            vnet.copy_from_slice(&group.virtio().bytes());
            group.patch(&mut packet[..usize::from(shape.header_len)]);
        }
    }
}

impl Group {
    /// Whether `next`, of the same flow, can be appended.
    #[inline]
    fn takes(&self, next: &Seen<'_>) -> bool {
        let shape = self.header.shape;
        let most = if shape.kind == Kind::Udp { MAX_DATAGRAMS } else { MAX_SEGMENTS };
        self.open
            && next.shape.payload <= shape.payload
            && (self.count as usize) < most
            && usize::from(shape.header_len) + self.payload as usize + next.payload() <= MAX_PACKET
            && self.header.continued_by(next, self.payload, self.count)
    }

    fn virtio(&self) -> virtio::Header {
        let shape = self.header.shape;
        let tcp = shape.kind == Kind::Tcp;
        virtio::Header {
            flags: virtio::F_NEEDS_CSUM,
            gso_type: match (tcp, shape.v6) {
                (true, false) => virtio::GSO_TCPV4,
                (true, true) => virtio::GSO_TCPV6,
                (false, _) => virtio::GSO_UDP_L4,
            },
            hdr_len: u16::from(shape.header_len),
            gso_size: shape.payload,
            csum_start: u16::from(shape.transport),
            csum_offset: if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM } as u16,
        }
    }

    /// Makes the first member's headers those of the super-packet.
    fn patch(&self, header: &mut [u8]) {
        let shape = self.header.shape;
        let (ip, l4) = header.split_at_mut(usize::from(shape.transport));
        // At most MAX_PACKET, header included.
        let l4_len = l4.len() + self.payload as usize;
        let (addresses, protocol) = if shape.v6 {
            put16(ip, 4, l4_len as u16);
            (&ip[8..40], ip[6])
        } else {
            let total = (ip.len() + l4_len) as u16;
            put16(ip, 2, total);
            ip[10..12].fill(0);
            let sum = Sum::ZERO.add_bytes(ip).checksum();
            ip[10..12].copy_from_slice(&sum);
            (&ip[12..20], ip[9])
        };
        let pseudo = Sum::pseudo(addresses, protocol, l4_len).partial();
        if shape.kind == Kind::Tcp {
            if self.push {
                l4[13] |= flag::PSH;
            }
            l4[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo);
        } else {
            put16(l4, 4, l4_len as u16);
            l4[UDP_CHECKSUM..].copy_from_slice(&pseudo);
        }
    }
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
