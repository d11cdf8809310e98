//! The multicast groups of the IPv6 VIPs: on which interfaces the director is a member of which.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::error;

use super::knowledge::Knowledge;
use crate::neighbour::{
    Netlink,
    groups::{self, Membership, solicited_node},
};

/// Makes the director a member of the solicited-node group of each IPv6 VIP, on every interface: clients' routers may ask on
/// any. Leaves those of VIPs that are gone.
pub async fn prepare(netlink: &Netlink, knowledge: &Knowledge) {
    let interfaces: BTreeSet<u32> = knowledge.ports.iter().map(|port| port.ifindex).collect();
    let vips: BTreeSet<IpAddr> = knowledge.config().services.iter().map(|s| s.vip).collect();
    let mut wanted = BTreeSet::new();
    for vip in vips {
        if let IpAddr::V6(vip) = vip {
            let group = solicited_node(vip);
            wanted.extend(interfaces.iter().map(|ifindex| Membership {
                group,
                ifindex: *ifindex,
            }));
        }
    }
    if let Err(error) = groups::ensure(netlink, &wanted, &interfaces).await {
        error!(
            %error,
            "neighbour solicitations for a VIP may not arrive: see that IPv6 is not disabled on the interfaces \
             (net.ipv6.conf.INTERFACE.disable_ipv6), and that net.core.optmem_max has room for 64 bytes for each VIP"
        );
    }
}

/// Leaves all of them, on this interface: where the data path is taken away.
pub async fn leave(netlink: &Netlink, ifindex: u32) {
    if let Err(error) = groups::ensure(netlink, &BTreeSet::new(), &BTreeSet::from([ifindex])).await
    {
        error!(%error, "the groups of the VIPs could not be left");
    }
}
