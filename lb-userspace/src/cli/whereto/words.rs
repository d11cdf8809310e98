//! The steps of the data path, in words.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use lb_common::{
    abi::{BackendState, text},
    flow::FlowName,
    hot::HotState,
    pick::{Affinity, Slot},
    service::ServiceValue,
    tables::Step,
    verdict::{Action, Verdict},
    wire::mac_bytes,
};
use serde::Serialize;

use crate::{
    cli::pinned::{Names, address, affinity, mac, protocol},
    control::hot::network_text,
};

/// One step: its kind, for programs, and what happened, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) step: &'static str,
    pub(super) text: String,
}

/// Knows the names that the steps' numbers stand for.
pub(super) struct Narrator<'n> {
    pub(super) names: &'n Names,
    pub(super) client: SocketAddr,
    /// The service's port.
    pub(super) port: u16,
}

impl Narrator<'_> {
    /// Each step in one line or two.
    pub(super) fn steps(&self, steps: &[Step]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut service: Option<ServiceValue> = None;
        let mut in_slot: Option<Slot> = None;
        // Of a hot source, which of the hashes to come are of address and ports.
        let mut spread: VecDeque<bool> = VecDeque::new();
        let taken = steps.iter().find_map(|step| match step {
            Step::Backend { number, .. } => Some(*number),
            _ => None,
        });
        for step in steps {
            match *step {
                Step::Service {
                    vip,
                    protocol,
                    port,
                    found,
                } => {
                    let what = destination(vip, protocol, port);
                    lines.push(Line::new("service", self.service(&what, found)));
                    service = found;
                }
                Step::Hash { hash, .. } => {
                    if let Some(service) = service {
                        let picks = match spread.pop_front() {
                            Some(true) => Affinity {
                                ports: true,
                                ..service.affinity()
                            },
                            _ => service.affinity(),
                        };
                        lines.push(Line::new("affinity", self.affinity(picks)));
                    }
                    let text = format!(
                        "{hash:#018x}, keyed with the secret seed that all directors share"
                    );
                    lines.push(Line::new("hash", text));
                }
                Step::Slot { index, slot } => {
                    lines.push(Line::new("slot", self.slot(index, slot, service)));
                    in_slot = Some(slot);
                }
                Step::Hot { source, state } => {
                    spread = [state.spreads(), state.spread_before()].into();
                    lines.push(Line::new("hot_source", hot(source, service, state)));
                }
                Step::HotSlot { slot } => {
                    let text = format!(
                        "new flows go to the pick of now, {}; those that are older than the change went by the pick of before, to {}",
                        self.names.backend(slot.current()),
                        self.names.backend(slot.previous())
                    );
                    lines.push(Line::new("hot_source", text));
                    in_slot = Some(slot);
                }
                Step::Backend { number, backend } => {
                    lines.push(Line::new("backend", self.backend(number, backend.mac())));
                }
                Step::Fragment { backend } => {
                    let name = self.names.backend(backend);
                    let text = format!("a later fragment: its first one went to {name}");
                    lines.push(Line::new("fragment", text));
                }
                Step::FragmentAlone => {
                    let text =
                        "a later fragment that came before its first one: the pick needs no ports";
                    lines.push(Line::new("fragment", text.to_owned()));
                }
                Step::Fenced => {
                    let text = "the other nodes have taken this one's place while its xdp-lb was not heard: it keeps nothing of the service";
                    lines.push(Line::new("fenced", text.to_owned()));
                }
                transition => {
                    let text = self.transition(transition, in_slot.unwrap_or_default(), taken);
                    lines.push(Line::new("transition", text));
                }
            }
        }
        lines
    }

    fn service(&self, what: &str, found: Option<ServiceValue>) -> String {
        match found {
            Some(value) => {
                format!(
                    "{what} belongs to \"{}\" (id {})",
                    self.names.service(value.id()),
                    value.id()
                )
            }
            None => format!("{what} belongs to no service"),
        }
    }

    /// Which part of the packet picked.
    fn affinity(&self, picks: Affinity) -> String {
        let from = self.client.ip();
        let name = affinity(picks, from.is_ipv6());
        let whole = IpNet::from(from);
        if picks.ports {
            format!(
                "{name}: address and ports pick ({from}, port {} to port {})",
                self.client.port(),
                self.port
            )
        } else if picks.prefix >= whole.prefix_len() {
            format!("{name}: the client's address picks ({from}), its port does not")
        } else {
            let network = IpNet::new(from, picks.prefix).map_or(whole, |net| net.trunc());
            format!("{name}: the client's network picks ({network}), which {from} is in")
        }
    }

    fn slot(&self, index: u32, slot: Slot, service: Option<ServiceValue>) -> String {
        let place = match service {
            Some(service) => {
                let bits = service.bits();
                format!("{index} of {} (the hash's top {bits} bits)", 1_u64 << bits)
            }
            None => index.to_string(),
        };
        let current = self.names.backend(slot.current());
        if slot.in_transition() {
            let previous = self.names.backend(slot.previous());
            format!("{place}: current {current}, previous {previous}: in transition")
        } else {
            format!("{place}: current {current}, settled")
        }
    }

    /// `taken` is the backend that it came to.
    fn transition(&self, step: Step, slot: Slot, taken: Option<u16>) -> String {
        let current = self.names.backend(slot.current());
        match step {
            Step::OpensAgain { flow, backend } => format!(
                "{} is being opened already: this is the same attempt, sent again, and stays on {}",
                name_of(flow),
                self.names.backend(backend)
            ),
            Step::KnownClient { client, backend } => format!(
                "the flow table has the client {}: its new flows stay on {}",
                client.client,
                self.names.backend(backend)
            ),
            Step::ClientOlderThanChange { client } => format!(
                "the flow table does not have the client {}: it may be older than the change and stays on the previous backend, {}",
                client.client,
                self.names.backend(slot.previous())
            ),
            Step::NotRecorded { flow } => format!(
                "every flow of the service is recorded, but the flow table does not have {}: it is new, and goes to the current backend, {current}",
                name_of(flow)
            ),
            Step::Opens => {
                format!(
                    "the packet opens a flow (SYN): it goes to the current backend, {current}, and would be recorded"
                )
            }
            Step::Recorded { flow, backend } => {
                format!(
                    "the flow table has {}: it stays on {}",
                    name_of(flow),
                    self.names.backend(backend)
                )
            }
            Step::RecordedOnFailed { flow, backend } => format!(
                "the flow table has {} on {}, which has failed: it moves to the current backend, {current}",
                name_of(flow),
                self.names.backend(backend)
            ),
            // The controller takes a failed backend out of both sides; until it has, the data path goes by the mark.
            Step::OlderThanChange { flow }
                if taken.is_some_and(|taken| taken != slot.previous()) =>
            {
                format!(
                    "the flow table does not have {}: it is older than the change, but the previous backend, {}, has failed: it moves to the current one, {current}",
                    name_of(flow),
                    self.names.backend(slot.previous())
                )
            }
            Step::OlderThanChange { flow } => format!(
                "the flow table does not have {}: it is older than the change and belongs to the previous backend, {}",
                name_of(flow),
                self.names.backend(slot.previous())
            ),
            Step::Untracked => {
                format!(
                    "the protocol has no opening packet: it goes to the current backend, {current}, at once"
                )
            }
            // The other steps are not about a transition.
            Step::Service { .. }
            | Step::Hot { .. }
            | Step::HotSlot { .. }
            | Step::Hash { .. }
            | Step::Slot { .. }
            | Step::Fragment { .. }
            | Step::FragmentAlone
            | Step::Fenced
            | Step::Backend { .. } => String::new(),
        }
    }

    fn backend(&self, number: u16, mac_word: u64) -> String {
        let mut words = format!("{} (number {number})", self.names.backend(number));
        if let Some(info) = self.names.backends.get(&number) {
            let address = address(info.address);
            let state = BackendState::from_number(info.state)
                .map_or("in an unknown state", BackendState::name);
            words.push_str(&format!(" at {address}, {state}: {}", text(&info.reason)));
        }
        match mac_word {
            0 => words.push_str("; its MAC address is not known"),
            word => words.push_str(&format!("; MAC {}", mac(mac_bytes(word)))),
        }
        words
    }
}

/// How the flows of a hot source are picked.
fn hot(source: IpAddr, service: Option<ServiceValue>, state: HotState) -> String {
    let source = match service {
        Some(service) => network_text(source, service.affinity().prefix),
        None => source.to_string(),
    };
    let how = match (state.spreads(), state.in_transition()) {
        (true, false) => "is a hot source: its flows are picked by address and ports",
        (true, true) => {
            "is a hot source: its new flows are picked by address and ports, those that are there already stay where they are"
        }
        (false, _) => {
            "was a hot source until lately: its new flows are picked by the affinity again, those that are there already stay where they are"
        }
    };
    format!("{source} {how}")
}

/// A flow by its client.
fn name_of(flow: FlowName) -> String {
    let client = SocketAddr::new(flow.client, (flow.ports >> 16) as u16);
    format!("the flow from {client}")
}

/// Where the packet is for; port 0 stands for all of them.
fn destination(vip: IpAddr, number: u8, port: u16) -> String {
    let protocol = protocol(number);
    match port {
        0 => format!("{vip}, any {protocol} port,"),
        port => format!("{}/{protocol}", SocketAddr::new(vip, port)),
    }
}

/// The end of every explanation.
pub(super) fn verdict(verdict: Verdict) -> Line {
    let action = match verdict.action() {
        Action::Transmit => "sent back out (XDP_TX)",
        Action::Redirect => "sent out of another interface (XDP_REDIRECT)",
        Action::Pass => "handed to the host (XDP_PASS)",
        Action::Drop => "dropped (XDP_DROP)",
    };
    Line::new(
        "verdict",
        format!("{}, {action}: {}", verdict.name(), verdict.why()),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        abi::{BackendInfo, ServiceInfo, text_field},
        address::Address,
        flow::FlowKey,
        hash::Seed,
        pick::Backend,
        wire::{PROTO_TCP, mac_word},
    };

    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.services.insert(
            3,
            ServiceInfo {
                name: text_field("web"),
                ..ServiceInfo::default()
            },
        );
        let backend = |name: &str, state: BackendState, last: u8| BackendInfo {
            name: text_field(name),
            state: state as u8,
            reason: text_field("probe answered"),
            address: Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().octets(),
            ..BackendInfo::default()
        };
        names
            .backends
            .insert(1, backend("b1", BackendState::Draining, 21));
        names
            .backends
            .insert(2, backend("b2", BackendState::Up, 22));
        names
    }

    const VIP: u32 = 0xc000_020a;
    const CLIENT: u32 = 0x0a01_0263;

    fn told(steps: &[Step]) -> String {
        let names = names();
        let narrator = Narrator {
            names: &names,
            client: SocketAddr::new(Ipv4Addr::from(CLIENT).into(), 40_000),
            port: 80,
        };
        let lines = narrator.steps(steps);
        let lines: Vec<String> = lines
            .iter()
            .map(|line| format!("{}: {}", line.step, line.text))
            .collect();
        lines.join("\n")
    }

    fn service(affinity: Affinity) -> Step {
        Step::Service {
            vip: IpAddr::V4(Ipv4Addr::from(VIP)),
            protocol: PROTO_TCP,
            port: 80,
            found: Some(ServiceValue::new(3, 0, 8, affinity)),
        }
    }

    fn backend(number: u16) -> Step {
        Step::Backend {
            number,
            backend: Backend::new(mac_word([2, 0, 0, 0, 0, 0x16]), 0, false),
        }
    }

    #[test]
    fn a_settled_slot() {
        let source = CLIENT.source(Affinity::NONE_IPV4, 40_000 << 16 | 80, Seed([1, 2]));
        insta::assert_snapshot!(told(&[
            service(Affinity::NONE_IPV4),
            Step::Hash { source, hash: 0x0123_4567_89ab_cdef },
            Step::Slot { index: 1, slot: Slot::settled(2) },
            backend(2),
        ]), @r#"
        service: 192.0.2.10:80/tcp belongs to "web" (id 3)
        affinity: none: address and ports pick (10.1.2.99, port 40000 to port 80)
        hash: 0x0123456789abcdef, keyed with the secret seed that all directors share
        slot: 1 of 256 (the hash's top 8 bits): current b2, settled
        backend: b2 (number 2) at 192.0.2.22, up: probe answered; MAC 02:00:00:00:00:16
        "#);
    }

    #[test]
    fn affinities() {
        for (affinity, expected) in [
            (
                Affinity::CLIENT_IPV4,
                "affinity: client: the client's address picks (10.1.2.99), its port does not",
            ),
            (
                Affinity::NETWORK_IPV4,
                "affinity: network: the client's network picks (10.1.2.0/24), which 10.1.2.99 is in",
            ),
        ] {
            let source = CLIENT.source(affinity, 0, Seed([1, 2]));
            let text = told(&[service(affinity), Step::Hash { source, hash: 0 }]);
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_slot_in_transition() {
        let slot = Step::Slot {
            index: 7,
            slot: Slot::new(2, 1),
        };
        let flow = FlowKey::tcp(CLIENT, 40_000 << 16 | 80, 3).named();
        let all = [
            Step::Opens,
            Step::Recorded { flow, backend: 2 },
            Step::RecordedOnFailed { flow, backend: 1 },
            Step::OlderThanChange { flow },
            Step::Untracked,
            Step::OpensAgain { flow, backend: 1 },
            Step::KnownClient {
                client: flow,
                backend: 2,
            },
            Step::ClientOlderThanChange { client: flow },
            Step::NotRecorded { flow },
        ];
        let texts: Vec<String> = all.into_iter().map(|step| told(&[slot, step])).collect();
        let lines: Vec<&str> = texts
            .iter()
            .filter_map(|text| text.lines().nth(1))
            .collect();
        let failed = told(&[slot, Step::OlderThanChange { flow }, backend(2)]);
        assert!(
            failed
                .contains("the previous backend, b1, has failed: it moves to the current one, b2"),
            "{failed}"
        );
        insta::assert_snapshot!(lines.join("\n"), @r"
        transition: the packet opens a flow (SYN): it goes to the current backend, b2, and would be recorded
        transition: the flow table has the flow from 10.1.2.99:40000: it stays on b2
        transition: the flow table has the flow from 10.1.2.99:40000 on b1, which has failed: it moves to the current backend, b2
        transition: the flow table does not have the flow from 10.1.2.99:40000: it is older than the change and belongs to the previous backend, b1
        transition: the protocol has no opening packet: it goes to the current backend, b2, at once
        transition: the flow from 10.1.2.99:40000 is being opened already: this is the same attempt, sent again, and stays on b1
        transition: the flow table has the client 10.1.2.99: its new flows stay on b2
        transition: the flow table does not have the client 10.1.2.99: it may be older than the change and stays on the previous backend, b1
        transition: every flow of the service is recorded, but the flow table does not have the flow from 10.1.2.99:40000: it is new, and goes to the current backend, b2
        ");
    }

    #[test]
    fn a_hot_source() {
        let ports = 40_000 << 16 | 80;
        let spread = CLIENT.source(Affinity::NONE_IPV4, ports, Seed([1, 2]));
        let client = CLIENT.source(Affinity::CLIENT_IPV4, ports, Seed([1, 2]));
        let hot = |state| Step::Hot {
            source: CLIENT.addr(),
            state,
        };
        let slot = |current| Step::Slot {
            index: 7,
            slot: Slot::settled(current),
        };
        insta::assert_snapshot!(told(&[
            service(Affinity::CLIENT_IPV4),
            hot(HotState::SPREAD),
            Step::Hash { source: spread, hash: 1 },
            slot(2),
        ]), @r#"
        service: 192.0.2.10:80/tcp belongs to "web" (id 3)
        hot_source: 10.1.2.99 is a hot source: its flows are picked by address and ports
        affinity: none: address and ports pick (10.1.2.99, port 40000 to port 80)
        hash: 0x0000000000000001, keyed with the secret seed that all directors share
        slot: 7 of 256 (the hash's top 8 bits): current b2, settled
        "#);
        insta::assert_snapshot!(told(&[
            service(Affinity::CLIENT_IPV4),
            hot(HotState::SPREAD.turned(false)),
            Step::Hash { source: client, hash: 1 },
            slot(2),
            Step::Hash { source: spread, hash: 2 },
            slot(1),
            Step::HotSlot { slot: Slot::new(2, 1) },
            Step::Opens,
            backend(2),
        ]), @r#"
        service: 192.0.2.10:80/tcp belongs to "web" (id 3)
        hot_source: 10.1.2.99 was a hot source until lately: its new flows are picked by the affinity again, those that are there already stay where they are
        affinity: client: the client's address picks (10.1.2.99), its port does not
        hash: 0x0000000000000001, keyed with the secret seed that all directors share
        slot: 7 of 256 (the hash's top 8 bits): current b2, settled
        affinity: none: address and ports pick (10.1.2.99, port 40000 to port 80)
        hash: 0x0000000000000002, keyed with the secret seed that all directors share
        slot: 7 of 256 (the hash's top 8 bits): current b1, settled
        hot_source: new flows go to the pick of now, b2; those that are older than the change went by the pick of before, to b1
        transition: the packet opens a flow (SYN): it goes to the current backend, b2, and would be recorded
        backend: b2 (number 2) at 192.0.2.22, up: probe answered; MAC 02:00:00:00:00:16
        "#);
    }

    #[test]
    fn nothing_found() {
        let unserved = Step::Service {
            vip: IpAddr::V4(Ipv4Addr::from(VIP)),
            protocol: PROTO_TCP,
            port: 81,
            found: None,
        };
        assert_eq!(
            told(&[unserved]),
            "service: 192.0.2.10:81/tcp belongs to no service"
        );
        assert_eq!(
            verdict(Verdict::Unserved).text,
            "unserved, dropped (XDP_DROP): no service on this protocol and port of a VIP"
        );
        let unknown = Step::Backend {
            number: 9,
            backend: Backend::default(),
        };
        assert_eq!(
            told(&[unknown]),
            "backend: number 9 (number 9); its MAC address is not known"
        );
    }
}
