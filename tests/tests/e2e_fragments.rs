//! Datagrams that are larger than a frame: all of their fragments reach the one backend, in order or not.

use std::net::{IpAddr, Ipv4Addr};

use lb_tests::testbed::scene::{NO_PROBE, PATIENCE, SEED, service};
use lb_tests::testbed::{Injector, Testbed, UdpClient, UdpEcho, XdpLb};
use lb_userspace::api::Status;

const PORT: u16 = 53;
/// Two fragments, three, and as many as there can be.
const SIZES: [usize; 3] = [2_000, 4_000, 60_000];

struct Scene {
    daemon: XdpLb,
    _servers: Vec<UdpEcho>,
    testbed: Testbed,
}

fn scene(label: &str, affinity: &str, limits: &str) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, 20)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let servers = testbed
        .backends()
        .map(|host| UdpEcho::start_on(host, &[PORT]).unwrap())
        .collect();
    let config = [
        testbed.node_config_with(SEED),
        limits.to_owned(),
        service(&testbed, "dns", "udp", PORT, affinity, NO_PROBE),
        testbed.backend_config(),
    ]
    .concat();
    let daemon = XdpLb::start(&testbed, &config).unwrap();
    Scene {
        daemon,
        _servers: servers,
        testbed,
    }
}

impl Scene {
    fn client(&self, source: IpAddr) -> UdpClient {
        UdpClient::on(self.testbed.host("c1"), source, 0, PORT).unwrap()
    }

    fn dropped(&self) -> u64 {
        self.daemon.status().unwrap().verdicts["fragment"]
    }

    /// Sends a datagram's fragments in this order, and gives who answered.
    fn send(
        &self,
        injector: &mut Injector,
        source: IpAddr,
        identification: u16,
        order: impl Fn(&mut Vec<Vec<u8>>),
    ) -> Result<String, lb_tests::testbed::Error> {
        let client = self.client(source);
        let IpAddr::V4(address) = source else {
            panic!("the testbed's clients are IPv4");
        };
        let payload = payload(4_000);
        let mut fragments = injector.udp_fragments(
            self.testbed.director().mac(),
            (address, client.port().unwrap()),
            (self.testbed.vip(), PORT),
            &payload,
            (identification, 1_400),
        );
        order(&mut fragments);
        for fragment in &fragments {
            injector.send(fragment).unwrap();
        }
        client.answer(&payload, PATIENCE)
    }
}

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7) as u8).collect()
}

fn features(status: &Status) -> &[String] {
    &status.node.features
}

#[test]
fn large_datagrams_reach_one_backend_whole() {
    let scene = scene("frag", "none", "");
    assert_eq!(features(&scene.daemon.status().unwrap()), ["fragments"]);
    for source in scene.testbed.host("c1").sources() {
        let client = scene.client(*source);
        let home = client.ask(b"small", PATIENCE).unwrap();
        for size in SIZES {
            let answered = client.ask(&payload(size), PATIENCE).unwrap();
            assert_eq!(answered, home, "{size} bytes from {source}");
        }
    }
    assert_eq!(scene.dropped(), 0);
}

#[test]
fn fragments_out_of_order_need_no_first_one_where_no_port_picks() {
    let scene = scene("fragaff", "client", "");
    let mut injector = Injector::on(scene.testbed.host("c1")).unwrap();
    for (id, source) in (1..).zip(scene.testbed.host("c1").sources()) {
        let home = scene.client(*source).ask(b"small", PATIENCE).unwrap();
        let answered = scene
            .send(&mut injector, *source, id, |fragments| fragments.reverse())
            .unwrap();
        assert_eq!(answered, home, "{source}");
    }
    assert_eq!(scene.dropped(), 0);
}

#[test]
fn a_later_fragment_waits_for_nobody_where_ports_pick() {
    let scene = scene("fragport", "none", "");
    let mut injector = Injector::on(scene.testbed.host("c1")).unwrap();
    let source = scene.testbed.host("c1").sources()[0];
    // The others in any order, once the first has been seen.
    scene
        .send(&mut injector, source, 1, |fragments| {
            fragments[1..].reverse();
        })
        .unwrap();
    assert_eq!(scene.dropped(), 0);
    // One that comes before it can't be told from any other port's, and the datagram is never whole.
    let client = scene.client(source);
    let port = client.port().unwrap();
    let IpAddr::V4(address) = source else {
        panic!("the testbed's clients are IPv4");
    };
    let to = (scene.testbed.vip(), PORT);
    let mut fragments = injector.udp_fragments(
        scene.testbed.director().mac(),
        (address, port),
        to,
        &payload(4_000),
        (2, 1_400),
    );
    fragments.rotate_left(1);
    for fragment in &fragments {
        injector.send(fragment).unwrap();
    }
    let mut scene = scene;
    scene
        .daemon
        .wait_for("that the early ones were dropped", |status| {
            status.verdicts["fragment"] == fragments.len() as u64 - 1
        })
        .unwrap();
}

#[test]
fn without_the_feature_every_fragment_is_dropped() {
    let mut scene = scene("fragoff", "client", "\n[limits]\nfragments = 0\n");
    assert!(features(&scene.daemon.status().unwrap()).is_empty());
    let mut injector = Injector::on(scene.testbed.host("c1")).unwrap();
    let to = (scene.testbed.vip(), PORT);
    let fragments = injector.udp_fragments(
        scene.testbed.director().mac(),
        (Ipv4Addr::new(10, 78, 0, 1), 4_000),
        to,
        &payload(4_000),
        (2, 1_400),
    );
    for fragment in &fragments {
        injector.send(fragment).unwrap();
    }
    let count = fragments.len() as u64;
    scene
        .daemon
        .wait_for("that all were dropped", |status| {
            status.verdicts["fragment"] == count
        })
        .unwrap();
    // Whole packets are served as ever.
    let source = scene.testbed.host("c1").sources()[0];
    scene.client(source).ask(b"small", PATIENCE).unwrap();
}
