//! What there is: links, addresses, routes, reduced to what is needed.

use super::Host;
use crate::Error;
use dataplane::table::Prefix;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An interface.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Of another tunnel, or a modem: point-to-point.
    pub(super) tunnel: bool,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) len: u8,
    pub(super) flags: AddressFlags,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) prefix: Prefix,
    /// Where it leads; `None` for several next hops.
    pub(super) index: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) metric: u32,
}

pub(super) async fn links(host: &Host) -> Result<Vec<Link>, Error> {
    let all = host.list("list interfaces", |handle| handle.link().get().execute()).await?;
    let link = |m: &rtnetlink::packet_route::link::LinkMessage| {
        let name = m.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
        let has = |flag| m.header.flags.contains(flag);
        Some(Link { index: m.header.index, name, up: has(LinkFlags::Up), tunnel: has(LinkFlags::Pointopoint) })
    };
    Ok(all.iter().filter_map(link).collect())
}

pub(super) async fn addresses(host: &Host) -> Result<Vec<Address>, Error> {
    let all = host.list("list addresses", |handle| handle.address().get().execute()).await?;
    Ok(all.iter().filter_map(address).collect())
}

fn address(m: &AddressMessage) -> Option<Address> {
    let (mut local, mut remote) = (None, None);
    // The header has the lower 8 bits only.
    let mut flags = AddressFlags::from_bits_retain(m.header.flags.bits().into());
    for a in &m.attributes {
        match a {
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => remote = Some(*a),
            AddressAttribute::Flags(f) => flags = *f,
            _ => {}
        }
    }
    // On point-to-point links IFA_ADDRESS is the other end (include/uapi/linux/if_addr.h).
    Some(Address { index: m.header.index, address: local.or(remote)?, len: m.header.prefix_len, flags })
}

pub(super) async fn routes(host: &Host, v4: bool) -> Result<Vec<Route>, Error> {
    let family = if v4 {
        RouteMessageBuilder::<Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<Ipv6Addr>::new().build()
    };
    let all = host.list("list routes", |handle| handle.route().get(family).execute()).await?;
    Ok(all.iter().filter_map(route).collect())
}

fn route(m: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(m.header.table);
    let any = match m.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut to, mut index, mut gateway, mut metric) = (any, None, None, 0);
    for a in &m.attributes {
        match a {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Destination(a) => to = ip(a)?,
            RouteAttribute::Oif(i) => index = Some(*i),
            RouteAttribute::Gateway(a) => gateway = ip(a),
            RouteAttribute::Priority(p) => metric = *p,
            _ => {}
        }
    }
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN) && m.header.kind == RouteType::Unicast;
    let prefix = Prefix::new(to, m.header.destination_prefix_length)?;
    main.then_some(Route { prefix, index, gateway, metric })
}

const fn ip(a: &RouteAddress) -> Option<IpAddr> {
    match a {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
