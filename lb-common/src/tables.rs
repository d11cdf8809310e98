//! How the data path reaches the maps, whatever holds them.

use core::net::IpAddr;

use crate::abi::{Bucket, Control, Fence, HotLine, Port, Presence, SampleRing, Vip6};
use crate::address::Ipv6;
use crate::features::Features;
use crate::flow::{self, FlowBucket, FlowBucket6, FlowKey, FlowName, FlowState, Put};
use crate::forward;
use crate::fragment::FragmentKey;
use crate::hot::HotState;
use crate::pick::{Backend, Own, Slot};
use crate::service::ServiceValue;
use crate::verdict::Verdict;

/// What the flow table had to do; one counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// A flow was recorded that was not known.
    FlowRecorded = 0,
    /// A flow that had not ended was replaced, because its buckets were full.
    FlowForgotten = 1,
}

impl Event {
    /// How many there are.
    pub const COUNT: usize = 2;
    /// Every event, in the order of the numbers.
    pub const ALL: [Self; Self::COUNT] = [Self::FlowRecorded, Self::FlowForgotten];

    /// The name used in `--json` and in the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FlowRecorded => "flows_recorded",
            Self::FlowForgotten => "flows_forgotten",
        }
    }
}

/// One step on a packet's way, for whoever wants to explain it. The kernel's tables ignore these, and the compiler
/// removes them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The service lookup.
    Service {
        /// The destination.
        vip: IpAddr,
        /// Its protocol.
        protocol: u8,
        /// The port under which it was found or not; 0 stands for all of them.
        port: u16,
        /// What was found.
        found: Option<ServiceValue>,
    },
    /// The source is hot (`spread_hot_sources`): its new flows are picked by address and ports, or older ones were.
    Hot {
        /// The address, or the first one of the network, that picks.
        source: IpAddr,
        /// How its flows are picked.
        state: HotState,
    },
    /// The source is in transition: what stands for its slot, of the picks of now and of before.
    HotSlot {
        /// The pick of now, and where flows go that are older than the change.
        slot: Slot,
    },
    /// The hash of the affinity's part of the packet.
    Hash {
        /// That part: of IPv4 the address in the upper half and the ports in the lower, of IPv6 a digest.
        source: u64,
        /// Its hash.
        hash: u64,
    },
    /// The slot.
    Slot {
        /// Index in the service's own table.
        index: u32,
        /// Its content.
        slot: Slot,
    },
    /// In transition: the packet opens a flow, which goes to the current backend.
    Opens,
    /// The packet opens a flow that is being opened already: the same attempt, sent again.
    OpensAgain {
        /// The flow.
        flow: FlowName,
        /// Its backend.
        backend: u16,
    },
    /// The packet opens a flow of a client that is known (`affinity_timeout`).
    KnownClient {
        /// The client.
        client: FlowName,
        /// Its backend.
        backend: u16,
    },
    /// The packet opens a flow of a client that may be older than the change (`affinity_timeout`): it stays where it was.
    ClientOlderThanChange {
        /// The client.
        client: FlowName,
    },
    /// Every flow of the service is recorded, and this one is not known: it is new, and goes to the current backend.
    NotRecorded {
        /// The flow.
        flow: FlowName,
    },
    /// In transition: the flow table knows the flow.
    Recorded {
        /// The flow.
        flow: FlowName,
        /// Its backend.
        backend: u16,
    },
    /// In transition: the flow table knows the flow, but its backend has failed.
    RecordedOnFailed {
        /// The flow.
        flow: FlowName,
        /// The failed backend.
        backend: u16,
    },
    /// In transition: the flow table does not know the flow, so it is older than the change.
    OlderThanChange {
        /// The flow.
        flow: FlowName,
    },
    /// In transition: the protocol has no opening packet, and goes to the current backend at once.
    Untracked,
    /// A later fragment, whose first one went this way.
    Fragment {
        /// The backend of the first one.
        backend: u16,
    },
    /// A later fragment whose first one has not been seen, of a protocol whose ports all share one pick.
    FragmentAlone,
    /// The backend is this node, and its peers have fenced it.
    Fenced,
    /// The backend.
    Backend {
        /// Its number.
        number: u16,
        /// Its entry.
        backend: Backend,
    },
}

/// The maps, as the data path sees them. Every index is checked: `None` where the map ends before it.
pub trait Tables {
    /// The word and seeds that all share.
    fn control(&self) -> Option<&Control>;
    /// A bucket of the service lookup.
    fn service_bucket(&self, index: u32) -> Option<&Bucket>;
    /// A slot, counted over all tables.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// The backend that has all slots of an area, where they are settled; 0 otherwise. Counted over all tables: slot /
    /// [`crate::abi::AREA`].
    fn area(&self, index: u32) -> Option<u16>;
    /// A backend's entry; all zeros where nobody has this number.
    fn backend(&self, number: u16) -> Backend;
    /// One of the director's interfaces.
    fn port(&self, port: u16) -> Option<Port>;
    /// A bucket of the flow table.
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket>;
    /// log2 of the number of flow buckets.
    fn flow_bits(&self) -> u32;
    /// A bucket of the IPv6 clients' flow table.
    fn flow6_bucket(&self, index: u32) -> Option<&FlowBucket6>;
    /// log2 of the number of its buckets.
    fn flow6_bits(&self) -> u32;
    /// A bucket of the fragment table.
    fn fragment_bucket(&self, index: u32) -> Option<&FlowBucket>;
    /// log2 of the number of its buckets.
    fn fragment_bits(&self) -> u32;
    /// The IPv6 VIP of a service.
    fn vip(&self, service: u16) -> Option<&Vip6>;
    /// A line of the hot sources.
    fn hot_line(&self, index: u32) -> Option<&HotLine>;
    /// Where this processor writes down the sources of sampled packets.
    fn sample_ring(&self) -> Option<&SampleRing>;
    /// What fences a backend of a cluster.
    fn fence(&self, number: u16) -> Option<&Fence>;
    /// What is told a peer in a cluster that asks, by the service's place among this node's.
    fn presence(&self, place: u16) -> Option<&Presence>;
    /// The time in units of [`crate::flow::TICK_NS`], wrapping.
    fn now(&self) -> u16;
    /// The MAC address of the interface the packet came in on, as [`crate::wire::mac_word`].
    fn own_mac(&self) -> u64;
    /// The port number of that interface.
    fn own_port(&self) -> u16;
    /// What [`Own`] says of both, and of the features.
    #[inline(always)]
    fn own(&self, what: Own) -> u64 {
        what.of(self.own_port(), self.own_mac(), self.features())
    }
    /// Whether packets for unserved ports of a VIP go to the host.
    fn unserved_pass(&self) -> bool;
    /// What the configuration uses.
    fn features(&self) -> Features;
    /// The MAC address of the NLB cluster, as [`crate::wire::mac_word`]; 0 for none.
    fn cluster_mac(&self) -> u64;

    /// Whether a frame with this Ethernet destination is for this host: its interface's MAC address, or its cluster's.
    #[inline(always)]
    fn is_own(&self, eth_destination: u64) -> bool {
        eth_destination == self.own_mac()
            || self.features().has(Features::PICK) && eth_destination == self.cluster_mac()
    }

    /// The first twelve bytes of a frame from here to a backend, as little-endian words, if nothing is in its way: a known MAC
    /// address behind the port that the packet came in on, not failed, not closed.
    #[inline(always)]
    fn head_to(&self, backend: Backend) -> Option<(u64, u32)> {
        if backend.0 >> 48 == self.own(Own::Ready) {
            Some((backend.0 ^ self.own(Own::Key), self.own(Own::Rest) as u32))
        } else {
            None
        }
    }

    /// The MAC address that an answer for a VIP names, as [`crate::wire::mac_word`]. The frame itself still comes from
    /// [`Self::own_mac`], so that a switch never learns at which port the cluster's address is.
    #[inline(always)]
    fn answered_mac(&self) -> u64 {
        if self.features().has(Features::PICK) {
            self.cluster_mac()
        } else {
            self.own_mac()
        }
    }

    /// A flow's record.
    ///
    /// This and the next seven are here so that the kernel's tables can make functions of their own of them, which the
    /// verifier proves once instead of once for every way that leads there.
    #[inline(always)]
    fn find_flow4(&self, key: FlowKey<u32>, hash: u64) -> FlowState
    where
        Self: Sized,
    {
        flow::find_in_table(self, key, hash)
    }

    /// Records a flow.
    #[inline(always)]
    fn put_flow4(&self, key: FlowKey<u32>, hash: u64, state: FlowState) -> Put
    where
        Self: Sized,
    {
        flow::put_into_table(self, key, hash, state)
    }

    /// The record of an IPv6 client's flow.
    #[inline(always)]
    fn find_flow6(&self, key: FlowKey<Ipv6>, hash: u64) -> FlowState
    where
        Self: Sized,
    {
        flow::find_in_table(self, key, hash)
    }

    /// Records it.
    #[inline(always)]
    fn put_flow6(&self, key: FlowKey<Ipv6>, hash: u64, state: FlowState) -> Put
    where
        Self: Sized,
    {
        flow::put_into_table(self, key, hash, state)
    }

    /// The record of a packet's fragments.
    #[inline(always)]
    fn find_fragment(&self, key: FragmentKey, hash: u64) -> FlowState
    where
        Self: Sized,
    {
        flow::find_in_table(self, key, hash)
    }

    /// Records them.
    #[inline(always)]
    fn put_fragment(&self, key: FragmentKey, hash: u64, state: FlowState) -> Put
    where
        Self: Sized,
    {
        flow::put_into_table(self, key, hash, state)
    }

    /// The place of an IPv4 client's flow whose source may be hot.
    #[inline(always)]
    fn place4(&self, service: ServiceValue, client: u32, ports: u32) -> u64
    where
        Self: Sized,
    {
        forward::place_of_any(self, service, client, ports)
    }

    /// The place of an IPv6 client's flow whose source may be hot.
    #[inline(always)]
    fn place6(&self, service: ServiceValue, client: Ipv6, ports: u32) -> u64
    where
        Self: Sized,
    {
        forward::place_of_any(self, service, client, ports)
    }

    /// The same word, which the compiler must take for another one. Otherwise it may compute something of an address before
    /// it is known which kind of packet it is, on a register that holds a pointer then; the verifier does not take that.
    #[inline(always)]
    fn held(&self, word: u64) -> u64 {
        word
    }

    /// Counts a packet of `bytes` bytes that goes to `backend`.
    fn count_backend(&self, backend: u16, bytes: u64);
    /// Counts a verdict.
    fn count_verdict(&self, verdict: Verdict);
    /// Counts an event.
    fn count_event(&self, event: Event);

    /// Whether flows may be recorded: `false` where a packet is only thought of, as in `where`.
    #[inline(always)]
    fn records(&self) -> bool {
        true
    }

    /// Takes note of a step.
    #[inline(always)]
    fn note(&self, _step: Step) {}
}
