//! This machine's interfaces, addresses and routes (rtnetlink(7)).

mod dump;
mod watch;

use crate::Error;
use crate::network::overlap;
use dataplane::table::Prefix;
use dump::{Address, Link, Route};
use futures::stream::{TryStream, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The kernel answers at once, even with a full routing table.
const PATIENCE: Duration = Duration::from_secs(10);
/// Underlay addresses beyond this are not offered: each costs checks with every peer.
pub const MAX_ADDRESSES: usize = 32;

/// A netlink connection in the network namespace in which it was made. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    handle: Handle,
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    /// Carries the requests; ends with the last clone.
    carrier: JoinHandle<()>,
    /// A socket makes one list at a time; asked for a second one, the kernel says EBUSY.
    listing: tokio::sync::Mutex<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

/// Waits for the kernel; `what` completes "cannot ...".
async fn ask<T>(what: &str, request: impl Future<Output = Result<T, rtnetlink::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(|e| failure(what, &e)),
        Err(_) => Err(Error::io(what, std::io::Error::other("the kernel does not answer"))),
    }
}

fn errno(e: &rtnetlink::Error) -> Option<Errno> {
    match e {
        rtnetlink::Error::NetlinkError(m) => Some(Errno::from_raw_os_error(m.raw_code().abs())),
        _ => None,
    }
}

fn failure(what: &str, e: &rtnetlink::Error) -> Error {
    let hint = match errno(e) {
        Some(Errno::PERM | Errno::ACCESS) => return Error::io(format!("{what} (needs CAP_NET_ADMIN)"), Errno::PERM),
        Some(e) => return Error::io(what, e),
        None => e.to_string(),
    };
    Error::io(what, std::io::Error::other(hint))
}

/// Takes some errors for success: what was asked for is so already.
fn unless(result: Result<(), rtnetlink::Error>, fine: &[Errno]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(e) if errno(&e).is_some_and(|e| fine.contains(&e)) => Ok(()),
        other => other,
    }
}

impl Host {
    /// Connects to the kernel. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`]: netlink is refused.
    pub fn new() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| Error::io("open a netlink socket", e))?;
        let connection = Connection { carrier: tokio::spawn(connection), listing: tokio::sync::Mutex::new(()) };
        Ok(Self { handle, connection: Arc::new(connection) })
    }

    /// All that the kernel has of something; `request` sends the question.
    async fn list<T, S>(&self, what: &str, request: impl FnOnce(&Handle) -> S) -> Result<Vec<T>, Error>
    where
        S: TryStream<Ok = T, Error = rtnetlink::Error>,
    {
        let _turn = self.connection.listing.lock().await;
        ask(what, request(&self.handle).try_collect()).await
    }

    async fn index(&self, interface: &str) -> Result<u32, Error> {
        let found = dump::links(self).await?.into_iter().find(|l| l.name == interface);
        found.map(|l| l.index).ok_or_else(|| Error::io(format!("find interface {interface}"), Errno::NODEV))
    }

    /// Gives `interface`, which is ours alone, exactly these addresses (each with its prefix length; the kernel makes
    /// the subnet's route), sets its MTU and brings it up. Does nothing where it is so already. IPv6 link-local
    /// addresses are left alone.
    ///
    /// # Errors
    /// [`Error::Io`]: no such interface, no permission, an address that the kernel does not take.
    pub async fn setup_interface(&self, interface: &str, addresses: &[(IpAddr, u8)], mtu: u16) -> Result<(), Error> {
        let index = self.index(interface).await?;
        let up = LinkUnspec::new_with_index(index).mtu(mtu.into()).up().build();
        ask(&format!("bring up {interface} with MTU {mtu}"), self.handle.link().set(up).execute()).await?;
        let present = dump::addresses(self).await?;
        let present: Vec<Address> =
            present.into_iter().filter(|a| a.index == index && !link_local(a.address)).collect();
        for old in present.iter().filter(|a| !addresses.contains(&(a.address, a.len))) {
            let what = format!("remove {}/{} from {interface}", old.address, old.len);
            let message = address_message(index, old.address, old.len);
            // Deleting an IPv4 address takes its secondaries along.
            let done = async { unless(self.handle.address().del(message).execute().await, &[Errno::ADDRNOTAVAIL]) };
            ask(&what, done).await?;
        }
        for (address, len) in addresses {
            let mut add = self.handle.address().add(index, *address, *len);
            if address.is_ipv6() {
                // Derived from a key: nobody else has it, and it is needed at once.
                add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            let done = async { unless(add.execute().await, &[Errno::EXIST]) };
            ask(&format!("give {address}/{len} to {interface}"), done).await?;
        }
        Ok(())
    }

    /// Takes the routes `old` away from `interface` and routes `new` to it; gives those of `new` that the kernel does not
    /// take, and why. One that is there already, or away already, is fine. The kernel's tables are read once at most: a
    /// member may offer hundreds of routes.
    ///
    /// # Errors
    /// [`Error::Io`]: no such interface, or the kernel does not answer.
    pub async fn change_routes(
        &self,
        interface: &str,
        old: &[Prefix],
        new: &[Prefix],
    ) -> Result<Vec<(Prefix, String)>, Error> {
        let index = self.index(interface).await?;
        let (mut refused, mut doubtful) = (Vec::new(), Vec::new());
        let work = async {
            for prefix in old {
                let gone = [Errno::SRCH, Errno::NOENT, Errno::NODEV];
                unless(self.handle.route().del(route(*prefix, index)).execute().await, &gone)?;
            }
            for prefix in new {
                match self.handle.route().add(route(*prefix, index)).execute().await {
                    Ok(()) => {}
                    Err(e) if errno(&e) == Some(Errno::EXIST) => doubtful.push(*prefix),
                    Err(e) => refused.push((*prefix, failure("add it", &e).to_string())),
                }
            }
            Ok(())
        };
        ask(&format!("change the routes to {interface}"), work).await?;
        for v4 in [true, false] {
            let of_family: Vec<Prefix> = doubtful.iter().filter(|p| p.address().is_ipv4() == v4).copied().collect();
            if of_family.is_empty() {
                continue;
            }
            let present = dump::routes(self, v4).await?;
            let ours = |p: &Prefix| present.iter().any(|r: &Route| r.prefix == *p && r.index == Some(index));
            let others = of_family.into_iter().filter(|p| !ours(p));
            refused.extend(others.map(|p| (p, "this machine has such a route to another interface".to_owned())));
        }
        Ok(refused)
    }

    /// Addresses at which other machines may reach us: of interfaces that are up and not in `exclude` (our overlays),
    /// neither loopback nor link-local nor still being checked for duplicates. Best first: those of other tunnels, which cost
    /// their own work a packet, after all others, deprecated ones after others, IPv4 before IPv6; at most [`MAX_ADDRESSES`].
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel does not tell.
    pub async fn underlay_addresses(&self, exclude: &[String]) -> Result<Vec<IpAddr>, Error> {
        let links = outside(dump::links(self).await?, exclude);
        let mut addresses = dump::addresses(self).await?;
        addresses.retain(|a| offered(a) && links.iter().any(|l| l.index == a.index && l.up));
        let tunnel = |a: &Address| links.iter().any(|l| l.index == a.index && l.tunnel);
        addresses.sort_by_key(|a| (tunnel(a), a.flags.contains(AddressFlags::Deprecated), a.address));
        let mut seen = BTreeSet::new();
        let unique = addresses.iter().map(|a| a.address).filter(|a| seen.insert(*a));
        Ok(unique.take(MAX_ADDRESSES).collect())
    }

    /// All addresses of this machine, of whatever kind and interface.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel does not tell.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        Ok(dump::addresses(self).await?.into_iter().map(|a| a.address).collect())
    }

    /// Prefixes that this machine reaches by itself, in the main table: without default routes, without those to
    /// interfaces in `exclude`. For overlap checks.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel does not tell.
    pub async fn local_routes(&self, exclude: &[String]) -> Result<Vec<Prefix>, Error> {
        let mut prefixes: Vec<Prefix> = self.routes_by_interface(exclude).await?.into_iter().map(|r| r.0).collect();
        prefixes.dedup();
        Ok(prefixes)
    }

    /// [`Self::local_routes`], each with the interface that it leads to; `None`: it leads to none (or several).
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel does not tell.
    pub async fn routes_by_interface(&self, exclude: &[String]) -> Result<Vec<(Prefix, Option<String>)>, Error> {
        let links = outside(dump::links(self).await?, exclude);
        let name = |index: u32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        let mut all = BTreeSet::new();
        for v4 in [true, false] {
            let routes = dump::routes(self, v4).await?.into_iter();
            let routes = routes.filter(|r| !r.prefix.is_empty() && !of_links(&r.prefix));
            all.extend(routes.filter_map(|r| match r.index {
                None => Some((r.prefix, None)),
                Some(index) => name(index).map(|n| (r.prefix, Some(n))),
            }));
        }
        Ok(all.into_iter().collect())
    }
}

/// The first of these routes that a subnet overlaps, for people.
#[must_use]
pub fn overlapping(subnet: &Prefix, routes: &[(Prefix, Option<String>)]) -> Option<String> {
    let (route, interface) = routes.iter().find(|(r, _)| overlap(r, subnet))?;
    let by = interface.as_ref().map_or_else(String::new, |i| format!(" by its interface {i}"));
    Some(format!("{subnet} overlaps {route}, which this machine reaches{by}"))
}

/// `fe80::/64` is on every interface and says nothing.
fn of_links(p: &Prefix) -> bool {
    Prefix::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10).is_some_and(|l| overlap(&l, p))
}

fn outside(mut links: Vec<Link>, exclude: &[String]) -> Vec<Link> {
    links.retain(|l| !exclude.contains(&l.name));
    links
}

const fn link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// Whether an address of an interface is offered to peers.
fn offered(a: &Address) -> bool {
    let unchecked = AddressFlags::Tentative.union(AddressFlags::Dadfailed);
    // An optimistic address may be used before its check is over (RFC 4429).
    let unchecked = a.flags.intersects(unchecked) && !a.flags.contains(AddressFlags::Optimistic);
    let ip = a.address;
    let special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local(ip);
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !unchecked && !special && !mapped
}

fn address_message(index: u32, address: IpAddr, len: u8) -> AddressMessage {
    use rtnetlink::AddressMessageBuilder;
    match address {
        IpAddr::V4(a) => AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(a, len).build(),
        IpAddr::V6(a) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(a, len).build(),
    }
}

fn route(prefix: Prefix, index: u32) -> RouteMessage {
    match prefix.address() {
        IpAddr::V4(a) => {
            let r = RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(a, prefix.len());
            // Without a gateway: everything there is on the link.
            r.output_interface(index).scope(rtnetlink::packet_route::route::RouteScope::Link).build()
        }
        IpAddr::V6(a) => {
            let r = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(a, prefix.len());
            r.output_interface(index).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(a: &str, flags: AddressFlags) -> Address {
        Address { index: 1, address: a.parse().expect("address"), len: 24, flags }
    }

    #[test]
    fn only_addresses_that_others_can_use_are_offered() {
        let none = AddressFlags::empty();
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(offered(&address(good, none)), "{good}");
            assert!(offered(&address(good, AddressFlags::Deprecated)), "{good}");
            assert!(!offered(&address(good, AddressFlags::Tentative)), "{good}");
            assert!(!offered(&address(good, AddressFlags::Tentative | AddressFlags::Dadfailed)), "{good}");
        }
        assert!(offered(&address("2001:db8::1", AddressFlags::Tentative | AddressFlags::Optimistic)));
        for bad in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "0.0.0.0", "::", "ff02::1", "::ffff:192.0.2.1"] {
            assert!(!offered(&address(bad, none)), "{bad}");
        }
    }
}
