//! What this host's network looks like: interfaces, addresses, attached XDP programs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    VlanProtocol, XdpAttached,
};

use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::{Mac, Netlink, NetlinkError, mac};

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the network stack, after a packet buffer was made for the frame.
    Generic,
    /// In the network card.
    Hardware,
    /// Several programs at once, in different modes.
    Multiple,
}

/// The XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachedXdp {
    /// How it is attached.
    pub mode: AttachMode,
    /// The program's id, as in `bpftool prog show id`.
    pub program: u32,
}

/// What makes an interface a VLAN on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanOf {
    /// The number of the interface it is on.
    pub parent: u32,
    /// The VLAN identifier, 1 to 4094.
    pub id: u16,
}

/// An interface without its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of the interface.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` where it has none, as on the loopback interface.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Has a carrier, so that it can be used while it is up.
    pub running: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// The XDP program on it.
    pub xdp: Option<AttachedXdp>,
    /// Of an IEEE 802.1Q sub-interface: whose, and which VLAN. `None` for an 802.1ad one, whose frames xdp-lb does not make.
    pub vlan: Option<VlanOf>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface itself.
    pub link: Link,
    /// Its addresses, each with the prefix length of its subnet.
    pub addresses: Vec<IpNet>,
    /// The driver (`virtio_net`, `ixgbe`) or the kind of a virtual interface (`veth`, `bridge`).
    pub driver: Option<String>,
    /// Whether a packet that comes in here may have one of this host's own IPv4 addresses as its source: `accept_local` is
    /// set and `rp_filter` is not strict. The answers of other hosts that have an address of this one need it.
    pub takes_own_source: bool,
}

/// All interfaces of this network namespace, in the order of their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The interfaces.
    pub interfaces: Vec<Interface>,
}

impl HostFacts {
    /// The interface with this name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.link.name == name)
    }

    /// The interface with this number.
    #[must_use]
    pub fn by_index(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.link.ifindex == ifindex)
    }

    /// The interface this address is assigned to, loopback included.
    #[must_use]
    pub fn assigned(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.addresses.iter().any(|net| net.addr() == address))
    }

    /// The same, as the configuration is checked against it.
    #[must_use]
    pub fn for_config(&self) -> crate::config::HostFacts {
        let interfaces = self
            .interfaces
            .iter()
            .map(|interface| crate::config::InterfaceFacts {
                name: interface.link.name.clone(),
                index: interface.link.ifindex,
                mac: interface.link.mac,
                addresses: interface.addresses.clone(),
                vlan: interface.link.vlan.map(|vlan| (vlan.parent, vlan.id)),
            });
        crate::config::HostFacts {
            interfaces: interfaces.collect(),
        }
    }

    /// The interface in whose subnet this address lies, and its own address there; where several
    /// do, the one with the longest prefix.
    #[must_use]
    pub fn towards(&self, address: IpAddr) -> Option<(&Interface, IpNet)> {
        self.interfaces
            .iter()
            .filter(|interface| !interface.link.loopback)
            .flat_map(|interface| interface.addresses.iter().map(move |net| (interface, *net)))
            .filter(|(_, net)| net.contains(&address))
            .max_by_key(|(_, net)| net.prefix_len())
    }
}

/// Reads the interfaces and addresses of this thread's network namespace.
///
/// # Errors
/// No netlink socket, or the kernel refuses to list.
pub async fn host_facts() -> Result<HostFacts, NetlinkError> {
    facts(&Netlink::open()?).await
}

pub(super) async fn facts(netlink: &Netlink) -> Result<HostFacts, NetlinkError> {
    let links: Vec<LinkMessage> = netlink
        .ask(
            || "list interfaces".to_owned(),
            netlink.handle().link().get().execute().try_collect(),
        )
        .await?;
    let addresses: Vec<AddressMessage> = netlink
        .ask(
            || "list addresses".to_owned(),
            netlink.handle().address().get().execute().try_collect(),
        )
        .await?;
    let mut interfaces: BTreeMap<u32, Interface> = links
        .iter()
        .map(|message| {
            let link = link(message);
            let driver = kind(message).or_else(|| driver(&link));
            let interface = Interface {
                takes_own_source: takes_own_source(&link.name),
                link,
                addresses: Vec::new(),
                driver,
            };
            (message.header.index, interface)
        })
        .collect();
    for message in &addresses {
        if let (Some(interface), Some(net)) =
            (interfaces.get_mut(&message.header.index), address(message))
        {
            interface.addresses.push(net);
        }
    }
    Ok(HostFacts {
        interfaces: interfaces.into_values().collect(),
    })
}

/// The interface that a packet of this host to `address` would leave through, by the routing table of this thread's network
/// namespace; `None` where there is no route.
///
/// # Errors
/// No netlink socket, or the kernel refuses to tell for another reason.
pub async fn interface_towards(address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let netlink = Netlink::open()?;
    let Ok(builder) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, bits) else {
        return Ok(None);
    };
    // A question has neither table nor protocol (`inet_rtm_valid_getroute_req` in `net/ipv4/route.c`).
    let mut question = builder.build();
    question.header.table = 0;
    question.header.protocol = RouteProtocol::Unspec;
    question.header.scope = RouteScope::Universe;
    question.header.kind = RouteType::Unspec;
    let answer = netlink.handle().route().get(question).execute();
    let routes: Result<Vec<RouteMessage>, _> = netlink
        .ask(
            || format!("ask for the route to {address}"),
            answer.try_collect(),
        )
        .await;
    let routes = match routes {
        Ok(routes) => routes,
        Err(error) if matches!(error.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(routes.iter().find_map(|route| {
        route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(ifindex) => Some(*ifindex),
                _ => None,
            })
    }))
}

/// What a link message says.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        xdp: None,
        vlan: vlan(message),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(parts) => link.xdp = xdp(parts),
            _ => {}
        }
    }
    link
}

/// Whose VLAN an interface is, where it is one of the kind that xdp-lb makes frames for.
fn vlan(message: &LinkMessage) -> Option<VlanOf> {
    let (mut parent, mut id, mut protocol) = (None, None, VlanProtocol::Ieee8021Q);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(ifindex) => parent = Some(*ifindex),
            // The interface it is on belongs to another network namespace, and its number means nothing here.
            LinkAttribute::LinkNetNsId(_) => return None,
            LinkAttribute::LinkInfo(parts) => {
                for part in parts {
                    let LinkInfo::Data(InfoData::Vlan(settings)) = part else {
                        continue;
                    };
                    for setting in settings {
                        match setting {
                            InfoVlan::Id(number) => id = Some(*number),
                            InfoVlan::Protocol(found) => protocol = *found,
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
    }
    (protocol == VlanProtocol::Ieee8021Q).then_some(VlanOf {
        parent: parent?,
        id: id?,
    })
}

/// See [`Interface::takes_own_source`]. The kernel goes by the larger of the interface's `rp_filter` and that of all, and by
/// either's `accept_local` (`IN_DEV_RPFILTER` and `IN_DEV_ACCEPT_LOCAL` in `include/linux/inetdevice.h`).
fn takes_own_source(name: &str) -> bool {
    let setting = |interface: &str, key: &str| -> u8 {
        let path = Path::new("/proc/sys/net/ipv4/conf")
            .join(interface)
            .join(key);
        // What can't be read (a vanished interface) is not set.
        std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let either = |key: &str| setting("all", key).max(setting(name, key));
    either("accept_local") != 0 && either("rp_filter") != 1
}

/// The address of an address message, with its prefix.
pub(super) fn address(message: &AddressMessage) -> Option<IpNet> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface IFA_ADDRESS is the other end's; IFA_LOCAL is ours.
            AddressAttribute::Local(ip) => {
                found = Some(ip);
                break;
            }
            AddressAttribute::Address(ip) => found = Some(ip),
            _ => {}
        }
    }
    IpNet::new(*found?, message.header.prefix_len).ok()
}

fn xdp(parts: &[LinkXdp]) -> Option<AttachedXdp> {
    let mut mode = None;
    let mut ids = BTreeMap::new();
    for part in parts {
        match part {
            LinkXdp::Attached(XdpAttached::Driver) => mode = Some(AttachMode::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(AttachMode::Generic),
            LinkXdp::Attached(XdpAttached::Hardware) => mode = Some(AttachMode::Hardware),
            LinkXdp::Attached(XdpAttached::Multiple) => mode = Some(AttachMode::Multiple),
            LinkXdp::ProgId(id) => {
                ids.insert(0, *id);
            }
            // With several programs there is no IFLA_XDP_PROG_ID: the native one speaks for all.
            LinkXdp::DrvProgId(id) => {
                ids.insert(1, *id);
            }
            LinkXdp::HwProgId(id) => {
                ids.insert(2, *id);
            }
            LinkXdp::SkbProgId(id) => {
                ids.insert(3, *id);
            }
            _ => {}
        }
    }
    Some(AttachedXdp {
        mode: mode?,
        program: *ids.values().next()?,
    })
}

fn kind(message: &LinkMessage) -> Option<String> {
    let info = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info),
            _ => None,
        })?;
    info.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(InfoKind::to_string(kind)),
        _ => None,
    })
}

/// The driver from sysfs, if sysfs shows this interface: entered with `nsenter --net`, it still
/// shows those of the network namespace it was mounted in.
fn driver(link: &Link) -> Option<String> {
    let directory = Path::new("/sys/class/net").join(&link.name);
    let index = std::fs::read_to_string(directory.join("ifindex")).ok()?;
    if index.trim() != link.ifindex.to_string() {
        return None;
    }
    let driver = std::fs::read_link(directory.join("device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable as _, Parseable as _};

    use super::*;

    /// The message as the kernel sends it: through its bytes, so that the reading of the attributes is tested as well.
    fn recorded(attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 5;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        link(&LinkMessage::parse(&bytes).unwrap())
    }

    fn sub_interface(protocol: VlanProtocol) -> Vec<LinkAttribute> {
        vec![
            LinkAttribute::IfName("eth0.10".into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(protocol),
                    InfoVlan::Id(10),
                ])),
            ]),
        ]
    }

    #[test]
    fn a_vlan_on_another_interface() {
        let link = recorded(sub_interface(VlanProtocol::Ieee8021Q));
        assert_eq!(link.vlan, Some(VlanOf { parent: 2, id: 10 }));
        assert_eq!((link.name.as_str(), link.ifindex), ("eth0.10", 5));
        assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn what_is_no_vlan_that_frames_are_made_for() {
        let link = recorded(sub_interface(VlanProtocol::Ieee8021Ad));
        assert_eq!(link.vlan, None, "a provider's tag");
        let mut elsewhere = sub_interface(VlanProtocol::Ieee8021Q);
        elsewhere.push(LinkAttribute::LinkNetNsId(0));
        assert_eq!(recorded(elsewhere).vlan, None, "on another namespace's");
        let macvlan = vec![
            LinkAttribute::IfName("eth0v".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVlan)]),
        ];
        assert_eq!(recorded(macvlan).vlan, None, "no tag at all");
    }
}
