//! Header layouts: sizes, offsets and numbers of the protocols, each with its source, and loads of whole words.

/// Bytes of an Ethernet header without tags (IEEE 802.3).
pub const ETH_LEN: usize = 14;
/// Offset of the EtherType in an untagged frame.
pub const ETH_TYPE: usize = 12;
/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// Bytes of an IPv4 header without options (RFC 791 section 3.1).
pub const IPV4_LEN: usize = 20;
/// More Fragments and the 13 bits of the fragment offset (RFC 791); the Don't Fragment bit is left out.
pub const IPV4_FRAGMENT_MASK: u16 = 0x3fff;

/// IP protocol number of ICMP (IANA).
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP (IANA).
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP (IANA).
pub const PROTO_UDP: u8 = 17;

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
    const { assert!(AT + 2 <= N, "offset outside the window") };
    u16::from_be_bytes([bytes[AT], bytes[AT + 1]])
}

/// The four bytes at the constant offset `AT`, in network byte order.
#[inline(always)]
#[must_use]
pub const fn be32_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(AT + 4 <= N, "offset outside the window") };
    u32::from_be_bytes([bytes[AT], bytes[AT + 1], bytes[AT + 2], bytes[AT + 3]])
}

/// The eight bytes at the constant offset `AT`, the first in the lowest bits (as [`mac_word`] keeps them).
#[inline(always)]
#[must_use]
pub const fn le64_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    const { assert!(AT + 8 <= N, "offset outside the window") };
    u64::from_le_bytes([
        bytes[AT],
        bytes[AT + 1],
        bytes[AT + 2],
        bytes[AT + 3],
        bytes[AT + 4],
        bytes[AT + 5],
        bytes[AT + 6],
        bytes[AT + 7],
    ])
}
