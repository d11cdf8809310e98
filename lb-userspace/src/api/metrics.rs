//! [`Status`] as metrics. Names and labels are an interface: they are added, never renamed.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::Status;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BackendLabels {
    service: String,
    backend: String,
    address: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    service: String,
    backend: String,
    address: String,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

type Counters<L> = Family<L, prometheus_client::metrics::counter::Counter>;

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The OpenMetrics text.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("xdp_lb");
    node(status, &mut registry);
    services(status, &mut registry);
    backends(status, &mut registry);
    let verdicts = Counters::<NameLabel>::default();
    for (name, count) in &status.verdicts {
        verdicts
            .get_or_create(&NameLabel { name: name.clone() })
            .inc_by(*count);
    }
    registry.register("verdict_packets", "Packets by verdict", verdicts);
    let events = Counters::<NameLabel>::default();
    for (name, count) in &status.events {
        events
            .get_or_create(&NameLabel { name: name.clone() })
            .inc_by(*count);
    }
    registry.register("flow_events", "What the flow table had to do", events);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a string does not fail.
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

fn node(status: &Status, registry: &mut Registry) {
    registry.register(
        "build",
        "The running daemon",
        Info::new([
            ("version", status.node.version.clone()),
            ("node", status.node.name.clone()),
        ]),
    );
    registry.register(
        "generation",
        "Changes applied to the maps",
        ConstCounter::new(status.node.generation),
    );
    if let Some(apply) = &status.node.last_apply {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of one change")]
        let seconds = apply.duration_us as f64 / 1e6;
        let last: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        last.set(seconds);
        registry.register_with_unit(
            "last_apply",
            "Duration of the last change, from its cause to the last store",
            Unit::Seconds,
            last,
        );
        let operations: Gauge = Gauge::default();
        operations.set(gauge(apply.operations));
        registry.register(
            "last_apply_operations",
            "Stores of the last change into what the data path reads",
            operations,
        );
    }
    let used: Gauge = Gauge::default();
    used.set(gauge(status.flow_table.used));
    registry.register("flow_table_used", "Recorded flows", used);
    let capacity: Gauge = Gauge::default();
    capacity.set(gauge(status.flow_table.capacity));
    registry.register("flow_table_capacity", "Ways of the flow table", capacity);
}

fn services(status: &Status, registry: &mut Registry) {
    let slots = Family::<ServiceLabels, Gauge>::default();
    let moving = Family::<ServiceLabels, Gauge>::default();
    let priority = Family::<ServiceLabels, Gauge>::default();
    let held = Family::<ServiceLabels, Gauge>::default();
    for service in &status.services {
        let labels = ServiceLabels {
            service: service.name.clone(),
        };
        slots.get_or_create(&labels).set(gauge(service.slots));
        moving
            .get_or_create(&labels)
            .set(gauge(service.slots_in_transition));
        priority
            .get_or_create(&labels)
            .set(service.priority.map_or(0, i64::from));
        held.get_or_create(&labels).set(i64::from(service.held));
    }
    registry.register("service_slots", "Slots of the service's table", slots);
    registry.register("service_slots_in_transition", "Slots in transition", moving);
    registry.register(
        "service_priority",
        "The priority that new flows go to, 0 where nobody takes any",
        priority,
    );
    registry.register(
        "service_held",
        "1 while new flows are held on a later priority than the preferred one",
        held,
    );
}

fn backends(status: &Status, registry: &mut Registry) {
    let packets = Counters::<BackendLabels>::default();
    let bytes = Counters::<BackendLabels>::default();
    let slots = Family::<BackendLabels, Gauge>::default();
    let flows = Family::<BackendLabels, Gauge>::default();
    let weight = Family::<BackendLabels, Gauge>::default();
    let states = Family::<StateLabels, Gauge>::default();
    for service in &status.services {
        for backend in &service.backends {
            let labels = BackendLabels {
                service: service.name.clone(),
                backend: backend.name.clone(),
                address: backend.address.clone(),
            };
            packets.get_or_create(&labels).inc_by(backend.packets);
            bytes.get_or_create(&labels).inc_by(backend.bytes);
            slots.get_or_create(&labels).set(gauge(backend.slots));
            flows.get_or_create(&labels).set(gauge(backend.flows));
            weight.get_or_create(&labels).set(i64::from(backend.weight));
            for state in lb_common::abi::BackendState::ALL {
                let labels = StateLabels {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    address: backend.address.clone(),
                    state: state.name().into(),
                };
                states
                    .get_or_create(&labels)
                    .set(i64::from(backend.state == state.name()));
            }
        }
    }
    registry.register("backend_packets", "Packets sent to the backend", packets);
    registry.register_with_unit(
        "backend_frame",
        "Bytes of the frames sent to the backend",
        Unit::Bytes,
        bytes,
    );
    registry.register("backend_slots", "Slots whose current backend it is", slots);
    registry.register(
        "backend_flows",
        "Recorded flows on the backend that have not ended",
        flows,
    );
    registry.register("backend_weight", "The weight in force", weight);
    registry.register(
        "backend_state",
        "1 for the state the backend is in, 0 for the others",
        states,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::example_status;

    #[test]
    fn the_metrics_of_a_status() {
        let text = text(&example_status());
        assert!(text.ends_with("# EOF\n"));
        // The samples of a family come in no order.
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
