//! The host's network through rtnetlink: its interfaces, its neighbours, and the way of the probes.
//!
//! - [`host_facts`] reads the interfaces and their addresses once.
//! - [`Resolver`] follows the MAC addresses of a set of neighbours, and the interfaces.
//! - [`groups`] keeps the director a member of the groups that an IPv6 VIP's neighbour solicitations are sent to.
//! - [`Membership`] makes an interface take in the frames to a cluster's MAC address.
//! - [`ClusterFrames`] sends the frames by which a cluster's nodes fence each other and ask for each other, and takes in the answers.
//! - [`vip_route`] keeps what a probe to a VIP needs on a director that has not assigned it.

pub mod cluster_frames;
mod events;
mod facts;
pub mod groups;
mod membership;
mod netlink;
pub mod offload;
mod resolver;
mod table;
pub mod vip_route;

pub use cluster_frames::ClusterFrames;
pub use events::{AddressEvent, LinkEvent, NetworkEvent};
pub use facts::{
    AttachMode, AttachedXdp, HostFacts, Interface, Link, VlanOf, host_facts, interface_towards,
};
pub use membership::Membership;
pub use netlink::{Netlink, NetlinkError};
pub use resolver::Resolver;
pub use table::{NeighbourEvent, Target};

/// An Ethernet address, in the order of the wire.
pub type Mac = [u8; 6];

/// The MAC in these bytes; `None` for another length and for zeros, which the loopback interface has.
fn mac(bytes: &[u8]) -> Option<Mac> {
    Mac::try_from(bytes).ok().filter(|mac| *mac != [0; 6])
}
