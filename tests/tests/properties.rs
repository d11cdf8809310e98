//! Random packets over random sequences of fixtures: nothing panics, every packet keeps the promises of
//! `packets::case::check_promises`, and the kernel does what the buffers do.

use std::{
    cell::RefCell,
    io::Write,
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_common::{abi::MAX_PORTS, pick::Slot};
use lb_tests::packets::{
    both::{Both, Plain, Seen},
    case::check_promises,
    cases::{blank, lenient_town, town},
    fixture::{CAPACITY, Fixture},
    frame::{Frame, Packet, icmp, ipv6, ping, syn, tcp, udp, who_has},
    network::{
        BROADCAST_MAC, CLIENT, CLIENT_PORT, DIRECTOR_MAC, NEIGHBOUR, NEIGHBOUR_MAC, NO_PORT,
        NO_VIP, VIP, VIP_ANY,
    },
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngSeed, TestRunner},
};

/// Packets sent one after the other into one fixture: enough to fill its flow table.
const SEQUENCE: usize = 200;

/// Every kind of content that the maps may have, dropping or passing what is unserved.
fn fixtures() -> Vec<Fixture> {
    let mixed = |fixture: Fixture| {
        let mut fixture = fixture
            .backend(6, NO_PORT)
            .backend(7, MAX_PORTS as u16)
            .failed(3);
        let numbers = [0, 1, 2, 3, 4, 5, 6, 7, CAPACITY.backends as u16];
        for service in &mut fixture.services {
            for (index, slot) in service.slots.iter_mut().enumerate() {
                let previous = numbers[(index * 5 + 1) % numbers.len()];
                *slot = Slot::new(numbers[index % numbers.len()], previous);
            }
        }
        fixture
    };
    let mut misplaced = town();
    for service in &mut misplaced.services {
        service.misplaced = Some(CAPACITY.slots - 8);
    }
    vec![
        blank(),
        town(),
        lenient_town(),
        town().every_slot(Slot::new(2, 1)),
        town().every_slot(Slot::new(0, 5)),
        mixed(town()),
        mixed(lenient_town()),
        misplaced,
    ]
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        4 => Just(VIP),
        2 => Just(VIP_ANY),
        1 => Just(NO_VIP),
        1 => any::<u32>().prop_map(Ipv4Addr::from_bits),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![4 => select(vec![80, 443, 53]), 1 => select(vec![0, 81, u16::MAX]), 1 => any::<u16>()]
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        8 => Just(DIRECTOR_MAC),
        1 => Just(BROADCAST_MAC),
        1 => Just(NEIGHBOUR_MAC),
    ]
}

/// Few clients, so that their flows come back.
fn client() -> impl Strategy<Value = (Ipv4Addr, u16)> {
    (0..16u8, 0..16u16).prop_map(|(host, port)| (Ipv4Addr::new(198, 51, 100, host), 40_000 + port))
}

fn transport() -> impl Strategy<Value = Packet> {
    let flags = any::<[bool; 4]>().prop_map(|[fin, rst, syn, ack]| {
        tcp().flags(|tcp| (tcp.fin, tcp.rst, tcp.syn, tcp.ack) = (fin, rst, syn, ack))
    });
    prop_oneof![
        4 => Just(syn()),
        4 => Just(tcp()),
        2 => flags,
        2 => Just(udp()),
        1 => Just(ping()),
        2 => icmp_error(),
    ]
}

/// An error that quotes a packet from a VIP to the client, more or less of it.
fn icmp_error() -> impl Strategy<Value = Packet> {
    let kind = prop_oneof![Just(3u8), Just(11), Just(12), any::<u8>()];
    (kind, 0..6u8, address(), port(), 0..60usize).prop_map(|(kind, code, vip, port, len)| {
        let reply = tcp().from(vip, port).to(CLIENT, CLIENT_PORT).build();
        let quoted: Vec<u8> = reply.0.iter().copied().skip(14).take(len).collect();
        icmp(kind, code, &quoted)
    })
}

fn ipv4() -> impl Strategy<Value = Frame> {
    let options = prop_oneof![4 => Just(0usize), 1 => 1..=10usize];
    (transport(), client(), address(), port(), mac(), options).prop_map(
        |(packet, (client, client_port), address, port, mac, options)| {
            packet
                .from(client, client_port)
                .to(address, port)
                .to_mac(mac)
                .option_words(options)
                .build()
        },
    )
}

fn arp() -> impl Strategy<Value = Frame> {
    let asker = prop_oneof![
        2 => Just(NEIGHBOUR),
        1 => Just(Ipv4Addr::UNSPECIFIED),
        1 => Just(VIP),
    ];
    (address(), asker, mac())
        .prop_map(|(target, asker, mac)| who_has(target, asker).to_mac(mac).build())
}

/// One thing done to a frame.
#[derive(Clone, Debug)]
enum Harm {
    Set(usize, u8),
    Flip(usize, u8),
    Cut(usize),
    Grow(Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        2 => (0..80usize, any::<u8>()).prop_map(|(at, byte)| Harm::Set(at, byte)),
        4 => (0..80usize, 0..8u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        1 => (0..100usize).prop_map(Harm::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Harm::Grow),
    ]
}

fn harmed(frame: Frame, harms: &[Harm]) -> Frame {
    let mut bytes = frame.0;
    for harm in harms {
        match harm {
            Harm::Set(at, byte) => bytes.iter_mut().skip(*at).take(1).for_each(|b| *b = *byte),
            Harm::Flip(at, bit) => bytes
                .iter_mut()
                .skip(*at)
                .take(1)
                .for_each(|b| *b ^= 1 << bit),
            Harm::Cut(len) => bytes.truncate(*len),
            Harm::Grow(more) => bytes.extend(more),
        }
    }
    Frame(bytes)
}

fn frame() -> impl Strategy<Value = Frame> {
    let formed = prop_oneof![
        12 => ipv4(),
        2 => arp(),
        1 => Just(ipv6()),
        1 => Just(tcp().vlan(7).build()),
    ];
    let harms = prop_oneof![
        1 => Just(Vec::new()),
        2 => prop::collection::vec(harm(), 1..4),
    ];
    prop_oneof![
        15 => (formed, harms).prop_map(|(frame, harms)| harmed(frame, &harms)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Frame),
    ]
}

fn sequence() -> impl Strategy<Value = (Fixture, Vec<Frame>)> {
    (
        select(fixtures()),
        prop::collection::vec(frame(), 1..=SEQUENCE),
    )
}

/// A runner whose seed is printed; `XDP_LB_SEED` repeats a run.
fn runner(what: &str, cases: u32) -> anyhow::Result<TestRunner> {
    let seed = match std::env::var("XDP_LB_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    // Past the test harness, so that a run that hangs has told its seed.
    writeln!(std::io::stdout().lock(), "{what}: XDP_LB_SEED={seed}")?;
    Ok(TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    }))
}

fn send_all(
    frames: &[Frame],
    mut send: impl FnMut(&Frame) -> anyhow::Result<Seen>,
) -> Result<(), TestCaseError> {
    for frame in frames {
        send(frame)
            .and_then(|seen| check_promises(frame, &seen))
            .map_err(|error| TestCaseError::fail(format!("{frame:?}\n{error:#}")))?;
    }
    Ok(())
}

#[test]
fn any_packet_keeps_the_promises_over_buffers() -> anyhow::Result<()> {
    runner("over buffers", 300)?.run(&sequence(), |(fixture, frames)| {
        let mut plain = Plain::new(fixture.unserved_pass);
        plain.given(&fixture, 7);
        send_all(&frames, |frame| Ok(plain.send(frame)))?;
        plain
            .check_sum()
            .map_err(|error| TestCaseError::fail(error.to_string()))
    })?;
    Ok(())
}

#[test]
fn the_kernel_does_what_the_buffers_do() -> anyhow::Result<()> {
    // The programs are loaded once, and their counters go on from sequence to sequence.
    let dropping = RefCell::new(Both::load(false)?);
    let passing = RefCell::new(Both::load(true)?);
    let sent = RefCell::new(0);
    runner("kernel and buffers", 220)?.run(&sequence(), |(fixture, mut frames)| {
        // The kernel runs no program over less than an Ethernet header.
        frames.retain(|frame| frame.0.len() >= lb_tests::packets::kernel::SHORTEST);
        let mut both = if fixture.unserved_pass {
            passing.borrow_mut()
        } else {
            dropping.borrow_mut()
        };
        *sent.borrow_mut() += frames.len();
        let result = both
            .given(&fixture)
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))
            .and_then(|()| send_all(&frames, |frame| both.send(frame)));
        if result.is_err() {
            // Counters that differ once would differ for ever, and shrinking would end with a packet that did no harm.
            *both = Both::load(fixture.unserved_pass)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        }
        result
    })?;
    dropping.borrow().check_sum()?;
    passing.borrow().check_sum()?;
    writeln!(
        std::io::stdout().lock(),
        "{} random packets through the kernel",
        sent.borrow()
    )?;
    Ok(())
}
