//! What changes, told to people: in the log, and to whoever ordered it.

use std::collections::{BTreeMap, HashMap};

use lb_common::abi::BackendState;
use tracing::{
    info,
    subscriber::{NoSubscriber, with_default},
    warn,
};

use super::{
    actual::{Actual, Op},
    hot::source_text,
};

/// Logs that a source is spread from now on, or no more. To be called before the operation is done.
pub fn announce_hot(actual: &Actual, op: &Op) {
    let Op::Hot {
        source,
        entry: Some(entry),
    } = op
    else {
        return;
    };
    let service = actual.services().get(&source.service);
    info!(
        service = service.map_or("", |service| service.name.as_str()),
        source = source_text(&entry.info(*source)),
        share = f64::from(entry.share_ppm) / 1e6,
        state = entry.state.name(),
        "{}",
        if entry.state.spreads() {
            "hot source: its new flows are spread over all backends"
        } else {
            "hot source no more: its new flows go to one backend again"
        }
    );
}

/// So many operations that come at once are logged each; of more the log tells how many there were. A start with 65,535
/// backends would else fill it, and wait for it.
const TOLD_EACH: usize = 256;

/// Logs every change of a backend with its reason, or how many there are of very many, and gives each as a line. To be called
/// before the operations are done: `actual` is what they change.
pub fn announce_all(actual: &Actual, ops: &[Op]) -> Vec<String> {
    let told = |op: &&Op| !matches!(op, Op::Slots { .. } | Op::SwapDirectory { .. });
    if ops.iter().filter(told).count() <= TOLD_EACH {
        return announce(actual, ops);
    }
    let lines = with_default(NoSubscriber::default(), || announce(actual, ops));
    if !lines.is_empty() {
        info!(
            changes = lines.len(),
            "many changes at once: `xdp-lb status` tells how everything is now"
        );
    }
    lines
}

/// Logs every change of a backend with its reason, and gives the same as lines. To be called before the operations are
/// done: `actual` is what they change.
pub fn announce(actual: &Actual, ops: &[Op]) -> Vec<String> {
    let added: BTreeMap<u16, &str> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Service { id, service } => Some((*id, service.name.as_str())),
            _ => None,
        })
        .collect();
    let name_of = |id: u16| {
        actual
            .services()
            .get(&id)
            .map(|service| service.name.as_str())
            .or_else(|| added.get(&id).copied())
            .unwrap_or_default()
    };
    let priorities: HashMap<u16, u32> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Backend { number, backend } => Some((*number, backend.priority)),
            _ => None,
        })
        .collect();
    let mut lines = Vec::new();
    for op in ops {
        if let Some((id, from, to)) = other_priority(actual, &priorities, op) {
            let service = name_of(id);
            if to < from {
                info!(service, from, to, "new flows go back to a better priority");
            } else {
                warn!(service, from, to, "new flows go to a later priority");
            }
            lines.push(format!(
                "{service}: new flows go to priority {to}, not {from}"
            ));
        }
        match op {
            Op::Backend { number, backend } => {
                let service = name_of(backend.service);
                let old = actual.backends().get(number);
                let from = old.map_or("new", |old| old.state.name());
                let to = backend.state.name();
                if old.is_none_or(|old| old.state != backend.state) {
                    info!(
                        service,
                        backend = backend.name,
                        from,
                        to,
                        reason = backend.reason,
                        "backend changed"
                    );
                    lines.push(format!(
                        "{service}/{}: {from} -> {to} ({})",
                        backend.name, backend.reason
                    ));
                } else if let Some(old) = old {
                    if backend.state == BackendState::Leaving
                        && backend.entry.failed()
                        && !old.entry.failed()
                    {
                        warn!(
                            service,
                            backend = backend.name,
                            reason = backend.reason,
                            "backend failed while it was leaving"
                        );
                        lines.push(format!("{service}/{}: {}", backend.name, backend.reason));
                    }
                    if old.weight != backend.weight {
                        info!(
                            service,
                            backend = backend.name,
                            from = old.weight,
                            to = backend.weight,
                            "weight changed"
                        );
                        lines.push(format!(
                            "{service}/{}: weight {} -> {}",
                            backend.name, old.weight, backend.weight
                        ));
                    }
                    if old.priority != backend.priority {
                        lines.push(format!(
                            "{service}/{}: priority {} -> {}",
                            backend.name, old.priority, backend.priority
                        ));
                    }
                    if old.entry.mac() != backend.entry.mac() {
                        info!(service, backend = backend.name, "MAC address changed");
                    }
                }
            }
            Op::Service { id, service } => match actual.services().get(id) {
                None => {
                    info!(
                        service = service.name,
                        slots = service.slots.len(),
                        "service added"
                    );
                    lines.push(format!("{}: added", service.name));
                }
                Some(old) => {
                    if old.affinity != service.affinity {
                        warn!(
                            service = service.name,
                            "affinity changed: connections may move to another backend"
                        );
                        lines.push(format!(
                            "{}: affinity changed; open connections may move to another backend",
                            service.name
                        ));
                    }
                    if old.entries != service.entries {
                        lines.push(format!("{}: address or ports changed", service.name));
                    }
                    if old.spreads != service.spreads {
                        let now = if service.spreads { "are" } else { "are not" };
                        lines.push(format!("{}: hot sources {now} spread", service.name));
                    }
                    if old.flow_idle != service.flow_idle {
                        lines.push(format!("{}: flow_idle changed", service.name));
                    }
                }
            },
            Op::RemoveService { id } => {
                if let Some(service) = actual.services().get(id) {
                    info!(service = service.name, "service removed");
                    lines.push(format!("{}: removed", service.name));
                }
            }
            Op::RemoveBackend { number } => {
                if let Some(backend) = actual.backends().get(number) {
                    let service = name_of(backend.service);
                    info!(service, backend = backend.name, "backend gone");
                }
            }
            Op::Slots { .. } | Op::SwapDirectory { .. } | Op::Hot { .. } | Op::Release(_) => {}
        }
    }
    lines
}

/// Service, and the priorities before and after, where an operation gives the new flows to backends of another priority;
/// `changed` are the priorities, by backend number, that come with it.
fn other_priority(
    actual: &Actual,
    changed: &HashMap<u16, u32>,
    op: &Op,
) -> Option<(u16, u32, u32)> {
    let (id, after) = match op {
        Op::Slots {
            service, built_for, ..
        } => (*service, built_for.as_ref()?),
        Op::Service { id, service } => (*id, service.built_for.as_ref()?),
        _ => return None,
    };
    let before = actual.services().get(&id)?.built_for.as_ref()?;
    // All of a table have the same priority, so one of each tells.
    let from = actual.backends().get(&before.first()?.number)?.priority;
    let after = after.first()?.number;
    let to = match changed.get(&after) {
        Some(priority) => *priority,
        None => actual.backends().get(&after)?.priority,
    };
    (from != to).then_some((id, from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        desired::DesiredBackend,
        samples::{Bench, backend, in_state, service},
    };

    #[test]
    fn another_priority_is_told_once() {
        let mut bench = Bench::new();
        let standby = || DesiredBackend {
            priority: 2,
            ..backend("b")
        };
        let with = |a: DesiredBackend| [service("mail", 10, &[a, standby()])];
        let mut tell = |a| {
            let desired = with(a);
            let ops = bench.plan(&desired).unwrap();
            let lines = announce(bench.actual(), &ops);
            bench.execute(&ops);
            lines
                .into_iter()
                .filter(|line| line.contains("priority"))
                .collect::<Vec<_>>()
        };
        assert!(tell(backend("a")).is_empty(), "the first table");
        assert_eq!(
            tell(in_state("a", BackendState::Down)),
            ["mail: new flows go to priority 2, not 1"]
        );
        assert!(tell(in_state("a", BackendState::Failed)).is_empty());
        assert_eq!(
            tell(backend("a")),
            ["mail: new flows go to priority 1, not 2"]
        );
    }
}
