//! The configuration file: what it says, and every way it can be wrong.

mod model;

pub use model::{
    Affinity, Backend, Config, Control, Limits, Node, Ports, Probe, ProbeKind, Protocol, Service,
    Unserved, Via, XdpMode,
};
