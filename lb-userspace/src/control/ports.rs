//! The director's ports: the interfaces with the program, and the VLANs on them that backends are behind.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    abi::{MAX_PORTS, Port},
    features::Features,
    wire::mac_word,
};

use crate::{
    config::Config,
    neighbour::{HostFacts, Interface, Mac},
};

/// One of the director's interfaces that backends are reached through: one with the program, or a VLAN on such a one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// Its port number.
    pub number: u16,
    /// Its name; of a VLAN, the sub-interface's.
    pub name: String,
    /// Its index; of a VLAN, the sub-interface's, on which the neighbours are resolved.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
    /// Of a VLAN: what its frames really leave through.
    pub vlan: Option<Tagged>,
}

/// The way of a VLAN's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The VLAN identifier.
    pub id: u16,
    /// The port number of the interface it is on.
    pub device: u16,
    /// That interface's index.
    pub ifindex: u32,
}

impl PortState {
    /// What `PORTS` holds of it.
    #[must_use]
    pub fn entry(&self) -> Port {
        let tagged = self.vlan.unwrap_or(Tagged {
            id: 0,
            device: self.number,
            ifindex: self.ifindex,
        });
        Port {
            mac: mac_word(self.mac),
            ifindex: tagged.ifindex,
            vlan: tagged.id,
            device: tagged.device,
        }
    }
}

/// The VLANs that there should be, and what that changes in `PORTS`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The VLANs' ports.
    pub vlans: Vec<PortState>,
    /// What to write, in this order.
    pub writes: Vec<(u16, Port)>,
    /// Sub-interfaces for which there is no number left.
    pub left_out: Vec<String>,
}

/// Gives the VLANs on the interfaces `devices` that backends, which have these `addresses`, are behind a port each.
///
/// `present` is what `PORTS` holds; a VLAN keeps the number it has. `named` are the numbers that backends' entries in the
/// maps name: such a one stays as it is even where no sub-interface asks for it any more, because flows may still go there.
#[must_use]
pub fn plan(
    addresses: impl Iterator<Item = IpAddr>,
    facts: &HostFacts,
    devices: &[PortState],
    present: &[Port],
    named: &BTreeSet<u16>,
) -> Plan {
    let mut plan = Plan::default();
    let wanted = behind(addresses, facts, devices);
    let number_of = |device: &PortState, id: u16| {
        (0..).zip(present).find_map(|(number, port)| {
            (port.vlan == id && port.ifindex == device.ifindex).then_some(number)
        })
    };
    let mut taken: BTreeSet<u16> = devices.iter().map(|device| device.number).collect();
    taken.extend(named);
    taken.extend(
        wanted
            .iter()
            .filter_map(|(_, device, id)| number_of(device, *id)),
    );
    for (interface, device, id) in wanted {
        let (Some(mac), Some(number)) = (
            interface.link.mac,
            number_of(device, id).or_else(|| (0..MAX_PORTS as u16).find(|n| !taken.contains(n))),
        ) else {
            plan.left_out.push(interface.link.name.clone());
            continue;
        };
        taken.insert(number);
        let port = PortState {
            number,
            name: interface.link.name.clone(),
            ifindex: interface.link.ifindex,
            mac,
            vlan: Some(Tagged {
                id,
                device: device.number,
                ifindex: device.ifindex,
            }),
        };
        if present.get(usize::from(number)) != Some(&port.entry()) {
            plan.writes.push((number, port.entry()));
        }
        plan.vlans.push(port);
    }
    for (number, port) in (0..).zip(present) {
        if port.vlan != 0 && !taken.contains(&number) {
            plan.writes.push((number, Port::default()));
        }
    }
    plan
}

/// The sub-interfaces that backends are behind, each with the port of the interface it is on and its VLAN identifier.
fn behind<'a>(
    addresses: impl Iterator<Item = IpAddr>,
    facts: &'a HostFacts,
    devices: &'a [PortState],
) -> Vec<(&'a Interface, &'a PortState, u16)> {
    let candidates: Vec<(&Interface, Option<(&PortState, u16)>)> = facts
        .interfaces
        .iter()
        .filter_map(|interface| {
            let is = |device: &&PortState| device.ifindex == interface.link.ifindex;
            if devices.iter().any(|device| is(&device)) {
                return Some((interface, None));
            }
            let vlan = interface.link.vlan?;
            let device = devices
                .iter()
                .find(|device| device.ifindex == vlan.parent)?;
            Some((interface, Some((device, vlan.id))))
        })
        .collect();
    let mut found: Vec<(&Interface, &PortState, u16)> = Vec::new();
    for address in addresses.filter(|address| facts.assigned(*address).is_none()) {
        let nearest = candidates
            .iter()
            .filter_map(|(interface, vlan)| {
                Some((subnet_towards(interface, address)?, interface, vlan))
            })
            .max_by_key(|(prefix, _, _)| *prefix);
        if let Some((_, interface, Some((device, id)))) = nearest
            && !found
                .iter()
                .any(|(known, _, _)| known.link.ifindex == interface.link.ifindex)
        {
            found.push((interface, device, *id));
        }
    }
    found
}

/// The length of the narrowest of the interface's subnets that hold the address.
#[must_use]
pub fn subnet_towards(interface: &Interface, address: IpAddr) -> Option<u8> {
    interface
        .addresses
        .iter()
        .filter(|net| net.contains(&address))
        .map(ipnet::IpNet::prefix_len)
        .max()
}

/// What the configuration and this host use of the data path, as far as ports decide it: [`Features::VLAN`] where an
/// interface with the program has a VLAN, so that frames come in or go out with a tag; [`Features::LOCAL`] where a backend is
/// this host.
#[must_use]
pub fn features(config: &Config, facts: &HostFacts) -> Features {
    let mut features = Features::NONE;
    let ours = |ifindex: u32| {
        facts.interfaces.iter().any(|interface| {
            interface.link.ifindex == ifindex
                && config.node.interfaces.contains(&interface.link.name)
        })
    };
    let tagged = facts
        .interfaces
        .iter()
        .filter_map(|interface| interface.link.vlan)
        .any(|vlan| ours(vlan.parent));
    if tagged {
        features = features.with(Features::VLAN);
    }
    let mut backends = config.services.iter().flat_map(|service| &service.backends);
    if backends.any(|backend| facts.assigned(backend.address).is_some()) {
        features = features.with(Features::LOCAL);
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfigFile,
        neighbour::{Link, VlanOf},
    };

    fn config(addresses: &[&str]) -> Config {
        let backends: Vec<String> = addresses
            .iter()
            .enumerate()
            .map(|(n, address)| format!("{{ name = \"b{n}\", address = \"{address}\" }}"))
            .collect();
        let text = format!(
            "[node]\ninterfaces = [\"eth0\", \"eth1\"]\n[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\n\
             protocol = \"tcp\"\nports = [80]\nbackend = [{}]\n",
            backends.join(", ")
        );
        ConfigFile::parse("test.toml", &text)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
            .config
    }

    fn addresses(listed: &[&'static str]) -> impl Iterator<Item = IpAddr> + Clone + use<> {
        let addresses: Vec<IpAddr> = listed.iter().map(|a| a.parse().unwrap()).collect();
        addresses.into_iter()
    }

    fn interface(ifindex: u32, name: &str, address: &str, vlan: Option<(u32, u16)>) -> Interface {
        Interface {
            link: Link {
                ifindex,
                name: name.into(),
                mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
                mtu: 1500,
                up: true,
                running: true,
                loopback: false,
                xdp: None,
                vlan: vlan.map(|(parent, id)| VlanOf { parent, id }),
            },
            addresses: vec![address.parse().unwrap()],
            driver: None,
            takes_own_source: false,
        }
    }

    fn facts() -> HostFacts {
        HostFacts {
            interfaces: vec![
                interface(2, "eth0", "198.51.100.2/24", None),
                interface(3, "eth1", "203.0.113.2/24", None),
                interface(5, "eth0.10", "10.10.0.2/24", Some((2, 10))),
                interface(6, "eth0.20", "10.20.0.2/24", Some((2, 20))),
                interface(7, "eth9.30", "10.30.0.2/24", Some((9, 30))),
                interface(8, "eth0.10.40", "10.40.0.2/24", Some((5, 40))),
            ],
        }
    }

    fn devices() -> Vec<PortState> {
        [(0, "eth0", 2), (1, "eth1", 3)]
            .map(|(number, name, ifindex)| PortState {
                number,
                name: name.into(),
                ifindex,
                mac: [2, 0, 0, 0, 0, ifindex as u8],
                vlan: None,
            })
            .into()
    }

    fn present(entries: &[(u16, Port)]) -> Vec<Port> {
        let mut ports = vec![Port::default(); MAX_PORTS as usize];
        for device in devices() {
            ports[usize::from(device.number)] = device.entry();
        }
        for (number, entry) in entries {
            ports[usize::from(*number)] = *entry;
        }
        ports
    }

    fn vlan10() -> Port {
        Port {
            mac: mac_word([2, 0, 0, 0, 0, 5]),
            ifindex: 2,
            vlan: 10,
            device: 0,
        }
    }

    #[test]
    fn a_vlan_with_backends_gets_a_port_of_its_own() {
        let behind = addresses(&["198.51.100.9", "10.10.0.9", "10.10.0.8", "203.0.113.9"]);
        let plan = plan(
            behind,
            &facts(),
            &devices(),
            &present(&[]),
            &BTreeSet::new(),
        );
        let names: Vec<_> = plan.vlans.iter().map(|v| (v.number, &*v.name)).collect();
        assert_eq!(names, [(2, "eth0.10")], "and no other VLAN");
        assert_eq!(plan.writes, [(2, vlan10())]);
        assert!(plan.left_out.is_empty());
    }

    #[test]
    fn a_port_keeps_its_number_and_follows_name_and_mac() {
        let behind = addresses(&["10.20.0.9", "10.10.0.9"]);
        let mut facts = facts();
        let at_seven = present(&[(7, vlan10())]);
        let first = plan(
            behind.clone(),
            &facts,
            &devices(),
            &at_seven,
            &BTreeSet::new(),
        );
        let vlan20 = Port {
            mac: mac_word([2, 0, 0, 0, 0, 6]),
            vlan: 20,
            ..vlan10()
        };
        assert_eq!(first.writes, [(2, vlan20)], "the other is there already");

        facts.interfaces[2].link.name = "storage".into();
        facts.interfaces[2].link.mac = Some([2, 9, 9, 9, 9, 9]);
        let again = plan(
            behind.clone(),
            &facts,
            &devices(),
            &at_seven,
            &BTreeSet::new(),
        );
        let renamed = again.vlans.iter().find(|v| v.number == 7).unwrap();
        assert_eq!(
            (renamed.name.as_str(), renamed.mac),
            ("storage", [2, 9, 9, 9, 9, 9])
        );
        let moved = Port {
            mac: mac_word([2, 9, 9, 9, 9, 9]),
            ..vlan10()
        };
        assert!(again.writes.contains(&(7, moved)), "{again:?}");
    }

    #[test]
    fn a_port_that_backends_still_name_stays() {
        let behind = addresses(&["198.51.100.9"]);
        let mut facts = facts();
        facts.interfaces.remove(2);
        let there = present(&[(7, vlan10())]);
        let named = BTreeSet::from([7]);
        assert_eq!(
            plan(behind.clone(), &facts, &devices(), &there, &named),
            Plan::default()
        );
        let gone = plan(behind.clone(), &facts, &devices(), &there, &BTreeSet::new());
        assert_eq!(gone.writes, [(7, Port::default())]);
    }

    #[test]
    fn a_number_in_use_is_nobody_elses() {
        let behind = addresses(&["10.20.0.9"]);
        // Number 2 is a VLAN's that is gone, but backends go there.
        let there = present(&[(2, vlan10())]);
        let plan = plan(
            behind,
            &facts(),
            &devices(),
            &there,
            &BTreeSet::from([0, 2]),
        );
        assert_eq!(plan.vlans[0].number, 3);
    }

    #[test]
    fn more_vlans_than_numbers_are_left_out() {
        let behind = addresses(&["10.20.0.9"]);
        let named = (0..MAX_PORTS as u16).collect();
        let plan = plan(behind.clone(), &facts(), &devices(), &present(&[]), &named);
        assert_eq!(plan.left_out, ["eth0.20"]);
        assert!(plan.vlans.is_empty() && plan.writes.is_empty());
    }

    #[test]
    fn which_features_are_used() {
        let plain = HostFacts {
            interfaces: facts().interfaces[..2].to_vec(),
        };
        let remote = config(&["198.51.100.9"]);
        let local = config(&["198.51.100.9", "198.51.100.2"]);
        assert_eq!(features(&remote, &plain), Features::NONE);
        assert_eq!(features(&local, &plain), Features::LOCAL);
        assert_eq!(
            features(&remote, &facts()),
            Features::VLAN,
            "clients may be tagged"
        );
        let elsewhere = HostFacts {
            interfaces: facts().interfaces[4..].to_vec(),
        };
        assert_eq!(features(&remote, &elsewhere), Features::NONE);
    }
}
