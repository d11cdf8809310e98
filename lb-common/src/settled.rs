//! The hot path: a TCP or UDP packet without anything rare about it, to a settled slot, and with a call of one function or
//! two to a slot in transition.
//!
//! It says what [`crate::forward`] says, with the same parts where it can, and has touched nothing when it finds that
//! something rare is left; but for a flow's record, which is found to be so when it is looked for once more. What it leaves to the others is a function of its own in the kernel: next to code that needs every
//! register, the compiler would keep what the hot path has in memory.
//!
//! What a packet says is read where it is needed, again where it is needed again: a load costs no more than a register that
//! another value would have to leave.

use core::hint::cold_path;

use crate::abi::Control;
use crate::address::{Address, Ipv6};
use crate::features::Features;
use crate::flow::{self, FlowKey, Key as _, Phase};
use crate::forward::{Outcome, counted, egress_of, recorded_track, slot_at};
use crate::hash::{Seed, shift_left_16};
use crate::packet::Packet;
use crate::parse::{Signal, ipv4, ipv6, of_flags};
use crate::pick::{Backend, Own, Slot};
use crate::rewrite;
use crate::service::{Directory, NoVip, ServiceKey, ServiceValue, Track, find, lookup};
use crate::tables::{Step, Tables};
use crate::transition::backend_of_flow;
use crate::verdict::Verdict;
use crate::wire::{
    ETH_LEN, ETH_TYPE, ETHERTYPE_IPV4, IPV4_LEN, IPV4_PROTOCOL, IPV6_LEN, IPV6_NEXT_HEADER,
    PROTO_UDP, TCP_FLAGS, be16_at, be32_at, ipv6_at, le16_at, le32_at, le64_at, u8_at,
};

/// The beginning of a whole TCP or UDP packet, as far as the ports.
trait Head {
    type Address: Address;
    fn client(&self) -> Self::Address;
    fn destination(&self) -> Self::Address;
    fn ports(&self) -> u32;
    fn protocol(&self) -> u8;
    fn ethernet(&self) -> u64;
    fn service_key(&self, directory: Directory, protocol: u8) -> ServiceKey;
    fn bytes(&mut self) -> &mut [u8];
}

impl Head for [u8; ipv4::COMMON_LEN] {
    type Address = u32;

    #[inline(always)]
    fn client(&self) -> u32 {
        be32_at::<{ ETH_LEN + 12 }, _>(self)
    }

    #[inline(always)]
    fn destination(&self) -> u32 {
        be32_at::<{ ETH_LEN + 16 }, _>(self)
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        be32_at::<{ ETH_LEN + IPV4_LEN }, _>(self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        u8_at::<{ ETH_LEN + IPV4_PROTOCOL }, _>(self)
    }

    #[inline(always)]
    fn ethernet(&self) -> u64 {
        le64_at::<0, _>(self)
    }

    #[inline(always)]
    fn service_key(&self, _directory: Directory, protocol: u8) -> ServiceKey {
        let vip = le32_at::<{ ETH_LEN + 16 }, _>(self);
        let port = le16_at::<{ ETH_LEN + IPV4_LEN + 2 }, _>(self);
        ServiceKey::of_ipv4_packet(vip, protocol, port)
    }

    #[inline(always)]
    fn bytes(&mut self) -> &mut [u8] {
        self
    }
}

impl Head for [u8; ipv6::COMMON_LEN] {
    type Address = Ipv6;

    #[inline(always)]
    fn client(&self) -> Ipv6 {
        ipv6_at::<{ ETH_LEN + 8 }, _>(self)
    }

    #[inline(always)]
    fn destination(&self) -> Ipv6 {
        ipv6_at::<{ ETH_LEN + 24 }, _>(self)
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        be32_at::<{ ETH_LEN + IPV6_LEN }, _>(self)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        u8_at::<{ ETH_LEN + IPV6_NEXT_HEADER }, _>(self)
    }

    #[inline(always)]
    fn ethernet(&self) -> u64 {
        le64_at::<0, _>(self)
    }

    #[inline(always)]
    fn service_key(&self, directory: Directory, protocol: u8) -> ServiceKey {
        let port = le16_at::<{ ETH_LEN + IPV6_LEN + 2 }, _>(self);
        ServiceKey::of_ipv6_packet(directory.fold(self.destination()), protocol, port)
    }

    #[inline(always)]
    fn bytes(&mut self) -> &mut [u8] {
        self
    }
}

/// How far a packet has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To its end.
    Done(Outcome),
    /// To a slot in transition, or to a service that records every flow: [`process_recorded`], and [`process_tracked`] where
    /// that gives up.
    Tracked(ServiceValue, Slot),
    /// Not far: nothing has happened, and more than is known here is left.
    Any,
}

/// Takes a packet the whole way, if it is short, and counts it once.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Way {
    let length = packet.len();
    if let Some(head) = packet.bytes_mut::<{ ipv4::COMMON_LEN }>(0)
        && let Some(protocol) = ipv4::common(head, length)
    {
        return forward(head, length, protocol, tables).unwrap_or(Way::Any);
    }
    if tables.features().has(Features::IPV6)
        && let Some(head) = packet.bytes_mut::<{ ipv6::COMMON_LEN }>(0)
        && let Some(protocol) = ipv6::common(head, length)
    {
        return forward(head, length, protocol, tables).unwrap_or(Way::Any);
    }
    Way::Any
}

/// Takes a packet that [`process`] has brought to a slot in transition, or to a service that records every flow, to its end,
/// and counts it once, if it goes on with a flow that is recorded at its home and on a backend that works. `None` of all
/// others, which [`process_tracked`] takes.
///
/// Nearly every packet of a recorded flow ends here, and waits for the one line of the flow table: how many others a processor
/// has begun with meanwhile is a question of how few instructions each has.
#[inline(always)]
pub fn process_recorded<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    service: ServiceValue,
) -> Option<Outcome> {
    // Both families' frames begin so, and are long enough: `process` has looked.
    let ethertype = be16_at::<ETH_TYPE, _>(packet.bytes::<{ ETH_LEN }>(0)?);
    if tables.features().has(Features::IPV6) && ethertype != ETHERTYPE_IPV4 {
        recorded::<{ ipv6::COMMON_LEN }, _, _>(packet, tables, service)
    } else {
        recorded::<{ ipv4::COMMON_LEN }, _, _>(packet, tables, service)
    }
}

#[inline(always)]
fn recorded<const N: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    service: ServiceValue,
) -> Option<Outcome>
where
    [u8; N]: Head,
{
    let features = tables.features();
    if features.has(Features::CLIENTS) && service.clients() {
        return None;
    }
    let head = packet.bytes::<N>(0)?;
    let (client, ports) = (head.client(), head.ports());
    let udp = head.protocol() == PROTO_UDP;
    let phase = if udp {
        match recorded_track(features, service) {
            Track::Always => Phase::Open,
            Track::Changes | Track::Quic => return None,
        }
    } else {
        let transport = ETH_LEN + <<[u8; N] as Head>::Address as Address>::HEADER_LEN;
        let [flags] = *packet.bytes::<1>(transport + TCP_FLAGS)?;
        match of_flags(flags) {
            Signal::Continues => Phase::Open,
            Signal::Closes => Phase::Closing,
            Signal::Resets => Phase::Ended,
            _ => return None,
        }
    };
    let key = FlowKey {
        client,
        ports,
        service: service.id(),
        udp,
    };
    let hash = key.hash(tables.control()?.seed());
    let (known, way) = flow::find_at_home(tables, key, hash)?;
    let number = known.backend();
    // A backend that drains is closed to new clients alone; its flows are what this is about.
    let backend = tables.backend(number).closed_to_new(false);
    if number == 0 || !features.has(Features::PICK) && backend.failed() {
        return None;
    }
    tables.note(Step::Recorded {
        flow: key.named(),
        backend: number,
    });
    if tables.records() {
        flow::renew(tables, way, known, phase);
    }
    let length = packet.len();
    let head = packet.bytes_mut::<N>(0)?;
    send_to_entry(head, length, tables, true, number, backend)
}

/// Takes a packet that [`process`] has brought to this slot to its end, and counts it once; `None`, and it is neither counted
/// nor changed, where more than is known here is left. Its flow may be recorded then: who looks for it once more finds it so.
#[inline(always)]
pub fn process_tracked<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    service: ServiceValue,
    slot: Slot,
) -> Option<Outcome> {
    let length = packet.len();
    if let Some(head) = packet.bytes_mut::<{ ipv4::COMMON_LEN }>(0)
        && let Some(protocol) = ipv4::common(head, length)
    {
        let (client, ports) = (head.client(), head.ports());
        let number = tracked(packet, tables, service, slot, client, ports, protocol)?;
        let head = packet.bytes_mut::<{ ipv4::COMMON_LEN }>(0)?;
        // A backend that drains is closed to new clients alone; its flows are what this is about.
        let backend = tables.backend(number).closed_to_new(false);
        return send_to_entry(head, length, tables, true, number, backend);
    }
    if tables.features().has(Features::IPV6)
        && let Some(head) = packet.bytes_mut::<{ ipv6::COMMON_LEN }>(0)
        && let Some(protocol) = ipv6::common(head, length)
    {
        let (client, ports) = (head.client(), head.ports());
        let number = tracked(packet, tables, service, slot, client, ports, protocol)?;
        let head = packet.bytes_mut::<{ ipv6::COMMON_LEN }>(0)?;
        // A backend that drains is closed to new clients alone; its flows are what this is about.
        let backend = tables.backend(number).closed_to_new(false);
        return send_to_entry(head, length, tables, true, number, backend);
    }
    None
}

#[inline(always)]
fn forward<H: Head, T: Tables>(
    head: &mut H,
    length: usize,
    protocol: u8,
    tables: &T,
) -> Option<Way> {
    let control = tables.control()?;
    let service = match service_of(tables, control, head, protocol) {
        Ok(service) => service,
        Err(Verdict::NotOurs) => {
            return Some(Way::Done(counted(tables, Err(Verdict::NotOurs))));
        }
        Err(_) => return None,
    };
    // Of a program with rare features the word is one that no frame begins with: so the others need not ask for them.
    let destination = shift_left_16(head.ethernet());
    if destination == tables.own(Own::Plain) {
        return place::<H, T, false>(head, length, service, tables, control);
    }
    if tables.features().has(Features::RARE) && tables.is_own(destination >> 16) {
        return place::<H, T, true>(head, length, service, tables, control);
    }
    None
}

/// Takes a packet of a service on from there. `RARE`: rare features may be in use. It is a constant, so that there is a way for
/// programs without them in which nothing asks for it.
#[inline(always)]
fn place<H: Head, T: Tables, const RARE: bool>(
    head: &mut H,
    length: usize,
    service: ServiceValue,
    tables: &T,
    control: &Control,
) -> Option<Way> {
    let client = head.client();
    if client.is_martian() || client == head.destination() {
        return None;
    }
    if RARE && tables.features().has(Features::SPREAD) && service.spreads() {
        return None;
    }
    let affinity = service.affinity();
    // Read where it is needed: not earlier than the index is worked out, if what picks is not a digest.
    let early = if H::Address::DIGESTED {
        control.seed()
    } else {
        Seed([0; 2])
    };
    let source = if affinity.ports {
        client.source(affinity, head.ports(), early)
    } else {
        cold_path();
        // Held: what takes no jump, the compiler would compute for both.
        client.held(tables).source(affinity, 0, early)
    };
    let seed = if H::Address::DIGESTED {
        early
    } else {
        control.seed()
    };
    let slot = slot_at(tables, service, source, seed).ok()?;
    if slot.in_transition() || RARE && is_always(tables.features(), service) {
        return Some(Way::Tracked(service, slot));
    }
    send_to(head, length, tables, RARE, slot.current()).map(Way::Done)
}

/// The backend of a packet whose flow is recorded: [`backend_of_flow`]. `None` where none takes it, and where the flow's client
/// is recorded as well, or a QUIC packet's first byte has to be looked at.
#[inline(always)]
fn tracked<A: Address, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    service: ServiceValue,
    slot: Slot,
    client: A,
    ports: u32,
    protocol: u8,
) -> Option<u16> {
    let features = tables.features();
    if features.has(Features::CLIENTS) && service.clients() {
        return None;
    }
    let udp = protocol == PROTO_UDP;
    let transport = ETH_LEN + A::HEADER_LEN;
    let signal = match recorded_track(features, service) {
        _ if !udp => {
            let [flags] = *packet.bytes::<1>(transport + TCP_FLAGS)?;
            of_flags(flags)
        }
        Track::Always => Signal::Unmarked,
        Track::Changes => Signal::Unknown,
        Track::Quic => return None,
    };
    let key = FlowKey {
        client,
        ports,
        service: service.id(),
        udp,
    };
    let seed = tables.control()?.seed();
    backend_of_flow(tables, slot, key, None, signal, seed).ok()
}

/// Whether every flow of the service is recorded.
#[inline(always)]
fn is_always(features: Features, service: ServiceValue) -> bool {
    features.has(Features::TRACK_ALWAYS) && service.track() == Track::Always
}

#[inline(always)]
fn send_to<H: Head, T: Tables>(
    head: &mut H,
    length: usize,
    tables: &T,
    rare: bool,
    number: u16,
) -> Option<Outcome> {
    send_to_entry(head, length, tables, rare, number, tables.backend(number))
}

/// [`send_to`], where the backend's entry is at hand.
#[inline(always)]
fn send_to_entry<H: Head, T: Tables>(
    head: &mut H,
    length: usize,
    tables: &T,
    rare: bool,
    number: u16,
    backend: Backend,
) -> Option<Outcome> {
    if rare && tables.features().has(Features::PICK) {
        return if number == 0 || backend.port() == Backend::LOCAL_PORT {
            None
        } else {
            Some(counted(tables, Err(Verdict::OtherNode)))
        };
    }
    if let Some((first, rest)) = tables.head_to(backend) {
        rewrite::head_in(head.bytes(), first, rest);
        tables.count_backend(number, length as u64);
        return Some(Outcome {
            verdict: Verdict::Forwarded,
            port: backend.port(),
        });
    }
    if backend.mac() == 0 {
        return None;
    }
    let egress = egress_of(tables, backend.port()).ok()?;
    // With a tag, or back out of the interface it came in on, as frames from one VLAN to another do.
    if egress.vlan != 0 || egress.device == tables.own_port() {
        return None;
    }
    rewrite::addresses_in(head.bytes(), backend.mac(), egress.mac);
    tables.count_backend(number, length as u64);
    Some(counted(
        tables,
        Ok(Outcome {
            verdict: Verdict::Redirected,
            port: egress.device,
        }),
    ))
}

/// The service of a packet: that of the port, or of all ports.
///
/// # Errors
/// [`Verdict::NotOurs`]; any other where it is the VIP's, but nothing known here.
#[inline(always)]
fn service_of<H: Head, T: Tables>(
    tables: &T,
    control: &Control,
    head: &H,
    protocol: u8,
) -> Result<ServiceValue, Verdict> {
    let vip = head.destination();
    if vip.is_none_of(NoVip(control.no_vip.get())) {
        return Err(Verdict::NotOurs);
    }
    let directory = Directory(control.directory.get());
    let key = head.service_key(directory, protocol);
    if let Some(service) = find(tables, directory, key, vip) {
        return Ok(service);
    }
    // Read again: it need not be kept meanwhile, and one that the controller has put in its place is as good.
    let directory = Directory(control.directory.get());
    let Some(entry) = lookup(tables, directory, vip, 0, 0) else {
        return Err(Verdict::NotOurs);
    };
    if !entry.has_any_port() || head.ports() as u16 == 0 {
        return Err(Verdict::Unserved);
    }
    match lookup(tables, directory, vip, protocol, 0) {
        // The VIP's own entry, which is no service, is that of protocol 0.
        Some(service) if !service.is_for_fragments() && !service.has_any_port() => Ok(service),
        _ => Err(Verdict::Unserved),
    }
}
