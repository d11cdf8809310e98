//! The answer to an ARP request for a VIP: the program gives it itself, so the VIP is assigned to no interface.

use crate::packet::Packet;
use crate::service::{Directory, ServiceKey, find};
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{ARP_LEN, ETH_LEN, be16_at, be32_at, le64_at, mac_bytes};

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
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(frame) = packet.bytes::<{ ETH_LEN + ARP_LEN }>(0) else {
        return Verdict::ArpOther;
    };
    let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, kind @ .., _, _] =
        frame.first_chunk::<22>().unwrap_or(&[0; 22]);
    let eth_destination = le64_at::<0, _>(frame) & crate::wire::MAC_MASK;
    let sender_mac = le64_at::<{ ETH_LEN + 8 }, _>(frame) & crate::wire::MAC_MASK;
    let sender_ip = be32_at::<{ ETH_LEN + 14 }, _>(frame);
    let target_ip = be32_at::<{ ETH_LEN + 24 }, _>(frame);
    if *kind != ETHERNET_IPV4
        || be16_at::<{ ETH_LEN + 6 }, _>(frame) != REQUEST
        || sender_mac & GROUP_BIT != 0
        || sender_ip == target_ip
        || (eth_destination & GROUP_BIT == 0 && eth_destination != tables.own_mac())
    {
        return Verdict::ArpOther;
    }
    let Some(control) = tables.control() else {
        return Verdict::Inconsistent;
    };
    let directory = Directory(control.directory.get());
    if find(tables, directory, ServiceKey::ipv4_vip(target_ip)).is_none() {
        return Verdict::ArpOther;
    }
    let own = mac_bytes(tables.own_mac());
    let asker = mac_bytes(sender_mac);
    let Some(frame) = packet.bytes_mut::<{ ETH_LEN + ARP_LEN }>(0) else {
        return Verdict::ArpOther;
    };
    let asker_ip = sender_ip.to_be_bytes();
    let vip = target_ip.to_be_bytes();
    let [
        d0,
        d1,
        d2,
        d3,
        d4,
        d5,
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        _,
        _, // Ethernet; the type stays
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
    ] = frame;
    [*d0, *d1, *d2, *d3, *d4, *d5] = asker;
    [*s0, *s1, *s2, *s3, *s4, *s5] = own;
    *op = 2;
    [*sm0, *sm1, *sm2, *sm3, *sm4, *sm5] = own;
    [*si0, *si1, *si2, *si3] = vip;
    [*tm0, *tm1, *tm2, *tm3, *tm4, *tm5] = asker;
    [*ti0, *ti1, *ti2, *ti3] = asker_ip;
    Verdict::ArpReplied
}
