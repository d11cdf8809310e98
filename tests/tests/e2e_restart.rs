//! The controller comes and goes; the traffic does not notice.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, NO_PROBE, SEED, Scene, service, tcp_service};
use lb_tests::testbed::{
    DEADLINE, Download, Injector, LARGE_BYTES, LoadGenerator, StatusExt, Testbed, XdpLb, remains,
};
use lb_userspace::api::{BackendStatus, ServiceStatus, Status};

/// A network with a web service, and a service of datagrams that nobody but the test sends to.
fn scene(label: &str) -> Scene {
    let testbed = Testbed::builder()
        .clients(2, 30)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        testbed.backend_config(),
        service(&testbed, "dns", "udp", 53, "none", NO_PROBE),
        testbed.backend_config(),
    ]
    .concat();
    Scene::start(testbed, &[80], &config).unwrap()
}

fn of<'s>(status: &'s Status, name: &str) -> &'s ServiceStatus {
    let found = status.services.iter().find(|service| service.name == name);
    found.expect("the service is configured")
}

fn of_web<'s>(status: &'s Status, name: &str) -> &'s BackendStatus {
    let backends = &of(status, "web").backends;
    let found = backends.iter().find(|backend| backend.name == name);
    found.expect("the backend is configured")
}

fn packets(status: &Status, service: &str) -> u64 {
    let backends = &of(status, service).backends;
    backends.iter().map(|backend| backend.packets).sum()
}

/// Starts the daemon again and waits until it answers and knows b1 and b2 up; gives its first such status.
fn start_again(scene: &mut Scene) -> Status {
    scene.daemon.spawn(&[]).unwrap();
    scene
        .daemon
        .wait_for("that the new daemon knows its backends", |status| {
            ["b1", "b2"]
                .iter()
                .all(|name| of_web(status, name).state == "up")
        })
        .unwrap()
}

/// Datagrams to the VIP, one after the other, from an address that nobody has. Nobody sends one again: each that is lost
/// is missing in the counters for good.
struct Datagrams {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Datagrams {
    fn start(testbed: &Testbed) -> Self {
        let mut wire = Injector::on(testbed.host("c2")).unwrap();
        let (to, vip) = (testbed.director().mac(), testbed.vip());
        let (sent, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut number: u16 = 0;
            while !stopped.load(Ordering::Relaxed) {
                number = number.wrapping_add(1);
                let from = (Ipv4Addr::new(10, 78, 16, 251), number | 1024);
                let datagram = wire.udp(to, from, (vip, 53));
                wire.send(&datagram).unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self { sent, stop, thread }
    }

    /// Waits until `count` more have been sent: what happens meanwhile happens under load.
    fn let_pass(&self, count: u64) {
        let (begin, deadline) = (self.sent.load(Ordering::Relaxed), Instant::now() + DEADLINE);
        while self.sent.load(Ordering::Relaxed) < begin + count {
            assert!(!self.thread.is_finished(), "the sender has failed");
            assert!(Instant::now() < deadline, "no datagrams are sent");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends them; gives how many were sent.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// No backend's counters have gone back.
fn assert_continued(before: &Status, after: &Status) {
    for (old, new) in before.services.iter().zip(&after.services) {
        for (old, new) in old.backends.iter().zip(&new.backends) {
            assert_eq!((&old.name, old.number), (&new.name, new.number));
            assert!(
                new.packets >= old.packets && new.bytes >= old.bytes,
                "{old:?} -> {new:?}"
            );
        }
    }
    for (name, count) in &before.verdicts {
        assert!(after.verdicts[name] >= *count, "{name}");
    }
}

#[test]
fn killed_and_started_again_under_load_nothing_is_lost() {
    let mut scene = scene("kill");
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    scene
        .daemon
        .cli_ok(&["drain", "b3", "--service", "web"])
        .unwrap();
    scene
        .daemon
        .wait_for("that b3 is drained", |status| {
            of_web(status, "b3").state == "drained"
        })
        .unwrap();
    let homes = scene.homes(&sources).unwrap();
    let used: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    assert_eq!(used, BTreeSet::from(["b1", "b2"]));
    let client = scene.testbed.host("c1").clone();
    let rate = LARGE_BYTES / 10;
    let transfer = Download::start(&client, sources[0], scene.target(), rate).unwrap();
    let load = LoadGenerator::start(&client, scene.load()).unwrap();
    let first = scene.daemon.status().unwrap();
    let datagrams = Datagrams::start(&scene.testbed);

    datagrams.let_pass(200);
    scene.daemon.kill9().unwrap();
    datagrams.let_pass(400);
    assert_eq!(
        scene.homes(&sources).unwrap(),
        homes,
        "the same picks while nobody is there"
    );
    let second = start_again(&mut scene);
    assert_ne!(second.node.pid, first.node.pid);
    assert_eq!(of_web(&second, "b3").state, "drained", "not forgotten");
    datagrams.let_pass(200);
    assert_eq!(scene.homes(&sources).unwrap(), homes, "the same picks");

    // The same by SIGTERM, as an upgrade does it.
    let ended = scene.daemon.terminate().unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    datagrams.let_pass(200);
    let third = start_again(&mut scene);
    assert_eq!(of_web(&third, "b3").state, "drained", "not forgotten");
    datagrams.let_pass(200);

    for (before, after) in [(&first, &second), (&second, &third)] {
        assert_continued(before, after);
        assert_eq!(before.services[0].slots, after.services[0].slots);
        for (old, new) in before.services.iter().zip(&after.services) {
            for (old, new) in old.backends.iter().zip(&new.backends) {
                assert_eq!(old.slots, new.slots, "{old:?} -> {new:?}");
            }
        }
    }
    let records = load.stop().unwrap();
    assert!(!records.is_empty());
    for record in &records {
        assert_eq!(record.error, None, "{record:?}");
        assert_eq!(record.backend.as_ref(), homes.get(&record.source));
    }
    let report = transfer.finish().unwrap();
    assert!(report.whole, "{report:?}");

    // Every single datagram was forwarded.
    let sent = datagrams.stop();
    let expected = packets(&first, "dns") + sent;
    let last = scene
        .daemon
        .wait_for("that all datagrams are counted", |status| {
            packets(status, "dns") >= expected
        })
        .unwrap();
    assert_eq!(packets(&last, "dns"), expected);
    for verdict in ["no_backend", "no_neighbour", "inconsistent", "unserved"] {
        assert_eq!(last.verdicts[verdict], first.verdicts[verdict], "{verdict}");
    }
}

#[test]
fn a_transition_outlives_its_controller() {
    let mut scene = scene("between");
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let of_b1: Vec<IpAddr> = sources
        .iter()
        .copied()
        .filter(|source| homes[source] == "b1")
        .collect();
    let client = scene.testbed.host("c1");
    let transfers: Vec<Download> = of_b1
        .iter()
        .take(3)
        .map(|source| Download::start(client, *source, scene.target(), LARGE_BYTES / 10).unwrap())
        .collect();
    let deadline = Instant::now() + DEADLINE;
    while transfers.iter().any(|one| one.progress().bytes == 0) {
        assert!(Instant::now() < deadline, "a download has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    scene
        .daemon
        .cli_ok(&["drain", "b1", "--service", "web"])
        .unwrap();
    // In the middle of the drain.
    scene.daemon.kill9().unwrap();
    let without = scene.homes(&of_b1).unwrap();
    assert!(without.values().all(|home| home != "b1"), "{without:?}");
    scene.daemon.spawn(&[]).unwrap();
    let status = scene
        .daemon
        .wait_for("that the new daemon sees the transfers", |status| {
            of_web(status, "b1").flows >= transfers.len() as u64
        })
        .unwrap();
    assert_eq!(of_web(&status, "b1").state, "draining");
    assert!(
        transfers.iter().all(|transfer| !transfer.ended()),
        "ended too early to prove anything"
    );
    for transfer in transfers {
        let report = transfer.finish().unwrap();
        assert!(report.whole, "{report:?}");
        assert_eq!(report.backend.as_deref(), Some("b1"));
    }
    scene
        .daemon
        .wait_for("that b1 is drained", |status| {
            of_web(status, "b1").state == "drained"
        })
        .unwrap();
}

#[test]
fn the_end_leaves_the_data_path_unless_told_otherwise() {
    let mut scene = scene("end");
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let all = remains(&scene.testbed).unwrap();
    for part in ["pins", "XDP", "route", "socket", "process"] {
        assert!(
            all.iter().any(|one| one.starts_with(part)),
            "no {part} in {all:?}"
        );
    }

    let ended = scene.daemon.terminate().unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    let left = remains(&scene.testbed).unwrap();
    let kinds: BTreeSet<&str> = left
        .iter()
        .filter_map(|one| one.split_whitespace().next())
        .collect();
    assert_eq!(kinds, BTreeSet::from(["pins", "XDP"]), "{left:?}");
    assert_eq!(scene.homes(&sources).unwrap(), homes);

    scene.daemon.spawn(&["--detach-on-exit"]).unwrap();
    scene
        .daemon
        .wait_for("an answer", |status| of_web(status, "b1").state == "up")
        .unwrap();
    assert_eq!(scene.homes(&sources).unwrap(), homes);
    let ended = scene.daemon.terminate().unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    assert_eq!(remains(&scene.testbed).unwrap(), Vec::<String>::new());
}

#[test]
fn killed_in_the_middle_of_its_start_the_next_start_succeeds() {
    let testbed = Testbed::builder()
        .clients(1, 5)
        .backends(2)
        .label("early")
        .build()
        .unwrap();
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", NO_PROBE),
        testbed.backend_config(),
    ]
    .concat();
    let pins = testbed.pin_path();
    let entries =
        |directory: &str| std::fs::read_dir(pins.join(directory)).map_or(0, Iterator::count);
    let mut daemon = XdpLb::prepare(&testbed, &config).unwrap();
    // As soon as so many things are pinned: the maps one by one, then the link.
    for pinned in [1, 2, 4, 6, 8, 10, 11, 12, 13] {
        daemon.spawn(&[]).unwrap();
        let deadline = Instant::now() + DEADLINE;
        while entries("maps") + entries("links") < pinned {
            assert!(Instant::now() < deadline, "{pinned} things are not pinned");
        }
        daemon.kill9().unwrap();
        daemon.spawn(&["--detach-on-exit"]).unwrap();
        daemon
            .wait_for("that all backends are up", StatusExt::all_up)
            .unwrap_or_else(|error| panic!("killed with {pinned} things pinned: {error}"));
        daemon.terminate().unwrap();
        assert_eq!(remains(&testbed).unwrap(), Vec::<String>::new());
    }
}

/// The kernel takes a program off the interface a moment after its last pin has gone: a start in between waits for it.
#[test]
fn a_start_waits_for_the_kernel_to_take_off_what_was_unpinned() {
    let testbed = Testbed::builder()
        .clients(1, 5)
        .backends(2)
        .label("unpinned")
        .build()
        .unwrap();
    let pins = |name: &str| testbed.pin_path().join(name);
    let config = |name: &str| {
        let there = testbed.pin_path().display().to_string();
        let node = testbed.node_config_with(SEED);
        let node = node.replace(&there, &pins(name).display().to_string());
        let service = tcp_service(&testbed, "web", 80, "client", NO_PROBE);
        [node, service, testbed.backend_config()].concat()
    };
    let mut daemon = XdpLb::prepare(&testbed, &config("first")).unwrap();
    daemon.restart().unwrap();
    daemon.kill9().unwrap();

    daemon.write_config(&config("second")).unwrap();
    daemon.spawn(&[]).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !daemon.log_tail().contains("not pinned here: waiting") {
        daemon.check_running().unwrap();
        assert!(Instant::now() < deadline, "{}", daemon.log_tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::remove_dir_all(pins("first")).unwrap();
    daemon
        .wait_for("that all backends are up", StatusExt::all_up)
        .unwrap();
}

#[test]
fn an_interface_that_is_taken_from_the_file_is_let_go_by_the_next_start() {
    let testbed = Testbed::builder()
        .clients(1, 5)
        .backends(2)
        .label("ports")
        .build()
        .unwrap();
    let director = testbed.director();
    for arguments in [
        "link add eth1 type veth peer name far1",
        "link set eth1 up",
        "link set far1 up",
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        director.run("ip", &arguments).unwrap();
    }
    let one = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", NO_PROBE),
        testbed.backend_config(),
    ]
    .concat();
    let two = one.replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]");
    let attached = || -> Vec<String> {
        let found = remains(&testbed).unwrap();
        let names = ["eth0", "eth1"].into_iter().filter(|name| {
            found
                .iter()
                .any(|one| one.starts_with("XDP") && one.contains(&format!(": {name}@")))
        });
        names.map(str::to_owned).collect()
    };
    let mut daemon = XdpLb::start(&testbed, &two).unwrap();
    assert_eq!(attached(), ["eth0", "eth1"]);
    daemon.terminate().unwrap();
    assert_eq!(attached(), ["eth0", "eth1"]);
    daemon.write_config(&one).unwrap();
    daemon.restart().unwrap();
    assert_eq!(attached(), ["eth0"]);

    // Another mode than the one that runs would take a moment without any: it is said, not done.
    daemon.terminate().unwrap();
    daemon
        .write_config(&one.replace(SEED, &format!("{SEED}xdp_mode = \"generic\"\n")))
        .unwrap();
    daemon.restart().unwrap();
    let status = daemon.status().unwrap();
    assert_eq!(status.node.interfaces[0].mode, "native");
    let log = daemon.log_tail();
    assert!(
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("--detach-on-exit")),
        "{log}"
    );
}
