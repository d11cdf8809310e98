//! What differs between IPv4 and IPv6 once the headers are read: the same data path is built once for each.

use core::fmt::Debug;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow::{FlowKey, FlowLine, FlowState, FlowWay4, FlowWay6, Put, Way};
use crate::hash::{Seed, fold};
use crate::pick::Affinity;
use crate::service::{Directory, NoVip, ServiceKey, ServiceValue};
use crate::tables::Tables;
use crate::wire::{IPV4_LEN, IPV6_LEN};

/// An IPv6 address as two words in host order: compared and hashed without touching bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6 {
    /// The first eight bytes on the wire: the network.
    pub high: u64,
    /// The last eight: the interface identifier.
    pub low: u64,
}

impl Ipv6 {
    /// The address as the standard library writes it.
    #[inline(always)]
    #[must_use]
    pub const fn addr(self) -> Ipv6Addr {
        Ipv6Addr::from_bits((self.high as u128) << 64 | self.low as u128)
    }
}

impl From<Ipv6Addr> for Ipv6 {
    fn from(address: Ipv6Addr) -> Self {
        let bits = address.to_bits();
        Self {
            high: (bits >> 64) as u64,
            low: bits as u64,
        }
    }
}

/// An address of one family, with everything that depends on it.
pub trait Address: Copy + Eq + Debug {
    /// One record of the family's flow table.
    type Way: Way + 'static;
    /// The 5-tuple: every flow for itself.
    const NONE: Affinity;
    /// Whether the seed makes [`Self::source`] of an address.
    const DIGESTED: bool;
    /// Whether the fragments of one packet share their protocol (RFC 791 section 3.2). In IPv6 those behind the first one name what
    /// follows the fragment header there, which may be an extension header, and nobody looks at it (RFC 8200 section 4.5).
    const FRAGMENTS_SHARE_PROTOCOL: bool;
    /// Bytes of the family's header, without options or extension headers.
    const HEADER_LEN: usize;

    /// The part of a flow that picks, as [`crate::hash::mix`] takes it.
    fn source(self, affinity: Affinity, ports: u32, seed: Seed) -> u64;
    /// The address with all bits behind the first `prefix` cleared.
    #[must_use]
    fn network(self, prefix: u8) -> Self;
    /// A port of this VIP in the service lookup; port 0 is all of them, protocol 0 the VIP itself.
    fn service_key(self, directory: Directory, protocol: u8, port: u16) -> ServiceKey;
    /// Whether what was found under [`Self::service_key`] is this VIP's.
    fn is_vip_of<T: Tables>(self, tables: &T, found: ServiceValue) -> bool;
    /// Whether this is certainly no VIP.
    fn is_none_of(self, no_vip: NoVip) -> bool;
    /// Whether nobody can have this source address.
    fn is_martian(self) -> bool;
    /// A bucket of the family's flow table.
    fn flow_line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<Self::Way>>;
    /// log2 of the number of that table's buckets.
    fn flow_bits<T: Tables>(tables: &T) -> u32;
    /// Address and ports in one word: distinct for IPv4, a keyed digest for IPv6.
    fn endpoints(self, ports: u32, seed: Seed) -> u64;
    /// What a record's way names differently: 0 where it names this client and these ports.
    fn differs(self, ports: u32, way: &Self::Way) -> u64;
    /// Writes client and ports into a way.
    fn write(self, ports: u32, way: &Self::Way);
    /// [`crate::flow::find_in_table`], by way of [`Tables`].
    fn find_flow<T: Tables>(tables: &T, key: FlowKey<Self>, hash: u64) -> FlowState;
    /// [`crate::flow::put_into_table`], by way of [`Tables`].
    fn put_flow<T: Tables>(tables: &T, key: FlowKey<Self>, hash: u64, state: FlowState) -> Put;
    /// The same address, where the compiler can't compute anything of it earlier: see [`Tables::held`].
    #[must_use]
    fn held<T: Tables>(self, tables: &T) -> Self;
    /// [`crate::forward::place_of_any`], by way of [`Tables`].
    fn place_of_any<T: Tables>(tables: &T, service: ServiceValue, client: Self, ports: u32) -> u64;
    /// The address as IPv6, or IPv4 mapped (RFC 4291 section 2.5.5.2).
    fn mapped(self) -> Ipv6;
    /// The address as the standard library writes it.
    fn addr(self) -> IpAddr;
}

/// IPv4, in host order.
impl Address for u32 {
    type Way = FlowWay4;
    const NONE: Affinity = Affinity::NONE_IPV4;
    const DIGESTED: bool = false;
    const FRAGMENTS_SHARE_PROTOCOL: bool = true;
    const HEADER_LEN: usize = IPV4_LEN;

    #[inline(always)]
    fn source(self, affinity: Affinity, ports: u32, _seed: Seed) -> u64 {
        let (part, ports) = if affinity.ports {
            (self, ports)
        } else {
            (self.network(affinity.prefix), 0)
        };
        u64::from(part) << 32 | u64::from(ports)
    }

    #[inline(always)]
    fn network(self, prefix: u8) -> Self {
        // Shifting in 64 bits keeps a prefix of 0 from shifting by the whole width.
        self & !(0xffff_ffff_u64 >> (prefix & 63)) as u32
    }

    #[inline(always)]
    fn service_key(self, _directory: Directory, protocol: u8, port: u16) -> ServiceKey {
        ServiceKey::ipv4(self, protocol, port)
    }

    #[inline(always)]
    fn is_vip_of<T: Tables>(self, _tables: &T, _found: ServiceValue) -> bool {
        // The key holds the whole address.
        true
    }

    #[inline(always)]
    fn is_none_of(self, no_vip: NoVip) -> bool {
        no_vip.has(self)
    }

    /// This network, loopback, multicast, reserved and broadcast (RFC 1122 section 3.2.1.3, RFC 6890).
    #[inline(always)]
    fn is_martian(self) -> bool {
        // The first byte less one: 0 is beyond all others then, and one comparison with what begins at 224.
        let shifted = self.wrapping_sub(1 << 24);
        shifted >= 223 << 24 || shifted >> 24 == 126
    }

    #[inline(always)]
    fn flow_line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<FlowWay4>> {
        tables.flow_bucket(index)
    }

    #[inline(always)]
    fn flow_bits<T: Tables>(tables: &T) -> u32 {
        tables.flow_bits()
    }

    #[inline(always)]
    fn endpoints(self, ports: u32, _seed: Seed) -> u64 {
        u64::from(self) << 32 | u64::from(ports)
    }

    #[inline(always)]
    fn differs(self, ports: u32, way: &FlowWay4) -> u64 {
        way.key.get() ^ (u64::from(self) << 32 | u64::from(ports))
    }

    #[inline(always)]
    fn write(self, ports: u32, way: &FlowWay4) {
        way.key.set(u64::from(self) << 32 | u64::from(ports));
    }

    #[inline(always)]
    fn find_flow<T: Tables>(tables: &T, key: FlowKey<u32>, hash: u64) -> FlowState {
        tables.find_flow4(key, hash)
    }

    #[inline(always)]
    fn put_flow<T: Tables>(tables: &T, key: FlowKey<u32>, hash: u64, state: FlowState) -> Put {
        tables.put_flow4(key, hash, state)
    }

    #[inline(always)]
    fn held<T: Tables>(self, tables: &T) -> Self {
        tables.held(u64::from(self)) as Self
    }

    #[inline(always)]
    fn place_of_any<T: Tables>(tables: &T, service: ServiceValue, client: Self, ports: u32) -> u64 {
        tables.place4(service, client, ports)
    }

    #[inline(always)]
    fn mapped(self) -> Ipv6 {
        Ipv6 {
            high: 0,
            low: 0xffff << 32 | u64::from(self),
        }
    }

    #[inline(always)]
    fn addr(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(self))
    }
}

impl Address for Ipv6 {
    type Way = FlowWay6;
    const NONE: Affinity = Affinity::NONE_IPV6;
    const DIGESTED: bool = true;
    const FRAGMENTS_SHARE_PROTOCOL: bool = false;
    const HEADER_LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn source(self, affinity: Affinity, ports: u32, seed: Seed) -> u64 {
        let (part, ports) = if affinity.ports {
            (self, ports)
        } else {
            (self.network(affinity.prefix), 0)
        };
        fold(part.high, part.low, seed) ^ u64::from(ports)
    }

    #[inline(always)]
    fn network(self, prefix: u8) -> Self {
        if prefix > 64 {
            // 65 to 128: the shift is 1 to 64, and 64 would leave the word as it is.
            let kept = (prefix - 64) & 127;
            let low = if kept >= 64 {
                self.low
            } else {
                self.low & !(u64::MAX >> (kept & 63))
            };
            Self {
                high: self.high,
                low,
            }
        } else {
            let high = if prefix == 64 {
                self.high
            } else {
                self.high & !(u64::MAX >> (prefix & 63))
            };
            Self { high, low: 0 }
        }
    }

    #[inline(always)]
    fn service_key(self, directory: Directory, protocol: u8, port: u16) -> ServiceKey {
        ServiceKey::ipv6(directory.fold(self), protocol, port)
    }

    #[inline(always)]
    fn is_vip_of<T: Tables>(self, tables: &T, found: ServiceValue) -> bool {
        match tables.vip(found.id()) {
            Some(vip) => vip.high.get() == self.high && vip.low.get() == self.low,
            None => false,
        }
    }

    #[inline(always)]
    fn is_none_of(self, _no_vip: NoVip) -> bool {
        false
    }

    /// Unspecified, loopback, IPv4-mapped and multicast (RFC 4291 sections 2.5.2, 2.5.3, 2.5.5.2 and 2.7).
    #[inline(always)]
    fn is_martian(self) -> bool {
        self.high >> 56 == 0xff
            || self.high == 0 && (self.low <= 1 || self.low >> 32 == 0x0000_ffff)
    }

    #[inline(always)]
    fn flow_line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<FlowWay6>> {
        tables.flow6_bucket(index)
    }

    #[inline(always)]
    fn flow_bits<T: Tables>(tables: &T) -> u32 {
        tables.flow6_bits()
    }

    #[inline(always)]
    fn endpoints(self, ports: u32, seed: Seed) -> u64 {
        fold(self.high, self.low, seed) ^ u64::from(ports)
    }

    #[inline(always)]
    fn differs(self, ports: u32, way: &FlowWay6) -> u64 {
        way.low.get() ^ self.low | way.high.get() ^ self.high | way.ports.get() ^ u64::from(ports)
    }

    #[inline(always)]
    fn write(self, ports: u32, way: &FlowWay6) {
        way.high.set(self.high);
        way.low.set(self.low);
        way.ports.set(u64::from(ports));
    }

    #[inline(always)]
    fn find_flow<T: Tables>(tables: &T, key: FlowKey<Self>, hash: u64) -> FlowState {
        tables.find_flow6(key, hash)
    }

    #[inline(always)]
    fn put_flow<T: Tables>(tables: &T, key: FlowKey<Self>, hash: u64, state: FlowState) -> Put {
        tables.put_flow6(key, hash, state)
    }

    #[inline(always)]
    fn held<T: Tables>(self, _tables: &T) -> Self {
        self
    }

    #[inline(always)]
    fn place_of_any<T: Tables>(tables: &T, service: ServiceValue, client: Self, ports: u32) -> u64 {
        tables.place6(service, client, ports)
    }

    #[inline(always)]
    fn mapped(self) -> Ipv6 {
        self
    }

    #[inline(always)]
    fn addr(self) -> IpAddr {
        IpAddr::V6(Self::addr(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_keep_their_prefix() {
        assert_eq!(0xc0a8_0a63_u32.network(24), 0xc0a8_0a00);
        assert_eq!(0xc0a8_0a63_u32.network(32), 0xc0a8_0a63);
        assert_eq!(0xc0a8_0a63_u32.network(0), 0);
        let all = u128::MAX;
        for prefix in 0..=128u8 {
            let expected = all.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            let got = Ipv6::from(Ipv6Addr::from_bits(all)).network(prefix);
            assert_eq!(got.addr().to_bits(), expected, "/{prefix}");
        }
    }

    #[test]
    fn who_can_not_be_answered() {
        for address in [
            0x0000_0001u32,
            0x7f00_0001,
            0xe000_0001,
            0xffff_ffff,
            0xf000_0000,
        ] {
            assert!(address.is_martian(), "{address:x}");
        }
        for address in [0x0100_0001u32, 0xc0a8_0001, 0xdfff_ffff, 0x7eff_ffff] {
            assert!(!address.is_martian(), "{address:x}");
        }
        let v6 = |text: &str| Ipv6::from(text.parse::<Ipv6Addr>().unwrap());
        for text in ["::", "::1", "::ffff:192.0.2.1", "ff02::1"] {
            assert!(v6(text).is_martian(), "{text}");
        }
        for text in ["::2", "2001:db8::1", "fe80::1", "64:ff9b::192.0.2.1"] {
            assert!(!v6(text).is_martian(), "{text}");
        }
    }
}
