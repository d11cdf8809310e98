//! The file as read, value by value: what was wrong is `None`, what was right keeps its place for the checks that
//! compare one setting with another.

use std::{net::IpAddr, ops::Range};

use toml::{Spanned, de::DeTable};

use super::{
    capacity::{BACKENDS_MAX, FLOWS_MAX, PORTS_MAX, SLOTS_MAX},
    error::{ConfigError, ErrorKind, visible},
    model::{
        Affinity, Backend, ClusterMac, Control, Failback, Limits, Mode, Node, Ports, Probe,
        Protocol, Rule, Share, Track, Unserved, XdpMode,
    },
    reader::{Field, Fields, Sink},
    sections, service, values,
};

/// The longest path of a Unix socket: `sun_path` in unix(7), less the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// The whole file.
#[derive(Debug)]
pub(super) struct RawConfig {
    pub(super) node: Option<RawNode>,
    pub(super) control: Option<Control>,
    pub(super) limits: Option<RawLimits>,
    pub(super) services: Vec<RawService>,
}

/// `[node]`.
#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) node: Option<Node>,
    pub(super) interfaces: Vec<Spanned<String>>,
    /// Where it stands, for what is compared with the rest of the file.
    pub(super) places: NodePlaces,
}

/// Where in the file the node's settings stand; the table's header where one is left out.
#[derive(Debug)]
pub(super) struct NodePlaces {
    pub(super) name: Range<usize>,
    pub(super) mode: Range<usize>,
    pub(super) unserved: Range<usize>,
    /// Of the keys that only mean something in a cluster: those that are there.
    pub(super) cluster: Vec<(&'static str, Range<usize>)>,
}

/// Where in the file a service's settings stand that a cluster can't have, where they are there.
#[derive(Debug)]
pub(super) struct ServicePlaces {
    pub(super) failback: Option<Range<usize>>,
    pub(super) track: Option<Range<usize>>,
    pub(super) affinity_timeout: Option<Range<usize>>,
    pub(super) via: Option<Range<usize>>,
}

/// `[limits]`, and where the limits stand that are compared with the rest of the file.
#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) limits: Limits,
    pub(super) slots: Option<Range<usize>>,
    pub(super) backends: Option<Range<usize>>,
    pub(super) ports: Option<Range<usize>>,
}

/// `[[service]]`.
#[derive(Debug)]
pub(super) struct RawService {
    pub(super) span: Range<usize>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) vip: Option<Spanned<IpAddr>>,
    pub(super) protocol: Option<Protocol>,
    pub(super) ports: Option<Spanned<Ports>>,
    pub(super) affinity: Option<Affinity>,
    pub(super) network_prefix: Option<Option<u8>>,
    pub(super) spread_hot_sources: Option<Option<Spanned<Share>>>,
    pub(super) rule: Option<Spanned<Rule>>,
    pub(super) flow_idle: Option<std::time::Duration>,
    pub(super) track: Option<Track>,
    pub(super) affinity_timeout: Option<Option<std::time::Duration>>,
    pub(super) failback: Option<Failback>,
    pub(super) probe: Option<Option<Probe>>,
    /// Where it stands, for what is compared with the rest of the file.
    pub(super) places: ServicePlaces,
    pub(super) backends: Vec<RawBackend>,
}

/// `[[service.backend]]`.
#[derive(Debug)]
pub(super) struct RawBackend {
    pub(super) span: Range<usize>,
    pub(super) name: Option<Spanned<String>>,
    pub(super) address: Option<Spanned<IpAddr>>,
    pub(super) weight: Option<u32>,
    pub(super) priority: Option<u32>,
}

impl RawBackend {
    /// The backend, if everything in it was right.
    pub(super) fn finish(self) -> Option<Backend> {
        Some(Backend {
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            weight: self.weight?,
            priority: self.priority?,
        })
    }
}

/// Reads the whole document.
pub(super) fn read(document: &DeTable<'_>, sink: &Sink) -> RawConfig {
    let root = Fields::of(&sections::ROOT, document, 0..0, sink);
    let node = root
        .require("node", "[node]", sink)
        .and_then(|field| read_node(&field, sink));
    let control = root.read_or("control", Control::default(), |field| {
        read_control(field, sink)
    });
    let limits = match root.get("limits") {
        Some(field) => read_limits(&field, sink),
        None => Some(RawLimits {
            limits: Limits::default(),
            slots: None,
            backends: None,
            ports: None,
        }),
    };
    let services = root.tables(&sections::SERVICE, sink).unwrap_or_default();
    let mode = node
        .as_ref()
        .and_then(|node| node.node.as_ref())
        .map_or(Mode::Forward, |node| node.mode);
    RawConfig {
        node,
        control,
        limits,
        services: services
            .iter()
            .map(|fields| service::read(fields, mode, sink))
            .collect(),
    }
}

fn read_node(field: &Field<'_, '_>, sink: &Sink) -> Option<RawNode> {
    let fields = Fields::open(&sections::NODE, field.value, field.span.clone(), sink)?;
    let name = match fields.get("name") {
        Some(field) => values::name(&field, sink),
        None => host_name(&fields, sink),
    };
    let interfaces = fields
        .require("interfaces", "interfaces = [\"eth0\"]", sink)
        .and_then(|field| read_interfaces(&field, sink));
    let pin_path = fields.read_or("pin_path", Node::PIN_PATH.into(), |field| {
        values::path(field, None, sink)
    });
    let xdp_mode = fields.read_or("xdp_mode", XdpMode::default(), |field| {
        let modes = [
            ("auto", XdpMode::Auto),
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
        ];
        values::choice(field, &modes, sink)
    });
    let unserved = fields.read_or("unserved", Unserved::default(), |field| {
        values::choice(
            field,
            &[("drop", Unserved::Drop), ("pass", Unserved::Pass)],
            sink,
        )
    });
    let mode = fields.read_or("mode", Mode::default(), |field| {
        values::choice(
            field,
            &[("forward", Mode::Forward), ("pick", Mode::Pick)],
            sink,
        )
    });
    let cluster_mac = fields.read_or("cluster_mac", ClusterMac::default(), |field| {
        let kinds = [
            ("unicast", ClusterMac::Unicast),
            ("multicast", ClusterMac::Multicast),
            ("igmp", ClusterMac::Igmp),
        ];
        values::choice(field, &kinds, sink)
    });
    let cluster_ip = fields.read_or("cluster_ip", None, |field| {
        values::address(field, sink).map(Some)
    });
    let peer_port = fields.read_or("peer_port", Node::PEER_PORT, |field| {
        values::number_u16(field, 1..=u16::MAX, sink)
    });
    let place = |key| fields.get(key).map(|field| field.span);
    let places = NodePlaces {
        name: place("name").unwrap_or_else(|| fields.span()),
        mode: place("mode").unwrap_or_else(|| fields.span()),
        unserved: place("unserved").unwrap_or_else(|| fields.span()),
        cluster: ["cluster_mac", "cluster_ip", "peer_port"]
            .into_iter()
            .filter_map(|key| Some((key, fields.get(key)?.key_span)))
            .collect(),
    };
    let seed = fields.read_or("seed", None, |field| values::seed(field, sink).map(Some));
    let names = interfaces
        .iter()
        .flatten()
        .map(|name| name.get_ref().clone())
        .collect();
    let node = || {
        Some(Node {
            name: name?,
            interfaces: names,
            pin_path: pin_path?,
            xdp_mode: xdp_mode?,
            unserved: unserved?,
            mode: mode?,
            cluster_mac: (mode? == Mode::Pick).then_some(cluster_mac?),
            cluster_ip: cluster_ip?,
            peer_port: (mode? == Mode::Pick).then_some(peer_port?),
            seed: seed?,
        })
    };
    Some(RawNode {
        node: node(),
        interfaces: interfaces.unwrap_or_default(),
        places,
    })
}

fn host_name(fields: &Fields<'_, '_>, sink: &Sink) -> Option<String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    if !values::is_name(&name) {
        sink.push(
            ConfigError::new(
                ErrorKind::MissingKey,
                format!(
                    "missing key `name` in [node], and the host name can't stand in for it: found \"{}\"",
                    visible(&name)
                ),
            )
            .at(fields.span())
            .expected(format!("a name of {}", values::NAME_RULE))
            .help("add `name = \"lb1\"`"),
        );
        return None;
    }
    Some(name.into_owned())
}

fn read_interfaces(field: &Field<'_, '_>, sink: &Sink) -> Option<Vec<Spanned<String>>> {
    let expected = "a list of interface names, as [\"eth0\"]";
    let toml::de::DeValue::Array(entries) = field.value else {
        let mut error = field.wrong_type(expected);
        if let toml::de::DeValue::String(name) = field.value {
            error = error.help(format!("write a list: [\"{}\"]", visible(name)));
        }
        sink.push(error);
        return None;
    };
    if entries.is_empty() {
        let error = field
            .error(ErrorKind::BadValue, "is empty")
            .expected(expected);
        sink.push(error.help("name each interface on which the clients' packets arrive"));
        return None;
    }
    let names: Vec<_> = entries
        .iter()
        .map(|entry| {
            let field = Field {
                key: field.key,
                value: entry.get_ref(),
                span: entry.span(),
                key_span: field.key_span.clone(),
            };
            values::interface(&field, sink).map(|name| Spanned::new(entry.span(), name))
        })
        .collect();
    names.into_iter().collect()
}

fn read_control(field: &Field<'_, '_>, sink: &Sink) -> Option<Control> {
    let fields = Fields::open(&sections::CONTROL, field.value, field.span.clone(), sink)?;
    let default = Control::default();
    let socket = fields.read_or("socket", default.socket, |field| {
        values::path(field, Some(SOCKET_PATH_MAX), sink)
    });
    let http = fields.read_or("http", default.http, |field| values::listen(field, sink));
    let state = fields.read_or("state", default.state, |field| {
        values::path(field, None, sink)
    });
    Some(Control {
        socket: socket?,
        http: http?,
        state: state?,
    })
}

fn read_limits(field: &Field<'_, '_>, sink: &Sink) -> Option<RawLimits> {
    let fields = Fields::open(&sections::LIMITS, field.value, field.span.clone(), sink)?;
    let default = Limits::default();
    let read = |key, range| {
        fields.read_or(key, None, |field| {
            values::number(field, range, sink).map(Some)
        })
    };
    let flows = fields.read_or("flows", default.flows, |field| {
        values::number(field, 1_024..=FLOWS_MAX, sink)
    });
    // An IPv6 record is twice as large as an IPv4 one.
    let flows6 = fields.read_or("flows6", default.flows6, |field| {
        values::number(field, 1_024..=FLOWS_MAX / 2, sink)
    });
    let slots = read("slots", 1_024..=SLOTS_MAX);
    let backends = read("backends", 1..=BACKENDS_MAX);
    let ports = read("ports", 1..=PORTS_MAX);
    let fragments = fields.read_or("fragments", default.fragments, |field| {
        values::number(field, 0..=1 << 20, sink)
    });
    Some(RawLimits {
        limits: Limits {
            flows: flows?,
            flows6: flows6?,
            slots: slots?,
            backends: backends?,
            ports: ports?,
            fragments: fragments?,
        },
        slots: fields.get("slots").map(|field| field.span),
        backends: fields.get("backends").map(|field| field.span),
        ports: fields.get("ports").map(|field| field.span),
    })
}
