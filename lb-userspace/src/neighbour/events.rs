//! What the resolver reports.

use std::net::IpAddr;

use super::{Link, NeighbourEvent};

/// An interface changed in something a load balancer depends on, or is there to begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEvent {
    /// The interface as it is now, or as it was before it vanished.
    pub link: Link,
    /// `false` if it has vanished.
    pub exists: bool,
}

/// An address was assigned to an interface of this host, or taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressEvent {
    /// The address.
    pub address: IpAddr,
    /// The interface.
    pub ifindex: u32,
    /// Assigned, or taken away.
    pub assigned: bool,
}

/// Something changed in the host's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A followed neighbour's MAC.
    Neighbour(NeighbourEvent),
    /// An interface: its MAC, whether it is up, its MTU, its XDP program. Also sent once for each
    /// interface at the start.
    Link(LinkEvent),
    /// An address of this host.
    Address(AddressEvent),
}
