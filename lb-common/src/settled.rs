//! The hot path: a TCP or UDP packet without anything rare about it, to a settled slot.
//!
//! It says what [`crate::forward`] says, with the same parts where it can, and has touched nothing when it finds that
//! something rare is left. What it leaves to the others is a function of its own in the kernel: next to code that needs every
//! register, the compiler would keep what the hot path has in memory.
//!
//! A lookup is a call to the compiler, and takes all registers but four; so what a packet says is read where it is needed,
//! again where that is behind a lookup.

use crate::abi::Control;
use crate::address::{Address, Ipv6};
use crate::features::Features;
use crate::forward::{Outcome, counted, egress_of, slot_of};
use crate::packet::Packet;
use crate::parse::{ipv4, ipv6};
use crate::pick::Backend;
use crate::rewrite;
use crate::service::{Directory, NoVip, ServiceValue, Track, lookup};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, MAC_MASK, be32_at, ipv6_at, le64_at};

/// What is looked at once for all of them: of a configuration without these, nothing is left of it.
const RARE: Features = Features::SPREAD
    .with(Features::TRACK_ALWAYS)
    .with(Features::PICK);

/// The beginning of a whole TCP or UDP packet, as far as the ports.
trait Head {
    type Address: Address;

    fn client(&self) -> Self::Address;
    fn destination(&self) -> Self::Address;
    fn ports(&self) -> u32;
    fn eth_destination(&self) -> u64;
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
    fn eth_destination(&self) -> u64 {
        le64_at::<0, _>(self) & MAC_MASK
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
    fn eth_destination(&self) -> u64 {
        le64_at::<0, _>(self) & MAC_MASK
    }

    #[inline(always)]
    fn bytes(&mut self) -> &mut [u8] {
        self
    }
}

/// Takes a packet the whole way, counts it once and says what became of it; `None`, and nothing has happened, where that is
/// more than is known here.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Option<Outcome> {
    let length = packet.len();
    if let Some(head) = packet.bytes_mut(0)
        && let Some(protocol) = ipv4::common(head, length)
    {
        return forward(head, length, protocol, tables);
    }
    if tables.features().has(Features::IPV6)
        && let Some(head) = packet.bytes_mut(0)
        && let Some(protocol) = ipv6::common(head, length)
    {
        return forward(head, length, protocol, tables);
    }
    None
}

#[inline(always)]
fn forward<H: Head, T: Tables>(
    head: &mut H,
    length: usize,
    protocol: u8,
    tables: &T,
) -> Option<Outcome> {
    let control = tables.control()?;
    let service = match service_of(tables, control, head, protocol) {
        Ok(service) => service,
        Err(Verdict::NotOurs) => return Some(counted(tables, Err(Verdict::NotOurs))),
        Err(_) => return None,
    };
    let client = head.client();
    if !tables.is_own(head.eth_destination()) || client.is_martian() || client == head.destination()
    {
        return None;
    }
    let rare = tables.features().has(RARE);
    if rare && is_rare(tables.features(), service) {
        return None;
    }
    let affinity = service.affinity();
    let slot = slot_of(tables, service, affinity, client, head.ports(), control).ok()?;
    // Neither in transition nor without a backend.
    let number = u16::try_from(slot.0).ok().filter(|number| *number != 0)?;
    let backend = tables.backend(number)?;
    if rare && tables.features().has(Features::PICK) {
        return if backend.port() == Backend::LOCAL_PORT {
            None
        } else {
            Some(counted(tables, Err(Verdict::OtherNode)))
        };
    }
    if backend.mac() == 0 {
        return None;
    }
    if backend.port() == tables.own_port() {
        rewrite::addresses_in(head.bytes(), backend.mac(), tables.own_mac());
        tables.count_backend(number, length as u64);
        return Some(Outcome {
            verdict: Verdict::Forwarded,
            port: backend.port(),
        });
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

/// Whether a service's flows are recorded whatever their slots are, or its sources may be spread.
#[inline(always)]
fn is_rare(features: Features, service: ServiceValue) -> bool {
    features.has(Features::SPREAD) && service.spreads()
        || features.has(Features::TRACK_ALWAYS) && service.track() == Track::Always
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
    let port = head.ports() as u16;
    if port == 0 {
        return Err(Verdict::Unserved);
    }
    if let Some(service) = lookup(tables, directory, vip, protocol, port) {
        return Ok(service);
    }
    // The same directory, but nothing that was computed of it: that would have to be kept over the lookup.
    let directory = Directory(tables.held(directory.0));
    let vip = head.destination();
    let Some(entry) = lookup(tables, directory, vip, 0, 0) else {
        return Err(Verdict::NotOurs);
    };
    if !entry.has_any_port() {
        return Err(Verdict::Unserved);
    }
    let vip = head.destination();
    match lookup(tables, directory, vip, protocol, 0) {
        Some(service) if !service.is_for_fragments() => Ok(service),
        _ => Err(Verdict::Unserved),
    }
}
