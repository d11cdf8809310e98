//! The map layouts: every map's key, value, capacity and meaning, in one place.
//!
//! All maps are arrays, reached by index without a helper call on the hot path. The controller memory-maps those marked
//! *mapped* (`BPF_F_MMAPABLE`) and changes them with aligned stores. Those marked *direct* are to the kernel arrays of one
//! value, which holds all elements: the program reaches their memory at a fixed address (`BPF_PSEUDO_MAP_VALUE`), without
//! a lookup. Integers are in the processor's own order; the kernel object is built for little-endian machines.
//!
//! | map | index | element | who writes |
//! | --- | --- | --- | --- |
//! | `CONTROL` | 0 | [`Control`] | controller (mapped, direct) |
//! | `SERVICES` | bucket | [`Bucket`] | controller (mapped, direct) |
//! | `SLOTS` | slot / 16 | [`SlotLine`] | controller (mapped, direct) |
//! | `AREAS` | area / 32 | [`AreaLine`] | controller (mapped, direct) |
//! | `BACKENDS` | backend number | [`crate::pick::Backend`] in a [`Word64`] | controller (mapped, direct) |
//! | `PORTS` | port | [`Port`] | controller |
//! | `REDIRECT` | port | the interface's index (`DEVMAP`) | controller |
//! | `FLOWS` | bucket | [`crate::flow::FlowBucket`] | data path, swept by the controller (mapped) |
//! | `FLOWS6` | bucket | [`crate::flow::FlowBucket6`] | likewise, of IPv6 clients |
//! | `FRAGMENTS` | bucket | [`crate::flow::FlowBucket`], see [`crate::fragment`] | likewise |
//! | `HOT` | line | [`HotLine`] | controller (mapped) |
//! | `HOT_INFO` | line * 8 + way | [`HotInfo`] | controller, for people and for the next controller |
//! | `SAMPLES` | processor | [`SampleRing`] | data path (mapped) |
//! | `FENCES` | backend number | [`Fence`] | controller, and the data path where it is fenced (mapped) |
//! | `PRESENCES` | place among this node's services | [`Presence`] | controller (mapped) |
//! | `VIPS` | service id | [`Vip6`] | controller (mapped, direct) |
//! | `COUNTERS` | backend number | [`Counter`] per CPU | data path |
//! | `VERDICTS` | [`crate::verdict::Verdict`] | `u64` per CPU | data path |
//! | `EVENTS` | [`crate::tables::Event`] | `u64` per CPU | data path |
//! | `SERVICE_INFO` | service id | [`ServiceInfo`] | controller, for people and for the next controller |
//! | `BACKEND_INFO` | backend number | [`BackendInfo`] | controller, likewise |

use crate::memory::{Word16, Word32, Word64};

/// Changes whenever the meaning of any byte in any map changes; a controller adopts pins of its own version only.
pub const ABI_VERSION: u32 = 7;

/// First word of a pinned `CONTROL` map: tells our pins from anybody else's.
pub const MAGIC: u32 = 0x7864_706c;

/// The names of the maps in the kernel object, which are also their file names under the pin path.
pub mod map {
    /// One [`super::Control`].
    pub const CONTROL: &str = "CONTROL";
    /// The service lookup: the buckets that [`crate::service::Directory::range`] says are in use.
    pub const SERVICES: &str = "SERVICES";
    /// The lookup tables of all services, each at an offset of its own.
    pub const SLOTS: &str = "SLOTS";
    /// The backend that has all slots of an area: [`super::AREA`] of them, one after the other. 0 where they hold different
    /// things, or are in transition. So small beside `SLOTS` that it is in the processor's caches for far more services.
    pub const AREAS: &str = "AREAS";
    /// MAC address, port and state of each backend.
    pub const BACKENDS: &str = "BACKENDS";
    /// The director's interfaces.
    pub const PORTS: &str = "PORTS";
    /// The same interfaces for `bpf_redirect_map`.
    pub const REDIRECT: &str = "REDIRECT";
    /// The flow table.
    pub const FLOWS: &str = "FLOWS";
    /// The flow table of IPv6 clients.
    pub const FLOWS6: &str = "FLOWS6";
    /// Where the fragments of a packet go.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// The whole addresses of the IPv6 VIPs.
    pub const VIPS: &str = "VIPS";
    /// Packets and bytes of each backend.
    pub const COUNTERS: &str = "COUNTERS";
    /// Packets of each verdict.
    pub const VERDICTS: &str = "VERDICTS";
    /// What the flow table had to do.
    pub const EVENTS: &str = "EVENTS";
    /// Names and settings of the services.
    pub const SERVICE_INFO: &str = "SERVICE_INFO";
    /// Names and states of the backends.
    pub const BACKEND_INFO: &str = "BACKEND_INFO";
    /// The sources that are spread by their ports.
    pub const HOT: &str = "HOT";
    /// Who they are.
    pub const HOT_INFO: &str = "HOT_INFO";
    /// Sources of sampled packets, one ring for each processor.
    pub const SAMPLES: &str = "SAMPLES";
    /// What fences a node of a cluster.
    pub const FENCES: &str = "FENCES";
    /// What this node's data path tells the peers in a cluster.
    pub const PRESENCES: &str = "PRESENCES";
    /// The direct maps, each with the section of the kernel object that stands for it.
    pub const DIRECT: [(&str, &str); 6] = [
        (CONTROL, ".bss.CONTROL"),
        (SERVICES, ".bss.SERVICES"),
        (SLOTS, ".bss.SLOTS"),
        (AREAS, ".bss.AREAS"),
        (BACKENDS, ".bss.BACKENDS"),
        (VIPS, ".bss.VIPS"),
    ];
    /// Every map there is.
    pub const ALL: [&str; 21] = [
        CONTROL,
        SERVICES,
        SLOTS,
        AREAS,
        BACKENDS,
        PORTS,
        REDIRECT,
        FLOWS,
        FLOWS6,
        FRAGMENTS,
        VIPS,
        COUNTERS,
        VERDICTS,
        EVENTS,
        SERVICE_INFO,
        BACKEND_INFO,
        HOT,
        HOT_INFO,
        SAMPLES,
        FENCES,
        PRESENCES,
    ];
}

/// The most bytes of a direct map: the verifier follows no larger offset (`BPF_MAX_VAR_OFF` in
/// `include/linux/bpf_verifier.h`).
pub const MOST_DIRECT_BYTES: u64 = 1 << 29;

/// The names of the programs in the kernel object.
pub mod program {
    /// The XDP program.
    pub const XDP: &str = "xdp_lb";
    /// The tc egress program that aims a probe at one backend.
    pub const PROBE: &str = "probe_egress";
}

/// The names of the read-only globals set at load time.
pub mod global {
    /// `[u64; 5]`: the words of [`crate::pick::Own`], of the interface the program is attached to.
    pub const OWN: &str = "OWN";
    /// `u16`: that interface's port number.
    pub const OWN_PORT: &str = "OWN_PORT";
    /// `u8`: 1 where a packet for an unserved port of a VIP goes to the host instead of being dropped.
    pub const UNSERVED_PASS: &str = "UNSERVED_PASS";
    /// `u8`: log2 of the number of buckets of the flow table.
    pub const FLOW_BITS: &str = "FLOW_BITS";
    /// `u8`: the same of the IPv6 clients' flow table.
    pub const FLOW6_BITS: &str = "FLOW6_BITS";
    /// `u8`: the same of the fragment table.
    pub const FRAGMENT_BITS: &str = "FRAGMENT_BITS";
    /// `u32`: the number of buckets of `SERVICES`, a power of two, less one: what an index is masked with.
    pub const SERVICE_MASK: &str = "SERVICE_MASK";
    /// `u32`: the same of the slots of `SLOTS`.
    pub const SLOT_MASK: &str = "SLOT_MASK";
    /// `u32`: the same of the VIPs of `VIPS`.
    pub const VIP_MASK: &str = "VIP_MASK";
    /// `u32`: [`crate::features::Features`], what the configuration uses.
    pub const FEATURES: &str = "FEATURES";
    /// `u64`: the MAC address of an NLB cluster, as [`crate::wire::mac_word`]; 0 for none.
    pub const CLUSTER_MAC: &str = "CLUSTER_MAC";
}

/// Ways in a [`HotLine`]: 8 bytes each fill a cache line.
pub const HOT_WAYS: usize = 8;
/// Number of lines of `HOT`: four times what all services together may have ([`MAX_HOT`]), so that a line with too many
/// is rare; a power of two.
pub const HOT_LINES: u32 = 256;
/// Most hot sources, all services together.
pub const MAX_HOT: u32 = HOT_LINES * HOT_WAYS as u32 / 4;
/// Samples in a [`SampleRing`]; a power of two.
pub const SAMPLES_IN_RING: u64 = 256;

/// Default number of service buckets, both halves together (64 bytes each).
pub const DEFAULT_SERVICE_BUCKETS: u32 = 1 << 15;
/// Default number of slots, all services together (4 bytes each).
pub const DEFAULT_SLOTS: u32 = 1 << 20;
/// Default number of backend numbers, 0 among them, which names no backend.
pub const DEFAULT_BACKENDS: u32 = 1 << 12;
/// Number of elements of `BACKENDS`: one for each backend number that there could be, so that none has to be compared with
/// how many there are.
pub const BACKEND_NUMBERS: u32 = 1 << 16;
/// Default number of services.
pub const DEFAULT_SERVICES: u32 = 1 << 12;
/// Default number of flow buckets (64 bytes, four flows each).
pub const DEFAULT_FLOW_BUCKETS: u32 = 1 << 15;
/// Default number of buckets of the IPv6 flow table (128 bytes, four flows each).
pub const DEFAULT_FLOW6_BUCKETS: u32 = 1 << 14;
/// Default number of buckets of the fragment table (64 bytes, four packets each): 4,096 fragmented packets on their way.
pub const DEFAULT_FRAGMENT_BUCKETS: u32 = 1 << 10;
/// Number of ports: the director's interfaces, and the VLANs on them.
pub const MAX_PORTS: u32 = 64;

/// `BPF_F_MMAPABLE` of `linux/bpf.h`: userspace may map the array's memory.
pub const MMAPABLE: u32 = 1 << 10;

/// The mark of probes (`SO_MARK`): the upper half says it is one, the lower half names the backend.
pub const PROBE_MARK: u32 = 0x7864_0000;
/// The mark of a probe of the backend with this number.
#[must_use]
pub const fn probe_mark(number: u16) -> u32 {
    PROBE_MARK | number as u32
}
/// The MAC address that a VIP's permanent neighbour entry names on the director, so that a probe gets as far as the
/// egress program: locally administered, the letters "xdplb".
pub const PROBE_MAC: [u8; 6] = [0x02, 0x78, 0x64, 0x70, 0x6c, 0x62];

/// What the whole data path shares: one cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Control {
    /// [`MAGIC`].
    pub magic: Word32,
    /// [`ABI_VERSION`] of whoever made the maps.
    pub abi: Word32,
    /// [`crate::service::Directory`]: how a service's key becomes a bucket, and which half is in use.
    pub directory: Word64,
    /// First half of the secret [`crate::hash::Seed`].
    pub seed0: Word64,
    /// Second half.
    pub seed1: Word64,
    /// Unix time in seconds when the maps were made.
    pub created: Word64,
    /// The generation of the configuration that the maps hold: counts applied changes.
    pub generation: Word64,
    /// [`crate::features::Features`] of the programs that are attached, in the lower 32 bits: what `where` thinks with.
    pub features: Word64,
    /// [`crate::service::NoVip`]: which IPv4 addresses are not looked up.
    pub no_vip: Word64,
}

/// Ways in a bucket: 16 bytes each fill a cache line.
pub const WAYS: usize = 4;

/// One way of a service bucket.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Way {
    /// [`crate::service::ServiceKey`], 0 where empty.
    pub key: Word64,
    /// [`crate::service::ServiceValue`].
    pub value: Word64,
}

/// One cache line of the service lookup.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Bucket {
    /// In no order.
    pub ways: [Way; WAYS],
}

/// Slots in a [`SlotLine`].
pub const SLOTS_IN_LINE: u32 = 16;

/// Slots of an area, see [`map::AREAS`].
pub const AREA: u32 = 32;

/// Areas in an [`AreaLine`].
pub const AREAS_IN_LINE: u32 = 32;

/// Thirty-two areas: one cache line.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct AreaLine {
    /// Each the number of a backend; 0 where the slots have to be looked at.
    pub backends: [Word16; AREAS_IN_LINE as usize],
}

/// Sixteen slots: one cache line. A slot alone would take eight bytes, since the kernel rounds an array's elements up
/// (`array_map_alloc` in `kernel/bpf/arraymap.c`).
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct SlotLine {
    /// Each a [`crate::pick::Slot`].
    pub slots: [Word32; SLOTS_IN_LINE as usize],
}

/// The whole address of an IPv6 VIP.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Vip6 {
    /// Its first eight bytes, host order.
    pub high: Word64,
    /// Its last eight bytes, host order.
    pub low: Word64,
}

/// One cache line of hot sources. A source has one line that it may be in.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct HotLine {
    /// Each a [`crate::hot::HotWord`], in no order.
    pub ways: [Word64; HOT_WAYS],
}

/// Of a backend of a cluster (`mode = "pick"`): how its peers can fence it, and how it can fence a peer. See [`crate::fence`].
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Fence {
    /// Where the backend is this node: the token that fences it; 0 for none.
    pub token: Word64,
    /// The token by which the data path was fenced. It is fenced as long as this is [`Self::token`].
    pub fenced_by: Word64,
    /// Where the backend is a peer: the token that fences that one; 0 where it is not known.
    pub peer_token: Word64,
    /// The number of this backend in that node's own maps.
    pub peer_number: Word64,
}

/// What the data path of a node of a cluster (`mode = "pick"`) tells of one service when a peer asks whether it is there. See
/// [`crate::presence`].
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Presence {
    /// What a question about this node and this service says; 0 where this node has no share of it.
    pub asked: Word64,
    /// When this node made the tokens that fence it, in Unix milliseconds of its own clock.
    pub made_ms: Word64,
    /// A [`crate::presence::Said`].
    pub said: Word64,
    /// A hash of both under the cluster's seed.
    pub tag: Word64,
}

/// The source of one sampled packet.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Sample {
    /// Bits 0-15 the service's id, 16-63 which sample of its processor it is, from 1; 0 while the others are written.
    pub stamp: Word64,
    /// First half of the source, as [`crate::address::Address::mapped`].
    pub high: Word64,
    /// Second half.
    pub low: Word64,
    /// Not used.
    pub reserved: Word64,
}

/// What one processor has sampled: written by it alone.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct SampleRing {
    /// Packets of services that spread hot sources.
    pub packets: Word64,
    /// How many of them were sampled. Sample n is in place n modulo [`SAMPLES_IN_RING`].
    pub taken: Word64,
    /// Not used.
    pub reserved: [Word64; 6],
    /// The last ones.
    pub samples: [Sample; SAMPLES_IN_RING as usize],
}

impl Control {
    /// All zeros: no directory, no VIP.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            magic: Word32::new(0),
            abi: Word32::new(0),
            directory: Word64::new(0),
            seed0: Word64::new(0),
            seed1: Word64::new(0),
            created: Word64::new(0),
            generation: Word64::new(0),
            features: Word64::new(0),
            no_vip: Word64::new(0),
        }
    }
}

impl Vip6 {
    /// No VIP.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            high: Word64::new(0),
            low: Word64::new(0),
        }
    }
}

impl Bucket {
    /// A bucket with nothing in it.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            ways: [const {
                Way {
                    key: Word64::new(0),
                    value: Word64::new(0),
                }
            }; WAYS],
        }
    }
}

impl Default for SampleRing {
    fn default() -> Self {
        Self {
            packets: Word64::default(),
            taken: Word64::default(),
            reserved: Default::default(),
            samples: core::array::from_fn(|_| Sample::default()),
        }
    }
}

/// A hot source as people know it; the data path does not read this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HotInfo {
    /// The source: the address, or the first one of the network, that picks. IPv6, or IPv4 mapped, in network byte order.
    pub source: [u8; 16],
    /// Unix time in milliseconds since when its new flows are picked as they are.
    pub since_ms: u64,
    /// Its share of the service's packets when last measured, in millionths.
    pub share_ppm: u32,
    /// The service's id.
    pub service: u16,
    /// How many bits of the source pick, counted as of its family.
    pub prefix: u8,
    /// 1 where this is a source.
    pub used: u8,
}

/// One of the director's interfaces, or a VLAN on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Port {
    /// The interface's MAC address, as [`crate::wire::mac_word`].
    pub mac: u64,
    /// The interface's index; 0 where there is none. Of a VLAN, the index of the interface it is on.
    pub ifindex: u32,
    /// The VLAN identifier that frames leave with, 1 to 4094; 0 for none.
    pub vlan: u16,
    /// The port of the interface itself: its own number, but of a VLAN the number of the interface it is on.
    pub device: u16,
}

/// What reached one backend, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames, Ethernet header included.
    pub bytes: u64,
}

/// Bytes kept of a name: names of the configuration are at most this long.
pub const NAME_LEN: usize = 64;

/// A service as people know it; the data path does not read this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceInfo {
    /// UTF-8, filled up with zeros; all zeros where there is no service of this id.
    pub name: [u8; NAME_LEN],
    /// The VIP: IPv6, or IPv4 mapped (RFC 4291 section 2.5.5.2), in network byte order.
    pub vip: [u8; 16],
    /// The service's value in the lookup, as [`crate::service::ServiceValue`].
    pub value: u64,
    /// `flow_idle` in milliseconds.
    pub flow_idle_ms: u64,
    /// IP protocol number, or [`PROTO_TCP_UDP`].
    pub protocol: u8,
    /// [`InfoTrack`].
    pub track: u8,
    /// Not used.
    pub reserved: [u8; 2],
    /// `affinity_timeout` in milliseconds; 0 for none.
    pub affinity_timeout_ms: u32,
}

/// In [`ServiceInfo::protocol`]: the service has its ports in TCP and in UDP. The number is reserved (IANA, "Assigned Internet
/// Protocol Numbers"), so it is never a packet's.
pub const PROTO_TCP_UDP: u8 = 255;

/// A service's `track`, for people: what the data path must know of it is in [`crate::service::ServiceValue`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum InfoTrack {
    /// TCP flows stay where they are through a change; UDP goes to the new pick at once.
    #[default]
    Changes = 0,
    /// Every flow is recorded.
    Always = 1,
    /// As `Changes`, and UDP flows are QUIC's.
    Quic = 2,
    /// Every change is at once.
    Never = 3,
}

impl InfoTrack {
    /// Every one, in the order of the numbers.
    pub const ALL: [Self; 4] = [Self::Changes, Self::Always, Self::Quic, Self::Never];

    /// The name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::Always => "always",
            Self::Quic => "quic",
            Self::Never => "never",
        }
    }

    /// The one of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Where a backend is in its life, as the operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BackendState {
    /// Not served: a probe failed, or the MAC address is unknown.
    Down = 0,
    /// Takes new flows.
    Up = 1,
    /// No new flow, the existing ones stay.
    Draining = 2,
    /// Drained: no slot names it any more.
    Drained = 3,
    /// The operator said `fail`.
    Failed = 4,
    /// Removed from the configuration; its existing flows stay until they end.
    Leaving = 5,
}

impl BackendState {
    /// Every state, in the order of the numbers.
    pub const ALL: [Self; 6] = [
        Self::Down,
        Self::Up,
        Self::Draining,
        Self::Drained,
        Self::Failed,
        Self::Leaving,
    ];

    /// The name used on the command line and in `--json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Failed => "failed",
            Self::Leaving => "leaving",
        }
    }

    /// The state of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Bytes kept of a reason.
pub const REASON_LEN: usize = 120;

/// A backend as people know it; the data path does not read this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BackendInfo {
    /// UTF-8, filled up with zeros; all zeros where no backend has this number.
    pub name: [u8; NAME_LEN],
    /// The backend's own address: IPv6, or IPv4 mapped, in network byte order.
    pub address: [u8; 16],
    /// Why it is in its state; UTF-8, cut at a character's end, filled up with zeros.
    pub reason: [u8; REASON_LEN],
    /// Unix time in milliseconds since when it is in its state.
    pub since_ms: u64,
    /// What the counter showed when this backend got its number: counters are never set back.
    pub base_packets: u64,
    /// Likewise, bytes.
    pub base_bytes: u64,
    /// The weight in force.
    pub weight: u32,
    /// The priority.
    pub priority: u32,
    /// The service's id.
    pub service: u16,
    /// [`BackendState`].
    pub state: u8,
    /// Whether the last probes succeeded (1) or not (0), whatever the operator decided: what the next controller starts
    /// from.
    pub healthy: u8,
    /// Not used.
    pub reserved: u32,
}

impl Default for ServiceInfo {
    fn default() -> Self {
        Self {
            name: [0; NAME_LEN],
            vip: [0; 16],
            value: 0,
            flow_idle_ms: 0,
            protocol: 0,
            track: 0,
            reserved: [0; 2],
            affinity_timeout_ms: 0,
        }
    }
}

impl Default for BackendInfo {
    fn default() -> Self {
        Self {
            name: [0; NAME_LEN],
            address: [0; 16],
            reason: [0; REASON_LEN],
            since_ms: 0,
            base_packets: 0,
            base_bytes: 0,
            weight: 0,
            priority: 0,
            service: 0,
            state: 0,
            healthy: 0,
            reserved: 0,
        }
    }
}

/// The text in a field filled up with zeros; what is no UTF-8 is cut off.
#[must_use]
pub fn text(field: &[u8]) -> &str {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let bytes = &field[..end];
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// `text` as a field filled up with zeros, cut at the end of a character where it is too long.
#[must_use]
pub fn text_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let mut end = text.len().min(N);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

// Layouts are a contract with pinned maps: a change must be seen here, and must change ABI_VERSION.
const _: () = {
    assert!(size_of::<Control>() == 64 && align_of::<Control>() == 64);
    assert!(size_of::<Way>() == 16);
    assert!(size_of::<Bucket>() == 64 && align_of::<Bucket>() == 64);
    assert!(size_of::<SlotLine>() == 64 && align_of::<SlotLine>() == 64);
    assert!(size_of::<Port>() == 16 && align_of::<Port>() == 8);
    assert!(size_of::<Vip6>() == 16);
    assert!(size_of::<HotLine>() == 64 && HOT_LINES.is_power_of_two());
    assert!(size_of::<Sample>() == 32 && SAMPLES_IN_RING.is_power_of_two());
    assert!(size_of::<SampleRing>() == 64 + 32 * SAMPLES_IN_RING as usize);
    assert!(size_of::<Fence>() == 32 && size_of::<Presence>() == 32);
    assert!(size_of::<HotInfo>() == 32 && align_of::<HotInfo>() == 8);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<ServiceInfo>() == 64 + 16 + 8 + 8 + 8 && align_of::<ServiceInfo>() == 8);
    assert!(
        size_of::<BackendInfo>() == 64 + 16 + 120 + 24 + 8 + 8 && align_of::<BackendInfo>() == 8
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fields_cut_at_a_character() {
        let field: [u8; 4] = text_field("aüü");
        assert_eq!(text(&field), "aü");
        assert_eq!(text(&text_field::<8>("short")), "short");
        assert_eq!(text(&[b'x', 0xff, 0]), "x");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn tracks_are_dense() {
        for (number, track) in InfoTrack::ALL.iter().enumerate() {
            assert_eq!(*track as usize, number);
        }
        assert_eq!(InfoTrack::from_number(4), None);
    }

    #[test]
    fn states_are_dense() {
        for (number, state) in BackendState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, number);
        }
    }
}
