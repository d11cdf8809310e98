//! The VLANs on the director's interfaces: ports that come and go.

use anyhow::Result;
use tracing::{error, info, warn};

use super::{
    super::ports::{self, PortState},
    Daemon,
};
use crate::neighbour::{self, offload};

impl Daemon {
    /// Whether this is a VLAN on one of the director's interfaces, or was.
    pub(super) fn is_vlan(&self, link: &neighbour::Link) -> bool {
        let ports = &self.knowledge.ports;
        let is_ours = |vlan: neighbour::VlanOf| {
            ports
                .iter()
                .any(|port| port.vlan.is_none() && port.ifindex == vlan.parent)
        };
        link.vlan.is_some_and(is_ours)
            || ports
                .iter()
                .any(|port| port.vlan.is_some() && port.ifindex == link.ifindex)
    }

    /// Gives the VLANs that backends are behind their ports, and takes those away that nobody needs any more.
    pub(super) fn number_vlans(&mut self) -> Result<()> {
        let devices: Vec<PortState> = self
            .running
            .attachments
            .iter()
            .map(|attachment| attachment.port.clone())
            .collect();
        let executor = &mut self.running.executor;
        let named = executor
            .actual
            .backends()
            .values()
            .map(|backend| backend.entry.port())
            .collect();
        let plan = ports::plan(
            self.knowledge.addresses(),
            &self.knowledge.facts,
            &devices,
            &executor.maps.ports()?,
            &named,
        );
        for (number, port) in &plan.writes {
            executor.maps.set_port(*number, *port)?;
        }
        for interface in &plan.left_out {
            error!(
                interface,
                "no port number is left for this VLAN, so its backends are out of reach: {} is the most",
                lb_common::abi::MAX_PORTS
            );
        }
        for vlan in &plan.vlans {
            let known = self.knowledge.ports.contains(vlan);
            if let Some(tag) = vlan.vlan.filter(|_| !known) {
                let device = devices.iter().find(|device| device.number == tag.device);
                let device = device.map_or("", |device| device.name.as_str());
                info!(
                    interface = vlan.name,
                    device,
                    vlan = tag.id,
                    "backends are behind this VLAN"
                );
                if offload::strips_tags(device) == Some(true) {
                    warn!(
                        interface = device,
                        "the network card takes the VLAN tags off before XDP sees the frames, so ARP and ping for a VIP \
                         are answered without a tag: `ethtool -K {device} rxvlan off`"
                    );
                }
            }
        }
        self.knowledge.ports = devices.into_iter().chain(plan.vlans).collect();
        Ok(())
    }
}
