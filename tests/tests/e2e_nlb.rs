//! `mode = "pick"`: three nodes that all see every frame, each with a real nginx and the VIP on its loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use lb_tests::testbed::scene::{HTTP_PROBE, PATIENCE, SEED};
use lb_tests::testbed::{
    Host, INTERFACE, LoadGenerator, LoadSpec, Mac, Nginx, Record, StatusExt, Testbed, XdpLb,
    XdpProgram, get,
};
use lb_userspace::api::Status;

/// The nodes, what runs on them, and the network. Dropped in this order.
struct Cluster {
    daemons: BTreeMap<String, XdpLb>,
    servers: BTreeMap<String, Nginx>,
    _let_send: Vec<XdpProgram>,
    /// The services besides the first, "web" at port 80.
    services: fn(&Testbed) -> String,
    testbed: Testbed,
}

impl Cluster {
    fn start(label: &str, nodes: usize, more: &str) -> Self {
        Self::start_with(label, nodes, more, |_| String::new())
    }

    fn start_with(label: &str, nodes: usize, more: &str, services: fn(&Testbed) -> String) -> Self {
        let testbed = Testbed::builder()
            .clients(1, 60)
            .backends(nodes)
            .label(label)
            .build()
            .unwrap();
        let names: Vec<String> = testbed
            .backends()
            .map(|host| host.name().to_owned())
            .collect();
        let servers = testbed
            .backends()
            .map(|host| {
                (
                    host.name().to_owned(),
                    Nginx::start_on(host, &[80, 81, 82, 83, 84]).unwrap(),
                )
            })
            .collect();
        let mut cluster = Self {
            daemons: BTreeMap::new(),
            servers,
            _let_send: names
                .iter()
                .map(|name| testbed.let_send(name).unwrap())
                .collect(),
            services,
            testbed,
        };
        for name in &names {
            let config = cluster.config(name, more);
            let host = cluster.testbed.host(name);
            let mut daemon = XdpLb::prepare_on(host, &config).unwrap();
            daemon.spawn(&[]).unwrap();
            cluster.daemons.insert(name.clone(), daemon);
        }
        cluster.wait_for_agreement(&names);
        cluster
    }

    /// The same for every node, but for what belongs to this machine, which they share.
    fn config(&self, node: &str, more: &str) -> String {
        let files = self.testbed.host(node).directory();
        format!(
            "[node]\nname = \"{node}\"\ninterfaces = [\"{INTERFACE}\"]\npin_path = \"{}\"\nmode = \"pick\"\n{SEED}{more}\n\
             [control]\nsocket = \"{}\"\nstate = \"{}\"\nhttp = \"off\"\n\n\
             [[service]]\nname = \"web\"\nvip = \"{}\"\nprotocol = \"tcp\"\nports = [80]\naffinity = \"client\"\n\
             flow_idle = \"6s\"\n\n{HTTP_PROBE}{}{}",
            self.pins(node).display(),
            files.join("control.sock").display(),
            files.join("state.json").display(),
            self.testbed.vip(),
            self.testbed.backend_config(),
            (self.services)(&self.testbed),
        )
    }

    fn pins(&self, node: &str) -> std::path::PathBuf {
        self.testbed.pin_path().join(node)
    }

    fn daemon(&mut self, node: &str) -> &mut XdpLb {
        self.daemons.get_mut(node).unwrap()
    }

    /// Waits until each of these nodes counts just these as up, and all go by the same tables.
    fn wait_for_agreement(&mut self, nodes: &[String]) {
        for node in nodes {
            let wanted = |status: &Status| {
                let up: BTreeSet<&str> = status
                    .backends()
                    .filter(|backend| backend.state == "up")
                    .map(|backend| backend.name.as_str())
                    .collect();
                let cluster = status.node.cluster.as_ref().unwrap();
                up == nodes.iter().map(String::as_str).collect()
                    && cluster
                        .peers
                        .iter()
                        .filter(|peer| nodes.contains(&peer.name))
                        .all(|peer| peer.heard && peer.agrees)
            };
            let what = format!("that {node} agrees with {nodes:?}");
            self.wait_for(node, &what, wanted);
        }
    }

    /// Waits for a node's status; what a node does not come to know may be another's trouble, so a failure shows them all.
    fn wait_for(&mut self, node: &str, what: &str, wanted: impl Fn(&Status) -> bool) {
        let Err(error) = self.daemon(node).wait_for(what, wanted) else {
            return;
        };
        let mut all = String::new();
        for (name, daemon) in &mut self.daemons {
            let neighbours = self.testbed.host(name).run("ip", &["neighbour", "show"]);
            let neighbours =
                neighbours.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
            let state = match daemon.check_running().and_then(|()| daemon.status()) {
                Ok(status) => format!("{}\n{}", status.summary(), daemon.log_tail()),
                Err(error) => error.to_string(),
            };
            all.push_str(&format!("\n{name}: {state}\n{neighbours:?}\n"));
        }
        panic!("{error}\n{all}");
    }

    fn client(&self) -> &Host {
        self.testbed.host("c1")
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.testbed.vip(), 80)
    }

    /// Who answers a new connection of each of the client's addresses.
    fn homes(&self) -> BTreeMap<IpAddr, String> {
        self.homes_at(80)
    }

    fn homes_at(&self, port: u16) -> BTreeMap<IpAddr, String> {
        let target = SocketAddr::new(self.testbed.vip(), port);
        self.client()
            .sources()
            .iter()
            .map(|source| {
                let answer = get(self.client(), *source, target, "/", PATIENCE)
                    .unwrap_or_else(|error| panic!("port {port}: {error}: {}", self.counts()));
                (*source, answer.headers["x-backend"].clone())
            })
            .collect()
    }

    /// One connection per address, kept alive with requests.
    fn long_connections(&self, sources: Vec<IpAddr>) -> LoadGenerator {
        let spec = LoadSpec {
            sources,
            rate: 100,
            keep_alive: true,
            timeout: PATIENCE,
            ..LoadSpec::new(self.target())
        };
        LoadGenerator::start(self.client(), spec).unwrap()
    }

    /// What became of the packets, for messages.
    fn counts(&self) -> String {
        let of = |daemon: &XdpLb| {
            let mut verdicts = daemon.status().map(|status| status.verdicts);
            if let Ok(verdicts) = &mut verdicts {
                verdicts.retain(|_, count| *count > 0);
            }
            format!("{verdicts:?}")
        };
        let counts: Vec<String> = self
            .daemons
            .iter()
            .map(|(node, daemon)| format!("{node}: {}", of(daemon)))
            .collect();
        format!("{} {}", counts.join(", "), learned(self))
    }

    fn verdict(&self, node: &str, verdict: &str) -> u64 {
        self.daemons[node].status().unwrap().verdicts[verdict]
    }
}

fn names(nodes: &[&str]) -> Vec<String> {
    nodes.iter().map(|name| (*name).to_owned()).collect()
}

fn of(homes: &BTreeMap<IpAddr, String>, nodes: &[&str]) -> Vec<IpAddr> {
    homes
        .iter()
        .filter(|(_, home)| nodes.contains(&home.as_str()))
        .map(|(source, _)| *source)
        .collect()
}

fn assert_undisturbed(records: &[Record], homes: &BTreeMap<IpAddr, String>) {
    assert!(!records.is_empty());
    for record in records {
        assert_eq!(record.error, None, "{record:?}");
        assert_eq!(record.backend.as_ref(), homes.get(&record.source));
    }
}

/// The MAC address that the client has for the VIP.
fn learned(cluster: &Cluster) -> String {
    let vip = cluster.testbed.vip().to_string();
    let output = cluster
        .client()
        .run("ip", &["neighbour", "show", &vip])
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Three nodes share the clients; one is drained, one dies and comes back with nothing. The connections of the nodes that
/// live are never disturbed, and every client is answered.
#[test]
fn three_nodes_and_one_dying() {
    let mut cluster = Cluster::start("nlb", 3, "");
    let homes = cluster.homes();
    let used: BTreeSet<&String> = homes.values().collect();
    assert_eq!(used.len(), 3, "{homes:?}");
    let Mac([_, _, a, b, c, d]) = Mac([0, 0, 10, 77, 0, 100]);
    let mac = format!("02:bf:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    assert!(learned(&cluster).contains(&mac), "{}", learned(&cluster));
    // Every node has seen every frame, and each was kept by exactly one.
    let kept: BTreeMap<&str, (u64, u64)> = ["b1", "b2", "b3"]
        .into_iter()
        .map(|node| {
            (
                node,
                (
                    cluster.verdict(node, "local"),
                    cluster.verdict(node, "other_node"),
                ),
            )
        })
        .collect();
    let frames: u64 = kept.values().map(|(local, _)| local).sum();
    for (local, other) in kept.values() {
        assert!(*local > 0);
        assert_eq!(local + other, frames, "{kept:?}");
    }
    let explained: serde_json::Value = cluster.daemons["b1"]
        .json(&[
            "where",
            &of(&homes, &["b2"])[0].to_string(),
            &cluster.target().to_string(),
        ])
        .unwrap();
    assert_eq!(explained["verdict"], "other_node", "{explained}");
    assert_eq!(explained["backend"], "b2");

    // A drain is said to the node itself, and the others learn of it.
    let refused = cluster.daemons["b2"].cli(&["drain", "b1"]).unwrap();
    assert!(!refused.status.success());
    let all: Vec<IpAddr> = homes.keys().copied().collect();
    let load = cluster.long_connections(all.clone());
    load.wait_for_answers(&all).unwrap();
    cluster.daemons["b1"].cli_ok(&["drain", "b1"]).unwrap();
    cluster.wait_for_drain("b1");
    let drained = cluster.homes();
    assert!(of(&drained, &["b1"]).is_empty(), "{drained:?}");
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
    cluster.daemons["b1"].cli_ok(&["resume", "b1"]).unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2", "b3"]));
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
    load.stop().unwrap();

    // One dies, with all it has.
    let survivors = of(&homes, &["b1", "b2"]);
    let load = cluster.long_connections(survivors.clone());
    load.wait_for_answers(&survivors).unwrap();
    cluster.testbed.host("b3").link_down().unwrap();
    cluster.daemon("b3").kill9().unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2"]));
    let without = cluster.homes();
    assert!(of(&without, &["b3"]).is_empty(), "{without:?}");
    let records = load.wait_for_answers(&survivors).unwrap();
    assert!(records.iter().all(|record| record.error.is_none()));

    // It comes back with nothing, as after a loss of power.
    fs::remove_dir_all(cluster.pins("b3")).unwrap();
    cluster.testbed.host("b3").link_up().unwrap();
    cluster.daemon("b3").spawn(&[]).unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2", "b3"]));
    let records = load.wait_for_answers(&survivors).unwrap();
    assert!(records.iter().all(|record| record.error.is_none()));
    load.stop().unwrap();
    let back = cluster.homes();
    assert!(!of(&back, &["b3"]).is_empty(), "{back:?}");
}

impl Cluster {
    /// Waits until all nodes know that one drains, and go by the same tables.
    fn wait_for_drain(&mut self, drained: &str) {
        let nodes: Vec<String> = self.daemons.keys().cloned().collect();
        for node in &nodes {
            let wanted = |status: &Status| {
                let state = &status.backend(drained).unwrap().state;
                let cluster = status.node.cluster.as_ref().unwrap();
                state.starts_with("drain")
                    && cluster.peers.iter().all(|peer| peer.heard && peer.agrees)
            };
            let what = format!("that {node} knows that {drained} drains");
            self.wait_for(node, &what, wanted);
        }
    }
}

/// A node that takes long to start, on a machine that is slow or busy, still waits for the others before it takes anything.
#[test]
fn a_node_that_starts_slowly_takes_nothing_from_the_others() {
    let mut cluster = Cluster::start("nlb-s", 2, "");
    cluster.testbed.host("b2").link_down().unwrap();
    cluster.daemon("b2").kill9().unwrap();
    cluster.wait_for_agreement(&names(&["b1"]));
    let homes = cluster.homes();
    let all: Vec<IpAddr> = homes.keys().copied().collect();
    let load = cluster.long_connections(all.clone());
    load.wait_for_answers(&all).unwrap();
    let times_counted_out = cluster.times_counted_out("b1");

    fs::remove_dir_all(cluster.pins("b2")).unwrap();
    // Longer than a fresh start waits for the first answers.
    let held_up = Duration::from_secs(6);
    cluster.daemon("b2").spawn_slowly(held_up).unwrap();
    cluster.wait_for("b2", "that b2 runs", |_| true);
    // Its port on the switch takes a moment longer: it has probed its own server, and heard nobody.
    thread::sleep(Duration::from_secs(1));
    cluster.testbed.host("b2").link_up().unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2"]));
    assert_eq!(cluster.times_counted_out("b1"), times_counted_out);
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
    load.stop().unwrap();
    assert_eq!(cluster.homes().values().collect::<BTreeSet<_>>().len(), 2);
}

impl Cluster {
    /// How often a node has learned that another had counted it as gone.
    fn times_counted_out(&self, node: &str) -> usize {
        let log = fs::read_to_string(self.daemons[node].log_path()).unwrap();
        log.matches("this node was counted as gone").count()
    }
}

/// A server that fails under its living node: the node says so itself, or its peers find out; the others take over.
#[test]
fn a_server_fails_and_the_multicast_mac_works_alike() {
    let mut cluster = Cluster::start("nlb-m", 2, "cluster_mac = \"multicast\"\n");
    let homes = cluster.homes();
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2);
    assert!(learned(&cluster).contains("03:bf:0a:4d:00:64"));
    cluster.servers.get_mut("b2").unwrap().stop().unwrap();
    for node in ["b1", "b2"] {
        cluster.daemon(node).wait_state("b2", "down").unwrap();
    }
    cluster.daemon("b1").wait_state("b1", "up").unwrap();
    let without = cluster.homes();
    assert_eq!(of(&without, &["b1"]).len(), without.len());
    cluster.servers.get_mut("b2").unwrap().resume().unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2"]));
    assert_eq!(cluster.homes().values().collect::<BTreeSet<_>>().len(), 2);
}

/// The third kind of MAC address: each node joins the group.
#[test]
fn the_nodes_join_the_multicast_group() {
    let cluster = Cluster::start("nlb-i", 2, "cluster_mac = \"igmp\"\n");
    let homes = cluster.homes();
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2);
    assert!(learned(&cluster).contains("01:00:5e:7f:00:64"));
    for node in ["b1", "b2"] {
        let output = cluster
            .testbed
            .host(node)
            .run("ip", &["maddress", "show", "dev", INTERFACE])
            .unwrap();
        let groups = String::from_utf8(output.stdout).unwrap();
        assert!(groups.contains("239.255.0.100"), "{groups}");
    }
}

impl Cluster {
    /// Whether a node's own data path is fenced: read from its maps, whether or not its daemon is there.
    fn is_fenced(&self, node: &str) -> bool {
        let content: serde_json::Value = self.daemons[node].json(&["maps", "FENCES"]).unwrap();
        let own = |row: &&serde_json::Value| row["fences"] == "this node";
        let rows = content["entries"].as_array().unwrap();
        let own = rows.iter().find(own).unwrap();
        assert_eq!(own["backend"], node, "{content}");
        own["fenced"] == true
    }
}

/// A node whose daemon was killed keeps its connections; when its server fails as well, its peers take its place, and its data
/// path answers nobody until its daemon is back, whether or not the server is.
#[test]
fn a_node_without_a_daemon_is_fenced_when_its_server_fails() {
    let mut cluster = Cluster::start("nlb-f", 3, "");
    let homes = cluster.homes();
    let of_b2 = of(&homes, &["b2"]);
    assert!(!of_b2.is_empty(), "{homes:?}");
    let all: Vec<IpAddr> = homes.keys().copied().collect();
    let load = cluster.long_connections(all.clone());
    load.wait_for_answers(&all).unwrap();
    cluster.daemon("b2").kill9().unwrap();
    let heard = |status: &Status| {
        let cluster = status.node.cluster.as_ref().unwrap();
        cluster.peers.iter().any(|peer| !peer.heard)
    };
    for node in ["b1", "b3"] {
        cluster.wait_for(node, "that b2 is not heard", heard);
    }
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
    load.stop().unwrap();
    assert_eq!(cluster.homes(), homes, "its data path works on");
    assert!(!cluster.is_fenced("b2"));

    cluster.servers.get_mut("b2").unwrap().stop().unwrap();
    for node in ["b1", "b3"] {
        cluster.daemon(node).wait_state("b2", "down").unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while !cluster.is_fenced("b2") {
        assert!(Instant::now() < deadline, "b2 was not fenced");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!cluster.is_fenced("b1") && !cluster.is_fenced("b3"));
    cluster.wait_for_agreement_of_the_others("b2");
    let without = cluster.homes();
    assert!(of(&without, &["b2"]).is_empty(), "{without:?}");
    let explained: serde_json::Value = cluster.daemons["b2"]
        .json(&[
            "where",
            &of_b2[0].to_string(),
            &cluster.target().to_string(),
        ])
        .unwrap();
    assert_eq!(explained["verdict"], "fenced", "{explained}");

    // The server alone changes nothing: b2 does not know what the others have done meanwhile.
    cluster.servers.get_mut("b2").unwrap().resume().unwrap();
    let load = cluster.long_connections(all.clone());
    load.wait_for_answers(&all).unwrap();
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &without);
    assert!(cluster.is_fenced("b2"));
    cluster.daemon("b2").spawn(&[]).unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2", "b3"]));
    assert!(!cluster.is_fenced("b2"));
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &without);
    load.stop().unwrap();
    let back = cluster.homes();
    assert!(!of(&back, &["b2"]).is_empty(), "{back:?}");
}

impl Cluster {
    /// Waits until all nodes but one go by the same tables.
    fn wait_for_agreement_of_the_others(&mut self, without: &str) {
        let others: Vec<String> = self
            .daemons
            .keys()
            .filter(|node| *node != without)
            .cloned()
            .collect();
        self.wait_for_agreement(&others);
    }
}

impl Cluster {
    /// Two nodes: b2 loses its power, b1 its daemon, and b2 comes back with nothing. Nobody is left to tell it of b1, but b1's
    /// data path. Long connections of all clients are on b1.
    fn with_one_that_nobody_hears(label: &str) -> (Self, LoadGenerator, BTreeMap<IpAddr, String>) {
        let mut cluster = Self::start(label, 2, "");
        assert_eq!(cluster.homes().values().collect::<BTreeSet<_>>().len(), 2);
        cluster.testbed.host("b2").link_down().unwrap();
        cluster.daemon("b2").kill9().unwrap();
        cluster.wait_for_agreement(&names(&["b1"]));
        let homes = cluster.homes();
        assert_eq!(of(&homes, &["b1"]).len(), homes.len(), "{homes:?}");
        let all: Vec<IpAddr> = homes.keys().copied().collect();
        let load = cluster.long_connections(all.clone());
        load.wait_for_answers(&all).unwrap();
        let told: serde_json::Value = cluster.daemons["b1"].json(&["maps", "PRESENCES"]).unwrap();
        assert_eq!(told["entries"][0]["service"], "web", "{told}");
        cluster.daemon("b1").kill9().unwrap();

        fs::remove_dir_all(cluster.pins("b2")).unwrap();
        cluster.testbed.host("b2").link_up().unwrap();
        cluster.daemon("b2").spawn(&[]).unwrap();
        let counts_both = |status: &Status| {
            let up = |name| status.backend(name).is_some_and(|b| b.state == "up");
            let cluster = status.node.cluster.as_ref().unwrap();
            up("b1") && up("b2") && cluster.peers.iter().all(|peer| !peer.heard)
        };
        cluster.wait_for(
            "b2",
            "that b2 counts b1 in, which it does not hear",
            counts_both,
        );
        assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
        assert_eq!(cluster.homes(), homes, "b2 takes nothing from b1");
        (cluster, load, homes)
    }
}

/// A node that begins while the only other one has no daemon leaves that one what it has, and gets its share when the daemon is
/// back.
#[test]
fn a_node_that_begins_asks_the_data_path_of_one_that_nobody_hears() {
    let (mut cluster, load, homes) = Cluster::with_one_that_nobody_hears("nlb-p");
    let all: Vec<IpAddr> = homes.keys().copied().collect();
    cluster.daemon("b1").spawn(&[]).unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2"]));
    assert_undisturbed(&load.wait_for_answers(&all).unwrap(), &homes);
    load.stop().unwrap();
    assert!(cluster.verdict("b1", "presence_replied") > 0);
    let shared = cluster.homes();
    assert_eq!(shared.values().collect::<BTreeSet<_>>().len(), 2);
}

/// From what that data path says it knows how to fence it.
#[test]
fn a_node_that_begins_can_fence_one_that_nobody_hears() {
    let (mut cluster, load, _) = Cluster::with_one_that_nobody_hears("nlb-q");
    load.stop().unwrap();
    assert!(!cluster.is_fenced("b1"));
    cluster.servers.get_mut("b1").unwrap().stop().unwrap();
    cluster.daemon("b2").wait_state("b1", "down").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !cluster.is_fenced("b1") {
        assert!(Instant::now() < deadline, "b1 was not fenced");
        thread::sleep(Duration::from_millis(50));
    }
    cluster.servers.get_mut("b1").unwrap().resume().unwrap();
    let without = cluster.homes();
    assert_eq!(of(&without, &["b2"]).len(), without.len(), "{without:?}");
    cluster.daemon("b1").spawn(&[]).unwrap();
    cluster.wait_for_agreement(&names(&["b1", "b2"]));
    assert_eq!(cluster.homes().values().collect::<BTreeSet<_>>().len(), 2);
}

/// Services that nobody probes, of which not all nodes are, by the rules of Windows NLB.
fn services_of_all_kinds(testbed: &Testbed) -> String {
    let head = |name: &str, port: u16, more: &str| {
        format!(
            "\n[[service]]\nname = \"{name}\"\nvip = \"{}\"\nprotocol = \"tcp\"\nports = [{port}]\naffinity = \"client\"\n\
             flow_idle = \"6s\"\n{more}",
            testbed.vip(),
        )
    };
    let node = |name: &str, more: &str| testbed.one_backend_config(name, more);
    [
        head("unprobed", 81, ""),
        testbed.backend_config(),
        head("pair", 82, HTTP_PROBE),
        node("b2", ""),
        node("b3", ""),
        head("alone", 83, "rule = \"single\"\n"),
        node("b1", "priority = 2\n"),
        node("b2", "priority = 1\n"),
        node("b3", "priority = 3\n"),
        head("closed", 84, "rule = \"disabled\"\n"),
        testbed.backend_config(),
    ]
    .concat()
}

/// A node's daemon is killed: its data path says that it is there, whoever asks, and for however long. Then that data path is taken
/// away without a word, while its server answers on: the others take its share, in every service.
#[test]
fn a_node_has_its_share_as_long_as_its_data_path_answers() {
    const PORTS: [u16; 4] = [80, 81, 82, 83];
    let mut cluster = Cluster::start_with("nlb-d", 3, "", services_of_all_kinds);
    let homes = PORTS.map(|port| cluster.homes_at(port));
    let used = |homes: &BTreeMap<IpAddr, String>| homes.values().cloned().collect::<BTreeSet<_>>();
    let all = names(&["b1", "b2", "b3"]);
    let expected = [&all[..], &all, &all[1..], &all[1..2]];
    for (homes, nodes) in homes.iter().zip(expected) {
        assert_eq!(used(homes), nodes.iter().cloned().collect());
    }

    cluster.daemon("b2").kill9().unwrap();
    let silent = |status: &Status| {
        let cluster = status.node.cluster.as_ref().unwrap();
        cluster.peers.iter().any(|peer| !peer.heard)
    };
    for node in ["b1", "b3"] {
        cluster.wait_for(node, "that b2 is not heard", silent);
    }
    // Longer than silence alone ever counted for; while it is asked, a file is read again.
    thread::sleep(Duration::from_secs(6));
    cluster.daemons["b1"].cli_ok(&["reload"]).unwrap();
    thread::sleep(Duration::from_secs(6));
    assert_eq!(PORTS.map(|port| cluster.homes_at(port)), homes);
    assert!(!cluster.is_fenced("b2"));

    fs::remove_dir_all(cluster.pins("b2")).unwrap();
    let out = |status: &Status| {
        status
            .backends()
            .filter(|backend| backend.name == "b2")
            .all(|backend| backend.state == "down")
    };
    for node in ["b1", "b3"] {
        cluster.wait_for(node, "that b2 has no data path", out);
    }
    let reasons: Vec<String> = cluster.daemons["b3"]
        .status()
        .unwrap()
        .backends()
        .filter(|backend| backend.name == "b2")
        .map(|backend| backend.reason.clone())
        .collect();
    let said = reasons
        .iter()
        .filter(|reason| reason.contains("its data path does not answer"))
        .count();
    assert_eq!(said, PORTS.len(), "{reasons:?}");
    cluster.wait_for_agreement(&names(&["b1", "b3"]));
    let without = PORTS.map(|port| cluster.homes_at(port));
    let others = names(&["b1", "b3"]);
    let expected = [&others[..], &others, &others[1..], &others[..1]];
    for (homes, nodes) in without.iter().zip(expected) {
        assert_eq!(used(homes), nodes.iter().cloned().collect());
    }

    cluster.daemon("b2").spawn(&[]).unwrap();
    cluster.wait_for_agreement(&all);
    assert_eq!(PORTS.map(|port| cluster.homes_at(port)), homes);
}

/// A file with one node more, which is not there yet, goes round: while only some have it, every client is answered by whom it was, and
/// `status` says what is amiss. When all have it, all go by the same tables again.
#[test]
fn while_a_file_goes_round_every_client_is_answered() {
    let mut cluster = Cluster::start("nlb-f", 3, "");
    let all = names(&["b1", "b2", "b3"]);
    let homes = cluster.homes();
    let sources: Vec<IpAddr> = homes.keys().copied().collect();
    let load = cluster.long_connections(sources.clone());
    load.wait_for_answers(&sources).unwrap();
    let IpAddr::V4(last) = cluster.testbed.host("b3").address() else {
        panic!("the test network's addresses are IPv4");
    };
    let address = std::net::Ipv4Addr::from_bits(last.to_bits() + 20);
    let added = format!("\n[[service.backend]]\nname = \"b4\"\naddress = \"{address}\"\n");
    let reload = |cluster: &Cluster, node: &str| {
        let daemon = &cluster.daemons[node];
        daemon
            .write_config(&(cluster.config(node, "") + &added))
            .unwrap();
        daemon.cli_ok(&["reload"]).unwrap();
    };
    for (node, others) in [("b1", &all[1..]), ("b2", &all[2..])] {
        reload(&cluster, node);
        let tells = |status: &Status| {
            let peers = &status.node.cluster.as_ref().unwrap().peers;
            peers
                .iter()
                .any(|peer| peer.heard && peer.has_another_file && others.contains(&peer.name))
        };
        cluster.wait_for(node, &format!("that {others:?} have another file"), tells);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(cluster.homes(), homes, "after {node}'s reload");
    }
    let said = cluster.daemons["b1"].cli_ok(&["status"]).unwrap();
    assert!(said.contains("b3 has another file"), "{said}");

    reload(&cluster, "b3");
    cluster.wait_for_agreement(&all);
    let after = cluster.homes();
    assert_eq!(
        after.values().cloned().collect::<BTreeSet<_>>(),
        all.into_iter().collect()
    );
    assert_undisturbed(&load.stop().unwrap(), &homes);
}
