//! A director with two interfaces: in on one, out on the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{LoadGenerator, SECOND_INTERFACE, SecondSegment, StatusExt, Testbed};
use lb_userspace::api::Status;

/// b1 is on the clients' segment, b2 and b3 are reached through the second one.
fn scene(label: &str) -> (Scene, SecondSegment) {
    let testbed = Testbed::builder()
        .clients(1, 60)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let back = testbed.second_segment(&["b2", "b3"]).unwrap();
    let node = testbed.node_config_with(SEED);
    let two = format!("interfaces = [\"eth0\", \"{SECOND_INTERFACE}\"]");
    assert!(node.contains("interfaces = [\"eth0\"]"), "{node}");
    let config = [
        node.replace("interfaces = [\"eth0\"]", &two),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        testbed.one_backend_config("b1", ""),
        back.backend_config("b2"),
        back.backend_config("b3"),
    ]
    .concat();
    (Scene::start(testbed, &[80], &config).unwrap(), back)
}

/// Who answers each of the client's addresses, and that the answers come from nobody else than expected.
fn homes(scene: &Scene, expected: &[&str]) -> BTreeMap<IpAddr, String> {
    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let used: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    let expected: BTreeSet<&str> = expected.iter().copied().collect();
    assert_eq!(used, expected, "{homes:?}");
    homes
}

fn packets(status: &Status, backends: &[&str]) -> u64 {
    let of = |name: &&str| status.backend(name).map_or(0, |backend| backend.packets);
    backends.iter().map(of).sum()
}

/// Every packet for b2 and b3 was redirected, every one for b1 sent back out, and each was counted once. The last packets of
/// a connection may be on their way still.
fn counted_exactly(scene: &mut Scene) -> Status {
    let what = "that the verdicts are what the backends have counted";
    let exact = |status: &Status| {
        status.verdicts["redirected"] == packets(status, &["b2", "b3"])
            && status.verdicts["forwarded"] == packets(status, &["b1"])
    };
    scene.daemon.wait_for(what, exact).unwrap()
}

fn all_up(scene: &mut Scene) {
    scene
        .daemon
        .wait_for("that all are up again", Status::all_up)
        .unwrap();
}

#[test]
fn in_on_one_interface_and_out_on_another() {
    let (mut scene, _back) = scene("arms");
    let before = counted_exactly(&mut scene);
    assert_eq!(before.verdicts["redirected"], 0, "probes are not traffic");
    let at = homes(&scene, &["b1", "b2", "b3"]);
    let through_back = at.values().filter(|home| *home != "b1").count() as u64;
    let status = counted_exactly(&mut scene);
    // A request takes at least a SYN, an ACK, the request and a FIN.
    assert!(status.verdicts["redirected"] >= 4 * through_back);
    assert!(status.verdicts["forwarded"] >= 4 * (60 - through_back));
    let names: Vec<_> = status.node.interfaces.iter().map(|i| &i.name).collect();
    assert_eq!(names, ["eth0", SECOND_INTERFACE]);

    // What `where` says is what happened, and by which interface.
    for (client, home) in at.iter().take(10) {
        let target = scene.target().to_string();
        let answer: serde_json::Value = scene
            .daemon
            .json(&["where", &client.to_string(), &target])
            .unwrap();
        let (out, verdict) = match home.as_str() {
            "b1" => ("eth0", "forwarded"),
            _ => (SECOND_INTERFACE, "redirected"),
        };
        assert_eq!(answer["backend"], *home, "{answer}");
        assert_eq!(answer["verdict"], verdict, "{answer}");
        assert_eq!(answer["arrived"], "eth0", "where the client is");
        assert_eq!(answer["interface"], out);
        let way = format!("in on eth0, out on {out}");
        assert!(answer.to_string().contains(&way), "{answer}");

        // The same from the other side.
        let asked = ["where", &client.to_string(), &target, "--interface"];
        let answer: serde_json::Value = scene
            .daemon
            .json(&[&asked[..], &[SECOND_INTERFACE]].concat())
            .unwrap();
        assert_eq!(answer["backend"], *home, "{answer}");
        let turned = if verdict == "forwarded" {
            "redirected"
        } else {
            "forwarded"
        };
        assert_eq!(answer["verdict"], turned, "{answer}");
    }
    let wrong = scene
        .daemon
        .cli(&["where", "10.78.0.1", "10.77.0.100:80", "--interface", "lo"])
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("eth0, eth1"), "{said}");

    // Another daemon takes it over as it is.
    scene.daemon.kill9().unwrap();
    assert_eq!(homes(&scene, &["b1", "b2", "b3"]), at);
    scene.daemon.restart().unwrap();
    assert_eq!(homes(&scene, &["b1", "b2", "b3"]), at);
    counted_exactly(&mut scene);
}

#[test]
fn drain_and_failure_behind_the_second_interface() {
    let (mut scene, _back) = scene("armsdrain");
    let load = LoadGenerator::start(scene.testbed.host("c1"), scene.load()).unwrap();
    scene.daemon.cli_ok(&["drain", "b2"]).unwrap();
    scene.daemon.wait_state("b2", "drained").unwrap();
    homes(&scene, &["b1", "b3"]);
    scene.daemon.cli_ok(&["resume", "b2"]).unwrap();
    all_up(&mut scene);
    let records = load.stop().unwrap();
    assert!(records.len() > 100, "{} requests", records.len());
    let failed: Vec<_> = records.iter().filter(|r| r.error.is_some()).collect();
    assert!(failed.is_empty(), "a drain breaks nothing: {failed:?}");

    scene.server("b3").stop().unwrap();
    let status = scene.daemon.wait_state("b3", "down").unwrap();
    let reason = &status.backend("b3").unwrap().reason;
    assert!(reason.contains("refused"), "{reason}");
    homes(&scene, &["b1", "b2"]);
    // What of DSR fails in silence is found through the second interface as well.
    scene.testbed.host("b2").remove_vip().unwrap();
    let status = scene.daemon.wait_state("b2", "down").unwrap();
    let reason = &status.backend("b2").unwrap().reason;
    assert!(reason.contains("VIP"), "{reason}");
    homes(&scene, &["b1"]);
    scene.testbed.host("b2").add_vip().unwrap();
    scene.server("b3").resume().unwrap();
    all_up(&mut scene);
    homes(&scene, &["b1", "b2", "b3"]);
    counted_exactly(&mut scene);
}

#[test]
fn the_second_interface_goes_down_and_comes_back() {
    let (mut scene, back) = scene("armslink");
    let both_down = |status: &Status| {
        ["b2", "b3"]
            .iter()
            .all(|name| status.backend(name).is_some_and(|b| b.state == "down"))
    };
    let ip = |scene: &Scene, action: &str| {
        let arguments = ["link", "set", SECOND_INTERFACE, action];
        scene.testbed.director().run("ip", &arguments).unwrap();
    };
    // The cable, then the interface itself, of which the kernel forgets the probes' routes.
    for cable in [true, false] {
        if cable {
            back.link_down("director").unwrap();
        } else {
            ip(&scene, "down");
        }
        scene
            .daemon
            .wait_for("that both are down", both_down)
            .unwrap();
        homes(&scene, &["b1"]);
        if cable {
            back.link_up("director").unwrap();
        } else {
            ip(&scene, "up");
        }
        all_up(&mut scene);
        homes(&scene, &["b1", "b2", "b3"]);
    }
    let status = scene.daemon.status().unwrap();
    // What was on its way into the cut counts as redirected all the same: the program has sent it.
    assert!(status.verdicts["redirected"] >= packets(&status, &["b2", "b3"]));
    counted_exactly(&mut scene);
}
