//! The whole path of a packet: the same function in the kernel, in the tests and in `where`.

use crate::abi::Control;
use crate::address::{Address, Ipv6};
use crate::features::Features;
use crate::flow::FlowKey;
use crate::fragment::{self, FragmentKey};
use crate::icmp::{self, Message};
use crate::packet::Packet;
use crate::parse::{self, Flow, Fragment, Frame, Icmp, Ip, Link, Part, Unfit};
use crate::pick::{self, Backend, Slot};
use crate::service::{Directory, ServiceValue, Track, lookup};
use crate::tables::{Step, Tables};
use crate::transition::{backend_of_flow, has_failed};
use crate::verdict::Verdict;
use crate::wire::{PROTO_TCP, PROTO_UDP};
use crate::{arp, ndp, rewrite, vlan};

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
    let outcome = match forward(packet, tables) {
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
    let frame = parse::parse(packet, tables.features())?;
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let picked = match frame {
        Frame::V4(ip) => {
            let flow = match ip {
                Ip::Flow(flow) => flow,
                Ip::Icmp(icmp) => about4(packet, tables, control, &icmp)?,
                Ip::Fragment(later) => {
                    return later_fragment(packet, tables, control, &later);
                }
                Ip::Unfit(unfit) => return Err(unfit_for(tables, control, &unfit)),
            };
            pick(packet, tables, control, &flow)?
        }
        Frame::V6(ip) => {
            let flow = match ip {
                Ip::Flow(flow) => flow,
                Ip::Icmp(icmp) => about6(packet, tables, control, &icmp)?,
                Ip::Fragment(later) => {
                    return later_fragment(packet, tables, control, &later);
                }
                Ip::Unfit(unfit) => return Err(unfit_for(tables, control, &unfit)),
            };
            pick(packet, tables, control, &flow)?
        }
        Frame::Arp(link) => return Err(arp::answer(packet, tables, &link)),
        Frame::Other => return Err(Verdict::OtherEthertype),
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
    let slot = slot_of(tables, service, flow.client, flow.ports, control)?;
    let always = features.has(Features::TRACK_ALWAYS) && service.track() == Track::Always;
    let number = if slot.in_transition() || always {
        let track = recorded_track(features, service);
        let signal = parse::signal(packet, flow, track)?;
        let udp = flow.protocol == PROTO_UDP;
        let key = FlowKey {
            client: flow.client,
            ports: flow.ports,
            service: service.id(),
            udp,
        };
        let client = if features.has(Features::CLIENTS) && service.clients() && slot.in_transition()
        {
            Some(FlowKey {
                client: flow.client.network(service.affinity().prefix),
                ports: 0,
                service: service.id(),
                // A client's record serves all its flows.
                udp: false,
            })
        } else {
            None
        };
        backend_of_flow(tables, slot, key, client, signal, seed)?
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
            flow.client,
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
fn recorded_track(features: Features, service: ServiceValue) -> Track {
    match service.track() {
        Track::Always if features.has(Features::TRACK_ALWAYS) => Track::Always,
        Track::Quic if features.has(Features::QUIC) => Track::Quic,
        _ => Track::Changes,
    }
}

/// The slot that a source picks.
#[inline(always)]
fn slot_of<A: Address, T: Tables>(
    tables: &T,
    service: ServiceValue,
    client: A,
    ports: u32,
    control: &Control,
) -> Result<Slot, Verdict> {
    let seed = control.seed();
    let source = client.source(service.affinity(), ports, seed);
    let hash = crate::hash::mix(source, seed);
    tables.note(Step::Hash { source, hash });
    let index = pick::slot_index(hash, service.bits());
    let slot = tables
        .slot(service.offset() + index)
        .ok_or(Verdict::Inconsistent)?;
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
    let seed = control.seed();
    let key = FragmentKey::new(
        fragment.client,
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
        None => alone(tables, control, fragment)?,
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
    let slot = slot_of(tables, service, fragment.client, 0, control)?;
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
    let backend: Backend = tables.backend(number).ok_or(Verdict::Inconsistent)?;
    tables.note(Step::Backend { number, backend });
    let port = backend.port();
    let length = packet.len() as u64;
    if features.has(Features::LOCAL) && port == Backend::LOCAL_PORT {
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
    let (source, device, tag) = if port == tables.own_port() {
        (tables.own_mac(), port, 0)
    } else {
        let egress = tables.port(port).ok_or(Verdict::Inconsistent)?;
        if egress.ifindex == 0 {
            return Err(Verdict::Inconsistent);
        }
        (egress.mac, egress.device, egress.vlan)
    };
    if features.has(Features::VLAN) {
        vlan::set(packet, &picked.link, tag)?;
    }
    rewrite::ethernet(packet, backend.mac(), source)?;
    tables.count_backend(number, length);
    Ok(Outcome {
        verdict: if device == tables.own_port() {
            Verdict::Forwarded
        } else {
            Verdict::Redirected
        },
        port: device,
    })
}
