//! The flow table: set-associative cache-line buckets without locks, touched only in slots in transition.
//!
//! A flow has two buckets it may be in (Azar, Broder, Karlin, Upfal, "Balanced allocations", 1999), of four ways each,
//! and is put into the emptier one. A way is two words that are written one after the other; two processors that write
//! the same way at once could leave one's key with the other's state, so the state carries check bits of the key it
//! belongs to, and a way whose check bits do not fit is empty to every reader.

use crate::abi::WAYS;
use crate::hash::{Seed, mix_flow};
use crate::memory::Word64;
use crate::tables::{Event, Tables};

/// Nanoseconds in one unit of the coarse time: a power of two, so that the kernel only shifts (about 0.54 s).
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
/// log2 of [`TICK_NS`].
pub const TICK_SHIFT: u32 = 29;
/// Longest silence, in ticks, that the 16-bit time can tell from a shorter one (about 9.7 h).
pub const LONGEST_SILENCE: u16 = u16::MAX - 256;

/// A flow of one service: client address 32-63, client port 16-31, service port 0-15; all in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Address and ports.
    pub endpoints: u64,
    /// The service's id, which stands for VIP and protocol.
    pub service: u16,
}

impl FlowKey {
    /// A flow of an IPv4 client. `ports` holds the client's port in its upper half and the service's in its lower one.
    #[inline(always)]
    #[must_use]
    pub const fn ipv4(client: u32, ports: u32, service: u16) -> Self {
        Self {
            endpoints: (client as u64) << 32 | ports as u64,
            service,
        }
    }

    /// The client's IPv4 address in host order.
    #[must_use]
    pub const fn client(self) -> u32 {
        (self.endpoints >> 32) as u32
    }

    /// The client's port.
    #[must_use]
    pub const fn client_port(self) -> u16 {
        (self.endpoints >> 16) as u16
    }

    /// The service's port.
    #[must_use]
    pub const fn service_port(self) -> u16 {
        self.endpoints as u16
    }

    /// Client port in the upper half, service port in the lower one.
    #[must_use]
    pub const fn ports(self) -> u32 {
        self.endpoints as u32
    }
}

/// How far a recorded flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Neither side has been seen to end it.
    Open,
    /// The client sent FIN: it sends no more data, but may still receive.
    Closing,
    /// The client sent RST.
    Ended,
}

/// What is known of a recorded flow: bits 0-15 the backend, 16-31 the service, 32-47 the coarse time of its last packet,
/// 48-59 check bits of its key, 60-61 its phase, 63 always set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState(pub u64);

const USED: u64 = 1 << 63;
const CHECK_MASK: u64 = 0xfff << 48;
const PHASE_SHIFT: u32 = 60;

impl FlowState {
    /// Packs a state; `hash` is [`mix_flow`] of the flow's key.
    #[inline(always)]
    #[must_use]
    pub const fn new(backend: u16, service: u16, seen: u16, hash: u64, phase: Phase) -> Self {
        Self(
            USED | backend as u64
                | (service as u64) << 16
                | (seen as u64) << 32
                | (hash << 28 & CHECK_MASK)
                | (phase as u64) << PHASE_SHIFT,
        )
    }

    /// Whether this is the state of a flow of `service` with this hash, and not the rest of a torn write.
    #[inline(always)]
    #[must_use]
    pub const fn belongs(self, hash: u64, service: u16) -> bool {
        const MASK: u64 = USED | CHECK_MASK | 0xffff << 16;
        self.0 & MASK == USED | (hash << 28 & CHECK_MASK) | (service as u64) << 16
    }

    /// Whether there is a flow at all.
    #[inline(always)]
    #[must_use]
    pub const fn used(self) -> bool {
        self.0 & USED != 0
    }

    /// The flow's backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// The service's id.
    #[must_use]
    pub const fn service(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Coarse time of the last packet.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// How far it has come.
    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        match self.0 >> PHASE_SHIFT & 3 {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Ended,
        }
    }

    /// Ticks since the last packet.
    #[inline(always)]
    #[must_use]
    pub const fn silent(self, now: u16) -> u16 {
        now.wrapping_sub(self.seen())
    }
}

/// One recorded flow, or none.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct FlowWay {
    /// [`FlowKey::endpoints`].
    pub key: Word64,
    /// [`FlowState`]; 0 where there is no flow.
    pub state: Word64,
}

/// One cache line of the flow table.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// In no order.
    pub ways: [FlowWay; WAYS],
}

const _: () = assert!(size_of::<FlowBucket>() == 64 && WAYS == 4);

/// The two buckets of a flow in a table of 2^`bits` buckets.
#[inline(always)]
#[must_use]
pub const fn bucket_indices(hash: u64, bits: u32) -> (u32, u32) {
    let first = (hash >> ((64 - bits) & 63)) as u32;
    // An independent second choice from the lower half, spread upwards by a multiplication.
    let second = (hash as u32).wrapping_mul(0x9e37_79b1) >> ((32 - bits) & 31);
    (first, second)
}

/// The hash of a flow: names its buckets and its check bits.
#[inline(always)]
#[must_use]
pub const fn flow_hash(key: FlowKey, seed: Seed) -> u64 {
    mix_flow(key.endpoints, key.service, seed)
}

/// The state of `way`, if it holds this flow. The state is read once: what it was found by is what the caller gets, even
/// if another processor or the controller's sweep changes the way a moment later.
#[inline(always)]
fn state_in(way: &FlowWay, key: FlowKey, hash: u64) -> Option<FlowState> {
    if way.key.get() != key.endpoints {
        return None;
    }
    let state = FlowState(way.state.get());
    if state.belongs(hash, key.service) {
        Some(state)
    } else {
        None
    }
}

#[inline(always)]
fn find_in(bucket: &FlowBucket, key: FlowKey, hash: u64) -> Option<(&FlowWay, FlowState)> {
    let [a, b, c, d] = &bucket.ways;
    if let Some(state) = state_in(a, key, hash) {
        return Some((a, state));
    }
    if let Some(state) = state_in(b, key, hash) {
        return Some((b, state));
    }
    if let Some(state) = state_in(c, key, hash) {
        return Some((c, state));
    }
    if let Some(state) = state_in(d, key, hash) {
        return Some((d, state));
    }
    None
}

/// The way that holds `key` and its state, if the flow is recorded.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, key: FlowKey, hash: u64) -> Option<(&FlowWay, FlowState)> {
    let (first, second) = bucket_indices(hash, tables.flow_bits());
    if let Some(found) = find_in(tables.flow_bucket(first)?, key, hash) {
        return Some(found);
    }
    find_in(tables.flow_bucket(second)?, key, hash)
}

/// How much a way deserves to be replaced: an empty one most, then an ended one, then the longest silent one.
#[inline(always)]
const fn dispensable(state: FlowState, now: u16) -> u32 {
    if !state.used() {
        return 1 << 18;
    }
    let ended = if matches!(state.phase(), Phase::Ended) {
        1 << 17
    } else {
        0
    };
    ended | state.silent(now) as u32
}

/// The best way of a bucket to put a flow into, how dispensable it is, and how many ways are empty.
#[inline(always)]
fn candidate(bucket: &FlowBucket, now: u16) -> (&FlowWay, u32, u32) {
    let [a, b, c, d] = &bucket.ways;
    let mut best = a;
    let mut most = dispensable(FlowState(a.state.get()), now);
    let mut empty = most >> 18;
    let worth = dispensable(FlowState(b.state.get()), now);
    empty += worth >> 18;
    if worth > most {
        (best, most) = (b, worth);
    }
    let worth = dispensable(FlowState(c.state.get()), now);
    empty += worth >> 18;
    if worth > most {
        (best, most) = (c, worth);
    }
    let worth = dispensable(FlowState(d.state.get()), now);
    empty += worth >> 18;
    if worth > most {
        (best, most) = (d, worth);
    }
    (best, most, empty)
}

/// Records a flow, in the way that holds it already or else in the most dispensable one of its two buckets.
#[inline(always)]
pub fn record<T: Tables>(tables: &T, key: FlowKey, hash: u64, backend: u16, phase: Phase) {
    let now = tables.now();
    let state = FlowState::new(backend, key.service, now, hash, phase);
    if let Some((way, _)) = find(tables, key, hash) {
        way.state.set(state.0);
        return;
    }
    let (first, second) = bucket_indices(hash, tables.flow_bits());
    let (Some(first), Some(second)) = (tables.flow_bucket(first), tables.flow_bucket(second))
    else {
        return;
    };
    let (way_of_first, worth_of_first, empty_in_first) = candidate(first, now);
    let (way_of_second, worth_of_second, empty_in_second) = candidate(second, now);
    let second_is_better = empty_in_second > empty_in_first
        || empty_in_second == empty_in_first && worth_of_second > worth_of_first;
    let (way, worth) = if second_is_better {
        (way_of_second, worth_of_second)
    } else {
        (way_of_first, worth_of_first)
    };
    // The state goes first to nothing, so that no reader takes the old state for the new key's.
    way.state.set(0);
    way.key.set(key.endpoints);
    way.state.set(state.0);
    tables.count_event(Event::FlowRecorded);
    if worth < 1 << 17 {
        tables.count_event(Event::FlowForgotten);
    }
}

/// Notes that a recorded flow has sent another packet.
///
/// The word is only written when it changes, so that a busy flow does not dirty its cache line with every packet. A
/// flow's phase never goes back: what opens anew is recorded anew.
#[inline(always)]
pub fn touch(way: &FlowWay, known: FlowState, hash: u64, now: u16, phase: Phase) {
    let phase = if phase as u8 > known.phase() as u8 {
        phase
    } else {
        known.phase()
    };
    let state = FlowState::new(known.backend(), known.service(), now, hash, phase);
    if state != known {
        way.state.set(state.0);
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trips() {
        let hash = 0x0123_4567_89ab_cdef;
        let state = FlowState::new(0xfffe, 0xabcd, 0x1234, hash, Phase::Closing);
        assert!(state.used() && state.belongs(hash, 0xabcd));
        assert!(!state.belongs(hash, 0xabce) && !state.belongs(hash ^ 1 << 20, 0xabcd));
        assert_eq!(
            (state.backend(), state.service(), state.seen()),
            (0xfffe, 0xabcd, 0x1234)
        );
        assert_eq!(state.phase(), Phase::Closing);
        assert_eq!(state.silent(0x1233), u16::MAX);
        assert_eq!(
            FlowState::new(1, 2, 3, hash, Phase::Ended).phase(),
            Phase::Ended
        );
        assert!(!FlowState(0).used());
    }

    #[test]
    fn key_round_trips() {
        let key = FlowKey::ipv4(0x0a00_0001, 0xc000_0050, 9);
        assert_eq!(
            (key.client(), key.client_port(), key.service_port()),
            (0x0a00_0001, 0xc000, 80)
        );
    }

    #[test]
    fn what_is_replaced_first() {
        let hash = 0;
        let open = |seen| FlowState::new(1, 1, seen, hash, Phase::Open);
        let ended = FlowState::new(1, 1, 100, hash, Phase::Ended);
        assert!(dispensable(FlowState(0), 100) > dispensable(ended, 100));
        assert!(
            dispensable(ended, 100) > dispensable(open(101), 100),
            "even against the longest silence"
        );
        assert!(dispensable(open(10), 100) > dispensable(open(90), 100));
    }
}
