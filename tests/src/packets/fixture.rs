//! What is in the maps when a packet comes: one description that fills the kernel's maps and plain memory alike.

use std::net::Ipv4Addr;

use lb_common::{
    abi::{ABI_VERSION, Bucket, Control, MAGIC, Port},
    flow::{FlowBucket, FlowKey, FlowState, Key, Phase, bucket_indices},
    hash::Seed,
    pick::{Affinity, Backend, Slot},
    plain::{Capacity, PlainTables},
    service::{Directory, ServiceKey, ServiceValue},
    tables::Tables,
    wire::mac_word,
};
use lb_userspace::dataplane::{DataplaneError, Maps};

use super::network::backend_mac;

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
    pub vip: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Its ports.
    pub ports: Ports,
    /// Which part of the packet picks.
    pub affinity: Affinity,
    /// Its table: a power of two, at least two.
    pub slots: Vec<Slot>,
    /// Where the table is said to be, if that is not where it is.
    pub misplaced: Option<u32>,
}

/// A recorded flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The client, the ports and the service's id.
    pub key: FlowKey,
    /// The backend it is on.
    pub backend: u16,
    /// How far it has come.
    pub phase: Phase,
}

/// The content of all maps.
#[derive(Clone, Debug, Default)]
pub struct Fixture {
    /// Services; their tables lie one after the other.
    pub services: Vec<Service>,
    /// Backends by number.
    pub backends: Vec<(u16, Backend)>,
    /// The director's interfaces by port number.
    pub ports: Vec<(u16, Port)>,
    /// Recorded flows, the first one silent for longest.
    pub flows: Vec<Flow>,
    /// Whether packets for unserved ports go to the host.
    pub unserved_pass: bool,
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
    /// Writes a backend.
    fn set_backend(&self, number: u16, backend: Backend);
    /// Writes one of the director's interfaces.
    ///
    /// # Errors
    /// What the kernel says.
    fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError>;
    /// The flow table.
    fn flow_buckets(&self) -> &[FlowBucket];
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
    fn set_backend(&self, number: u16, backend: Backend) {
        Self::set_backend(self, number, backend);
    }
    fn set_port(&mut self, number: u16, port: Port) -> Result<(), DataplaneError> {
        Self::set_port(self, number, port)
    }
    fn flow_buckets(&self) -> &[FlowBucket] {
        Self::flow_buckets(self)
    }
}

impl Fixture {
    /// A backend with a MAC address of its own, reached through a port.
    #[must_use]
    pub fn backend(mut self, number: u16, port: u16) -> Self {
        let mac = mac_word(backend_mac(number));
        self.backends.push((number, Backend::new(mac, port, false)));
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
            *backend = Backend::new(backend.mac(), backend.port(), true);
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
            *backend = Backend::new(0, backend.port(), backend.failed());
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

    /// Adds a recorded flow.
    #[must_use]
    pub fn flow(mut self, flow: Flow) -> Self {
        self.flows.push(flow);
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
        let backends = u16::try_from(CAPACITY.backends).expect("few");
        for number in 0..backends {
            store.set_backend(number, Backend::default());
        }
        for bucket in store.flow_buckets() {
            for way in &bucket.ways {
                way.key.set(0);
                way.state.set(0);
            }
        }

        let control = store.control();
        control.magic.set(MAGIC);
        control.abi.set(ABI_VERSION);
        control.seed0.set(SEED.0[0]);
        control.seed1.set(SEED.0[1]);
        let entries = self.write_tables(store);
        let stale = lookup_entries(&self.stale, &vec![0; self.stale.len()]);
        if self.blank {
            control.directory.set(0);
        } else {
            // The second half is in use, so that a lookup that ignores which one is finds nothing, or what is stale.
            fill_half(store.service_buckets(), &stale, false);
            let directory = fill_half(store.service_buckets(), &entries, true);
            control.directory.set(directory.0);
        }
        for (number, backend) in &self.backends {
            store.set_backend(*number, *backend);
        }
        for number in 0..=super::network::NO_PORT {
            let port = self.ports.iter().find(|(known, _)| *known == number);
            store.set_port(number, port.map_or_else(Port::default, |(_, port)| *port))?;
        }
        let count = u16::try_from(self.flows.len()).expect("few flows");
        for (flow, silent) in self.flows.iter().zip((1..=count).rev()) {
            write_flow(store.flow_buckets(), flow, now.wrapping_sub(silent * 4));
        }
        Ok(())
    }

    fn write_tables(&self, store: &impl Store) -> Vec<(ServiceKey, ServiceValue)> {
        let mut offsets = Vec::new();
        let mut next = 16;
        for service in &self.services {
            for (index, slot) in (next..).zip(&service.slots) {
                store.set_slot(index, *slot);
            }
            offsets.push(service.misplaced.unwrap_or(next));
            next += u32::try_from(service.slots.len()).expect("a small table");
        }
        lookup_entries(&self.services, &offsets)
    }
}

/// What the lookup holds for these services.
fn lookup_entries(services: &[Service], offsets: &[u32]) -> Vec<(ServiceKey, ServiceValue)> {
    let mut entries = Vec::new();
    let mut vips: Vec<(u32, bool)> = Vec::new();
    for (service, offset) in services.iter().zip(offsets) {
        assert!(service.slots.len().is_power_of_two() && service.slots.len() > 1);
        let bits = service.slots.len().ilog2() as u8;
        let value = ServiceValue::new(service.id, *offset, bits, service.affinity);
        let vip = service.vip.to_bits();
        let any = matches!(service.ports, Ports::Any);
        match vips.iter_mut().find(|(known, _)| *known == vip) {
            Some((_, known)) => *known |= any,
            None => vips.push((vip, any)),
        }
        match &service.ports {
            Ports::List(ports) => entries.extend(
                ports
                    .iter()
                    .map(|port| (ServiceKey::ipv4(vip, service.protocol, *port), value)),
            ),
            Ports::Any => entries.push((ServiceKey::ipv4_any_port(vip, service.protocol), value)),
        }
    }
    entries.extend(
        vips.into_iter()
            .map(|(vip, any)| (ServiceKey::ipv4_vip(vip), ServiceValue::vip(any))),
    );
    entries
}

/// Puts the entries into one half of the lookup, with the first multiplier that lets none of its buckets overflow.
fn fill_half(
    buckets: &[Bucket],
    entries: &[(ServiceKey, ServiceValue)],
    second: bool,
) -> Directory {
    let bits = (buckets.len() / 2).ilog2() as u8;
    'seeds: for seed in 1u64.. {
        let directory = Directory::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), bits, second);
        let half = buckets.len() / 2;
        for bucket in &buckets[if second { half..2 * half } else { 0..half }] {
            for way in &bucket.ways {
                way.key.set(0);
            }
        }
        for (key, value) in entries {
            let bucket = &buckets[directory.bucket(*key) as usize];
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

fn write_flow(buckets: &[FlowBucket], flow: &Flow, seen: u16) {
    let hash = flow.key.hash(SEED);
    let (first, second) = bucket_indices(hash, buckets.len().ilog2());
    let way = [first, second]
        .iter()
        .flat_map(|bucket| &buckets[*bucket as usize].ways)
        .find(|way| way.state.get() == 0)
        .expect("a fixture's flows fit into their buckets");
    let state = FlowState::new(flow.backend, flow.key.owner(), seen, hash, flow.phase);
    flow.key.write(way);
    way.state.set(state.0);
}

/// Every way of a flow table, in its order: `None` where it is empty. Without the time of the last packet, which differs
/// between the kernel's clock and anybody else's.
#[must_use]
pub fn recorded(buckets: &[FlowBucket]) -> Vec<Option<Flow>> {
    buckets
        .iter()
        .flat_map(|bucket| &bucket.ways)
        .map(|way| {
            let state = FlowState(way.state.get());
            state.used().then(|| Flow {
                key: way.key(),
                backend: state.backend(),
                phase: state.phase(),
            })
        })
        .collect()
}

/// Empty plain tables for a fixture.
#[must_use]
pub fn plain(unserved_pass: bool) -> PlainTables {
    let tables = PlainTables::new(
        CAPACITY,
        lb_common::plain::Instance {
            mac: mac_word(super::network::DIRECTOR_MAC),
            port: super::network::OWN_PORT,
            unserved_pass,
            ..lb_common::plain::Instance::default()
        },
    );
    debug_assert_eq!(1 << tables.flow_bits(), CAPACITY.flow_buckets);
    tables
}
