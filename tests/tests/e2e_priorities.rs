//! Stand-bys: new flows go to the next priority when the preferred one is gone, and back; by themselves, or when the
//! operator says so. Existing flows stay through all of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_tests::testbed::scene::{SEED, Scene, tcp_service};
use lb_tests::testbed::{StatusExt as _, Testbed, Transfers};
use lb_userspace::api::{ServiceStatus, Status};

/// Sees a server that has ended at once, and is patient with a busy machine.
const PROBE: &str = "[service.probe]\ntype = \"http\"\nport = 80\ninterval = \"200ms\"\ntimeout = \"200ms\"\nrise = 1\n\
                     fall = 10\n";
/// The primary, a pool of two, and the last resort.
const PRIORITIES: [(&str, u32); 4] = [("b1", 1), ("b2", 2), ("b3", 2), ("b4", 3)];

fn config(testbed: &Testbed, failback: &str, priorities: &[(&str, u32)]) -> String {
    let backends: String = priorities
        .iter()
        .map(|(name, priority)| {
            testbed.one_backend_config(name, &format!("priority = {priority}\n"))
        })
        .collect();
    let service = tcp_service(testbed, "web", 80, "client", PROBE);
    let service = service.replace("affinity", &format!("failback = \"{failback}\"\naffinity"));
    [testbed.node_config_with(SEED), service, backends].concat()
}

fn scene(label: &str, failback: &str) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, 24)
        .backends(4)
        .label(label)
        .build()
        .unwrap();
    let config = config(&testbed, failback, &PRIORITIES);
    Scene::start(testbed, &[80], &config).unwrap()
}

fn sources(scene: &Scene) -> Vec<IpAddr> {
    scene.testbed.host("c1").sources().to_vec()
}

fn web(status: &Status) -> &ServiceStatus {
    &status.services[0]
}

/// New connections of all addresses are answered by these backends, by each of them, and by no other.
fn assert_served_by(scene: &Scene, backends: &[&str]) {
    let homes = scene.homes(&sources(scene)).unwrap();
    let found: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    assert_eq!(found, backends.iter().copied().collect(), "{homes:?}");
}

fn stop(scene: &mut Scene, backend: &str) {
    scene.server(backend).stop().unwrap();
    scene.daemon.wait_state(backend, "down").unwrap();
}

fn resume(scene: &mut Scene, backend: &str) {
    scene.server(backend).resume().unwrap();
    scene.daemon.wait_state(backend, "up").unwrap();
}

/// What `status` says of the priorities: in force, held, and better.
fn standing(scene: &Scene) -> (Option<u32>, bool, Option<u32>) {
    let status = scene.daemon.status().unwrap();
    let web = web(&status);
    (web.priority, web.held, web.better_priority)
}

#[test]
fn new_flows_go_to_the_stand_by_and_come_back_by_themselves() {
    let mut scene = scene("standby", "auto");
    assert_served_by(&scene, &["b1"]);
    stop(&mut scene, "b1");
    assert_served_by(&scene, &["b2", "b3"]);
    // One of the pool is enough; without it, the last resort.
    stop(&mut scene, "b2");
    assert_served_by(&scene, &["b3"]);
    stop(&mut scene, "b3");
    assert_served_by(&scene, &["b4"]);
    assert_eq!(standing(&scene), (Some(3), false, None));
    resume(&mut scene, "b2");
    resume(&mut scene, "b3");
    assert_served_by(&scene, &["b2", "b3"]);

    // The preferred one returns: new flows go back, old ones stay where they are.
    let transfers = Transfers::start(&scene, &sources(&scene)[..6], 5).unwrap();
    resume(&mut scene, "b1");
    assert_served_by(&scene, &["b1"]);
    transfers.check_running().unwrap();
    let homes: BTreeSet<String> = transfers.reports().filter_map(|r| r.backend).collect();
    assert!(!homes.contains("b1") && !homes.is_empty(), "{homes:?}");
    assert_eq!(transfers.finish_whole().unwrap(), 6);
    let said = scene.daemon.cli_ok(&["failback", "web"]).unwrap();
    assert!(said.contains("nothing to do"), "{said}");
    let log = std::fs::read_to_string(scene.daemon.log_path()).unwrap();
    assert!(log.contains("later priority") && log.contains("back to a better priority"));
}

#[test]
fn manual_failback_waits_for_the_operator() {
    let mut scene = scene("manual", "manual");
    assert_served_by(&scene, &["b1"]);
    assert_eq!(standing(&scene), (Some(1), false, None));
    stop(&mut scene, "b1");
    assert_served_by(&scene, &["b2", "b3"]);
    assert_eq!(standing(&scene), (Some(2), true, None));
    let refused = scene.daemon.cli(&["failback", "web"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("stays on priority 2"), "{said}");

    resume(&mut scene, "b1");
    assert_eq!(standing(&scene), (Some(2), true, Some(1)));
    assert_served_by(&scene, &["b2", "b3"]);
    let text = scene.daemon.cli_ok(&["status"]).unwrap();
    let held = "held at priority 2; preferred 1 is up: `xdp-lb failback web`";
    assert!(text.contains(held), "{text}");

    // Neither a backend of the pool nor another daemon changes that.
    stop(&mut scene, "b2");
    assert_served_by(&scene, &["b3"]);
    resume(&mut scene, "b2");
    scene.daemon.kill9().unwrap();
    scene.daemon.restart().unwrap();
    assert_eq!(standing(&scene), (Some(2), true, Some(1)));
    assert_served_by(&scene, &["b2", "b3"]);

    // The operator says so: new flows go back, old ones stay.
    let transfers = Transfers::start(&scene, &sources(&scene)[..6], 5).unwrap();
    let said = scene.daemon.cli_ok(&["failback", "web"]).unwrap();
    assert!(said.contains("new flows go to priority 1, not 2"), "{said}");
    assert_served_by(&scene, &["b1"]);
    assert_eq!(standing(&scene), (Some(1), false, None));
    transfers.check_running().unwrap();
    let homes: BTreeSet<String> = transfers.reports().filter_map(|r| r.backend).collect();
    assert!(!homes.contains("b1"), "{homes:?}");
    assert_eq!(transfers.finish_whole().unwrap(), 6);
}

#[test]
fn what_is_held_is_left_when_nobody_there_is_up_and_with_other_priorities() {
    let mut scene = scene("held", "manual");
    // A drain is as good a reason as a failure; `resume` does not bring the flows back, and says so.
    let said = scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    assert!(said.contains("new flows go to priority 2, not 1"), "{said}");
    assert_served_by(&scene, &["b2", "b3"]);
    let said = scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    assert!(said.contains("`xdp-lb failback web`"), "{said}");
    scene.daemon.wait_state("b1", "up").unwrap();
    assert_served_by(&scene, &["b2", "b3"]);

    // Nobody of the pool is left: the best that is up, and not back to the pool.
    stop(&mut scene, "b2");
    stop(&mut scene, "b3");
    assert_served_by(&scene, &["b1"]);
    resume(&mut scene, "b2");
    resume(&mut scene, "b3");
    assert_served_by(&scene, &["b1"]);
    assert_eq!(standing(&scene), (Some(1), false, None));

    // Held again, and a reload that changes nothing of the priorities, but takes one away that nobody uses.
    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    assert_eq!(standing(&scene), (Some(2), true, Some(1)));
    let reload = |scene: &Scene, priorities: &[(&str, u32)]| {
        let file = config(&scene.testbed, "manual", priorities);
        scene.daemon.write_config(&file).unwrap();
        scene.daemon.cli_ok(&["reload"]).unwrap()
    };
    reload(&scene, &PRIORITIES[..3]);
    assert_served_by(&scene, &["b2", "b3"]);
    // Other priorities begin with the preferred.
    let said = reload(&scene, &[("b1", 1), ("b2", 2), ("b3", 3)]);
    assert!(said.contains("b3: priority 2 -> 3"), "{said}");
    assert_served_by(&scene, &["b1"]);
    assert_eq!(standing(&scene), (Some(1), false, None));
    let status = scene.daemon.status().unwrap();
    assert_eq!(web(&status).failback, "manual");
    assert_eq!(status.backend("b1").map(|b1| b1.priority), Some(1));

    // So do maps made anew.
    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    assert_eq!(standing(&scene), (Some(2), true, Some(1)));
    scene.daemon.terminate().unwrap();
    std::fs::remove_dir_all(scene.testbed.pin_path()).unwrap();
    scene.daemon.restart().unwrap();
    assert_eq!(standing(&scene), (Some(1), false, None));
    assert_served_by(&scene, &["b1"]);
}
