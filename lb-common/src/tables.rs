//! How the data path reaches the maps, whatever holds them.

use crate::abi::{Bucket, Control, Port};
use crate::flow::{FlowBucket, FlowKey};
use crate::pick::{Backend, Slot};
use crate::service::{ServiceKey, ServiceValue};
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
        /// What was looked up.
        key: ServiceKey,
        /// What was found.
        found: Option<ServiceValue>,
    },
    /// The hash of the affinity's part of the packet.
    Hash {
        /// That part: address in the upper half, ports in the lower.
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
    /// In transition: the flow table knows the flow.
    Recorded {
        /// The flow.
        flow: FlowKey,
        /// Its backend.
        backend: u16,
    },
    /// In transition: the flow table knows the flow, but its backend has failed.
    RecordedOnFailed {
        /// The flow.
        flow: FlowKey,
        /// The failed backend.
        backend: u16,
    },
    /// In transition: the flow table does not know the flow, so it is older than the change.
    OlderThanChange {
        /// The flow.
        flow: FlowKey,
    },
    /// In transition: the protocol has no opening packet, and goes to the current backend at once.
    Untracked,
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
    /// A backend's entry.
    fn backend(&self, number: u16) -> Option<Backend>;
    /// One of the director's interfaces.
    fn port(&self, port: u16) -> Option<Port>;
    /// A bucket of the flow table.
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket>;
    /// log2 of the number of flow buckets.
    fn flow_bits(&self) -> u32;
    /// The time in units of [`crate::flow::TICK_NS`], wrapping.
    fn now(&self) -> u16;
    /// The MAC address of the interface the packet came in on, as [`crate::wire::mac_word`].
    fn own_mac(&self) -> u64;
    /// The port number of that interface.
    fn own_port(&self) -> u16;
    /// Whether packets for unserved ports of a VIP go to the host.
    fn unserved_pass(&self) -> bool;

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
