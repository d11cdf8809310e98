//! Backends behind a VLAN on the interface on which the clients are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use lb_tests::testbed::scene::{HTTP_PROBE, SEED, Scene, tcp_service};
use lb_tests::testbed::{Host, StatusExt, Testbed};
use lb_userspace::api::Status;

/// The address of a host in the VLAN: `10.79.0.0/16`, and it ends as that on the interface itself.
fn in_vlan(host: &Host) -> Ipv4Addr {
    let IpAddr::V4(first) = host.address() else {
        panic!("{} has no IPv4 address", host.name());
    };
    let [a, _, c, d] = first.octets();
    Ipv4Addr::new(a, 79, c, d)
}

/// A link of VLAN 7 on the host's interface, with a MAC address of its own: to that, the host takes no frame without the tag.
fn join_backend_to_vlan(host: &Host) {
    let [a, b, c, d] = in_vlan(host).octets();
    let mac = format!("02:07:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    join_vlan(
        host,
        &format!("link add link eth0 name eth0.7 address {mac} type vlan id 7"),
    );
}

/// What adding the link says, its address in the VLAN, and it is up: as an administrator does it.
fn join_vlan(host: &Host, add: &str) {
    let address = format!("address add {}/16 dev eth0.7", in_vlan(host));
    for words in [add, &address, "link set eth0.7 up"] {
        let words: Vec<&str> = words.split(' ').collect();
        let done = host.run("ip", &words).unwrap();
        assert!(done.status.success(), "ip {words:?}: {done:?}");
    }
}

/// b1 is beside the clients, b2 and b3 are reached with a tag. The clients' frames have none: it is pushed on the way.
#[test]
#[ignore = "needs a kernel that makes VLAN links; `cargo xtask test` runs it where there are any"]
fn backends_behind_a_vlan_are_probed_and_served() {
    let testbed = Testbed::builder()
        .clients(1, 60)
        .backends(3)
        .label("vlan")
        .build()
        .unwrap();
    let director = testbed.host("director");
    join_vlan(director, "link add link eth0 name eth0.7 type vlan id 7");
    for name in ["b2", "b3"] {
        join_backend_to_vlan(testbed.host(name));
    }
    let tagged = ["b2", "b3"].map(|name| {
        let address = in_vlan(testbed.host(name));
        format!("\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n")
    });
    let config = [
        testbed.node_config_with(SEED),
        tcp_service(&testbed, "web", 80, "client", HTTP_PROBE),
        testbed.one_backend_config("b1", ""),
        tagged.concat(),
    ]
    .concat();
    let mut scene = Scene::start(testbed, &[80], &config).unwrap();
    scene
        .daemon
        .wait_for("that all are up", Status::all_up)
        .unwrap();
    let homes = scene.homes(scene.testbed.host("c1").sources()).unwrap();
    let used: BTreeSet<&str> = homes.values().map(String::as_str).collect();
    assert_eq!(used, BTreeSet::from(["b1", "b2", "b3"]), "{homes:?}");

    let target = scene.target().to_string();
    for (client, home) in homes.iter().take(10) {
        let answer: serde_json::Value = scene
            .daemon
            .json(&["where", &client.to_string(), &target])
            .unwrap();
        assert_eq!(answer["backend"], *home, "{answer}");
        let tagged = answer.to_string().contains("out on eth0, VLAN 7");
        assert_eq!(tagged, home != "b1", "{answer}");
    }
    // A backend that loses the VIP is told by the probe, which has to get its tag as well.
    scene.testbed.host("b2").remove_vip().unwrap();
    scene.daemon.wait_state("b2", "down").unwrap();
}
