//! Ports and protocols that share one pick: a client lands on the same backend on each of them, as FTP's two connections or
//! SIP and its media must; and `affinity_timeout`, with which it stays there across changes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_tests::testbed::scene::{HTTP_PROBE, PATIENCE, SEED, Scene};
use lb_tests::testbed::{StatusExt as _, Testbed, UdpClient, UdpEcho};
use serde_json::Value;

const PORTS: [u16; 2] = [80, 81];
type Homes = BTreeMap<IpAddr, String>;

fn scene(label: &str, sources: usize, keys: &str) -> (Scene, Vec<UdpEcho>) {
    let testbed = Testbed::builder()
        .clients(1, sources)
        .backends(3)
        .label(label)
        .build()
        .unwrap();
    let echoes = testbed
        .backends()
        .map(|host| UdpEcho::start_on(host, &PORTS).unwrap())
        .collect();
    let config = format!(
        "{}\n[[service]]\nname = \"sip\"\nvip = \"{}\"\nprotocol = \"tcp+udp\"\nports = [\"80-81\"]\n\
         affinity = \"client\"\n{keys}\n{HTTP_PROBE}{}",
        testbed.node_config_with(SEED),
        testbed.vip(),
        testbed.backend_config()
    );
    let scene = Scene::start(testbed, &PORTS, &config).unwrap();
    (scene, echoes)
}

/// Where each client lands, on every port and with both protocols.
fn homes(scene: &Scene) -> Homes {
    let client = scene.testbed.host("c1");
    let home = |source: &IpAddr| {
        let home = scene.who(*source, 80).unwrap();
        assert_eq!(scene.who(*source, 81).unwrap(), home, "{source}, TCP 81");
        for port in PORTS {
            let socket = UdpClient::on(client, *source, 0, port).unwrap();
            let answered = socket.ask(b"hello", PATIENCE).unwrap();
            assert_eq!(answered, home, "{source}, UDP {port}");
        }
        home
    };
    let sources = client.sources().iter();
    sources.map(|source| (*source, home(source))).collect()
}

fn with_home(homes: &Homes, backend: &str) -> Vec<IpAddr> {
    let found = homes.iter().filter(|(_, home)| *home == backend);
    found.map(|(source, _)| *source).collect()
}

#[test]
fn a_client_is_on_one_backend_with_all_ports_and_both_protocols() {
    let (mut scene, _echoes) = scene("sip", 30, "flow_idle = \"6s\"\n");
    let status = scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    assert_eq!(status.services[0].protocol, "tcp+udp");
    assert_eq!(status.services[0].ports, ["80-81"]);
    let before = homes(&scene);
    let on_b1 = with_home(&before, "b1");
    assert!(!on_b1.is_empty() && on_b1.len() < 20, "{before:?}");

    // The command line says the same for both.
    for protocol in ["tcp", "udp"] {
        let client = format!("{}:9", on_b1[0]);
        let to = format!("{}:81", scene.testbed.vip());
        let answer: Value = scene
            .daemon
            .json(&["where", &client, &to, "--protocol", protocol])
            .unwrap();
        assert_eq!(answer["backend"], "b1", "{answer}");
    }

    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    let drained = homes(&scene);
    assert!(with_home(&drained, "b1").is_empty(), "{drained:?}");
    for (source, home) in &drained {
        assert!(
            before[source] == *home || before[source] == "b1",
            "{source}"
        );
    }
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    assert_eq!(
        homes(&scene),
        before,
        "without a timeout it is all as before"
    );
}

/// Records of clients as `flows` shows them.
fn known_clients(scene: &Scene) -> BTreeMap<String, String> {
    let report: Value = scene.daemon.json(&["flows"]).unwrap();
    let rows = report["flows"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.filter(|row| row["phase"] == "client")
        .map(|row| (text(&row["client"]), text(&row["backend"])))
        .collect()
}

#[test]
fn clients_stay_where_they_are_across_changes_until_they_have_been_silent() {
    let (mut scene, _echoes) = scene(
        "timeout",
        24,
        "flow_idle = \"2s\"\naffinity_timeout = \"20s\"\n",
    );
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    let before = homes(&scene);
    let on_b1 = with_home(&before, "b1");
    assert!(on_b1.len() >= 2, "{before:?}");

    // A drain overrides it: who comes meanwhile goes elsewhere, and is known to be there.
    scene.daemon.cli_ok(&["drain", "b1"]).unwrap();
    let (coming, silent) = on_b1.split_at(on_b1.len() / 2);
    let elsewhere: Homes = coming
        .iter()
        .map(|source| (*source, scene.who(*source, 80).unwrap()))
        .collect();
    assert!(elsewhere.values().all(|home| home != "b1"), "{elsewhere:?}");
    let status = scene.daemon.status().unwrap();
    assert_eq!(
        status.backend("b1").unwrap().flows,
        0,
        "clients are no flows"
    );

    // Taken back: they stay there, with every port and protocol. Who has not come meanwhile is on b1 as before.
    scene.daemon.cli_ok(&["resume", "b1"]).unwrap();
    let after = homes(&scene);
    for (source, home) in &after {
        let expected = elsewhere.get(source).unwrap_or(&before[source]);
        assert_eq!(home, expected, "{source}");
    }
    assert!(silent.iter().all(|source| after[source] == "b1"));
    let known = known_clients(&scene);
    for (source, home) in &elsewhere {
        assert_eq!(known.get(&source.to_string()), Some(home), "{known:?}");
    }

    // Silent for long enough, they are where a new client would be.
    scene
        .daemon
        .wait_for("that all slots settle", |status| {
            status.services[0].slots_in_transition == 0
        })
        .unwrap();
    assert!(known_clients(&scene).is_empty());
    assert_eq!(homes(&scene), before);
}
