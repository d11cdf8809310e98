//! What the daemon and the command line say to each other, and what `--json` prints.
//!
//! One JSON object a line over the control socket: a [`Request`] goes in, a [`Response`] comes back. `status --json` is
//! [`Status`] as it came, so its shape is an interface: fields are added, never renamed.

pub mod client;
pub mod http;
pub mod metrics;
pub mod server;
mod status;

pub use status::{
    ApplyKind, BackendStatus, ClusterStatus, FlowTableStatus, HotSourceStatus, InterfaceStatus,
    LastApply, NodeStatus, PeerStatus, ServiceStatus, Status,
};

use serde::{Deserialize, Serialize};

/// What the command line asks the daemon for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// The state of everything.
    Status,
    /// Whether anybody is there: nothing is done, and no change is the answer.
    Ping,
    /// Planned maintenance: no new flow to the backend, its flows stay.
    Drain {
        /// Which backend.
        backend: Target,
        /// Even where no other backend of a service would be left.
        force: bool,
        /// When the flows that are left are ended.
        #[serde(default)]
        timeout: DrainTimeout,
    },
    /// Takes a drain or a failure back.
    Resume {
        /// Which backend.
        backend: Target,
    },
    /// Emergency: the backend is treated as down now, its flows move.
    Fail {
        /// Which backend.
        backend: Target,
        /// Even where no other backend of a service would be left.
        force: bool,
    },
    /// Another share while running.
    Weight {
        /// Which backend.
        backend: Target,
        /// The new weight; `None` goes back to the configuration's.
        weight: Option<u32>,
        /// Even a weight of 0 where no other backend of a service would be left.
        #[serde(default)]
        force: bool,
    },
    /// New flows of a service with `failback = "manual"` go back to the best priority that is up.
    Failback {
        /// Which service.
        service: String,
    },
    /// Reads the configuration file again and applies it.
    Reload,
}

/// When a drain ends the flows that are left on the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainTimeout {
    /// As an earlier order said; never, if none did.
    #[default]
    AsBefore,
    /// Never: they end by themselves.
    Never,
    /// So much later.
    After {
        /// Milliseconds from the order on.
        ms: u64,
    },
}

/// A backend by its name, in one service or in all that have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The backend's name.
    pub backend: String,
    /// Only in this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To everything that changes something: one line for each change that was made.
    Done {
        /// For people, in the order in which it happened; empty where all was so already.
        changes: Vec<String>,
    },
    /// Nothing was changed.
    Refused {
        /// What was wrong and what to do, for people; may have several lines.
        message: String,
    },
}
