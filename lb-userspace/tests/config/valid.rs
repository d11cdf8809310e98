//! What a valid file means.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use lb_userspace::config::{
    Affinity, Backend, ClusterMac, Config, Control, Failback, Limits, Mode, Node, Ports, Probe,
    ProbeKind, Protocol, Rule, Service, Track, Unserved, Via, XdpMode,
};

use crate::{BASE, changed};

fn parse(text: &str) -> Config {
    Config::parse("config.toml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The example of design.md, section 6, with a probe type of this version.
const DESIGN: &str = r#"
[node]
name = "lb1"                    # default: the host name; tells a node of an NLB cluster who it is
interfaces = ["eth0"]           # where the clients' packets arrive; XDP is attached to each
pin_path = "/sys/fs/bpf/xdp-lb" # several instances on one machine (namespaces) need one each
xdp_mode = "auto"               # auto | native | generic; auto says in the log and in status which it got

[control]
socket = "/run/xdp-lb/control.sock"
http = "127.0.0.1:9477"         # metrics, API and console; "off" for none

[[service]]
name = "mail"
vip = "192.0.2.10"              # IPv4 or IPv6
protocol = "tcp"                # tcp | udp
ports = [25, 587, "8000-8010"]  # all of a service's ports share one pick; "any" for all
affinity = "client"             # none | client | network
flow_idle = "15m"

[service.probe]
type = "tcp"                    # tcp | http | https | smtp | ...
port = 25
interval = "1s"
timeout = "500ms"
rise = 2                        # successes until up
fall = 3                        # failures until down
via = "vip"                     # vip | address

[[service.backend]]
name = "mx1"
address = "192.0.2.21"
weight = 50                     # share among the backends of the same priority; Windows NLB's default
priority = 1                    # 1 is preferred; the next priority serves only when no one here is up
"#;

#[test]
fn the_example_of_the_design_means_what_it_says() {
    let expected = Config {
        node: Node {
            name: "lb1".into(),
            interfaces: vec!["eth0".into()],
            pin_path: PathBuf::from("/sys/fs/bpf/xdp-lb"),
            xdp_mode: XdpMode::Auto,
            unserved: Unserved::Drop,
            mode: Mode::Forward,
            cluster_mac: None,
            cluster_ip: None,
            peer_port: None,
            seed: None,
        },
        control: Control {
            socket: PathBuf::from("/run/xdp-lb/control.sock"),
            http: Some(([127, 0, 0, 1], 9477).into()),
            state: PathBuf::from("/var/lib/xdp-lb/state.json"),
        },
        limits: Limits {
            flows: 65_536,
            flows6: 65_536,
            slots: None,
            backends: None,
            ports: None,
            fragments: 4_096,
        },
        services: vec![Service {
            name: "mail".into(),
            vip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
            protocol: Protocol::Tcp,
            ports: Ports::Ranges(vec![25..=25, 587..=587, 8000..=8010]),
            affinity: Affinity::Client,
            spread_hot_sources: None,
            network_prefix: None,
            rule: Rule::Multiple,
            flow_idle: Duration::from_secs(900),
            track: Track::Changes,
            affinity_timeout: None,
            failback: Failback::Auto,
            probe: Some(Probe {
                kind: ProbeKind::Tcp,
                port: 25,
                interval: Duration::from_secs(1),
                timeout: Duration::from_millis(500),
                rise: 2,
                fall: 3,
                via: Via::Vip,
            }),
            backends: vec![Backend {
                name: "mx1".into(),
                address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 21)),
                weight: 50,
                priority: 1,
            }],
        }],
    };
    assert_eq!(parse(DESIGN), expected);
}

#[test]
fn the_shipped_example_is_valid() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/config.toml");
    let text = std::fs::read_to_string(example).expect("packaging/config.toml is there");
    parse(&text);
    // Each setting that is commented out must be valid as well: "#key = value" and "#[table]" without a space.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) && !setting.is_empty() => setting,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(uncommented, text, "the example shows no commented setting");
    parse(&uncommented);
}

#[test]
fn the_examples_in_the_documentation_are_valid() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(page).expect("docs/configuration.md is there");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!examples.is_empty(), "the page has no example");
    for example in examples {
        parse(example);
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let config = parse(
        "[node]\ninterfaces = [\"eth0\", \"eth1\"]\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\n\
         protocol = \"tcp\"\nports = [443, 80]\n[[service.backend]]\nname = \"b\"\naddress = \"192.0.2.2\"\n",
    );
    let uname = rustix::system::uname();
    assert_eq!(config.node.name.as_bytes(), uname.nodename().to_bytes());
    assert_eq!(config.control, Control::default());
    assert_eq!(config.limits, Limits::default());
    let service = &config.services[0];
    assert_eq!(service.affinity, Affinity::None);
    assert_eq!(service.flow_idle, Duration::from_secs(900));
    assert_eq!(service.failback, Failback::Auto);
    // The first port listed, not the lowest.
    assert_eq!(service.probe, Some(Probe::tcp(443)));
    assert_eq!(
        (service.backends[0].weight, service.backends[0].priority),
        (50, 1)
    );
}

/// A VIP of either family in one file, and the network's length by family and by hand.
#[test]
fn both_families() {
    let service = |name: &str, vip: &str, backend: &str, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nports = [80]\n\
             affinity = \"network\"\n{more}\n[[service.backend]]\nname = \"b-{name}\"\naddress = \"{backend}\"\n"
        )
    };
    let config = parse(
        &[
            "[node]\nname = \"lb1\"\ninterfaces = [\"eth0\"]\n".to_owned(),
            service("four", "192.0.2.1", "192.0.2.2", ""),
            service("six", "2001:DB8:0:0::1", "2001:db8::2", ""),
            service("wide", "192.0.2.3", "192.0.2.4", "network_prefix = 16"),
            service("site", "2001:db8::3", "2001:db8::4", "network_prefix = 48"),
        ]
        .concat(),
    );
    let prefixes: Vec<_> = config.services.iter().map(|s| s.network_prefix).collect();
    assert_eq!(prefixes, [Some(24), Some(56), Some(16), Some(48)]);
    // RFC 5952, however it was written.
    assert_eq!(config.services[1].vip.to_string(), "2001:db8::1");
}

#[test]
fn a_udp_service_without_a_probe_has_none() {
    let text = changed("protocol = \"tcp\"", "protocol = \"udp\"")
        .replace("[service.probe]\ntype = \"http\"\ninterval = \"1s\"\n", "");
    assert_eq!(parse(&text).services[0].probe, None);
}

#[test]
fn a_udp_service_may_be_probed_over_tcp() {
    let text = changed("protocol = \"tcp\"", "protocol = \"udp\"");
    let probe = parse(&text).services[0].probe.clone().expect("a probe");
    assert_eq!(probe.port, 80);
}

#[test]
fn both_protocols_are_probed_over_tcp_and_count_twice() {
    let text = changed("protocol = \"tcp\"", "protocol = \"tcp+udp\"")
        .replace("[service.probe]\ntype = \"http\"\ninterval = \"1s\"\n", "");
    let config = parse(&text);
    assert_eq!(config.services[0].protocol, Protocol::TcpUdp);
    assert_eq!(config.services[0].probe, Some(Probe::tcp(80)));
    let limited = |ports| format!("{text}\n[limits]\nports = {ports}\n");
    parse(&limited(4));
    assert!(Config::parse("config.toml", &limited(3)).is_err());
}

#[test]
fn a_client_may_stay_and_flows_be_recorded_always() {
    let text = changed(
        "ports = [80, 443]",
        "ports = [80, 443]\naffinity = \"network\"\ntrack = \"always\"\naffinity_timeout = \"10m\"",
    );
    let service = &parse(&text).services[0];
    assert_eq!(service.track, Track::Always);
    assert_eq!(service.affinity_timeout, Some(Duration::from_secs(600)));
    let quic = changed("protocol = \"tcp\"", "protocol = \"udp\"\ntrack = \"quic\"");
    assert_eq!(parse(&quic).services[0].track, Track::Quic);
}

#[test]
fn type_none_turns_probing_off_and_may_keep_its_other_settings() {
    let text = changed("type = \"http\"", "type = \"none\"\npath = \"/health\"");
    assert_eq!(parse(&text).services[0].probe, None);
    let any = changed("type = \"http\"", "type = \"none\"").replace("[80, 443]", "\"any\"");
    assert_eq!(parse(&any).services[0].ports, Ports::Any);
}

#[test]
fn an_http_probe_has_a_path_a_host_and_a_status() {
    let text = changed(
        "type = \"http\"",
        "type = \"http\"\npath = \"/health?full=1\"\nhost = \"www.example.com:8080\"\nstatus = \"200-204\"\nport = 8080",
    );
    let probe = parse(&text).services[0].probe.clone().expect("a probe");
    assert_eq!(probe.port, 8080);
    let kind = ProbeKind::Http {
        path: "/health?full=1".into(),
        host: Some("www.example.com:8080".into()),
        status: 200..=204,
    };
    assert_eq!(probe.kind, kind);
    let default = ProbeKind::Http {
        path: "/".into(),
        host: None,
        status: 200..=399,
    };
    assert_eq!(
        parse(BASE).services[0].probe.clone().expect("a probe").kind,
        default
    );
}

#[test]
fn the_default_timeout_follows_a_short_interval() {
    let text = changed("interval = \"1s\"", "interval = \"100ms\"");
    let probe = parse(&text).services[0].probe.clone().expect("a probe");
    assert_eq!(probe.timeout, Duration::from_millis(100));
}

#[test]
fn ports_are_sorted_and_merged() {
    let ports = |list: &str| {
        parse(&changed("[80, 443]", list).replace("\"1s\"", "\"1s\"\nport = 80")).services[0]
            .ports
            .clone()
    };
    let expected = Ports::Ranges(vec![80..=83, 443..=443, 8000..=8020]);
    assert_eq!(
        ports("[443, \"8005-8020\", 82, 80, \"8000-8010\", 80, 81, 83]"),
        expected
    );
    assert_eq!(expected.entries(), 4 + 1 + 21);
    assert!(expected.contains(8020) && !expected.contains(8021) && !expected.contains(79));
    assert_eq!(
        ports("[\"65534-65535\", 65535]"),
        Ports::Ranges(vec![65534..=65535])
    );
    let all = ports("[\"1 - 65535\"]");
    assert_eq!(all.entries(), 65_535);
    assert_eq!(ports("\"any\"").entries(), 1);
}

#[test]
fn the_seed_is_two_words_of_sixteen_digits() {
    let text = changed(
        "name = \"lb1\"",
        "name = \"lb1\"\nseed = \"000102030405060708090a0B0C0D0E0F\"",
    );
    let config = parse(&text);
    let expected = [0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f];
    assert_eq!(config.node.seed, Some(expected));
    let shown = serde_json::to_string(&config).expect("a configuration serializes");
    assert!(
        !shown.contains("seed"),
        "a secret must not be shown: {shown}"
    );
}

#[test]
fn http_can_be_off_or_listen_elsewhere() {
    let http = |value: &str| {
        parse(&changed(
            "[[service]]",
            &format!("[control]\nhttp = {value}\n[[service]]"),
        ))
        .control
        .http
    };
    assert_eq!(http("\"off\""), None);
    assert_eq!(
        http("\"[::1]:80\""),
        Some("[::1]:80".parse().expect("an address"))
    );
}

#[test]
fn one_backend_may_serve_several_services() {
    let second = "[[service]]\nname = \"dns\"\nvip = \"192.0.2.10\"\nprotocol = \"udp\"\nports = [80]\n\
                  [[service.backend]]\nname = \"web1\"\naddress = \"192.0.2.21\"\nweight = 0\n\
                  [[service.backend]]\nname = \"other-name\"\naddress = \"192.0.2.22\"\n";
    let config = parse(&format!("{BASE}{second}"));
    assert_eq!(config.services[1].backends[0].weight, 0);
}

#[test]
fn dotted_and_inline_tables_are_the_same_to_us() {
    let text = "node.interfaces = [\"eth0\"]\nnode.name = \"lb1\"\nservice = [{ name = \"web\", vip = \"192.0.2.10\", \
                protocol = \"tcp\", ports = [80, 443], probe = { type = \"http\", interval = \"1s\" }, backend = [\
                { name = \"web1\", address = \"192.0.2.21\", weight = 50 }, { name = \"web2\", address = \"192.0.2.22\" }] }]";
    assert_eq!(parse(text), parse(BASE));
}

#[test]
fn line_ends_and_a_byte_order_mark_do_not_matter() {
    let windows = format!("\u{feff}{}", BASE.replace('\n', "\r\n"));
    assert_eq!(parse(&windows), parse(BASE));
}

#[test]
fn a_node_of_a_cluster() {
    let pick = |more: &str| {
        parse(&changed(
            "name = \"lb1\"",
            &format!(
                "name = \"web2\"\nmode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"\n{more}"
            ),
        ))
    };
    let config = pick("");
    assert_eq!(config.node.mode, Mode::Pick);
    assert_eq!(config.node.peer_port, Some(9478));
    assert_eq!(config.own_address(), Some("192.0.2.22".parse().unwrap()));
    let peers: Vec<_> = config.peers().into_iter().collect();
    assert_eq!(peers, [("web1", "192.0.2.21".parse().unwrap())]);
    assert!(config.is_own(&config.services[0].backends[1]));
    let probe = config.services[0].probe.as_ref().unwrap();
    assert_eq!(probe.via, Via::Address, "the default of this mode");
    // As Windows NLB makes them, from 192.0.2.10.
    let mac = |config: &Config| config.cluster_mac().unwrap();
    assert_eq!(mac(&config), [0x02, 0xbf, 192, 0, 2, 10]);
    assert_eq!(config.cluster_group(), None);
    let multicast = pick("cluster_mac = \"multicast\"\ncluster_ip = \"192.0.2.77\"");
    assert_eq!(mac(&multicast), [0x03, 0xbf, 192, 0, 2, 77]);
    let igmp = pick("cluster_mac = \"igmp\"");
    assert_eq!(igmp.node.cluster_mac, Some(ClusterMac::Igmp));
    assert_eq!(mac(&igmp), [0x01, 0x00, 0x5e, 0x7f, 2, 10]);
    assert_eq!(
        igmp.cluster_group(),
        Some(Ipv4Addr::new(239, 255, 2, 10)),
        "the group whose MAC address that is"
    );

    let forward = parse(BASE);
    assert_eq!(forward.cluster_mac(), None);
    assert_eq!(forward.own_address(), None);
    assert!(forward.peers().is_empty());
}

/// A node has one name and, where there are services of both families, two addresses: it is heard at one of them.
#[test]
fn a_cluster_of_both_families() {
    let of = |six: &str| {
        parse(&format!(
            "{}\n[[service]]\nname = \"six\"\nvip = \"2001:db8::10\"\nprotocol = \"tcp\"\nports = [80]\nbackend = [{six}]\n",
            changed(
                "name = \"lb1\"",
                "name = \"web2\"\nmode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"",
            )
        ))
    };
    let config = of(
        "{ name = \"web1\", address = \"2001:db8::1\" }, { name = \"web2\", address = \"2001:db8::2\" }",
    );
    let address = |text: &str| text.parse().unwrap();
    assert_eq!(config.own_address(), Some(address("192.0.2.22")));
    let peers: Vec<_> = config.peers().into_iter().collect();
    assert_eq!(peers, [("web1", address("192.0.2.21"))]);
    assert!(config.is_own_address(address("192.0.2.22")));
    assert!(config.is_own_address(address("2001:db8::2")));
    assert!(!config.is_own_address(address("2001:db8::1")));

    // A third node has no IPv4 address here.
    let config = of(
        "{ name = \"web1\", address = \"2001:db8::1\" }, { name = \"web2\", address = \"2001:db8::2\" }, \
         { name = \"web3\", address = \"2001:db8::3\" }",
    );
    assert_eq!(config.own_address(), Some(address("2001:db8::2")));
    let peers: Vec<_> = config.peers().into_iter().collect();
    assert_eq!(
        peers,
        [
            ("web1", address("2001:db8::1")),
            ("web3", address("2001:db8::3"))
        ]
    );
}

#[test]
fn port_rules() {
    let rule = |rule: &str| {
        parse(
            &changed(
                "address = \"192.0.2.22\"\n",
                "address = \"192.0.2.22\"\npriority = 2\n",
            )
            .replace(
                "ports = [80, 443]",
                &format!("ports = [80, 443]\nrule = \"{rule}\""),
            ),
        )
        .services[0]
            .rule
    };
    assert_eq!(rule("multiple"), Rule::Multiple);
    assert_eq!(rule("single"), Rule::Single);
    assert_eq!(rule("disabled"), Rule::Disabled);
}
