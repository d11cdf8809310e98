//! Whether new flows go back to a better priority by themselves (`failback`): which services are held on a later one.
//! Pure.

use std::collections::BTreeMap;

use super::{decisions::Held, desired::DesiredService};
use crate::config::{Failback, Service};

/// What `status` says of a service's priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the configuration says.
    pub failback: Failback,
    /// The priority that new flows go to; `None` where nobody takes any.
    pub priority: Option<u32>,
    /// Whether new flows stay there though they would go elsewhere without `failback = "manual"`, now or later.
    pub held: bool,
    /// A better priority that could have them, where they are held.
    pub better: Option<u32>,
}

/// The priority that new flows of `service` stay on. A kept one is void once a backend has another priority than then,
/// and under `failback = "auto"`.
#[must_use]
pub fn held(service: &Service, kept: Option<&Held>) -> Option<u32> {
    kept.filter(|kept| service.failback == Failback::Manual && fits(service, kept))
        .map(|kept| kept.priority)
}

/// Whether every backend that was there then, and still is, has the priority that it had.
fn fits(service: &Service, kept: &Held) -> bool {
    service.backends.iter().all(|backend| {
        kept.priorities
            .get(&backend.name)
            .is_none_or(|then| *then == backend.priority)
    })
}

/// What is kept once `desired` is in force: the priority that new flows have come to, if it is not the preferred one of
/// the configuration.
///
/// While nobody takes new flows, what was held is held on: it is what is left of them.
#[must_use]
pub fn keep(service: &Service, desired: &DesiredService, kept: Option<&Held>) -> Option<Held> {
    if service.failback == Failback::Auto {
        return None;
    }
    let preferred = service.backends.iter().map(|b| b.priority).min();
    match desired.priority() {
        None => kept.filter(|kept| fits(service, kept)).cloned(),
        Some(priority) if Some(priority) > preferred => Some(Held {
            priority,
            priorities: service
                .backends
                .iter()
                .map(|b| (b.name.clone(), b.priority))
                .collect::<BTreeMap<_, _>>(),
        }),
        Some(_) => None,
    }
}

/// How a service stands.
#[must_use]
pub fn standing(service: &Service, desired: &DesiredService) -> Standing {
    let priority = desired.priority();
    let held = priority.is_some() && desired.held == priority;
    Standing {
        failback: service.failback,
        priority,
        held,
        better: desired
            .best_priority()
            .filter(|best| held && Some(*best) < priority),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::BackendState::{self, Down, Draining, Up};

    use super::*;
    use crate::{
        config::ConfigFile,
        control::samples::{backend, service as sample},
    };

    /// Backends of priorities 1, 2, 2 and 3.
    fn configured(failback: &str) -> Service {
        let text = format!(
            r#"
            [node]
            interfaces = ["eth0"]
            [[service]]
            name = "mail"
            vip = "192.0.2.10"
            protocol = "tcp"
            ports = [25]
            failback = "{failback}"
            backend = [
                {{ name = "b0", address = "198.51.100.1" }},
                {{ name = "b1", address = "198.51.100.2", priority = 2 }},
                {{ name = "b2", address = "198.51.100.3", priority = 2 }},
                {{ name = "b3", address = "198.51.100.4", priority = 3 }},
            ]
            "#
        );
        let mut config = ConfigFile::parse("test.toml", &text)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
            .config;
        config.services.remove(0)
    }

    /// One event after the other, as the daemon takes them: which priority is in force after each.
    struct Line {
        service: Service,
        states: [BackendState; 4],
        kept: Option<Held>,
    }

    impl Line {
        fn new(failback: &str) -> Self {
            Self {
                service: configured(failback),
                states: [Up; 4],
                kept: None,
            }
        }

        fn desired(&self) -> DesiredService {
            let backends: Vec<_> = self
                .service
                .backends
                .iter()
                .zip(self.states)
                .map(
                    |(configured, state)| crate::control::desired::DesiredBackend {
                        state,
                        priority: configured.priority,
                        ..backend(&configured.name)
                    },
                )
                .collect();
            DesiredService {
                held: held(&self.service, self.kept.as_ref()),
                ..sample("mail", 10, &backends)
            }
        }

        /// Takes the states in, and gives the priority in force and what `status` says could be better.
        fn with(&mut self, states: [BackendState; 4]) -> (Option<u32>, Option<u32>) {
            self.states = states;
            let desired = self.desired();
            self.kept = keep(&self.service, &desired, self.kept.as_ref());
            // What is kept now gives the same: a second pass finds nothing to do.
            let again = self.desired();
            assert_eq!(again.priority(), desired.priority());
            assert_eq!(
                keep(&self.service, &again, self.kept.as_ref()),
                self.kept,
                "a second time"
            );
            let standing = standing(&self.service, &again);
            assert_eq!(standing.priority, again.priority());
            (standing.priority, standing.better)
        }
    }

    #[test]
    fn new_flows_go_back_by_themselves() {
        let mut line = Line::new("auto");
        assert_eq!(line.with([Down, Up, Up, Up]), (Some(2), None));
        assert_eq!(line.kept, None);
        assert_eq!(line.with([Up; 4]), (Some(1), None));
    }

    #[test]
    fn manual_stays_until_nobody_there_is_up() {
        let mut line = Line::new("manual");
        assert_eq!(line.with([Up; 4]), (Some(1), None));
        assert_eq!(line.with([Down, Up, Up, Up]), (Some(2), None));
        assert_eq!(line.with([Up; 4]), (Some(2), Some(1)));
        assert_eq!(line.with([Up, Draining, Up, Up]), (Some(2), Some(1)));
        // Nobody of priority 2 is left: the best that is up, which is the preferred one, and it is not left for the
        // second when that is back.
        assert_eq!(line.with([Up, Draining, Down, Up]), (Some(1), None));
        assert_eq!(line.with([Up; 4]), (Some(1), None));
        // Down the line, and never up again by itself.
        assert_eq!(line.with([Down, Down, Down, Up]), (Some(3), None));
        assert_eq!(line.with([Down, Up, Down, Up]), (Some(3), Some(2)));
        // While nobody is up at all, what was held is held on.
        assert_eq!(line.with([Down; 4]), (None, None));
        assert_eq!(line.with([Up; 4]), (Some(3), Some(1)));
        // The operator says so.
        line.kept = None;
        assert_eq!(line.with([Up; 4]), (Some(1), None));
    }

    #[test]
    fn other_priorities_in_the_file_begin_with_the_preferred() {
        let mut line = Line::new("manual");
        line.with([Down, Up, Up, Up]);
        assert_eq!(line.with([Up; 4]), (Some(2), Some(1)));
        let before = line.kept.clone();
        // One that comes, and one that goes, is no change of the others' priorities.
        let mut spare = line.service.backends[3].clone();
        spare.name = "b4".into();
        line.service.backends[3] = spare;
        assert_eq!(line.with([Up; 4]), (Some(2), Some(1)));
        line.service.backends[2].priority = 3;
        assert_eq!(line.with([Up; 4]), (Some(1), None));
        assert_eq!(line.kept, None);
        // Nor does anything hold once the file says `auto`.
        line.service = configured("auto");
        line.kept = before;
        assert_eq!(line.with([Up; 4]), (Some(1), None));
        assert_eq!(line.kept, None);
    }
}
