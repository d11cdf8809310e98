//! What `xdp-lb status --json` says, as far as tests and the demo ask.

use serde::Deserialize;

/// The documented part of `status --json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Status {
    /// The services, in the configuration's order.
    pub services: Vec<ServiceStatus>,
    /// Packets per verdict.
    #[serde(default)]
    pub verdicts: std::collections::BTreeMap<String, u64>,
}

/// One service of the status.
#[derive(Clone, Debug, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its backends, in the configuration's order.
    pub backends: Vec<BackendStatus>,
}

/// One backend of the status.
#[derive(Clone, Debug, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `draining`, `drained` or `failed`.
    pub state: String,
    /// Why, where there is a reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// Packets sent to it.
    #[serde(default)]
    pub packets: u64,
    /// Tracked flows on it.
    #[serde(default)]
    pub flows: u64,
}

impl Status {
    /// Every backend of every service.
    pub fn backends(&self) -> impl Iterator<Item = &BackendStatus> {
        self.services.iter().flat_map(|service| &service.backends)
    }

    /// The first backend of that name.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&BackendStatus> {
        self.backends().find(|backend| backend.name == name)
    }

    /// The backends with their states and reasons on one line, for messages.
    #[must_use]
    pub fn summary(&self) -> String {
        self.backends()
            .map(|backend| match &backend.reason {
                Some(reason) => format!("{} {} ({reason})", backend.name, backend.state),
                None => format!("{} {}", backend.name, backend.state),
            })
            .collect::<Vec<_>>()
            .join(", ")
    }
}
