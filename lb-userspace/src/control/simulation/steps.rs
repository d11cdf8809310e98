//! What may happen in the simulation, and how often.

use lb_common::abi::InfoTrack;
use proptest::prelude::*;

use super::{
    BACKENDS, FLOWS, SERVICES, SOURCES, WEIGHTS,
    services::{Traffic, Traffics},
};

/// What may happen next. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// SYNs, QUIC's Initial packets or datagrams of that many flows from this one on.
    Open(usize, usize),
    /// Packets in the middle of that many flows from this one on.
    Send(usize, usize),
    /// FINs, likewise; of other protocols what tells nobody that it is the last.
    Close(usize, usize),
    /// RSTs, likewise.
    Reset(usize, usize),
    /// ICMP errors about that many flows from this one on.
    Complain(usize, usize),
    /// Something about one backend, and the controller acts on it.
    Change(usize, usize, Change),
    /// The same, but the controller is killed after that many writes; packets come; another controller takes over.
    Killed(usize, usize, Change, u32),
    /// A service is taken out of the configuration, or put back.
    ToggleService(usize),
    /// A source of the second service is found hot, or calm again.
    Turn(usize, bool),
    /// The same, but the controller is killed after that many writes.
    KilledTurn(usize, bool, u32),
    /// The configuration of the second service ceases to spread hot sources, or begins to.
    ToggleSpread,
    /// A service has another `track` from now on, and an `affinity_timeout` or not, as far as that fits.
    Follow(usize, InfoTrack, bool),
    /// The same, but the controller is killed after that many writes.
    KilledFollow(usize, InfoTrack, bool, u32),
    /// Time passes, in milliseconds, without a sweep.
    Pass(u64),
    /// The controller sweeps.
    Sweep,
    /// So many pieces of a sweep.
    SweepPieces(usize),
    /// Time passes in steps of a sweep.
    Wait(u64),
    /// Another controller takes over what is in the maps.
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    ToggleDrain,
    /// The time of its drain is up, if it is drained.
    TimeUp,
    /// `failback = "auto"` becomes `"manual"` and the other way round, for its service.
    ToggleFailback,
    /// The operator lets its service's new flows go back.
    Failback,
    ToggleFail,
    ToggleProbe,
    ToggleMac,
    OtherMac,
    ToggleListed,
    OtherAddress,
    Weight(usize),
    Priority(u32),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => Just(Change::ToggleDrain),
        2 => Just(Change::TimeUp),
        1 => Just(Change::ToggleFailback),
        1 => Just(Change::Failback),
        1 => Just(Change::ToggleFail),
        3 => Just(Change::ToggleProbe),
        1 => Just(Change::ToggleMac),
        1 => Just(Change::OtherMac),
        3 => Just(Change::ToggleListed),
        1 => Just(Change::OtherAddress),
        2 => (0..WEIGHTS.len()).prop_map(Change::Weight),
        1 => (0u32..3).prop_map(Change::Priority),
    ]
}

fn track() -> impl Strategy<Value = InfoTrack> {
    prop_oneof![
        2 => Just(InfoTrack::Changes),
        2 => Just(InfoTrack::Always),
        3 => Just(InfoTrack::Quic),
        1 => Just(InfoTrack::Never),
    ]
}

/// What the clients speak: the first service is always TCP's.
pub(super) fn traffics() -> impl Strategy<Value = Traffics> {
    let any = || {
        prop_oneof![
            Just(Traffic::Quic),
            Just(Traffic::QuicAndTcp),
            Just(Traffic::Udp)
        ]
    };
    let second = prop_oneof![3 => Just(Traffic::Tcp), 2 => any()];
    (second, any(), any()).prop_map(|(second, third, last)| [Traffic::Tcp, second, third, last])
}

/// Any step.
pub(super) fn step() -> impl Strategy<Value = Step> {
    let some = || (0..FLOWS, 1..FLOWS);
    prop_oneof![
        4 => some().prop_map(|(first, count)| Step::Open(first, count)),
        8 => some().prop_map(|(first, count)| Step::Send(first, count)),
        1 => some().prop_map(|(first, count)| Step::Close(first, count / 8)),
        1 => some().prop_map(|(first, count)| Step::Reset(first, count / 8)),
        1 => some().prop_map(|(first, count)| Step::Complain(first, count)),
        9 => (0..SERVICES, 0..BACKENDS, change()).prop_map(|(s, b, c)| Step::Change(s, b, c)),
        2 => (0..SERVICES, 0..BACKENDS, change(), prop_oneof![0u32..12, 0u32..3000])
            .prop_map(|(s, b, c, writes)| Step::Killed(s, b, c, writes)),
        5 => (0..SOURCES, any::<bool>()).prop_map(|(s, spread)| Step::Turn(s, spread)),
        1 => (0..SOURCES, any::<bool>(), 0u32..4).prop_map(|(s, spread, w)| Step::KilledTurn(s, spread, w)),
        1 => Just(Step::ToggleSpread),
        1 => (0..SERVICES).prop_map(Step::ToggleService),
        3 => (0..SERVICES, track(), any::<bool>())
            .prop_map(|(s, track, clients)| Step::Follow(s, track, clients)),
        1 => (0..SERVICES, track(), any::<bool>(), prop_oneof![0u32..8, 0u32..3000])
            .prop_map(|(s, track, clients, writes)| Step::KilledFollow(s, track, clients, writes)),
        2 => (0u64..4000).prop_map(Step::Pass),
        3 => Just(Step::Sweep),
        4 => (1usize..16).prop_map(Step::SweepPieces),
        2 => (0u64..9000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}
