//! What a configuration says, once it is known to be valid.
//!
//! A value of these types that came out of [`Config::parse`](super::Config::parse) has passed every check that
//! needs no host: names are unique, services don't overlap, every number is in its range. `docs/configuration.md`
//! describes each key for the operator. Serialized, a value is a configuration file again (but for the seed, which is
//! a secret), with every default written out.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;

/// The whole configuration file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// `[node]`: who this director is and where it attaches.
    pub node: Node,
    /// `[control]`: how the daemon is reached.
    pub control: Control,
    /// `[limits]`: how large the maps are made.
    pub limits: Limits,
    /// `[[service]]`, in the file's order; never empty.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
}

/// `[node]`: who this director is and where it attaches.
#[derive(Clone, PartialEq, Serialize)]
pub struct Node {
    /// This director's name. Default: the host name.
    pub name: String,
    /// The interfaces the clients' packets arrive on; XDP is attached to each. Never empty, no name twice.
    pub interfaces: Vec<String>,
    /// The directory on a bpffs that holds the pinned maps and links.
    pub pin_path: PathBuf,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// What happens to a packet for one of our VIPs on a port that no service has.
    pub unserved: Unserved,
    /// What becomes of a packet once its backend is picked.
    pub mode: Mode,
    /// The kind of MAC address that the nodes of a cluster share; `None` without [`Mode::Pick`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_mac: Option<ClusterMac>,
    /// The address that the cluster's MAC address is made of. `None`: the first service's VIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<IpAddr>,
    /// The UDP port at which the nodes of a cluster hear each other's word; `None` without [`Mode::Pick`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_port: Option<u16>,
    /// The secret hash seed that all directors of a cluster share, as two words: the first 16 hex digits of the
    /// key, then the last 16, each read as one big-endian number. `None`: the controller makes one. It is neither
    /// serialized nor shown by `Debug`: whoever knows it can aim at one backend.
    #[serde(skip)]
    pub seed: Option<[u64; 2]>,
}

impl Node {
    /// The default of `node.pin_path`.
    pub const PIN_PATH: &str = "/sys/fs/bpf/xdp-lb";
    /// The default of `node.peer_port`, next to that of `control.http`.
    pub const PEER_PORT: u16 = 9478;
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("interfaces", &self.interfaces)
            .field("pin_path", &self.pin_path)
            .field("xdp_mode", &self.xdp_mode)
            .field("unserved", &self.unserved)
            .field("mode", &self.mode)
            .field("cluster_mac", &self.cluster_mac)
            .field("cluster_ip", &self.cluster_ip)
            .field("peer_port", &self.peer_port)
            .field("seed", &self.seed.map(|_| "(secret)"))
            .finish()
    }
}

/// How XDP is attached (`node.xdp_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, otherwise generic with a warning.
    #[default]
    Auto,
    /// Native or not at all.
    Native,
    /// Generic (`skb` mode), which every interface can.
    Generic,
}

/// What happens to a packet for one of our VIPs on a port that no service has (`node.unserved`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unserved {
    /// Dropped and counted.
    #[default]
    Drop,
    /// Handed to the host's own network stack.
    Pass,
}

/// What becomes of a packet once its backend is picked (`node.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is sent on to that backend.
    #[default]
    Forward,
    /// Every node sees every packet, and keeps those for which it has picked itself: Windows NLB's way.
    Pick,
}

/// The kind of MAC address that the nodes of a cluster share (`node.cluster_mac`); as Windows NLB makes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterMac {
    /// `02-bf` and the cluster's address: a unicast address that no switch ever learns, so that it floods it.
    #[default]
    Unicast,
    /// `03-bf` and the cluster's address: a multicast address outside of IP's, which switches flood.
    Multicast,
    /// `01-00-5e-7f` and the address's last two bytes: the one of the IP multicast group 239.255.x.y, which every node
    /// joins, so that a switch with IGMP snooping sends it to the nodes alone.
    Igmp,
}

impl ClusterMac {
    /// The MAC address of the cluster with this address.
    ///
    /// IPv6 addresses give their last four bytes: this is xdp-lb's own rule, Windows NLB always has an IPv4 address.
    #[must_use]
    pub fn of(self, cluster: IpAddr) -> [u8; 6] {
        let [a, b, c, d] = match cluster {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [a, b, c, d]
            }
        };
        match self {
            Self::Unicast => [0x02, 0xbf, a, b, c, d],
            Self::Multicast => [0x03, 0xbf, a, b, c, d],
            Self::Igmp => [0x01, 0x00, 0x5e, 0x7f, c, d],
        }
    }

    /// The IP multicast group that the nodes join, where the kind has one.
    #[must_use]
    pub fn group(self, cluster: IpAddr) -> Option<Ipv4Addr> {
        let [.., c, d] = self.of(cluster);
        (self == Self::Igmp).then(|| Ipv4Addr::new(239, 255, c, d))
    }
}

impl Config {
    /// The address that the cluster's MAC address is made of.
    #[must_use]
    pub fn cluster_ip(&self) -> Option<IpAddr> {
        self.node
            .cluster_ip
            .or_else(|| self.services.first().map(|service| service.vip))
    }

    /// The MAC address that the cluster's nodes share; `None` where packets are forwarded.
    #[must_use]
    pub fn cluster_mac(&self) -> Option<[u8; 6]> {
        Some(self.node.cluster_mac?.of(self.cluster_ip()?))
    }

    /// The IP multicast group that this node has to join, where there is one.
    #[must_use]
    pub fn cluster_group(&self) -> Option<Ipv4Addr> {
        self.node.cluster_mac?.group(self.cluster_ip()?)
    }

    /// Whether this backend is this very node: only in [`Mode::Pick`], where the nodes are the backends.
    #[must_use]
    pub fn is_own(&self, backend: &Backend) -> bool {
        self.node.mode == Mode::Pick && backend.name == self.node.name
    }

    /// This node's own address, by which its peers know it; `None` where packets are forwarded.
    #[must_use]
    pub fn own_address(&self) -> Option<IpAddr> {
        self.nodes().get(self.node.name.as_str()).copied()
    }

    /// Whether this is an address of this very node, of whichever family.
    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        self.services
            .iter()
            .flat_map(|service| &service.backends)
            .any(|backend| self.is_own(backend) && backend.address == address)
    }

    /// The other nodes of the cluster by name, with the addresses at which they are told; empty where packets are forwarded.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<&str, IpAddr> {
        let mut nodes = self.nodes();
        nodes.remove(self.node.name.as_str());
        nodes
    }

    /// The nodes of the cluster with their addresses, all of one family: IPv4 where each has such an address.
    fn nodes(&self) -> BTreeMap<&str, IpAddr> {
        if self.node.mode == Mode::Forward {
            return BTreeMap::new();
        }
        let all = || self.services.iter().flat_map(|service| &service.backends);
        let of = |six: bool| -> BTreeMap<&str, IpAddr> {
            all()
                .filter(|backend| backend.address.is_ipv6() == six)
                .map(|backend| (backend.name.as_str(), backend.address))
                .collect()
        };
        let four = of(false);
        if all().all(|backend| four.contains_key(backend.name.as_str())) {
            four
        } else {
            of(true)
        }
    }
}

/// `[control]`: how the daemon is reached and where it keeps what it must remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// The Unix socket the command line talks to.
    pub socket: PathBuf,
    /// Where metrics, API and console are served; `None` if the file says `"off"`.
    #[serde(serialize_with = "address_or_off")]
    pub http: Option<SocketAddr>,
    /// The file that keeps the operator's decisions (drain, disable, weight) across a restart.
    pub state: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(Self::SOCKET),
            http: Some(SocketAddr::V4(Self::HTTP)),
            state: PathBuf::from(Self::STATE),
        }
    }
}

impl Control {
    /// The default of `control.socket`.
    pub const SOCKET: &str = "/run/xdp-lb/control.sock";
    /// The default of `control.http`: loopback only, since it has no authentication.
    pub const HTTP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9477);
    /// The default of `control.state`.
    pub const STATE: &str = "/var/lib/xdp-lb/state.json";
}

/// `[limits]`: how many entries the maps are made for. A map's size is fixed when it is created, so a changed limit
/// takes effect only when the maps are made anew. What the file does not say follows from its content:
/// [`Config::capacities`](super::Config::capacities).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Flows the flow table can hold.
    ///
    /// A flow is recorded only while its slot is in transition, so the table holds the flows of one change and not
    /// all there are. The default of 65,536 covers a million concurrent flows when one of sixteen backends is
    /// drained, for a few MiB of kernel memory.
    pub flows: u32,
    /// The same of IPv6 clients, whose flows are kept apart: their records are twice as large.
    pub flows6: u32,
    /// Slots of all services' tables together, 4 bytes each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Backends of all services together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<u32>,
    /// (VIP, protocol, port) triples of all services together; `ports = "any"` counts as one, a range as many as
    /// it has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<u32>,
    /// Fragmented packets on their way at one time whose later fragments are followed. 0: fragments of packets for a VIP are
    /// dropped.
    pub fragments: u32,
}

impl Limits {
    /// The default of `limits.flows` and of `limits.flows6`.
    pub const FLOWS: u32 = 65_536;
    /// The default of `limits.fragments`: 64 KiB.
    pub const FRAGMENTS: u32 = 4_096;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: Self::FLOWS,
            flows6: Self::FLOWS,
            slots: None,
            backends: None,
            ports: None,
            fragments: Self::FRAGMENTS,
        }
    }
}

/// `[[service]]`: a VIP, a protocol and ports that share one pick.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// Unique among the services.
    pub name: String,
    /// The address clients connect to, IPv4 or IPv6.
    pub vip: IpAddr,
    /// TCP, UDP, or both.
    pub protocol: Protocol,
    /// The ports that share this service's pick.
    pub ports: Ports,
    /// Which part of a packet picks.
    pub affinity: Affinity,
    /// With [`Affinity::Network`], how many leading bits of the source address pick, 1 to the address's length; `None`
    /// with any other affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_prefix: Option<u8>,
    /// The share of the service's packets above which a source is spread by its ports. `None`: none is. Never set with
    /// [`Affinity::None`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread_hot_sources: Option<Share>,
    /// Which of the backends serve.
    pub rule: Rule,
    /// How long a flow may be silent before it counts as ended, 1 s to 8 h.
    #[serde(serialize_with = "as_text")]
    pub flow_idle: Duration,
    /// Which flows are recorded, so that they stay where they are.
    pub track: Track,
    /// For how long a client that is silent keeps its backend across changes, 1 s to 8 h. `None`: connections keep it, clients
    /// do not.
    #[serde(
        serialize_with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub affinity_timeout: Option<Duration>,
    /// What becomes of new flows when a better priority is up again.
    pub failback: Failback,
    /// How the backends are probed. `None`: not at all; a backend counts as up once its MAC address is known.
    #[serde(serialize_with = "probe_or_none")]
    pub probe: Option<Probe>,
    /// The real servers, in the file's order; never empty.
    #[serde(rename = "backend")]
    pub backends: Vec<Backend>,
}

impl Service {
    /// The default of `service.flow_idle`.
    pub const FLOW_IDLE: Duration = Duration::from_secs(15 * 60);
    /// The default of `service.network_prefix` for an IPv4 VIP: Windows NLB's "Class C".
    pub const NETWORK_PREFIX_IPV4: u8 = 24;
    /// The default of `service.network_prefix` for an IPv6 VIP: the least that one site is given (RFC 6177).
    pub const NETWORK_PREFIX_IPV6: u8 = 56;
}

/// A share of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u32);

impl Share {
    /// The whole.
    pub const WHOLE: Self = Self(1_000_000);

    /// 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// As the file has it: `"5%"`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000, self.0 % 10_000);
        if rest == 0 {
            write!(f, "{whole}%")
        } else {
            let rest = format!("{rest:04}");
            write!(f, "{whole}.{}%", rest.trim_end_matches('0'))
        }
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A service's transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "tcp")]
    Tcp,
    /// UDP.
    #[serde(rename = "udp")]
    Udp,
    /// The same ports in both.
    #[serde(rename = "tcp+udp")]
    TcpUdp,
}

impl Protocol {
    /// The transport protocols it means: [`Self::Tcp`], [`Self::Udp`] or both.
    #[must_use]
    pub const fn each(self) -> &'static [Self] {
        match self {
            Self::Tcp => &[Self::Tcp],
            Self::Udp => &[Self::Udp],
            Self::TcpUdp => &[Self::Tcp, Self::Udp],
        }
    }

    /// Whether TCP is one of them.
    #[must_use]
    pub const fn has_tcp(self) -> bool {
        !matches!(self, Self::Udp)
    }

    /// Whether UDP is one of them.
    #[must_use]
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::Tcp)
    }
}

/// Which flows of a service are recorded (`service.track`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Track {
    /// TCP flows while a change is under way; of UDP none, every change is at once.
    #[default]
    Changes,
    /// Every flow, all the time.
    Always,
    /// None: every change is at once, for TCP as well.
    Never,
    /// UDP flows are QUIC's, and recorded while a change is under way, like TCP's.
    Quic,
}

/// A service's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "PortsText")]
pub enum Ports {
    /// All of them.
    Any,
    /// These: sorted, and neighbours or overlaps merged, so that no port occurs twice. Never empty, never port 0.
    Ranges(Vec<RangeInclusive<u16>>),
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Ranges(ranges) => ranges.iter().any(|range| range.contains(&port)),
        }
    }

    /// How many entries they take of [`Limits::ports`]: one for [`Ports::Any`], otherwise one per port.
    #[must_use]
    pub fn entries(&self) -> u32 {
        match self {
            Self::Any => 1,
            Self::Ranges(ranges) => ranges
                .iter()
                .map(|range| u32::from(*range.end()) - u32::from(*range.start()) + 1)
                .sum(),
        }
    }
}

/// [`Ports`] as the file and `--json` write them: `"any"`, or numbers and `"first-last"` texts.
#[derive(Serialize)]
#[serde(untagged)]
enum PortsText {
    Any(&'static str),
    Ranges(Vec<PortText>),
}

#[derive(Serialize)]
#[serde(untagged)]
enum PortText {
    One(u16),
    Range(String),
}

impl From<Ports> for PortsText {
    fn from(ports: Ports) -> Self {
        match ports {
            Ports::Any => Self::Any("any"),
            Ports::Ranges(ranges) => Self::Ranges(
                ranges
                    .into_iter()
                    .map(|range| match range.into_inner() {
                        (first, last) if first == last => PortText::One(first),
                        (first, last) => PortText::Range(format!("{first}-{last}")),
                    })
                    .collect(),
            ),
        }
    }
}

/// Which of a service's backends serve (`service.rule`): the port rules of Windows NLB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// All of the best priority, by weight ("multiple hosts").
    #[default]
    Multiple,
    /// The one of the best priority that is up ("single host"); no two have the same priority.
    Single,
    /// None: every packet is dropped ("disabled").
    Disabled,
}

/// Which part of the packet picks (`service.affinity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// The 5-tuple: every connection picks anew.
    #[default]
    None,
    /// The source address.
    Client,
    /// The source's network: its first [`Service::network_prefix`] bits.
    Network,
}

/// What becomes of new flows when a better priority is up again (`service.failback`). Existing flows stay either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// They go back at once.
    #[default]
    Auto,
    /// They stay where they are until the operator says `xdp-lb failback`.
    Manual,
}

/// `[service.probe]`: one health check, made of each of the service's backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// What is asked, and which answer counts as success.
    #[serde(flatten)]
    pub kind: ProbeKind,
    /// The port that is probed; never 0.
    pub port: u16,
    /// From the start of one probe to the start of the next, 100 ms to 1 h.
    #[serde(serialize_with = "as_text")]
    pub interval: Duration,
    /// How long an answer may take; never longer than `interval`, so that two probes of a backend never overlap.
    #[serde(serialize_with = "as_text")]
    pub timeout: Duration,
    /// Successes in a row that bring a backend up, 1 to 255.
    pub rise: u8,
    /// Failures in a row that take a backend down, 1 to 255.
    pub fall: u8,
    /// Which way the probe takes to the backend.
    pub via: Via,
}

impl Probe {
    /// The default of `probe.interval`.
    pub const INTERVAL: Duration = Duration::from_secs(1);
    /// The default of `probe.timeout`; the interval, where that is shorter.
    pub const TIMEOUT: Duration = Duration::from_millis(500);
    /// The default of `probe.rise`.
    pub const RISE: u8 = 2;
    /// The default of `probe.fall`.
    pub const FALL: u8 = 3;
    /// The default of `probe.status`: success and redirection (RFC 9110, section 15).
    pub const STATUS: RangeInclusive<u16> = 200..=399;

    /// The probe of a TCP service that configures none: a TCP connect to `port` with every default.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self {
            kind: ProbeKind::Tcp,
            port,
            interval: Self::INTERVAL,
            timeout: Self::TIMEOUT,
            rise: Self::RISE,
            fall: Self::FALL,
            via: Via::Vip,
        }
    }
}

/// What a probe asks (`probe.type`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ProbeKind {
    /// A TCP connection is accepted.
    Tcp,
    /// An HTTP/1.1 `GET` is answered with an expected status.
    Http {
        /// The request's target; begins with `/`. Default `/`.
        path: String,
        /// The `Host` header. `None`: the address and port that are probed.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// The status codes that count as success. Default 200 to 399.
        #[serde(serialize_with = "status_text")]
        status: RangeInclusive<u16>,
    },
}

/// Which way a probe takes (`probe.via`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// To the VIP, delivered to the one backend: the way of the clients' packets, so that a backend whose loopback
    /// lacks the VIP is found.
    #[default]
    Vip,
    /// To the backend's own address.
    Address,
}

/// `[[service.backend]]`: one real server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Unique within the service. The same name in several services is the same server, with the same address of each
    /// family.
    pub name: String,
    /// Its own address (not the VIP) of the VIP's family, in a subnet one of the director's interfaces is attached to.
    pub address: IpAddr,
    /// Share among the up backends of the same priority. 0: no new flow, as in a drain.
    pub weight: u32,
    /// 1 is preferred; the next priority serves only when no one here is up.
    pub priority: u32,
}

impl Backend {
    /// The default of `backend.weight`, as Windows NLB's.
    pub const WEIGHT: u32 = 50;
    /// The default of `backend.priority`.
    pub const PRIORITY: u32 = 1;
}

fn as_text<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

fn optional_text<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => as_text(duration, serializer),
        None => serializer.serialize_none(),
    }
}

fn address_or_off<S: serde::Serializer>(
    address: &Option<SocketAddr>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str("off"),
    }
}

fn probe_or_none<S: serde::Serializer>(
    probe: &Option<Probe>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct NoProbe {
        r#type: &'static str,
    }
    match probe {
        Some(probe) => probe.serialize(serializer),
        None => NoProbe { r#type: "none" }.serialize(serializer),
    }
}

fn status_text<S: serde::Serializer>(
    status: &RangeInclusive<u16>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if status.start() == status.end() {
        serializer.serialize_u16(*status.start())
    } else {
        serializer.collect_str(&format_args!("{}-{}", status.start(), status.end()))
    }
}
