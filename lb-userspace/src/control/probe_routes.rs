//! The ways of the probes to the VIPs: which there should be, and taking away those of VIPs that are gone.

use std::{collections::BTreeSet, net::IpAddr};

use tracing::{error, warn};

use super::knowledge::Knowledge;
use crate::{
    config::{Config, Via},
    neighbour::{
        Netlink,
        vip_route::{self, ProbeRoute},
    },
};

/// The ways of the probes to the VIPs.
pub async fn prepare(netlink: &Netlink, knowledge: &Knowledge) {
    let mut routes: Vec<ProbeRoute> = Vec::new();
    for service in &knowledge.config().services {
        let leaving = knowledge.leaving_of(&service.name);
        let through_vip = leaving
            .map(|(_, _, leaving)| &leaving.probe)
            .chain([&service.probe])
            .flatten()
            .any(|probe| probe.via == Via::Vip);
        let Some(backend) = service.backends.first().filter(|_| through_vip) else {
            continue;
        };
        let Some(port) = knowledge.port_towards(backend.address) else {
            continue;
        };
        let source = knowledge.facts.interface(&port.name).and_then(|interface| {
            interface
                .addresses
                .iter()
                .find(|net| net.contains(&backend.address))
                .map(ipnet::IpNet::addr)
        });
        let Some(source) = source else { continue };
        let route = ProbeRoute {
            vip: service.vip,
            ifindex: port.ifindex,
            source,
        };
        if !routes.iter().any(|other| other.vip == route.vip) {
            routes.push(route);
        }
    }
    match vip_route::ensure_all(netlink, &routes).await {
        Ok(results) => {
            for error in results.into_iter().filter_map(Result::err) {
                error!(%error, "probes through a VIP have no way");
            }
        }
        Err(error) => error!(%error, "probes through the VIPs have no way"),
    }
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
