//! Hot sources: spread by their ports, and followed while they change from one pick to the other.

use lb_common::{
    address::Ipv6,
    flow::{FlowKey, Phase},
    hot::HotState,
    pick::{Affinity, Slot, hash_of, slot_index},
    verdict::Verdict,
};

use super::{WEB, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{Fixture, Flow, Hot, SEED},
    frame::{syn, syn6, tcp, tcp6, udp},
    network::{CLIENT, CLIENT_PORT, CLIENT6, NEIGHBOUR},
};

/// The client port and the service port of the packets that [`tcp`], [`syn`] and [`udp`] build, but for the latter one of UDP.
const PORTS: u32 = (CLIENT_PORT as u32) << 16 | 80;

/// So many that two picks hardly meet.
const SLOTS: usize = 256;

pub(super) fn cases() -> Vec<Case> {
    [
        settled(),
        going_hot(),
        returning(),
        networks(),
        ipv6(),
        beside_it(),
    ]
    .concat()
}

/// `web` by the client's address, with the client's slot, the slot of address and ports, and all others.
fn picking(affinity: Affinity, client: Slot, spread: Slot, others: Slot) -> Fixture {
    let mut town = town().affinity(affinity).every_slot(others);
    let slots = &mut town.services[0].slots;
    slots.resize(SLOTS, others);
    let index = |affinity| {
        let hash = hash_of(affinity, CLIENT.to_bits(), PORTS, SEED);
        slot_index(hash, slots.len().ilog2()) as usize
    };
    let (of_client, of_ports) = (index(affinity), index(Affinity::NONE_IPV4));
    assert_ne!(of_client, of_ports, "the two picks can't be told apart");
    slots[of_client] = client;
    slots[of_ports] = spread;
    town
}

/// The client's slot names backend 1, that of address and ports backend 2, all others backend 3.
fn apart() -> Fixture {
    picking(
        Affinity::CLIENT_IPV4,
        Slot::settled(1),
        Slot::settled(2),
        Slot::settled(3),
    )
}

fn hot(fixture: Fixture, state: HotState) -> Fixture {
    fixture.hot(Hot {
        service: WEB,
        source: CLIENT.into(),
        state,
    })
}

fn on(backend: u16, phase: Phase) -> Flow {
    Flow {
        key: FlowKey::tcp(CLIENT.to_bits(), PORTS, WEB).named(),
        backend,
        phase,
    }
}

fn open(backend: u16) -> Flow {
    on(backend, Phase::Open)
}

fn opening(backend: u16) -> Flow {
    on(backend, Phase::Opening)
}

fn settled() -> Vec<Case> {
    let spread = || hot(apart(), HotState::SPREAD);
    let moving = |slot| {
        let fixture = picking(
            Affinity::CLIENT_IPV4,
            Slot::new(4, 1),
            slot,
            Slot::settled(3),
        );
        hot(fixture, HotState::SPREAD)
    };
    vec![
        case(
            "by the client's address, a source that is not hot has one backend",
            &apart(),
            syn().build(),
        )
        .forwarded(1),
        case(
            "one that is hot is spread by its ports",
            &spread(),
            syn().build(),
        )
        .forwarded(2),
        case(
            "whatever the packet, and nothing is recorded",
            &spread(),
            tcp().build(),
        )
        .forwarded(2),
        case(
            "a record is not asked for while the slot is settled",
            &spread().flow(open(4)),
            tcp().build(),
        )
        .forwarded(2),
        case(
            "the slot of address and ports may be in transition itself: what opens goes to its current backend",
            &moving(Slot::new(2, 3)),
            syn().build(),
        )
        .forwarded(2)
        .records(opening(2)),
        case(
            "what is older goes to its previous one",
            &moving(Slot::new(2, 3)),
            tcp().build(),
        )
        .forwarded(3)
        .records(open(3)),
        case(
            "a transition of the client's slot means nothing to it",
            &moving(Slot::settled(2)),
            tcp().build(),
        )
        .forwarded(2),
    ]
}

fn going_hot() -> Vec<Case> {
    let state = HotState::COLD.turned(true);
    let going = || hot(apart(), state);
    let with = |client, spread| {
        let fixture = picking(Affinity::CLIENT_IPV4, client, spread, Slot::settled(3));
        hot(fixture, state)
    };
    vec![
        case(
            "found hot: a new flow goes by address and ports, and is recorded",
            &going(),
            syn().build(),
        )
        .forwarded(2)
        .records(opening(2)),
        case(
            "found hot: one that is not recorded is older than that, and stays by the client's slot",
            &going(),
            tcp().build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "found hot: a recorded one stays wherever it is",
            &going().flow(open(4)),
            tcp().build(),
        )
        .forwarded(4),
        case(
            "found hot, the recorded backend fails: it moves by address and ports",
            &going().flow(open(4)).failed(4),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "found hot, the old backend fails: older flows move by address and ports",
            &going().failed(1),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "found hot in the middle of a drain: older flows are on the draining backend",
            &with(Slot::new(4, 1), Slot::settled(2)),
            tcp().build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "found hot in the middle of a drain: new flows have nothing to do with it",
            &with(Slot::settled(1), Slot::new(2, 4)),
            syn().build(),
        )
        .forwarded(2)
        .records(opening(2)),
        case(
            "found hot with nobody for new flows: a SYN is dropped",
            &with(Slot::new(0, 1), Slot::new(0, 2)),
            syn().build(),
        )
        .ends(Verdict::NoBackend),
        case(
            "found hot with nobody for new flows: an older one stays",
            &with(Slot::new(0, 1), Slot::new(0, 2)),
            tcp().build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "found hot with nobody at all: what is recorded still stays",
            &with(Slot::settled(0), Slot::settled(0)).flow(open(4)),
            tcp().build(),
        )
        .forwarded(4),
        case(
            "found hot with nobody at all: what is not recorded has nowhere to go",
            &with(Slot::settled(0), Slot::settled(0)),
            tcp().build(),
        )
        .ends(Verdict::NoBackend),
    ]
}

fn returning() -> Vec<Case> {
    let returning = || hot(apart(), HotState::SPREAD.turned(false));
    let taken_back = || hot(apart(), HotState::COLD.turned(true).turned(false));
    vec![
        case(
            "calm again: a new flow goes by the client's address, and is recorded",
            &returning(),
            syn().build(),
        )
        .forwarded(1)
        .records(opening(1)),
        case(
            "calm again: an older one stays where address and ports led it",
            &returning(),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "calm again: a recorded one stays wherever it is",
            &returning().flow(open(4)),
            tcp().build(),
        )
        .forwarded(4),
        case(
            "calm before it was over: new flows go by the client's address",
            &taken_back(),
            syn().build(),
        )
        .forwarded(1)
        .records(opening(1)),
        case(
            "calm before it was over: so do the oldest ones",
            &taken_back(),
            tcp().build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "calm before it was over: those of between are recorded",
            &taken_back().flow(open(2)),
            tcp().build(),
        )
        .forwarded(2),
    ]
}

fn networks() -> Vec<Case> {
    let fixture = picking(
        Affinity::NETWORK_IPV4,
        Slot::settled(1),
        Slot::settled(2),
        Slot::settled(3),
    );
    let [a, b, c, _] = CLIENT.octets();
    let network = fixture.clone().hot(Hot {
        service: WEB,
        source: [a, b, c, 0].into(),
        state: HotState::SPREAD,
    });
    vec![
        case(
            "a network that is hot is spread by its addresses and ports",
            &network,
            syn().build(),
        )
        .forwarded(2),
        case(
            "by the network, an address alone is nobody",
            &hot(fixture, HotState::SPREAD),
            syn().build(),
        )
        .forwarded(1),
    ]
}

/// A client of IPv6: by its address backend 1, by its address and ports backend 2.
fn ipv6() -> Vec<Case> {
    let client = Ipv6::from(CLIENT6);
    let mut apart = town6()
        .affinity(Affinity::CLIENT_IPV6)
        .every_slot(Slot::settled(1));
    let slots = &mut apart.services[0].slots;
    slots.resize(SLOTS, Slot::settled(1));
    let index = |affinity| {
        let hash = hash_of(affinity, client, PORTS, SEED);
        slot_index(hash, slots.len().ilog2()) as usize
    };
    let (of_client, of_ports) = (index(Affinity::CLIENT_IPV6), index(Affinity::NONE_IPV6));
    assert_ne!(of_client, of_ports, "the two picks can't be told apart");
    slots[of_ports] = Slot::settled(2);
    let with = |state| {
        apart.clone().hot(Hot {
            service: WEB,
            source: CLIENT6.into(),
            state,
        })
    };
    let on = |backend, phase| Flow {
        key: FlowKey::tcp(client, PORTS, WEB).named(),
        backend,
        phase,
    };
    let going = HotState::COLD.turned(true);
    let returning = HotState::SPREAD.turned(false);
    vec![
        case(
            "IPv6: a source that is not hot has one backend",
            &apart,
            syn6().build(),
        )
        .forwarded(1),
        case(
            "IPv6: one that is hot is spread by its ports",
            &with(HotState::SPREAD),
            syn6().build(),
        )
        .forwarded(2),
        case(
            "IPv6, found hot: a new flow goes by address and ports",
            &with(going),
            syn6().build(),
        )
        .forwarded(2)
        .records(on(2, Phase::Opening)),
        case(
            "IPv6, found hot: an older one stays",
            &with(going),
            tcp6().build(),
        )
        .forwarded(1)
        .records(on(1, Phase::Open)),
        case(
            "IPv6, calm again: a new flow goes by the address",
            &with(returning),
            syn6().build(),
        )
        .forwarded(1)
        .records(on(1, Phase::Opening)),
        case(
            "IPv6, calm again: an older one stays",
            &with(returning),
            tcp6().build(),
        )
        .forwarded(2)
        .records(on(2, Phase::Open)),
    ]
}

fn beside_it() -> Vec<Case> {
    let others = |service, source: std::net::Ipv4Addr| {
        apart().hot(Hot {
            service,
            source: source.into(),
            state: HotState::SPREAD,
        })
    };
    vec![
        case(
            "another's being hot is nothing to a client",
            &others(WEB, NEIGHBOUR),
            syn().build(),
        )
        .forwarded(1),
        case(
            "nor is its own with another service",
            &others(2, CLIENT),
            syn().build(),
        )
        .forwarded(1),
        case(
            "UDP without tracking of a source found hot goes to the new pick at once, unrecorded",
            &udp_hot(),
            udp().build(),
        )
        .forwarded(2),
    ]
}

/// `dns` by the client's address, whose slot names backend 1; that of address and ports names backend 2.
fn udp_hot() -> Fixture {
    let mut town = town()
        .affinity(Affinity::CLIENT_IPV4)
        .every_slot(Slot::settled(2));
    let slots = &mut town.services[1].slots;
    slots.resize(SLOTS, Slot::settled(2));
    let hash = hash_of(Affinity::CLIENT_IPV4, CLIENT.to_bits(), 0, SEED);
    let index = slot_index(hash, slots.len().ilog2()) as usize;
    slots[index] = Slot::settled(1);
    town.hot(Hot {
        service: 2,
        source: CLIENT.into(),
        state: HotState::COLD.turned(true),
    })
}
