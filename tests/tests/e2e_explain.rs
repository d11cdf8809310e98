//! What `where`, `maps` and `flows` say is what is so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::abi::map;
use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{DEADLINE, Download, LARGE_BYTES, StatusExt, Testbed};
use serde_json::Value;

/// A scene with a service by client on port 80 and one by connection on port 81.
fn scene(label: &str, sources: usize) -> Scene {
    let testbed = Testbed::builder()
        .clients(1, sources)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let services: String = [("web", 80, "client"), ("any", 81, "none")]
        .map(|(name, port, affinity)| {
            tcp_service(&testbed, name, port, affinity, HTTP_PROBE) + &testbed.backend_config()
        })
        .concat();
    let config = testbed.node_config_with(SEED) + &services;
    let mut scene = Scene::start(testbed, &[80, 81], &config).unwrap();
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status
                .services
                .iter()
                .all(|service| service.slots_in_transition == 0)
        })
        .unwrap();
    scene
}

fn ask(scene: &Scene, client: &str, port: u16) -> Value {
    let service = format!("{}:{port}", scene.testbed.vip());
    scene.daemon.json(&["where", client, &service]).unwrap()
}

fn steps(answer: &Value) -> Vec<&str> {
    let steps = answer["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect()
}

#[test]
fn where_says_where_connections_really_go() {
    const CLIENTS: usize = 200;
    let mut scene = scene("where", CLIENTS);
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let used: BTreeSet<&String> = homes.values().collect();
    assert_eq!(used.len(), 3, "{homes:?}");
    for (number, (source, home)) in homes.iter().enumerate() {
        // Half of them while nobody is there to be asked but the maps.
        if number == CLIENTS / 2 {
            scene.daemon.kill9().unwrap();
        }
        let answer = ask(&scene, &source.to_string(), 80);
        assert_eq!(answer["backend"], *home, "{source}: {answer}");
        assert_eq!(answer["verdict"], "forwarded");
        assert_eq!(answer["service"], "web");
        assert_eq!(answer["mac"], scene.testbed.host(home).mac().to_string());
        assert!(answer["slot"].is_u64(), "{answer}");
        let steps = steps(&answer);
        for step in ["service", "affinity", "hash", "slot", "backend"] {
            assert!(steps.contains(&step), "no {step} in {answer}");
        }
    }

    // By connection, the port takes part.
    for source in &sources[..20] {
        let real = scene.get(*source, 81).unwrap();
        let answer = ask(&scene, &real.local.to_string(), 81);
        assert_eq!(answer["backend"], real.headers["x-backend"], "{answer}");
        assert_eq!(answer["service"], "any");
    }
    let vip = scene.testbed.vip();
    let wrong = scene
        .daemon
        .cli(&["where", &sources[0].to_string(), &format!("{vip}:81")])
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("port"), "{said}");

    // What is not served, and what is not ours.
    let answer = ask(&scene, &sources[0].to_string(), 82);
    assert_eq!(answer["verdict"], "unserved", "{answer}");
    assert_eq!(answer["backend"], Value::Null);
    let other = scene.testbed.director().address();
    let client = sources[0].to_string();
    let answer: Value = scene
        .daemon
        .json(&["where", &client, &format!("{other}:80")])
        .unwrap();
    assert_eq!(answer["verdict"], "not_ours", "{answer}");
    scene.daemon.restart().unwrap();
}

#[test]
fn where_follows_a_drain_for_new_and_for_old_flows() {
    let scene = scene("wheredrain", 40);
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let homes = scene.homes(&sources).unwrap();
    let of_b1: Vec<IpAddr> = sources
        .iter()
        .copied()
        .filter(|source| homes[source] == "b1")
        .collect();
    let client = scene.testbed.host("c1");
    let rate = LARGE_BYTES / 8;
    let transfer = Download::start(client, of_b1[0], scene.target(), rate).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while transfer.progress().bytes == 0 {
        assert!(Instant::now() < deadline, "the download has not begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    scene
        .daemon
        .cli_ok(&["drain", "b1", "--service", "web"])
        .unwrap();
    // The transfer is recorded as soon as it has sent a packet.
    let of_client = of_b1[0].to_string();
    let flow = loop {
        let flows: Value = scene
            .daemon
            .json(&["flows", "--backend", "b1", "--client", &of_client])
            .unwrap();
        if let Some(flow) = flows["flows"].as_array().unwrap().first() {
            break flow.clone();
        }
        assert!(Instant::now() < deadline, "the transfer is not recorded");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(flow["service"], "web", "{flow}");
    assert_eq!(flow["backend"], "b1", "{flow}");
    let end = flow["client"].as_str().unwrap();
    assert!(end.starts_with(&of_client), "{flow}");
    let endpoint = match flow["port"].as_u64() {
        Some(port) => format!("{end}:{port}"),
        None => end.to_owned(),
    };
    let answer = ask(&scene, &endpoint, 80);
    assert_eq!(answer["established"]["backend"], "b1", "{answer}");
    assert_ne!(answer["backend"], "b1", "{answer}");
    for source in of_b1.iter().take(10) {
        let answer = ask(&scene, &source.to_string(), 80);
        assert_eq!(
            answer["backend"],
            scene.who(*source, 80).unwrap(),
            "{answer}"
        );
    }
    let report = transfer.finish().unwrap();
    assert!(report.whole, "{report:?}");
}

#[test]
fn maps_shows_every_map_with_and_without_a_daemon() {
    let mut scene = scene("maps", 5);
    scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let status = scene.daemon.status().unwrap();
    for running in [true, false] {
        if !running {
            scene.daemon.kill9().unwrap();
        }
        let list: Value = scene.daemon.json(&["maps"]).unwrap();
        let maps = list["maps"].as_array().unwrap();
        let names: BTreeSet<&str> = maps
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, BTreeSet::from(map::ALL));
        let mut memory = 0;
        for one in maps {
            for number in ["key_size", "value_size", "max_entries", "maximum", "memory"] {
                assert!(
                    one[number].as_u64().is_some_and(|n| n > 0),
                    "{number}: {one}"
                );
            }
            assert!(one["type"].is_string(), "{one}");
            let used = one["used"].as_u64().unwrap();
            assert!(used <= one["maximum"].as_u64().unwrap(), "{one}");
            memory += one["memory"].as_u64().unwrap();
        }
        assert_eq!(list["memory"].as_u64(), Some(memory));

        for name in map::ALL {
            let content: Value = scene.daemon.json(&["maps", name]).unwrap();
            assert_eq!(content["map"], name);
            assert!(content["entries"].is_array(), "{content}");
            scene.daemon.cli_ok(&["maps", name]).unwrap();
        }
        let backends: Value = scene.daemon.json(&["maps", map::BACKENDS]).unwrap();
        let backends = serde_json::to_string(&backends).unwrap();
        for backend in status.backends() {
            assert!(backends.contains(&backend.name), "{backends}");
            assert!(
                backends.contains(backend.mac.as_ref().unwrap()),
                "{backends}"
            );
        }
    }
    let wrong = scene.daemon.cli(&["maps", "SLOTZ"]).unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("SLOTS"), "{said}");
}
