//! Questions to `xdp-lb status --json` that the tests and the demo ask.

use lb_userspace::api::{BackendStatus, Status};

/// Looks into a status across its services.
pub trait StatusExt {
    /// Every backend of every service.
    fn backends(&self) -> impl Iterator<Item = &BackendStatus>;

    /// The first backend of that name.
    fn backend(&self, name: &str) -> Option<&BackendStatus>;

    /// Whether there are backends and all of them are up.
    fn all_up(&self) -> bool;

    /// The backends with their states and reasons on one line, for messages.
    fn summary(&self) -> String;
}

impl StatusExt for Status {
    fn backends(&self) -> impl Iterator<Item = &BackendStatus> {
        self.services.iter().flat_map(|service| &service.backends)
    }

    fn backend(&self, name: &str) -> Option<&BackendStatus> {
        self.backends().find(|backend| backend.name == name)
    }

    fn all_up(&self) -> bool {
        self.backends().count() > 0 && self.backends().all(|backend| backend.state == "up")
    }

    fn summary(&self) -> String {
        self.backends()
            .map(|backend| format!("{} {} ({})", backend.name, backend.state, backend.reason))
            .collect::<Vec<_>>()
            .join(", ")
    }
}
