//! The simulation's flows: their packets, sent through the real data path, and what is asserted of where each one goes.

use std::{collections::BTreeSet, net::IpAddr, sync::atomic::Ordering, time::Duration};

use lb_common::{
    address::{Address, Ipv6},
    flow::{FlowKey, FlowState, Key as _, Phase, find},
    forward::{place_of, process},
    packet::Buffer,
    service::{Directory, ServiceValue, Track, lookup},
    tables::Tables as _,
    verdict::Verdict,
    wire::{PROTO_TCP, PROTO_UDP, mac_bytes},
};

use super::{
    super::samples::SEED,
    AFFINITY_TIMEOUT, HOT_SERVICE, PACKETS, SERVICES, World,
    model::{Life, Server, patience},
    packets::{Says, frame, too_big},
    services::{Path, Promise, path, service_of, vip},
};

impl World {
    pub(super) fn path(&self, flow: usize) -> Path {
        path(&self.traffics, flow)
    }

    /// Whether the slot, or hot source, of the flow is in transition, as packets find it.
    fn in_transition(&self, flow: usize) -> bool {
        self.of_family(flow, Self::place_in_transition, Self::place_in_transition)
            .unwrap_or(false)
    }

    /// What the maps have recorded of the flow.
    fn record(&self, flow: usize) -> Option<FlowState> {
        self.of_family(flow, Self::record_of, Self::record_of)
    }

    /// Asks the maps for something about a flow, in the family of its service.
    fn of_family<T>(
        &self,
        flow: usize,
        v4: impl Fn(&Self, ServiceValue, u32, Path) -> Option<T>,
        v6: impl Fn(&Self, ServiceValue, Ipv6, Path) -> Option<T>,
    ) -> Option<T> {
        let path = self.path(flow);
        match (path.vip, path.client) {
            (IpAddr::V4(vip), IpAddr::V4(client)) => v4(
                self,
                self.service_at(vip.to_bits(), path)?,
                client.to_bits(),
                path,
            ),
            (IpAddr::V6(vip), IpAddr::V6(client)) => v6(
                self,
                self.service_at(Ipv6::from(vip), path)?,
                client.into(),
                path,
            ),
            families => unreachable!("{families:?}"),
        }
    }

    fn service_at<A: Address>(&self, vip: A, path: Path) -> Option<ServiceValue> {
        let tables = &self.bench.executor.maps.tables;
        let directory = Directory(tables.control.directory.get());
        let protocol = if path.udp { PROTO_UDP } else { PROTO_TCP };
        lookup(tables, directory, vip, protocol, path.ports as u16)
    }

    fn place_in_transition<A: Address>(
        &self,
        service: ServiceValue,
        client: A,
        path: Path,
    ) -> Option<bool> {
        let tables = &self.bench.executor.maps.tables;
        let control = tables.control().unwrap();
        let place = place_of(tables, service, client, path.ports, control).unwrap();
        Some(place.in_transition)
    }

    fn record_of<A: Address>(
        &self,
        service: ServiceValue,
        client: A,
        path: Path,
    ) -> Option<FlowState> {
        let tables = &self.bench.executor.maps.tables;
        let key = FlowKey {
            client,
            ports: path.ports,
            service: service.id(),
            udp: path.udp,
        };
        find(tables, key, key.hash(SEED))
    }

    /// Its service, as packets find it.
    fn value(&self, flow: usize) -> Option<ServiceValue> {
        self.of_family(
            flow,
            |_, value, _, _| Some(value),
            |_, value, _, _| Some(value),
        )
    }

    /// Whether a packet of the flow is recorded, as the maps are.
    pub(super) fn is_recorded(&self, flow: usize) -> bool {
        match self.value(flow).map(ServiceValue::track) {
            None => false,
            Some(Track::Always) => true,
            Some(Track::Quic) => self.in_transition(flow),
            Some(Track::Changes) => !self.path(flow).udp && self.in_transition(flow),
        }
    }

    /// Whether a controller was killed before packets of the flow's protocol are followed, as its service wants it from now
    /// on: the flow may move, once, when they are.
    fn is_not_followed_yet(&self, flow: usize) -> bool {
        let track = self.value(flow).map(ServiceValue::track);
        self.headless && self.path(flow).udp && track == Some(Track::Changes)
    }

    /// Whether its service has an `affinity_timeout`, as the maps are.
    fn records_clients(&self, flow: usize) -> bool {
        self.value(flow).is_some_and(ServiceValue::clients)
    }

    /// Sends one packet of a flow through the real data path: who got it.
    fn send(&mut self, flow: usize, says: Says) -> Result<Server, Verdict> {
        self.sent += 1;
        let traffic = self.traffics[service_of(flow)];
        let frame = frame(self.path(flow), traffic, says, self.sent);
        self.deliver(flow, frame)
    }

    fn deliver(&self, flow: usize, mut frame: Vec<u8>) -> Result<Server, Verdict> {
        PACKETS.fetch_add(1, Ordering::Relaxed);
        let tables = &self.bench.executor.maps.tables;
        tables.set_now(self.bench.tick());
        let outcome = process(&mut Buffer::new(&mut frame), tables);
        if outcome.verdict != Verdict::Forwarded {
            return Err(outcome.verdict);
        }
        assert_eq!(frame[0], 2);
        let server = (
            usize::from(frame[1] - 0x10),
            usize::from(frame[2]),
            frame[3],
        );
        assert_eq!(server.0, service_of(flow), "another service's backend");
        Ok(server)
    }

    /// One packet of a flow, and what was promised.
    pub(super) fn packet(&mut self, flow: usize, says: Says) {
        match (self.promise(flow), says) {
            (Promise::Opened, Says::Opens) => self.open(flow),
            (Promise::Opened, _) => self.go_on(flow, says),
            (Promise::Recorded, _) => self.go_on_unmarked(flow, says),
            (Promise::Nothing, _) => self.come_anew(flow, says),
        }
    }

    /// Who may get a new flow of this one's client.
    fn may_get(&self, flow: usize) -> BTreeSet<Server> {
        let service = service_of(flow);
        if self.records_clients(flow) && self.in_transition(flow) {
            self.takers(service)
        } else {
            self.may_open(service)
        }
    }

    /// What becomes of packets to a service that is not there.
    fn is_not_served(&self, service: usize, got: Result<Server, Verdict>) -> bool {
        if self.model[service].listed {
            return false;
        }
        let same_vip = (0..SERVICES).any(|s| vip(s) == vip(service) && self.model[s].listed);
        let expected = if same_vip {
            Verdict::Unserved
        } else {
            Verdict::NotOurs
        };
        assert_eq!(got, Err(expected));
        true
    }

    /// A new flow went to somebody who takes new ones, if there is anybody; `or` is where it may go besides.
    fn assert_taken(
        flow: usize,
        got: Result<Server, Verdict>,
        may: &BTreeSet<Server>,
        or: Option<Server>,
    ) {
        match got {
            Ok(server) => assert!(
                may.contains(&server) || or == Some(server),
                "{flow} opened on {server:?} of {may:?}"
            ),
            Err(verdict) => {
                assert!(may.is_empty(), "{flow}: {verdict:?} with {may:?}");
                assert_eq!(verdict, Verdict::NoBackend);
            }
        }
    }

    /// A client that is kept where it is gets no other backend for a new flow; `or` is where it may go besides.
    fn assert_kept(&self, flow: usize, got: Result<Server, Verdict>, or: Option<Server>) {
        if let Some(life) = self.lives[flow].filter(|life| life.client_kept)
            && self.records_clients(flow)
        {
            let silent = Duration::from_millis(self.bench.now - life.last);
            assert!(
                silent >= AFFINITY_TIMEOUT
                    || got == Ok(life.home)
                    || or.is_some_and(|server| got == Ok(server)),
                "the client of {flow} went from {:?} to {got:?} after {silent:?}, {life:?}",
                life.home
            );
        }
    }

    /// Who has the flow recorded as being opened: an opening packet sent again stays there.
    fn opening(&self, flow: usize) -> Option<Server> {
        let state = self.record(flow)?;
        if state.phase() != Phase::Opening || !self.is_recorded(flow) {
            return None;
        }
        let spoke =
            self.lives[flow].is_some_and(|life| life.spoke && !life.homeless && !life.outlived);
        assert!(!spoke, "{flow} has sent more than its opening");
        let backend = self.bench.executor.maps.tables.backend(state.backend());
        let [_, service, number, address, ..] = mac_bytes(backend.mac());
        (backend.mac() != 0 && !backend.failed())
            .then(|| (usize::from(service - 0x10), usize::from(number), address))
    }

    /// A SYN, or a QUIC Initial packet.
    fn open(&mut self, flow: usize) {
        let service = service_of(flow);
        let recorded = self.is_recorded(flow);
        let opening = self.opening(flow);
        let clients = self.records_clients(flow);
        let may = self.may_get(flow);
        let before = self.lives[flow];
        let got = self.send(flow, Says::Opens);
        if let Some(life) = before
            && recorded
            && life.recorded
            && !(life.spoke || life.homeless || life.ended || life.excused)
            && Duration::from_millis(self.bench.now - life.last) < patience(&life)
        {
            assert_eq!(got, Ok(life.home), "{flow} opens again, {life:?}");
        }
        if !self.headless {
            if self.is_not_served(service, got) {
                return;
            }
            self.assert_kept(flow, got, opening);
            Self::assert_taken(flow, got, &may, opening);
            if !clients && opening.is_none() {
                self.assert_picked(flow, got);
            }
        }
        // What is refused ends nothing: it may be an old duplicate.
        if let Ok(home) = got {
            self.lives[flow] = Some(Life {
                home,
                last: self.bench.now,
                closing: false,
                ended: false,
                homeless: self.has_failed(home),
                client_kept: clients
                    && self.takers(service).contains(&home)
                    // The same attempt again records nobody.
                    && (opening.is_none() || before.is_some_and(|life| life.client_kept)),
                recorded,
                outlived: before.is_some_and(|life| life.outlived),
                spoke: false,
                excused: false,
            });
        }
    }

    /// A packet in the middle of a flow, or a stray one, which makes a flow wherever it goes: nobody can tell it from one
    /// that was silent all the while.
    fn go_on(&mut self, flow: usize, says: Says) {
        let now = self.bench.now;
        let recorded = self.is_recorded(flow);
        let before = self.lives[flow];
        let got = self.send(flow, says);
        let excused = self.stays(flow, got, recorded);
        let udp = self.path(flow).udp;
        self.lives[flow] = match got {
            Ok(home) => Some(Life {
                home,
                last: now,
                // Nobody can read of QUIC's end.
                closing: !udp && says == Says::Closes
                    || before.is_some_and(|life| life.closing && life.home == home),
                ended: !udp && says == Says::Resets || before.is_some_and(|life| life.ended),
                excused,
                homeless: self.has_failed(home) || self.is_not_followed_yet(flow),
                recorded,
                client_kept: before.is_some_and(|life| life.client_kept && life.home == home),
                outlived: before.is_some_and(|life| life.outlived),
                spoke: true,
            }),
            // It was allowed to lose its home, and has found none yet.
            Err(_) => before.map(|life| Life {
                homeless: true,
                ..life
            }),
        };
    }

    /// The flow stays where it is, as long as it must. Says whether it is excused from now on: see [`Life::excused`].
    fn stays(&self, flow: usize, got: Result<Server, Verdict>, recorded: bool) -> bool {
        let mut excused = self.bench.sweeper.is_active() && recorded;
        if let Some(life) = self.lives[flow] {
            excused &= self.is_forgotten(&life) || life.excused;
            assert!(
                got == Ok(life.home) || self.may_move(&life),
                "flow {flow} moved from {:?} to {got:?}, silent for {} ms, {life:?}",
                life.home,
                self.bench.now - life.last
            );
        }
        if let Ok(server) = got
            && !self.headless
        {
            assert!(
                !self.has_failed(server),
                "flow {flow} went to {server:?}, which has failed"
            );
        }
        excused
    }

    fn is_forgotten(&self, life: &Life) -> bool {
        Duration::from_millis(self.bench.now - life.last) >= patience(life)
    }

    fn may_move(&self, life: &Life) -> bool {
        life.homeless || life.ended || life.excused || self.is_forgotten(life)
    }

    /// A datagram of a service that records every flow: one that is not known is new.
    fn go_on_unmarked(&mut self, flow: usize, says: Says) {
        let service = service_of(flow);
        let recorded = self.is_recorded(flow);
        let clients = self.records_clients(flow);
        let may = self.may_get(flow);
        let before = self.lives[flow];
        let got = self.send(flow, says);
        if !self.headless && self.is_not_served(service, got) {
            return;
        }
        let excused = self.stays(flow, got, recorded);
        let home = before.map(|life| life.home);
        let stayed = home.is_some_and(|home| got == Ok(home));
        if !self.headless && !stayed {
            Self::assert_taken(flow, got, &may, None);
            self.assert_kept(flow, got, None);
            if !clients {
                self.assert_picked(flow, got);
            }
        }
        self.lives[flow] = match got {
            Ok(home) => Some(Life {
                home,
                last: self.bench.now,
                closing: false,
                ended: false,
                excused,
                homeless: self.has_failed(home) || self.is_not_followed_yet(flow),
                recorded,
                client_kept: if stayed {
                    before.is_some_and(|life| life.client_kept)
                } else {
                    clients && self.takers(service).contains(&home)
                },
                outlived: before.is_some_and(|life| life.outlived),
                spoke: true,
            }),
            Err(_) => before.map(|life| Life {
                homeless: true,
                ..life
            }),
        };
    }

    /// A packet of a service that follows no flow of this protocol: it goes where its client picks now.
    fn come_anew(&mut self, flow: usize, says: Says) {
        let service = service_of(flow);
        let clients = self.records_clients(flow);
        let may = self.may_get(flow);
        let got = self.send(flow, says);
        if !self.headless {
            if self.is_not_served(service, got) {
                return;
            }
            self.assert_kept(flow, got, None);
            Self::assert_taken(flow, got, &may, None);
            if !clients {
                self.assert_picked(flow, got);
            }
        }
        if let Ok(home) = got {
            self.lives[flow] = Some(Life {
                home,
                last: self.bench.now,
                closing: false,
                ended: false,
                homeless: true,
                client_kept: clients && self.takers(service).contains(&home),
                recorded: false,
                outlived: false,
                spoke: true,
                excused: false,
            });
        }
    }

    /// Somebody on the way complains of what the flow's server has sent: it hears of it, and nothing else comes of it.
    pub(super) fn complain(&mut self, flow: usize) {
        self.sent += 1;
        let got = self.deliver(flow, too_big(self.path(flow), self.sent));
        if self.is_not_served(service_of(flow), got) {
            return;
        }
        let promise = self.promise(flow);
        let life = self.lives[flow].filter(|life| !self.may_move(life));
        match (life, got) {
            (Some(life), _) if promise != Promise::Nothing => {
                assert_eq!(got, Ok(life.home), "{flow} is complained of, {life:?}");
            }
            (_, Ok(server)) => {
                assert!(!self.has_failed(server), "{server:?} has failed");
                if promise == Promise::Nothing {
                    let may = self.may_get(flow);
                    assert!(may.contains(&server), "{flow}: {server:?} of {may:?}");
                }
            }
            (_, Err(verdict)) => assert_eq!(verdict, Verdict::NoBackend),
        }
    }

    /// As long as nothing changes, a new flow's pick is a function of the packet alone; with affinity, of its client.
    fn assert_picked(&mut self, flow: usize, got: Result<Server, Verdict>) {
        let service = service_of(flow);
        let Path { client, ports, .. } = self.path(flow);
        let by_ports = if service == HOT_SERVICE { ports } else { 0 };
        let first = *self.picks[service].entry((client, by_ports)).or_insert(got);
        assert_eq!(
            got, first,
            "{client} of {flow} is picked otherwise than before"
        );
    }
}
