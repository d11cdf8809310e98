//! The way of the probes to a VIP.
//!
//! A director does not assign the VIPs it serves, so a probe to one needs a route that says which
//! interface and which source address, and a neighbour entry so that nobody is asked who has
//! the VIP. The MAC of that entry never leaves the host: the egress program replaces it by that of
//! the probed backend. Both are made by this module, recognised as xdp-lb's own by the route's
//! protocol number and the entry's MAC, and removed again.
//!
//! The kernel drops both when the interface goes down; they have to be ensured again when it is up.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use lb_common::abi::PROBE_MAC;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::RouteMessageBuilder;

use super::{HostFacts, Interface, Netlink, NetlinkError, facts};

/// The protocol number of xdp-lb's routes (`proto 88` in `ip route`): not taken in
/// `/etc/iproute2/rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 88;

/// The way of the probes to one VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProbeRoute {
    /// The VIP.
    pub vip: IpAddr,
    /// The interface towards its backends.
    pub ifindex: u32,
    /// The director's own address on that interface, to which the backends answer.
    pub source: IpAddr,
    /// Whether the probes are bound to the interface (`SO_BINDTODEVICE`). Then the VIP may be on another interface of this
    /// host, the loopback mostly: the kernel takes no route through another one for them, that of a local address included.
    pub bound: bool,
}

/// Why probes to a VIP have no way.
#[derive(Debug, thiserror::Error)]
pub enum VipRouteError {
    /// A probe would never leave this host.
    #[error(
        "the VIP {vip} is assigned to {interface} of this director, so probes to it would end here; \
         remove it (`ip address del {vip}/{prefix} dev {interface}`): xdp-lb answers ARP for it"
    )]
    AssignedHere {
        /// The VIP.
        vip: IpAddr,
        /// The interface that has it.
        interface: String,
        /// Its prefix length there.
        prefix: u8,
    },
    /// Somebody else's route leads to the VIP.
    #[error(
        "there is another route to {vip} that xdp-lb did not make (see `ip route show {vip}`); \
         remove it, or use `via = \"address\"` for this service's probes"
    )]
    ForeignRoute {
        /// The VIP.
        vip: IpAddr,
    },
    /// VIP and source address are of different families.
    #[error("the VIP {vip} can't be probed from {source_address}: one is IPv4, the other IPv6")]
    Family {
        /// The VIP.
        vip: IpAddr,
        /// The director's address.
        source_address: IpAddr,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Makes sure that probes to the VIP have their way; `true` if something had to be changed.
///
/// # Errors
/// The VIP is assigned to this very host, another route leads to it, or the kernel refuses.
pub async fn ensure(netlink: &Netlink, wanted: &ProbeRoute) -> Result<bool, VipRouteError> {
    Present::read(netlink)
        .await?
        .complete(netlink, wanted, std::slice::from_ref(wanted))
        .await
}

/// [`ensure`] for many VIPs, reading what is there only once. A result for each, in their order. A VIP with several
/// interfaces has one route through each, which differ in their metric.
///
/// # Errors
/// What is there can't be read.
pub async fn ensure_all(
    netlink: &Netlink,
    all: &[ProbeRoute],
) -> Result<Vec<Result<bool, VipRouteError>>, NetlinkError> {
    let present = Present::read(netlink).await?;
    let mut results = Vec::with_capacity(all.len());
    for wanted in all {
        let of_vip: Vec<ProbeRoute> = all
            .iter()
            .filter(|other| other.vip == wanted.vip)
            .copied()
            .collect();
        results.push(present.complete(netlink, wanted, &of_vip).await);
    }
    Ok(results)
}

/// What is there already.
struct Present {
    facts: HostFacts,
    /// xdp-lb's own routes and entries, by VIP.
    routes: HashMap<IpAddr, Vec<RouteMessage>>,
    neighbours: HashMap<IpAddr, Vec<NeighbourMessage>>,
}

impl Present {
    async fn read(netlink: &Netlink) -> Result<Self, NetlinkError> {
        let mut present = Self {
            facts: facts::facts(netlink).await?,
            routes: HashMap::new(),
            neighbours: HashMap::new(),
        };
        for v6 in [false, true] {
            for route in our_routes(netlink, v6).await? {
                if let Some(vip) = destination(&route) {
                    present.routes.entry(vip).or_default().push(route);
                }
            }
        }
        for neighbour in our_neighbours(netlink).await? {
            if let Some(vip) = neighbour_address(&neighbour) {
                present.neighbours.entry(vip).or_default().push(neighbour);
            }
        }
        Ok(present)
    }

    /// Adds and removes what it takes to make `wanted` true, and nothing else. `all` are the ways to the same VIP.
    async fn complete(
        &self,
        netlink: &Netlink,
        wanted: &ProbeRoute,
        all: &[ProbeRoute],
    ) -> Result<bool, VipRouteError> {
        let vip = wanted.vip;
        if vip.is_ipv6() != wanted.source.is_ipv6() {
            return Err(VipRouteError::Family {
                vip,
                source_address: wanted.source,
            });
        }
        let bound_elsewhere =
            |owner: &Interface| wanted.bound && owner.link.ifindex != wanted.ifindex;
        if let Some(owner) = self.facts.assigned(vip)
            && !bound_elsewhere(owner)
        {
            return Err(VipRouteError::AssignedHere {
                vip,
                interface: owner.link.name.clone(),
                prefix: owner
                    .addresses
                    .iter()
                    .find(|net| net.addr() == vip)
                    .map_or_else(|| host_prefix(vip), ipnet::IpNet::prefix_len),
            });
        }
        let routes = self.routes.get(&vip).map_or(&[][..], Vec::as_slice);
        let is_wanted = |route: &RouteMessage| all.iter().any(|way| leads(route, way));
        // A replacement would leave an IPv6 route through another interface in place.
        let mut changed = delete_routes(netlink, routes, |route| !is_wanted(route)).await? > 0;
        if !routes.iter().any(|route| leads(route, wanted)) {
            // The first has the usual metric, the one that somebody else's route would have as well.
            let first = all.first().is_none_or(|way| way.ifindex == wanted.ifindex);
            let usual_taken = routes
                .iter()
                .any(|route| is_wanted(route) && metric(route).is_none());
            let metric = (!first || usual_taken).then_some(wanted.ifindex);
            add_route(netlink, wanted, metric).await?;
            changed = true;
        }
        let neighbours = self.neighbours.get(&vip).map_or(&[][..], Vec::as_slice);
        let right = |neighbour: &NeighbourMessage| neighbour.header.ifindex == wanted.ifindex;
        if !neighbours.iter().any(right) {
            let request = netlink
                .handle()
                .neighbours()
                .add(wanted.ifindex, vip)
                .link_layer_address(&PROBE_MAC)
                .state(NeighbourState::Permanent)
                .replace()
                .execute();
            netlink
                .ask(|| format!("set the neighbour entry of {vip}"), request)
                .await?;
            changed = true;
        }
        // Left from an interface the VIP was reached through before.
        let left = |n: &NeighbourMessage| !all.iter().any(|way| way.ifindex == n.header.ifindex);
        let removed = delete_neighbours(netlink, neighbours, left).await?;
        Ok(changed || removed > 0)
    }
}

/// Removes what [`ensure`] made for this VIP; `false` if there was nothing.
///
/// # Errors
/// The kernel refuses.
pub async fn remove(netlink: &Netlink, vip: IpAddr) -> Result<bool, NetlinkError> {
    let routes = our_routes(netlink, vip.is_ipv6()).await?;
    let neighbours = our_neighbours(netlink).await?;
    let removed = delete_routes(netlink, &routes, |route| destination(route) == Some(vip)).await?
        + delete_neighbours(netlink, &neighbours, |n| neighbour_address(n) == Some(vip)).await?;
    Ok(removed > 0)
}

/// Removes every route and entry of xdp-lb on an interface, whatever VIP it was for: on a clean
/// exit, or what a killed daemon left. Gives their number.
///
/// # Errors
/// The kernel refuses.
pub async fn remove_all_ours(netlink: &Netlink, ifindex: u32) -> Result<usize, NetlinkError> {
    let mut removed = 0;
    for v6 in [false, true] {
        let routes = our_routes(netlink, v6).await?;
        removed +=
            delete_routes(netlink, &routes, |route| interface(route) == Some(ifindex)).await?;
    }
    let neighbours = our_neighbours(netlink).await?;
    removed += delete_neighbours(netlink, &neighbours, |n| n.header.ifindex == ifindex).await?;
    Ok(removed)
}

async fn add_route(
    netlink: &Netlink,
    wanted: &ProbeRoute,
    metric: Option<u32>,
) -> Result<(), VipRouteError> {
    let vip = wanted.vip;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(vip, host_prefix(vip))
        .and_then(|builder| builder.pref_source(wanted.source))
        .map_err(|_| VipRouteError::Family {
            vip,
            source_address: wanted.source,
        })?
        .output_interface(wanted.ifindex)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .scope(match vip {
            IpAddr::V4(_) => RouteScope::Link,
            // IPv6 routes have no scope.
            IpAddr::V6(_) => RouteScope::Universe,
        });
    if let Some(metric) = metric {
        builder = builder.priority(metric);
    }
    let request = netlink.handle().route().add(builder.build()).execute();
    match netlink
        .ask(|| format!("add the probes' route to {vip}"), request)
        .await
    {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            Err(VipRouteError::ForeignRoute { vip })
        }
        Err(error) => Err(error.into()),
    }
}

/// The routes with our protocol number, in all tables.
async fn our_routes(netlink: &Netlink, v6: bool) -> Result<Vec<RouteMessage>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    request.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    let answer = netlink.handle().route().get(request).execute();
    let mut routes: Vec<RouteMessage> = netlink
        .ask(|| "list routes".to_owned(), answer.try_collect())
        .await?;
    // A kernel before 4.20 lists all of them.
    routes.retain(|route| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL));
    Ok(routes)
}

/// The permanent neighbour entries with the probes' MAC.
async fn our_neighbours(netlink: &Netlink) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let answer = netlink.handle().neighbours().get().execute();
    let mut neighbours: Vec<NeighbourMessage> = netlink
        .ask(|| "list neighbours".to_owned(), answer.try_collect())
        .await?;
    neighbours.retain(|message| {
        message.header.state == NeighbourState::Permanent
            && message.attributes.iter().any(|attribute| {
                matches!(attribute, NeighbourAttribute::LinkLayerAddress(mac) if *mac == PROBE_MAC)
            })
    });
    Ok(neighbours)
}

async fn delete_routes(
    netlink: &Netlink,
    routes: &[RouteMessage],
    which: impl Fn(&RouteMessage) -> bool,
) -> Result<usize, NetlinkError> {
    let mut removed = 0;
    for route in routes.iter().filter(|route| which(route)) {
        let request = netlink.handle().route().del(route.clone()).execute();
        removed += gone(
            netlink
                .ask(|| "remove a probes' route".to_owned(), request)
                .await,
        )?;
    }
    Ok(removed)
}

async fn delete_neighbours(
    netlink: &Netlink,
    neighbours: &[NeighbourMessage],
    which: impl Fn(&NeighbourMessage) -> bool,
) -> Result<usize, NetlinkError> {
    let mut removed = 0;
    for neighbour in neighbours.iter().filter(|neighbour| which(neighbour)) {
        let request = netlink
            .handle()
            .neighbours()
            .del(neighbour.clone())
            .execute();
        removed += gone(
            netlink
                .ask(|| "remove a probes' neighbour entry".to_owned(), request)
                .await,
        )?;
    }
    Ok(removed)
}

/// What vanished by itself meanwhile need not be removed.
fn gone(result: Result<(), NetlinkError>) -> Result<usize, NetlinkError> {
    match result {
        Ok(()) => Ok(1),
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// The one address this route leads to; `None` for a subnet's route.
fn destination(route: &RouteMessage) -> Option<IpAddr> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })?;
    (route.header.destination_prefix_length == host_prefix(address)).then_some(address)
}

fn interface(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        })
}

/// The route's metric; `None` for the usual one, which is none for IPv4 and 1024 (`IP6_RT_PRIO_USER`) for IPv6.
fn metric(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        })
        .filter(|metric| !matches!(metric, 0 | 1024))
}

fn leads(route: &RouteMessage, wanted: &ProbeRoute) -> bool {
    let source = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(address) => ip(address),
            _ => None,
        });
    interface(route) == Some(wanted.ifindex) && source == Some(wanted.source)
}

fn neighbour_address(neighbour: &NeighbourMessage) -> Option<IpAddr> {
    neighbour
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// An error of the operating system, as [`NetlinkError::Request`] carries it.
    fn refused(errno: i32) -> Result<(), NetlinkError> {
        Err(NetlinkError::Request {
            action: "test".to_owned(),
            error: io::Error::from_raw_os_error(errno),
        })
    }

    #[test]
    fn what_is_gone_already_counts_as_removed_by_another() {
        assert_eq!(gone(Ok(())).unwrap(), 1);
        for errno in [libc::ESRCH, libc::ENOENT, libc::ENODEV] {
            assert_eq!(gone(refused(errno)).unwrap(), 0);
        }
        assert_eq!(
            gone(refused(libc::EPERM)).unwrap_err().errno(),
            Some(libc::EPERM)
        );
    }
}
