//! Where the clients' connections go, and which way the answers come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_tests::testbed::scene::{HTTP_PROBE, NO_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{Host, ReplySniffer, StatusExt, Testbed};

/// The share of `count` picks of probability `share` that chance leaves room for: five standard deviations of the
/// binomial distribution either side, which one run in two million exceeds. The seed is fixed: it is so in all or in none.
fn is_near(count: usize, of: usize, share: f64) -> bool {
    let expected = of as f64 * share;
    let deviation = (of as f64 * share * (1.0 - share)).sqrt();
    (count as f64 - expected).abs() <= 5.0 * deviation
}

fn count<'s>(homes: impl Iterator<Item = &'s String>) -> BTreeMap<&'s str, usize> {
    let mut counts = BTreeMap::new();
    for home in homes {
        *counts.entry(home.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn clients_are_spread_in_proportion_to_the_weights() {
    const SOURCES: usize = 800;
    let testbed = Testbed::builder()
        .clients(1, SOURCES)
        .backends(3)
        .label("spread")
        .build()
        .unwrap();
    let weights = [("b1", 10), ("b2", 30), ("b3", 60)];
    let backends = weights
        .map(|(name, weight)| testbed.one_backend_config(name, &format!("weight = {weight}\n")))
        .concat();
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        backends,
    ]
    .concat();
    let scene = Scene::start(testbed, &[80], &config).unwrap();

    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let counts = count(homes.values());
    let status = scene.daemon.status().unwrap();
    let slots: u64 = status.backends().map(|backend| backend.slots).sum();
    assert_eq!(
        slots, status.services[0].slots,
        "every slot names a backend"
    );
    for (name, weight) in weights {
        let share = f64::from(weight) / 100.0;
        let found = counts.get(name).copied().unwrap_or(0);
        assert!(
            is_near(found, SOURCES, share),
            "{name} has {found} of {SOURCES} clients: {counts:?}"
        );
        let backend = status.backend(name).unwrap();
        let of_slots = backend.slots as f64 / slots as f64;
        assert!(
            (of_slots - share).abs() <= 0.01 * share,
            "{name} has {} of {slots} slots",
            backend.slots
        );
        // A request takes at least a SYN, an ACK, the request and a FIN.
        assert!(backend.packets >= 4 * found as u64, "{backend:?}");
    }
}

#[test]
fn affinity_says_what_stays_together() {
    // Sixteen networks of 250 addresses.
    let testbed = Testbed::builder()
        .clients(1, 16 * 250)
        .backends(3)
        .label("affinity")
        .build()
        .unwrap();
    let services: String = [(80, "none"), (81, "client"), (82, "network")]
        .map(|(port, affinity)| {
            tcp_service(&testbed, affinity, port, affinity, HTTP_PROBE) + &testbed.backend_config()
        })
        .concat();
    let config = testbed.node_config_with(SEED) + &services;
    let scene = Scene::start(testbed, &[80, 81, 82], &config).unwrap();
    let sources: Vec<IpAddr> = scene.testbed.host("c1").sources().to_vec();
    let ask = |source: IpAddr, port: u16, times: usize| -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            *answers.entry(scene.who(source, port).unwrap()).or_default() += 1;
        }
        answers
    };

    // `none`: the connections of one client are spread.
    let answers = ask(sources[0], 80, 150);
    for backend in ["b1", "b2", "b3"] {
        let found = answers.get(backend).copied().unwrap_or(0);
        assert!(is_near(found, 150, 1.0 / 3.0), "{answers:?}");
    }

    // `client`: a client stays, and neighbours in one network need not be together.
    let mut used = BTreeSet::new();
    for source in &sources[..20] {
        let answers = ask(*source, 81, 4);
        assert_eq!(answers.len(), 1, "{source} has moved: {answers:?}");
        used.extend(answers.into_keys());
    }
    assert_eq!(used.len(), 3, "twenty clients use all backends: {used:?}");

    // `network`: all of a /24 stay together, and the networks are spread.
    let mut used = BTreeSet::new();
    for network in sources.chunks(250) {
        let mut answers = BTreeSet::new();
        for source in [network[0], network[100], network[249]] {
            answers.extend(ask(source, 82, 2).into_keys());
        }
        assert_eq!(
            answers.len(),
            1,
            "a /24 from {} is split: {answers:?}",
            network[0]
        );
        used.extend(answers);
    }
    assert_eq!(used.len(), 3, "sixteen networks use all backends: {used:?}");
}

#[test]
fn the_backend_answers_the_client_directly() {
    let testbed = Testbed::builder()
        .clients(2, 20)
        .backends(3)
        .label("dsr")
        .build()
        .unwrap();
    let scene = Scene::of_one_service(testbed).unwrap();
    let testbed = &scene.testbed;
    let at_director = ReplySniffer::at_director(testbed).unwrap();
    let at_clients: Vec<ReplySniffer> = testbed
        .clients()
        .map(|client| ReplySniffer::at_client(client).unwrap())
        .collect();

    let mut expected = BTreeSet::new();
    for client in testbed.clients() {
        for source in client.sources() {
            let answer = scene.get(*source, 80).unwrap();
            assert_eq!(
                answer.headers["x-client"],
                source.to_string(),
                "the backend sees the client's own address"
            );
            assert_eq!(answer.headers["x-server"], testbed.vip().to_string());
            let backend = testbed.host(&answer.headers["x-backend"]);
            expected.insert((backend.mac(), *source));
        }
    }
    // The sniffers count only frames whose IP source is the VIP: what the client sees.
    let mut seen = BTreeSet::new();
    for sniffer in at_clients {
        for (reply, frames) in sniffer.stop().unwrap() {
            assert!(frames > 0);
            seen.insert((reply.sender, reply.destination));
        }
    }
    assert_eq!(
        seen, expected,
        "each reply comes from its backend's own MAC"
    );
    let used: BTreeSet<_> = expected.iter().map(|(mac, _)| *mac).collect();
    let all: BTreeSet<_> = testbed.backends().map(Host::mac).collect();
    assert_eq!(used, all, "forty clients use all backends");
    assert_eq!(
        at_director.stop().unwrap().values().sum::<u64>(),
        0,
        "no reply crosses the director"
    );
}

#[test]
fn status_has_the_documented_shape() {
    let testbed = Testbed::builder()
        .clients(1, 3)
        .backends(2)
        .label("shape")
        .build()
        .unwrap();
    let web = tcp_service(&testbed, "web", 80, "client", HTTP_PROBE) + &testbed.backend_config();
    let other = tcp_service(&testbed, "other", 81, "network", NO_PROBE) + &testbed.backend_config();
    let config = [testbed.node_config_with(SEED), web, other].concat();
    let scene = Scene::start(testbed, &[80], &config).unwrap();
    for source in scene.testbed.host("c1").sources() {
        scene.who(*source, 80).unwrap();
    }
    let status = scene.daemon.status_json().unwrap();
    let node = &status["node"];
    assert_eq!(node["name"], "director");
    assert_eq!(
        node["pid"].as_u64(),
        scene.daemon.pid().map(u64::from),
        "{node}"
    );
    assert_eq!(node["interfaces"][0]["name"], "eth0");
    assert_eq!(node["interfaces"][0]["mode"], "native");
    assert_eq!(
        node["interfaces"][0]["mac"],
        scene.testbed.director().mac().to_string()
    );
    assert_eq!(
        node["pin_path"],
        scene.testbed.pin_path().display().to_string()
    );
    let services = status["services"].as_array().unwrap();
    assert_eq!(services.len(), 2);
    for (service, (name, port, affinity)) in services
        .iter()
        .zip([("web", "80", "client"), ("other", "81", "network")])
    {
        assert_eq!(service["name"], name);
        assert_eq!(service["vip"], scene.testbed.vip().to_string());
        assert_eq!(service["protocol"], "tcp");
        assert_eq!(service["ports"], serde_json::json!([port]));
        assert_eq!(service["affinity"], affinity);
        let backends = service["backends"].as_array().unwrap();
        assert_eq!(backends.len(), 2);
        for (backend, host) in backends.iter().zip(scene.testbed.backends()) {
            assert_eq!(backend["name"], host.name());
            assert_eq!(backend["address"], host.address().to_string());
            assert_eq!(backend["mac"], host.mac().to_string());
            assert_eq!(backend["state"], "up");
            for text in ["reason", "since"] {
                assert!(backend[text].is_string(), "{text} of {backend}");
            }
            for number in ["weight", "priority", "slots", "packets", "bytes", "flows"] {
                assert!(backend[number].is_u64(), "{number} of {backend}");
            }
        }
    }
    let verdicts = status["verdicts"].as_object().unwrap();
    for verdict in lb_common::verdict::Verdict::ALL {
        assert!(verdicts[verdict.name()].is_u64(), "{verdict:?}");
    }
    let packets = |service: usize| -> u64 {
        let backends = status["services"][service]["backends"].as_array().unwrap();
        backends
            .iter()
            .map(|backend| backend["packets"].as_u64().unwrap())
            .sum()
    };
    assert!(packets(0) > 0);
    assert_eq!(packets(1), 0, "nobody has asked for it");
    assert_eq!(
        status["verdicts"]["forwarded"].as_u64(),
        Some(packets(0)),
        "what was forwarded is what reached the backends"
    );

    // One service alone, and a misspelt one.
    let one: serde_json::Value = scene.daemon.json(&["status", "other"]).unwrap();
    assert_eq!(one["services"].as_array().unwrap().len(), 1);
    let wrong = scene.daemon.cli(&["status", "wbe"]).unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(said.contains("\"wbe\"") && said.contains("web"), "{said}");
}
