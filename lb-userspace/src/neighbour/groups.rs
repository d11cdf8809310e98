//! The multicast groups to which a VIP's neighbour solicitations are sent.
//!
//! Who looks for an IPv6 address asks its solicited-node group (RFC 4291 section 2.7.1). A network card passes the
//! frames of groups alone that were joined, and a switch that snoops on MLD (RFC 4541) sends them on to members alone. So the
//! director is a member on each of its interfaces, although the VIP is assigned to none of them: a multicast address with
//! the flag `autojoin` (`ip address add GROUP dev INTERFACE autojoin`) has the kernel join, and stay a member when the
//! daemon has ended or was killed, as the data path stays.
//!
//! xdp-lb's memberships are recognised by the flag together with the kind of the address. The kernel drops the address when
//! the interface goes down, but stays a member.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::AddressMessageBuilder;

use super::{Netlink, NetlinkError};

/// A group on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership {
    /// The group.
    pub group: Ipv6Addr,
    /// The interface's index.
    pub ifindex: u32,
}

/// The solicited-node group of an address: its last 24 bits behind ff02::1:ff00:0/104.
#[must_use]
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | address.to_bits() & 0xff_ffff)
}

/// Joins what is wanted, and leaves what xdp-lb joined on these interfaces and is wanted no more. All are tried; gives how
/// many changed.
///
/// # Errors
/// The first refusal of the kernel.
pub async fn ensure(
    netlink: &Netlink,
    wanted: &BTreeSet<Membership>,
    interfaces: &BTreeSet<u32>,
) -> Result<usize, NetlinkError> {
    let present = ours(netlink).await?;
    let mut changed = 0;
    let mut refused = None;
    let joined: BTreeSet<Membership> = present.iter().map(|(membership, _)| *membership).collect();
    for membership in wanted.difference(&joined) {
        match join(netlink, *membership).await {
            Ok(new) => changed += usize::from(new),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    for (membership, message) in present {
        if interfaces.contains(&membership.ifindex) && !wanted.contains(&membership) {
            let request = netlink.handle().address().del(message).execute();
            let action = || format!("leave the group {}", membership.group);
            match netlink.ask(action, request).await {
                Ok(()) => changed += 1,
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
    }
    match refused {
        Some(error) => Err(error),
        None => Ok(changed),
    }
}

/// Whether it is new.
async fn join(netlink: &Netlink, membership: Membership) -> Result<bool, NetlinkError> {
    let Membership { group, ifindex } = membership;
    let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
        .index(ifindex)
        .build();
    message.header.prefix_len = 128;
    message.header.scope = AddressScope::Link;
    message.attributes.extend([
        AddressAttribute::Address(IpAddr::V6(group)),
        AddressAttribute::Local(IpAddr::V6(group)),
        AddressAttribute::Flags(
            AddressFlags::Mcautojoin | AddressFlags::Nodad | AddressFlags::Noprefixroute,
        ),
    ]);
    let mut request = netlink.handle().address().add(ifindex, group.into(), 128);
    *request.message_mut() = message;
    let action = || format!("join the group {group}, which a VIP's neighbour solicitations go to");
    match netlink.ask(action, request.execute()).await {
        Ok(()) => Ok(true),
        // The address is there; or the interface was down, which took the address and left the membership.
        Err(error) if matches!(error.errno(), Some(libc::EEXIST | libc::EADDRINUSE)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The memberships that are xdp-lb's, each with the kernel's message.
async fn ours(netlink: &Netlink) -> Result<Vec<(Membership, AddressMessage)>, NetlinkError> {
    let messages: Vec<AddressMessage> = netlink
        .ask(
            || "list addresses".to_owned(),
            netlink.handle().address().get().execute().try_collect(),
        )
        .await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| Some((membership(&message)?, message)))
        .collect())
}

fn membership(message: &AddressMessage) -> Option<Membership> {
    let mut group = None;
    let mut joins = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(IpAddr::V6(address)) => group = Some(*address),
            AddressAttribute::Flags(flags) => joins = flags.contains(AddressFlags::Mcautojoin),
            _ => {}
        }
    }
    let group = group.filter(|group| joins && solicited_node(*group) == *group)?;
    Some(Membership {
        group,
        ifindex: message.header.index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 4291 section 2.7.1.
    #[test]
    fn the_group_of_an_address() {
        let group = solicited_node("4037::01:800:200e:8c6c".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff0e:8c6c");
    }
}
