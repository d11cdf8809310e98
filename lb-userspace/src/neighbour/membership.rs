//! What makes an interface take in the frames to a cluster's MAC address.
//!
//! The network card filters by destination before any XDP program sees a frame. The MAC address goes into the card's own
//! list of further addresses (`bridge fdb add MAC dev eth0 self`), which takes unicast and multicast alike; a card without
//! such a list is made promiscuous by the kernel. Where the cluster has an IP multicast group, the interface joins it with
//! an address that says so (`ip address add GROUP dev eth0 autojoin`), so that a switch with IGMP snooping hears of it.
//! Both belong to the interface and outlive the daemon, as the data path does.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Mac, Netlink, NetlinkError};

/// What an interface has to take in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The cluster's MAC address.
    pub mac: Mac,
    /// The IP multicast group to join, where there is one.
    pub group: Option<Ipv4Addr>,
}

impl Membership {
    /// Makes the interface take in the cluster's frames; what is there already stays.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn ensure(self, netlink: &Netlink, ifindex: u32) -> Result<(), NetlinkError> {
        let request = netlink
            .handle()
            .neighbours()
            .add_bridge(ifindex, &self.mac)
            .flags(NeighbourFlags::Own)
            .execute();
        let added = netlink
            .ask(
                || "let the interface take in the cluster's MAC address".to_owned(),
                request,
            )
            .await;
        there_already(added)?;
        let Some(group) = self.group else {
            return Ok(());
        };
        let mut request = netlink
            .handle()
            .address()
            .add(ifindex, IpAddr::V4(group), GROUP_PREFIX);
        *request.message_mut() = membership_address(ifindex, group);
        let joined = netlink
            .ask(
                || format!("join the cluster's multicast group {group}"),
                request.execute(),
            )
            .await;
        there_already(joined)
    }

    /// Takes it back; what is not there need not go.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove(self, netlink: &Netlink, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()));
        let request = netlink.handle().neighbours().del(message).execute();
        let removed = netlink
            .ask(
                || "take the cluster's MAC address from the interface".to_owned(),
                request,
            )
            .await;
        gone_already(removed)?;
        let Some(group) = self.group else {
            return Ok(());
        };
        let message = membership_address(ifindex, group);
        let left = netlink
            .ask(
                || format!("leave the cluster's multicast group {group}"),
                netlink.handle().address().del(message).execute(),
            )
            .await;
        gone_already(left)
    }
}

/// A group is one address.
const GROUP_PREFIX: u8 = 32;

/// The address that has the interface join the group.
fn membership_address(ifindex: u32, group: Ipv4Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = ifindex;
    message.header.prefix_len = GROUP_PREFIX;
    // Never a source address before the interface's own.
    message.header.scope = AddressScope::Link;
    message.attributes = vec![
        AddressAttribute::Address(IpAddr::V4(group)),
        AddressAttribute::Local(IpAddr::V4(group)),
        AddressAttribute::Flags(AddressFlags::Mcautojoin),
    ];
    message
}

fn there_already(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

fn gone_already(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}
