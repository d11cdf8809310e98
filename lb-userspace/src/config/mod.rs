//! The configuration file: what it says, and every way it can be wrong.
//!
//! [`Config::load`] gives a configuration that holds, or all errors of the file at once. Whether it fits this host
//! is asked afterwards, with [`check_host`], because that needs what only the kernel knows.

mod capacity;
mod check;
mod error;
mod host;
mod load;
mod model;
mod ports;
mod raw;
mod reader;
#[cfg(test)]
pub(crate) mod samples;
mod sections;
mod service;
mod source;
mod syntax;
mod values;

pub use capacity::{
    BACKENDS_MAX, Capacities, FLOWS_MAX, Needs, PORTS_MAX, SERVICES_MAX, SLOTS_MAX, table_slots,
};
pub use error::{ConfigError, ConfigErrors, ErrorKind};
pub use host::{HostFacts, InterfaceFacts, check_host};
pub use load::ConfigFile;
pub use model::{
    Affinity, Backend, ClusterMac, Config, Control, Failback, Limits, Mode, Node, Ports, Probe,
    ProbeKind, Protocol, Rule, Service, Share, Track, Unserved, Via, XdpMode,
};
