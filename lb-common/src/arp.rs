//! The answer to an ARP request for a VIP: the program gives it itself, so the VIP is assigned to no interface.

use crate::packet::Packet;
use crate::parse::Link;
use crate::rewrite;
use crate::service::{Directory, lookup};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{ARP_LEN, be16_at, be32_at, le64_at, mac_bytes};

/// Ethernet, IPv4, address lengths 6 and 4 (RFC 826), as one word in the order of the wire.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
/// Operation: request.
const REQUEST: u16 = 1;
/// The bit of a MAC address's first byte that says "group" (IEEE 802).
const GROUP_BIT: u64 = 1;

/// Turns a request for a VIP into its answer, in place.
///
/// A request with a group address as its sender is nobody's that could be answered; a request from a VIP's own address
/// (RFC 5227 probes use 0.0.0.0, announcements the address itself) is left to the host, unless it is a probe, which
/// must learn that the address is taken. A request sent to another host's MAC, which a switch may have flooded, is that
/// host's to answer (the kernel's `arp_rcv` ignores `PACKET_OTHERHOST` likewise).
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T, link: &Link) -> Verdict {
    let Some(arp) = packet.bytes::<ARP_LEN>(link.l3) else {
        return Verdict::ArpOther;
    };
    let [k0, k1, k2, k3, k4, k5, ..] = *arp;
    let sender_mac = le64_at::<8, _>(arp) & crate::wire::MAC_MASK;
    let sender_ip = be32_at::<14, _>(arp);
    let target_ip = be32_at::<24, _>(arp);
    if [k0, k1, k2, k3, k4, k5] != ETHERNET_IPV4
        || be16_at::<6, _>(arp) != REQUEST
        || sender_mac & GROUP_BIT != 0
        || sender_ip == target_ip
        || (link.destination & GROUP_BIT == 0 && !tables.is_own(link.destination))
    {
        return Verdict::ArpOther;
    }
    let Some(control) = tables.control() else {
        return Verdict::Inconsistent;
    };
    let directory = Directory(control.directory.get());
    if lookup(tables, directory, target_ip, 0, 0).is_none() {
        return Verdict::ArpOther;
    }
    let answered = mac_bytes(tables.answered_mac());
    let asker = mac_bytes(sender_mac);
    let Some(arp) = packet.bytes_mut::<ARP_LEN>(link.l3) else {
        return Verdict::ArpOther;
    };
    let asker_ip = sender_ip.to_be_bytes();
    let vip = target_ip.to_be_bytes();
    let [
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        op, // operation
        sm0,
        sm1,
        sm2,
        sm3,
        sm4,
        sm5,
        si0,
        si1,
        si2,
        si3, // sender
        tm0,
        tm1,
        tm2,
        tm3,
        tm4,
        tm5,
        ti0,
        ti1,
        ti2,
        ti3, // target
    ] = arp;
    *op = 2;
    [*sm0, *sm1, *sm2, *sm3, *sm4, *sm5] = answered;
    [*si0, *si1, *si2, *si3] = vip;
    [*tm0, *tm1, *tm2, *tm3, *tm4, *tm5] = asker;
    [*ti0, *ti1, *ti2, *ti3] = asker_ip;
    match rewrite::ethernet(packet, sender_mac, tables.own_mac()) {
        Ok(()) => Verdict::ArpReplied,
        Err(_) => Verdict::ArpOther,
    }
}
