//! What a configuration does not use is not there; and a node of an NLB cluster.

use lb_common::{
    features::Features,
    fence::payload,
    flow::{FlowName, Phase},
    pick::{Backend, Slot},
    presence::{self, Said},
    service::Track,
    verdict::Verdict,
    wire::{ETHERTYPE_QINQ, PROTO_TCP},
};
use lb_userspace::neighbour::cluster_frames;

use super::{TAGGED, WEB, clustered, lenient, town, town6};
use crate::packets::{
    case::{Case, case},
    fixture::{Fixture, Flow, Fragments, Present},
    frame::{
        Frame, advertisement, link_layer_option, ping, ping6, pong, pong6, solicitation, syn, tcp,
        tcp6, udp, who_has,
    },
    network::{
        CLIENT, CLIENT_PORT, CLUSTER_MAC, DIRECTOR_MAC, NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR6,
        NO_VIP, VIP, VIP6,
    },
};

pub(super) fn cases() -> Vec<Case> {
    [none(), one_by_one(), cluster(), fenced(), present()].concat()
}

fn none() -> Vec<Case> {
    let none = town().under(Features::NONE);
    let changing = none.clone().every_slot(Slot::new(2, 1));
    let opening = Flow {
        key: FlowName {
            client: CLIENT.into(),
            ports: u32::from(CLIENT_PORT) << 16 | 80,
            service: WEB,
            udp: false,
        },
        backend: 2,
        phase: Phase::Opening,
    };
    let piece = |offset| {
        tcp()
            .payload(&[b'x'; 28])
            .fragmented(7, offset, true)
            .build()
    };
    let known = Fragments {
        source: CLIENT.into(),
        destination: VIP.into(),
        protocol: PROTO_TCP,
        identification: 7,
        backend: 3,
        silent: 1,
    };
    vec![
        case("no feature: TCP is forwarded", &none, tcp().build()).forwarded(1),
        case("no feature: UDP is forwarded", &none, udp().build()).forwarded(2),
        case(
            "no feature: behind the other interface as well",
            &none.clone().every_slot(Slot::settled(5)),
            tcp().build(),
        )
        .redirected(5),
        case(
            "no feature: a SYN in transition is recorded",
            &changing,
            syn().build(),
        )
        .forwarded(2)
        .records(opening),
        case("no feature: a ping is answered", &none, ping().build()).echoed(pong().build()),
        case(
            "no feature: ARP is answered",
            &none,
            who_has(VIP, NEIGHBOUR).build(),
        )
        .answered(who_has(VIP, NEIGHBOUR).answer(DIRECTOR_MAC).build()),
        case(
            "no feature: unserved ports are passed where that is said",
            &lenient(none.clone()),
            tcp().to_port(81).build(),
        )
        .ends(Verdict::UnservedPassed),
        case(
            "no feature: IPv6 is the host's",
            &town6().under(Features::NONE),
            tcp6().build(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "no feature: so is a solicitation",
            &town6().under(Features::NONE),
            solicitation(VIP6, &[]).build(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "no feature: a tag is the host's",
            &none,
            tcp().vlan(7).build(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "no feature: so is a service tag",
            &none,
            tcp().tagged(ETHERTYPE_QINQ, 7).build(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "no feature: a tagged frame cut short as well",
            &none,
            tcp().vlan(7).build().cut(16),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "no feature: a first fragment is dropped, though it names its ports",
            &none,
            piece(0),
        )
        .ends(Verdict::Fragment),
        case("no feature: a later one as well", &none, piece(100)).ends(Verdict::Fragment),
        case(
            "no feature: nothing is known of fragments",
            &none.clone().fragments(known),
            piece(100),
        )
        .ends(Verdict::Fragment),
        case(
            "no feature: a fragment for an unserved port is still a fragment",
            &none,
            tcp()
                .to_port(81)
                .payload(&[b'x'; 28])
                .fragmented(7, 0, true)
                .build(),
        )
        .ends(Verdict::Fragment),
        case(
            "no feature: a first fragment for another address",
            &none,
            tcp()
                .to(NO_VIP, 80)
                .payload(&[b'x'; 28])
                .fragmented(7, 0, true)
                .build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "no feature: a first fragment for another host",
            &none,
            tcp()
                .to_mac(NEIGHBOUR_MAC)
                .payload(&[b'x'; 28])
                .fragmented(7, 0, true)
                .build(),
        )
        .ends(Verdict::OtherHost),
        case(
            "no feature: `always` records nothing in a settled slot",
            &none.clone().track(Track::Always),
            syn().build(),
        )
        .forwarded(1),
        case(
            "no feature: UDP of `always` goes to the current backend",
            &changing.clone().track(Track::Always),
            udp().build(),
        )
        .forwarded(2),
        case(
            "no feature: QUIC is UDP like any other",
            &changing.clone().track(Track::Quic),
            udp().payload(&[0x40; 20]).build(),
        )
        .forwarded(2),
        case(
            "no feature: no client is recorded",
            &changing.recording_clients(),
            syn().build(),
        )
        .forwarded(2)
        .records(opening),
        case(
            "no feature: this very host is no backend",
            &none
                .clone()
                .backend(11, Backend::LOCAL_PORT)
                .every_slot(Slot::settled(11)),
            tcp().build(),
        )
        .ends(Verdict::Inconsistent),
        case(
            "no feature: nobody sets a tag",
            &none.every_slot(Slot::settled(TAGGED)),
            tcp().build(),
        )
        .forwarded(TAGGED),
    ]
}

/// Each feature alone is enough for what it is for.
fn one_by_one() -> Vec<Case> {
    let settled = |fixture: Fixture, number| fixture.every_slot(Slot::settled(number));
    let piece = tcp().payload(&[b'x'; 28]).fragmented(7, 0, true).build();
    let dns = Flow {
        key: FlowName {
            client: CLIENT.into(),
            ports: u32::from(CLIENT_PORT) << 16 | 53,
            service: super::DNS,
            udp: true,
        },
        backend: 2,
        phase: Phase::Open,
    };
    vec![
        case("IPv6 alone", &town6().under(Features::IPV6), tcp6().build()).forwarded(1),
        case(
            "IPv6 alone answers solicitations",
            &town6().under(Features::IPV6),
            solicitation(VIP6, &link_layer_option(1, NEIGHBOUR_MAC)).build(),
        )
        .advertised(advertisement(VIP6, DIRECTOR_MAC, NEIGHBOUR6, NEIGHBOUR_MAC, true).build()),
        case(
            "IPv6 alone answers pings",
            &town6().under(Features::IPV6),
            ping6().build(),
        )
        .echoed(pong6().build()),
        case(
            "IPv6 alone drops fragments",
            &town6().under(Features::IPV6),
            tcp6().payload(&[b'x'; 28]).fragmented(7, 0, true).build(),
        )
        .ends(Verdict::Fragment),
        case(
            "tags alone",
            &settled(town().under(Features::VLAN), TAGGED),
            tcp().vlan(7).build(),
        )
        .forwarded_as(TAGGED, tcp().vlan(super::VLAN).build()),
        case(
            "tags alone leave IPv6 to the host",
            &town6().under(Features::VLAN),
            tcp6().vlan(7).build(),
        )
        .ends(Verdict::OtherEthertype),
        case("fragments alone", &town().under(Features::FRAGMENTS), piece)
            .forwarded(1)
            .expects_fragments(&Fragments {
                source: CLIENT.into(),
                destination: VIP.into(),
                protocol: PROTO_TCP,
                identification: 7,
                backend: 1,
                silent: 0,
            }),
        case(
            "tracking always alone",
            &town().track(Track::Always).under(Features::TRACK_ALWAYS),
            udp().build(),
        )
        .forwarded(2)
        .records(dns),
        case(
            "this very host alone",
            &settled(
                town()
                    .backend(11, Backend::LOCAL_PORT)
                    .under(Features::LOCAL),
                11,
            ),
            tcp().build(),
        )
        .local(11),
    ]
}

/// What fences this node, which is backend 11, and what does not.
fn fenced() -> Vec<Case> {
    const TOKEN: u64 = 0x1122_3344_5566_7788;
    let node = clustered(town().backend(11, Backend::LOCAL_PORT)).every_slot(Slot::settled(11));
    let free = node.clone().fence(11, TOKEN, 0);
    let fenced = node.clone().fence(11, TOKEN, TOKEN);
    let say = |token, number| {
        Frame(cluster_frames::frame(
            CLUSTER_MAC,
            NEIGHBOUR_MAC,
            &payload(token, number),
        ))
    };
    let right = say(TOKEN, 11);
    let tcp = || tcp().to_mac(CLUSTER_MAC);
    let mut other_magic = right.clone();
    other_magic.0[14] ^= 1;
    let mut tagged = right.clone();
    tagged.0.splice(12..12, [0x81, 0x00, 0, 7]);
    vec![
        case(
            "fencing: a peer has taken this node's place",
            &free,
            right.clone(),
        )
        .ends(Verdict::ClusterFrame)
        .fences(11),
        case("fencing: again", &fenced, right.clone()).ends(Verdict::ClusterFrame),
        case("fencing: under a tag", &free, tagged)
            .ends(Verdict::ClusterFrame)
            .fences(11),
        case("fencing: a token of another run", &free, say(TOKEN ^ 1, 11))
            .ends(Verdict::ClusterFrame),
        case("fencing: of another backend", &free, say(TOKEN, 10)).ends(Verdict::ClusterFrame),
        case(
            "fencing: of a number that nobody has",
            &free,
            say(TOKEN, u16::MAX),
        )
        .ends(Verdict::ClusterFrame),
        case("fencing: nobody is fenced by no token", &node, say(0, 11))
            .ends(Verdict::ClusterFrame),
        case("fencing: another use of this EtherType", &free, other_magic)
            .ends(Verdict::OtherEthertype),
        case(
            "fencing: a director has no peers",
            &town().fence(11, TOKEN, 0),
            right.clone(),
        )
        .ends(Verdict::OtherEthertype),
        case(
            "fencing: what is cut short",
            &free,
            Frame(right.0[..27].to_vec()),
        )
        .ends(Verdict::OtherEthertype),
        case("fenced: this node keeps nothing", &fenced, tcp().build()).ends(Verdict::Fenced),
        case(
            "fenced: nor UDP",
            &fenced,
            udp().to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::Fenced),
        case(
            "fenced: nor a flow of its own that is older than a change",
            &fenced.clone().every_slot(Slot::new(1, 11)),
            tcp().build(),
        )
        .ends(Verdict::Fenced)
        .records(Flow {
            key: FlowName {
                client: CLIENT.into(),
                ports: u32::from(CLIENT_PORT) << 16 | 80,
                service: WEB,
                udp: false,
            },
            backend: 11,
            phase: Phase::Open,
        }),
        case(
            "fenced: another node's flow is another node's",
            &fenced.clone().every_slot(Slot::settled(1)),
            tcp().build(),
        )
        .ends(Verdict::OtherNode),
        case(
            "fenced by a token that is no more",
            &node.fence(11, TOKEN ^ 1, TOKEN),
            tcp().build(),
        )
        .local(11),
    ]
}

/// Who is told that this node, which is backend 11, is there, and who is not.
fn present() -> Vec<Case> {
    const ASKED: u64 = 0x2122_2324_2526_2728;
    const TOKEN: u64 = 0x1122_3344_5566_7788;
    const NONCE: u64 = 0x0102_0304_0506_0708;
    let told = Present {
        place: 3,
        asked: ASKED,
        made_ms: 1_700_000_000_123,
        said: Said {
            number: 11,
            drained: true,
            weight: 70_000,
        },
        tag: 0x3132_3334_3536_3738,
    };
    let node = clustered(town().backend(11, Backend::LOCAL_PORT)).fence(11, TOKEN, 0);
    let there = node.clone().present(told);
    let fenced = clustered(town().backend(11, Backend::LOCAL_PORT))
        .fence(11, TOKEN, TOKEN)
        .present(told);
    let ask = |asked, place| {
        Frame(cluster_frames::frame(
            CLUSTER_MAC,
            NEIGHBOUR_MAC,
            &presence::question(asked, place, NONCE),
        ))
    };
    let right = ask(ASKED, 3);
    let answer = right
        .clone()
        .with(0, &NEIGHBOUR_MAC)
        .with(6, &DIRECTOR_MAC)
        .with(14, b"XLA1")
        // Milliseconds; number, drained, weight; the tag.
        .with(36, &1_700_000_000_123u64.to_be_bytes())
        .with(44, &[0, 1, 0x11, 0x70, 0, 1, 0, 11])
        .with(52, &0x3132_3334_3536_3738u64.to_be_bytes());
    let tagged = |frame: &Frame| {
        let mut tagged = frame.clone();
        tagged.0.splice(12..12, [0x81, 0x00, 0, 7]);
        tagged
    };
    let left =
        |what, given: &Fixture, frame: Frame| case(what, given, frame).ends(Verdict::ClusterFrame);
    let host = |what, given: &Fixture, frame: Frame| {
        case(what, given, frame).ends(Verdict::OtherEthertype)
    };
    vec![
        case("presence: a peer is told", &there, right.clone()).told(answer.clone()),
        case("presence: under a tag", &there, tagged(&right)).told(tagged(&answer)),
        case(
            "presence: asked at this node's own address",
            &there,
            right.clone().with(0, &DIRECTOR_MAC),
        )
        .told(answer.clone()),
        left("presence: of another node", &there, ask(ASKED ^ 1, 3)),
        left("presence: of another place", &there, ask(ASKED, 2)),
        left(
            "presence: of a place that nobody has",
            &there,
            ask(ASKED, u16::MAX),
        ),
        left("presence: of nobody", &there, ask(0, 2)),
        left("presence: it has no share", &node, right.clone()),
        left("presence: a fenced node has none", &fenced, right.clone()),
        left(
            "presence: sent to another's address",
            &there,
            right.clone().with(0, &NEIGHBOUR_MAC),
        ),
        left(
            "presence: nobody is told who asks in a group's name",
            &there,
            right.clone().with(6, &[1]),
        ),
        host("presence: an answer is the host's", &there, answer),
        host(
            "presence: a question cut short",
            &there,
            Frame(right.0[..59].to_vec()),
        ),
        host(
            "presence: a director has no peers",
            &town().present(told),
            right,
        ),
    ]
}

fn cluster() -> Vec<Case> {
    // Backend 11 is this node, the others are not.
    let node = |fixture: Fixture| clustered(fixture.backend(11, Backend::LOCAL_PORT));
    let mine = node(town()).every_slot(Slot::settled(11));
    let others = node(town());
    let mine6 = node(town6()).every_slot(Slot::settled(11));
    let request = || who_has(VIP, NEIGHBOUR);
    vec![
        case(
            "cluster: a flow of this node's own is for its stack, under the interface's address",
            &mine,
            tcp().to_mac(CLUSTER_MAC).build(),
        )
        .local(11),
        case(
            "cluster: UDP as well",
            &mine,
            udp().to_mac(CLUSTER_MAC).build(),
        )
        .local(11),
        case(
            "cluster: IPv6 as well",
            &mine6,
            tcp6().to_mac(CLUSTER_MAC).build(),
        )
        .local(11),
        case(
            "cluster: what is sent to this node alone as well",
            &mine,
            tcp().build(),
        )
        .local(11),
        case(
            "cluster: another node's flow is dropped here",
            &others,
            tcp().to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::OtherNode),
        case(
            "cluster: whatever is known of that node's address",
            &others.clone().without_mac(1),
            syn().to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::OtherNode),
        case(
            "cluster: nobody takes new flows",
            &others.clone().every_slot(Slot::settled(0)),
            syn().to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::NoBackend),
        case(
            "cluster: another cluster's frame is not ours",
            &mine,
            tcp().to_mac([0x02, 0xbf, 192, 0, 2, 11]).build(),
        )
        .ends(Verdict::OtherHost),
        case(
            "cluster: an unserved port",
            &mine,
            tcp().to_port(81).to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::Unserved),
        case(
            "cluster: no VIP's packet",
            &mine,
            tcp().to(NO_VIP, 80).to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::NotOurs),
        case(
            "cluster: ARP names the cluster's address, in a frame from this node's own",
            &mine,
            request().build(),
        )
        .answered(request().answer(CLUSTER_MAC).build().with(6, &DIRECTOR_MAC)),
        case(
            "cluster: an ARP request sent to the cluster is answered",
            &mine,
            request().to_mac(CLUSTER_MAC).build(),
        )
        .answered(request().answer(CLUSTER_MAC).build().with(6, &DIRECTOR_MAC)),
        case(
            "cluster: so does a neighbour advertisement",
            &mine6,
            solicitation(VIP6, &link_layer_option(1, NEIGHBOUR_MAC)).build(),
        )
        .advertised(advertisement(VIP6, CLUSTER_MAC, NEIGHBOUR6, NEIGHBOUR_MAC, true).build()),
        case(
            "cluster: a ping of the cluster is answered by this node's own address",
            &mine,
            ping().to_mac(CLUSTER_MAC).build(),
        )
        .echoed(pong().build()),
        case(
            "cluster: tags come to the host as they came",
            &mine,
            tcp().to_mac(CLUSTER_MAC).vlan(7).build(),
        )
        .local(11),
        case(
            "cluster: another node's fragment is remembered as such",
            &others,
            tcp()
                .to_mac(CLUSTER_MAC)
                .payload(&[b'x'; 28])
                .fragmented(7, 0, true)
                .build(),
        )
        .ends(Verdict::OtherNode)
        .expects_fragments(&Fragments {
            source: CLIENT.into(),
            destination: VIP.into(),
            protocol: PROTO_TCP,
            identification: 7,
            backend: 1,
            silent: 0,
        }),
        case(
            "cluster: without a local backend in use everything is another node's",
            &Fixture {
                setup: crate::packets::fixture::Setup {
                    features: Features::PICK,
                    ..mine.setup
                },
                ..mine
            },
            tcp().to_mac(CLUSTER_MAC).build(),
        )
        .ends(Verdict::OtherNode),
    ]
}
