//! Neighbours, interfaces and the probes' way against a real kernel: two network namespaces, a
//! director and a backend, joined by a veth pair. Needs root, and fails without.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lb_userspace::health::{ProbeFailure, ProbeKind, ProbeSpec, Via, probe};
use lb_userspace::neighbour::groups::{self, Membership as GroupMembership};
use lb_userspace::neighbour::vip_route::{self, ProbeRoute, VipRouteError};
use lb_userspace::neighbour::{
    Mac, Membership, Netlink, NetworkEvent, Resolver, Target, host_facts, interface_towards,
};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc;

/// Nothing here takes long; this only ends a test whose event never comes.
const NEVER: Duration = Duration::from_secs(60);

const DIRECTOR: &str = "10.1.0.2";
const BACKEND: &str = "10.1.0.11";
const ABSENT: &str = "10.1.0.12";
const VIP: &str = "10.1.0.100";
const FIRST_MAC: Mac = [0x02, 0, 0, 0, 0, 0x11];
const SECOND_MAC: Mac = [0x02, 0, 0, 0, 0, 0x22];

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Two hosts with one wire between them. Dropped, they vanish.
struct Network {
    director: String,
    backend: String,
}

impl Network {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces, which needs root: run it with sudo"
        );
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let network = Self {
            director: format!("pr-d-{id}"),
            backend: format!("pr-b-{id}"),
        };
        let (d, b) = (&network.director, &network.backend);
        run(&format!("ip netns add {d}"));
        run(&format!("ip netns add {b}"));
        run(&format!(
            "ip -n {d} link add eth0 type veth peer name eth0 netns {b}"
        ));
        run(&format!(
            "ip -n {b} link set eth0 address 02:00:00:00:00:11"
        ));
        for (host, address) in [(d, DIRECTOR), (b, BACKEND)] {
            run(&format!("ip -n {host} address add {address}/24 dev eth0"));
            run(&format!("ip -n {host} link set lo up"));
            run(&format!("ip -n {host} link set eth0 up"));
        }
        // The kernel's own patience, shortened: it asks every 0.1 s, and doubts a MAC after 1 s.
        for setting in [
            "retrans_time_ms=100",
            "base_reachable_time_ms=1000",
            "delay_first_probe_time=1",
        ] {
            network.sysctl(d, &format!("net.ipv4.neigh.eth0.{setting}"));
        }
        network
    }

    fn ip(&self, host: &str, command: &str) -> String {
        run(&format!("ip -n {host} {command}"))
    }

    fn sysctl(&self, host: &str, setting: &str) {
        run(&format!("ip netns exec {host} sysctl -qw {setting}"));
    }

    /// Runs this in a thread of its own that has entered a host.
    fn on<T: Send>(&self, host: &str, task: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let namespace = File::open(format!("/run/netns/{host}")).unwrap();
                    setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                    task()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn on_director<T: Send>(&self, task: impl AsyncFnOnce() -> T + Send) -> T {
        self.on(&self.director, || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(task())
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in [&self.director, &self.backend] {
            // One that was never made can't be removed; the test has failed then already.
            let _ = Command::new("ip").args(["netns", "del", host]).output();
        }
    }
}

async fn eth0() -> u32 {
    host_facts()
        .await
        .unwrap()
        .interface("eth0")
        .unwrap()
        .link
        .ifindex
}

/// The next event that this function gives something for.
async fn next<T>(
    events: &mut mpsc::Receiver<NetworkEvent>,
    wanted: impl Fn(&NetworkEvent) -> Option<T>,
) -> T {
    let mut seen = Vec::new();
    let event = tokio::time::timeout(NEVER, async {
        loop {
            let event = events.recv().await.expect("the resolver lives");
            if let Some(found) = wanted(&event) {
                return found;
            }
            seen.push(event);
        }
    });
    match event.await {
        Ok(found) => found,
        Err(_) => panic!("the event never came; others were {seen:#?}"),
    }
}

/// The next event about this neighbour: its MAC and the reason.
async fn next_mac(events: &mut mpsc::Receiver<NetworkEvent>, of: &str) -> (Option<Mac>, String) {
    next(events, |event| match event {
        NetworkEvent::Neighbour(event) if event.address == ip(of) => {
            Some((event.mac, event.reason.clone()))
        }
        _ => None,
    })
    .await
}

fn targets(ifindex: u32, addresses: &[&str]) -> HashSet<Target> {
    addresses
        .iter()
        .map(|address| Target {
            address: ip(address),
            ifindex,
        })
        .collect()
}

#[test]
fn facts_of_a_host() {
    let network = Network::new();
    let facts = network.on_director(async || host_facts().await.unwrap());
    let eth0 = facts.interface("eth0").unwrap();
    assert_eq!(eth0.driver.as_deref(), Some("veth"));
    assert!(eth0.link.up && eth0.link.running && !eth0.link.loopback);
    assert_eq!((eth0.link.mtu, eth0.link.xdp), (1500, None));
    assert!(eth0.link.mac.is_some());
    assert!(
        eth0.addresses.contains(&"10.1.0.2/24".parse().unwrap()),
        "{:?}",
        eth0.addresses
    );
    let lo = facts.interface("lo").unwrap();
    assert!(lo.link.loopback && lo.link.mac.is_none());
    assert_eq!(facts.assigned(ip(DIRECTOR)), Some(eth0));
    assert_eq!(facts.assigned(ip("127.0.0.1")), Some(lo));
    assert_eq!(facts.assigned(ip(BACKEND)), None);
    assert_eq!(
        facts.towards(ip(BACKEND)),
        Some((eth0, "10.1.0.2/24".parse().unwrap()))
    );
    assert_eq!(facts.towards(ip("192.0.2.1")), None);
}

#[test]
fn resolution_change_and_loss_of_a_neighbour() {
    let network = Network::new();
    network.on_director(async || {
        let (sender, mut events) = mpsc::channel(1);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0().await, &[BACKEND, ABSENT]));
        let (mac, reason) = next_mac(&mut events, BACKEND).await;
        assert_eq!(mac, Some(FIRST_MAC));
        assert_eq!(reason, "10.1.0.11 is at 02:00:00:00:00:11 on eth0");
        let (mac, reason) = next_mac(&mut events, ABSENT).await;
        assert_eq!(
            (mac, reason.as_str()),
            (None, "no ARP answer from 10.1.0.12 on eth0")
        );

        // A MAC that changes without a word: the kernel's own doubts find it, without confirm().
        network.ip(&network.backend, "link set eth0 address 02:00:00:00:00:22");
        let (mac, reason) = next_mac(&mut events, BACKEND).await;
        assert_eq!(mac, Some(SECOND_MAC));
        assert_eq!(
            reason,
            "10.1.0.11 on eth0 moved from 02:00:00:00:00:11 to 02:00:00:00:00:22"
        );

        // Gone from the wire, though the wire is up.
        network.ip(&network.backend, "address del 10.1.0.11/24 dev eth0");
        let (mac, reason) = next_mac(&mut events, BACKEND).await;
        assert_eq!(
            (mac, reason.as_str()),
            (None, "no ARP answer from 10.1.0.11 on eth0")
        );

        // And back: it is asked for again and again. So is one that was never there.
        network.ip(&network.backend, "address add 10.1.0.11/24 dev eth0");
        network.ip(&network.backend, "address add 10.1.0.12/24 dev eth0");
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(SECOND_MAC));
    });
}

#[test]
fn confirm_finds_a_silent_change_long_before_the_kernel_doubts() {
    let network = Network::new();
    // An hour of trust: without confirm() the change would not be found while this test waits.
    network.sysctl(
        &network.director,
        "net.ipv4.neigh.eth0.base_reachable_time_ms=3600000",
    );
    network.on_director(async || {
        let eth0 = eth0().await;
        let (sender, mut events) = mpsc::channel(16);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0, &[BACKEND]));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(FIRST_MAC));
        network.ip(&network.backend, "link set eth0 address 02:00:00:00:00:22");
        resolver.confirm(Target {
            address: ip(BACKEND),
            ifindex: eth0,
        });
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(SECOND_MAC));
    });
}

#[test]
fn stale_entries_are_confirmed_and_removed_ones_asked_for_again() {
    let network = Network::new();
    network.on_director(async || {
        // Known to the kernel before, but stale: the MAC serves at once, and is then confirmed.
        network.ip(
            &network.director,
            "neigh add 10.1.0.11 dev eth0 lladdr 02:00:00:00:00:11 nud stale",
        );
        let (sender, mut events) = mpsc::channel(16);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0().await, &[BACKEND]));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(FIRST_MAC));
        let reachable = async || {
            while !network
                .ip(&network.director, "neigh show 10.1.0.11")
                .contains("REACHABLE")
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(NEVER, reachable())
            .await
            .expect("it is confirmed");
        // Removed behind our back, it is asked for again, and was never reported lost.
        network.ip(&network.director, "neigh del 10.1.0.11 dev eth0");
        tokio::time::timeout(NEVER, reachable())
            .await
            .expect("it is asked for again");
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, NetworkEvent::Neighbour(_)), "{event:?}");
        }
    });
}

#[test]
fn interfaces_and_addresses_are_followed() {
    let network = Network::new();
    network.on_director(async || {
        let eth0 = eth0().await;
        let (sender, mut events) = mpsc::channel(16);
        let resolver = Resolver::start(sender).unwrap();
        let link = |event: &NetworkEvent| match event {
            NetworkEvent::Link(event) if event.link.ifindex == eth0 => Some(event.clone()),
            _ => None,
        };
        let first = next(&mut events, link).await;
        assert!(
            first.exists && first.link.up && first.link.running,
            "{first:?}"
        );
        resolver.follow(targets(eth0, &[BACKEND]));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(FIRST_MAC));

        network.ip(&network.director, "address add 10.1.0.100/32 dev lo");
        let assigned = next(&mut events, |event| match event {
            NetworkEvent::Address(event) if event.address == ip(VIP) => Some(*event),
            _ => None,
        })
        .await;
        assert!(assigned.assigned);

        network.ip(&network.director, "link set eth0 address 02:00:00:00:00:33");
        let changed = next(&mut events, |event| {
            link(event).filter(|event| event.link.mac == Some([2, 0, 0, 0, 0, 0x33]))
        })
        .await;
        assert!(changed.exists);

        network.ip(&network.director, "link set eth0 down");
        next(&mut events, |event| {
            link(event).filter(|event| !event.link.up)
        })
        .await;
        network.ip(&network.director, "link set eth0 up");
        next(&mut events, |event| {
            link(event).filter(|event| event.link.up && event.link.running)
        })
        .await;

        network.ip(&network.director, "link del eth0");
        let gone = next(&mut events, |event| {
            link(event).filter(|event| !event.exists)
        })
        .await;
        assert_eq!(gone.link.name, "eth0");
    });
}

#[test]
fn a_neighbour_behind_a_vanished_interface_is_lost_with_that_reason() {
    let network = Network::new();
    network.on_director(async || {
        let (sender, mut events) = mpsc::channel(16);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0().await, &[BACKEND]));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(FIRST_MAC));
        network.ip(&network.director, "link del eth0");
        let (mac, reason) = next_mac(&mut events, BACKEND).await;
        assert_eq!(mac, None);
        assert!(
            reason.starts_with("cannot ask for 10.1.0.11 on eth0: "),
            "{reason}"
        );
    });
}

#[test]
fn what_was_missed_is_read_anew() {
    let network = Network::new();
    let director = &network.director;
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut batch = String::new();
    for n in 0..20_000 {
        let (high, low) = (n / 250, n % 250 + 1);
        batch += &format!("neigh add 10.2.{high}.{low} dev eth0 lladdr 02:00:00:00:00:99\n");
    }
    batch += "neigh replace 10.1.0.11 dev eth0 lladdr 02:00:00:00:00:22\n";
    std::fs::write(file.path(), batch).unwrap();
    network.on_director(async || {
        let (sender, mut events) = mpsc::channel(16);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0().await, &[BACKEND]));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(FIRST_MAC));
        // Nobody reads while this runs, as the runtime has this one thread: the socket's buffer
        // overflows, and the last line, the one that matters, is lost with all that did not fit.
        network.ip(director, &format!("-batch {}", file.path().display()));
        assert_eq!(next_mac(&mut events, BACKEND).await.0, Some(SECOND_MAC));
    });
}

#[test]
fn the_probes_way_to_a_vip() {
    let network = Network::new();
    network.on_director(async || {
        let ifindex = eth0().await;
        let director = &network.director;
        let way = ProbeRoute {
            vip: ip(VIP),
            ifindex,
            source: ip(DIRECTOR),
            bound: false,
        };
        let netlink = Netlink::open().unwrap();
        let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let routes = || words(network.ip(director, "route show proto 88"));
        let entries = || words(network.ip(director, "neigh show nud permanent"));

        assert!(vip_route::ensure(&netlink, &way).await.unwrap());
        assert_eq!(routes(), "10.1.0.100 dev eth0 scope link src 10.1.0.2");
        assert_eq!(
            entries(),
            "10.1.0.100 dev eth0 lladdr 02:78:64:70:6c:62 PERMANENT"
        );
        assert!(
            !vip_route::ensure(&netlink, &way).await.unwrap(),
            "nothing left to do"
        );

        // Half of it lost, or changed: the rest is made good.
        network.ip(director, "neigh del 10.1.0.100 dev eth0");
        assert!(vip_route::ensure(&netlink, &way).await.unwrap());
        assert!(entries().contains("02:78:64:70:6c:62"));
        network.ip(director, "address add 10.1.0.3/24 dev eth0");
        let moved = ProbeRoute {
            source: ip("10.1.0.3"),
            ..way
        };
        assert!(vip_route::ensure(&netlink, &moved).await.unwrap());
        assert_eq!(routes(), "10.1.0.100 dev eth0 scope link src 10.1.0.3");

        assert!(vip_route::remove(&netlink, ip(VIP)).await.unwrap());
        assert_eq!((routes(), entries()), (String::new(), String::new()));
        assert!(!vip_route::remove(&netlink, ip(VIP)).await.unwrap());

        // All that a killed daemon left goes, and nothing of others.
        let other = ProbeRoute {
            vip: ip("10.1.0.101"),
            ..way
        };
        let v6 = ProbeRoute {
            vip: ip("2001:db8::100"),
            ifindex,
            source: ip("2001:db8::2"),
            bound: false,
        };
        network.ip(director, "address add 2001:db8::2/64 dev eth0 nodad");
        let ways = [way, other, v6];
        for changed in [true, false] {
            let results = vip_route::ensure_all(&netlink, &ways).await.unwrap();
            for result in results {
                assert_eq!(result.unwrap(), changed);
            }
        }
        network.ip(director, "route add 10.9.0.0/16 dev eth0 proto static");
        network.ip(
            director,
            "neigh add 10.1.0.55 dev eth0 lladdr 02:00:00:00:00:55",
        );
        assert_eq!(
            vip_route::remove_all_ours(&netlink, ifindex).await.unwrap(),
            6
        );
        assert_eq!(
            vip_route::remove_all_ours(&netlink, ifindex).await.unwrap(),
            0
        );
        assert_eq!(routes(), "");
        assert_eq!(network.ip(director, "-6 route show proto 88"), "");
        assert!(network.ip(director, "route show").contains("10.9.0.0/16"));
        assert_eq!(
            entries(),
            "10.1.0.55 dev eth0 lladdr 02:00:00:00:00:55 PERMANENT"
        );
    });
}

/// Backends of a VIP behind two interfaces: each has a route of its own, and a bound probe takes the right one.
#[test]
fn the_probes_ways_through_two_interfaces() {
    let network = Network::new();
    network.on_director(async || {
        let director = &network.director;
        network.ip(director, "link add eth1 type veth peer name eth2");
        network.ip(director, "link set eth1 up");
        network.ip(director, "link set eth2 up");
        network.ip(director, "address add 10.3.0.2/24 dev eth1");
        let facts = host_facts().await.unwrap();
        let netlink = Netlink::open().unwrap();
        let way = |name: &str, source| ProbeRoute {
            vip: ip(VIP),
            ifindex: facts.interface(name).unwrap().link.ifindex,
            source: ip(source),
            bound: true,
        };
        let both = [way("eth0", DIRECTOR), way("eth1", "10.3.0.2")];
        let words = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let taken = |interface: &str| {
            let command = format!("route get {VIP} oif {interface}");
            words(network.ip(director, &command))
        };
        for changed in [true, false] {
            for result in vip_route::ensure_all(&netlink, &both).await.unwrap() {
                assert_eq!(result.unwrap(), changed);
            }
        }
        // On the loopback as well, as where the director is a backend.
        network.ip(director, "address add 10.1.0.100/32 dev lo");
        for (interface, source) in [("eth0", DIRECTOR), ("eth1", "10.3.0.2")] {
            let expected = format!("{VIP} dev {interface} src {source}");
            assert!(
                taken(interface).starts_with(&expected),
                "{}",
                taken(interface)
            );
        }
        for result in vip_route::ensure_all(&netlink, &both).await.unwrap() {
            assert!(!result.unwrap());
        }
        let unbound = ProbeRoute {
            bound: false,
            ..both[0]
        };
        let error = vip_route::ensure(&netlink, &unbound).await.unwrap_err();
        assert!(
            matches!(error, VipRouteError::AssignedHere { .. }),
            "{error}"
        );

        // The first interface has no backends any more, and later it has again.
        assert!(vip_route::ensure(&netlink, &both[1]).await.is_ok());
        let routes = || words(network.ip(director, "route show proto 88"));
        let entries = || words(network.ip(director, "neigh show nud permanent"));
        assert!(routes().contains("dev eth1"), "{}", routes());
        assert!(!routes().contains("dev eth0"), "{}", routes());
        assert!(!entries().contains("dev eth0"), "{}", entries());
        for result in vip_route::ensure_all(&netlink, &both).await.unwrap() {
            result.unwrap();
        }
        assert_eq!(routes().matches(VIP).count(), 2, "{}", routes());
        assert_eq!(entries().matches(VIP).count(), 2, "{}", entries());
        assert!(vip_route::remove(&netlink, ip(VIP)).await.unwrap());
        assert_eq!((routes(), entries()), (String::new(), String::new()));
    });
}

#[test]
fn the_route_to_a_client_tells_its_interface() {
    let network = Network::new();
    network.on_director(async || {
        assert_eq!(
            interface_towards(ip(BACKEND)).await.unwrap(),
            Some(eth0().await)
        );
        assert_eq!(interface_towards(ip("203.0.113.9")).await.unwrap(), None);
        network.ip(
            &network.director,
            "address add 2001:db8::2/64 dev eth0 nodad",
        );
        assert_eq!(
            interface_towards(ip("2001:db8::9")).await.unwrap(),
            Some(eth0().await)
        );
        assert_eq!(interface_towards(ip("2001:db9::9")).await.unwrap(), None);
    });
}

#[test]
fn the_probes_way_gives_way_to_others() {
    let network = Network::new();
    network.on_director(async || {
        let director = &network.director;
        let way = ProbeRoute {
            vip: ip(VIP),
            ifindex: eth0().await,
            source: ip(DIRECTOR),
            bound: false,
        };
        let netlink = Netlink::open().unwrap();

        network.ip(director, "route add 10.1.0.100/32 dev eth0 proto static");
        let error = vip_route::ensure(&netlink, &way).await.unwrap_err();
        assert!(
            matches!(error, VipRouteError::ForeignRoute { .. }),
            "{error}"
        );
        assert!(
            network
                .ip(director, "route show 10.1.0.100")
                .contains("proto static")
        );
        network.ip(director, "route del 10.1.0.100/32 dev eth0");

        network.ip(director, "address add 10.1.0.100/32 dev lo");
        let error = vip_route::ensure(&netlink, &way).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the VIP 10.1.0.100 is assigned to lo of this director, so probes to it would end \
             here; remove it (`ip address del 10.1.0.100/32 dev lo`): xdp-lb answers ARP for it"
        );
        network.ip(director, "address del 10.1.0.100/32 dev lo");

        let mixed = ProbeRoute {
            vip: ip("2001:db8::100"),
            ..way
        };
        let error = vip_route::ensure(&netlink, &mixed).await.unwrap_err();
        assert!(matches!(error, VipRouteError::Family { .. }), "{error}");
        assert_eq!(network.ip(director, "neigh show nud permanent"), "");
    });
}

/// Packets a host has forwarded (RFC 4293, ipSystemStatsOutForwDatagrams).
fn forwarded(host: &str) -> u64 {
    let counters = run(&format!("ip netns exec {host} cat /proc/net/snmp"));
    let mut lines = counters.lines().filter(|line| line.starts_with("Ip: "));
    let mut column = lines.next().unwrap().split_whitespace();
    let place = column.position(|name| name == "ForwDatagrams").unwrap();
    let value = lines.next().unwrap().split_whitespace().nth(place);
    value.unwrap().parse().unwrap()
}

/// The wire of this test leads to one backend alone, whose MAC is the probes' MAC: so no egress
/// program has to choose.
#[test]
fn probes_through_the_vip_on_a_real_wire() {
    let network = Network::new();
    let backend = &network.backend;
    network.ip(backend, "link set eth0 address 02:78:64:70:6c:62");
    network.ip(backend, "address add 10.1.0.100/32 dev lo");
    let listener = network.on(backend, || TcpListener::bind("0.0.0.0:80").unwrap());
    network.on_director(async || {
        let way = ProbeRoute {
            vip: ip(VIP),
            ifindex: eth0().await,
            source: ip(DIRECTOR),
            bound: false,
        };
        vip_route::ensure(&Netlink::open().unwrap(), &way)
            .await
            .unwrap();
        let target = SocketAddr::new(ip(VIP), 80);
        let spec = ProbeSpec {
            kind: ProbeKind::Tcp,
            via: Via::Vip,
            target,
            address: ip(BACKEND),
            mark: Some(lb_common::abi::probe_mark(1)),
            interface: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(4),
        };
        probe(&spec).await.unwrap();

        // The silent black hole: everything works but the VIP.
        let lost = Err(ProbeFailure::VipNotServed {
            vip: target,
            address: ip(BACKEND),
        });
        network.ip(backend, "address del 10.1.0.100/32 dev lo");
        assert_eq!(probe(&spec).await, lost);

        // The same on a backend that forwards: the probe must not come back to the director.
        network.sysctl(backend, "net.ipv4.ip_forward=1");
        network.ip(backend, "route add 10.1.0.100/32 via 10.1.0.2");
        assert_eq!(probe(&spec).await, lost);
        assert_eq!(forwarded(backend), 0);

        network.ip(backend, "address add 10.1.0.100/32 dev lo");
        probe(&spec).await.unwrap();
        drop(listener);
        assert_eq!(probe(&spec).await, Err(ProbeFailure::Refused { target }));
    });
}

const DIRECTOR6: &str = "fd01::2";
const BACKEND6: &str = "fd01::11";
const ABSENT6: &str = "fd01::12";
const VIP6: &str = "fd01::100";

impl Network {
    /// IPv6 for both hosts, with the kernel's patience shortened as for IPv4.
    fn with_ipv6() -> Self {
        let network = Self::new();
        for (host, address) in [(&network.director, DIRECTOR6), (&network.backend, BACKEND6)] {
            network.ip(host, &format!("address add {address}/64 dev eth0 nodad"));
            for setting in [
                "retrans_time_ms=100",
                "base_reachable_time_ms=1000",
                "delay_first_probe_time=1",
            ] {
                network.sysctl(host, &format!("net.ipv6.neigh.eth0.{setting}"));
            }
        }
        // Solicitations come from the link-local address, which the kernel first asks the wire about.
        for host in [&network.director, &network.backend] {
            let begun = Instant::now();
            while !network.ip(host, "-6 address show tentative").is_empty() {
                assert!(begun.elapsed() < NEVER, "an address stays tentative");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        network
    }
}

#[test]
fn an_ipv6_neighbour_is_resolved_followed_and_lost() {
    let network = Network::with_ipv6();
    network.on_director(async || {
        let (sender, mut events) = mpsc::channel(1);
        let resolver = Resolver::start(sender).unwrap();
        resolver.follow(targets(eth0().await, &[BACKEND6, ABSENT6]));
        let (mac, reason) = next_mac(&mut events, BACKEND6).await;
        assert_eq!(mac, Some(FIRST_MAC));
        assert_eq!(reason, "fd01::11 is at 02:00:00:00:00:11 on eth0");
        let (mac, reason) = next_mac(&mut events, ABSENT6).await;
        assert_eq!(
            (mac, reason.as_str()),
            (None, "no neighbour advertisement from fd01::12 on eth0")
        );
        network.ip(&network.backend, "link set eth0 address 02:00:00:00:00:22");
        assert_eq!(
            next_mac(&mut events, BACKEND6).await.0,
            Some(SECOND_MAC),
            "a silent change"
        );
        network.ip(&network.backend, "address del fd01::11/64 dev eth0");
        assert_eq!(next_mac(&mut events, BACKEND6).await.0, None);
        network.ip(&network.backend, "address add fd01::11/64 dev eth0 nodad");
        assert_eq!(next_mac(&mut events, BACKEND6).await.0, Some(SECOND_MAC));
    });
}

/// What the kernel says of an address that is being looked for on the network is told again when that is over: until then it
/// is no source of a route.
#[test]
fn the_end_of_duplicate_address_detection_is_told() {
    let network = Network::with_ipv6();
    network.sysctl(&network.director, "net.ipv6.conf.eth0.accept_dad=1");
    network.on_director(async || {
        let (sender, mut events) = mpsc::channel(16);
        let _resolver = Resolver::start(sender).unwrap();
        network.ip(&network.director, "address add fd01::3/64 dev eth0");
        // Each change of the address is told; the last one finds it usable, or this waits for one that never comes.
        let tentative = || {
            let shown = network.ip(&network.director, "-6 address show tentative");
            shown.contains("fd01::3")
        };
        loop {
            next(&mut events, |event| match event {
                NetworkEvent::Address(event) if event.address == ip("fd01::3") => {
                    assert!(event.assigned);
                    Some(())
                }
                _ => None,
            })
            .await;
            if !tentative() {
                break;
            }
        }
    });
}

#[test]
fn the_groups_of_ipv6_vips_are_joined_until_they_are_left() {
    let network = Network::with_ipv6();
    let shown = || network.ip(&network.director, "maddress show dev eth0");
    let (one, other) = ("ff02::1:ff00:100", "ff02::1:ff00:200");
    network.on_director(async || {
        let ifindex = eth0().await;
        let netlink = Netlink::open().unwrap();
        let membership = |group: &str| GroupMembership {
            group: group.parse().unwrap(),
            ifindex,
        };
        let interfaces = BTreeSet::from([ifindex]);
        let both = BTreeSet::from([membership(one), membership(other)]);
        let only = BTreeSet::from([membership(one)]);
        let ensure = async |wanted: &BTreeSet<GroupMembership>| {
            groups::ensure(&netlink, wanted, &interfaces).await.unwrap()
        };
        let facts = host_facts().await.unwrap();
        assert_eq!(ensure(&both).await, 2);
        assert_eq!(ensure(&both).await, 0, "a second time");
        assert!(shown().contains(one) && shown().contains(other));
        // The network card's filter lets it through.
        assert!(shown().contains("33:33:ff:00:01:00"), "{}", shown());
        assert_eq!(host_facts().await.unwrap(), facts, "no address of the host");

        assert_eq!(ensure(&only).await, 1);
        assert!(shown().contains(one) && !shown().contains(other));

        // An interface that was down has lost the address, and not the membership.
        network.ip(&network.director, "link set eth0 down");
        network.ip(&network.director, "link set eth0 up");
        ensure(&only).await;
        assert!(shown().contains(one), "{}", shown());
    });
}

/// The way of the probes, as for IPv4: the route, the neighbour entry, and nothing left.
#[test]
fn the_way_of_ipv6_probes() {
    let network = Network::with_ipv6();
    network.on_director(async || {
        let netlink = Netlink::open().unwrap();
        let route = ProbeRoute {
            vip: ip(VIP6),
            ifindex: eth0().await,
            source: ip(DIRECTOR6),
            bound: false,
        };
        assert!(vip_route::ensure(&netlink, &route).await.unwrap());
        assert!(!vip_route::ensure(&netlink, &route).await.unwrap());
        let way = network.ip(&network.director, "-6 route get fd01::100");
        assert!(
            way.contains("dev eth0") && way.contains("src fd01::2"),
            "{way}"
        );
        let entry = network.ip(&network.director, "-6 neigh show fd01::100");
        assert!(
            entry.contains("02:78:64:70:6c:62") && entry.contains("PERMANENT"),
            "{entry}"
        );
        // A wrong family is an error that says so.
        let mixed = ProbeRoute {
            source: ip(DIRECTOR),
            ..route
        };
        let error = vip_route::ensure(&netlink, &mixed).await.unwrap_err();
        assert!(matches!(error, VipRouteError::Family { .. }), "{error}");
        assert!(vip_route::remove(&netlink, ip(VIP6)).await.unwrap());
        let routes = network.ip(&network.director, "-6 route show proto 88");
        assert!(routes.is_empty(), "{routes}");
    });
}

/// The interface takes in the cluster's frames, and a switch is told of the group; all of it outlives who made it.
#[test]
fn an_interface_takes_in_the_frames_of_a_cluster() {
    let network = Network::new();
    let director = &network.director;
    let listed = || run(&format!("bridge -n {director} fdb show dev eth0"));
    for (mac, text) in [
        ([0x02, 0xbf, 10, 1, 0, 100], "02:bf:0a:01:00:64"),
        ([0x03, 0xbf, 10, 1, 0, 100], "03:bf:0a:01:00:64"),
    ] {
        let membership = Membership { mac, group: None };
        network.on_director(async || {
            let netlink = Netlink::open().unwrap();
            membership.ensure(&netlink, eth0().await).await.unwrap();
            membership.ensure(&netlink, eth0().await).await.unwrap();
        });
        assert!(listed().contains(text), "{}", listed());
        network.on_director(async || {
            let netlink = Netlink::open().unwrap();
            for _ in 0..2 {
                membership.remove(&netlink, eth0().await).await.unwrap();
            }
        });
        assert!(!listed().contains(text), "{}", listed());
    }

    let membership = Membership {
        mac: [0x01, 0x00, 0x5e, 0x7f, 0, 100],
        group: Some("239.255.0.100".parse().unwrap()),
    };
    network.on_director(async || {
        let netlink = Netlink::open().unwrap();
        membership.ensure(&netlink, eth0().await).await.unwrap();
        membership.ensure(&netlink, eth0().await).await.unwrap();
    });
    let groups = || network.ip(director, "maddress show dev eth0");
    assert!(groups().contains("inet  239.255.0.100"), "{}", groups());
    assert!(groups().contains("01:00:5e:7f:00:64"), "{}", groups());
    // It is nobody's source address.
    let route = network.ip(director, "route get 10.1.0.11");
    assert!(route.contains("src 10.1.0.2"), "{route}");
    network.on_director(async || {
        let netlink = Netlink::open().unwrap();
        for _ in 0..2 {
            membership.remove(&netlink, eth0().await).await.unwrap();
        }
    });
    assert!(!groups().contains("239.255.0.100"), "{}", groups());
}
