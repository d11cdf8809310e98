//! Backends that have left the configuration while their flows stay.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use lb_common::{abi::BackendState, pick::Backend};

use super::{
    super::{
        actual::Actual,
        desired::{DesiredBackend, time_was_up},
        reconcile::OTHERS,
    },
    Knowledge, Neighbour,
    wishes::no_subnet,
};
use crate::{
    config::{self, Config, Service},
    health::HealthState,
    neighbour::Target,
};

/// A backend that left the configuration while its flows stay, by its service's name, its own, and its address.
pub type LeavingKey = (String, String, IpAddr);

/// What is known of one that leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    /// How it is probed: as the last configuration says that had it, or as its service is now where that is not known.
    pub probe: Option<config::Probe>,
    /// Whether `probe` is its own. If not, it may fail though nothing is wrong with the backend: it then counts only once
    /// the backend has answered it.
    pub own_probe: bool,
}

impl Knowledge {
    /// Puts another configuration in force; gives the one before with the backends that were leaving then, for
    /// [`Self::take_back`]. What it has no more is leaving from now on.
    pub fn take(&mut self, config: Config) -> (Config, BTreeMap<LeavingKey, Leaving>) {
        let before = (self.set_config(config), self.leaving.clone());
        for service in &before.0.services {
            for backend in &service.backends {
                self.leaving.insert(
                    (service.name.clone(), backend.name.clone(), backend.address),
                    Leaving {
                        probe: service.probe.clone(),
                        own_probe: true,
                    },
                );
            }
        }
        self.forget_listed();
        before
    }

    /// Puts the configuration before in force again.
    pub fn take_back(&mut self, before: (Config, BTreeMap<LeavingKey, Leaving>)) {
        self.set_config(before.0);
        self.leaving = before.1;
    }

    /// Forgets as leaving what the configuration has, and what lost its service.
    fn forget_listed(&mut self) {
        let mut services = HashSet::new();
        let mut listed = HashSet::new();
        for service in &self.config.services {
            services.insert(service.name.as_str());
            for backend in &service.backends {
                listed.insert((
                    service.name.as_str(),
                    backend.name.as_str(),
                    backend.address,
                ));
            }
        }
        self.leaving.retain(|(service, name, address), _| {
            services.contains(service.as_str())
                && !listed.contains(&(service.as_str(), name.as_str(), *address))
        });
    }

    /// The backends of a service that are leaving: name, address and what is known.
    pub fn leaving_of<'k>(
        &'k self,
        service: &'k str,
    ) -> impl Iterator<Item = (&'k str, IpAddr, &'k Leaving)> {
        let first = (
            service.to_owned(),
            String::new(),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        );
        self.leaving
            .range(first..)
            .take_while(move |((of, _, _), _)| of == service)
            .map(|((_, name, address), leaving)| (name.as_str(), *address, leaving))
    }

    /// Takes the backends that an earlier daemon left leaving, or that the file has lost meanwhile, as leaving.
    pub fn adopt_leaving(&mut self, actual: &Actual) {
        for service in &self.config.services {
            let Some(id) = actual.service_id(&service.name) else {
                continue;
            };
            for (_, backend) in actual.backends_of(id) {
                if backend.name == OTHERS {
                    continue;
                }
                self.leaving.insert(
                    (service.name.clone(), backend.name.clone(), backend.address),
                    Leaving {
                        probe: service.probe.clone(),
                        own_probe: false,
                    },
                );
            }
        }
        self.forget_listed();
    }

    /// Forgets those that are gone.
    pub fn forget_gone(&mut self, actual: &Actual) {
        self.leaving.retain(|(service, name, address), _| {
            actual
                .service_id(service)
                .and_then(|id| actual.backend_number(id, name, *address))
                .is_some()
        });
    }

    /// One that is leaving keeps its flows until it fails, or the operator's word says otherwise.
    pub(super) fn desired_leaving(
        &self,
        service: &Service,
        name: &str,
        address: IpAddr,
        leaving: &Leaving,
        number: Option<u16>,
    ) -> DesiredBackend {
        let decision = self.decisions.of(&service.name, name);
        let port = self.port_towards(address);
        let neighbour = port.and_then(|port| {
            self.neighbours.get(&Target {
                address,
                ifindex: port.ifindex,
            })
        });
        let local = self.own_mac(address);
        let no_mac = match (port, neighbour) {
            _ if local.is_some() => None,
            (None, _) => Some(no_subnet(address)),
            (Some(_), Some(Neighbour { mac: None, reason })) => Some(reason.clone()),
            (Some(_), _) => None,
        };
        let health = number.and_then(|number| self.health.get(&number));
        let fails = leaving.probe.as_ref().and(health).filter(|health| {
            let proven = leaving.own_probe || health.round_trip().is_some();
            proven && health.state() == HealthState::Down
        });
        let (lost, reason) = if decision.failed {
            (true, "failed by the operator".to_owned())
        } else if let (true, Some(flows)) = (decision.drained, decision.flows_ended) {
            (true, time_was_up(flows))
        } else if let Some(reason) = no_mac {
            (true, reason)
        } else if let Some(health) = fails {
            (true, health.reason().to_owned())
        } else {
            (false, String::new())
        };
        DesiredBackend {
            name: name.to_owned(),
            address,
            configured: 0,
            weight: 0,
            priority: config::Backend::PRIORITY,
            state: BackendState::Leaving,
            reason,
            healthy: fails.is_none(),
            mac: local.or_else(|| neighbour.and_then(|neighbour| neighbour.mac)),
            port: match local {
                Some(_) => Backend::LOCAL_PORT,
                None => port.map_or(0, |port| port.number),
            },
            lost,
        }
    }
}
