//! Header layouts: sizes, offsets and numbers of the protocols, each with its source, and loads of whole words.

use crate::address::Ipv6;

/// Bytes of an Ethernet header without tags (IEEE 802.3).
pub const ETH_LEN: usize = 14;
/// Offset of the EtherType in an untagged frame.
pub const ETH_TYPE: usize = 12;
/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service provider's VLAN tag (IEEE 802.1ad).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Bytes of a VLAN tag.
pub const VLAN_LEN: usize = 4;
/// The VLAN identifier's bits in a tag's second half.
pub const VLAN_ID: u16 = 0x0fff;
/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of frames between the nodes of a cluster: "Local Experimental EtherType 1" (IEEE Std 802).
pub const ETHERTYPE_CLUSTER: u16 = 0x88b5;

/// Bytes of an IPv4 header without options (RFC 791 section 3.1).
pub const IPV4_LEN: usize = 20;
/// More Fragments and the 13 bits of the fragment offset (RFC 791); the Don't Fragment bit is left out.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;

/// More Fragments (RFC 791).
pub const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of eight bytes (RFC 791).
pub const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// Bytes of an IPv6 header (RFC 8200 section 3).
pub const IPV6_LEN: usize = 40;

/// IP protocol number of ICMP (IANA).
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP (IANA).
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP (IANA).
pub const PROTO_UDP: u8 = 17;

/// IPv6 hop-by-hop options (RFC 8200 section 4.3).
pub const NEXT_HOP_BY_HOP: u8 = 0;
/// IPv6 routing header (section 4.4).
pub const NEXT_ROUTING: u8 = 43;
/// IPv6 fragment header (section 4.5).
pub const NEXT_FRAGMENT: u8 = 44;
/// IPv6 destination options (section 4.6).
pub const NEXT_DESTINATION: u8 = 60;
/// ICMPv6 (RFC 4443).
pub const PROTO_ICMPV6: u8 = 58;

/// Bytes of a TCP header without options (RFC 9293 section 3.1).
pub const TCP_LEN: usize = 20;
/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// No more data from the sender (RFC 9293).
pub const TCP_FIN: u8 = 0x01;
/// Opens a connection.
pub const TCP_SYN: u8 = 0x02;
/// Ends a connection at once.
pub const TCP_RST: u8 = 0x04;
/// The acknowledgement number means something.
pub const TCP_ACK: u8 = 0x10;
/// Bytes of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;

/// Bytes of an ARP packet for Ethernet and IPv4 (RFC 826).
pub const ARP_LEN: usize = 28;

/// The low 48 bits of a word: where a MAC address is kept.
pub const MAC_MASK: u64 = 0x0000_ffff_ffff_ffff;

/// A MAC address as the low 48 bits of a word, the first byte on the wire in the lowest bits.
#[must_use]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// The MAC address in the low 48 bits of a word made by [`mac_word`].
#[must_use]
pub const fn mac_bytes(word: u64) -> [u8; 6] {
    let b = word.to_le_bytes();
    [b[0], b[1], b[2], b[3], b[4], b[5]]
}

/// The `LEN` bytes at the constant offset `AT`: one load where there are as many as a word has. Byte by byte, the compiler
/// would put together only those that are used, in up to three loads.
#[inline(always)]
#[must_use]
const fn bytes_at<const AT: usize, const LEN: usize, const N: usize>(bytes: &[u8; N]) -> [u8; LEN] {
    const { assert!(AT + LEN <= N, "offset outside the window") };
    match bytes.split_at(AT).1.first_chunk() {
        Some(found) => *found,
        None => unreachable!(),
    }
}

/// The byte at the constant offset `AT`.
#[inline(always)]
#[must_use]
pub const fn u8_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u8 {
    const { assert!(AT < N, "offset outside the window") };
    bytes[AT]
}

/// The two bytes at the constant offset `AT`, in network byte order.
#[inline(always)]
#[must_use]
pub const fn be16_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u16 {
    u16::from_be_bytes(bytes_at::<AT, 2, N>(bytes))
}

/// The four bytes at the constant offset `AT`, in network byte order.
#[inline(always)]
#[must_use]
pub const fn be32_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u32 {
    u32::from_be_bytes(bytes_at::<AT, 4, N>(bytes))
}

/// The eight bytes at the constant offset `AT`, in network byte order.
#[inline(always)]
#[must_use]
pub const fn be64_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    u64::from_be_bytes(bytes_at::<AT, 8, N>(bytes))
}

/// The IPv6 address at the constant offset `AT`.
#[inline(always)]
#[must_use]
pub const fn ipv6_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> Ipv6 {
    let [high, low] = halves(bytes_at::<AT, 16, N>(bytes));
    Ipv6 {
        high: u64::from_be_bytes(high),
        low: u64::from_be_bytes(low),
    }
}

#[inline(always)]
const fn halves(bytes: [u8; 16]) -> [[u8; 8]; 2] {
    match bytes.as_chunks() {
        ([high, low], _) => [*high, *low],
        _ => unreachable!(),
    }
}

/// The two bytes at the constant offset `AT`, the first in the lower bits.
#[inline(always)]
#[must_use]
pub const fn le16_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u16 {
    u16::from_le_bytes(bytes_at::<AT, 2, N>(bytes))
}

/// The four bytes at the constant offset `AT`, the first in the lowest bits.
#[inline(always)]
#[must_use]
pub const fn le32_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u32 {
    u32::from_le_bytes(bytes_at::<AT, 4, N>(bytes))
}

/// The eight bytes at the constant offset `AT`, the first in the lowest bits (as [`mac_word`] keeps them).
#[inline(always)]
#[must_use]
pub const fn le64_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    u64::from_le_bytes(bytes_at::<AT, 8, N>(bytes))
}
