//! source -> hash -> slot -> backend.

use crate::address::Address;
use crate::features::Features;
use crate::hash::{Seed, mix};

/// Which part of the packet picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Leading bits of the source address that pick: 32 for a whole IPv4 address, 24 for Windows NLB's "Class C".
    pub prefix: u8,
    /// Whether source and destination port pick as well: the 5-tuple. With the whole address then, whatever `prefix` says.
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

    /// `affinity = "none"` for IPv6.
    pub const NONE_IPV6: Self = Self {
        prefix: 128,
        ports: true,
    };
    /// `affinity = "client"` for IPv6.
    pub const CLIENT_IPV6: Self = Self {
        prefix: 128,
        ports: false,
    };
    /// `affinity = "network"` for IPv6: the least that one site is given (RFC 6177).
    pub const NETWORK_IPV6: Self = Self {
        prefix: 56,
        ports: false,
    };
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
pub fn hash_of<A: Address>(affinity: Affinity, client: A, ports: u32, seed: Seed) -> u64 {
    mix(client.source(affinity, ports, seed), seed)
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

/// What the data path must know of a backend, in one word: bits 0-47 the MAC address, 48-60 the port it is reached
/// through, 61 whether the MAC address is known, 62 whether it is closed to new clients, 63 whether it has failed.
///
/// 0: no such backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend(pub u64);

impl Backend {
    const FAILED: u64 = 1 << 63;
    const CLOSED: u64 = 1 << 62;
    const RESOLVED: u64 = 1 << 61;

    /// The port of a backend that is this very host: its packets go up the host's own stack.
    pub const LOCAL_PORT: u16 = 0x1fff;

    /// `mac` as [`crate::wire::mac_word`]; 0 where it is not known.
    #[must_use]
    pub const fn new(mac: u64, port: u16, failed: bool) -> Self {
        let mac = mac & crate::wire::MAC_MASK;
        let resolved = if mac == 0 { 0 } else { Self::RESOLVED };
        Self(mac | (port as u64 & Self::LOCAL_PORT as u64) << 48 | resolved | (failed as u64) << 63)
    }

    /// The same backend, closed to new clients or not: one that drains. Only asked where clients are recorded, because no
    /// slot names it as current.
    #[inline(always)]
    #[must_use]
    pub const fn closed_to_new(self, closed: bool) -> Self {
        Self(self.0 & !Self::CLOSED | (closed as u64) << 62)
    }

    /// Whether recorded clients open their new flows elsewhere.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed_to_new(self) -> bool {
        self.0 & Self::CLOSED != 0
    }

    /// The MAC address as [`crate::wire::mac_word`]; 0 where it is not known.
    #[inline(always)]
    #[must_use]
    pub const fn mac(self) -> u64 {
        self.0 & crate::wire::MAC_MASK
    }

    /// The index in `PORTS` of the interface it is reached through, or [`Self::LOCAL_PORT`].
    #[inline(always)]
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 48) as u16 & Self::LOCAL_PORT
    }

    /// Whether flows recorded on it have to move.
    #[inline(always)]
    #[must_use]
    pub const fn failed(self) -> bool {
        self.0 & Self::FAILED != 0
    }
}

/// What the data path compares with and writes of the interface that a packet came in on, worked out beforehand: a word each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Its MAC address, as [`crate::wire::mac_word`].
    Mac,
    /// The same in the upper 48 bits; with [`Features::RARE`] in use, what no address is.
    Plain,
    /// The upper 16 bits of the word of a [`Backend`] which nothing is in the way of, behind this port.
    Ready,
    /// The exclusive or of such a word and this is what a frame from here to there begins with: eight bytes, as a
    /// little-endian word.
    Key,
    /// The four bytes behind them, likewise.
    Rest,
}

impl Own {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// This word for the port with this number and its MAC address, as [`crate::wire::mac_word`].
    #[inline(always)]
    #[must_use]
    pub const fn of(self, port: u16, mac: u64, features: Features) -> u64 {
        let ready = Backend::RESOLVED >> 48 | port as u64;
        match self {
            Self::Mac => mac,
            Self::Plain if features.has(Features::RARE) => u64::MAX,
            Self::Plain => mac << 16,
            Self::Ready => ready,
            Self::Key => (ready ^ mac) << 48,
            Self::Rest => mac >> 16 & 0xffff_ffff,
        }
    }

    /// All of them, in their order.
    #[must_use]
    pub const fn words(port: u16, mac: u64, features: Features) -> [u64; Self::COUNT] {
        [
            Self::Mac.of(port, mac, features),
            Self::Plain.of(port, mac, features),
            Self::Ready.of(port, mac, features),
            Self::Key.of(port, mac, features),
            Self::Rest.of(port, mac, features),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ipv6;

    #[test]
    fn affinity_takes_its_part() {
        let client = 0xc0a8_0a63;
        let ports = 0x1234_0050;
        let source = |affinity| client.source(affinity, ports, Seed([1, 2]));
        assert_eq!(source(Affinity::NONE_IPV4), 0xc0a8_0a63_1234_0050);
        assert_eq!(source(Affinity::CLIENT_IPV4), 0xc0a8_0a63_0000_0000);
        assert_eq!(source(Affinity::NETWORK_IPV4), 0xc0a8_0a00_0000_0000);
        assert_eq!(
            source(Affinity {
                prefix: 0,
                ports: false
            }),
            0
        );
    }

    #[test]
    fn ipv6_affinity_takes_its_part() {
        let source = |affinity, low: u64, ports| {
            let high = 0x2001_0db8_0001_02ff;
            Ipv6 { high, low }.source(affinity, ports, Seed([1, 2]))
        };
        assert_ne!(
            source(Affinity::NONE_IPV6, 1, 5),
            source(Affinity::NONE_IPV6, 1, 6)
        );
        assert_eq!(
            source(Affinity::CLIENT_IPV6, 1, 5),
            source(Affinity::CLIENT_IPV6, 1, 6)
        );
        assert_ne!(
            source(Affinity::CLIENT_IPV6, 1, 5),
            source(Affinity::CLIENT_IPV6, 2, 5)
        );
        assert_eq!(
            source(Affinity::NETWORK_IPV6, 1, 5),
            source(Affinity::NETWORK_IPV6, 2, 6)
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
        let backend = Backend::new(0x0605_0403_0201, Backend::LOCAL_PORT, true);
        for closed in [false, true] {
            let backend = backend.closed_to_new(closed);
            assert_eq!(
                (backend.mac(), backend.port(), backend.failed()),
                (0x0605_0403_0201, Backend::LOCAL_PORT, true)
            );
            assert_eq!(backend.is_closed_to_new(), closed);
        }
    }

    #[test]
    fn a_ready_backends_word_becomes_a_head() {
        let (mac, mine) = (0x0605_0403_0201, 0x1615_1413_1211);
        for port in [0, 1, 63] {
            let [word, shifted, upper, key, rest] = Own::words(port, mine, Features::FRAGMENTS);
            let ready = Backend::new(mac, port, false);
            assert_eq!(ready.0 >> 48, upper);
            assert_eq!(ready.0 ^ key, mac | mine << 48);
            assert_eq!((word, shifted, rest), (mine, mine << 16, mine >> 16));
            let rare = Own::Plain.of(port, mine, Features::PICK);
            assert_ne!(rare, rare >> 16 << 16, "no address is that");
            for other in [
                Backend::new(mac, port + 1, false),
                Backend::new(mac, Backend::LOCAL_PORT, false),
                Backend::new(0, port, false),
                Backend::new(mac, port, true),
                ready.closed_to_new(true),
                Backend::default(),
            ] {
                assert_ne!(other.0 >> 48, upper, "{other:?}");
            }
        }
    }

    #[test]
    fn index_is_the_top_bits_so_that_tables_double() {
        let hash = 0x8123_4567_89ab_cdef;
        for bits in 1..26 {
            assert_eq!(slot_index(hash, bits + 1) / 2, slot_index(hash, bits));
        }
    }
}
