//! Every packet that was sent is found again in exactly one counter of `status`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{NO_PROBE, SEED, service};
use lb_tests::testbed::{DEADLINE, Injector, Mac, Testbed, XdpLb};
use lb_userspace::api::Status;

/// The client's own address: the testbed gives it to `c1`.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);

/// Addresses behind the client that nobody has: what answers them is dropped there without an answer of its own.
fn nobody(number: u16) -> (Ipv4Addr, u16) {
    let host = 251 + u8::try_from(number % 4).expect("less than 4");
    (Ipv4Addr::new(10, 78, 0, host), 20_000 + number)
}

/// A network in which nobody says a word of his own: all neighbours are known for good.
fn silent_network(label: &str) -> Testbed {
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(2)
        .label(label)
        .build()
        .unwrap();
    for host in testbed.hosts() {
        for other in testbed.hosts() {
            if host.name() != other.name() {
                host.set_neighbour(other.address(), other.mac()).unwrap();
            }
        }
    }
    testbed
}

fn config(testbed: &Testbed, node: &str) -> String {
    [
        testbed.node_config_with(&format!("{SEED}{node}")),
        service(testbed, "web", "tcp", 80, "client", NO_PROBE),
        testbed.backend_config(),
        service(testbed, "dns", "udp", 53, "none", NO_PROBE),
        testbed.backend_config(),
        service(testbed, "dead", "tcp", 81, "client", NO_PROBE),
        testbed.one_backend_config("b1", ""),
    ]
    .concat()
}

/// Waits until the sum of all verdicts has grown by `packets`, and gives what each has grown by since `before`.
fn grown(daemon: &XdpLb, before: &BTreeMap<String, u64>, packets: u64) -> BTreeMap<String, u64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let now = daemon.status().unwrap().verdicts;
        let grown: BTreeMap<String, u64> = now
            .iter()
            .map(|(name, count)| (name.clone(), count - before.get(name).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        if grown.values().sum::<u64>() >= packets || Instant::now() > deadline {
            return grown;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The packets that reached the backends of a service.
fn packets(status: &Status, name: &str) -> u64 {
    let found = status.services.iter().find(|service| service.name == name);
    found
        .expect("the service is configured")
        .backends
        .iter()
        .map(|backend| backend.packets)
        .sum()
}

#[test]
fn packets_per_verdict_add_up_to_the_packets_sent() {
    let testbed = silent_network("verdicts");
    let config = config(&testbed, "");
    let daemon = XdpLb::start(&testbed, &config).unwrap();
    daemon
        .cli_ok(&["fail", "b1", "--service", "dead", "--force"])
        .unwrap();
    let before = daemon.status().unwrap();

    let (vip, director) = (testbed.vip(), testbed.director());
    let to = director.mac();
    let mut wire = Injector::on(testbed.host("c1")).unwrap();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let mut send = |verdict: &str, count: u16, frame: &dyn Fn(&Injector, u16) -> Vec<u8>| {
        *expected.entry(verdict.to_owned()).or_default() += u64::from(count);
        for number in 0..count {
            let frame = frame(&wire, number);
            wire.send(&frame).unwrap();
        }
    };
    // The first frame also tells the switch where the client is.
    send("arp_replied", 10, &|wire, _| wire.arp_request(CLIENT, vip));
    send("arp_other", 12, &|wire, _| {
        wire.arp_request(CLIENT, director.address())
    });
    send("forwarded", 300, &|wire, n| {
        wire.syn(to, nobody(n), (vip, 80))
    });
    send("forwarded", 150, &|wire, n| {
        wire.udp(to, nobody(n), (vip, 53))
    });
    send("unserved", 11, &|wire, n| {
        wire.syn(to, nobody(n), (vip, 82))
    });
    send("unserved", 3, &|wire, n| wire.udp(to, nobody(n), (vip, 80)));
    send("no_backend", 7, &|wire, n| {
        wire.syn(to, nobody(n), (vip, 81))
    });
    send("echo_replied", 13, &|wire, n| {
        wire.echo_request(to, nobody(n).0, vip)
    });
    send("unsupported_protocol", 5, &|wire, n| {
        let mut frame = wire.udp(to, nobody(n), (vip, 53));
        // GRE (RFC 2784).
        frame[14 + 9] = 47;
        frame
    });
    send("fragment", 4, &|wire, n| {
        let mut frame = wire.udp(to, nobody(n), (vip, 53));
        // The last fragment of a packet whose first one was never sent: offset 16 (RFC 791 section 3.1).
        frame[14 + 7] = 2;
        frame
    });
    send("malformed", 6, &|wire, n| {
        let mut frame = wire.udp(to, nobody(n), (vip, 53));
        // A header of 16 bytes, less than the shortest there is.
        frame[14] = 0x44;
        frame
    });
    send("truncated", 2, &|wire, n| {
        let mut frame = wire.udp(to, nobody(n), (vip, 53));
        frame.truncate(frame.len() - 1);
        frame
    });
    send("other_host", 8, &|wire, n| {
        // The switch knows nobody with this MAC, so everybody gets the frame.
        wire.syn(Mac([2, 0, 0, 0, 0, 0x77]), nobody(n), (vip, 80))
    });
    send("not_ours", 9, &|wire, n| {
        wire.udp(to, nobody(n), (director.address(), 9))
    });
    // An EtherType for local experiments (IEEE Std 802).
    send("other_ethertype", 14, &|wire, _| {
        wire.ethernet(to, 0x88b5, &[0; 50])
    });

    let all: u64 = expected.values().sum();
    assert_eq!(grown(&daemon, &before.verdicts, all), expected);
    // The same packets again, by service and backend.
    let after = daemon.status().unwrap();
    for (name, expected) in [("web", 300), ("dns", 150), ("dead", 0)] {
        assert_eq!(
            packets(&after, name) - packets(&before, name),
            expected,
            "{name}"
        );
    }
}

#[test]
fn an_unserved_port_is_left_to_the_host_where_the_file_says_so() {
    let testbed = silent_network("unserved");
    let config = config(&testbed, "unserved = \"pass\"\n");
    let daemon = XdpLb::start(&testbed, &config).unwrap();
    let before = daemon.status().unwrap().verdicts;
    let (vip, to) = (testbed.vip(), testbed.director().mac());
    let mut wire = Injector::on(testbed.host("c1")).unwrap();
    for number in 0..20 {
        let unserved = wire.syn(to, nobody(number), (vip, 82));
        wire.send(&unserved).unwrap();
        let served = wire.syn(to, nobody(number), (vip, 80));
        wire.send(&served).unwrap();
    }
    let expected = BTreeMap::from(
        [("unserved_passed", 20), ("forwarded", 20)].map(|(name, count)| (name.to_owned(), count)),
    );
    assert_eq!(grown(&daemon, &before, 40), expected);
}
