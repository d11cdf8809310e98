//! What follows from what is known.

use std::{collections::BTreeSet, time::SystemTime};

use lb_common::abi::BackendState;

use super::*;
use crate::{
    config::ConfigFile,
    control::{actual::Op, prepared::Prepared, samples::Bench},
    neighbour::{Interface, Link},
};

const BACKENDS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 2)),
];

/// Two services on the same two backends, of which the first is probed.
fn knowledge() -> Knowledge {
    let text = r#"
        [node]
        interfaces = ["eth0"]
        [[service]]
        name = "web"
        vip = "192.0.2.10"
        protocol = "tcp"
        ports = [80]
        backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
        [service.probe]
        type = "tcp"
        port = 80
        [[service]]
        name = "mail"
        vip = "192.0.2.11"
        protocol = "tcp"
        ports = [25]
        backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
    "#;
    let config = ConfigFile::parse("test.toml", text)
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
        .config;
    let port = PortState {
        number: 0,
        name: "eth0".into(),
        ifindex: 7,
        mac: [2, 0, 0, 0, 0, 1],
        vlan: None,
    };
    Knowledge::new(config, Decisions::default(), vec![port], facts(), false)
}

fn facts() -> HostFacts {
    HostFacts {
        interfaces: vec![Interface {
            link: Link {
                ifindex: 7,
                name: "eth0".into(),
                mac: Some([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                up: true,
                running: true,
                loopback: false,
                xdp: None,
                vlan: None,
            },
            addresses: vec!["198.51.100.250/24".parse().unwrap()],
            driver: None,
            takes_own_source: false,
        }],
    }
}

fn set_mac(knowledge: &mut Knowledge, backend: usize, mac: Option<Mac>) {
    let target = Target {
        address: BACKENDS[backend],
        ifindex: 7,
    };
    let reason = "no ARP answer".to_owned();
    knowledge
        .neighbours
        .insert(target, Neighbour { mac, reason });
}

/// What the daemon does after every event: reconciles, then probes what can be probed.
fn follow(knowledge: &mut Knowledge, bench: &mut Bench) {
    let desired = knowledge.desired(bench.actual());
    bench.bring(&desired);
    let probes = knowledge.probes(bench.actual());
    knowledge.keep_health(bench.actual(), &probes);
}

fn probe_succeeds(knowledge: &mut Knowledge, number: u16) {
    let health = knowledge.health.get_mut(&number).unwrap();
    health.observe(&Ok(std::time::Duration::from_millis(1)), SystemTime::now());
}

#[test]
fn whoever_was_gone_is_probed_before_it_serves_again() {
    let mut bench = Bench::new();
    let mut knowledge = knowledge();
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Down);
    assert!(
        knowledge.probes(bench.actual()).is_empty(),
        "nowhere to aim"
    );

    set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Down, "not yet");
    let number = bench.number("web", "one");
    probe_succeeds(&mut knowledge, number);
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Up);

    set_mac(&mut knowledge, 0, None);
    follow(&mut knowledge, &mut bench);
    let lost = &bench.actual().backends()[&number];
    assert_eq!(
        (lost.state, lost.reason.as_str()),
        (BackendState::Down, "no ARP answer")
    );
    set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
    follow(&mut knowledge, &mut bench);
    let back = &bench.actual().backends()[&number];
    assert_eq!(
        (back.state, back.reason.as_str()),
        (BackendState::Down, "not probed yet"),
        "what it said before it was gone says nothing"
    );
    probe_succeeds(&mut knowledge, number);
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Up);

    // Removed, and put back while it leaves.
    let listed = knowledge.config.services[0].backends.clone();
    knowledge.config.services[0].backends.remove(0);
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Leaving);
    knowledge.config.services[0].backends = listed;
    follow(&mut knowledge, &mut bench);
    assert_eq!(bench.state("web", "one"), BackendState::Down);
    assert_eq!(bench.number("web", "one"), number);
}

#[test]
fn what_an_earlier_daemon_knew_counts_until_the_probes_say_otherwise() {
    let mut bench = Bench::new();
    let mut before = knowledge();
    set_mac(&mut before, 0, Some([2, 0, 0, 0, 1, 1]));
    follow(&mut before, &mut bench);
    let number = bench.number("web", "one");
    probe_succeeds(&mut before, number);
    follow(&mut before, &mut bench);

    let mut after = knowledge();
    after.adopt_neighbours(bench.actual());
    let probes = after.probes(bench.actual());
    after.keep_health(bench.actual(), &probes);
    let desired = after.desired(bench.actual());
    let state_of = |number: &u16| bench.actual().backends()[number].state;
    for op in bench.plan(&desired).unwrap() {
        let Op::Backend { number, backend } = op else {
            panic!("{op:?}");
        };
        assert_eq!(backend.state, state_of(&number), "only reasons change");
    }
    assert_eq!(state_of(&number), BackendState::Up);
}

/// From the probe's verdict, or the lost MAC address, by the short way: what should be is then what is.
#[test]
fn the_short_way_of_a_failure_leaves_nothing_to_do() {
    use crate::{
        control::{
            failure::fail,
            reconcile::{Scope, reconcile},
        },
        health::ProbeFailure,
    };
    let mut bench = Bench::new();
    let mut knowledge = knowledge();
    for backend in [0, 1] {
        set_mac(
            &mut knowledge,
            backend,
            Some([2, 0, 0, 0, 1, backend as u8]),
        );
    }
    follow(&mut knowledge, &mut bench);
    for service in ["web", "mail"] {
        for backend in ["one", "two"] {
            let number = bench.number(service, backend);
            probe_succeeds(&mut knowledge, number);
        }
    }
    follow(&mut knowledge, &mut bench);

    let by_probe = bench.number("web", "one");
    assert_eq!(
        knowledge.failure(by_probe, bench.actual()),
        None,
        "it is up"
    );
    let refused = Err(ProbeFailure::Refused {
        target: "192.0.2.10:80".parse().unwrap(),
    });
    for _ in 0..3 {
        let health = knowledge.health.get_mut(&by_probe).unwrap();
        health.observe(&refused, SystemTime::now());
    }
    let by_mac = bench.number("mail", "two");
    set_mac(&mut knowledge, 1, None);
    for (number, without_mac) in [(by_probe, false), (by_mac, true)] {
        let failed = knowledge.failure(number, bench.actual()).unwrap();
        assert_eq!(failed.without_mac, without_mac);
        let service = bench.actual().backends()[&number].service;
        let unix_ms = 1_700_000_000_000 + bench.now;
        let ops = fail(
            bench.actual(),
            service,
            &[failed],
            unix_ms,
            &mut Prepared::default(),
        )
        .unwrap();
        bench.execute(&ops);
        bench.check();
        assert_eq!(
            knowledge.failure(number, bench.actual()).map(|f| f.number),
            Some(number)
        );
    }
    let mail = knowledge.desired_of(&BTreeSet::from(["mail".to_owned()]), bench.actual());
    let rest = reconcile(&mail, Scope::Only, bench.actual(), 0, bench.now);
    assert_eq!(rest.unwrap(), []);
    // `two` has lost its address in `web` as well: the last one, which is not for the short way.
    let number = bench.number("web", "two");
    let failed = knowledge.failure(number, bench.actual()).unwrap();
    let service = bench.actual().backends()[&number].service;
    let ops = fail(
        bench.actual(),
        service,
        &[failed],
        0,
        &mut Prepared::default(),
    );
    assert_eq!(ops, None);
}

#[test]
fn only_what_is_wanted_is_looked_at() {
    let bench = Bench::new();
    let desired = knowledge().desired_of(&BTreeSet::from(["mail".to_owned()]), bench.actual());
    assert_eq!(desired.len(), 1);
    assert_eq!(desired[0].name, "mail");
}

#[test]
fn what_is_held_goes_with_its_service() {
    let (mut knowledge, mut bench) = (knowledge(), Bench::new());
    for service in &mut knowledge.config.services {
        service.probe = None;
        service.failback = crate::config::Failback::Manual;
        service.backends[1].priority = 2;
    }
    // The preferred one has no MAC address.
    set_mac(&mut knowledge, 1, Some([2, 0, 0, 0, 1, 2]));
    follow(&mut knowledge, &mut bench);
    let held = |knowledge: &Knowledge, names: &[&str], all| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let desired = knowledge.desired_of(&names, bench.actual());
        let held = knowledge.keep_held(&desired, all);
        held.into_iter()
            .map(|(service, held)| (service, held.priority))
            .collect::<Vec<_>>()
    };
    let (web, mail) = ([("web".to_owned(), 2)], [("mail".to_owned(), 2)]);
    assert_eq!(held(&knowledge, &["web"], false), web);
    let both = [mail.clone(), web.clone()].concat();
    assert_eq!(held(&knowledge, &["web", "mail"], true), both);
    knowledge.decisions.held = {
        let desired = knowledge.desired(bench.actual());
        knowledge.keep_held(&desired, true)
    };
    // An event about one leaves the other alone; a service that is gone has nothing to hold.
    assert_eq!(held(&knowledge, &["web"], false), both);
    assert_eq!(held(&knowledge, &["web"], true), web);
    set_mac(&mut knowledge, 0, Some([2, 0, 0, 0, 1, 1]));
    assert_eq!(held(&knowledge, &["web", "mail"], true), both, "still");
    let standing = knowledge.standing(&knowledge.config.services[0], bench.actual());
    assert_eq!((standing.held, standing.better), (true, Some(1)));
    knowledge.config.services[0].failback = crate::config::Failback::Auto;
    assert_eq!(held(&knowledge, &["web", "mail"], true), mail);
}

/// A second interface, which the second backend is behind.
fn two_armed(knowledge: &mut Knowledge) {
    knowledge.ports.push(PortState {
        number: 1,
        name: "eth1".into(),
        ifindex: 8,
        mac: [2, 0, 0, 0, 0, 2],
        vlan: None,
    });
    let mut eth1 = knowledge.facts.interfaces[0].clone();
    eth1.link.ifindex = 8;
    eth1.link.name = "eth1".into();
    eth1.addresses = vec!["203.0.113.250/24".parse().unwrap()];
    knowledge.facts.interfaces.push(eth1);
    for service in &mut knowledge.config.services {
        service.backends[1].address = "203.0.113.2".parse().unwrap();
    }
}

fn ways(knowledge: &Knowledge) -> Vec<String> {
    let web = &knowledge.config.services[0];
    let probe = web.probe.as_ref().unwrap();
    let way = |backend: &crate::config::Backend| match knowledge.probe_way(
        web.vip,
        probe,
        backend.address,
    ) {
        ProbeWay::Address => "address".to_owned(),
        ProbeWay::Own => "own".to_owned(),
        ProbeWay::Aimed { bound: None } => "aimed".to_owned(),
        ProbeWay::Aimed { bound: Some(port) } => format!("aimed through {}", port.name),
    };
    web.backends.iter().map(way).collect()
}

#[test]
fn probes_leave_through_the_interface_of_their_backend() {
    let mut knowledge = knowledge();
    assert_eq!(ways(&knowledge), ["aimed", "aimed"]);
    two_armed(&mut knowledge);
    assert_eq!(
        ways(&knowledge),
        ["aimed through eth0", "aimed through eth1"],
        "one route to the VIP can't lead both ways"
    );
}

#[test]
fn a_backend_that_is_this_host_needs_no_neighbour() {
    let bench = Bench::new();
    let mut knowledge = knowledge();
    for service in &mut knowledge.config.services {
        service.backends[0].address = "198.51.100.250".parse().unwrap();
    }
    let desired = knowledge.desired(bench.actual());
    let own = &desired[0].backends[0];
    assert_eq!(
        (own.port, own.mac),
        (
            lb_common::pick::Backend::LOCAL_PORT,
            Some([2, 0, 0, 0, 0, 1])
        )
    );
    assert_eq!(knowledge.targets().len(), 1, "only the other is asked for");
}

#[test]
fn how_the_others_are_probed_where_the_vip_is_on_this_host() {
    let mut knowledge = knowledge();
    knowledge.config.services[0].backends[0].address = "198.51.100.250".parse().unwrap();
    assert_eq!(ways(&knowledge), ["own", "aimed"]);
    let mut lo = knowledge.facts.interfaces[0].clone();
    lo.link.ifindex = 1;
    lo.link.name = "lo".into();
    lo.addresses = vec!["192.0.2.10/32".parse().unwrap()];
    knowledge.facts.interfaces.push(lo);
    assert_eq!(
        ways(&knowledge),
        ["own", "address"],
        "the answer in the VIP's name would be dropped"
    );
    knowledge.facts.interfaces[0].takes_own_source = true;
    assert_eq!(ways(&knowledge), ["own", "aimed through eth0"]);
}

/// While 65,535 backends answer one by one, each answer asks whether all have.
#[test]
fn who_has_been_judged_is_not_looked_at_again() {
    let mut bench = Bench::new();
    let mut knowledge = knowledge();
    follow(&mut knowledge, &mut bench);
    assert!(!knowledge.all_judged(bench.actual()));
    assert_eq!(knowledge.judged, (0, 0));

    // Whose MAC address can't be found is judged; the other one is to be probed, in one of its services.
    set_mac(&mut knowledge, 0, None);
    set_mac(&mut knowledge, 1, Some([2, 0, 0, 0, 1, 2]));
    follow(&mut knowledge, &mut bench);
    assert!(!knowledge.all_judged(bench.actual()));
    assert_eq!(knowledge.judged, (0, 1), "the second of the first service");

    for service in ["web", "mail"] {
        assert!(!knowledge.all_judged(bench.actual()), "before {service}");
        let number = bench.number(service, "two");
        probe_succeeds(&mut knowledge, number);
    }
    assert!(knowledge.all_judged(bench.actual()));
    assert_eq!(knowledge.judged, (2, 0));
    assert!(knowledge.all_judged(bench.actual()), "once more");

    let config = knowledge.config().clone();
    knowledge.take(config);
    assert_eq!(knowledge.judged, (0, 0), "another file, other backends");
}
