//! The ways of the probes to the VIPs: which there should be, and taking away those of VIPs that are gone.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use tracing::{error, warn};

use super::knowledge::{Knowledge, ProbeWay};
use crate::{
    config::Config,
    neighbour::{
        Netlink,
        vip_route::{self, ProbeRoute},
    },
};

/// The ways of the probes to the VIPs.
pub async fn prepare(netlink: &Netlink, knowledge: &Knowledge) {
    let routes = wanted(knowledge);
    match vip_route::ensure_all(netlink, &routes).await {
        Ok(results) => {
            for error in results.into_iter().filter_map(Result::err) {
                error!(%error, "probes through a VIP have no way");
            }
        }
        Err(error) => error!(%error, "probes through the VIPs have no way"),
    }
}

/// One way for each VIP and each interface that probes to it leave through.
fn wanted(knowledge: &Knowledge) -> Vec<ProbeRoute> {
    let mut routes = Vec::new();
    let mut known = HashSet::new();
    for service in &knowledge.config().services {
        for (_, address, probe) in knowledge.members(service) {
            let Some(ProbeWay::Aimed { bound }) =
                probe.map(|probe| knowledge.probe_way(service.vip, probe, address))
            else {
                continue;
            };
            let Some(port) = knowledge.port_towards(address) else {
                continue;
            };
            if !known.insert((service.vip, port.ifindex)) {
                continue;
            }
            let source = knowledge
                .facts
                .by_index(port.ifindex)
                .and_then(|interface| {
                    interface
                        .addresses
                        .iter()
                        .filter(|net| net.contains(&address))
                        .max_by_key(|net| net.prefix_len())
                        .map(ipnet::IpNet::addr)
                });
            routes.extend(source.map(|source| ProbeRoute {
                vip: service.vip,
                ifindex: port.ifindex,
                source,
                bound: bound.is_some(),
            }));
        }
    }
    routes
}

/// Takes away the ways to VIPs that are not configured any more.
pub async fn remove_unused(netlink: &Netlink, before: &Config, now: &Config) {
    let vips: BTreeSet<IpAddr> = now.services.iter().map(|s| s.vip).collect();
    let gone: BTreeSet<IpAddr> = before
        .services
        .iter()
        .map(|s| s.vip)
        .filter(|vip| !vips.contains(vip))
        .collect();
    for vip in gone {
        if let Err(error) = vip_route::remove(netlink, vip).await {
            warn!(%error, %vip, "the probes' route could not be removed");
        }
    }
}
