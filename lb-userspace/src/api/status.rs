//! The shape of `status --json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of everything, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The director.
    pub node: NodeStatus,
    /// In the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// Packets of each verdict since the maps were made; every packet has exactly one.
    pub verdicts: BTreeMap<String, u64>,
    /// What the flow table had to do since the maps were made.
    pub events: BTreeMap<String, u64>,
    /// How full the flow table is.
    pub flow_table: FlowTableStatus,
}

impl Status {
    /// How many places of memory it has, or a few more.
    pub(crate) fn places(&self) -> usize {
        let backends = self.services.iter().map(|service| service.backends.len());
        2 * backends.sum::<usize>() + 8 * self.services.len()
    }
}

/// The director.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// The version of the daemon.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When the daemon started, RFC 3339.
    pub started: String,
    /// Where maps and links are pinned.
    pub pin_path: String,
    /// The configuration file in force.
    pub config: String,
    /// The version of the map layouts.
    pub abi: u32,
    /// The features that the attached program knows: what the configuration uses of the data path.
    #[serde(default)]
    pub features: Vec<String>,
    /// Counts the applied changes.
    pub generation: u64,
    /// The interfaces the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// The last change that was applied to the maps, if there was one since the daemon started.
    pub last_apply: Option<LastApply>,
    /// The cluster that this node is of (`mode = "pick"`); `None` where packets are forwarded.
    #[serde(default)]
    pub cluster: Option<ClusterStatus>,
}

/// A cluster whose nodes all see every packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The MAC address that all nodes share.
    pub mac: String,
    /// The IP multicast group that the nodes have joined, where there is one.
    pub group: Option<String>,
    /// The other nodes, by name.
    pub peers: Vec<PeerStatus>,
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// Whether its daemon is heard.
    pub heard: bool,
    /// Whether it goes by the same tables as this node for all their services. While a node that serves does not, what
    /// it has stays its own.
    pub agrees: bool,
    /// Whether its file says something else of the nodes of any of them. Until that is over, tables stay as they are by the file
    /// before.
    #[serde(default)]
    pub has_another_file: bool,
}

/// What the last change of the maps took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastApply {
    /// When, RFC 3339.
    pub at: String,
    /// Why: what changed.
    pub cause: String,
    /// What sort of change it was.
    pub kind: ApplyKind,
    /// From the cause to the last store, in microseconds; for a probe, from its verdict.
    pub duration_us: u64,
    /// Stores into what the data path reads: slots, areas, entries of backends, swaps of the lookup.
    pub operations: u64,
    /// How many slots were rewritten.
    pub slots: u64,
}

/// What sort of change of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyKind {
    /// The daemon's start, and the first answers after it.
    Start,
    /// Backends failed: their flows moved, and nothing else was considered.
    Failure,
    /// Another result of a probe.
    Probe,
    /// Another change of a neighbour.
    Neighbour,
    /// An order of the operator.
    Order,
    /// A reload.
    Reload,
    /// The director's own addresses or interfaces.
    Host,
}

/// An interface the program is attached to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: String,
    /// `native` or `generic`.
    pub mode: String,
    /// The kernel's id of the attached program.
    pub program_id: u32,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its virtual address.
    pub vip: String,
    /// `tcp`, `udp` or `tcp+udp`.
    pub protocol: String,
    /// Ports and ranges (`"8000-8010"`), or `["any"]`.
    pub ports: Vec<String>,
    /// `none`, `client` or `network`.
    pub affinity: String,
    /// The share of its packets above which a source is spread by its ports, 0 to 1. `None`: none is.
    pub spread_hot_sources: Option<f64>,
    /// The sources that are spread, or were until lately; the largest share first.
    pub hot_sources: Vec<HotSourceStatus>,
    /// After how many seconds of silence a flow counts as ended.
    pub flow_idle_s: f64,
    /// `changes`, `always`, `never` or `quic`: which flows are recorded.
    #[serde(default)]
    pub track: String,
    /// For how many seconds a silent client keeps its backend across changes; `None`: clients are not recorded.
    #[serde(default)]
    pub affinity_timeout_s: Option<f64>,
    /// Slots of its lookup table.
    pub slots: u64,
    /// How many of them are in transition.
    pub slots_in_transition: u64,
    /// `auto` or `manual`: whether new flows go back by themselves when a better priority is up again.
    #[serde(default)]
    pub failback: String,
    /// The priority that new flows go to; `None` where nobody takes any.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Whether they are held there by `failback = "manual"`: it is not the preferred priority of the configuration.
    #[serde(default)]
    pub held: bool,
    /// The better priority that is up, where they are held: `xdp-lb failback` lets them go there.
    #[serde(default)]
    pub better_priority: Option<u32>,
    /// In the order of the configuration; those that are leaving come last.
    pub backends: Vec<BackendStatus>,
}

/// A source that sends more than its share of a service's packets, or did until lately.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotSourceStatus {
    /// The address, or the network (`"203.0.113.0/24"`) where the service's affinity is `network`.
    pub source: String,
    /// Its share of the service's packets when last measured, 0 to 1.
    pub share: f64,
    /// Since when its new flows are picked as they are; RFC 3339.
    pub since: String,
    /// `spreading` (new flows are spread, older ones stay where they are), `spread`, or `returning` (new flows go by the
    /// affinity again, older ones stay where they are).
    pub state: String,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// Its MAC address, if it is known.
    pub mac: Option<String>,
    /// Its number in the maps.
    pub number: u16,
    /// `up`, `down`, `draining`, `drained`, `failed` or `leaving`.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The weight in force.
    pub weight: u32,
    /// The priority.
    pub priority: u32,
    /// Slots whose current backend it is.
    pub slots: u64,
    /// Slots in transition whose previous backend it is.
    pub previous_slots: u64,
    /// Packets sent to it since it has its number.
    pub packets: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Recorded flows on it that have not ended.
    pub flows: u64,
    /// Until when flows may still exist that were silent all the while and so are not counted; RFC 3339. `None` where
    /// there can be none.
    pub silent_until: Option<String>,
    /// When the drain ends the flows that are left (`drain --timeout`), RFC 3339; `None` where it does not.
    #[serde(default)]
    pub drain_until: Option<String>,
    /// How many flows were left and ended when the drain's time was up; `None` where it was not.
    #[serde(default)]
    pub flows_ended: Option<u64>,
}

/// How full the flow table is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowTableStatus {
    /// Flows recorded now.
    pub used: u64,
    /// Ways there are.
    pub capacity: u64,
}
