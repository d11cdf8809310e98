//! Slots in transition: new flows go to the current backend, old ones stay where they are.

use std::net::Ipv4Addr;

use lb_common::{
    flow::{FlowKey, Key, Phase, bucket_indices},
    pick::Slot,
    verdict::Verdict,
    wire::PROTO_TCP,
};

use super::{WEB, town};
use crate::packets::{
    case::{Case, case},
    fixture::{CAPACITY, Fixture, Flow, SEED},
    frame::{Frame, syn, tcp, udp},
    network::{BROADCAST_MAC, CLIENT, CLIENT_PORT, VIP_ANY},
};

pub(super) fn cases() -> Vec<Case> {
    [
        opening(),
        unknown_flows(),
        recorded_flows(),
        failures(),
        nobody_left(),
        same_on_both_sides(),
        beside_it(),
        full_buckets(),
    ]
    .concat()
}

/// Every slot in transition from backend 1 to backend 2.
fn changing() -> Fixture {
    town().every_slot(Slot::new(2, 1))
}

fn key(client: Ipv4Addr, client_port: u16, port: u16, service: u16) -> FlowKey {
    let ports = u32::from(client_port) << 16 | u32::from(port);
    FlowKey::tcp(client.to_bits(), ports, service)
}

/// The flow of the packets that [`tcp`] and [`syn`] build.
fn on(backend: u16, phase: Phase) -> Flow {
    Flow {
        key: key(CLIENT, CLIENT_PORT, 80, WEB),
        backend,
        phase,
    }
}

fn open(backend: u16) -> Flow {
    on(backend, Phase::Open)
}

fn fin() -> Frame {
    tcp().flags(|tcp| tcp.fin = true).build()
}

fn rst() -> Frame {
    tcp().flags(|tcp| tcp.rst = true).build()
}

fn opening() -> Vec<Case> {
    let changing = changing();
    let flags = |set: fn(&mut etherparse::TcpHeader)| syn().flags(set).build();
    vec![
        case("a SYN goes to the current backend and is recorded", &changing, syn().build())
            .forwarded(2)
            .records(open(2)),
        case("so does one that offers congestion notification (RFC 3168)", &changing, flags(|tcp| (tcp.ece, tcp.cwr) = (true, true)))
            .forwarded(2)
            .records(open(2)),
        case("one with FIN opens as well", &changing, flags(|tcp| tcp.fin = true))
            .forwarded(2)
            .records(open(2)),
        case("one with RST opens nothing", &changing, flags(|tcp| tcp.rst = true))
            .forwarded(1)
            .records(on(1, Phase::Ended)),
        case("one with ACK opens nothing", &changing, flags(|tcp| tcp.ack = true))
            .forwarded(1)
            .records(open(1)),
        case("behind IP options the flags are found where they are", &changing, syn().option_words(10).build())
            .forwarded(2)
            .records(open(2)),
        case("a SYN of a flow that is recorded elsewhere opens it anew", &changing.clone().flow(on(3, Phase::Closing)), syn().build())
            .forwarded(2)
            .records(open(2)),
        case("one of a flow that has ended as well", &changing.clone().flow(on(1, Phase::Ended)), syn().build())
            .forwarded(2)
            .records(open(2)),
        case("a repeated SYN finds its own record", &changing.clone().flow(open(2)), syn().build())
            .forwarded(2),
        case("a SYN to a backend without a MAC address is recorded, and goes there once there is one", &changing.without_mac(2), syn().build())
            .ends(Verdict::NoNeighbour)
            .records(open(2)),
    ]
}

fn unknown_flows() -> Vec<Case> {
    let changing = changing();
    vec![
        case(
            "a flow that is not recorded is older than the change: it stays, and is recorded",
            &changing,
            tcp().build(),
        )
        .forwarded(1)
        .records(open(1)),
        case("its FIN is recorded as such", &changing, fin())
            .forwarded(1)
            .records(on(1, Phase::Closing)),
        case("its RST too", &changing, rst())
            .forwarded(1)
            .records(on(1, Phase::Ended)),
        case(
            "without any flag it is an old flow's",
            &changing,
            tcp().flags(|tcp| tcp.ack = false).build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "with options as well",
            &changing,
            tcp().option_words(3).build(),
        )
        .forwarded(1)
        .records(open(1)),
        case(
            "its backend may be behind the other interface",
            &town().every_slot(Slot::new(2, 5)),
            tcp().build(),
        )
        .redirected(5)
        .records(open(5)),
    ]
}

fn recorded_flows() -> Vec<Case> {
    let with = |flow| changing().flow(flow);
    vec![
        case(
            "a recorded flow goes where it is recorded: current",
            &with(open(2)),
            tcp().build(),
        )
        .forwarded(2),
        case("or previous", &with(open(1)), tcp().build()).forwarded(1),
        case(
            "or another, where changes overlapped",
            &with(open(3)),
            tcp().build(),
        )
        .forwarded(3),
        case(
            "even behind the other interface",
            &with(open(5)),
            tcp().build(),
        )
        .redirected(5),
        case("FIN marks it as closing", &with(open(3)), fin())
            .forwarded(3)
            .records(on(3, Phase::Closing)),
        case("RST ends it", &with(open(3)), rst())
            .forwarded(3)
            .records(on(3, Phase::Ended)),
        case(
            "RST ends a closing one",
            &with(on(3, Phase::Closing)),
            rst(),
        )
        .forwarded(3)
        .records(on(3, Phase::Ended)),
        case(
            "data after FIN opens nothing",
            &with(on(3, Phase::Closing)),
            tcp().build(),
        )
        .forwarded(3),
        case(
            "data after RST opens nothing",
            &with(on(3, Phase::Ended)),
            tcp().build(),
        )
        .forwarded(3),
        case(
            "FIN after RST closes nothing",
            &with(on(3, Phase::Ended)),
            fin(),
        )
        .forwarded(3),
        case(
            "recorded on a backend without a MAC address",
            &Fixture {
                ..with(open(3)).without_mac(3)
            },
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
    ]
}

fn failures() -> Vec<Case> {
    let with = |flow| changing().flow(flow);
    let beyond = u16::try_from(CAPACITY.backends).expect("few");
    vec![
        case(
            "a recorded flow leaves a failed backend for the current one",
            &with(open(3)).failed(3),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case("its FIN as well", &with(open(3)).failed(3), fin())
            .forwarded(2)
            .records(on(2, Phase::Closing)),
        case(
            "a flow recorded on a backend that the map does not have",
            &with(open(beyond)),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "an old flow whose backend has failed goes to the current one",
            &changing().failed(1),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "a previous backend that the map does not have",
            &town().every_slot(Slot::new(2, beyond)),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "another's failure moves nobody",
            &with(open(3)).failed(1),
            tcp().build(),
        )
        .forwarded(3),
    ]
}

/// Nobody takes new flows; the old ones stay as long as their backends do.
fn nobody_left() -> Vec<Case> {
    let closed = || town().every_slot(Slot::new(0, 1));
    vec![
        case(
            "with nobody to take it, a SYN is dropped and not recorded",
            &closed(),
            syn().build(),
        )
        .ends(Verdict::NoBackend),
        case("an old flow stays", &closed(), tcp().build())
            .forwarded(1)
            .records(open(1)),
        case("a recorded one too", &closed().flow(open(3)), tcp().build()).forwarded(3),
        case(
            "an old flow whose backend has failed",
            &closed().failed(1),
            tcp().build(),
        )
        .ends(Verdict::NoBackend),
        case(
            "a recorded one whose backend has failed",
            &closed().flow(open(3)).failed(3),
            tcp().build(),
        )
        .ends(Verdict::NoBackend),
        case("UDP has nowhere to go", &closed(), udp().build()).ends(Verdict::NoBackend),
    ]
}

/// A drain that was taken back.
fn same_on_both_sides() -> Vec<Case> {
    let back = || town().every_slot(Slot::new(1, 1));
    vec![
        case("taken back: a SYN goes to the one", &back(), syn().build())
            .forwarded(1)
            .records(open(1)),
        case("taken back: old flows are there", &back(), tcp().build())
            .forwarded(1)
            .records(open(1)),
        case(
            "taken back: what opened meanwhile is found where it is",
            &back().flow(open(2)),
            tcp().build(),
        )
        .forwarded(2),
    ]
}

/// What a transition does not touch.
fn beside_it() -> Vec<Case> {
    let changing = changing();
    let others = [
        ("another service's", key(CLIENT, CLIENT_PORT, 80, 4)),
        (
            "another client's",
            key(Ipv4Addr::new(198, 51, 100, 8), CLIENT_PORT, 80, WEB),
        ),
        (
            "another client port's",
            key(CLIENT, CLIENT_PORT + 1, 80, WEB),
        ),
        ("another service port's", key(CLIENT, CLIENT_PORT, 443, WEB)),
    ];
    let mut cases = vec![
        case(
            "UDP has no opening packet: it goes to the current backend at once, unrecorded",
            &changing,
            udp().build(),
        )
        .forwarded(2),
        case("a settled slot records no SYN", &town(), syn().build()).forwarded(1),
        case(
            "and asks for no record",
            &town().flow(open(3)),
            tcp().build(),
        )
        .forwarded(1),
        case("nor notes a FIN", &town().flow(open(1)), fin()).forwarded(1),
        case(
            "a frame for another host records nothing",
            &changing,
            syn().to_mac(BROADCAST_MAC).build(),
        )
        .ends(Verdict::OtherHost),
        case(
            "nor does a fragment",
            &changing,
            syn().build().fragment(0, true),
        )
        .ends(Verdict::Fragment),
        case(
            "nor a port that is not served",
            &changing,
            syn().to_port(81).build(),
        )
        .ends(Verdict::Unserved),
    ];
    for (whose, key) in others {
        let record = Flow {
            key,
            backend: 3,
            phase: Phase::Open,
        };
        cases.push(
            case(
                format!("{whose} record says nothing about this flow"),
                &changing.clone().flow(record),
                tcp().build(),
            )
            .forwarded(1)
            .records(open(1)),
        );
    }
    // One service of another VIP in transition, the others settled.
    let mut one = town();
    for service in one.services.iter_mut().filter(|service| service.id == 4) {
        assert_eq!((service.vip, service.protocol), (VIP_ANY, PROTO_TCP));
        service.slots.fill(Slot::new(2, 4));
    }
    let secure = Flow {
        key: key(CLIENT, CLIENT_PORT, 443, 4),
        backend: 2,
        phase: Phase::Open,
    };
    cases.extend([
        case(
            "a change of one service is not one of the other on its VIP",
            &one,
            syn().to(VIP_ANY, 80).build(),
        )
        .forwarded(3),
        case("it is one of its own", &one, syn().to(VIP_ANY, 443).build())
            .forwarded(2)
            .records(secure),
    ]);
    cases
}

/// Both buckets that a flow may be in are full.
fn full_buckets() -> Vec<Case> {
    let crowd = crowd(open(2).key);
    let with = |flows: &[Flow]| Fixture {
        flows: flows.to_vec(),
        ..changing()
    };
    let mut mixed = crowd.clone();
    mixed[0].phase = Phase::Closing;
    mixed[5].phase = Phase::Ended;
    let mut one_free = crowd.clone();
    one_free.remove(3);
    vec![
        case(
            "the longest silent flow makes room, and is counted as forgotten",
            &with(&crowd),
            syn().build(),
        )
        .forwarded(2)
        .records(open(2))
        .forgets(&crowd[0]),
        case("for an old flow as well", &with(&crowd), tcp().build())
            .forwarded(1)
            .records(open(1))
            .forgets(&crowd[0]),
        case(
            "one that has ended goes before it, and is not missed",
            &with(&mixed),
            syn().build(),
        )
        .forwarded(2)
        .records(open(2))
        .replaces(&mixed[5]),
        case(
            "an empty way is taken before any",
            &with(&one_free),
            syn().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case("UDP takes nobody's place", &with(&crowd), udp().build()).forwarded(2),
    ]
}

/// Flows that fill both buckets of `key`, on backend 3, the first one silent for longest.
fn crowd(key_of_newcomer: FlowKey) -> Vec<Flow> {
    let bits = CAPACITY.flow_buckets.ilog2();
    let (first, second) = bucket_indices(key_of_newcomer.hash(SEED), bits);
    let mut flows = Vec::new();
    for bucket in if first == second {
        vec![first]
    } else {
        vec![first, second]
    } {
        let at_home = (1..=u16::MAX)
            .map(|port| key(Ipv4Addr::new(203, 0, 113, 9), port, 80, WEB))
            .filter(|key| bucket_indices(key.hash(SEED), bits).0 == bucket);
        flows.extend(at_home.take(4).map(|key| Flow {
            key,
            backend: 3,
            phase: Phase::Open,
        }));
    }
    flows
}
