//! What the controller knows of the world: configuration, decisions, probe results, neighbours, interfaces; and the
//! desired state that follows from it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::SystemTime,
};

use lb_common::{
    abi::{BackendState, probe_mark},
    pick::{Affinity, Backend},
    wire::{PROTO_TCP, PROTO_UDP, mac_bytes},
};

use super::{
    actual::Actual,
    cluster::{Cluster, Judged},
    decisions::Decisions,
    desired::{DesiredBackend, DesiredService, Knowledge as BackendKnowledge, Pick, state},
    directory::Entries,
    retarget::Track,
};
use crate::{
    config::{self, Config, Ports, Protocol, Service},
    health::{Health, HealthState, ProbeId, ProbeKind, ProbeSpec, Thresholds, Via},
    neighbour::{HostFacts, Mac, Target},
};

/// One of the director's interfaces that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortState {
    /// Its port number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
}

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
    /// The configuration in force.
    pub config: Config,
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
}

/// The IPv4 address of a configuration's address: this version's configurations hold no other.
fn ipv4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTO_TCP,
        Protocol::Udp => PROTO_UDP,
    }
}

impl Knowledge {
    /// The interface towards a backend: the one with a subnet that holds its address, the narrowest first.
    #[must_use]
    pub fn port_towards(&self, address: IpAddr) -> Option<&PortState> {
        self.ports
            .iter()
            .filter_map(|port| {
                let interface = self.facts.interface(&port.name)?;
                let prefix = interface
                    .addresses
                    .iter()
                    .filter(|net| net.contains(&address))
                    .map(ipnet::IpNet::prefix_len)
                    .max()?;
                Some((prefix, port))
            })
            .max_by_key(|(prefix, _)| *prefix)
            .map(|(_, port)| port)
    }

    /// The neighbours to follow.
    #[must_use]
    pub fn targets(&self) -> HashSet<Target> {
        self.config
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .filter(|backend| !self.config.is_own(backend))
            .filter_map(|backend| {
                let port = self.port_towards(backend.address)?;
                Some(Target {
                    address: backend.address,
                    ifindex: port.ifindex,
                })
            })
            .collect()
    }

    /// The state that the services for which `wanted` is true should be in.
    #[must_use]
    pub fn desired(
        &self,
        wanted: impl Fn(&Service) -> bool,
        actual: &Actual,
    ) -> Vec<DesiredService> {
        self.config
            .services
            .iter()
            .filter(|service| wanted(service))
            .map(|service| self.desired_service(service, actual))
            .collect()
    }

    fn desired_service(&self, service: &Service, actual: &Actual) -> DesiredService {
        let nodes = (self.config.node.mode == config::Mode::Pick)
            .then(|| self.judge_nodes(service, actual));
        DesiredService {
            name: service.name.clone(),
            entries: Entries {
                vip: ipv4(service.vip).to_bits(),
                protocol: protocol_number(service.protocol),
                ports: match &service.ports {
                    Ports::Any => Vec::new(),
                    Ports::Ranges(ranges) => ranges.clone(),
                },
            },
            affinity: match service.affinity {
                config::Affinity::None => Affinity::NONE_IPV4,
                config::Affinity::Client => Affinity::CLIENT_IPV4,
                config::Affinity::Network => Affinity::NETWORK_IPV4,
            },
            track: match service.protocol {
                Protocol::Tcp => Track::Flows,
                Protocol::Udp => Track::Nothing,
            },
            flow_idle: service.flow_idle,
            backends: service
                .backends
                .iter()
                .map(|backend| match &nodes {
                    None => {
                        let number = self.number(service, backend, actual);
                        self.desired_backend(service, backend, number)
                    }
                    Some(nodes) => self.desired_node(service, backend, &nodes[&backend.name]),
                })
                .collect(),
            pick: nodes.is_some().then(|| Pick {
                own: self.config.node.name.clone(),
                tables: self.tables_of_peers(service),
                joining: self.cluster.joining.contains(&service.name),
            }),
        }
    }

    /// The number of a configured backend, where it has one.
    pub(super) fn number(
        &self,
        service: &Service,
        backend: &config::Backend,
        actual: &Actual,
    ) -> Option<u16> {
        let id = actual.service_id(&service.name)?;
        actual.backend_number(id, &backend.name, ipv4(backend.address))
    }

    /// A node of a cluster. Nothing is sent to a peer, so that its MAC address is for people alone.
    fn desired_node(
        &self,
        service: &Service,
        backend: &config::Backend,
        judged: &Judged,
    ) -> DesiredBackend {
        let own = self.config.is_own(backend);
        let port = self.port_towards(backend.address);
        let mac = if own {
            self.ports.first().map(|port| port.mac)
        } else {
            port.and_then(|port| {
                let target = Target {
                    address: backend.address,
                    ifindex: port.ifindex,
                };
                self.neighbours.get(&target)?.mac
            })
        };
        let (state, reason) = state(&BackendKnowledge {
            drained: judged.drained,
            failed: judged.failed,
            healthy: judged.healthy,
            health: &judged.reason,
            has_mac: true,
            neighbour: "",
        });
        let (state, reason) = if service.rule == config::Rule::Disabled {
            (
                BackendState::Down,
                "disabled by the service's `rule`".to_owned(),
            )
        } else if self.opening && state == BackendState::Up {
            (
                BackendState::Down,
                "answers; the first answers of all nodes are awaited".to_owned(),
            )
        } else if own && self.cluster.joining.contains(&service.name) && state == BackendState::Up {
            (
                BackendState::Down,
                "joins, now that its tables are those of the others".to_owned(),
            )
        } else {
            (state, reason)
        };
        DesiredBackend {
            name: backend.name.clone(),
            address: ipv4(backend.address),
            weight: judged.weight,
            priority: backend.priority,
            state,
            reason,
            healthy: judged.healthy,
            mac,
            port: if own {
                Backend::LOCAL_PORT
            } else {
                port.map_or(0, |port| port.number)
            },
        }
    }

    fn desired_backend(
        &self,
        service: &Service,
        backend: &config::Backend,
        number: Option<u16>,
    ) -> DesiredBackend {
        let decision = self.decisions.of(&service.name, &backend.name);
        let port = self.port_towards(backend.address);
        let neighbour = port.and_then(|port| {
            self.neighbours.get(&Target {
                address: backend.address,
                ifindex: port.ifindex,
            })
        });
        let mac = neighbour.and_then(|neighbour| neighbour.mac);
        let no_mac = match (port, neighbour) {
            (None, _) => format!(
                "{} is in no subnet of the director's interfaces",
                backend.address
            ),
            (Some(_), Some(neighbour)) => neighbour.reason.clone(),
            (Some(port), None) => format!(
                "waiting for the ARP answer of {} on {}",
                backend.address, port.name
            ),
        };
        let health = number.and_then(|number| self.health.get(&number));
        let (healthy, words) = match (&service.probe, health) {
            (None, _) => (true, "not probed, as configured".to_owned()),
            (Some(_), Some(health)) => (
                health.state() == HealthState::Up,
                health.reason().to_owned(),
            ),
            (Some(_), None) => (false, "not probed yet".to_owned()),
        };
        let (state, reason) = state(&BackendKnowledge {
            drained: decision.drained,
            failed: decision.failed,
            healthy,
            health: &words,
            has_mac: mac.is_some(),
            neighbour: &no_mac,
        });
        let (state, reason) = if service.rule == config::Rule::Disabled {
            (
                BackendState::Down,
                "disabled by the service's `rule`".to_owned(),
            )
        } else if self.opening && state == BackendState::Up {
            (
                BackendState::Down,
                "answers; the first answers of all backends are awaited".to_owned(),
            )
        } else {
            (state, reason)
        };
        DesiredBackend {
            name: backend.name.clone(),
            address: ipv4(backend.address),
            weight: decision.weight.unwrap_or(backend.weight),
            priority: backend.priority,
            state,
            reason,
            healthy,
            mac,
            port: port.map_or(0, |port| port.number),
        }
    }

    /// Whether each backend has been judged once: a probe has ended, or its MAC address could not be found.
    ///
    /// Until then a fresh start serves nobody. If it served as soon as the first backend answers, every slot would name
    /// that one first, and be in transition for `flow_idle` as the others come; a client waits a moment instead.
    #[must_use]
    pub fn all_judged(&self, actual: &Actual) -> bool {
        if self.config.node.mode == config::Mode::Pick {
            return self.all_nodes_judged(actual);
        }
        let served = |service: &&Service| service.rule != config::Rule::Disabled;
        self.config.services.iter().filter(served).all(|service| {
            service.backends.iter().all(|backend| {
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
                if neighbour.mac.is_none() || service.probe.is_none() {
                    return true;
                }
                actual
                    .service_id(&service.name)
                    .and_then(|id| actual.backend_number(id, &backend.name, ipv4(backend.address)))
                    .and_then(|number| self.health.get(&number))
                    .is_some_and(Health::is_probed)
            })
        })
    }

    /// The probes that follow: one for each backend that has a number and a MAC address to be aimed at.
    #[must_use]
    pub fn probes(&self, actual: &Actual) -> BTreeMap<ProbeId, (ProbeSpec, Thresholds)> {
        let mut probes = BTreeMap::new();
        for service in &self.config.services {
            let (Some(probe), Some(id)) = (&service.probe, actual.service_id(&service.name)) else {
                continue;
            };
            if service.rule == config::Rule::Disabled {
                continue;
            }
            for backend in &service.backends {
                let Some(number) = actual.backend_number(id, &backend.name, ipv4(backend.address))
                else {
                    continue;
                };
                let through_vip = probe.via == config::Via::Vip;
                let aimed = actual
                    .backends()
                    .get(&number)
                    .is_some_and(|b| b.entry.mac() != 0);
                if through_vip && !aimed {
                    continue;
                }
                // This node answers at the VIP, which is its own, as it answers the clients.
                let target = if through_vip || self.config.is_own(backend) {
                    service.vip
                } else {
                    backend.address
                };
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
                    target: SocketAddr::new(target, probe.port),
                    address: backend.address,
                    mark: through_vip.then(|| probe_mark(number)),
                    interval: probe.interval,
                    timeout: probe.timeout,
                };
                let thresholds = Thresholds {
                    rise: u32::from(probe.rise),
                    fall: u32::from(probe.fall),
                };
                probes.insert(ProbeId(number), (spec, thresholds));
            }
        }
        probes
    }

    /// Gives every probed backend a state of health, and forgets those of backends that are not probed any more: whoever
    /// has lost its MAC address or has left the configuration is probed before it serves again.
    ///
    /// What an earlier daemon knew is taken over: its word counts until the probes say otherwise.
    pub fn keep_health(
        &mut self,
        actual: &Actual,
        probes: &BTreeMap<ProbeId, (ProbeSpec, Thresholds)>,
    ) {
        self.health
            .retain(|number, _| probes.contains_key(&ProbeId(*number)));
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
                address: IpAddr::V4(backend.address),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfigFile,
        control::{actual::Op, samples::Bench},
        neighbour::{Interface, Link},
    };

    const BACKENDS: [Ipv4Addr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::new(198, 51, 100, 2),
    ];

    /// Two services on the same two backends, of which the first is probed.
    fn knowledge() -> Knowledge {
        let text = r#"
            [node]
            interfaces = ["eth0"]
            [[service]]
            name = "web"
            vip = "192.0.2.10"
            protocol = "tcp"
            ports = [80]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
            [service.probe]
            type = "tcp"
            port = 80
            [[service]]
            name = "mail"
            vip = "192.0.2.11"
            protocol = "tcp"
            ports = [25]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
        "#;
        let config = ConfigFile::parse("test.toml", text)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
            .config;
        let port = PortState {
            number: 0,
            name: "eth0".into(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
        };
        Knowledge {
            config,
            decisions: Decisions::default(),
            health: HashMap::new(),
            neighbours: HashMap::new(),
            ports: vec![port],
            facts: facts(),
            opening: false,
            cluster: Cluster::default(),
        }
    }

    fn facts() -> HostFacts {
        HostFacts {
            interfaces: vec![Interface {
                link: Link {
                    ifindex: 7,
                    name: "eth0".into(),
                    mac: Some([2, 0, 0, 0, 0, 1]),
                    mtu: 1500,
                    up: true,
                    running: true,
                    loopback: false,
                    xdp: None,
                },
                addresses: vec!["198.51.100.250/24".parse().unwrap()],
                driver: None,
            }],
        }
    }

    fn set_mac(knowledge: &mut Knowledge, backend: usize, mac: Option<Mac>) {
        let target = Target {
            address: IpAddr::V4(BACKENDS[backend]),
            ifindex: 7,
        };
        let reason = "no ARP answer".to_owned();
        knowledge
            .neighbours
            .insert(target, Neighbour { mac, reason });
    }

    /// What the daemon does after every event: reconciles, then probes what can be probed.
    fn follow(knowledge: &mut Knowledge, bench: &mut Bench) {
        let desired = knowledge.desired(|_| true, bench.actual());
        bench.bring(&desired);
        let probes = knowledge.probes(bench.actual());
        knowledge.keep_health(bench.actual(), &probes);
    }

    fn probe_succeeds(knowledge: &mut Knowledge, number: u16) {
        let health = knowledge.health.get_mut(&number).unwrap();
        health.observe(&Ok(std::time::Duration::from_millis(1)), SystemTime::now());
    }

    #[test]
    fn whoever_was_gone_is_probed_before_it_serves_again() {
        let mut bench = Bench::new();
        let mut knowledge = knowledge();
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Down);
        assert!(
            knowledge.probes(bench.actual()).is_empty(),
            "nowhere to aim"
        );

        set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Down, "not yet");
        let number = bench.number("web", "one");
        probe_succeeds(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);

        set_mac(&mut knowledge, 0, None);
        follow(&mut knowledge, &mut bench);
        let lost = &bench.actual().backends()[&number];
        assert_eq!(
            (lost.state, lost.reason.as_str()),
            (BackendState::Down, "no ARP answer")
        );
        set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut knowledge, &mut bench);
        let back = &bench.actual().backends()[&number];
        assert_eq!(
            (back.state, back.reason.as_str()),
            (BackendState::Down, "not probed yet"),
            "what it said before it was gone says nothing"
        );
        probe_succeeds(&mut knowledge, number);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Up);

        // Removed, and put back while it leaves.
        let listed = knowledge.config.services[0].backends.clone();
        knowledge.config.services[0].backends.remove(0);
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Leaving);
        knowledge.config.services[0].backends = listed;
        follow(&mut knowledge, &mut bench);
        assert_eq!(bench.state("web", "one"), BackendState::Down);
        assert_eq!(bench.number("web", "one"), number);
    }

    #[test]
    fn what_an_earlier_daemon_knew_counts_until_the_probes_say_otherwise() {
        let mut bench = Bench::new();
        let mut before = knowledge();
        set_mac(&mut before, 0, Some([2, 0, 0, 0, 1, 1]));
        follow(&mut before, &mut bench);
        let number = bench.number("web", "one");
        probe_succeeds(&mut before, number);
        follow(&mut before, &mut bench);

        let mut after = knowledge();
        after.adopt_neighbours(bench.actual());
        let probes = after.probes(bench.actual());
        after.keep_health(bench.actual(), &probes);
        let desired = after.desired(|_| true, bench.actual());
        let state_of = |number: &u16| bench.actual().backends()[number].state;
        for op in bench.plan(&desired).unwrap() {
            let Op::Backend { number, backend } = op else {
                panic!("{op:?}");
            };
            assert_eq!(backend.state, state_of(&number), "only reasons change");
        }
        assert_eq!(state_of(&number), BackendState::Up);
    }

    #[test]
    fn only_what_is_wanted_is_looked_at() {
        let bench = Bench::new();
        let desired = knowledge().desired(|s| s.name == "mail", bench.actual());
        assert_eq!(desired.len(), 1);
        assert_eq!(desired[0].name, "mail");
    }
}
