//! A director that is one of its own backends.

use std::collections::BTreeSet;

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{LoadGenerator, Nginx, StatusExt, Testbed};
use lb_userspace::api::Status;

const ALL: [&str; 3] = ["b1", "b2", "director"];

/// The director, which has the VIP and a web server, and two other backends.
fn scene(label: &str, accept_local: bool) -> (Scene, Nginx) {
    let testbed = Testbed::builder()
        .clients(1, 60)
        .backends(2)
        .label(label)
        .build()
        .unwrap();
    let director = testbed.director();
    director.add_vip().unwrap();
    let setting = if accept_local { "1" } else { "0" };
    director
        .namespace()
        .sysctl(&[("ipv4.conf.eth0.accept_local", setting)])
        .unwrap();
    let own = Nginx::start(director).unwrap();
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        testbed.backend_config(),
        testbed.one_backend_config("director", ""),
    ]
    .concat();
    (Scene::start(testbed, &[80], &config).unwrap(), own)
}

fn homes(scene: &Scene, expected: &[&str]) {
    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let used: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    assert_eq!(used, expected.iter().copied().collect(), "{homes:?}");
}

/// What went up the director's own stack has a verdict of its own, and is counted once.
fn counted_exactly(scene: &mut Scene) -> Status {
    let packets = |status: &Status, name| status.backend(name).map_or(0, |b| b.packets);
    let exact = |status: &Status| {
        status.verdicts["local"] == packets(status, "director")
            && status.verdicts["forwarded"] == packets(status, "b1") + packets(status, "b2")
    };
    scene.daemon.wait_for("exact counters", exact).unwrap()
}

#[test]
fn it_gets_its_share_is_drained_fails_and_comes_back() {
    let (mut scene, mut own) = scene("self", true);
    homes(&scene, &ALL);
    let status = counted_exactly(&mut scene);
    assert!(status.verdicts["local"] > 0);
    let backend = status.backend("director").unwrap();
    assert!(
        backend.slots * 4 > status.services[0].slots,
        "a third: {backend:?}"
    );

    let client = scene.testbed.host("c1").sources().iter().find(|source| {
        let home = scene.who(**source, 80).unwrap();
        home == "director"
    });
    let (client, target) = (client.unwrap().to_string(), scene.target().to_string());
    let answer: serde_json::Value = scene.daemon.json(&["where", &client, &target]).unwrap();
    assert_eq!(answer["verdict"], "local", "{answer}");
    assert_eq!(answer["backend"], "director");

    let load = LoadGenerator::start(scene.testbed.host("c1"), scene.load()).unwrap();
    scene.daemon.cli_ok(&["drain", "director"]).unwrap();
    scene.daemon.wait_state("director", "drained").unwrap();
    homes(&scene, &["b1", "b2"]);
    scene.daemon.cli_ok(&["resume", "director"]).unwrap();
    scene.daemon.wait_state("director", "up").unwrap();
    let records = load.stop().unwrap();
    let failed: Vec<_> = records.iter().filter(|r| r.error.is_some()).collect();
    assert!(!records.is_empty() && failed.is_empty(), "{failed:?}");

    own.stop().unwrap();
    let status = scene.daemon.wait_state("director", "down").unwrap();
    let reason = &status.backend("director").unwrap().reason;
    assert!(reason.contains("refused"), "{reason}");
    homes(&scene, &["b1", "b2"]);
    own.resume().unwrap();
    scene.daemon.wait_state("director", "up").unwrap();
    homes(&scene, &ALL);

    // A daemon that takes it over finds it as it was.
    scene.daemon.kill9().unwrap();
    homes(&scene, &ALL);
    scene.daemon.restart().unwrap();
    homes(&scene, &ALL);
    counted_exactly(&mut scene);
}

/// The VIP on the director itself must not make every probe through it succeed there.
#[test]
fn the_other_backends_are_still_probed_through_the_vip() {
    let (mut scene, _own) = scene("selfprobe", true);
    scene.testbed.host("b1").remove_vip().unwrap();
    let status = scene.daemon.wait_state("b1", "down").unwrap();
    let reason = &status.backend("b1").unwrap().reason;
    assert!(reason.contains("VIP"), "{reason}");
    homes(&scene, &["b2", "director"]);
    scene.testbed.host("b1").add_vip().unwrap();
    scene.daemon.wait_state("b1", "up").unwrap();

    // Its own VIP may go as well.
    scene.testbed.director().remove_vip().unwrap();
    scene.daemon.wait_state("director", "down").unwrap();
    homes(&scene, &["b1", "b2"]);
    scene.testbed.director().add_vip().unwrap();
    scene.daemon.wait_state("director", "up").unwrap();
    homes(&scene, &ALL);
}

/// Without `accept_local` the kernel drops what others answer in the VIP's name: they are probed at their own addresses, and
/// the operator is told so.
#[test]
fn without_accept_local_the_others_are_probed_at_their_own_addresses() {
    let (mut scene, _own) = scene("selfplain", false);
    homes(&scene, &ALL);
    let status = scene.daemon.status().unwrap();
    let reason = |name| &status.backend(name).unwrap().reason;
    assert!(reason("b1").contains("accept_local"), "{}", reason("b1"));
    assert!(!reason("director").contains("accept_local"));
    let check = scene.daemon.cli_ok(&["check"]).unwrap();
    assert!(
        check.contains("sysctl -w net.ipv4.conf.eth0.accept_local=1"),
        "{check}"
    );
    scene.server("b1").stop().unwrap();
    scene.daemon.wait_state("b1", "down").unwrap();
    homes(&scene, &["b2", "director"]);
    scene.server("b1").resume().unwrap();
    scene.daemon.wait_state("b1", "up").unwrap();

    // What `check` says to do is enough.
    let setting = [("ipv4.conf.eth0.accept_local", "1")];
    scene
        .testbed
        .director()
        .namespace()
        .sysctl(&setting)
        .unwrap();
    scene.daemon.cli_ok(&["reload"]).unwrap();
    scene.testbed.host("b2").remove_vip().unwrap();
    scene.daemon.wait_state("b2", "down").unwrap();
    homes(&scene, &["b1", "director"]);
}
