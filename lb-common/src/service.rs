//! Which service a packet is for: (VIP, protocol, port) looked up in cache-line buckets.

use core::hint::cold_path;

use crate::abi::{Bucket, WAYS};
use crate::address::{Address, Ipv6};
use crate::hash::{held, shift_right};
use crate::pick::Affinity;
use crate::tables::Tables;

/// What a service is found by, packed into one word: never 0.
///
/// Bits 0-31 the VIP (IPv4 in network byte order; of IPv6 what [`Directory::fold`] makes of it), 32-39 the protocol, 40-47
/// 1 for IPv6 and 2 for all ports, 48-63 the port (network byte order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey(pub u64);

/// An odd multiplier with well spread bits, as in [`crate::hash`].
const FOLD: u64 = 0xbf58_476d_1ce4_e5b9;
const FAMILY_IPV6: u64 = 1 << 40;
/// No packet's key has this: one for port 0 finds nothing, and one for 0.0.0.0 no empty way.
const ALL_PORTS: u64 = 2 << 40;

impl ServiceKey {
    /// A port of an IPv4 VIP, or all of them where it is 0. `vip` and `port` in host order.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(vip: u32, protocol: u8, port: u16) -> Self {
        Self::of(0, u32::from_be(vip), protocol, port)
    }

    /// All ports of a protocol of an IPv4 VIP: tried where no single port matches.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4_any_port(vip: u32, protocol: u8) -> Self {
        Self::ipv4(vip, protocol, 0)
    }

    /// The entry that says "this address is a VIP".
    #[inline(always)]
    #[must_use]
    pub const fn ipv4_vip(vip: u32) -> Self {
        Self::ipv4(vip, 0, 0)
    }

    /// A port of an IPv6 VIP, or all of them where it is 0. `fold` from [`Directory::fold`], so the key is good for one directory word only.
    #[inline(always)]
    #[must_use]
    pub const fn ipv6(fold: u32, protocol: u8, port: u16) -> Self {
        Self::of(FAMILY_IPV6, fold, protocol, port)
    }

    #[inline(always)]
    const fn of(family: u64, vip: u32, protocol: u8, port: u16) -> Self {
        let all = if port == 0 { ALL_PORTS } else { 0 };
        let port = u16::from_be(port) as u64;
        Self(port << 48 | all | family | (protocol as u64) << 32 | vip as u64)
    }

    /// What a packet to an IPv4 VIP is looked up by: `vip` and `port` in network byte order. Port 0 is no service's.
    #[inline(always)]
    #[must_use]
    pub const fn of_ipv4_packet(vip: u32, protocol: u8, port: u16) -> Self {
        Self((port as u64) << 48 | (protocol as u64) << 32 | vip as u64)
    }

    /// The same of IPv6: `port` in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn of_ipv6_packet(fold: u32, protocol: u8, port: u16) -> Self {
        let between = (FAMILY_IPV6 >> 32) as u32 | protocol as u32;
        Self((port as u64) << 48 | (between as u64) << 32 | fold as u64)
    }

    /// Whether the VIP is an IPv6 address, which the key does not hold whole.
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        self.0 & FAMILY_IPV6 != 0
    }

    /// The IPv4 VIP in host order; of an IPv6 VIP its fold.
    #[must_use]
    pub const fn vip(self) -> u32 {
        let vip = self.0 as u32;
        if self.is_ipv6() {
            vip
        } else {
            u32::from_be(vip)
        }
    }

    /// The port in host order; 0 stands for all of them.
    #[must_use]
    pub const fn port(self) -> u16 {
        u16::from_be((self.0 >> 48) as u16)
    }

    /// The IP protocol; 0 in the entry of a VIP.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

/// What the data path must know of a service, packed into one word that is read whole.
///
/// Bits 0-5 how far a hash is shifted to become an index (64 less log2 of the table's size), never 0, 6-31 the table's
/// offset in `SLOTS`, 32-47 the service's id, 48-55 the prefix that picks, 56 whether some service has all ports of a protocol
/// (in a VIP's entry), 57-58 [`Track`], 59 whether clients are recorded (`affinity_timeout`), 60 whether hot sources are
/// spread, 61 whether later fragments, which do not name their ports, may use the entry, 62 whether nothing else may, 63
/// whether the ports pick as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceValue(pub u64);

/// Which flows of a service are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Track {
    /// TCP flows in slots in transition. Of UDP none: it goes to the new pick at once.
    #[default]
    Changes = 0,
    /// Every flow, all the time: a classic connection table.
    Always = 1,
    /// QUIC flows in slots in transition: Initial packets open them.
    Quic = 2,
}

/// Largest offset of a table, plus one.
pub const MAX_SLOT_OFFSET: u32 = 1 << 26;

impl ServiceValue {
    /// What is in the place of the shift in the entry of a VIP, which has no table.
    const NO_TABLE: u64 = 63;

    /// Packs a service. `bits` is log2 of the table's size (1 to 26), `offset` its first slot.
    #[must_use]
    pub const fn new(id: u16, offset: u32, bits: u8, affinity: Affinity) -> Self {
        assert!(
            offset < MAX_SLOT_OFFSET && bits >= 1 && bits <= 26,
            "table outside the slots that can be named"
        );
        Self(
            (64 - bits as u64)
                | (offset as u64) << 6
                | (id as u64) << 32
                | (affinity.prefix as u64) << 48
                | (affinity.ports as u64) << 63,
        )
    }

    /// The value of a VIP's own entry; it names no service.
    #[must_use]
    pub const fn vip(any_port: bool) -> Self {
        Self(Self::NO_TABLE | (any_port as u64) << 56)
    }

    /// The value of an IPv6 VIP's own entry. `id` is any service of that VIP: the data path compares the whole address in
    /// `VIPS` of that id.
    #[must_use]
    pub const fn vip6(any_port: bool, id: u16) -> Self {
        Self(Self::vip(any_port).0 | (id as u64) << 32)
    }

    /// The same service with another way of tracking.
    #[must_use]
    pub const fn tracking(self, track: Track) -> Self {
        Self(self.0 & !(3 << 57) | (track as u64) << 57)
    }

    /// The same service with or without records of clients (`affinity_timeout`).
    #[must_use]
    pub const fn recording_clients(self, clients: bool) -> Self {
        Self(self.0 & !(1 << 59) | (clients as u64) << 59)
    }

    /// The same service with or without `spread_hot_sources`.
    #[must_use]
    pub const fn spreading(self, spread: bool) -> Self {
        Self(self.0 & !(1 << 60) | (spread as u64) << 60)
    }

    /// The same service as the entry (VIP, protocol, port 0) that serves only fragments without ports: where all of a
    /// protocol's ports on a VIP share one pick, a later fragment needs no ports.
    #[must_use]
    pub const fn for_fragments(self) -> Self {
        Self(self.0 | 3 << 61)
    }

    /// The same service as the entry of all ports of its protocol, where no other service has one of them: a later
    /// fragment needs no ports there either.
    #[must_use]
    pub const fn with_fragments(self) -> Self {
        Self(self.0 | 1 << 61)
    }

    /// Which flows are recorded.
    #[inline(always)]
    #[must_use]
    pub const fn track(self) -> Track {
        match self.0 >> 57 & 3 {
            0 => Track::Changes,
            1 => Track::Always,
            _ => Track::Quic,
        }
    }

    /// Whether clients are recorded.
    #[inline(always)]
    #[must_use]
    pub const fn clients(self) -> bool {
        self.0 >> 59 & 1 == 1
    }

    /// Whether hot sources are spread.
    #[inline(always)]
    #[must_use]
    pub const fn spreads(self) -> bool {
        self.0 >> 60 & 1 == 1
    }

    /// Whether the entry serves only fragments without ports.
    #[inline(always)]
    #[must_use]
    pub const fn is_for_fragments(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// Whether the entry serves fragments without ports: all ports of the protocol on the VIP are the service's.
    #[inline(always)]
    #[must_use]
    pub const fn serves_fragments(self) -> bool {
        self.0 >> 61 & 1 == 1
    }

    /// The first slot of the service's table.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.0 as u32 >> 6
    }

    /// The index of a source in the service's table, from its hash's upper bits.
    #[inline(always)]
    #[must_use]
    pub fn index(self, hash: u64) -> u32 {
        shift_right(hash, self.0) as u32
    }

    /// log2 of the table's size.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u32 {
        64 - (self.0 as u32 & 63)
    }

    /// The service's id.
    #[inline(always)]
    #[must_use]
    pub const fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Which part of the packet picks.
    #[inline(always)]
    #[must_use]
    pub const fn affinity(self) -> Affinity {
        Affinity {
            prefix: (self.0 >> 48) as u8,
            ports: self.0 >> 63 == 1,
        }
    }

    /// In a VIP's entry: whether some service has all ports of a protocol there.
    #[inline(always)]
    #[must_use]
    pub const fn has_any_port(self) -> bool {
        self.0 >> 56 & 1 == 1
    }
}

/// How a key becomes a bucket: one word, swapped whole when the controller has filled the other half.
///
/// Bit 0 is set (the multiplier is odd), bits 1-6 hold the shift, bit 63 says which half is in use, and the whole word is
/// the multiplier: the product's upper 63 bits, below the bit of the half and mixed with the rest of the word, are shifted to
/// become the index. 2^(63 - shift) buckets make one half, which may be fewer than half of those that there are: the two halves
/// are the first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory(pub u64);

impl Directory {
    /// A directory of 2^`bits` buckets (1 to 31), of whose multiplier bits 7 to 62 come from `seed`.
    #[must_use]
    pub const fn new(seed: u64, bits: u8, second_half: bool) -> Self {
        assert!(bits >= 1 && bits <= 31, "number of buckets out of range");
        Self(seed << 1 >> 1 & !0x7f | (second_half as u64) << 63 | (63 - bits as u64) << 1 | 1)
    }

    /// log2 of the number of buckets in one half.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u32 {
        63 - (self.0 >> 1 & 0x3f) as u32
    }

    /// Whether the second half is in use.
    #[inline(always)]
    #[must_use]
    pub const fn second_half(self) -> bool {
        self.0 >> 63 == 1
    }

    /// The buckets that it is about, by their index.
    #[must_use]
    pub const fn range(self) -> core::ops::Range<usize> {
        let count = 1 << self.bits();
        let start = if self.second_half() { count } else { 0 };
        start..start + count
    }

    /// 32 bits of an IPv6 VIP for [`ServiceKey::ipv6`]. Two VIPs may share them: the controller then takes another
    /// multiplier, and the data path compares the whole address (in `VIPS`) before it believes what it found.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self, vip: Ipv6) -> u32 {
        let first = (vip.high ^ self.0).wrapping_mul(FOLD);
        let second = (first ^ first >> 32 ^ vip.low).wrapping_mul(self.0);
        (second >> 32) as u32
    }

    /// The bucket of `key`.
    #[inline(always)]
    #[must_use]
    pub fn bucket(self, key: ServiceKey) -> u32 {
        shift_right(key.0.wrapping_mul(self.0) >> 1 ^ self.0, self.0 >> 1) as u32
    }
}

/// Which IPv4 addresses are certainly no VIP: one bit for each of 64 classes that the addresses fall into, set where none of
/// the class is one. What is on its way to such an address needs no lookup. All zeros says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoVip(pub u64);

impl NoVip {
    /// Every class but those of these VIPs, in host order.
    #[must_use]
    pub fn but(vips: impl IntoIterator<Item = u32>) -> Self {
        Self(
            vips.into_iter()
                .fold(u64::MAX, |word, vip| word & !(1 << 63 >> Self::class(vip))),
        )
    }

    /// What both say.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether this address, in host order, is certainly no VIP.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, address: u32) -> bool {
        // By the sign: a shift and a comparison.
        (self.0 << Self::class(address)).cast_signed() < 0
    }

    /// The upper six bits of a product with the golden ratio's bits: neighbours are far apart. Of the address as it is in a
    /// packet, so that it need not be turned round.
    #[inline(always)]
    const fn class(address: u32) -> u32 {
        u32::from_be(address).wrapping_mul(0x9e37_79b1) >> 26
    }
}

/// The value of `key` in its bucket.
#[inline(always)]
pub fn find_in(bucket: &Bucket, key: ServiceKey) -> Option<ServiceValue> {
    // Four comparisons without a loop: the verifier sees constant offsets.
    const { assert!(WAYS == 4) };
    let [a, b, c, d] = &bucket.ways;
    // Held: the first way is nearly always the one, and is not to wait for an offset that would be computed for all four.
    if a.key.get() == key.0 {
        return Some(ServiceValue(a.value.get()));
    }
    cold_path();
    if b.key.get() == key.0 {
        return Some(ServiceValue(held(b.value.get())));
    }
    if c.key.get() == key.0 {
        return Some(ServiceValue(held(c.value.get())));
    }
    if d.key.get() == key.0 {
        return Some(ServiceValue(held(d.value.get())));
    }
    None
}

/// The value of `key`, which is one of `vip`, in the half in use.
#[inline(always)]
pub fn find<A: Address, T: Tables>(
    tables: &T,
    directory: Directory,
    key: ServiceKey,
    vip: A,
) -> Option<ServiceValue> {
    let found = find_in(tables.service_bucket(directory.bucket(key))?, key)?;
    if vip.is_vip_of(tables, found) {
        Some(found)
    } else {
        None
    }
}

/// The service of (`vip`, `protocol`, `port`), each in host order; protocol 0 asks for the VIP's own entry.
#[inline(always)]
pub fn lookup<A: Address, T: Tables>(
    tables: &T,
    directory: Directory,
    vip: A,
    protocol: u8,
    port: u16,
) -> Option<ServiceValue> {
    find(
        tables,
        directory,
        vip.service_key(directory, protocol, port),
        vip,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_round_trips() {
        let affinity = Affinity {
            prefix: 128,
            ports: true,
        };
        let value = ServiceValue::new(0xffff, MAX_SLOT_OFFSET - 1, 26, affinity);
        assert_eq!(value.id(), 0xffff);
        assert_eq!(value.offset(), MAX_SLOT_OFFSET - 1);
        assert_eq!(value.bits(), 26);
        assert_eq!(value.affinity(), affinity);
        assert!(!value.has_any_port());
        assert_eq!(value.track(), Track::Changes);
        assert!(!value.clients() && !value.spreads() && !value.is_for_fragments());
        for track in [Track::Changes, Track::Always, Track::Quic] {
            let marked = value
                .tracking(track)
                .recording_clients(true)
                .spreading(true)
                .for_fragments();
            assert_eq!((marked.track(), marked.id()), (track, 0xffff));
            assert!(marked.clients() && marked.spreads() && marked.is_for_fragments());
            assert_eq!(marked.affinity(), affinity);
        }
        assert!(value.for_fragments().serves_fragments());
        let with = value.with_fragments();
        assert!(with.serves_fragments() && !with.is_for_fragments() && !value.serves_fragments());
        assert_eq!(ServiceValue::vip6(true, 0xffff).id(), 0xffff);
        assert!(ServiceValue::vip(true).has_any_port());
        assert_eq!(
            ServiceValue::new(
                0,
                0,
                1,
                Affinity {
                    prefix: 0,
                    ports: false
                }
            )
            .bits(),
            1
        );
    }

    #[test]
    fn no_vip_is_denied() {
        assert!(!NoVip(0).has(0xc000_020a), "nothing is known yet");
        for count in [0u32, 1, 4, 16, 1000] {
            let vips = || (0..count).map(|n| 0xc000_0200 + n * 3);
            let none = NoVip::but(vips());
            assert!(vips().all(|vip| !none.has(vip)));
            let denied = (0..10_000)
                .filter(|n| none.has(0x0a00_0000 + n * 7))
                .count();
            let at_least = match count {
                0 => 10_000,
                1 => 9_500,
                4 => 9_000,
                16 => 7_000,
                _ => 0,
            };
            assert!(denied >= at_least, "{denied} of 10000 beside {count} VIPs");
        }
        let (one, other) = (NoVip::but([1]), NoVip::but([2]));
        assert!(!one.and(other).has(1) && !one.and(other).has(2) && one.has(2));
    }

    #[test]
    fn key_round_trips() {
        let key = ServiceKey::ipv4(0xc000_020a, 6, 443);
        assert_eq!(
            (key.vip(), key.protocol(), key.port()),
            (0xc000_020a, 6, 443)
        );
        assert_ne!(ServiceKey::ipv4_vip(0), ServiceKey(0));
        let any = ServiceKey::ipv4_any_port(0xc000_020a, 17);
        assert_eq!((any.protocol(), any.port(), any.is_ipv6()), (17, 0, false));
    }

    #[test]
    fn a_packets_key_is_that_of_its_port() {
        let vip = 0xc000_020a_u32.to_be();
        let of = |port: u16| ServiceKey::of_ipv4_packet(vip, 6, port.to_be());
        assert_eq!(of(443), ServiceKey::ipv4(0xc000_020a, 6, 443));
        let of6 = |port: u16| ServiceKey::of_ipv6_packet(0xc000_020a, 17, port.to_be());
        assert_eq!(of6(53), ServiceKey::ipv6(0xc000_020a, 17, 53));
        // Port 0 is not "all ports".
        assert_ne!(of(0), ServiceKey::ipv4_any_port(0xc000_020a, 6));
        assert_ne!(of6(0), ServiceKey::ipv6(0xc000_020a, 17, 0));
    }

    #[test]
    fn directory_stays_in_its_half() {
        for bits in 1..=20 {
            for second in [false, true] {
                let directory = Directory::new(0xdead_beef_cafe_f00d, bits, second);
                assert_eq!(
                    (directory.bits(), directory.second_half()),
                    (u32::from(bits), second)
                );
                let size = 1u32 << bits;
                for port in 1..2000 {
                    let bucket = directory.bucket(ServiceKey::ipv4(0x0a00_0001, 6, port));
                    assert!(if second {
                        (size..2 * size).contains(&bucket)
                    } else {
                        bucket < size
                    });
                }
            }
        }
    }
}
