//! On which interface the packet in question comes in.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use lb_common::abi::Port;

use crate::{
    dataplane::explain::Arrival,
    neighbour::{HostFacts, host_facts, interface_towards},
};

/// What was asked for, or what the route to the client says, or the first interface.
///
/// # Errors
/// The interface that was asked for has no program, or the kernel does not tell.
pub(super) fn of(asked: Option<&str>, client: IpAddr, ports: &[Port]) -> anyhow::Result<Arrival> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (facts, towards) = runtime.block_on(async {
        // Without a route there is no answer, and without an answer it is the first interface.
        let towards = interface_towards(client).await.unwrap_or_default();
        (host_facts().await, towards)
    });
    let facts = facts.context("reading the interfaces")?;
    match asked {
        Some(name) => named(name, &facts, ports),
        None => Ok(towards
            .and_then(|ifindex| on(ifindex, &facts, ports))
            .unwrap_or_default()),
    }
}

fn named(name: &str, facts: &HostFacts, ports: &[Port]) -> anyhow::Result<Arrival> {
    let interface = facts.interface(name);
    if let Some(arrival) = interface.and_then(|i| on(i.link.ifindex, facts, ports)) {
        return Ok(arrival);
    }
    let ours: Vec<&str> = facts
        .interfaces
        .iter()
        .filter(|interface| on(interface.link.ifindex, facts, ports).is_some())
        .map(|interface| interface.link.name.as_str())
        .collect();
    bail!(
        "packets that come in on {name} do not meet xdp-lb: expected one of {}",
        ours.join(", ")
    )
}

/// An interface with the program, or a VLAN on one.
fn on(ifindex: u32, facts: &HostFacts, ports: &[Port]) -> Option<Arrival> {
    let is_device = |ifindex: u32| {
        ports
            .iter()
            .any(|port| port.vlan == 0 && port.ifindex == ifindex)
    };
    let (interface, vlan) = if is_device(ifindex) {
        (ifindex, 0)
    } else {
        let vlan = facts.by_index(ifindex)?.link.vlan?;
        is_device(vlan.parent).then_some((vlan.parent, vlan.id))?
    };
    Some(Arrival {
        interface: Some(interface),
        vlan,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::{Interface, Link, VlanOf};

    fn facts() -> HostFacts {
        let interface = |ifindex, name: &str, vlan: Option<VlanOf>| Interface {
            link: Link {
                ifindex,
                name: name.into(),
                mac: None,
                mtu: 1500,
                up: true,
                running: true,
                loopback: false,
                xdp: None,
                vlan,
            },
            addresses: Vec::new(),
            driver: None,
            takes_own_source: false,
        };
        let on = |parent, id| Some(VlanOf { parent, id });
        HostFacts {
            interfaces: vec![
                interface(1, "lo", None),
                interface(2, "eth0", None),
                interface(3, "eth1", None),
                interface(4, "eth1.10", on(3, 10)),
                interface(5, "eth9.20", on(9, 20)),
            ],
        }
    }

    #[test]
    fn by_name() {
        let device = |ifindex, vlan| Port {
            mac: 1,
            ifindex,
            vlan,
            device: 0,
        };
        // What `PORTS` holds of a VLAN says the index of the interface that it is on.
        let ports = [device(2, 0), device(3, 0), device(3, 10)];
        let arrival = |name| named(name, &facts(), &ports).map(|a| (a.interface, a.vlan));
        assert_eq!(arrival("eth0").unwrap(), (Some(2), 0));
        assert_eq!(arrival("eth1").unwrap(), (Some(3), 0));
        assert_eq!(arrival("eth1.10").unwrap(), (Some(3), 10));
        for wrong in ["lo", "eth9.20", "eth7"] {
            let error = arrival(wrong).unwrap_err().to_string();
            assert!(error.contains("eth0, eth1, eth1.10"), "{error}");
        }
    }
}
