//! Slots in transition: new flows go to the current backend, old ones stay where they are.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    flow::{FlowName, HOMES, Phase},
    pick::Slot,
    verdict::Verdict,
};

use super::{WEB, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{CAPACITY, Fixture, Flow, homes},
    frame::{Frame, syn, syn6, tcp, tcp6, udp, udp6},
    network::{BROADCAST_MAC, CLIENT, CLIENT_PORT, CLIENT6, VIP_ANY},
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

fn key(client: impl Into<IpAddr>, client_port: u16, port: u16, service: u16) -> FlowName {
    FlowName {
        client: client.into(),
        ports: u32::from(client_port) << 16 | u32::from(port),
        service,
        udp: false,
    }
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

fn opening_on(backend: u16) -> Flow {
    on(backend, Phase::Opening)
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
            .records(opening_on(2)),
        case("so does one that offers congestion notification (RFC 3168)", &changing, flags(|tcp| (tcp.ece, tcp.cwr) = (true, true)))
            .forwarded(2)
            .records(opening_on(2)),
        case("one with FIN opens as well", &changing, flags(|tcp| tcp.fin = true))
            .forwarded(2)
            .records(opening_on(2)),
        case("one with RST opens nothing", &changing, flags(|tcp| tcp.rst = true))
            .forwarded(1)
            .records(on(1, Phase::Ended)),
        case("one with ACK opens nothing", &changing, flags(|tcp| tcp.ack = true))
            .forwarded(1)
            .records(open(1)),
        case("behind IP options the flags are found where they are", &changing, syn().option_words(10).build())
            .forwarded(2)
            .records(opening_on(2)),
        case("a SYN of a flow that is recorded elsewhere opens it anew", &changing.clone().flow(on(3, Phase::Closing)), syn().build())
            .forwarded(2)
            .records(opening_on(2)),
        case("one of a flow that has ended as well", &changing.clone().flow(on(1, Phase::Ended)), syn().build())
            .forwarded(2)
            .records(opening_on(2)),
        case("a repeated SYN finds its own record", &changing.clone().flow(opening_on(2)), syn().build())
            .forwarded(2),
        case("and stays with it, where it is another attempt to open what an earlier change found opening", &changing.clone().flow(opening_on(3)), syn().build())
            .forwarded(3),
        case("unless that backend has failed", &changing.clone().flow(opening_on(3)).failed(3), syn().build())
            .forwarded(2)
            .records(opening_on(2)),
        case("what follows a SYN makes the flow an open one", &changing.clone().flow(opening_on(3)), tcp().build())
            .forwarded(3)
            .records(open(3)),
        case("a SYN of an open flow opens it anew", &changing.clone().flow(open(3)), syn().build())
            .forwarded(2)
            .records(opening_on(2)),
        case("a SYN to a backend without a MAC address is recorded, and goes there once there is one", &changing.without_mac(2), syn().build())
            .ends(Verdict::NoNeighbour)
            .records(opening_on(2)),
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
            "a flow recorded on a backend that nobody can be",
            &with(open(beyond)),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour),
        case(
            "an old flow whose backend has failed goes to the current one",
            &changing().failed(1),
            tcp().build(),
        )
        .forwarded(2)
        .records(open(2)),
        case(
            "a previous backend that nobody can be",
            &town().every_slot(Slot::new(2, beyond)),
            tcp().build(),
        )
        .ends(Verdict::NoNeighbour)
        .records(open(beyond)),
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
            .records(opening_on(1)),
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
            key(
                std::net::Ipv4Addr::new(198, 51, 100, 8),
                CLIENT_PORT,
                80,
                WEB,
            ),
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
            "nor does a fragment that no other can follow",
            &changing,
            syn().build().fragment(0, true).total_length(43),
        )
        .ends(Verdict::Malformed),
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
        assert_eq!(service.vip, IpAddr::from(VIP_ANY));
        service.slots.fill(Slot::new(2, 4));
    }
    let secure = Flow {
        key: key(CLIENT, CLIENT_PORT, 443, 4),
        backend: 2,
        phase: Phase::Opening,
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
    let mut cases = Vec::new();
    for (family, newcomer, opens, continues, datagram) in [
        (
            "IPv4",
            key(CLIENT, CLIENT_PORT, 80, WEB),
            syn(),
            tcp(),
            udp(),
        ),
        (
            "IPv6",
            key(CLIENT6, CLIENT_PORT, 80, WEB),
            syn6(),
            tcp6(),
            udp6(),
        ),
    ] {
        let town = if newcomer.client.is_ipv4() {
            town()
        } else {
            town6()
        };
        let changing = town.every_slot(Slot::new(2, 1));
        let on = |backend, phase| Flow {
            key: newcomer,
            backend,
            phase,
        };
        let crowd = crowd(newcomer);
        let with = |flows: &[Flow]| Fixture {
            flows: flows.to_vec(),
            ..changing.clone()
        };
        let mut mixed = crowd.clone();
        mixed[0].phase = Phase::Closing;
        mixed[4].phase = Phase::Opening;
        mixed[5].phase = Phase::Ended;
        let mut half_open = crowd.clone();
        half_open[2].phase = Phase::Opening;
        half_open[6].phase = Phase::Opening;
        let mut one_free = crowd.clone();
        one_free.remove(3);
        let say = |what: &str| format!("{family}: {what}");
        let opening = on(2, Phase::Opening);
        cases.extend([
            case(
                say("the longest silent flow makes room, and is counted as forgotten"),
                &with(&crowd),
                opens.clone().build(),
            )
            .forwarded(2)
            .records(opening)
            .forgets(&crowd[0]),
            case(
                say("for an old flow as well"),
                &with(&crowd),
                continues.build(),
            )
            .forwarded(1)
            .records(on(1, Phase::Open))
            .forgets(&crowd[0]),
            case(
                say("one that has ended goes before it, and is not missed"),
                &with(&mixed),
                opens.clone().build(),
            )
            .forwarded(2)
            .records(opening)
            .replaces(&mixed[5]),
            case(
                say("so does one that may never open, the longest silent of them first"),
                &with(&half_open),
                opens.clone().build(),
            )
            .forwarded(2)
            .records(opening)
            .replaces(&half_open[2]),
            case(
                say("an empty way is taken before any"),
                &with(&one_free),
                opens.build(),
            )
            .forwarded(2)
            .records(opening),
            case(
                say("UDP takes nobody's place"),
                &with(&crowd),
                datagram.build(),
            )
            .forwarded(2),
        ]);
    }
    cases
}

/// Flows that fill all buckets of a newcomer, on backend 3, the first one silent for longest.
fn crowd(newcomer: FlowName) -> Vec<Flow> {
    let neighbours: IpAddr = match newcomer.client {
        IpAddr::V4(_) => [203, 0, 113, 9].into(),
        IpAddr::V6(_) => [0x2001, 0xdb8, 0xc20d, 0, 0, 0, 0, 9].into(),
    };
    let buckets = homes(newcomer);
    assert!(
        buckets.iter().collect::<BTreeSet<_>>().len() == HOMES,
        "the newcomer's buckets are different ones"
    );
    let at_home = |bucket| {
        (1..=u16::MAX)
            .map(|port| key(neighbours, port, 80, WEB))
            .filter(move |key| homes(*key)[0] == bucket)
            .take(4)
    };
    buckets
        .into_iter()
        .flat_map(at_home)
        .map(|key| Flow {
            key,
            backend: 3,
            phase: Phase::Open,
        })
        .collect()
}
