//! source -> hash -> slot -> backend.

use crate::hash::{Seed, mix};

/// Which part of the packet picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Leading bits of the source address that pick: 32 for a whole IPv4 address, 24 for Windows NLB's "Class C".
    pub prefix: u8,
    /// Whether source and destination port pick as well: the 5-tuple.
    pub ports: bool,
}

impl Affinity {
    /// `affinity = "none"`: every flow for itself.
    pub const NONE_IPV4: Self = Self {
        prefix: 32,
        ports: true,
    };
    /// `affinity = "client"`: all flows of a source address together.
    pub const CLIENT_IPV4: Self = Self {
        prefix: 32,
        ports: false,
    };
    /// `affinity = "network"`: all flows of a /24 together.
    pub const NETWORK_IPV4: Self = Self {
        prefix: 24,
        ports: false,
    };

    /// The part of a flow that picks, as the hash takes it: address in the upper half, ports in the lower.
    #[inline(always)]
    #[must_use]
    pub const fn source_ipv4(self, client: u32, ports: u32) -> u64 {
        // Shifting in 64 bits keeps a prefix of 0 from shifting by the whole width.
        let mask = !(0xffff_ffff_u64 >> (self.prefix & 63)) as u32;
        let ports = if self.ports { ports } else { 0 };
        ((client & mask) as u64) << 32 | ports as u64
    }
}

/// The index of a source in a table of 2^`bits` slots: the hash's top bits.
#[inline(always)]
#[must_use]
pub const fn slot_index(hash: u64, bits: u32) -> u32 {
    // bits is 1 to 26, see ServiceValue; the mask only keeps the shift within the word.
    (hash >> ((64 - bits) & 63)) as u32
}

/// Source to hash, in one step.
#[inline(always)]
#[must_use]
pub const fn hash_ipv4(affinity: Affinity, client: u32, ports: u32, seed: Seed) -> u64 {
    mix(affinity.source_ipv4(client, ports), seed)
}

/// One entry of a lookup table: bits 0-15 the current backend, 16-31 the previous one.
///
/// Current 0: no backend takes new flows. Previous 0: the slot is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// A slot in transition, or settled where `previous` is 0.
    #[must_use]
    pub const fn new(current: u16, previous: u16) -> Self {
        Self(current as u32 | (previous as u32) << 16)
    }

    /// A settled slot.
    #[must_use]
    pub const fn settled(current: u16) -> Self {
        Self::new(current, 0)
    }

    /// The pick after the change.
    #[inline(always)]
    #[must_use]
    pub const fn current(self) -> u16 {
        self.0 as u16
    }

    /// The pick before the change; 0 where the slot is settled.
    #[inline(always)]
    #[must_use]
    pub const fn previous(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether flow state must be read.
    #[inline(always)]
    #[must_use]
    pub const fn in_transition(self) -> bool {
        self.previous() != 0
    }
}

/// What the data path must know of a backend, in one word: bits 0-47 the MAC address, 48-62 the port it is reached
/// through, 63 whether it has failed.
///
/// 0: no such backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend(pub u64);

impl Backend {
    const FAILED: u64 = 1 << 63;
    /// The port that means "this very host".
    pub const LOCAL_PORT: u16 = 0x7fff;

    /// `mac` as [`crate::wire::mac_word`]; 0 where it is not known.
    #[must_use]
    pub const fn new(mac: u64, port: u16, failed: bool) -> Self {
        Self(mac & crate::wire::MAC_MASK | (port as u64 & 0x7fff) << 48 | (failed as u64) << 63)
    }

    /// The MAC address as [`crate::wire::mac_word`]; 0 where it is not known.
    #[inline(always)]
    #[must_use]
    pub const fn mac(self) -> u64 {
        self.0 & crate::wire::MAC_MASK
    }

    /// The index in `PORTS` of the interface it is reached through.
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 48) as u16 & 0x7fff
    }

    /// Whether flows recorded on it have to move.
    #[inline(always)]
    #[must_use]
    pub const fn failed(self) -> bool {
        self.0 & Self::FAILED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_takes_its_part() {
        let client = 0xc0a8_0a63;
        let ports = 0x1234_0050;
        assert_eq!(
            Affinity::NONE_IPV4.source_ipv4(client, ports),
            0xc0a8_0a63_1234_0050
        );
        assert_eq!(
            Affinity::CLIENT_IPV4.source_ipv4(client, ports),
            0xc0a8_0a63_0000_0000
        );
        assert_eq!(
            Affinity::NETWORK_IPV4.source_ipv4(client, ports),
            0xc0a8_0a00_0000_0000
        );
        assert_eq!(
            Affinity {
                prefix: 0,
                ports: false
            }
            .source_ipv4(client, ports),
            0
        );
    }

    #[test]
    fn slot_and_backend_round_trip() {
        let slot = Slot::new(0xffff, 1);
        assert_eq!(
            (slot.current(), slot.previous(), slot.in_transition()),
            (0xffff, 1, true)
        );
        assert!(!Slot::settled(7).in_transition());
        let backend = Backend::new(0x0605_0403_0201, 0x7fff, true);
        assert_eq!(
            (backend.mac(), backend.port(), backend.failed()),
            (0x0605_0403_0201, 0x7fff, true)
        );
    }

    #[test]
    fn index_is_the_top_bits_so_that_tables_double() {
        let hash = 0x8123_4567_89ab_cdef;
        for bits in 1..26 {
            assert_eq!(slot_index(hash, bits + 1) / 2, slot_index(hash, bits));
        }
    }
}
