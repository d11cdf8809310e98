//! The probes that follow from what is known, and the health that their results add up to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use lb_common::abi::probe_mark;

use super::{
    super::{actual::Actual, ports::PortState},
    Knowledge,
};
use crate::{
    config::{self, Service},
    health::{Health, HealthState, ProbeId, ProbeKind, ProbeSpec, Thresholds, Via},
};

/// What is probed and when it counts as up or down, by backend number.
pub type Probes = BTreeMap<ProbeId, (ProbeSpec, Thresholds)>;

/// The way of the probes to one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeWay<'a> {
    /// To the backend's own address.
    Address,
    /// To the VIP, which is on this host: the backend is this host.
    Own,
    /// To the VIP, aimed at the backend by the mark.
    Aimed {
        /// The one interface it may leave through, where the routing table alone would not do.
        bound: Option<&'a PortState>,
    },
}

impl Knowledge {
    /// The probes that follow: one for each backend that has a number and a MAC address to be aimed at, those that are
    /// leaving among them.
    #[must_use]
    pub fn probes(&self, actual: &Actual) -> Probes {
        let mut probes = BTreeMap::new();
        for service in &self.config.services {
            self.probes_of(service, actual, &mut probes);
        }
        probes
    }

    /// The probes of these backends alone; those of their services are looked at, and no others.
    #[must_use]
    pub fn probes_of_backends(&self, numbers: &BTreeSet<u16>, actual: &Actual) -> Probes {
        let services: BTreeSet<u16> = numbers
            .iter()
            .filter_map(|number| Some(actual.backends().get(number)?.service))
            .collect();
        let mut probes = BTreeMap::new();
        for id in services {
            let name = actual.services().get(&id).map(|service| &service.name);
            if let Some(service) = name.and_then(|name| self.service(name)) {
                self.probes_of(service, actual, &mut probes);
            }
        }
        probes.retain(|id, _| numbers.contains(&id.0));
        probes
    }

    fn probes_of(&self, service: &Service, actual: &Actual, probes: &mut Probes) {
        let Some(id) = actual.service_id(&service.name) else {
            return;
        };
        for (name, address, probe) in self.members(service) {
            let number = actual.backend_number(id, name, address);
            if let (Some(probe), Some(number)) = (probe, number)
                && let Some((mut spec, thresholds)) =
                    self.aim(probe, service.vip, address, number, actual)
            {
                if self.config.is_own_address(address) {
                    // This node answers at the VIP, which is its own, as it answers the clients.
                    spec.target.set_ip(service.vip);
                }
                probes.insert(ProbeId(number), (spec, thresholds));
            }
        }
    }

    /// The probe of one backend, if there is a MAC address where it needs one.
    fn aim(
        &self,
        probe: &config::Probe,
        vip: IpAddr,
        address: IpAddr,
        number: u16,
        actual: &Actual,
    ) -> Option<(ProbeSpec, Thresholds)> {
        let way = self.probe_way(vip, probe, address);
        let through_vip = way != ProbeWay::Address;
        let aimed = actual
            .backends()
            .get(&number)
            .is_some_and(|b| b.entry.mac() != 0);
        if through_vip && !aimed {
            return None;
        }
        let spec = ProbeSpec {
            kind: match &probe.kind {
                config::ProbeKind::Tcp => ProbeKind::Tcp,
                config::ProbeKind::Http { path, host, status } => ProbeKind::Http {
                    path: path.clone(),
                    host: host.clone(),
                    status: status.clone(),
                },
            },
            via: if through_vip { Via::Vip } else { Via::Address },
            target: SocketAddr::new(if through_vip { vip } else { address }, probe.port),
            address,
            mark: matches!(way, ProbeWay::Aimed { .. }).then(|| probe_mark(number)),
            interface: match way {
                ProbeWay::Aimed { bound: Some(port) } => Some(port.name.clone()),
                _ => None,
            },
            interval: probe.interval,
            timeout: probe.timeout,
        };
        let thresholds = Thresholds {
            rise: u32::from(probe.rise),
            fall: u32::from(probe.fall),
        };
        Some((spec, thresholds))
    }

    /// The way of the probes `probe` to a backend of a VIP.
    #[must_use]
    pub fn probe_way(&self, vip: IpAddr, probe: &config::Probe, address: IpAddr) -> ProbeWay<'_> {
        if probe.via != config::Via::Vip {
            return ProbeWay::Address;
        }
        if self.is_local(address) {
            return ProbeWay::Own;
        }
        let port = self.port_towards(address);
        let is_own_vip = self.is_local(vip);
        let takes_answers = port
            .and_then(|port| self.facts.by_index(port.ifindex))
            .is_some_and(|interface| interface.takes_own_source);
        // IPv6 has no such check.
        if is_own_vip && vip.is_ipv4() && !takes_answers {
            return ProbeWay::Address;
        }
        // Only what leaves through one interface is not delivered to this very host, or through another interface.
        let bound = port.filter(|_| is_own_vip || self.ports.len() > 1);
        ProbeWay::Aimed { bound }
    }

    /// What the reason of a backend adds where the probes do not take the way that the configuration says.
    pub(super) fn how_probed(&self, service: &Service, address: IpAddr) -> &'static str {
        match &service.probe {
            Some(probe)
                if probe.via == config::Via::Vip
                    && self.probe_way(service.vip, probe, address) == ProbeWay::Address =>
            {
                "; probed at its own address, see accept_local in `xdp-lb check`"
            }
            _ => "",
        }
    }

    /// The backends of a service with their probes, those that are leaving among them.
    pub fn members<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a str, IpAddr, Option<&'a config::Probe>)> {
        let disabled = service.rule == config::Rule::Disabled;
        let listed = service
            .backends
            .iter()
            .filter(move |_| !disabled)
            .map(|b| (b.name.as_str(), b.address, service.probe.as_ref()));
        let leaving = self
            .leaving_of(&service.name)
            .map(|(name, address, one)| (name, address, one.probe.as_ref()));
        listed.chain(leaving)
    }

    /// Gives every probed backend a state of health, and forgets those of backends that are not probed any more: whoever
    /// has lost its MAC address or has left the configuration is probed before it serves again.
    ///
    /// What an earlier daemon knew is taken over: its word counts until the probes say otherwise.
    pub fn keep_health(&mut self, actual: &Actual, probes: &Probes) {
        self.health
            .retain(|number, _| probes.contains_key(&ProbeId(*number)));
        self.begin_health(actual, probes);
    }

    /// As [`Self::keep_health`], of these backends alone.
    pub fn keep_health_of(&mut self, numbers: &BTreeSet<u16>, actual: &Actual, probes: &Probes) {
        for number in numbers {
            if !probes.contains_key(&ProbeId(*number)) {
                self.health.remove(number);
            }
        }
        self.begin_health(actual, probes);
    }

    fn begin_health(&mut self, actual: &Actual, probes: &Probes) {
        let now = SystemTime::now();
        for (id, (_, thresholds)) in probes {
            let health =
                self.health
                    .entry(id.0)
                    .or_insert_with(|| match actual.backends().get(&id.0) {
                        Some(backend) if backend.healthy => Health::adopted(
                            *id,
                            *thresholds,
                            HealthState::Up,
                            // The backend's own reason may speak of a drain.
                            "answered when this daemon took over".to_owned(),
                            now,
                        ),
                        _ => Health::new(*id, *thresholds, now),
                    });
            health.set_thresholds(*thresholds);
        }
    }
}
