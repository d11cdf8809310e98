//! IPv6 beside IPv4: where connections go, drains and failures, and what lies between a client and the director.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service, tcp_service6};
use lb_tests::testbed::{DEADLINE, Download, INTERFACE, LARGE_BYTES, ReplySniffer, Testbed, VIP6};
use lb_userspace::api::{BackendStatus, Status};
use serde_json::Value;

/// A service of each family on port 80, and the IPv6 one once more on port 81, where networks of 48 bits pick.
fn config(testbed: &Testbed, affinity: &str) -> String {
    let by_network = tcp_service6(
        "site6",
        81,
        "network",
        &format!("network_prefix = 48\n{HTTP_PROBE}"),
    );
    [
        testbed.node_config_with(SEED),
        tcp_service(testbed, "web4", 80, affinity, HTTP_PROBE),
        testbed.backend_config(),
        tcp_service6("web6", 80, affinity, HTTP_PROBE),
        testbed.backend_config6(),
        by_network,
        testbed.backend_config6(),
    ]
    .concat()
}

fn scene(label: &str, sources: usize) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, sources)
        .backends(3)
        .ipv6()
        .label(label)
        .build()
        .unwrap();
    let config = config(&testbed, "client");
    let mut scene = Scene::start(testbed, &[80, 81], &config).unwrap();
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            let services = &mut status.services.iter();
            services.all(|service| service.slots_in_transition == 0)
        })
        .unwrap();
    scene
}

fn of<'s>(status: &'s Status, service: &str, backend: &str) -> &'s BackendStatus {
    let services = &mut status.services.iter();
    let service = services.find(|one| one.name == service).unwrap();
    let backends = &mut service.backends.iter();
    backends.find(|one| one.name == backend).unwrap()
}

fn asked(scene: &Scene, client: &str, service: &str) -> Value {
    scene.daemon.json(&["where", client, service]).unwrap()
}

/// What `ip` prints on a host.
fn ip(scene: &Scene, host: &str, arguments: &[&str]) -> String {
    let output = scene.testbed.host(host).run("ip", arguments).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn both_families_are_served_and_told_apart() {
    const CLIENTS: usize = 60;
    let mut scene = scene("six", CLIENTS);
    let at_director = ReplySniffer::at_director6(&scene.testbed).unwrap();
    let at_client = ReplySniffer::at_client6(scene.testbed.host("c1")).unwrap();
    let sources = scene.testbed.host("c1").sources6().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let used: BTreeSet<&String> = homes.values().collect();
    assert_eq!(used.len(), 3, "{homes:?}");

    // The backend sees the client's own address, and answers it from its own MAC address past the director.
    let answer = scene.get(sources[0], 80).unwrap();
    assert_eq!(answer.headers["x-client"], sources[0].to_string());
    assert_eq!(answer.headers["x-server"], VIP6.to_string());
    let replies = at_client.stop().unwrap();
    for (source, home) in &homes {
        let sender = scene.testbed.host(home).mac();
        let seen = replies
            .keys()
            .any(|reply| reply.sender == sender && reply.destination == *source);
        assert!(seen, "{source} at {home}: {replies:?}");
    }
    // The director itself speaks in the VIP's name only where it answers a solicitation.
    let director = scene.testbed.director().mac();
    let crossed = at_director.stop().unwrap();
    let crossed: Vec<_> = crossed
        .keys()
        .filter(|reply| reply.sender != director)
        .collect();
    assert!(crossed.is_empty(), "replies at the director: {crossed:?}");

    // The program answered the solicitation for the VIP, with the director's MAC address.
    let vip = VIP6.to_string();
    let neighbour = ip(&scene, "c1", &["-6", "neighbour", "show", &vip]);
    assert!(neighbour.contains(&director.to_string()), "{neighbour}");
    let status = scene.daemon.status().unwrap();
    assert!(status.verdicts["neighbour_replied"] > 0, "{status:?}");
    let service = status.services.iter().find(|s| s.name == "web6").unwrap();
    assert_eq!(service.vip, vip);
    for backend in &service.backends {
        let host = scene.testbed.host(&backend.name);
        assert_eq!(backend.address, host.address6().to_string());
        assert_eq!(backend.mac, Some(host.mac().to_string()));
    }
    // Which it could only because the solicitation's group was joined: also by what the kernel keeps when the daemon is gone.
    let joined = |scene: &Scene| {
        let groups = ip(scene, "director", &["maddress", "show", "dev", INTERFACE]);
        groups.contains("ff02::1:ff00:100") && groups.contains("33:33:ff:00:01:00")
    };
    assert!(joined(&scene));

    // IPv4 goes on beside it, and `where` knows the way of both, also while there is nobody to be asked but the maps.
    let sources4 = scene.testbed.host("c1").sources()[..20].to_vec();
    let homes4 = scene.homes(&sources4).unwrap();
    for running in [true, false] {
        if !running {
            scene.daemon.kill9().unwrap();
            assert!(joined(&scene), "after the daemon's end");
            ip(&scene, "c1", &["-6", "neighbour", "flush", "to", &vip]);
        }
        for (source, home) in homes.iter().chain(&homes4) {
            let target = match source {
                IpAddr::V4(_) => scene.target(),
                IpAddr::V6(_) => SocketAddr::new(VIP6, 80),
            };
            let answer = asked(&scene, &source.to_string(), &target.to_string());
            assert_eq!(answer["backend"], *home, "{source}: {answer}");
            assert_eq!(answer["verdict"], "forwarded", "{answer}");
            assert_eq!(answer["mac"], scene.testbed.host(home).mac().to_string());
        }
        assert_eq!(scene.homes(&sources[..10]).unwrap().len(), 10);
    }
    let other = asked(&scene, "[fd78::1]:9", "[fd77::101]:80");
    assert_eq!(other["verdict"], "not_ours", "{other}");
    let unserved = asked(&scene, "fd78::1", &format!("[{vip}]:82"));
    assert_eq!(unserved["verdict"], "unserved", "{unserved}");

    // The networks that pick are as long as configured.
    let site = |client: &str| asked(&scene, client, &format!("[{vip}]:81"))["slot"].clone();
    assert_eq!(site("fd78:0:7::1"), site("fd78:0:7:ffff::9"));
    let slots: BTreeSet<String> = (0..20)
        .map(|network| site(&format!("fd78:0:{network:x}::1")).to_string())
        .collect();
    assert!(slots.len() > 10, "{slots:?}");

    for map in ["VIPS", "SERVICES", "SERVICE_INFO"] {
        let content: Value = scene.daemon.json(&["maps", map]).unwrap();
        let found = content["entries"].as_array().unwrap().iter();
        let found = found.filter(|entry| entry["vip"] == vip).count();
        assert!(found > 0, "{map}: {content}");
    }
    scene.daemon.restart().unwrap();
    assert_eq!(scene.homes(&sources).unwrap(), homes, "after a restart");
}

#[test]
fn a_drain_and_failures_over_ipv6() {
    let mut scene = scene("sixdrain", 40);
    let sources = scene.testbed.host("c1").sources6().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let of_b1: Vec<IpAddr> = sources
        .iter()
        .copied()
        .filter(|source| homes[source] == "b1")
        .collect();
    let client = scene.testbed.host("c1");
    let target = SocketAddr::new(VIP6, 80);
    let transfer = Download::start(client, of_b1[0], target, LARGE_BYTES / 8).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while transfer.progress().bytes == 0 {
        assert!(Instant::now() < deadline, "the download has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }

    // A drain takes the server out of both families' services; the transfer is recorded and stays.
    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    let network = format!("{}/128", of_b1[0]);
    let flow = loop {
        let flows: Value = scene
            .daemon
            .json(&["flows", "--backend", "b1", "--client", &network])
            .unwrap();
        if let Some(flow) = flows["flows"].as_array().unwrap().first() {
            break flow.clone();
        }
        assert!(Instant::now() < deadline, "the transfer is not recorded");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(flow["service"], "web6", "{flow}");
    assert_eq!(flow["vip"], target.to_string(), "{flow}");
    // It is counted by the next look at the table.
    scene
        .daemon
        .wait_for("that the transfer is counted", |status| {
            of(status, "web6", "b1").flows > 0
        })
        .unwrap();
    let endpoint = flow["client"].as_str().unwrap();
    let there = asked(&scene, endpoint, &target.to_string());
    assert_eq!(there["established"]["backend"], "b1", "{there}");
    assert_ne!(there["backend"], "b1", "{there}");
    for source in &of_b1 {
        assert_ne!(scene.who(*source, 80).unwrap(), "b1", "{source}");
    }
    let report = transfer.finish().unwrap();
    assert!(report.whole, "{report:?}");
    assert_eq!(report.backend.as_deref(), Some("b1"));
    scene
        .daemon
        .wait_for("that b1 is drained", |status| {
            ["web4", "web6"].map(|service| of(status, service, "b1").state == "drained")
                == [true, true]
        })
        .unwrap();
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();

    // Without the VIP it is a black hole, and found as one before a client meets it: in its own family alone.
    scene.testbed.host("b3").remove_vip6().unwrap();
    let status = scene
        .daemon
        .wait_for("that b3 is down", |status| {
            of(status, "web6", "b3").state == "down"
        })
        .unwrap();
    let reason = &of(&status, "web6", "b3").reason;
    assert!(reason.contains(&VIP6.to_string()), "{reason}");
    assert!(reason.contains("loopback"), "{reason}");
    assert_eq!(of(&status, "web4", "b3").state, "up");
    for source in &sources {
        assert_ne!(scene.who(*source, 80).unwrap(), "b3", "{source}");
    }
    scene.testbed.host("b3").add_vip6().unwrap();
    scene
        .daemon
        .wait_for("that b3 is up", |status| {
            of(status, "web6", "b3").state == "up"
        })
        .unwrap();

    // A server that ends takes its clients' next connections nowhere else than to those that work.
    scene.server("b2").stop().unwrap();
    scene
        .daemon
        .wait_for("that b2 is down", |status| {
            of(status, "web6", "b2").state == "down"
        })
        .unwrap();
    for source in &sources {
        assert_ne!(scene.who(*source, 80).unwrap(), "b2", "{source}");
    }
}

/// Path MTU discovery (RFC 1191, RFC 8201): a router on the clients' way takes smaller packets than the backends send, and
/// says so to the VIP, with a piece of the packet. The director finds out whose packet it was.
#[test]
fn a_router_with_a_narrower_link_tells_the_right_backend() {
    const NARROW: u32 = 1400;
    let testbed = Testbed::builder()
        .clients(1, 1)
        .backends(3)
        .ipv6()
        .far(NARROW)
        .label("narrow")
        .build()
        .unwrap();
    // Each connection picks for itself, so that the address alone would not tell.
    let config = config(&testbed, "none");
    let scene = Scene::start(testbed, &[80, 81], &config).unwrap();
    let far = scene.testbed.host("far");
    for (source, target) in [
        (far.address(), scene.target()),
        (far.address6(), SocketAddr::new(VIP6, 80)),
    ] {
        let mut used = BTreeSet::new();
        for _ in 0..8 {
            let transfer = Download::start(far, source, target, 64 << 20).unwrap();
            let report = transfer.finish().unwrap();
            assert!(report.whole, "{source}: {report:?}");
            used.insert(report.backend.unwrap());
        }
        assert!(used.len() > 1, "{used:?}");
        for backend in used {
            let (to, from) = (source.to_string(), target.ip().to_string());
            let route = ip(&scene, &backend, &["route", "get", &to, "from", &from]);
            let learnt = format!("mtu {NARROW}");
            assert!(route.contains(&learnt), "{backend} to {source}: {route}");
        }
    }
}
