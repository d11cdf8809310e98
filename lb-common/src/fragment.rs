//! Fragments: the later ones of a packet go where its first one went. The table is small, bounded, and touched by fragments
//! alone.
//!
//! A record is found by a keyed 64-bit digest of what RFC 791 section 3.2 and RFC 8200 section 4.5 say that the fragments of
//! one packet share; it has the same make as a flow's.

use crate::address::Address;
use crate::flow::{self, FlowLine, FlowState, FlowWay4, Key, Owner, Phase, Put};
use crate::hash::{Seed, mix};
use crate::tables::Tables;

/// For so long, in units of [`flow::TICK_NS`], a first fragment's record is believed: Linux waits for the others as long
/// (`IP_FRAG_TIME`, 30 s).
pub const FRAGMENT_TICKS: u16 = (30_000_000_000 / flow::TICK_NS) as u16 + 1;

/// What the fragments of one packet share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// A keyed digest of it.
    pub digest: u64,
}

impl FragmentKey {
    /// The fragments of the packet from `source` to `destination` with this identification and, for IPv4, this protocol.
    #[inline(always)]
    #[must_use]
    pub fn new<A: Address>(
        source: A,
        destination: A,
        protocol: u8,
        identification: u32,
        seed: Seed,
    ) -> Self {
        // Each step is a keyed bijection of what came before, mixed with the next part.
        let protocol = if A::FRAGMENTS_SHARE_PROTOCOL {
            protocol
        } else {
            0
        };
        let from = mix(source.endpoints(identification, seed), seed);
        let to = destination.endpoints(u32::from(protocol), seed);
        Self {
            digest: mix(from ^ to.rotate_left(32), Seed([seed.0[1], seed.0[0]])),
        }
    }
}

impl Key for FragmentKey {
    type Way = FlowWay4;

    #[inline(always)]
    fn line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<FlowWay4>> {
        tables.fragment_bucket(index)
    }

    #[inline(always)]
    fn bits<T: Tables>(tables: &T) -> u32 {
        tables.fragment_bits()
    }

    #[inline(always)]
    fn hash(self, seed: Seed) -> u64 {
        mix(self.digest, seed)
    }

    #[inline(always)]
    fn owner(self) -> Owner {
        Owner {
            service: 0,
            udp: false,
        }
    }

    #[inline(always)]
    fn differs(self, way: &FlowWay4) -> u64 {
        way.key.get() ^ self.digest
    }

    #[inline(always)]
    fn write(self, way: &FlowWay4) {
        way.key.set(self.digest);
    }

    #[inline(always)]
    fn find<T: Tables>(self, tables: &T, hash: u64) -> FlowState {
        tables.find_fragment(self, hash)
    }

    #[inline(always)]
    fn put<T: Tables>(self, tables: &T, hash: u64, state: FlowState) -> Put {
        tables.put_fragment(self, hash, state)
    }
}

/// The backend that the first fragment went to, if it has been seen.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, key: FragmentKey, seed: Seed) -> Option<u16> {
    let state = flow::find(tables, key, key.hash(seed))?;
    if state.silent(tables.now()) > FRAGMENT_TICKS {
        return None;
    }
    Some(state.backend())
}

/// Records where the first fragment went.
#[inline(always)]
pub fn record<T: Tables>(tables: &T, key: FragmentKey, seed: Seed, backend: u16) {
    if !tables.records() {
        return;
    }
    // Of packets that will never be whole a flood replaces itself.
    const PHASE: Phase = Phase::Opening;
    let hash = key.hash(seed);
    let state = FlowState::new(backend, key.owner(), tables.now(), hash, PHASE);
    key.put(tables, hash, state);
}
