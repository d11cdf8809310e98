//! What becomes of connections when backends fail, drain, come back, or the configuration changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{
    DEADLINE, Download, LARGE_BYTES, LoadGenerator, LoadSpec, Record, StatusExt, Testbed,
};
use lb_userspace::api::Status;

type Homes = BTreeMap<IpAddr, String>;

fn scene(label: &str, sources: usize, backends: usize) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, sources)
        .backends(backends)
        .label(label)
        .build()
        .unwrap();
    Scene::of_one_service(testbed).unwrap()
}

fn homes(scene: &Scene) -> Homes {
    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let used: BTreeSet<&String> = homes.values().collect();
    assert!(used.len() > 1, "all clients on one backend: {homes:?}");
    homes
}

/// The addresses whose home is that backend.
fn of(homes: &Homes, backend: &str) -> Vec<IpAddr> {
    let found: Vec<IpAddr> = homes
        .iter()
        .filter(|(_, home)| *home == backend)
        .map(|(source, _)| *source)
        .collect();
    assert!(!found.is_empty(), "nobody is on {backend}: {homes:?}");
    found
}

/// The clients of the backends that are `gone` are on others, and those of others are where they were.
///
/// All but a few: a Maglev table changes somewhat more slots than it must (Eisenbud et al., NSDI 2016, section 5.3). That
/// concerns new connections; what becomes of the existing ones is looked at apart from this.
fn assert_moved(before: &Homes, after: &Homes, gone: &[&str]) {
    for (source, home) in after {
        assert!(!gone.contains(&home.as_str()), "{source} is on {home}");
    }
    assert_few_shuffled(before, after, gone);
}

fn assert_few_shuffled(before: &Homes, after: &Homes, come_or_gone: &[&str]) {
    let with_reason = |source| {
        [&before[source], &after[source]].map(|home| come_or_gone.contains(&home.as_str()))
    };
    let shuffled = before
        .keys()
        .filter(|source| before[*source] != after[*source])
        .filter(|source| with_reason(source) == [false, false])
        .count();
    assert!(
        shuffled <= before.len() / 10,
        "{shuffled} moved without a reason: {before:?} -> {after:?}"
    );
}

/// Waits until no slot is in transition: what the start changed is history then.
fn settled(scene: &mut Scene) {
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
}

fn state_is<'a>(backend: &'a str, state: &'a str) -> impl Fn(&Status) -> bool + 'a {
    move |status| {
        status
            .backend(backend)
            .is_some_and(|found| found.state == state)
    }
}

fn reason(status: &Status, backend: &str) -> String {
    status.backend(backend).unwrap().reason.clone()
}

/// Keeps one connection per address alive with requests: whoever's breaks gets an error in the record.
fn long_connections(scene: &Scene, sources: Vec<IpAddr>) -> LoadGenerator {
    let spec = LoadSpec {
        sources,
        rate: 100,
        keep_alive: true,
        ..scene.load()
    };
    LoadGenerator::start(scene.testbed.host("c1"), spec).unwrap()
}

/// Every request was answered by its address's home.
fn assert_undisturbed(records: &[Record], homes: &Homes) {
    assert!(!records.is_empty());
    for record in records {
        assert_eq!(record.error, None, "{record:?}");
        assert_eq!(record.backend.as_ref(), homes.get(&record.source));
    }
}

/// Starts a download from each address and waits until every one has begun.
fn downloads(scene: &Scene, sources: &[IpAddr], seconds: usize) -> Vec<Download> {
    let started: Vec<Download> = sources
        .iter()
        .map(|source| {
            let rate = LARGE_BYTES / seconds;
            Download::start(scene.testbed.host("c1"), *source, scene.target(), rate).unwrap()
        })
        .collect();
    let deadline = Instant::now() + DEADLINE;
    while started.iter().any(|one| one.progress().bytes == 0) {
        assert!(Instant::now() < deadline, "a download has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    started
}

fn assert_running(downloads: &[Download]) {
    for download in downloads {
        assert!(
            !download.ended(),
            "ended too early to prove anything: {:?}",
            download.progress()
        );
    }
}

fn assert_whole(downloads: Vec<Download>, backend: &str) {
    for download in downloads {
        let report = download.finish().unwrap();
        assert_eq!(report.error, None, "{report:?}");
        assert!(report.whole, "{report:?}");
        assert_eq!(report.bytes, LARGE_BYTES);
        assert_eq!(report.backend.as_deref(), Some(backend));
    }
}

#[test]
fn a_server_that_ends_loses_its_share_and_gets_it_back() {
    let mut scene = scene("refused", 30, 3);
    let before = homes(&scene);
    let others: Vec<IpAddr> = [of(&before, "b1"), of(&before, "b3")].concat();
    let load = long_connections(&scene, others.clone());
    let mut records = load.wait_for_answers(&others).unwrap();

    scene.server("b2").stop().unwrap();
    let status = scene.daemon.wait_state("b2", "down").unwrap();
    let reason = reason(&status, "b2");
    assert!(reason.contains("refused"), "{reason}");
    let down = status.backend("b2").unwrap();
    assert_eq!((down.slots, down.previous_slots), (0, 0), "{down:?}");
    let during = homes(&scene);
    assert_moved(&before, &during, &["b2"]);
    let moved: BTreeSet<&String> = of(&before, "b2").iter().map(|s| &during[s]).collect();
    assert!(moved.len() > 1 || of(&before, "b2").len() < 4, "{during:?}");

    scene.server("b2").resume().unwrap();
    scene.daemon.wait_state("b2", "up").unwrap();
    assert_eq!(homes(&scene), before, "everyone is home again");
    records.extend(load.wait_for_answers(&others).unwrap());
    records.extend(load.stop().unwrap());
    assert_undisturbed(&records, &before);
}

#[test]
fn a_host_that_is_cut_off_loses_its_share_and_gets_it_back() {
    let mut scene = scene("cut", 30, 3);
    let before = homes(&scene);
    let others: Vec<IpAddr> = [of(&before, "b1"), of(&before, "b3")].concat();
    let load = long_connections(&scene, others.clone());
    let mut records = load.wait_for_answers(&others).unwrap();

    scene.testbed.host("b2").link_down().unwrap();
    let status = scene.daemon.wait_state("b2", "down").unwrap();
    let first = reason(&status, "b2");
    assert!(
        first.contains("no answer") || first.contains("unreachable") || first.contains("ARP"),
        "{first}"
    );
    assert_moved(&before, &homes(&scene), &["b2"]);
    // Later its MAC is not to be had either.
    let status = scene
        .daemon
        .wait_for("that b2's MAC is lost", |status| {
            status.backend("b2").is_some_and(|b2| b2.mac.is_none())
        })
        .unwrap();
    let later = reason(&status, "b2");
    assert!(later.contains("ARP"), "{later}");
    assert_eq!(status.backend("b2").unwrap().state, "down");

    scene.testbed.host("b2").link_up().unwrap();
    scene.daemon.wait_state("b2", "up").unwrap();
    assert_eq!(homes(&scene), before, "everyone is home again");
    records.extend(load.wait_for_answers(&others).unwrap());
    records.extend(load.stop().unwrap());
    assert_undisturbed(&records, &before);
}

#[test]
fn a_backend_without_the_vip_is_down_even_if_it_forwards() {
    let mut scene = scene("novip", 30, 3);
    let before = homes(&scene);
    for (backend, forwards) in [("b2", "0"), ("b3", "1")] {
        let host = scene.testbed.host(backend).clone();
        // What forwards sends a packet for the VIP on to the director, which gives it to a backend that has it.
        host.namespace()
            .sysctl(&[("ipv4.ip_forward", forwards)])
            .unwrap();
        host.remove_vip().unwrap();
        let what = format!("that {backend} does not serve the VIP");
        let status = scene
            .daemon
            .wait_for(&what, |status| {
                status.backend(backend).is_some_and(|found| {
                    found.state == "down" && found.reason.contains("VIP not served")
                })
            })
            .unwrap();
        assert_eq!(status.backend(backend).unwrap().slots, 0);
        assert_moved(&before, &homes(&scene), &[backend]);
        host.namespace()
            .sysctl(&[("ipv4.ip_forward", "0")])
            .unwrap();
        host.add_vip().unwrap();
        scene.daemon.wait_state(backend, "up").unwrap();
        assert_eq!(homes(&scene), before);
    }
}

#[test]
fn a_drain_lets_transfers_end_and_sends_new_connections_elsewhere() {
    let mut scene = scene("drain", 40, 3);
    settled(&mut scene);
    let before = homes(&scene);
    let clients = of(&before, "b1");
    let transfers = downloads(&scene, &clients[..clients.len().min(4)], 8);
    let others: Vec<IpAddr> = [of(&before, "b2"), of(&before, "b3")].concat();
    let load = long_connections(&scene, others.clone());
    let mut records = load.wait_for_answers(&others).unwrap();

    // The command waits until the last transfer has ended; the test goes on meanwhile.
    let (waited, elsewhere) = std::thread::scope(|scope| {
        let daemon = &scene.daemon;
        let waiting = scope.spawn(move || daemon.cli(&["drain", "b1", "--wait"]).unwrap());
        let deadline = Instant::now() + DEADLINE;
        while !state_is("b1", "draining")(&scene.daemon.status().unwrap()) {
            assert!(Instant::now() < deadline, "the drain does not begin");
        }
        assert_running(&transfers);
        // The same clients, among them those whose transfer runs: the drain overrides their affinity.
        let elsewhere = homes(&scene);
        // The transfers are counted one by one, as soon as they have sent something.
        let b1 = loop {
            let status = scene.daemon.status().unwrap();
            let b1 = status.backend("b1").unwrap().clone();
            if b1.flows >= transfers.len() as u64 {
                break b1;
            }
            assert!(Instant::now() < deadline, "not counted: {b1:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(b1.slots, 0, "no slot gives new flows to b1: {b1:?}");
        assert!(b1.previous_slots > 0, "{b1:?}");
        assert!(!waiting.is_finished(), "it waits for the transfers");
        assert_running(&transfers);
        assert_whole(transfers, "b1");
        (waiting.join().unwrap(), elsewhere)
    });
    assert_moved(&before, &elsewhere, &["b1"]);
    let said = String::from_utf8_lossy(&waited.stdout).into_owned()
        + &String::from_utf8_lossy(&waited.stderr);
    assert_eq!(waited.status.code(), Some(0), "{said}");
    assert!(said.contains("drained"), "{said}");
    let status = scene.daemon.status().unwrap();
    let b1 = status.backend("b1").unwrap();
    assert_eq!((b1.state.as_str(), b1.flows), ("drained", 0), "{b1:?}");
    assert_eq!((b1.slots, b1.previous_slots), (0, 0), "{b1:?}");
    let packets = b1.packets;
    assert_moved(&before, &homes(&scene), &["b1"]);
    let status = scene.daemon.status().unwrap();
    assert_eq!(
        status.backend("b1").unwrap().packets,
        packets,
        "no packet reaches what is drained"
    );

    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    scene.daemon.wait_state("b1", "up").unwrap();
    assert_eq!(homes(&scene), before, "everyone is home again");
    records.extend(load.wait_for_answers(&others).unwrap());
    records.extend(load.stop().unwrap());
    assert_undisturbed(&records, &before);
}

#[test]
fn a_drain_and_a_failure_at_once_disturb_no_third() {
    let mut scene = scene("overlap", 40, 3);
    let before = homes(&scene);
    let (of_b1, of_b3) = (of(&before, "b1"), of(&before, "b3"));
    let drained = downloads(&scene, &of_b1[..of_b1.len().min(3)], 10);
    let third = downloads(&scene, &of_b3[..of_b3.len().min(3)], 10);

    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    scene.server("b2").stop().unwrap();
    scene.daemon.wait_state("b2", "down").unwrap();
    let all_on_b3 = scene.homes(before.keys()).unwrap();
    assert!(all_on_b3.values().all(|home| home == "b3"), "{all_on_b3:?}");
    scene.server("b2").resume().unwrap();
    scene.daemon.wait_state("b2", "up").unwrap();
    assert_running(&drained);
    assert_running(&third);
    assert_moved(&before, &homes(&scene), &["b1"]);
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    scene.daemon.wait_state("b1", "up").unwrap();
    assert_running(&drained);
    assert_running(&third);
    assert_eq!(homes(&scene), before, "everyone is home again");
    assert_whole(drained, "b1");
    assert_whole(third, "b3");
}

#[test]
fn a_reload_adds_removes_and_refuses_without_breaking_anything() {
    let testbed = Testbed::builder()
        .clients(1, 40)
        .backends(4)
        .label("reload")
        .build()
        .unwrap();
    let with = |backends: &[(&str, &str)]| -> String {
        let backends: String = backends
            .iter()
            .map(|(name, more)| testbed.one_backend_config(name, more))
            .collect();
        [
            testbed.node_config_with(SEED),
            tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
            backends,
        ]
        .concat()
    };
    let three = with(&[("b1", ""), ("b2", ""), ("b3", "")]);
    let four = with(&[("b1", ""), ("b2", ""), ("b3", ""), ("b4", "")]);
    let heavier = with(&[("b1", ""), ("b2", ""), ("b3", "weight = 100\n"), ("b4", "")]);
    let without_b1 = with(&[("b2", ""), ("b3", "weight = 100\n"), ("b4", "")]);
    let bad = three.clone() + "wieght = 3\nprioritee = 4\n";
    let mut scene = Scene::start(testbed, &[80], &three).unwrap();

    let before = homes(&scene);
    let load = LoadGenerator::start(scene.testbed.host("c1"), scene.load()).unwrap();
    let sources: Vec<IpAddr> = before.keys().copied().collect();
    let mut records = load.wait_for_answers(&sources).unwrap();
    let slots = |status: &Status, name: &str| status.backend(name).unwrap().slots;

    // A bad file is refused whole.
    let status = scene.daemon.status().unwrap();
    scene.daemon.write_config(&bad).unwrap();
    let refused = scene.daemon.cli(&["reload"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in [
        "`wieght`",
        "did you mean `weight`?",
        "`prioritee`",
        "did you mean `priority`?",
        "nothing was changed",
    ] {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    assert_eq!(
        scene.daemon.status().unwrap().node.generation,
        status.node.generation,
        "nothing was applied"
    );

    // A new backend takes its share, and nobody else's clients move but to it.
    scene.daemon.write_config(&four).unwrap();
    let said = scene.daemon.cli_ok(&["reload"]).unwrap();
    assert!(said.contains("b4"), "{said}");
    scene.daemon.wait_state("b4", "up").unwrap();
    let with_b4 = homes(&scene);
    assert_few_shuffled(&before, &with_b4, &["b4"]);
    of(&with_b4, "b4");

    // Another weight changes the share.
    let old = scene.daemon.status().unwrap();
    scene.daemon.write_config(&heavier).unwrap();
    let said = scene.daemon.cli_ok(&["reload"]).unwrap();
    assert!(said.contains("50 -> 100"), "{said}");
    let new = scene.daemon.status().unwrap();
    let share = |status: &Status| {
        let total = status.services[0].slots as f64;
        slots(status, "b3") as f64 / total
    };
    assert!((share(&old) - 0.25).abs() < 0.01, "{}", share(&old));
    assert!((share(&new) - 0.4).abs() < 0.01, "{}", share(&new));

    // A backend that is removed keeps its transfer to the end, and gets no new connection.
    let now = homes(&scene);
    let clients = of(&now, "b1");
    let transfers = downloads(&scene, &clients[..clients.len().min(3)], 8);
    scene.daemon.write_config(&without_b1).unwrap();
    let said = scene.daemon.cli_ok(&["reload"]).unwrap();
    assert!(said.contains("b1"), "{said}");
    assert_moved(&now, &homes(&scene), &["b1"]);
    assert_running(&transfers);
    assert_whole(transfers, "b1");
    scene
        .daemon
        .wait_for("that b1 is gone", |status| status.backend("b1").is_none())
        .unwrap();
    assert_moved(&now, &homes(&scene), &["b1"]);

    records.extend(load.stop().unwrap());
    let failed: Vec<&Record> = records.iter().filter(|r| r.error.is_some()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_last_backend_is_taken_away_only_by_force() {
    let mut scene = scene("last", 10, 2);
    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    for order in ["drain", "fail"] {
        let refused = scene.daemon.cli(&[order, "b2"]).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        for part in ["`b2`", "last backend", "`web`", "--force"] {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        assert_eq!(
            scene.daemon.status().unwrap().backend("b2").unwrap().state,
            "up"
        );
    }
    let sources = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    assert!(homes.values().all(|home| home == "b2"), "{homes:?}");
    scene.daemon.cli_ok(&["drain", "b2", "--force"]).unwrap();
    let status = scene
        .daemon
        .wait_for("that b2 takes nothing new", |status| {
            status.backend("b2").is_some_and(|b2| b2.slots == 0)
        })
        .unwrap();
    assert_ne!(status.backend("b2").unwrap().state, "up");

    // An unknown one: nothing happens, and the message knows better.
    let wrong = scene.daemon.cli(&["drain", "b22"]).unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    for part in ["`b22`", "did you mean", "`b2`"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    let wrong = scene
        .daemon
        .cli(&["drain", "b1", "--service", "wep"])
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("`wep`") && said.contains("`web`"), "{said}");

    scene.daemon.cli_ok(&["resume", "b2"]).unwrap();
    scene.daemon.wait_state("b2", "up").unwrap();
    scene.homes(&sources).unwrap();
}

#[test]
fn an_operators_failure_moves_all_at_once_and_is_taken_back() {
    let mut scene = scene("fail", 30, 3);
    let before = homes(&scene);
    let clients = of(&before, "b2");
    let transfers = downloads(&scene, &clients[..1], 60);
    scene.daemon.cli_ok(&["fail", "b2"]).unwrap();
    let status = scene.daemon.status().unwrap();
    let b2 = status.backend("b2").unwrap();
    assert_eq!(b2.state, "failed", "{b2:?}");
    assert_eq!((b2.slots, b2.previous_slots), (0, 0), "{b2:?}");
    assert_moved(&before, &homes(&scene), &["b2"]);
    // Its flows have moved too: the other backend does not know the transfer and resets it.
    for transfer in transfers {
        let report = transfer.finish().unwrap();
        assert!(!report.whole && report.error.is_some(), "{report:?}");
    }
    scene.daemon.cli_ok(&["resume", "b2"]).unwrap();
    scene.daemon.wait_state("b2", "up").unwrap();
    assert_eq!(homes(&scene), before);
}
