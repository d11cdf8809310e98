//! What the simulation's operator knows of the services and backends, and their clients of their flows; and what follows
//! from that by the documentation alone.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_common::{
    abi::{BackendState, InfoTrack},
    pick::Affinity,
};

use super::{
    super::{
        desired::{DesiredBackend, DesiredService, Knowledge, state},
        directory::Entries,
        following::Following,
        samples::service,
        silence::CLOSING_SILENCE,
    },
    BACKENDS, HOT_SERVICE, SERVICES, World,
    services::{Promise, idle, port, service_of, vip},
};

/// A real server: service, backend, and which of its addresses.
pub(super) type Server = (usize, usize, u8);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelBackend {
    pub(super) listed: bool,
    pub(super) drained: bool,
    /// The drain's time was up, and so many flows were ended.
    pub(super) ended: Option<u64>,
    pub(super) failed: bool,
    pub(super) healthy: bool,
    pub(super) has_mac: bool,
    pub(super) mac_version: u8,
    pub(super) address_version: u8,
    pub(super) weight: u32,
    pub(super) priority: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelService {
    pub(super) listed: bool,
    pub(super) spreads: bool,
    pub(super) following: Following,
    /// `failback = "manual"`.
    pub(super) manual: bool,
    /// The priority that new flows are held on.
    pub(super) held: Option<u32>,
    pub(super) backends: Vec<ModelBackend>,
}

/// A flow as its client knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) home: Server,
    pub(super) last: u64,
    /// The client has sent FIN.
    pub(super) closing: bool,
    /// Somebody has sent RST: what still comes may go anywhere.
    pub(super) ended: bool,
    /// Its client opened it while clients were recorded, and its backend has taken new flows ever since: the client's next
    /// one goes there as well.
    pub(super) client_kept: bool,
    /// Its backend failed since its last packet, or its drain's time was up: it may move, once.
    pub(super) homeless: bool,
    /// It sent while its slot was in transition, so that it can be counted.
    pub(super) recorded: bool,
    /// Its slot, or its source, has settled since, and no whole pass over the flow table yet: its record may still be there,
    /// true but for its phase, and counts again where the slot is in transition anew.
    pub(super) outlived: bool,
    /// A backend has got more of it than its opening.
    pub(super) spoke: bool,
    /// It had been silent for longer than a slot waits, and woke up during a sweep that may have looked for it already: its
    /// slot may settle all the same, and it may move, once.
    pub(super) excused: bool,
}

/// For how long it may be silent before its backend is forgotten.
pub(super) fn patience(life: &Life) -> Duration {
    let idle = idle(life.home.0);
    if life.closing {
        CLOSING_SILENCE.min(idle)
    } else {
        idle
    }
}

/// The address of a server, in its service's family.
pub(super) fn address((service, backend, version): Server) -> IpAddr {
    match service % 2 {
        0 => IpAddr::from([198, 51, version, backend as u8]),
        _ => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, version.into(), backend as u16]),
    }
}

pub(super) fn service_name(service: usize) -> String {
    format!("service{service}")
}

pub(super) fn mac((service, backend, address): Server, version: u8) -> [u8; 6] {
    [2, 0x10 + service as u8, backend as u8, address, version, 1]
}

pub(super) fn takes(b: &ModelBackend) -> bool {
    b.listed && !b.drained && !b.failed && b.healthy && b.has_mac && b.weight > 0
}

impl World {
    /// Whether the data path looks for hot sources of a service: as long as there are any, whatever the configuration says.
    pub(super) fn spreads(&self, service: usize) -> bool {
        let id = self.bench.actual().service_id(&service_name(service));
        service == HOT_SERVICE && self.model[service].spreads
            || id.is_some_and(|id| self.bench.actual().has_hot(id))
    }

    pub(super) fn server(&self, service: usize, backend: usize) -> Server {
        let version = self.model[service].backends[backend].address_version;
        (service, backend, version)
    }

    pub(super) fn desired_backend(&self, server: Server) -> DesiredBackend {
        let model = &self.model[server.0].backends[server.1];
        let (state, reason) = state(&Knowledge {
            drained: model.drained,
            ended: model.ended,
            failed: model.failed,
            healthy: model.healthy,
            health: if model.healthy { "answers" } else { "refused" },
            has_mac: model.has_mac,
            neighbour: "no ARP answer",
        });
        DesiredBackend {
            name: format!("backend{}", server.1),
            address: address(server),
            // That of every other one is the operator's.
            configured: if server.1.is_multiple_of(2) {
                model.weight
            } else {
                3
            },
            weight: model.weight,
            priority: model.priority,
            state,
            reason,
            healthy: model.healthy,
            mac: model.has_mac.then(|| mac(server, model.mac_version)),
            port: 0,
            lost: false,
        }
    }

    /// What fails a listed backend fails one that is leaving as well.
    pub(super) fn desired_leaving(&self, server: Server) -> DesiredBackend {
        DesiredBackend {
            state: BackendState::Leaving,
            lost: self.fails(server),
            ..self.desired_backend(server)
        }
    }

    /// The backends of a service that have left the configuration.
    pub(super) fn leaving(&self, service: usize) -> Vec<Server> {
        let actual = self.bench.actual();
        let Some(id) = actual.service_id(&service_name(service)) else {
            return Vec::new();
        };
        let server = |name: &str, address: IpAddr| {
            let backend = name.trim_start_matches("backend").parse().unwrap();
            let version = match address {
                IpAddr::V4(address) => address.octets()[2],
                IpAddr::V6(address) => address.segments()[6] as u8,
            };
            (service, backend, version)
        };
        actual
            .backends_of(id)
            .iter()
            .map(|(_, backend)| server(&backend.name, backend.address))
            .filter(|server| !self.is_listed(*server))
            .collect()
    }

    pub(super) fn desired(&self) -> Vec<DesiredService> {
        (0..SERVICES)
            .filter(|s| self.model[*s].listed)
            .map(|s| {
                let backends: Vec<DesiredBackend> = (0..BACKENDS)
                    .filter(|b| self.model[s].backends[*b].listed)
                    .map(|b| self.desired_backend(self.server(s, b)))
                    .collect();
                let sample = service(&service_name(s), 0, &backends);
                let affinity = [Affinity::CLIENT_IPV4, Affinity::CLIENT_IPV6][s % 2];
                let protocol = self.traffics[s].protocol();
                let following = self.model[s].following;
                DesiredService {
                    held: self.model[s].held,
                    flow_idle: idle(s),
                    spreads: self.spreads(s),
                    track: following.changes(protocol),
                    following,
                    entries: Entries {
                        vip: vip(s),
                        protocol,
                        ports: vec![port(s)..=port(s)],
                    },
                    affinity,
                    leaving: self
                        .leaving(s)
                        .into_iter()
                        .map(|server| self.desired_leaving(server))
                        .collect(),
                    ..sample
                }
            })
            .collect()
    }

    /// Whether what the model says of it now takes its flows away.
    pub(super) fn fails(&self, server: Server) -> bool {
        let model = &self.model[server.0].backends[server.1];
        model.failed || !model.healthy || !model.has_mac || model.drained && model.ended.is_some()
    }

    /// Whether its flows have to move. One that is leaving gets them back never more.
    pub(super) fn has_failed(&self, server: Server) -> bool {
        if self.is_listed(server) {
            self.fails(server)
        } else {
            self.lost.contains(&server)
        }
    }

    /// The priority that new flows go to, told anew from the model.
    pub(super) fn priority(&self, service: usize) -> Option<u32> {
        let ModelService { backends, held, .. } = &self.model[service];
        let open: BTreeSet<u32> = backends
            .iter()
            .filter(|b| takes(b))
            .map(|b| b.priority)
            .collect();
        held.filter(|held| open.contains(held))
            .or_else(|| open.first().copied())
    }

    /// Who may get a new flow of a client that is known, or may be.
    pub(super) fn takers(&self, service: usize) -> BTreeSet<Server> {
        let backends = &self.model[service].backends;
        (0..BACKENDS)
            .filter(|b| takes(&backends[*b]))
            .map(|b| self.server(service, b))
            .collect()
    }

    /// Who may get a new flow.
    pub(super) fn may_open(&self, service: usize) -> BTreeSet<Server> {
        let priority = self.priority(service);
        let backends = &self.model[service].backends;
        (0..BACKENDS)
            .filter(|b| takes(&backends[*b]) && Some(backends[*b].priority) == priority)
            .map(|b| self.server(service, b))
            .collect()
    }

    /// What a service with `failback = "manual"` has come to, it stays at.
    pub(super) fn hold(&mut self) {
        for service in 0..SERVICES {
            let priority = self.priority(service);
            let model = &mut self.model[service];
            let listed = model.backends.iter().filter(|b| b.listed);
            let preferred = listed.map(|b| b.priority).min();
            if priority.is_some() {
                model.held = priority.filter(|p| model.manual && Some(*p) > preferred);
            }
        }
    }

    pub(super) fn number(&self, server: Server) -> Option<u16> {
        let id = self.bench.actual().service_id(&service_name(server.0))?;
        let backend = self.desired_backend(server);
        self.bench
            .actual()
            .backend_number(id, &backend.name, backend.address)
    }

    /// What is promised to a flow.
    pub(super) fn promise(&self, flow: usize) -> Promise {
        let track = self.model[service_of(flow)].following.track;
        match (track, self.path(flow).udp) {
            (InfoTrack::Never, _) | (InfoTrack::Changes, true) => Promise::Nothing,
            (InfoTrack::Always, true) => Promise::Recorded,
            (InfoTrack::Quic, true) | (_, false) => Promise::Opened,
        }
    }
}
