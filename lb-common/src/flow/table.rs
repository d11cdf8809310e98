//! The flow table: set-associative buckets without locks, touched only in slots in transition and by services that track
//! always. One table for each family, and a small one of the same make for fragments.
//!
//! A flow has a home, a bucket of four ways, and two more buckets in the same page that it may be in (Azar, Broder, Karlin,
//! Upfal, "Balanced allocations", 1999). It is put into its home unless that is nearly full, and into the emptiest of
//! the three otherwise: nearly every flow is found where it is looked for first. A way is two words that are written one
//! after the other; two processors that write the same way at once could leave one's key with the other's state, so the
//! state carries check bits of the key it belongs to, and a way whose check bits do not fit is empty to every reader.

use super::{FlowKey, FlowState, Owner, PHASE_SHIFT, Phase};
use crate::abi::WAYS;
use crate::address::{Address, Ipv6};
use crate::hash::{Seed, mix_flow};
use crate::memory::Word64;
use crate::tables::{Event, Tables};

/// What records are found by.
pub trait Key: Copy {
    /// One record.
    type Way: Way + 'static;

    /// A bucket of the table that holds such records.
    fn line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<Self::Way>>;
    /// log2 of the number of buckets.
    fn bits<T: Tables>(tables: &T) -> u32;
    /// The hash of the key: names its buckets and its check bits.
    fn hash(self, seed: Seed) -> u64;
    /// Whose record it is, as [`FlowState`] holds it.
    fn owner(self) -> Owner;
    /// What `way` names differently: 0 where it names this key.
    fn differs(self, way: &Self::Way) -> u64;
    /// Whether `way` names this key.
    #[inline(always)]
    fn is_in(self, way: &Self::Way) -> bool {
        self.differs(way) == 0
    }
    /// Writes the key into `way`.
    fn write(self, way: &Self::Way);
    /// [`find_in_table`], by way of [`Tables`].
    fn find<T: Tables>(self, tables: &T, hash: u64) -> FlowState;
    /// [`put_into_table`], by way of [`Tables`].
    fn put<T: Tables>(self, tables: &T, hash: u64, state: FlowState) -> Put;
}

impl<A: Address> Key for FlowKey<A> {
    type Way = A::Way;

    #[inline(always)]
    fn line<T: Tables>(tables: &T, index: u32) -> Option<&FlowLine<A::Way>> {
        A::flow_line(tables, index)
    }

    #[inline(always)]
    fn bits<T: Tables>(tables: &T) -> u32 {
        A::flow_bits(tables)
    }

    #[inline(always)]
    fn hash(self, seed: Seed) -> u64 {
        let owner = self.owner().number();
        mix_flow(self.client.endpoints(self.ports, seed), owner, seed)
    }

    #[inline(always)]
    fn owner(self) -> Owner {
        Owner {
            service: self.service,
            udp: self.udp,
        }
    }

    #[inline(always)]
    fn differs(self, way: &A::Way) -> u64 {
        self.client.differs(self.ports, way)
    }

    #[inline(always)]
    fn write(self, way: &A::Way) {
        self.client.write(self.ports, way);
    }

    #[inline(always)]
    fn find<T: Tables>(self, tables: &T, hash: u64) -> FlowState {
        A::find_flow(tables, self, hash)
    }

    #[inline(always)]
    fn put<T: Tables>(self, tables: &T, hash: u64, state: FlowState) -> Put {
        A::put_flow(tables, self, hash, state)
    }
}

/// One record.
pub trait Way {
    /// The client's address.
    type Client: Address;

    /// Its [`FlowState`]; 0 where there is none.
    fn state(&self) -> &Word64;
    /// What it names; only means something where [`Key::hash`] of it fits the state. Not for the data path.
    fn flow(&self) -> FlowKey<Self::Client>;
}

/// One recorded flow of an IPv4 client, or none.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct FlowWay4 {
    /// Client address 32-63, client port 16-31, service port 0-15; all in host order.
    pub key: Word64,
    /// [`FlowState`]; 0 where there is no flow.
    pub state: Word64,
}

impl FlowWay4 {
    /// What the way names; only means something where [`Key::hash`] of it fits the state.
    #[must_use]
    pub fn key(&self) -> FlowKey<u32> {
        let (key, Owner { service, udp }) = (self.key.get(), FlowState(self.state.get()).owner());
        FlowKey {
            client: (key >> 32) as u32,
            ports: key as u32,
            service,
            udp,
        }
    }
}

impl Way for FlowWay4 {
    type Client = u32;

    #[inline(always)]
    fn state(&self) -> &Word64 {
        &self.state
    }

    fn flow(&self) -> FlowKey<u32> {
        self.key()
    }
}

/// One recorded flow of an IPv6 client, or none.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct FlowWay6 {
    /// First half of the client's address, host order.
    pub high: Word64,
    /// Second half.
    pub low: Word64,
    /// Client port 16-31, service port 0-15.
    pub ports: Word64,
    /// [`FlowState`]; 0 where there is no flow.
    pub state: Word64,
}

impl FlowWay6 {
    /// What the way names; only means something where [`Key::hash`] of it fits the state.
    #[must_use]
    pub fn key(&self) -> FlowKey<Ipv6> {
        let Owner { service, udp } = FlowState(self.state.get()).owner();
        FlowKey {
            client: Ipv6 {
                high: self.high.get(),
                low: self.low.get(),
            },
            ports: self.ports.get() as u32,
            service,
            udp,
        }
    }
}

impl Way for FlowWay6 {
    type Client = Ipv6;

    #[inline(always)]
    fn state(&self) -> &Word64 {
        &self.state
    }

    fn flow(&self) -> FlowKey<Ipv6> {
        self.key()
    }
}

/// One bucket of a flow table.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct FlowLine<W> {
    /// In no order.
    pub ways: [W; WAYS],
}

/// A bucket of the IPv4 flow table: one cache line.
pub type FlowBucket = FlowLine<FlowWay4>;
/// A bucket of the IPv6 flow table: two cache lines.
pub type FlowBucket6 = FlowLine<FlowWay6>;

const _: () =
    assert!(size_of::<FlowBucket>() == 64 && size_of::<FlowBucket6>() == 128 && WAYS == 4);

/// How many buckets a flow may be in.
pub const HOMES: usize = 3;

/// The buckets of a flow in a table of 2^`bits` buckets, at most 2^26: its home, and two others of the same 32 buckets, which
/// is a page or half of one, so that what is looked up in all of them is translated once. They are different ones where there
/// are at least four.
#[inline(always)]
#[must_use]
pub const fn bucket_indices(hash: u64, bits: u32) -> [u32; HOMES] {
    let home = (hash >> ((64 - bits) & 63)) as u32;
    // The six bits below those that name the home of the largest table: three for each of the others, and in the lowest two
    // of five bits which one it is.
    let other = (hash >> 30) as u32;
    let mask = (1 << (bits & 31)) - 1;
    [
        home,
        home ^ (other & 0x1c | 1) & mask,
        home ^ (other >> 3 & 0x1c | 2) & mask,
    ]
}

/// The state of `way`, if it holds this key. The state is read once: what it was found by is what the caller gets, even
/// if another processor or the controller's sweep changes the way a moment later.
#[inline(always)]
fn state_in<K: Key>(way: &K::Way, key: K, hash: u64) -> Option<FlowState> {
    if !key.is_in(way) {
        return None;
    }
    let state = FlowState(way.state().get());
    if state.belongs(hash, key.owner()) {
        Some(state)
    } else {
        None
    }
}

/// The state of `key` in a bucket.
#[inline(always)]
fn find_in<K: Key>(bucket: &FlowLine<K::Way>, key: K, hash: u64) -> Option<FlowState> {
    let [a, b, c, d] = &bucket.ways;
    if let Some(state) = state_in(a, key, hash) {
        return Some(state);
    }
    if let Some(state) = state_in(b, key, hash) {
        return Some(state);
    }
    if let Some(state) = state_in(c, key, hash) {
        return Some(state);
    }
    state_in(d, key, hash)
}

/// The state of `key`, if it is recorded. `hash` is [`Key::hash`] of it.
#[inline(always)]
pub fn find<K: Key, T: Tables>(tables: &T, key: K, hash: u64) -> Option<FlowState> {
    let state = key.find(tables, hash);
    if state.used() { Some(state) } else { None }
}

/// What [`find`] does, in the table itself; not used where the key is not recorded.
#[inline(always)]
pub fn find_in_table<K: Key, T: Tables>(tables: &T, key: K, hash: u64) -> FlowState {
    let [home, second, third] = bucket_indices(hash, K::bits(tables));
    if let Some(bucket) = K::line(tables, home)
        && let Some(found) = find_in(bucket, key, hash)
    {
        return found;
    }
    if let Some(bucket) = K::line(tables, second)
        && let Some(found) = find_in(bucket, key, hash)
    {
        return found;
    }
    if let Some(bucket) = K::line(tables, third)
        && let Some(found) = find_in(bucket, key, hash)
    {
        return found;
    }
    FlowState(0)
}

/// The state of `key` in its home, where nearly every recorded flow is, and the way that holds it. The state is read once, as
/// [`find`] does.
///
/// Without branches: a processor that guesses in which way a flow is, and finds out when the line has come from memory, has
/// begun with the wrong packets meanwhile.
#[inline(always)]
pub fn find_at_home<K: Key, T: Tables>(
    tables: &T,
    key: K,
    hash: u64,
) -> Option<(FlowState, &K::Way)> {
    let [home, ..] = bucket_indices(hash, K::bits(tables));
    let bucket = K::line(tables, home)?;
    let [a, b, c, d] = &bucket.ways;
    let owner = key.owner();
    // All ones until it is found: two processors that record a flow at once may leave it in two ways, of which the first counts.
    let mut sought = u64::MAX;
    let mut state_in = |way: &K::Way| {
        let state = FlowState(way.state().get());
        let other = key.differs(way) | state.differs(hash, owner);
        // All ones where nothing differs. The compiler knows this for a comparison, and would make a branch of it.
        let differs = tables.held(tables.held(other | other.wrapping_neg()) >> 63);
        let same = differs.wrapping_sub(1) & sought;
        sought ^= same;
        (state.0 & same, same)
    };
    let (a, _) = state_in(a);
    let (b, in_b) = state_in(b);
    let (c, in_c) = state_in(c);
    let (d, in_d) = state_in(d);
    let state = FlowState(a | b | c | d);
    if state.used() {
        // The compiler knows that no other ways come out of this, Linux before 6.10 does not: to its verifier an "or" of two
        // numbers that are not constant is any number. So the mask must be left in place.
        let way = tables.held(in_b & 1 | in_c & 2 | in_d & 3) & 3;
        Some((state, &bucket.ways[way as usize]))
    } else {
        None
    }
}

/// Writes the state of a way of the bucket, if one holds `key`; says whether one does.
#[inline(always)]
fn write_in<K: Key>(bucket: &FlowLine<K::Way>, key: K, hash: u64, state: FlowState) -> bool {
    let [a, b, c, d] = &bucket.ways;
    if state_in(a, key, hash).is_some() {
        a.state().set(state.0);
    } else if state_in(b, key, hash).is_some() {
        b.state().set(state.0);
    } else if state_in(c, key, hash).is_some() {
        c.state().set(state.0);
    } else if state_in(d, key, hash).is_some() {
        d.state().set(state.0);
    } else {
        return false;
    }
    true
}

/// What an empty way is worth replacing.
const EMPTY: u32 = 1 << 18;
/// What the way of a flow that has ended is worth at least.
const ENDED: u32 = 1 << 17;
/// What the way of a flow that may never open is worth at least: a flood of SYN replaces itself before it replaces a flow.
const OPENING: u32 = 1 << 16;

/// How much a way deserves to be replaced: an empty one most, then an ended one, then one that only opened, then the
/// longest silent one.
#[inline(always)]
const fn dispensable(state: FlowState, now: u16) -> u32 {
    // Without branches, because the kernel's verifier walks both sides of each, for every way of a bucket again: the rank by
    // phase from a table of two bits each, and a mask that is all ones where the way is empty.
    const RANKS: u32 =
        (OPENING >> 16) << (2 * Phase::Opening as u32) | (ENDED >> 16) << (2 * Phase::Ended as u32);
    let phase = (state.0 >> PHASE_SHIFT & 3) as u32;
    let rank = (RANKS >> (2 * phase) & 3) << 16;
    let empty = ((state.0 >> 63) as u32).wrapping_sub(1);
    (rank | state.silent(now) as u32) & !empty | EMPTY & empty
}

/// The most dispensable way of a bucket.
#[derive(Clone, Copy)]
struct Candidate {
    /// How dispensable it is, and in the low two bits which way it is: so that the verifier sees one number, not a choice of
    /// four pointers.
    worth: u32,
    /// How many of the bucket's ways are empty.
    empty: u32,
}

impl Candidate {
    /// What it is compared by with those of other buckets.
    #[inline(always)]
    const fn rank(self) -> u32 {
        (self.empty << 22 | self.worth) >> 2
    }
}

/// The best way of a bucket to put a flow into; the last of several that are equal.
#[inline(always)]
fn candidate<W: Way, T: Tables>(tables: &T, bucket: &FlowLine<W>, now: u16) -> Candidate {
    let [a, b, c, d] = &bucket.ways;
    let worth = |way: &W| dispensable(FlowState(way.state().get()), now);
    let (a, b, c, d) = (worth(a), worth(b), worth(c), worth(d));
    let first = larger(tables, a << 2, b << 2 | 1);
    let second = larger(tables, c << 2 | 2, d << 2 | 3);
    Candidate {
        worth: larger(tables, first, second),
        empty: a / EMPTY + b / EMPTY + c / EMPTY + d / EMPTY,
    }
}

/// The larger one, without a branch: the verifier would walk both sides of each for every further bucket again.
#[inline(always)]
fn larger<T: Tables>(tables: &T, a: u32, b: u32) -> u32 {
    let difference = tables.held(u64::from(a).wrapping_sub(b.into()));
    // All ones where the difference is below zero.
    let below = tables.held((difference.cast_signed() >> 63).cast_unsigned());
    u64::from(a).wrapping_sub(difference & below) as u32
}

/// What putting a record into a table had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Put {
    /// The key was there: it has the new state now.
    Renewed = 0,
    /// It took an empty way, or one whose flow had ended or never opened.
    New = 1,
    /// It replaced a flow that had not ended.
    Replaced = 2,
}

impl Put {
    /// The one of this number.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::New,
            2 => Self::Replaced,
            _ => Self::Renewed,
        }
    }
}

/// So many ways of a flow's home are empty where it is put there without a look at the others: one of them may stay so.
const ROOMY: u32 = 2;

/// Gives `key` this state, in the table itself: in the way that holds it, or else in the most dispensable one of its home, or
/// of all its buckets where its home has not two empty ways.
#[inline(always)]
pub fn put_into_table<K: Key, T: Tables>(tables: &T, key: K, hash: u64, state: FlowState) -> Put {
    let [home, second, third] = bucket_indices(hash, K::bits(tables));
    let (Some(home), Some(second), Some(third)) = (
        K::line(tables, home),
        K::line(tables, second),
        K::line(tables, third),
    ) else {
        return Put::Renewed;
    };
    if write_in(home, key, hash, state)
        || write_in(second, key, hash, state)
        || write_in(third, key, hash, state)
    {
        return Put::Renewed;
    }
    let now = state.seen();
    let (mut bucket, mut taken) = (home, candidate(tables, home, now));
    if taken.empty < ROOMY {
        // The emptiest bucket, or the one with the most dispensable way; the first of those that are equal.
        let (in_second, in_third) = (
            candidate(tables, second, now),
            candidate(tables, third, now),
        );
        if in_second.rank() > taken.rank() {
            (bucket, taken) = (second, in_second);
        }
        if in_third.rank() > taken.rank() {
            (bucket, taken) = (third, in_third);
        }
    }
    let way = &bucket.ways[(taken.worth & 3) as usize];
    // The state goes first to nothing, so that no reader takes the old state for the new key's.
    way.state().set(0);
    key.write(way);
    way.state().set(state.0);
    if taken.worth >> 2 < OPENING {
        Put::Replaced
    } else {
        Put::New
    }
}

/// Records a flow, and counts what that took.
#[inline(always)]
pub fn record<A: Address, T: Tables>(
    tables: &T,
    key: FlowKey<A>,
    hash: u64,
    backend: u16,
    phase: Phase,
) {
    let state = FlowState::new(backend, key.owner(), tables.now(), hash, phase);
    match key.put(tables, hash, state) {
        Put::Renewed => {}
        Put::New => tables.count_event(Event::FlowRecorded),
        Put::Replaced => {
            tables.count_event(Event::FlowRecorded);
            tables.count_event(Event::FlowForgotten);
        }
    }
}

/// [`touch`] where it is known which way holds the flow.
#[inline(always)]
pub fn renew<W: Way, T: Tables>(tables: &T, way: &W, known: FlowState, phase: Phase) {
    let state = known.renewed(tables.now(), phase);
    if state != known {
        way.state().set(state.0);
    }
}

/// Notes that a recorded flow has sent another packet.
///
/// The word is only written when it changes, so that a busy flow does not dirty its cache line with every packet. A
/// flow's phase never goes back: what opens anew is recorded anew.
#[inline(always)]
pub fn touch<A: Address, T: Tables>(
    tables: &T,
    key: FlowKey<A>,
    hash: u64,
    known: FlowState,
    phase: Phase,
) {
    let now = tables.now();
    let state = known.renewed(now, phase);
    if state != known {
        record(tables, key, hash, known.backend(), state.phase());
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        service: 0xabcd,
        udp: false,
    };

    #[test]
    fn keys_come_back_from_their_ways() {
        let four = FlowKey::udp(0x0a00_0001, 0xc000_0050, 9);
        let way = FlowWay4::default();
        four.write(&way);
        way.state
            .set(FlowState::new(1, four.owner(), 0, 0, Phase::Open).0);
        assert_eq!(way.key(), four);
        assert_eq!((four.client_port(), four.service_port()), (0xc000, 80));
        let client = Ipv6 { high: 7, low: 8 };
        let six = FlowKey::tcp(client, 0xc000_0050, 9);
        let way = FlowWay6::default();
        six.write(&way);
        way.state
            .set(FlowState::new(1, six.owner(), 0, 0, Phase::Open).0);
        assert_eq!(way.key(), six);
        assert!(six.is_in(&way) && !FlowKey::tcp(client, 0xc000_0051, 9).is_in(&way));
    }

    #[test]
    fn what_is_replaced_first() {
        let hash = 0;
        let state = |seen, phase| FlowState::new(1, OWNER, seen, hash, phase);
        let ended = state(100, Phase::Ended);
        let opening = state(100, Phase::Opening);
        let open = |seen| state(seen, Phase::Open);
        assert!(dispensable(FlowState(0), 100) > dispensable(ended, 100));
        assert!(dispensable(ended, 100) > dispensable(state(101, Phase::Opening), 100));
        assert!(
            dispensable(opening, 100) > dispensable(open(101), 100),
            "even against the longest silence"
        );
        assert!(dispensable(open(10), 100) > dispensable(open(90), 100));
    }
}
