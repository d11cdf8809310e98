//! The whole path of a packet: the same function in the kernel, in the tests and in `where`.

use crate::abi::{AREA, Control, Port};
use crate::address::{Address, Ipv6};
use crate::cluster;
use crate::features::Features;
use crate::fence;
use crate::flow::FlowKey;
use crate::fragment::{self, FragmentKey};
use crate::hash::{self, Seed};
use crate::hot::{self, HotState};
use crate::icmp::{self, Message};
use crate::packet::Packet;
use crate::parse::{self, Flow, Fragment, Icmp, Ip, Link, Part, Unfit, ipv4, ipv6};
use crate::pick::{Affinity, Backend, Slot};
use crate::service::{Directory, ServiceValue, Track, lookup};
use crate::settled::Way;
use crate::tables::{Step, Tables};
use crate::transition::{backend_of_flow, has_failed};
use crate::verdict::Verdict;
use crate::wire::{
    ETHERTYPE_ARP, ETHERTYPE_CLUSTER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP,
};
use crate::{arp, ndp, rewrite, settled, vlan};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict, counted already.
    pub verdict: Verdict,
    /// The interface to leave through; only means something for [`Verdict::Redirected`].
    pub port: u16,
}

/// A backend of a packet, and the frame it is in.
#[derive(Clone, Copy, Debug)]
struct Picked {
    number: u16,
    link: Link,
}

/// Takes one packet the whole way and counts it once.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    let done = match settled::process(packet, tables) {
        Way::Done(outcome) => Some(outcome),
        Way::Tracked(service, slot) => settled::process_recorded(packet, tables, service)
            .or_else(|| settled::process_tracked(packet, tables, service, slot)),
        Way::Any => None,
    };
    match done {
        Some(outcome) => outcome,
        None => process_any(packet, tables),
    }
}

/// The same for a packet of any kind: what [`settled::process`] leaves, and what it would say of the others.
#[inline(always)]
pub fn process_any<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    let outcome = forward(packet, tables);
    counted(tables, outcome)
}

/// What became of a packet, counted.
#[inline(always)]
pub(crate) fn counted<T: Tables>(tables: &T, outcome: Result<Outcome, Verdict>) -> Outcome {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(verdict) => Outcome { verdict, port: 0 },
    };
    // The hot path has one counter: what is left of the backends' counters was forwarded.
    if !matches!(outcome.verdict, Verdict::Forwarded) {
        tables.count_verdict(outcome.verdict);
    }
    outcome
}

/// What became of a packet for a backend, or why it goes to none.
#[inline(always)]
fn forward<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Outcome, Verdict> {
    let features = tables.features();
    // One family after the other, instead of a frame that is one of many things: what has not been read of one kind of packet
    // would still be carried along for the others, and the verifier takes no register that nobody has written.
    let (link, ethertype) = parse::link(packet, features)?;
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let picked = match ethertype {
        ETHERTYPE_IPV4 => {
            let flow = match ipv4::parse(packet, link)? {
                Ip::Flow(flow) => flow,
                Ip::Icmp(icmp) => about4(packet, tables, control, &icmp)?,
                Ip::Fragment(later) => {
                    return later_fragment(packet, tables, control, &later);
                }
                Ip::Unfit(unfit) => return Err(unfit_for(tables, control, &unfit)),
            };
            pick(packet, tables, control, &flow)?
        }
        ETHERTYPE_IPV6 if features.has(Features::IPV6) => {
            let flow = match ipv6::parse(packet, link)? {
                Ip::Flow(flow) => flow,
                Ip::Icmp(icmp) => about6(packet, tables, control, &icmp)?,
                Ip::Fragment(later) => {
                    return later_fragment(packet, tables, control, &later);
                }
                Ip::Unfit(unfit) => return Err(unfit_for(tables, control, &unfit)),
            };
            pick(packet, tables, control, &flow)?
        }
        ETHERTYPE_ARP => return Err(arp::answer(packet, tables, &link)),
        ETHERTYPE_CLUSTER if features.has(Features::PICK) => {
            return Err(cluster::take(packet, tables, &link));
        }
        _ => return Err(Verdict::OtherEthertype),
    };
    send_to(packet, tables, &picked)
}

/// What is said of a packet that can't be balanced.
#[inline(always)]
fn unfit_for<A: Address, T: Tables>(tables: &T, control: &Control, unfit: &Unfit<A>) -> Verdict {
    match own_vip(tables, control, unfit.destination, &unfit.link) {
        Ok(()) => unfit.verdict,
        Err(verdict) => verdict,
    }
}

/// Whether the destination is a VIP, and the frame for this host.
#[inline(always)]
fn own_vip<A: Address, T: Tables>(
    tables: &T,
    control: &Control,
    destination: A,
    link: &Link,
) -> Result<(), Verdict> {
    let directory = Directory(control.directory.get());
    if lookup(tables, directory, destination, 0, 0).is_none() {
        Err(Verdict::NotOurs)
    } else if !tables.is_own(link.destination) {
        Err(Verdict::OtherHost)
    } else {
        Ok(())
    }
}

/// The flow that an ICMP message is about; an echo request is answered.
#[inline(always)]
fn about4<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    icmp: &Icmp<u32>,
) -> Result<Flow<u32>, Verdict> {
    own_vip(tables, control, icmp.destination, &icmp.link)?;
    from_somebody(icmp.client, icmp.destination)?;
    match icmp::read4(packet, icmp)? {
        Message::About(flow) => Ok(flow),
        Message::Echo => Err(icmp::answer4(packet, icmp, tables.own_mac())?),
    }
}

/// Likewise over IPv6; a neighbour solicitation is answered as well.
#[inline(always)]
fn about6<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    icmp: &Icmp<Ipv6>,
) -> Result<Flow<Ipv6>, Verdict> {
    if icmp::is_solicitation(packet, icmp) {
        return Err(ndp::answer(packet, tables, icmp));
    }
    own_vip(tables, control, icmp.destination, &icmp.link)?;
    from_somebody(icmp.client, icmp.destination)?;
    match icmp::read6(packet, icmp)? {
        Message::About(flow) => Ok(flow),
        Message::Echo => Err(icmp::answer6(packet, icmp, tables.own_mac())?),
    }
}

/// Nobody may be answered at a group's address, at one that stays within a host, or at the VIP itself ("land").
#[inline(always)]
fn from_somebody<A: Address>(client: A, vip: A) -> Result<(), Verdict> {
    if client.is_martian() || client == vip {
        Err(Verdict::MartianSource)
    } else {
        Ok(())
    }
}

/// The backend of a flow's packet.
#[inline(always)]
fn pick<P: Packet, T: Tables, A: Address>(
    packet: &P,
    tables: &T,
    control: &Control,
    flow: &Flow<A>,
) -> Result<Picked, Verdict> {
    let features = tables.features();
    if !features.has(Features::FRAGMENTS) && matches!(flow.part, Part::FirstFragment(_)) {
        return Err(unfit_for(
            tables,
            control,
            &Unfit {
                link: flow.link,
                destination: flow.destination,
                verdict: Verdict::Fragment,
            },
        ));
    }
    let service = service_of(tables, Directory(control.directory.get()), flow)?;
    if !tables.is_own(flow.link.destination) {
        return Err(Verdict::OtherHost);
    }
    from_somebody(flow.client, flow.destination)?;

    let seed = control.seed();
    let client = flow.client.held(tables);
    let Place {
        slot,
        in_transition,
        ..
    } = place_of(tables, service, client, flow.ports, control)?;
    let always = features.has(Features::TRACK_ALWAYS) && service.track() == Track::Always;
    let number = if in_transition || always {
        let track = recorded_track(features, service);
        let signal = parse::signal(packet, flow, track)?;
        let udp = flow.protocol == PROTO_UDP;
        let key = FlowKey {
            client,
            ports: flow.ports,
            service: service.id(),
            udp,
        };
        let of_client = if features.has(Features::CLIENTS) && service.clients() && in_transition {
            Some(FlowKey {
                client: client.network(service.affinity().prefix),
                ports: 0,
                service: service.id(),
                // A client's record serves all its flows.
                udp: false,
            })
        } else {
            None
        };
        backend_of_flow(tables, slot, key, of_client, signal, seed)?
    } else {
        slot.current()
    };
    if number == 0 {
        return Err(Verdict::NoBackend);
    }
    if features.has(Features::FRAGMENTS)
        && let Part::FirstFragment(identification) = flow.part
    {
        let key = FragmentKey::new(
            client,
            flow.destination,
            flow.protocol,
            identification,
            seed,
        );
        fragment::record(tables, key, seed, number);
    }
    Ok(Picked {
        number,
        link: flow.link,
    })
}

/// How a service's flows are recorded, as far as the configuration uses it.
#[inline(always)]
pub(crate) fn recorded_track(features: Features, service: ServiceValue) -> Track {
    match service.track() {
        Track::Always if features.has(Features::TRACK_ALWAYS) => Track::Always,
        Track::Quic if features.has(Features::QUIC) => Track::Quic,
        _ => Track::Changes,
    }
}

/// Where a flow's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The slot, or what stands for it.
    pub slot: Slot,
    /// Whether the flow table decides.
    pub in_transition: bool,
    /// Whether the source is hot, or was until lately.
    pub hot: bool,
}

impl Place {
    const IN_TRANSITION: u64 = 1 << 32;
    const HOT: u64 = 1 << 33;
    const NOWHERE: u64 = 1 << 34;

    /// What [`Self::from_number`] takes.
    #[inline(always)]
    #[must_use]
    pub const fn number(place: Result<Self, Verdict>) -> u64 {
        match place {
            Ok(place) => {
                place.slot.0 as u64
                    | (place.in_transition as u64) << Self::IN_TRANSITION.ilog2()
                    | (place.hot as u64) << Self::HOT.ilog2()
            }
            Err(_) => Self::NOWHERE,
        }
    }

    /// The place of this number.
    ///
    /// # Errors
    /// [`Verdict::Inconsistent`] where the maps do not fit together.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Result<Self, Verdict> {
        if number & Self::NOWHERE != 0 {
            return Err(Verdict::Inconsistent);
        }
        Ok(Self {
            slot: Slot(number as u32),
            in_transition: number & Self::IN_TRANSITION != 0,
            hot: number & Self::HOT != 0,
        })
    }
}

/// The slot of a flow, or what stands for it where its source is hot.
///
/// # Errors
/// [`Verdict::Inconsistent`] where the maps do not fit together.
#[inline(always)]
pub fn place_of<A: Address, T: Tables>(
    tables: &T,
    service: ServiceValue,
    client: A,
    ports: u32,
    control: &Control,
) -> Result<Place, Verdict> {
    if tables.features().has(Features::SPREAD) && service.spreads() {
        return Place::from_number(A::place_of_any(tables, service, client, ports));
    }
    let affinity = service.affinity();
    let slot = slot_of(tables, service, affinity, client, ports, control)?;
    Ok(Place {
        slot,
        in_transition: slot.in_transition(),
        hot: false,
    })
}

/// The place of a flow whose source may be hot: [`Place::number`]. The source is sampled on the way.
#[inline(always)]
pub fn place_of_any<A: Address, T: Tables>(
    tables: &T,
    service: ServiceValue,
    client: A,
    ports: u32,
) -> u64 {
    Place::number(place_in_tables(tables, service, client, ports))
}

#[inline(always)]
fn place_in_tables<A: Address, T: Tables>(
    tables: &T,
    service: ServiceValue,
    client: A,
    ports: u32,
) -> Result<Place, Verdict> {
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let network = client.network(service.affinity().prefix);
    hot::sample(tables, service.id(), network);
    let state = hot::find(tables, service.id(), network, control.seed());
    if state != HotState::COLD {
        let source = network.addr();
        tables.note(Step::Hot { source, state });
    }
    let slot = |spread| {
        let affinity = if spread { A::NONE } else { service.affinity() };
        slot_of(tables, service, affinity, client, ports, control)
    };
    let now = slot(state.spreads())?;
    if !state.in_transition() {
        return Ok(Place {
            slot: now,
            in_transition: now.in_transition(),
            hot: state != HotState::COLD,
        });
    }
    let slot = hot::joined(now, slot(state.spread_before())?);
    tables.note(Step::HotSlot { slot });
    Ok(Place {
        slot,
        in_transition: true,
        hot: true,
    })
}

/// The slot that a source picks.
#[inline(always)]
pub(crate) fn slot_of<A: Address, T: Tables>(
    tables: &T,
    service: ServiceValue,
    affinity: Affinity,
    client: A,
    ports: u32,
    control: &Control,
) -> Result<Slot, Verdict> {
    let seed = control.seed();
    slot_at(tables, service, client.source(affinity, ports, seed), seed)
}

/// The slot of the part of a packet that picks.
#[inline(always)]
pub(crate) fn slot_at<T: Tables>(
    tables: &T,
    service: ServiceValue,
    source: u64,
    seed: Seed,
) -> Result<Slot, Verdict> {
    tables.note(Step::Hash {
        source,
        hash: hash::mix(source, seed),
    });
    let index = service.index(hash::mix_top(source, seed));
    let at = service.offset() + index;
    let slot = match tables.area(at / AREA) {
        Some(0) => tables.slot(at).ok_or(Verdict::Inconsistent)?,
        Some(backend) => Slot::settled(backend),
        None => return Err(Verdict::Inconsistent),
    };
    tables.note(Step::Slot { index, slot });
    Ok(slot)
}

/// The service of a flow's destination.
#[inline(always)]
fn service_of<A: Address, T: Tables>(
    tables: &T,
    directory: Directory,
    flow: &Flow<A>,
) -> Result<ServiceValue, Verdict> {
    let (vip, protocol, port) = (flow.destination, flow.protocol, flow.service_port());
    let note = |port, found| {
        tables.note(Step::Service {
            vip: vip.addr(),
            protocol,
            port,
            found,
        });
    };
    // Port 0 is no service's: it is how the lookup writes "any port".
    if port != 0
        && let Some(service) = lookup(tables, directory, vip, protocol, port)
    {
        note(port, Some(service));
        return Ok(service);
    }
    let Some(entry) = lookup(tables, directory, vip, 0, 0) else {
        note(port, None);
        return Err(Verdict::NotOurs);
    };
    if entry.has_any_port()
        && port != 0
        && let Some(service) = lookup(tables, directory, vip, protocol, 0)
        && !service.is_for_fragments()
    {
        note(0, Some(service));
        return Ok(service);
    }
    note(port, None);
    // What is on its way to another host is not ours to drop, served here or not.
    Err(if !tables.is_own(flow.link.destination) {
        Verdict::OtherHost
    } else if tables.unserved_pass() {
        Verdict::UnservedPassed
    } else {
        Verdict::Unserved
    })
}

/// A fragment without ports: after its first one, or where the pick needs no ports.
#[inline(always)]
fn later_fragment<P: Packet, T: Tables, A: Address>(
    packet: &mut P,
    tables: &T,
    control: &Control,
    fragment: &Fragment<A>,
) -> Result<Outcome, Verdict> {
    own_vip(tables, control, fragment.destination, &fragment.link)?;
    if !tables.features().has(Features::FRAGMENTS) {
        return Err(Verdict::Fragment);
    }
    from_somebody(fragment.client, fragment.destination)?;
    let client = fragment.client.held(tables);
    let seed = control.seed();
    let key = FragmentKey::new(
        client,
        fragment.destination,
        fragment.protocol,
        fragment.identification,
        seed,
    );
    let number = match fragment::find(tables, key, seed) {
        Some(backend) if has_failed(tables, backend) => return Err(Verdict::Fragment),
        Some(backend) => {
            tables.note(Step::Fragment { backend });
            backend
        }
        None => alone(tables, control, fragment, client)?,
    };
    send_to(
        packet,
        tables,
        &Picked {
            number,
            link: fragment.link,
        },
    )
}

/// The backend of a later fragment that came before its first one: known where all ports of the protocol share a pick that
/// leaves the ports out, and where no record could name another backend.
#[inline(always)]
fn alone<A: Address, T: Tables>(
    tables: &T,
    control: &Control,
    fragment: &Fragment<A>,
    client: A,
) -> Result<u16, Verdict> {
    let directory = Directory(control.directory.get());
    let service = lookup(
        tables,
        directory,
        fragment.destination,
        fragment.protocol,
        0,
    )
    .ok_or(Verdict::Fragment)?;
    // A single port of the protocol that is another service's may be the packet's.
    if !service.serves_fragments()
        || service.affinity().ports
        || recorded_track(tables.features(), service) == Track::Always
    {
        return Err(Verdict::Fragment);
    }
    if tables.features().has(Features::SPREAD) && service.spreads() {
        // A hot source's pick needs the ports.
        return Err(Verdict::Fragment);
    }
    let affinity = service.affinity();
    let slot = slot_of(tables, service, affinity, client, 0, control)?;
    // Of UDP that is not QUIC no flow is recorded: it goes to the new pick at once, unless its client is recorded.
    let unrecorded = fragment.protocol != PROTO_TCP
        && recorded_track(tables.features(), service) == Track::Changes
        && !(tables.features().has(Features::CLIENTS) && service.clients());
    if slot.in_transition() && !unrecorded {
        return Err(Verdict::Fragment);
    }
    tables.note(Step::FragmentAlone);
    if slot.current() == 0 {
        return Err(Verdict::NoBackend);
    }
    Ok(slot.current())
}

/// Backend, rewrite, count; the interface to leave through.
#[inline(always)]
fn send_to<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    picked: &Picked,
) -> Result<Outcome, Verdict> {
    let number = picked.number;
    let features = tables.features();
    let backend = tables.backend(number);
    tables.note(Step::Backend { number, backend });
    let port = backend.port();
    let length = packet.len() as u64;
    if features.has(Features::LOCAL) && port == Backend::LOCAL_PORT {
        if features.has(Features::PICK) && fence::is_fenced(tables, number) {
            tables.note(Step::Fenced);
            return Err(Verdict::Fenced);
        }
        if picked.link.destination != tables.own_mac() {
            // The host's own stack takes nothing that is addressed to a cluster.
            rewrite::destination(packet, tables.own_mac())?;
        }
        tables.count_backend(number, length);
        return Ok(Outcome {
            verdict: Verdict::Local,
            port,
        });
    }
    if features.has(Features::PICK) {
        return Err(Verdict::OtherNode);
    }
    if backend.mac() == 0 {
        return Err(Verdict::NoNeighbour);
    }
    let egress = egress_of(tables, port)?;
    if features.has(Features::VLAN) {
        vlan::set(packet, &picked.link, egress.vlan)?;
    }
    rewrite::ethernet(packet, backend.mac(), egress.mac)?;
    tables.count_backend(number, length);
    Ok(sent(tables, egress.device))
}

/// The way out of the director.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Egress {
    /// The source MAC address, as [`crate::wire::mac_word`].
    pub(crate) mac: u64,
    /// The port number of the interface.
    pub(crate) device: u16,
    /// The VLAN; 0 for none.
    pub(crate) vlan: u16,
}

/// The way out through a port.
#[inline(always)]
pub(crate) fn egress_of<T: Tables>(tables: &T, port: u16) -> Result<Egress, Verdict> {
    if port == tables.own_port() {
        return Ok(Egress {
            mac: tables.own_mac(),
            device: port,
            vlan: 0,
        });
    }
    let Port {
        mac,
        ifindex,
        vlan,
        device,
    } = tables.port(port).ok_or(Verdict::Inconsistent)?;
    if ifindex == 0 {
        return Err(Verdict::Inconsistent);
    }
    Ok(Egress { mac, device, vlan })
}

/// A packet that leaves through this interface.
#[inline(always)]
fn sent<T: Tables>(tables: &T, device: u16) -> Outcome {
    Outcome {
        verdict: if device == tables.own_port() {
            Verdict::Forwarded
        } else {
            Verdict::Redirected
        },
        port: device,
    }
}
