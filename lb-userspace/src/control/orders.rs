//! What the operator orders: drain, resume, fail, weight. Each is checked whole before anything is changed.

use std::collections::BTreeSet;

use lb_common::abi::BackendState;

use super::{actual::Actual, decisions::Decisions};
use crate::{api::Target, config::Config};

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

/// The services and the backend that a target names.
///
/// # Errors
/// [`Refusal::UnknownService`], [`Refusal::UnknownBackend`].
pub fn resolve<'c>(config: &'c Config, target: &Target) -> Result<Vec<&'c str>, Refusal> {
    let services: Vec<_> = match &target.service {
        None => config.services.iter().collect(),
        Some(name) => {
            let found: Vec<_> = config.services.iter().filter(|s| s.name == *name).collect();
            if found.is_empty() {
                return Err(Refusal::UnknownService {
                    name: name.clone(),
                    nearest: nearest(name, config.services.iter().map(|s| s.name.as_str())),
                });
            }
            found
        }
    };
    let with: Vec<&str> = services
        .iter()
        .filter(|s| s.backends.iter().any(|b| b.name == target.backend))
        .map(|s| s.name.as_str())
        .collect();
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

/// What an order changes in the decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No new flows.
    Drain,
    /// Back to normal.
    Resume,
    /// Down now.
    Fail,
    /// Another weight, or the configuration's.
    Weight(Option<u32>),
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
            Order::Drain => decision.drained = true,
            Order::Resume => (decision.drained, decision.failed) = (false, false),
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
