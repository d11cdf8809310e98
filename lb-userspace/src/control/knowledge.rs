//! What the controller knows of the world: configuration, decisions, probe results, neighbours, interfaces. What follows
//! from it: the [desired state](wishes), and the [probes](probing).

mod leaving;
mod probing;
#[cfg(test)]
mod tests;
mod wishes;

pub use leaving::{Leaving, LeavingKey};
pub use probing::{ProbeWay, Probes};

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use lb_common::wire::mac_bytes;

use super::{
    actual::Actual,
    cluster::Cluster,
    decisions::Decisions,
    ports::{PortState, subnet_towards},
};
use crate::{
    config::{Backend, Config, Mode, Rule, Service},
    health::Health,
    neighbour::{HostFacts, Mac, Target},
};

/// What is known of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, if it is known.
    pub mac: Option<Mac>,
    /// Why it is not.
    pub reason: String,
}

/// Everything the desired state depends on.
#[derive(Debug)]
pub struct Knowledge {
    config: Config,
    places: Places,
    /// The backends that left it while their flows stay.
    pub leaving: BTreeMap<LeavingKey, Leaving>,
    /// The operator's decisions.
    pub decisions: Decisions,
    /// By backend number; only of probed backends.
    pub health: HashMap<u16, Health>,
    /// By address and interface.
    pub neighbours: HashMap<Target, Neighbour>,
    /// The interfaces.
    pub ports: Vec<PortState>,
    /// The host's addresses.
    pub facts: HostFacts,
    /// Whether this is a fresh start, and the first answers are still awaited: see [`Self::all_judged`].
    pub opening: bool,
    /// The other nodes, in a cluster whose nodes all see every packet.
    pub cluster: Cluster,
    /// Of which service and which of its backends it has not been seen yet that they are judged: see [`Self::all_judged`].
    judged: (usize, usize),
}

/// Where things are in the configuration: an event about one of 65,535 backends looks at its own services only.
#[derive(Debug, Default)]
struct Places {
    /// Service name -> its place.
    services: HashMap<String, usize>,
    /// A backend's address -> the places of its services.
    addresses: HashMap<IpAddr, Vec<usize>>,
}

impl Places {
    fn of(config: &Config) -> Self {
        let mut places = Self::default();
        for (place, service) in config.services.iter().enumerate() {
            places.services.insert(service.name.clone(), place);
            for backend in &service.backends {
                let of_address = places.addresses.entry(backend.address).or_default();
                if of_address.last() != Some(&place) {
                    of_address.push(place);
                }
            }
        }
        places
    }
}

impl Knowledge {
    /// Nothing is known of health and neighbours yet.
    #[must_use]
    pub fn new(
        config: Config,
        decisions: Decisions,
        ports: Vec<PortState>,
        facts: HostFacts,
        opening: bool,
    ) -> Self {
        Self {
            places: Places::of(&config),
            config,
            leaving: BTreeMap::new(),
            decisions,
            health: HashMap::new(),
            neighbours: HashMap::new(),
            ports,
            facts,
            opening,
            cluster: Cluster::default(),
            judged: (0, 0),
        }
    }

    /// The configuration in force.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    fn set_config(&mut self, config: Config) -> Config {
        self.places = Places::of(&config);
        self.judged = (0, 0);
        std::mem::replace(&mut self.config, config)
    }

    /// The configured service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.config.services.get(*self.places.services.get(name)?)
    }

    /// The names of the services of which a backend with this address is leaving.
    pub fn left_with(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.leaving
            .keys()
            .filter(move |(_, _, leaving)| *leaving == address)
            .map(|(service, _, _)| service.as_str())
    }

    /// The configured services with a backend of this address.
    pub fn services_with(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        self.places
            .addresses
            .get(&address)
            .into_iter()
            .flatten()
            .filter_map(|place| self.config.services.get(*place))
    }

    /// Whether a backend is this very host.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.facts.assigned(address).is_some()
    }

    /// The interface towards a backend: the one with a subnet that holds its address, the narrowest first. None leads to
    /// this very host.
    #[must_use]
    pub fn port_towards(&self, address: IpAddr) -> Option<&PortState> {
        if self.is_local(address) {
            return None;
        }
        self.ports
            .iter()
            .filter_map(|port| {
                let interface = self.facts.by_index(port.ifindex)?;
                Some((subnet_towards(interface, address)?, port))
            })
            .max_by_key(|(prefix, _)| *prefix)
            .map(|(_, port)| port)
    }

    /// The number of a configured backend, where it has one.
    pub(super) fn number(
        &self,
        service: &Service,
        backend: &Backend,
        actual: &Actual,
    ) -> Option<u16> {
        let id = actual.service_id(&service.name)?;
        actual.backend_number(id, &backend.name, backend.address)
    }

    /// The neighbours to follow.
    #[must_use]
    pub fn targets(&self) -> HashSet<Target> {
        self.addresses()
            .filter(|address| !self.config.is_own_address(*address))
            .filter_map(|address| {
                let port = self.port_towards(address)?;
                Some(Target {
                    address,
                    ifindex: port.ifindex,
                })
            })
            .collect()
    }

    /// Whether each backend has been judged once: a probe has ended, or its MAC address could not be found.
    ///
    /// Until then a fresh start serves nobody. If it served as soon as the first backend answers, every slot would name
    /// that one first, and be in transition for `flow_idle` as the others come; a client waits a moment instead.
    ///
    /// Whoever has been judged is not looked at again: while 65,535 of them answer, each answer asks this.
    #[must_use]
    pub fn all_judged(&mut self, actual: &Actual) -> bool {
        if self.config.node.mode == Mode::Pick {
            return self.all_nodes_judged(actual);
        }
        let (mut place, mut backend) = self.judged;
        while let Some(service) = self.config.services.get(place) {
            while let Some(one) = service.backends.get(backend) {
                if !self.is_judged(service, one, actual) {
                    self.judged = (place, backend);
                    return false;
                }
                backend += 1;
            }
            (place, backend) = (place + 1, 0);
        }
        self.judged = (place, backend);
        true
    }

    fn is_judged(&self, service: &Service, backend: &Backend, actual: &Actual) -> bool {
        if service.rule == Rule::Disabled {
            return true;
        }
        if !self.is_local(backend.address) {
            let Some(port) = self.port_towards(backend.address) else {
                return true;
            };
            let target = Target {
                address: backend.address,
                ifindex: port.ifindex,
            };
            let Some(neighbour) = self.neighbours.get(&target) else {
                return false;
            };
            if neighbour.mac.is_none() {
                return true;
            }
        }
        if service.probe.is_none() {
            return true;
        }
        actual
            .service_id(&service.name)
            .and_then(|id| actual.backend_number(id, &backend.name, backend.address))
            .and_then(|number| self.health.get(&number))
            .is_some_and(Health::is_probed)
    }

    /// The addresses of all backends, those that are leaving among them.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let listed = self.config.services.iter().flat_map(|s| &s.backends);
        listed
            .map(|backend| backend.address)
            .chain(self.leaving.keys().map(|(_, _, address)| *address))
    }

    /// The MAC address of a backend that is this very host: what is handed to its own stack needs no neighbour, and the
    /// address is that of any interface it may come in on.
    fn own_mac(&self, address: IpAddr) -> Option<Mac> {
        let port = self.ports.first()?;
        self.is_local(address).then_some(port.mac)
    }

    /// Takes the MAC addresses that an earlier daemon resolved as known until the kernel says otherwise.
    pub fn adopt_neighbours(&mut self, actual: &Actual) {
        for backend in actual.backends().values().filter(|b| b.entry.mac() != 0) {
            let Some(port) = self
                .ports
                .iter()
                .find(|port| port.number == backend.entry.port())
            else {
                continue;
            };
            let target = Target {
                address: backend.address,
                ifindex: port.ifindex,
            };
            let neighbour = Neighbour {
                mac: Some(mac_bytes(backend.entry.mac())),
                reason: String::new(),
            };
            self.neighbours.insert(target, neighbour);
        }
    }
}
