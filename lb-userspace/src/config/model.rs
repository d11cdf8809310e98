//! What a configuration says, once it is known to be valid.
//!
//! A value of these types that came out of [`Config::parse`](super::Config::parse) has passed every check that
//! needs no host: names are unique, services don't overlap, every number is in its range. `docs/configuration.md`
//! describes each key for the operator. Serialized, a value is a configuration file again (but for the seed, which is
//! a secret), with every default written out.

use std::{
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
    /// The secret hash seed that all directors of a cluster share, as two words: the first 16 hex digits of the
    /// key, then the last 16, each read as one big-endian number. `None`: the controller makes one. It is neither
    /// serialized nor shown by `Debug`: whoever knows it can aim at one backend.
    #[serde(skip)]
    pub seed: Option<[u64; 2]>,
}

impl Node {
    /// The default of `node.pin_path`.
    pub const PIN_PATH: &str = "/sys/fs/bpf/xdp-lb";
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("interfaces", &self.interfaces)
            .field("pin_path", &self.pin_path)
            .field("xdp_mode", &self.xdp_mode)
            .field("unserved", &self.unserved)
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
