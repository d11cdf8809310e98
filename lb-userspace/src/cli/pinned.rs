//! The pinned maps with the names that people know: what `maps`, `flows` and `where` read, daemon or not.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use lb_common::{
    abi::{BackendInfo, PROTO_TCP_UDP, ServiceInfo, text},
    pick::Affinity,
    service::ServiceValue,
    wire::{PROTO_TCP, PROTO_UDP},
};

use super::Context;
use crate::{
    config::Node,
    dataplane::{Access, Maps},
};

/// Maps and names.
pub(crate) struct Pinned {
    pub(crate) maps: Maps,
    pub(crate) names: Names,
}

impl Pinned {
    /// Opens what is pinned where the configuration says.
    ///
    /// # Errors
    /// Nothing is pinned there, or nothing of this version, or there are no rights to read it.
    pub(crate) fn open(context: &Context) -> anyhow::Result<Self> {
        let path = context.reach.setting("node", "pin_path", Node::PIN_PATH)?;
        let maps = Maps::open_pinned(path.as_ref(), Access::Read)?;
        let names = Names::read(&maps)?;
        Ok(Self { maps, names })
    }
}

/// Services by id and backends by number.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) services: BTreeMap<u16, ServiceInfo>,
    pub(crate) backends: BTreeMap<u16, BackendInfo>,
}

impl Names {
    fn read(maps: &Maps) -> anyhow::Result<Self> {
        let mut names = Self::default();
        for id in (0..=u16::MAX).take(maps.service_capacity() as usize) {
            if let Some(info) = maps.service_info(id)? {
                names.services.insert(id, info);
            }
        }
        for number in (0..=u16::MAX).take(maps.backend_capacity() as usize) {
            if let Some(info) = maps.backend_info(number)? {
                names.backends.insert(number, info);
            }
        }
        Ok(names)
    }

    /// A service's name; its id where it has none.
    pub(crate) fn service(&self, id: u16) -> String {
        self.services.get(&id).map_or_else(
            || format!("service {id}"),
            |info| text(&info.name).to_owned(),
        )
    }

    /// A backend's name; its number where it has none.
    pub(crate) fn backend(&self, number: u16) -> String {
        match self.backends.get(&number) {
            Some(info) => text(&info.name).to_owned(),
            None if number == 0 => "none".to_owned(),
            None => format!("number {number}"),
        }
    }

    /// The name of the service that a backend belongs to; backends of several services share their name.
    pub(crate) fn service_of(&self, number: u16) -> Option<String> {
        self.backends
            .get(&number)
            .map(|info| self.service(info.service))
    }

    /// A service's VIP.
    pub(crate) fn vip(&self, id: u16) -> Option<IpAddr> {
        Some(address(self.services.get(&id)?.vip))
    }

    /// The names of all services.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.values().map(|info| text(&info.name))
    }

    /// The names of all backends.
    pub(crate) fn backend_names(&self) -> impl Iterator<Item = &str> {
        self.backends.values().map(|info| text(&info.name))
    }
}

/// An address as the maps for people hold it: IPv4 as an IPv4-mapped IPv6 one (RFC 4291 section 2.5.5.2).
pub(crate) fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// A service's settings, as its value in the lookup has them.
pub(crate) fn value(info: &ServiceInfo) -> ServiceValue {
    ServiceValue(info.value)
}

/// The name of a protocol.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        PROTO_TCP_UDP => "tcp+udp".to_owned(),
        other => format!("protocol {other}"),
    }
}

/// The name of an affinity in the configuration, for a VIP of the family; a prefix that is not the default with its length.
pub(crate) fn affinity(affinity: Affinity, is_ipv6: bool) -> String {
    let named = |none, client, network| match affinity {
        affinity if affinity == none => "none".to_owned(),
        affinity if affinity == client => "client".to_owned(),
        affinity if affinity == network => "network".to_owned(),
        Affinity {
            prefix,
            ports: false,
        } => format!("network /{prefix}"),
        Affinity {
            prefix,
            ports: true,
        } => format!("/{prefix} with ports"),
    };
    if is_ipv6 {
        named(
            Affinity::NONE_IPV6,
            Affinity::CLIENT_IPV6,
            Affinity::NETWORK_IPV6,
        )
    } else {
        named(
            Affinity::NONE_IPV4,
            Affinity::CLIENT_IPV4,
            Affinity::NETWORK_IPV4,
        )
    }
}

/// A MAC address as people write it.
pub(crate) fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// The name of an interface of this network namespace; its index where it has none here.
pub(crate) fn interface(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("interface {index}"))
}
