//! What the operator orders: drain, resume, fail, weight. Each is checked whole before anything is changed.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::BackendState;

use super::{
    actual::Actual,
    decisions::{Decision, Decisions},
    knowledge::{Leaving, LeavingKey},
    sweep::Sweep,
};
use crate::{
    api::Target,
    config::{Config, Mode, Service},
};

/// An order that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such backend.
    #[error("there is no backend `{name}`{place}{nearest}")]
    UnknownBackend {
        /// What was asked for.
        name: String,
        /// In which service, if one was named.
        place: String,
        /// What there is instead.
        nearest: String,
    },
    /// No such service.
    #[error("there is no service `{name}`{nearest}")]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is instead.
        nearest: String,
    },
    /// It would leave a service without anybody who takes new flows.
    #[error(
        "`{backend}` is the last backend of `{service}` that is up: new connections would go nowhere. Use --force to do it \
         all the same"
    )]
    LastBackend {
        /// The backend.
        backend: String,
        /// The service.
        service: String,
    },
    /// Each node of a cluster decides about itself.
    #[error(
        "`{backend}` is another node of the cluster, which decides for itself and tells the others: say so there, with the same \
         command"
    )]
    OtherNode {
        /// The backend.
        backend: String,
    },
    /// Nothing better to go back to.
    #[error(
        "`{service}` stays on priority {priority}: no backend of a better one takes new flows. `xdp-lb status {service}` \
         says why"
    )]
    NothingBetter {
        /// The service.
        service: String,
        /// The priority its new flows are held on.
        priority: u32,
    },
    /// The weight is out of range.
    #[error("a weight is between 0 and 65535, not {0}")]
    Weight(u32),
}

/// The names most like a misspelt one, as the end of a sentence.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let mut by_distance: Vec<(usize, &str)> = names
        .iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), *other))
        .collect();
    by_distance.sort_unstable();
    let near: Vec<String> = by_distance
        .iter()
        .filter(|(distance, other)| *distance <= name.len().max(other.len()).div_ceil(2))
        .take(3)
        .map(|(_, other)| format!("`{other}`"))
        .collect();
    if !near.is_empty() {
        return format!(": did you mean {}?", near.join(" or "));
    }
    let all: Vec<String> = names
        .iter()
        .take(10)
        .map(|name| format!("`{name}`"))
        .collect();
    format!(
        ": there are {}{}",
        all.join(", "),
        if names.len() > 10 { " and more" } else { "" }
    )
}

/// The service of this name.
///
/// # Errors
/// [`Refusal::UnknownService`].
pub fn service<'c>(config: &'c Config, name: &str) -> Result<&'c Service, Refusal> {
    config
        .services
        .iter()
        .find(|service| service.name == name)
        .ok_or_else(|| Refusal::UnknownService {
            name: name.to_owned(),
            nearest: nearest(name, config.services.iter().map(|s| s.name.as_str())),
        })
}

/// The services of the backend that a target names. Orders can be given for the backends that are `leaving`, too.
///
/// # Errors
/// [`Refusal::UnknownService`], [`Refusal::UnknownBackend`], [`Refusal::OtherNode`].
pub fn resolve<'c>(
    config: &'c Config,
    leaving: &BTreeMap<LeavingKey, Leaving>,
    target: &Target,
) -> Result<Vec<&'c str>, Refusal> {
    let services: Vec<_> = match &target.service {
        None => config.services.iter().collect(),
        Some(name) => vec![service(config, name)?],
    };
    let leaves = |service: &str| {
        leaving
            .keys()
            .any(|(of, name, _)| of == service && *name == target.backend)
    };
    let with: Vec<&str> = services
        .iter()
        .filter(|s| s.backends.iter().any(|b| b.name == target.backend) || leaves(&s.name))
        .map(|s| s.name.as_str())
        .collect();
    if !with.is_empty() && config.node.mode == Mode::Pick && target.backend != config.node.name {
        return Err(Refusal::OtherNode {
            backend: target.backend.clone(),
        });
    }
    if with.is_empty() {
        return Err(Refusal::UnknownBackend {
            name: target.backend.clone(),
            place: target
                .service
                .as_ref()
                .map_or_else(String::new, |s| format!(" in service `{s}`")),
            nearest: nearest(
                &target.backend,
                services
                    .iter()
                    .flat_map(|s| &s.backends)
                    .map(|b| b.name.as_str()),
            ),
        });
    }
    Ok(with)
}

/// Refuses to take away the last backend of any of these services that takes new flows.
///
/// # Errors
/// [`Refusal::LastBackend`].
pub fn refuse_last(actual: &Actual, services: &[&str], backend: &str) -> Result<(), Refusal> {
    for service in services {
        let Some(id) = actual.service_id(service) else {
            continue;
        };
        let takes = |name: &dyn Fn(&str) -> bool| {
            actual
                .backends_of(id)
                .iter()
                .any(|(_, b)| b.state == BackendState::Up && b.weight > 0 && name(&b.name))
        };
        if takes(&|name| name == backend) && !takes(&|name| name != backend) {
            return Err(Refusal::LastBackend {
                backend: backend.into(),
                service: (*service).into(),
            });
        }
    }
    Ok(())
}

/// When a drain ends the flows that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// As decided before; never, where nothing was.
    AsBefore,
    /// Never: they end by themselves.
    Never,
    /// Then, in Unix milliseconds.
    At(u64),
}

/// What an order changes in the decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No new flows, and the old ones at most until then.
    Drain(Until),
    /// Back to normal.
    Resume,
    /// Down now.
    Fail,
    /// Another weight, or the configuration's.
    Weight(Option<u32>),
}

impl Order {
    /// As `status` names the cause of a change.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain(_) => "Drain",
            Self::Resume => "Resume",
            Self::Fail => "Fail",
            Self::Weight(_) => "Weight",
        }
    }
}

/// The decisions once the drains of `due` (service and backend) end what is left of their flows, of which `sweep` is the
/// count of just now. A drain that came to its end before has nothing to end, and its time is forgotten.
#[must_use]
pub fn end_drains(
    decisions: &Decisions,
    due: &[(String, String)],
    actual: &Actual,
    sweep: &Sweep,
) -> Decisions {
    let mut decisions = decisions.clone();
    for (service, backend) in due {
        let members: Vec<(u16, BackendState)> = actual
            .service_id(service)
            .map(|id| actual.backends_of(id))
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, member)| member.name == *backend)
            .map(|(number, member)| (number, member.state))
            .collect();
        let over = members
            .iter()
            .all(|(_, state)| *state == BackendState::Drained);
        let mut decision = decisions.of(service, backend);
        if over {
            decision.drain_until_ms = None;
        } else {
            let flows = members
                .iter()
                .filter_map(|(number, _)| sweep.flows.get(number))
                .sum();
            decision.flows_ended = Some(flows);
        }
        decisions.set(service, backend, decision);
    }
    decisions
}

/// The decisions after an order.
///
/// # Errors
/// [`Refusal::Weight`].
pub fn decide(
    decisions: &Decisions,
    services: &[&str],
    backend: &str,
    order: Order,
) -> Result<Decisions, Refusal> {
    let mut decisions = decisions.clone();
    for service in services {
        let mut decision = decisions.of(service, backend);
        match order {
            Order::Drain(until) => {
                decision.drained = true;
                // What is over is over: its flows were ended.
                if decision.flows_ended.is_none() {
                    match until {
                        Until::AsBefore => {}
                        Until::Never => decision.drain_until_ms = None,
                        Until::At(unix_ms) => decision.drain_until_ms = Some(unix_ms),
                    }
                }
            }
            Order::Resume => {
                decision = Decision {
                    weight: decision.weight,
                    ..Decision::default()
                };
            }
            Order::Fail => decision.failed = true,
            Order::Weight(Some(weight)) if weight > u32::from(u16::MAX) => {
                return Err(Refusal::Weight(weight));
            }
            Order::Weight(weight) => decision.weight = weight,
        }
        decisions.set(service, backend, decision);
    }
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ConfigFile,
        control::samples::{Bench, backend, in_state, service},
    };

    fn config() -> Config {
        let text = r#"
            [node]
            interfaces = ["eth0"]
            [[service]]
            name = "web"
            vip = "192.0.2.10"
            protocol = "tcp"
            ports = [80]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "two", address = "198.51.100.2" }]
            [[service]]
            name = "mail"
            vip = "192.0.2.11"
            protocol = "tcp"
            ports = [25]
            backend = [{ name = "one", address = "198.51.100.1" }, { name = "mx", address = "198.51.100.3" }]
        "#;
        ConfigFile::parse("test.toml", text)
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
            .config
    }

    fn target(backend: &str, service: Option<&str>) -> Target {
        Target {
            backend: backend.into(),
            service: service.map(str::to_owned),
        }
    }

    #[test]
    fn which_services_an_order_is_about() {
        let config = config();
        let address = "198.51.100.9".parse().unwrap();
        let leaves = ("mail".to_owned(), "old".to_owned(), address);
        let how = Leaving {
            probe: None,
            own_probe: true,
        };
        let leaving = BTreeMap::from([(leaves, how)]);
        let of = |backend, service| resolve(&config, &leaving, &target(backend, service));
        assert_eq!(of("old", None).unwrap(), ["mail"]);
        assert!(of("old", Some("web")).is_err());
        assert_eq!(of("one", None).unwrap(), ["web", "mail"]);
        assert_eq!(of("one", Some("mail")).unwrap(), ["mail"]);
        assert_eq!(of("two", None).unwrap(), ["web"]);
        for (backend, service, message) in [
            (
                "tow",
                None,
                "there is no backend `tow`: did you mean `two`?",
            ),
            (
                "two",
                Some("mail"),
                "there is no backend `two` in service `mail`: there are `mx`, `one`",
            ),
            (
                "completely-else",
                None,
                "there is no backend `completely-else`: there are `mx`, `one`, `two`",
            ),
            (
                "one",
                Some("mial"),
                "there is no service `mial`: did you mean `mail`?",
            ),
        ] {
            assert_eq!(of(backend, service).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_last_one_that_takes_new_flows_is_not_taken_away() {
        let mut bench = Bench::new();
        bench.bring(&[
            service("web", 10, &[backend("one"), backend("two")]),
            service(
                "mail",
                11,
                &[backend("one"), in_state("mx", BackendState::Draining)],
            ),
        ]);
        let refused = |services: &[&str], name| refuse_last(bench.actual(), services, name);
        assert_eq!(refused(&["web"], "one"), Ok(()));
        assert_eq!(refused(&["mail"], "mx"), Ok(()), "it takes none as it is");
        assert_eq!(refused(&["unknown"], "one"), Ok(()));
        let error = refused(&["web", "mail"], "one").unwrap_err();
        assert_eq!(
            error,
            Refusal::LastBackend {
                backend: "one".into(),
                service: "mail".into()
            }
        );
        assert!(error.to_string().contains("--force"));
    }

    #[test]
    fn what_an_order_decides() {
        let services = ["web", "mail"];
        let none = Decisions::default();
        let of = |decisions: &Decisions, order| decide(decisions, &services, "one", order);
        let drained = of(&none, Order::Drain(Until::AsBefore)).unwrap();
        assert!(drained.of("web", "one").drained && drained.of("mail", "one").drained);
        assert!(!drained.of("web", "two").drained);
        let failed = of(&drained, Order::Fail).unwrap();
        assert!(failed.of("web", "one").failed && failed.of("web", "one").drained);
        assert_eq!(of(&failed, Order::Resume).unwrap(), none);
        let weighted = of(&none, Order::Weight(Some(65_535))).unwrap();
        assert_eq!(weighted.of("mail", "one").weight, Some(65_535));
        assert_eq!(of(&weighted, Order::Weight(None)).unwrap(), none);
        assert_eq!(
            of(&none, Order::Weight(Some(65_536))),
            Err(Refusal::Weight(65_536))
        );
        // A weight outlives a drain.
        let both = of(&weighted, Order::Drain(Until::At(5))).unwrap();
        assert_eq!(of(&both, Order::Resume).unwrap(), weighted);
    }

    #[test]
    fn a_drain_has_the_time_that_was_said_last() {
        let drain = |decisions: &Decisions, until| {
            decide(decisions, &["web"], "one", Order::Drain(until)).unwrap()
        };
        let until = |decisions: &Decisions| decisions.of("web", "one").drain_until_ms;
        let first = drain(&Decisions::default(), Until::At(5));
        assert_eq!(until(&first), Some(5));
        assert_eq!(until(&drain(&first, Until::AsBefore)), Some(5));
        assert_eq!(until(&drain(&first, Until::At(9))), Some(9));
        assert_eq!(until(&drain(&first, Until::Never)), None);
        let mut over = first.clone();
        let ended = Decision {
            flows_ended: Some(2),
            ..over.of("web", "one")
        };
        over.set("web", "one", ended);
        assert_eq!(drain(&over, Until::At(9)), over, "it is over");
        let resumed = decide(&over, &["web"], "one", Order::Resume).unwrap();
        assert_eq!(resumed, Decisions::default());
    }
}
