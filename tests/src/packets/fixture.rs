//! What is in the maps when a packet comes: one description that fills the kernel's maps and plain memory alike.

use std::net::{IpAddr, Ipv6Addr};

use lb_common::{
    abi::{ABI_VERSION, AREA, Bucket, Control, Fence, HotLine, MAGIC, Port, Presence, Vip6},
    address::Ipv6,
    features::Features,
    fence::is_in_force,
    flow::{
        FlowBucket, FlowBucket6, FlowKey, FlowLine, FlowName, FlowState, FlowWay4, HOMES, Key,
        Phase, Way, bucket_indices,
    },
    fragment::FragmentKey,
    hash::Seed,
    hot::{HotState, HotWord, digest, line_of},
    pick::{Affinity, Backend, Slot},
    plain::{Capacity, PlainTables},
    presence::Said,
    service::{Directory, NoVip, ServiceKey, ServiceValue, Track},
    tables::Tables,
    wire::mac_word,
};
use lb_userspace::dataplane::{DataplaneError, Maps};

use super::network::{PORTS, backend_mac};

/// How large the maps are in all cases: small, so that their ends are near.
pub const CAPACITY: Capacity = Capacity {
    service_buckets: 64,
    slots: 1024,
    backends: 64,
    flow_buckets: 32,
    flow6_buckets: 32,
    fragment_buckets: 4,
    services: 16,
};

/// The secret of the hash. The picks that the affinity cases name depend on it.
pub const SEED: Seed = Seed([0x5eed_0000_0000_0001, 0x5eed_0000_0000_0002]);

/// Which ports a service has.
#[derive(Clone, Debug)]
pub enum Ports {
    /// These.
    List(Vec<u16>),
    /// All of the protocol's that no other service has.
    Any,
}

/// A service and its table.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its id.
    pub id: u16,
    /// Its VIP.
    pub vip: IpAddr,
    /// IP protocol numbers.
    pub protocols: Vec<u8>,
    /// Its ports.
    pub ports: Ports,
    /// Which part of the packet picks.
    pub affinity: Affinity,
    /// Its table: a power of two, at least two.
    pub slots: Vec<Slot>,
    /// Where the table is said to be, if that is not where it is.
    pub misplaced: Option<u32>,
    /// Which flows are recorded.
    pub track: Track,
    /// Whether clients are recorded (`affinity_timeout`).
    pub clients: bool,
    /// Whether it looks for hot sources.
    pub spreads: bool,
    /// Whether it takes the later fragments of its protocols on its VIP that came before their first one.
    pub fragments: bool,
}

/// What is fixed in one loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Whether packets for unserved ports go to the host.
    pub unserved_pass: bool,
    /// What the configuration uses.
    pub features: Features,
    /// The MAC address of an NLB cluster; all zeros for none.
    pub cluster_mac: [u8; 6],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            unserved_pass: false,
            features: Features::ALL_FORWARDING,
            cluster_mac: [0; 6],
        }
    }
}

/// A recorded flow, or a recorded client where the ports are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The client, the ports and the service's id.
    pub key: FlowName,
    /// The backend it is on.
    pub backend: u16,
    /// How far it has come.
    pub phase: Phase,
}

/// A source that is spread by its ports, or was until lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    /// The service's id.
    pub service: u16,
    /// The address, or the first one of the network, that picks.
    pub source: IpAddr,
    /// How its flows are picked.
    pub state: HotState,
}

/// The fragments of one packet, whose first one has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fragments {
    /// What they share: the source,
    pub source: IpAddr,
    /// the destination,
    pub destination: IpAddr,
    /// the protocol,
    pub protocol: u8,
    /// and the identification.
    pub identification: u32,
    /// Where the first one went.
    pub backend: u16,
    /// For how long none has been seen, in units of [`lb_common::flow::TICK_NS`].
    pub silent: u16,
}

impl Fragments {
    /// Their record: what it is found by, and the backend.
    ///
    /// # Panics
    /// Where the addresses are of two families.
    #[must_use]
    pub fn record(&self) -> (u64, u16) {
        let (protocol, identification) = (self.protocol, self.identification);
        let key = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (from.to_bits(), to.to_bits());
                FragmentKey::new(from, to, protocol, identification, SEED)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (from, to) = (Ipv6::from(from), Ipv6::from(to));
                FragmentKey::new(from, to, protocol, identification, SEED)
            }
            _ => panic!("a packet has addresses of one family"),
        };
        (key.digest, self.backend)
    }
}

/// What a node tells a peer in one service.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// The service's place among the node's.
    pub place: u16,
    /// What the question says.
    pub asked: u64,
    /// When its tokens were made, in milliseconds.
    pub made_ms: u64,
    /// What it says of itself.
    pub said: Said,
    /// The tag of both.
    pub tag: u64,
}

/// The content of all maps.
#[derive(Clone, Debug, Default)]
pub struct Fixture {
    /// Services; their tables lie one after the other.
    pub services: Vec<Service>,
    /// The backends that have all slots of an area, counted over all tables; the slots themselves may say otherwise.
    pub areas: Vec<(u32, u16)>,
    /// Backends by number.
    pub backends: Vec<(u16, Backend)>,
    /// The director's interfaces by port number.
    pub ports: Vec<(u16, Port)>,
    /// Recorded flows, the first one silent for longest.
    pub flows: Vec<Flow>,
    /// Hot sources.
    pub hot: Vec<Hot>,
    /// IPv6 addresses by service id that stand in the place of the services' own VIPs.
    pub other_vips: Vec<(u16, Ipv6Addr)>,
    /// Recorded fragments.
    pub fragments: Vec<Fragments>,
    /// Tokens that fence backends, by number; and by which each was fenced.
    pub fences: Vec<(u16, u64, u64)>,
    /// What this node tells its peers.
    pub presences: Vec<Present>,
    /// The program that runs.
    pub setup: Setup,
    /// Services of the lookup's other half, which is not in use.
    pub stale: Vec<Service>,
    /// Whether nobody has written the directory yet.
    pub blank: bool,
}

/// What a fixture is written into.
pub trait Store {
    /// The word and seeds that all share.
    fn control(&self) -> &Control;
    /// The service lookup, both halves.
    fn service_buckets(&self) -> &[Bucket];
    /// Writes a slot.
    fn set_slot(&self, index: u32, slot: Slot);
    /// Writes which backend has all slots of an area.
    fn set_area(&self, index: u32, backend: u16);
    /// Writes a backend.
    fn set_backend(&self, number: u16, backend: Backend);
    /// Writes one of the director's interfaces.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError>;
    /// The flow table.
    fn flow_buckets(&self) -> &[FlowBucket];
    /// The hot sources.
    fn hot_lines(&self) -> &[HotLine];
    /// The IPv6 clients' flow table.
    fn flow6_buckets(&self) -> &[FlowBucket6];
    /// The fragment table.
    fn fragment_buckets(&self) -> &[FlowBucket];
    /// The IPv6 VIPs by service id.
    fn vips(&self) -> &[Vip6];
    /// What fences each backend, by number.
    fn fences(&self) -> &[Fence];
    /// What this node tells its peers, by a service's place.
    fn presences(&self) -> &[Presence];
}

impl Store for PlainTables {
    fn control(&self) -> &Control {
        &self.control
    }
    fn service_buckets(&self) -> &[Bucket] {
        &self.services
    }
    fn set_slot(&self, index: u32, slot: Slot) {
        Self::set_slot(self, index, slot);
    }
    fn set_area(&self, index: u32, backend: u16) {
        Self::set_area(self, index, backend);
    }
    fn set_backend(&self, number: u16, backend: Backend) {
        Self::set_backend(self, number, backend);
    }
    fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError> {
        self.ports[usize::from(number)] = port;
        Ok(())
    }
    fn flow_buckets(&self) -> &[FlowBucket] {
        &self.flows
    }
    fn hot_lines(&self) -> &[HotLine] {
        &self.hot
    }
    fn flow6_buckets(&self) -> &[FlowBucket6] {
        &self.flows6
    }
    fn fragment_buckets(&self) -> &[FlowBucket] {
        &self.fragments
    }
    fn vips(&self) -> &[Vip6] {
        &self.vips
    }
    fn fences(&self) -> &[Fence] {
        &self.fences
    }
    fn presences(&self) -> &[Presence] {
        &self.presences
    }
}

impl Store for Maps {
    fn control(&self) -> &Control {
        Self::control(self)
    }
    fn service_buckets(&self) -> &[Bucket] {
        Self::service_buckets(self)
    }
    fn set_slot(&self, index: u32, slot: Slot) {
        Self::set_slot(self, index, slot);
    }
    fn set_area(&self, index: u32, backend: u16) {
        Self::set_area(self, index, backend);
    }
    fn set_backend(&self, number: u16, backend: Backend) {
        Self::set_backend(self, number, backend);
    }
    fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError> {
        Self::set_port(self, number, port)
    }
    fn flow_buckets(&self) -> &[FlowBucket] {
        Self::flow_buckets(self)
    }
    fn hot_lines(&self) -> &[HotLine] {
        Self::hot_lines(self)
    }
    fn flow6_buckets(&self) -> &[FlowBucket6] {
        Self::flow6_buckets(self)
    }
    fn fragment_buckets(&self) -> &[FlowBucket] {
        Self::fragment_buckets(self)
    }
    fn vips(&self) -> &[Vip6] {
        Self::vips(self)
    }
    fn fences(&self) -> &[Fence] {
        Self::fences(self)
    }
    fn presences(&self) -> &[Presence] {
        Self::presences(self)
    }
}

impl Fixture {
    /// The backends that have the first areas, of all that the tables together have.
    #[must_use]
    pub fn areas(mut self, areas: &[u16]) -> Self {
        self.areas = (0..).zip(areas.iter().copied()).collect();
        self
    }

    /// A backend with a MAC address of its own, reached through a port.
    #[must_use]
    pub fn backend(mut self, number: u16, port: u16) -> Self {
        let mac = mac_word(backend_mac(number));
        self.backends.push((number, Backend::new(mac, port, false)));
        self
    }

    /// A token that fences a backend, and the one by which it was fenced; 0 for none.
    #[must_use]
    pub fn fence(mut self, number: u16, token: u64, fenced_by: u64) -> Self {
        self.fences.push((number, token, fenced_by));
        self
    }

    /// What this node tells a peer that asks.
    #[must_use]
    pub fn present(mut self, present: Present) -> Self {
        self.presences.push(present);
        self
    }

    /// Marks a backend as failed.
    #[must_use]
    pub fn failed(mut self, number: u16) -> Self {
        for (_, backend) in self
            .backends
            .iter_mut()
            .filter(|(known, _)| *known == number)
        {
            *backend = Backend::new(backend.mac(), backend.port(), true)
                .closed_to_new(backend.is_closed_to_new());
        }
        self
    }

    /// Closes a backend to new clients.
    #[must_use]
    pub fn closed_to_new(mut self, number: u16) -> Self {
        for (_, backend) in self
            .backends
            .iter_mut()
            .filter(|(known, _)| *known == number)
        {
            *backend = backend.closed_to_new(true);
        }
        self
    }

    /// Takes away a backend's MAC address.
    #[must_use]
    pub fn without_mac(mut self, number: u16) -> Self {
        for (_, backend) in self
            .backends
            .iter_mut()
            .filter(|(known, _)| *known == number)
        {
            *backend = Backend::new(0, backend.port(), backend.failed())
                .closed_to_new(backend.is_closed_to_new());
        }
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// With every slot of every service like this.
    #[must_use]
    pub fn every_slot(mut self, slot: Slot) -> Self {
        for service in &mut self.services {
            service.slots.fill(slot);
        }
        self
    }

    /// With another affinity for every service.
    #[must_use]
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        for service in &mut self.services {
            service.affinity = affinity;
        }
        self
    }

    /// With another way of tracking for every service.
    #[must_use]
    pub fn track(mut self, track: Track) -> Self {
        for service in &mut self.services {
            service.track = track;
        }
        self
    }

    /// With recorded clients for every service.
    #[must_use]
    pub fn recording_clients(mut self) -> Self {
        for service in &mut self.services {
            service.clients = true;
        }
        self
    }

    /// Under another program.
    #[must_use]
    pub fn under(mut self, features: Features) -> Self {
        self.setup.features = features;
        self
    }

    /// Adds recorded fragments.
    #[must_use]
    pub fn fragments(mut self, fragments: Fragments) -> Self {
        self.fragments.push(fragments);
        self
    }

    /// Adds a recorded flow.
    #[must_use]
    pub fn flow(mut self, flow: Flow) -> Self {
        self.flows.push(flow);
        self
    }

    /// Adds a hot source; its service looks for such.
    #[must_use]
    pub fn hot(mut self, hot: Hot) -> Self {
        for service in &mut self.services {
            service.spreads |= service.id == hot.service;
        }
        self.hot.push(hot);
        self
    }

    /// Writes all of it, over whatever was there, as of `now` (in units of [`lb_common::flow::TICK_NS`]).
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// Where the fixture does not fit into the maps.
    pub fn install(&self, store: &mut impl Store, now: u16) -> Result<(), DataplaneError> {
        for bucket in store.service_buckets() {
            for way in &bucket.ways {
                way.key.set(0);
                way.value.set(0);
            }
        }
        for index in 0..CAPACITY.slots {
            store.set_slot(index, Slot::default());
        }
        for index in 0..CAPACITY.slots / AREA {
            store.set_area(index, 0);
        }
        let backends = u16::try_from(CAPACITY.backends).expect("few");
        for number in 0..backends {
            store.set_backend(number, Backend::default());
        }
        for way in ways(store.flow_buckets()).chain(ways(store.fragment_buckets())) {
            way.key.set(0);
            way.state.set(0);
        }
        for way in ways(store.flow6_buckets()) {
            way.high.set(0);
            way.low.set(0);
            way.ports.set(0);
            way.state.set(0);
        }
        for vip in store.vips() {
            vip.high.set(0);
            vip.low.set(0);
        }

        for (number, fence) in (0..).zip(store.fences()) {
            let known = self.fences.iter().find(|(known, ..)| *known == number);
            let (token, fenced_by) = known.map_or((0, 0), |(_, token, by)| (*token, *by));
            fence.token.set(token);
            fence.fenced_by.set(fenced_by);
        }
        for (place, entry) in (0..).zip(store.presences()) {
            let known = self.presences.iter().find(|known| known.place == place);
            entry.asked.set(known.map_or(0, |present| present.asked));
            entry
                .made_ms
                .set(known.map_or(0, |present| present.made_ms));
            entry
                .said
                .set(known.map_or(0, |present| present.said.word()));
            entry.tag.set(known.map_or(0, |present| present.tag));
        }
        self.write_hot(store);
        let control = store.control();
        control.magic.set(MAGIC);
        control.abi.set(ABI_VERSION);
        control.seed0.set(SEED.0[0]);
        control.seed1.set(SEED.0[1]);
        let offsets = self.write_tables(store);
        if self.blank {
            control.directory.set(0);
            control.no_vip.set(0);
        } else {
            // The second half is in use, so that a lookup that ignores which one is finds nothing, or what is stale.
            let nowhere = vec![0; self.stale.len()];
            fill_half(store.service_buckets(), &self.stale, &nowhere, false);
            let directory = fill_half(store.service_buckets(), &self.services, &offsets, true);
            control.directory.set(directory.0);
            let vips = self
                .services
                .iter()
                .filter_map(|service| match service.vip {
                    IpAddr::V4(vip) => Some(vip.to_bits()),
                    IpAddr::V6(_) => None,
                });
            control.no_vip.set(NoVip::but(vips).0);
        }
        for service in &self.services {
            if let IpAddr::V6(vip) = service.vip {
                let (vip, entry) = (Ipv6::from(vip), &store.vips()[usize::from(service.id)]);
                entry.high.set(vip.high);
                entry.low.set(vip.low);
            }
        }
        for (id, vip) in &self.other_vips {
            let (vip, entry) = (Ipv6::from(*vip), &store.vips()[usize::from(*id)]);
            entry.high.set(vip.high);
            entry.low.set(vip.low);
        }
        for (number, backend) in &self.backends {
            store.set_backend(*number, *backend);
        }
        for number in 0..PORTS {
            let port = self.ports.iter().find(|(known, _)| *known == number);
            store.set_port(number, port.map_or_else(Port::default, |(_, port)| *port))?;
        }
        let count = u16::try_from(self.flows.len()).expect("few flows");
        for (flow, silent) in self.flows.iter().zip((1..=count).rev()) {
            let seen = now.wrapping_sub(silent * 4);
            match keyed(flow.key) {
                Keyed::V4(key) => write_record(store.flow_buckets(), key, flow, seen),
                Keyed::V6(key) => write_record(store.flow6_buckets(), key, flow, seen),
            }
        }
        for fragments in &self.fragments {
            let (digest, backend) = fragments.record();
            let key = FragmentKey { digest };
            let seen = now.wrapping_sub(fragments.silent);
            let bits = store.fragment_buckets().len().ilog2();
            let way = free_way(store.fragment_buckets(), key.hash(SEED), bits);
            key.write(way);
            let state = FlowState::new(backend, key.owner(), seen, key.hash(SEED), Phase::Opening);
            way.state.set(state.0);
        }
        Ok(())
    }

    fn write_hot(&self, store: &impl Store) {
        let lines = store.hot_lines();
        for way in lines.iter().flat_map(|line| &line.ways) {
            way.set(0);
        }
        for hot in &self.hot {
            let source = match hot.source {
                IpAddr::V4(source) => source.to_ipv6_mapped(),
                IpAddr::V6(source) => source,
            };
            let digest = digest(hot.service, source.into(), SEED);
            let mut ways = lines[line_of(digest) as usize].ways.iter();
            let way = ways.find(|way| way.get() == 0).expect("few hot sources");
            way.set(HotWord::new(digest, hot.state).0);
        }
    }

    fn write_tables(&self, store: &impl Store) -> Vec<u32> {
        for (index, backend) in &self.areas {
            store.set_area(*index, *backend);
        }
        let mut offsets = Vec::new();
        let mut next = 16;
        for service in &self.services {
            for (index, slot) in (next..).zip(&service.slots) {
                store.set_slot(index, *slot);
            }
            offsets.push(service.misplaced.unwrap_or(next));
            next += u32::try_from(service.slots.len()).expect("a small table");
        }
        offsets
    }
}

/// What the lookup holds for these services, under this directory word.
fn lookup_entries(
    services: &[Service],
    offsets: &[u32],
    directory: Directory,
) -> Vec<(ServiceKey, ServiceValue)> {
    let key = |vip: IpAddr, protocol, port| match vip {
        IpAddr::V4(vip) => ServiceKey::ipv4(vip.to_bits(), protocol, port),
        IpAddr::V6(vip) => ServiceKey::ipv6(directory.fold(vip.into()), protocol, port),
    };
    let mut entries = Vec::new();
    let mut vips: Vec<(IpAddr, u16, bool)> = Vec::new();
    for (service, offset) in services.iter().zip(offsets) {
        assert!(service.slots.len().is_power_of_two() && service.slots.len() > 1);
        let bits = service.slots.len().ilog2() as u8;
        let value = ServiceValue::new(service.id, *offset, bits, service.affinity)
            .tracking(service.track)
            .recording_clients(service.clients)
            .spreading(service.spreads);
        let any = matches!(service.ports, Ports::Any);
        match vips.iter_mut().find(|(known, ..)| *known == service.vip) {
            Some((.., known)) => *known |= any,
            None => vips.push((service.vip, service.id, any)),
        }
        for protocol in &service.protocols {
            match &service.ports {
                Ports::List(ports) => {
                    entries.extend(
                        ports
                            .iter()
                            .map(|port| (key(service.vip, *protocol, *port), value)),
                    );
                    if service.fragments {
                        entries.push((key(service.vip, *protocol, 0), value.for_fragments()));
                    }
                }
                Ports::Any if service.fragments => {
                    entries.push((key(service.vip, *protocol, 0), value.with_fragments()));
                }
                Ports::Any => entries.push((key(service.vip, *protocol, 0), value)),
            }
        }
    }
    entries.extend(vips.into_iter().map(|(vip, id, any)| {
        let value = match vip {
            IpAddr::V4(_) => ServiceValue::vip(any),
            IpAddr::V6(_) => ServiceValue::vip6(any, id),
        };
        (key(vip, 0, 0), value)
    }));
    entries
}

/// Puts the services into one half of the lookup, with the first multiplier that lets none of its buckets overflow.
fn fill_half(buckets: &[Bucket], services: &[Service], offsets: &[u32], second: bool) -> Directory {
    let bits = (buckets.len() / 2).ilog2() as u8;
    'seeds: for seed in 1u64.. {
        let directory = Directory::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), bits, second);
        let half = buckets.len() / 2;
        for bucket in &buckets[if second { half..2 * half } else { 0..half }] {
            for way in &bucket.ways {
                way.key.set(0);
            }
        }
        for (key, value) in lookup_entries(services, offsets, directory) {
            let bucket = &buckets[directory.bucket(key) as usize];
            let Some(way) = bucket.ways.iter().find(|way| way.key.get() == 0) else {
                continue 'seeds;
            };
            way.value.set(value.0);
            way.key.set(key.0);
        }
        return directory;
    }
    unreachable!("some multiplier fits")
}

/// A flow's key in the table of its family.
enum Keyed {
    V4(FlowKey<u32>),
    V6(FlowKey<Ipv6>),
}

fn keyed(name: FlowName) -> Keyed {
    let FlowName {
        client,
        ports,
        service,
        udp,
    } = name;
    match client {
        IpAddr::V4(client) => Keyed::V4(FlowKey {
            client: client.to_bits(),
            ports,
            service,
            udp,
        }),
        IpAddr::V6(client) => Keyed::V6(FlowKey {
            client: client.into(),
            ports,
            service,
            udp,
        }),
    }
}

/// The buckets that a flow may be in.
#[must_use]
pub fn homes(name: FlowName) -> [u32; HOMES] {
    match keyed(name) {
        Keyed::V4(key) => bucket_indices(key.hash(SEED), CAPACITY.flow_buckets.ilog2()),
        Keyed::V6(key) => bucket_indices(key.hash(SEED), CAPACITY.flow6_buckets.ilog2()),
    }
}

fn ways<W>(lines: &[FlowLine<W>]) -> impl Iterator<Item = &W> {
    lines.iter().flat_map(|line| &line.ways)
}

fn free_way<W: Way>(lines: &[FlowLine<W>], hash: u64, bits: u32) -> &W {
    bucket_indices(hash, bits)
        .iter()
        .flat_map(|bucket| &lines[*bucket as usize].ways)
        .find(|way| way.state().get() == 0)
        .expect("a fixture's records fit into their buckets")
}

fn write_record<K: Key>(lines: &[FlowLine<K::Way>], key: K, flow: &Flow, seen: u16) {
    let hash = key.hash(SEED);
    let way = free_way(lines, hash, lines.len().ilog2());
    let state = FlowState::new(flow.backend, key.owner(), seen, hash, flow.phase);
    key.write(way);
    way.state().set(state.0);
}

/// Every way of the flow tables, IPv4 first, in their order: `None` where it is empty. Without the time of the last packet,
/// which differs between the kernel's clock and anybody else's.
#[must_use]
pub fn recorded(store: &impl Store) -> Vec<Option<Flow>> {
    let flow = |state: FlowState, key: FlowName| {
        state.used().then(|| Flow {
            key,
            backend: state.backend(),
            phase: state.phase(),
        })
    };
    let of_ipv4 =
        ways(store.flow_buckets()).map(|way| flow(FlowState(way.state.get()), way.key().named()));
    let of_ipv6 =
        ways(store.flow6_buckets()).map(|way| flow(FlowState(way.state.get()), way.key().named()));
    of_ipv4.chain(of_ipv6).collect()
}

/// Every way of the fragment table likewise: what the record is found by, and the backend.
#[must_use]
pub fn recorded_fragments(store: &impl Store) -> Vec<Option<(u64, u16)>> {
    ways(store.fragment_buckets())
        .map(|way| {
            let state = FlowState(way.state.get());
            state.used().then(|| (way.key.get(), state.backend()))
        })
        .collect()
}

/// The backends that are fenced.
#[must_use]
pub fn fenced(store: &impl Store) -> Vec<u16> {
    (0..)
        .zip(store.fences())
        .filter(|(_, fence)| is_in_force(fence))
        .map(|(number, _)| number)
        .collect()
}

/// Gives every record of `to` the state that `from` has for it.
pub fn copy_states(from: &impl Store, to: &impl Store) {
    let four = ways(from.flow_buckets()).zip(ways(to.flow_buckets()));
    let fragments = ways(from.fragment_buckets()).zip(ways(to.fragment_buckets()));
    for (from, to) in four.chain(fragments) {
        to.state.set(from.state.get());
    }
    for (from, to) in ways(from.flow6_buckets()).zip(ways(to.flow6_buckets())) {
        to.state.set(from.state.get());
    }
    for (from, to) in from.fences().iter().zip(to.fences()) {
        to.fenced_by.set(from.fenced_by.get());
    }
}

/// Whether all records of both are the same, but for the time of their last packets, and what is fenced.
#[must_use]
pub fn same_records(one: &impl Store, other: &impl Store) -> bool {
    const SEEN: u64 = 0xffff << 32;
    let same = |one: &FlowWay4, other: &FlowWay4| {
        one.key.get() == other.key.get() && (one.state.get() ^ other.state.get()) & !SEEN == 0
    };
    let four = ways(one.flow_buckets()).zip(ways(other.flow_buckets()));
    let fragments = ways(one.fragment_buckets()).zip(ways(other.fragment_buckets()));
    fenced(one) == fenced(other)
        && four.chain(fragments).all(|(one, other)| same(one, other))
        && ways(one.flow6_buckets())
            .zip(ways(other.flow6_buckets()))
            .all(|(one, other)| {
                one.high.get() == other.high.get()
                    && one.low.get() == other.low.get()
                    && one.ports.get() == other.ports.get()
                    && (one.state.get() ^ other.state.get()) & !SEEN == 0
            })
}

/// Empty plain tables for a fixture.
#[must_use]
pub fn plain(setup: &Setup) -> PlainTables {
    let tables = PlainTables::new(
        CAPACITY,
        lb_common::plain::Instance {
            mac: mac_word(super::network::DIRECTOR_MAC),
            port: super::network::OWN_PORT,
            unserved_pass: setup.unserved_pass,
            features: setup.features,
            cluster_mac: mac_word(setup.cluster_mac),
        },
    );
    debug_assert_eq!(1 << tables.flow_bits(), CAPACITY.flow_buckets);
    tables
}
