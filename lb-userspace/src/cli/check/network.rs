//! The interfaces the program would be attached to, and the backends behind them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

use super::Check;
use crate::{
    config::{Backend, Config, Node, Via, XdpMode},
    dataplane::attach,
    neighbour::{AttachMode, AttachedXdp, HostFacts, Interface, NetworkEvent, Resolver, Target},
};

/// Drivers with native XDP (those that set `ndo_bpf` in Linux 6.12), by the names that sysfs or rtnetlink give them.
const NATIVE: [&str; 40] = [
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "bond",
    "cpsw",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gvnic",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_core",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "rvu_nicpf",
    "rvu_nicvf",
    "sfc",
    "stmmaceth",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];
/// Widespread drivers and kinds of interfaces without.
const GENERIC_ONLY: [&str; 17] = [
    "be2net",
    "bnx2",
    "bnx2x",
    "bridge",
    "dummy",
    "e1000",
    "e1000e",
    "forcedeth",
    "geneve",
    "gre",
    "ipvlan",
    "macvlan",
    "r8169",
    "team",
    "tg3",
    "vlan",
    "vxlan",
];
/// The largest packet that a driver takes whole into one page, headers and head room aside: most refuse native XDP
/// above that.
const MTU_MAX: u32 = 3_498;
/// How long a backend may take to answer: the kernel asks three times, one second apart, and then gives up.
const RESOLVE: Duration = Duration::from_secs(4);

/// One interface of the configuration.
pub(super) fn interface(interface: &Interface, node: &Node) -> Vec<Check> {
    let link = &interface.link;
    let own = attach::own_program(&node.pin_path, &link.name);
    let mut checks = Vec::new();
    if !link.up {
        checks.push(
            Check::warning(&link.name, "is down").help(format!("`ip link set {} up`", link.name)),
        );
    } else if !link.running {
        checks.push(Check::warning(
            &link.name,
            "is up, but has no carrier: is the cable in?",
        ));
    }
    match link.xdp {
        Some(attached) if own == Some(attached.program) => {
            checks.push(running(&link.name, attached));
        }
        Some(attached) => {
            checks.push(occupied(
                &link.name,
                attached.program,
                &attach::shown_name(attach::program_name(attached.program)),
            ));
        }
        None => {
            checks.push(driver(
                &link.name,
                interface.driver.as_deref(),
                node.xdp_mode,
            ));
            if link.mtu > MTU_MAX && node.xdp_mode != XdpMode::Generic {
                checks.push(
                    Check::warning(&link.name, format!("has an MTU of {}", link.mtu)).help(format!(
                        "most drivers take native XDP only up to about {MTU_MAX}; `xdp_mode = \"auto\"` falls back to generic"
                    )),
                );
            }
        }
    }
    checks
}

fn running(name: &str, attached: AttachedXdp) -> Check {
    let id = attached.program;
    match attached.mode {
        AttachMode::Generic => Check::warning(name, format!("runs xdp-lb already (program {id}), in generic mode"))
            .help("the kernel makes a socket buffer of each packet first, which costs several times the time"),
        _ => Check::ok(name, format!("runs xdp-lb already (program {id}), in native mode")),
    }
}

fn occupied(name: &str, id: u32, program: &str) -> Check {
    Check::error(
        name,
        format!("already has an XDP program: {program} (id {id})"),
    )
    .help(format!(
        "detach it first (`ip link set dev {name} xdp off`), or take {name} out of `interfaces`"
    ))
}

fn driver(name: &str, driver: Option<&str>, mode: XdpMode) -> Check {
    const COST: &str = "generic XDP costs several times the time of each packet; native needs another network card";
    let Some(driver) = driver else {
        return Check::ok(
            name,
            "its driver is not known here: whether it has native XDP is found out at the start",
        );
    };
    let native = NATIVE.contains(&driver);
    match mode {
        XdpMode::Generic if native => {
            Check::warning(name, format!("the driver {driver} has native XDP, which `xdp_mode` forgoes"))
                .help("`xdp_mode = \"auto\"` would use it")
        }
        XdpMode::Generic => {
            Check::ok(name, format!("the driver {driver} runs the program in generic mode, as `xdp_mode` says"))
        }
        _ if driver == "veth" => Check::ok(name, "veth has native XDP")
            .help("what leaves through XDP_TX is dropped unless the other end runs an XDP program as well"),
        _ if native => Check::ok(name, format!("the driver {driver} has native XDP")),
        XdpMode::Native if GENERIC_ONLY.contains(&driver) => {
            Check::error(name, format!("the driver {driver} has no native XDP, which `xdp_mode` demands"))
                .help(format!("`xdp_mode = \"auto\"` falls back to generic; {COST}"))
        }
        XdpMode::Auto if GENERIC_ONLY.contains(&driver) => {
            Check::warning(name, format!("the driver {driver} has no native XDP: generic will be used")).help(COST)
        }
        _ => Check::ok(
            name,
            format!("whether the driver {driver} has native XDP is found out at the start"),
        ),
    }
}

/// The VLANs on an interface, and whether XDP sees their tags; `strips` as of `offload::strips_tags`.
pub(super) fn vlans(
    interface: &Interface,
    facts: &HostFacts,
    strips: Option<bool>,
) -> Option<Check> {
    let name = &interface.link.name;
    let vlans: Vec<String> = facts
        .interfaces
        .iter()
        .filter_map(|other| {
            let vlan = other.link.vlan?;
            (vlan.parent == interface.link.ifindex)
                .then(|| format!("{} (VLAN {})", other.link.name, vlan.id))
        })
        .collect();
    if vlans.is_empty() {
        return None;
    }
    let found = format!("has {}", vlans.join(", "));
    Some(match strips {
        Some(true) => Check::warning(
            name,
            format!("{found}, but the network card takes the tags off before XDP sees the frames"),
        )
        .help(format!(
            "`ethtool -K {name} rxvlan off`, or ARP and ping for a VIP are answered without a tag"
        )),
        Some(false) => Check::ok(name, format!("{found}; XDP sees the tags")),
        None => Check::ok(
            name,
            format!(
                "{found}; whether XDP sees the tags can't be told, see rxvlan in `ethtool -k {name}`"
            ),
        ),
    })
}

/// Services one of whose backends is this host: whether it has the VIP, and how the others are probed.
pub(super) fn own_backends(config: &Config, facts: &HostFacts) -> Vec<Check> {
    let mut checks = Vec::new();
    for service in &config.services {
        let own = |backend: &&Backend| facts.assigned(backend.address).is_some();
        let Some(backend) = service.backends.iter().find(own) else {
            continue;
        };
        let (name, vip) = (&backend.name, service.vip);
        if facts.assigned(vip).is_none() {
            let bits = if vip.is_ipv4() { 32 } else { 128 };
            checks.push(
                Check::warning(
                    name,
                    format!(
                        "is this host, but the VIP {vip} of \"{}\" is not on it",
                        service.name
                    ),
                )
                .help(format!("`ip address add {vip}/{bits} dev lo`")),
            );
            continue;
        }
        let through_vip = service.probe.as_ref().is_some_and(|p| p.via == Via::Vip);
        let deaf = service
            .backends
            .iter()
            .filter(|backend| !own(backend))
            .filter_map(|backend| facts.towards(backend.address))
            .map(|(interface, _)| interface)
            .find(|interface| !interface.takes_own_source);
        match deaf.filter(|_| through_vip && vip.is_ipv4()) {
            Some(interface) => {
                let name = &interface.link.name;
                checks.push(
                    Check::warning(
                        &service.name,
                        format!(
                            "the VIP {vip} is on this host, which therefore drops what other backends answer in its name: \
                             they are probed at their own addresses, and one that lacks the VIP is not noticed"
                        ),
                    )
                    .help(format!(
                        "`sysctl -w net.ipv4.conf.{name}.accept_local=1`, with an rp_filter other than 1, then `xdp-lb reload`"
                    )),
                );
            }
            None => checks.push(Check::ok(
                name,
                format!(
                    "is this host, as a backend of \"{}\", and has the VIP {vip}",
                    service.name
                ),
            )),
        }
    }
    checks
}

/// Which backends answer ARP: only their MAC address makes them reachable.
pub(super) async fn neighbours(config: &Config, facts: &HostFacts, rights: bool) -> Vec<Check> {
    // A backend of several services is one server, and is asked once.
    let mut backends: Vec<(&str, IpAddr)> = config
        .services
        .iter()
        .flat_map(|service| &service.backends)
        .filter(|backend| !config.is_own(backend))
        .map(|backend| (backend.name.as_str(), backend.address))
        .collect();
    backends.sort_unstable();
    backends.dedup();
    let targets: HashMap<IpAddr, Target> = backends
        .iter()
        .filter_map(|(_, address)| {
            // This host needs not be asked for; one in no subnet is among the errors already.
            if facts.assigned(*address).is_some() {
                return None;
            }
            let (interface, _) = facts.towards(*address)?;
            Some((
                *address,
                Target {
                    address: *address,
                    ifindex: interface.link.ifindex,
                },
            ))
        })
        .collect();
    if targets.is_empty() {
        return Vec::new();
    }
    if !rights {
        return vec![Check::warning(
            "backends",
            "whether they answer ARP can't be asked without root",
        )];
    }
    let answers = resolve(targets.values().copied().collect()).await;
    backends
        .into_iter()
        .filter(|(_, address)| targets.contains_key(address))
        .map(|(name, address)| match &answers {
            Ok(answers) => neighbour(name, address, answers.get(&address)),
            Err(error) => Check::warning(name, format!("{address} can't be asked for: {error}")),
        })
        .collect()
}

/// What came of asking: the MAC address, or why there is none.
type Answer = Result<crate::neighbour::Mac, String>;

fn neighbour(name: &str, address: IpAddr, answer: Option<&Answer>) -> Check {
    match answer {
        Some(Ok([a, b, c, d, e, f])) => Check::ok(
            name,
            format!("{address} is at {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        ),
        // It is a warning: the others serve, and it is taken in when it answers.
        Some(Err(reason)) => Check::warning(name, reason.clone())
            .help("is it up, and in the same Ethernet? it will be `down` until it answers"),
        None => Check::warning(
            name,
            format!("{address} has not answered within {} s", RESOLVE.as_secs()),
        ),
    }
}

async fn resolve(
    targets: HashSet<Target>,
) -> Result<HashMap<IpAddr, Answer>, crate::neighbour::NetlinkError> {
    let (sender, mut events) = mpsc::channel(64);
    let resolver = Resolver::start(sender)?;
    let wanted = targets.len();
    resolver.follow(targets);
    let mut answers = HashMap::new();
    let collect = async {
        while answers.len() < wanted {
            let Some(event) = events.recv().await else {
                return;
            };
            if let NetworkEvent::Neighbour(event) = event {
                answers.insert(event.address, event.mac.ok_or(event.reason));
            }
        }
    };
    // Whoever has not answered by then is missing from the answers.
    let _in_time = timeout(RESOLVE, collect).await;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};
    use crate::{
        config::ConfigFile,
        neighbour::{Link, VlanOf},
    };

    fn interface(ifindex: u32, name: &str, addresses: &[&str], vlan: Option<VlanOf>) -> Interface {
        Interface {
            link: Link {
                ifindex,
                name: name.into(),
                mac: None,
                mtu: 1500,
                up: true,
                running: true,
                loopback: name == "lo",
                xdp: None,
                vlan,
            },
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            driver: None,
            takes_own_source: false,
        }
    }

    #[test]
    fn tags_that_xdp_does_not_see_are_told() {
        let vlan = Some(VlanOf { parent: 2, id: 10 });
        let facts = HostFacts {
            interfaces: vec![
                interface(2, "eth0", &[], None),
                interface(3, "eth1", &[], None),
                interface(4, "eth0.10", &[], vlan),
            ],
        };
        let [eth0, eth1, _] = &facts.interfaces[..] else {
            panic!()
        };
        assert_eq!(vlans(eth1, &facts, Some(true)), None, "it has none");
        let stripped = vlans(eth0, &facts, Some(true)).unwrap();
        assert_eq!(stripped.result, Grade::Warning);
        assert!(stripped.message.contains("eth0.10 (VLAN 10)"));
        assert!(
            stripped
                .help
                .unwrap()
                .contains("ethtool -K eth0 rxvlan off")
        );
        assert_eq!(vlans(eth0, &facts, Some(false)).unwrap().result, Grade::Ok);
        assert_eq!(vlans(eth0, &facts, None).unwrap().result, Grade::Ok);
    }

    #[test]
    fn a_director_that_is_a_backend() {
        let config = |via: &str| {
            let text = format!(
                "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\nprotocol = \"tcp\"\n\
                 ports = [80]\nbackend = [{{ name = \"me\", address = \"192.0.2.2\" }}, {{ name = \"b1\", address = \"192.0.2.21\" }}]\n\
                 probe = {{ type = \"tcp\", via = \"{via}\" }}\n"
            );
            ConfigFile::parse("test.toml", &text).unwrap().config
        };
        let mut facts = HostFacts {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8"], None),
                interface(2, "eth0", &["192.0.2.2/24"], None),
            ],
        };
        let told = |via, facts: &HostFacts| {
            let checks = own_backends(&config(via), facts);
            let [check] = &checks[..] else {
                panic!("{checks:?}")
            };
            (check.result, check.help.clone().unwrap_or_default())
        };
        let (result, help) = told("vip", &facts);
        assert_eq!(result, Grade::Warning);
        assert_eq!(help, "`ip address add 192.0.2.10/32 dev lo`");
        facts.interfaces[0]
            .addresses
            .push("192.0.2.10/32".parse().unwrap());
        let (result, help) = told("vip", &facts);
        assert_eq!(result, Grade::Warning);
        assert!(help.contains("net.ipv4.conf.eth0.accept_local=1"), "{help}");
        assert_eq!(told("address", &facts).0, Grade::Ok, "as configured");
        facts.interfaces[1].takes_own_source = true;
        assert_eq!(told("vip", &facts).0, Grade::Ok);
    }

    #[test]
    fn drivers() {
        let cases = [
            (Some("ixgbe"), XdpMode::Auto, Grade::Ok),
            (Some("ixgbe"), XdpMode::Native, Grade::Ok),
            (Some("ixgbe"), XdpMode::Generic, Grade::Warning),
            (Some("e1000e"), XdpMode::Auto, Grade::Warning),
            (Some("e1000e"), XdpMode::Native, Grade::Error),
            (Some("e1000e"), XdpMode::Generic, Grade::Ok),
            (Some("brandnew"), XdpMode::Native, Grade::Ok),
            (None, XdpMode::Auto, Grade::Ok),
        ];
        for (name, mode, grade) in cases {
            assert_eq!(
                driver("eth0", name, mode).result,
                grade,
                "{name:?} {mode:?}"
            );
        }
        assert!(NATIVE.iter().all(|name| !GENERIC_ONLY.contains(name)));
    }

    #[test]
    fn somebody_elses_program_is_named_and_left_alone() {
        let check = occupied("eth0", 42, "xdp_firewall");
        assert_eq!(check.result, Grade::Error);
        assert_eq!(
            check.message,
            "already has an XDP program: xdp_firewall (id 42)"
        );
        assert!(
            check
                .help
                .expect("what to do")
                .contains("ip link set dev eth0 xdp off")
        );
    }

    #[test]
    fn generic_mode_is_told() {
        let attached = |mode| AttachedXdp { mode, program: 7 };
        assert_eq!(
            running("eth0", attached(AttachMode::Native)).result,
            Grade::Ok
        );
        assert_eq!(
            running("eth0", attached(AttachMode::Generic)).result,
            Grade::Warning
        );
    }

    #[test]
    fn backends_that_do_not_answer() {
        let address = IpAddr::from([192, 0, 2, 21]);
        let known = neighbour("b1", address, Some(&Ok([2, 0, 0, 0, 0, 0x1f])));
        assert_eq!(known.message, "192.0.2.21 is at 02:00:00:00:00:1f");
        let failed = neighbour("b1", address, Some(&Err("no answer to ARP".to_owned())));
        assert_eq!(failed.result, Grade::Warning, "the others serve");
        assert_eq!(neighbour("b1", address, None).result, Grade::Warning);
    }
}
