//! What only a host can tell about a configuration: whether its interfaces exist and its backends are in reach.

use std::{collections::HashSet, net::IpAddr, ops::Range};

use ipnet::IpNet;

use super::{
    error::{ConfigError, ConfigErrors, ErrorKind},
    load::ConfigFile,
    model::{Backend, Mode},
    reader::nearest,
};

/// What the kernel says about this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Every interface there is, loopback included.
    pub interfaces: Vec<InterfaceFacts>,
}

/// One interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its index in the kernel.
    pub index: u32,
    /// Its Ethernet address; `None` if it is no Ethernet interface (loopback, a tunnel).
    pub mac: Option<[u8; 6]>,
    /// Its addresses, each with the length of the subnet's prefix.
    pub addresses: Vec<IpNet>,
    /// Of a VLAN: the index of the interface it is on, and the VLAN identifier.
    pub vlan: Option<(u32, u16)>,
}

/// Checks a configuration against the host it shall run on.
///
/// # Errors
///
/// Everything that keeps it from working here: an interface that does not exist or is no Ethernet, a VIP that this
/// host has itself without being a backend of it, a backend that is in no subnet of the configured interfaces and the VLANs
/// on them.
pub fn check_host(file: &ConfigFile, facts: &HostFacts) -> Result<(), ConfigErrors> {
    let mut errors = Vec::new();
    let names = file.config.node.interfaces.iter();
    for (name, span) in names.zip(&file.source.interfaces) {
        errors.extend(check_interface(name, span, facts));
    }
    // Without its interfaces every backend would be out of reach as well, and say so for nothing.
    let complete = errors.is_empty();
    // One error for each VIP, however many services share it.
    let mut vips = HashSet::new();
    let pick = file.config.node.mode == Mode::Pick;
    for (service, spans) in file.config.services.iter().zip(&file.source.services) {
        let owner_of_vip = owner(service.vip, facts);
        let served_here = service
            .backends
            .iter()
            .any(|backend| file.config.is_own(backend));
        if pick && served_here && owner_of_vip.is_none() && vips.insert(service.vip) {
            errors.push(
                ConfigError::new(
                    ErrorKind::Host,
                    format!("this node does not have the VIP {}", service.vip),
                )
                .at(spans.vip.clone())
                .expected("the VIP on the loopback of every node that serves it")
                .help(format!(
                    "add it: `ip address add {}/{} dev lo`",
                    service.vip,
                    host_prefix(service.vip)
                )),
            );
        }
        if let Some(owner) = owner_of_vip
            && !pick
            && !is_backend_here(file, service.vip, owner, facts)
            && vips.insert(service.vip)
        {
            let served_here = is_served_here(file, service.vip, facts);
            errors.push(
                ConfigError::new(
                    ErrorKind::Host,
                    format!(
                        "the VIP {} is assigned to this host: found it on `{}`",
                        service.vip, owner.name
                    ),
                )
                .at(spans.vip.clone())
                .expected(format!(
                    "{}; xdp-lb answers {} for it",
                    if served_here {
                        "the VIP on `lo`, because this host is one of its backends"
                    } else {
                        "a VIP that is on no interface of the director"
                    },
                    match service.vip {
                        IpAddr::V4(_) => "ARP",
                        IpAddr::V6(_) => "neighbour solicitations",
                    }
                ))
                .help(if served_here {
                    format!(
                        "move it: `ip address del {0}/{1} dev {2}`, then `ip address add {0}/{1} dev lo`",
                        service.vip,
                        host_prefix(service.vip),
                        owner.name
                    )
                } else {
                    format!(
                        "remove it: `ip address del {}/{} dev {}`; it belongs here only if one of its backends is this host",
                        service.vip,
                        host_prefix(service.vip),
                        owner.name
                    )
                }),
            );
        }
        for (backend, span) in service.backends.iter().zip(&spans.addresses) {
            let own = file.config.is_own(backend);
            let owner = owner(backend.address, facts);
            if pick && own != owner.is_some() {
                errors.push(check_own(file, backend, span, owner));
            // A backend that is this very host is in reach of itself.
            } else if complete && owner.is_none() {
                errors.extend(check_reach(
                    file,
                    &backend.name,
                    backend.address,
                    span,
                    facts,
                ));
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ConfigErrors::new(file.source.text.clone(), errors))
    }
}

/// Whether one of the backends of a VIP is this very host.
fn is_served_here(file: &ConfigFile, vip: IpAddr, facts: &HostFacts) -> bool {
    let services = file.config.services.iter().filter(|s| s.vip == vip);
    services
        .flat_map(|service| &service.backends)
        .any(|backend| owner(backend.address, facts).is_some())
}

/// Whether the host may have the VIP: as one of its backends, and where probes of the others can pass it by, which is on
/// no interface that they leave through.
fn is_backend_here(
    file: &ConfigFile,
    vip: IpAddr,
    owner: &InterfaceFacts,
    facts: &HostFacts,
) -> bool {
    is_served_here(file, vip, facts) && !is_ours(file, owner, facts)
}

/// Whether backends may be behind the interface: it is configured, or a VLAN on one that is.
fn is_ours(file: &ConfigFile, interface: &InterfaceFacts, facts: &HostFacts) -> bool {
    let configured = &file.config.node.interfaces;
    configured.contains(&interface.name)
        || interface.vlan.is_some_and(|(parent, _)| {
            facts
                .interfaces
                .iter()
                .any(|other| other.index == parent && configured.contains(&other.name))
        })
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A node of a cluster that is called otherwise than its address says.
fn check_own(
    file: &ConfigFile,
    backend: &Backend,
    span: &Range<usize>,
    owner: Option<&InterfaceFacts>,
) -> ConfigError {
    match owner {
        Some(owner) => ConfigError::new(
            ErrorKind::Host,
            format!(
                "backend \"{}\" is this host: found {} on `{}`",
                backend.name, backend.address, owner.name
            ),
        )
        .at(span.clone())
        .expected("another host's address")
        .help(format!(
            "this node calls itself \"{}\": set `name` in [node]",
            file.config.node.name
        )),
        None => ConfigError::new(
            ErrorKind::Host,
            format!(
                "backend \"{}\" is this node by its name, but {} is no address of this host",
                backend.name, backend.address
            ),
        )
        .at(span.clone())
        .expected("an address of this host")
        .help("set `name` in [node] to the backend that this host is"),
    }
}

fn check_interface(name: &str, span: &Range<usize>, facts: &HostFacts) -> Option<ConfigError> {
    let ethernet = || {
        facts
            .interfaces
            .iter()
            .filter(|interface| interface.mac.is_some())
    };
    let Some(interface) = facts
        .interfaces
        .iter()
        .find(|interface| interface.name == name)
    else {
        let mut error = ConfigError::new(
            ErrorKind::Host,
            format!("no such interface on this host: found \"{name}\""),
        )
        .at(span.clone())
        .expected(
            match listed(ethernet().map(|interface| interface.name.as_str())) {
                Some(names) => format!("one of {names}"),
                None => "an Ethernet interface, of which this host has none".to_owned(),
            },
        );
        if let Some(meant) = nearest(name, ethernet().map(|interface| interface.name.as_str())) {
            error = error.help(format!("did you mean \"{meant}\"?"));
        }
        return Some(error);
    };
    if interface.mac.is_some() {
        return None;
    }
    Some(
        ConfigError::new(
            ErrorKind::Host,
            format!(
                "interface \"{name}\" has no Ethernet address, so no frame can be sent on from it"
            ),
        )
        .at(span.clone())
        .expected("an Ethernet interface"),
    )
}

/// Whether the director has the backend in a subnet of its own on a configured interface: DSR rewrites only the
/// Ethernet addresses, so that no router may lie between the two.
fn check_reach(
    file: &ConfigFile,
    name: &str,
    address: IpAddr,
    span: &Range<usize>,
    facts: &HostFacts,
) -> Option<ConfigError> {
    let (ours, others): (Vec<&InterfaceFacts>, Vec<&InterfaceFacts>) = facts
        .interfaces
        .iter()
        .partition(|interface| is_ours(file, interface, facts));
    let Some(subnet) = ours
        .iter()
        .find_map(|interface| subnet_of(interface, address))
    else {
        let subnets = ours.iter().flat_map(|interface| {
            subnets(interface)
                .filter(|subnet| subnet.addr().is_ipv4() == address.is_ipv4())
                .map(|subnet| format!("{} on `{}`", subnet.trunc(), interface.name))
        });
        let subnets: Vec<String> = subnets.collect();
        let mut error = ConfigError::new(
            ErrorKind::Host,
            format!(
                "backend \"{name}\" is in no subnet the director is attached to: found {address}"
            ),
        )
        .at(span.clone());
        error = match listed(subnets.iter().map(String::as_str)) {
            Some(subnets) => error.expected(format!("an address in {subnets}")),
            None => {
                let (family, example) = match address {
                    IpAddr::V4(_) => ("IPv4", "192.0.2.2/24"),
                    IpAddr::V6(_) => ("IPv6", "2001:db8::2/64"),
                };
                error
                    .expected(format!(
                        "an address in an {family} subnet of `interfaces`, which have none"
                    ))
                    .help(format!(
                        "give an interface an address in the backends' subnet, as `ip address add {example} dev eth0`"
                    ))
            }
        };
        let elsewhere = others
            .iter()
            .find(|other| subnet_of(other, address).is_some());
        return Some(match elsewhere {
            Some(other) => error.help(format!(
                "it is in reach of `{}`: add that to `interfaces`",
                other.name
            )),
            None => error.help(
                "a backend has to be on the director's own Ethernet, with no router in between",
            ),
        });
    };
    // RFC 3021: a /31 has neither.
    let reserved = subnet.prefix_len() < subnet.max_prefix_len() - 1
        && (address == subnet.network() || (address.is_ipv4() && address == subnet.broadcast()));
    reserved.then(|| {
        ConfigError::new(
            ErrorKind::Host,
            format!(
                "backend \"{name}\" has the network or broadcast address of {}: found {address}",
                subnet.trunc()
            ),
        )
        .at(span.clone())
        .expected("a host's address")
    })
}

fn owner(address: IpAddr, facts: &HostFacts) -> Option<&InterfaceFacts> {
    facts
        .interfaces
        .iter()
        .find(|interface| interface.addresses.iter().any(|net| net.addr() == address))
}

/// The interface's subnets that have room for another host.
fn subnets(interface: &InterfaceFacts) -> impl Iterator<Item = &IpNet> {
    interface
        .addresses
        .iter()
        .filter(|net| net.prefix_len() < net.max_prefix_len())
}

fn subnet_of(interface: &InterfaceFacts, address: IpAddr) -> Option<&IpNet> {
    subnets(interface).find(|net| net.contains(&address))
}

/// "a, b, c"; `None` if there are none.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    (!names.is_empty()).then(|| names.join(", "))
}
