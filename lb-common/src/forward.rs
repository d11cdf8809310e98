//! The whole path of a packet: the same function in the kernel, in the tests and in `where`.

use crate::flow::FlowKey;
use crate::icmp::{self, Message};
use crate::packet::Packet;
use crate::parse::{self, Frame, Icmpv4, Ipv4Flow};
use crate::pick::{self, Backend};
use crate::service::{Directory, ServiceKey, ServiceValue, find};
use crate::tables::{Step, Tables};
use crate::transition::backend_in_transition;
use crate::verdict::Verdict;
use crate::{arp, rewrite};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict, counted already.
    pub verdict: Verdict,
    /// The port to leave through; only means something for [`Verdict::Redirected`].
    pub port: u16,
}

/// Takes one packet the whole way and counts it once.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Outcome {
    match forward(packet, tables) {
        Ok(port) if port == tables.own_port() => Outcome {
            verdict: Verdict::Forwarded,
            port,
        },
        Ok(port) => {
            // Off the hot path of one interface; what is left of the backends' counters was forwarded.
            tables.count_verdict(Verdict::Redirected);
            Outcome {
                verdict: Verdict::Redirected,
                port,
            }
        }
        Err(verdict) => {
            tables.count_verdict(verdict);
            Outcome { verdict, port: 0 }
        }
    }
}

/// The port that a packet for a backend leaves through, or why it goes to none.
#[inline(always)]
fn forward<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<u16, Verdict> {
    match parse::parse(packet)? {
        Frame::Ipv4(flow) => forward_ipv4(packet, tables, &flow),
        Frame::Ipv4Unfit {
            eth_destination,
            destination,
            verdict,
        } => Err(if !is_vip(tables, destination)? {
            Verdict::NotOurs
        } else if eth_destination != tables.own_mac() {
            Verdict::OtherHost
        } else {
            verdict
        }),
        Frame::Icmpv4(message) => forward_icmpv4(packet, tables, &message),
        Frame::Arp => Err(arp::answer(packet, tables)),
        Frame::Other => Err(Verdict::OtherEthertype),
    }
}

/// ICMP: to the backend of the flow it is about, or answered.
#[inline(always)]
fn forward_icmpv4<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    message: &Icmpv4,
) -> Result<u16, Verdict> {
    if !is_vip(tables, message.destination)? {
        return Err(Verdict::NotOurs);
    }
    if message.eth_destination != tables.own_mac() {
        return Err(Verdict::OtherHost);
    }
    match icmp::read(packet, message)? {
        Message::About(flow) => forward_ipv4(packet, tables, &flow),
        Message::Echo => {
            Err(icmp::answer(packet, message, tables.own_mac()).unwrap_or_else(|verdict| verdict))
        }
    }
}

#[inline(always)]
fn is_vip<T: Tables>(tables: &T, address: u32) -> Result<bool, Verdict> {
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let directory = Directory(control.directory.get());
    Ok(find(tables, directory, ServiceKey::ipv4_vip(address)).is_some())
}

#[inline(always)]
fn forward_ipv4<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    flow: &Ipv4Flow,
) -> Result<u16, Verdict> {
    let control = tables.control().ok_or(Verdict::Inconsistent)?;
    let service = service_ipv4(tables, Directory(control.directory.get()), flow)?;
    if flow.eth_destination != tables.own_mac() {
        return Err(Verdict::OtherHost);
    }

    let seed = control.seed();
    let source = service.affinity().source_ipv4(flow.client, flow.ports);
    let hash = crate::hash::mix(source, seed);
    tables.note(Step::Hash { source, hash });

    let index = pick::slot_index(hash, service.bits());
    let slot = tables
        .slot(service.offset() + index)
        .ok_or(Verdict::Inconsistent)?;
    tables.note(Step::Slot { index, slot });

    let number = if slot.in_transition() {
        let signal = parse::signal(packet, flow)?;
        let key = FlowKey::ipv4(flow.client, flow.ports, service.id());
        backend_in_transition(tables, slot, key, signal, seed)?
    } else {
        slot.current()
    };
    if number == 0 {
        return Err(Verdict::NoBackend);
    }
    send_to(packet, tables, number)
}

/// The service of a flow's destination.
#[inline(always)]
fn service_ipv4<T: Tables>(
    tables: &T,
    directory: Directory,
    flow: &Ipv4Flow,
) -> Result<ServiceValue, Verdict> {
    let key = ServiceKey::ipv4(flow.destination, flow.protocol, flow.service_port());
    // Port 0 is no service's: it is how the lookup writes "any port".
    if flow.service_port() != 0
        && let Some(service) = find(tables, directory, key)
    {
        tables.note(Step::Service {
            key,
            found: Some(service),
        });
        return Ok(service);
    }
    let Some(vip) = find(tables, directory, ServiceKey::ipv4_vip(flow.destination)) else {
        tables.note(Step::Service { key, found: None });
        return Err(Verdict::NotOurs);
    };
    if vip.has_any_port() && flow.service_port() != 0 {
        let key = ServiceKey::ipv4_any_port(flow.destination, flow.protocol);
        if let Some(service) = find(tables, directory, key) {
            tables.note(Step::Service {
                key,
                found: Some(service),
            });
            return Ok(service);
        }
    }
    tables.note(Step::Service { key, found: None });
    // What is on its way to another host is not ours to drop, served here or not.
    Err(if flow.eth_destination != tables.own_mac() {
        Verdict::OtherHost
    } else if tables.unserved_pass() {
        Verdict::UnservedPassed
    } else {
        Verdict::Unserved
    })
}

/// Backend, rewrite, count; the port to leave through.
#[inline(always)]
fn send_to<P: Packet, T: Tables>(packet: &mut P, tables: &T, number: u16) -> Result<u16, Verdict> {
    let backend: Backend = tables.backend(number).ok_or(Verdict::Inconsistent)?;
    tables.note(Step::Backend { number, backend });
    if backend.mac() == 0 {
        return Err(Verdict::NoNeighbour);
    }
    let port = backend.port();
    let source = if port == tables.own_port() {
        tables.own_mac()
    } else {
        let egress = tables.port(port).ok_or(Verdict::Inconsistent)?;
        if egress.ifindex == 0 {
            return Err(Verdict::Inconsistent);
        }
        egress.mac
    };
    rewrite::ethernet(packet, backend.mac(), source)?;
    tables.count_backend(number, packet.len() as u64);
    Ok(port)
}
