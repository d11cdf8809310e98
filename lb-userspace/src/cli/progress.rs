//! How far a drain has come: a pure reading of one status after the other.

use std::time::Duration;

use crate::api::{BackendStatus, Status, Target};

/// What the last status says of a drain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Flows remain, or silent ones may.
    Waiting(Remaining),
    /// No flow is left anywhere.
    Drained {
        /// How many flows were left when the time was up, and ended; `None` where they all ended by themselves.
        ended: Option<u64>,
    },
    /// The drain is over for another reason, which the text says.
    Over(String),
}

/// What remains.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Remaining {
    /// Recorded flows that have not ended.
    pub(crate) flows: u64,
    /// The most there were.
    pub(crate) most: u64,
    /// Packets per second to the backend; `None` until there are two looks.
    pub(crate) rate: Option<f64>,
    /// Until when silent flows may exist, RFC 3339; the latest of all services.
    pub(crate) silent_until: Option<String>,
    /// When what is left is ended, RFC 3339; the latest of all services, and only where each has such a time.
    pub(crate) drain_until: Option<String>,
    /// `service/backend` of each that is not drained.
    pub(crate) names: Vec<String>,
}

/// The latest of several times in RFC 3339.
fn latest<'t>(times: impl Iterator<Item = &'t str>) -> Option<String> {
    times
        .max_by_key(|time| time.parse::<jiff::Timestamp>().ok())
        .map(str::to_owned)
}

/// Follows one drain.
#[derive(Debug)]
pub(crate) struct Progress {
    target: Target,
    most: u64,
    last: Option<(Duration, u64)>,
}

impl Progress {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            target,
            most: 0,
            last: None,
        }
    }

    /// Reads a status that was asked for `at`, counted from the start.
    pub(crate) fn read(&mut self, status: &Status, at: Duration) -> Stage {
        let backends: Vec<(String, &BackendStatus)> = self.backends(status).collect();
        let mut remaining = Vec::new();
        let mut ended = None;
        for (name, backend) in backends {
            match backend.state.as_str() {
                "drained" => {
                    if let Some(flows) = backend.flows_ended {
                        *ended.get_or_insert(0) += flows;
                    }
                }
                // One that was taken out of the configuration meanwhile keeps its flows as well.
                "draining" | "leaving" => remaining.push((name, backend)),
                "up" => return Stage::Over(format!("{name} was resumed")),
                state => {
                    return Stage::Over(format!(
                        "{name} is {state} ({}), so its flows were moved to other backends",
                        backend.reason
                    ));
                }
            }
        }
        if remaining.is_empty() {
            return Stage::Drained { ended };
        }
        let flows = remaining.iter().map(|(_, backend)| backend.flows).sum();
        let packets = remaining.iter().map(|(_, backend)| backend.packets).sum();
        self.most = self.most.max(flows);
        let silent = remaining
            .iter()
            .filter_map(|(_, backend)| backend.silent_until.as_deref());
        Stage::Waiting(Remaining {
            flows,
            most: self.most,
            rate: self.rate(packets, at),
            silent_until: latest(silent),
            drain_until: remaining
                .iter()
                .all(|(_, backend)| backend.drain_until.is_some())
                .then(|| {
                    let until = remaining
                        .iter()
                        .filter_map(|(_, backend)| backend.drain_until.as_deref());
                    latest(until)
                })
                .flatten(),
            names: remaining.into_iter().map(|(name, _)| name).collect(),
        })
    }

    fn backends<'s>(
        &self,
        status: &'s Status,
    ) -> impl Iterator<Item = (String, &'s BackendStatus)> {
        let Target {
            backend: name,
            service: only,
        } = self.target.clone();
        status.services.iter().flat_map(move |service| {
            let wanted = only.as_ref().is_none_or(|only| *only == service.name);
            let name = name.clone();
            let backends = service
                .backends
                .iter()
                .filter(move |one| wanted && one.name == name);
            backends.map(move |one| (format!("{}/{}", service.name, one.name), one))
        })
    }

    fn rate(&mut self, packets: u64, at: Duration) -> Option<f64> {
        let (then, before) = self.last.replace((at, packets))?;
        // Fewer than before: one of several services has drained.
        let passed = packets.checked_sub(before)?;
        let elapsed = at.checked_sub(then)?.as_secs_f64();
        (elapsed > 0.0).then(|| passed as f64 / elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status_view::tests::example;

    fn target(backend: &str) -> Target {
        Target {
            backend: backend.to_owned(),
            service: None,
        }
    }

    fn with(flows: u64, packets: u64, state: &str) -> Status {
        let mut status = example();
        let backend = &mut status.services[0].backends[2];
        (backend.flows, backend.packets, backend.state) = (flows, packets, state.to_owned());
        status
    }

    #[test]
    fn flows_fall_from_their_maximum_until_all_have_ended() {
        let mut progress = Progress::new(target("web3"));
        let mut read = |flows, packets, state, seconds| {
            progress.read(&with(flows, packets, state), Duration::from_secs(seconds))
        };
        let remaining = |flows, most, rate| {
            Stage::Waiting(Remaining {
                flows,
                most,
                rate,
                silent_until: Some("2026-11-21T20:12:30Z".to_owned()),
                drain_until: None,
                names: vec!["web/web3".to_owned()],
            })
        };
        assert_eq!(read(3, 100, "draining", 0), remaining(3, 3, None));
        assert_eq!(read(17, 300, "draining", 2), remaining(17, 17, Some(100.0)));
        assert_eq!(read(5, 300, "draining", 3), remaining(5, 17, Some(0.0)));
        assert_eq!(read(0, 300, "drained", 4), Stage::Drained { ended: None });
    }

    #[test]
    fn whatever_else_ends_a_drain_is_said() {
        let read = |state| Progress::new(target("web3")).read(&with(1, 1, state), Duration::ZERO);
        assert_eq!(read("up"), Stage::Over("web/web3 was resumed".to_owned()));
        let Stage::Over(text) = read("down") else {
            panic!("not over")
        };
        assert!(
            text.starts_with("web/web3 is down (drained by the operator)"),
            "{text}"
        );
        assert!(matches!(read("failed"), Stage::Over(_)));
        assert!(
            matches!(read("leaving"), Stage::Waiting(_)),
            "its flows stay"
        );
    }

    #[test]
    fn all_services_of_a_backend_must_be_drained() {
        let mut status = with(0, 1, "drained");
        let mut other = status.services[0].backends[2].clone();
        (other.state, other.flows) = ("draining".to_owned(), 4);
        status.services[1].backends.push(other);
        let read = |target, status: &Status| Progress::new(target).read(status, Duration::ZERO);
        let Stage::Waiting(remaining) = read(target("web3"), &status) else {
            panic!("one remains")
        };
        assert_eq!(
            (remaining.flows, remaining.names),
            (4, vec!["dns/web3".to_owned()])
        );

        let only = Target {
            backend: "web3".to_owned(),
            service: Some("web".to_owned()),
        };
        assert_eq!(read(only, &status), Stage::Drained { ended: None });
    }

    #[test]
    fn a_backend_that_is_gone_has_no_flows() {
        assert_eq!(
            Progress::new(target("gone")).read(&example(), Duration::ZERO),
            Stage::Drained { ended: None }
        );
    }

    #[test]
    fn flows_that_were_ended_are_summed_up() {
        let mut status = with(17, 1, "draining");
        let mut other = status.services[0].backends[2].clone();
        status.services[0].backends[2].drain_until = Some("2026-11-21T20:05:00Z".to_owned());
        status.services[1].backends.push(other.clone());
        let until = |status: &Status| {
            let stage = Progress::new(target("web3")).read(status, Duration::ZERO);
            let Stage::Waiting(remaining) = stage else {
                panic!("{stage:?}")
            };
            remaining.drain_until
        };
        assert_eq!(until(&status), None, "in the other service it has no end");
        other.drain_until = Some("2026-11-21T20:06:00Z".to_owned());
        *status.services[1].backends.last_mut().expect("one") = other;
        assert_eq!(until(&status).as_deref(), Some("2026-11-21T20:06:00Z"));

        let mut over = with(0, 1, "drained");
        over.services[0].backends[2].flows_ended = Some(3);
        let mut other = over.services[0].backends[2].clone();
        other.flows_ended = Some(4);
        over.services[1].backends.push(other);
        assert_eq!(
            Progress::new(target("web3")).read(&over, Duration::ZERO),
            Stage::Drained { ended: Some(7) }
        );
    }
}
