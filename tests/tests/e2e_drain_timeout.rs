//! What ends a flow on purpose: a drain whose time is up. And what ends those of a backend that left the configuration:
//! its failure.

use std::net::IpAddr;
use std::process::Output;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{SEED, Scene, tcp_service};
use lb_tests::testbed::{
    DEADLINE, LoadGenerator, LoadSpec, Record, StatusExt as _, Testbed, Transfers,
};
use lb_userspace::api::{BackendStatus, Status};

/// Sees a server that has ended at once, and is patient with a busy machine.
const PROBE: &str = "[service.probe]\ntype = \"http\"\nport = 80\ninterval = \"200ms\"\ntimeout = \"200ms\"\nrise = 1\n\
                     fall = 10\n";
/// How many transfers are on the backend that is drained.
const TRANSFERS: usize = 4;

fn config(testbed: &Testbed, backends: &[&str]) -> String {
    let backends: String = backends
        .iter()
        .map(|name| testbed.one_backend_config(name, ""))
        .collect();
    [
        testbed.node_config_with(SEED),
        tcp_service(testbed, "web", 80, "client", PROBE),
        backends,
    ]
    .concat()
}

fn scene(label: &str) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, 40)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let config = config(&testbed, &["b1", "b2", "b3"]);
    let mut scene = Scene::start(testbed, &[80], &config).unwrap();
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    scene
}

/// The addresses whose new connections that backend answers.
fn of(scene: &Scene, backend: &str) -> Vec<IpAddr> {
    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let found: Vec<IpAddr> = homes
        .iter()
        .filter(|(_, home)| *home == backend)
        .map(|(source, _)| *source)
        .collect();
    assert!(found.len() >= TRANSFERS, "{homes:?}");
    found
}

fn b1(status: &Status) -> &BackendStatus {
    status.backend("b1").expect("b1 is there")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Waits until the transfers on b1 have been counted; by then its drain must still have its time.
fn counted(scene: &Scene) -> BackendStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = scene.daemon.status().unwrap();
        let found = b1(&status).clone();
        if found.flows == TRANSFERS as u64 {
            return found;
        }
        assert!(Instant::now() < deadline, "not counted: {found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_drain_whose_time_is_up_ends_what_is_left_and_says_how_many() {
    let mut scene = scene("timeup");
    let doomed = Transfers::start(&scene, &of(&scene, "b1")[..TRANSFERS], 60).unwrap();
    let others = Transfers::start(&scene, &of(&scene, "b2")[..TRANSFERS], 12).unwrap();

    let waited = std::thread::scope(|scope| {
        let daemon = &scene.daemon;
        let order = ["drain", "b1", "--wait", "--timeout", "6s"];
        let waiting = scope.spawn(move || daemon.cli(&order).unwrap());
        let draining = counted(&scene);
        assert_eq!(draining.state, "draining", "{draining:?}");
        assert!(draining.drain_until.is_some(), "{draining:?}");
        assert_eq!(draining.flows_ended, None);
        doomed.check_running().unwrap();
        waiting.join().unwrap()
    });
    let words = said(&waited);
    assert_eq!(waited.status.code(), Some(0), "{words}");
    let sentence = format!("its time was up, and {TRANSFERS} flows were ended");
    assert!(words.contains(&sentence), "{words}");
    let status = scene.daemon.status().unwrap();
    let found = b1(&status);
    assert_eq!(found.state, "drained", "{found:?}");
    assert_eq!(found.flows_ended, Some(TRANSFERS as u64), "{found:?}");
    assert_eq!((found.slots, found.previous_slots, found.flows), (0, 0, 0));
    assert_eq!(found.drain_until, None);
    assert!(found.reason.contains(&sentence), "{found:?}");
    let log = std::fs::read_to_string(scene.daemon.log_path()).unwrap();
    assert!(log.contains(&sentence), "{log}");

    // They have ended for their clients as well, and b1 gets no packet of them any more.
    let packets = found.packets;
    for (source, report) in doomed.finish().unwrap() {
        assert_eq!(report.backend.as_deref(), Some("b1"));
        assert!(
            !report.whole && report.error.is_some(),
            "{source}: {report:?}"
        );
    }
    assert_eq!(b1(&scene.daemon.status().unwrap()).packets, packets);
    // Nobody else's has.
    assert_eq!(others.finish_whole().unwrap(), TRANSFERS);

    // The decision stands through a restart, and is taken back as any other.
    scene.daemon.terminate().unwrap();
    scene.daemon.spawn(&[]).unwrap();
    let status = scene.daemon.wait_state("b1", "drained").unwrap();
    assert_eq!(b1(&status).flows_ended, Some(TRANSFERS as u64));
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    let status = scene.daemon.wait_state("b1", "up").unwrap();
    assert_eq!(b1(&status).flows_ended, None);
    of(&scene, "b1");
}

#[test]
fn the_time_of_a_drain_survives_a_restart_and_a_failure_comes_before_it() {
    let mut scene = scene("deadline");
    // Nobody waits, and the daemon is another one when the time is up.
    let doomed = Transfers::start(&scene, &of(&scene, "b1")[..TRANSFERS], 60).unwrap();
    scene
        .daemon
        .cli_ok(&["drain", "b1", "--timeout", "7s"])
        .unwrap();
    let until = counted(&scene).drain_until;
    assert!(until.is_some());
    scene.daemon.kill9().unwrap();
    scene.daemon.spawn(&[]).unwrap();
    let status = scene.daemon.wait_state("b1", "draining").unwrap();
    assert_eq!(b1(&status).drain_until, until);
    let status = scene.daemon.wait_state("b1", "drained").unwrap();
    assert_eq!(b1(&status).flows_ended, Some(TRANSFERS as u64));
    for (_, report) in doomed.finish().unwrap() {
        assert!(!report.whole, "{report:?}");
    }

    // Whoever fails in the middle of its drain has failed.
    let b2 = of(&scene, "b2");
    let moved = Transfers::start(&scene, &b2[..TRANSFERS], 60).unwrap();
    let waited = std::thread::scope(|scope| {
        let daemon = &scene.daemon;
        let order = ["drain", "b2", "--wait", "--timeout", "10m"];
        let waiting = scope.spawn(move || daemon.cli(&order).unwrap());
        let deadline = Instant::now() + DEADLINE;
        while daemon.status().unwrap().backend("b2").unwrap().state != "draining" {
            assert!(Instant::now() < deadline, "the drain does not begin");
        }
        scene.testbed.host("b2").remove_vip().unwrap();
        waiting.join().unwrap()
    });
    let words = said(&waited);
    assert_eq!(waited.status.code(), Some(1), "{words}");
    assert!(
        words.contains("web/b2 is down") && words.contains("(while draining)"),
        "{words}"
    );
    let status = scene.daemon.status().unwrap();
    let b2 = status.backend("b2").unwrap();
    assert_eq!((b2.flows_ended, b2.slots, b2.previous_slots), (None, 0, 0));
    for (_, report) in moved.finish().unwrap() {
        assert!(!report.whole, "{report:?}");
    }
}

#[test]
fn a_backend_that_fails_while_it_leaves_gives_its_flows_away() {
    let mut scene = scene("leaving");
    let sources = of(&scene, "b1");
    let spec = LoadSpec {
        sources: sources.clone(),
        rate: 50,
        keep_alive: true,
        ..scene.load()
    };
    let load = LoadGenerator::start(scene.testbed.host("c1"), spec).unwrap();
    let deadline = Instant::now() + DEADLINE;
    // Until every one has been answered, begun after `since`, by a backend for which `wanted` is true.
    let answered = |since: Instant, wanted: &dyn Fn(&str) -> bool| {
        let mut records: Vec<Record> = Vec::new();
        loop {
            records.extend(load.take());
            let by = |source: &IpAddr| {
                records.iter().any(|record| {
                    record.source == *source
                        && record.start > since
                        && record.backend.as_deref().is_some_and(wanted)
                })
            };
            if sources.iter().all(by) {
                return records;
            }
            assert!(
                Instant::now() < deadline,
                "not all are answered: {records:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let begin = Instant::now();
    answered(begin, &|backend| backend == "b1");
    scene
        .daemon
        .write_config(&config(&scene.testbed, &["b2", "b3"]))
        .unwrap();
    scene.daemon.cli_ok(&["reload"]).unwrap();
    // It leaves, and keeps its connections.
    let records = answered(Instant::now(), &|backend| backend == "b1");
    let broken: Vec<_> = records.iter().filter(|r| r.error.is_some()).collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(b1(&scene.daemon.status().unwrap()).state, "leaving");

    // Its clients would go on sending to a dead host, and so keep it in the maps for ever.
    let cut = Instant::now();
    scene.testbed.host("b1").link_down().unwrap();
    scene
        .daemon
        .wait_for("that b1 is gone", |status| status.backend("b1").is_none())
        .unwrap();
    answered(cut, &|backend| backend != "b1");
    let log = std::fs::read_to_string(scene.daemon.log_path()).unwrap();
    for part in ["failed while it was leaving", "its flows have moved"] {
        assert!(log.contains(part), "{part} is not in:\n{log}");
    }
}
