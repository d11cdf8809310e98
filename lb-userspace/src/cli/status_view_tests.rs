//! The tables, as they come out for one fixed status.

use std::{collections::BTreeMap, time::Duration};

use jiff::tz::TimeZone;

use super::{Rates, Window, render};
use crate::{
    api::{
        ApplyKind, BackendStatus, FlowTableStatus, HotSourceStatus, InterfaceStatus, LastApply,
        NodeStatus, ServiceStatus, Status,
    },
    cli::screen::Look,
};

fn backend(name: &str, number: u16, state: &str, reason: &str) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        address: format!("192.0.2.{}", 20 + number),
        mac: Some(format!("02:00:00:00:00:{number:02x}")),
        number,
        state: state.to_owned(),
        reason: reason.to_owned(),
        since: "2026-11-21T19:57:00Z".to_owned(),
        weight: 50,
        priority: 1,
        slots: 128,
        previous_slots: 0,
        packets: 1_234_567,
        bytes: 98_765_432,
        flows: 0,
        silent_until: None,
        drain_until: None,
        flows_ended: None,
    }
}

/// Two services in which something is going on.
pub(crate) fn example() -> Status {
    let draining = BackendStatus {
        slots: 0,
        previous_slots: 85,
        flows: 17,
        packets: 4_321,
        silent_until: Some("2026-11-21T20:12:30Z".to_owned()),
        ..backend("web3", 3, "draining", "drained by the operator")
    };
    let down = BackendStatus {
        slots: 0,
        packets: 99_999,
        since: "2026-11-21T19:59:48Z".to_owned(),
        ..backend(
            "web4",
            4,
            "down",
            "VIP not served: connection to 192.0.2.10:80 timed out after 500 ms",
        )
    };
    let web = ServiceStatus {
        name: "web".to_owned(),
        vip: "192.0.2.10".to_owned(),
        protocol: "tcp".to_owned(),
        ports: vec!["80".to_owned(), "8000-8010".to_owned()],
        affinity: "none".to_owned(),
        spread_hot_sources: None,
        hot_sources: Vec::new(),
        track: "changes".to_owned(),
        affinity_timeout_s: None,
        flow_idle_s: 900.0,
        slots: 256,
        slots_in_transition: 85,
        failback: "auto".to_owned(),
        priority: Some(1),
        held: false,
        better_priority: None,
        backends: vec![
            backend("web1", 1, "up", "probe answered: 200"),
            backend("web2", 2, "up", "probe answered: 200"),
            draining,
            down,
        ],
    };
    let standby = BackendStatus {
        priority: 2,
        slots: 0,
        packets: 0,
        bytes: 0,
        ..backend("dns2", 6, "up", "probe answered")
    };
    let dns = ServiceStatus {
        name: "dns".to_owned(),
        vip: "192.0.2.11".to_owned(),
        protocol: "udp".to_owned(),
        ports: vec!["any".to_owned()],
        affinity: "client".to_owned(),
        spread_hot_sources: Some(0.05),
        hot_sources: vec![
            HotSourceStatus {
                source: "203.0.113.7".to_owned(),
                share: 0.412,
                since: "2026-11-21T19:58:30Z".to_owned(),
                state: "spread".to_owned(),
            },
            HotSourceStatus {
                source: "203.0.113.9".to_owned(),
                share: 0.07,
                since: "2026-11-21T19:59:48Z".to_owned(),
                state: "spreading".to_owned(),
            },
            HotSourceStatus {
                source: "203.0.113.8".to_owned(),
                share: 0.011,
                since: "2026-11-21T19:59:50Z".to_owned(),
                state: "returning".to_owned(),
            },
        ],
        track: "changes".to_owned(),
        affinity_timeout_s: None,
        flow_idle_s: 30.0,
        slots: 128,
        slots_in_transition: 0,
        failback: "manual".to_owned(),
        priority: Some(1),
        held: false,
        better_priority: None,
        backends: vec![backend("dns1", 5, "up", "probe answered"), standby],
    };
    let interface = |name: &str, index, mode: &str| InterfaceStatus {
        name: name.to_owned(),
        index,
        mac: format!("02:00:00:00:01:{index:02x}"),
        mode: mode.to_owned(),
        program_id: 40 + index,
    };
    let counts = |counts: &[(&str, u64)]| -> BTreeMap<String, u64> {
        counts
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    };
    Status {
        node: NodeStatus {
            name: "lb1".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 812,
            started: "2026-11-21T16:48:00Z".to_owned(),
            pin_path: "/sys/fs/bpf/xdp-lb".to_owned(),
            config: "/etc/xdp-lb/config.toml".to_owned(),
            abi: 1,
            features: vec!["fragments".to_owned(), "quic".to_owned()],
            generation: 17,
            interfaces: vec![
                interface("eth0", 2, "native"),
                interface("eth1", 3, "generic"),
            ],
            last_apply: Some(LastApply {
                at: "2026-11-21T19:59:48Z".to_owned(),
                cause: "web4 is down".to_owned(),
                kind: ApplyKind::Failure,
                duration_us: 312,
                operations: 65,
                slots: 64,
            }),
            cluster: None,
        },
        services: vec![web, dns],
        verdicts: counts(&[
            ("forwarded", 3_703_687),
            ("not_ours", 812),
            ("unserved", 3),
            ("truncated", 0),
        ]),
        events: counts(&[("flows_recorded", 412), ("flows_forgotten", 2)]),
        flow_table: FlowTableStatus {
            used: 17,
            capacity: 131_072,
        },
    }
}

fn window(width: Option<u16>) -> Window {
    Window {
        look: Look {
            colour: false,
            width,
        },
        now: "2026-11-21T20:00:00Z".parse().expect("a time"),
        zone: TimeZone::UTC,
        rates: None,
    }
}

#[test]
fn as_wide_as_it_likes() {
    insta::assert_snapshot!(render(&example(), &window(None)));
}

#[test]
fn on_a_narrow_terminal() {
    let text = render(&example(), &window(Some(80)));
    insta::assert_snapshot!(text);
    // Sentences may wrap; tables of backends may not.
    for line in text
        .lines()
        .filter(|line| line.contains("BACKEND") || line.starts_with(" web"))
    {
        assert!(line.len() <= 80, "{line}");
    }
}

#[test]
fn with_rates() {
    let before = example();
    let mut after = example();
    after.services[0].backends[0].packets += 3_000;
    after.services[0].backends[1].packets = 5; // Another backend took the name: no rate.
    let rates = Rates::between(&before, &after, Duration::from_secs(2));
    let text = render(
        &after,
        &Window {
            rates: Some(rates),
            ..window(None)
        },
    );
    let line = |name: &str| {
        text.lines()
            .find(|line| line.trim_start().starts_with(name))
            .expect("a line")
            .to_owned()
    };
    assert!(line("web1").contains("1.50k/s"), "{}", line("web1"));
    assert!(line("web2").contains(" - "), "{}", line("web2"));
    assert!(line("web3").contains(" 0/s "), "{}", line("web3"));
}

#[test]
fn what_is_held_and_until_when_a_drain_lasts() {
    let mut status = example();
    status.services[0].backends[2].drain_until = Some("2026-11-21T20:05:00Z".to_owned());
    let dns = &mut status.services[1];
    (dns.priority, dns.held) = (Some(2), true);
    let text = render(&status, &window(None));
    assert!(
        text.contains("web3: flows that are left at 20:05:00 are ended"),
        "{text}"
    );
    assert!(
        text.contains("held at priority 2; nobody of a better one is up"),
        "{text}"
    );
    status.services[1].better_priority = Some(1);
    let text = render(&status, &window(None));
    assert!(
        text.contains("held at priority 2; preferred 1 is up: `xdp-lb failback dns`"),
        "{text}"
    );
    status.services[1].better_priority = Some(2);
    status.services[1].priority = Some(3);
    let text = render(&status, &window(None));
    assert!(
        text.contains("held at priority 3; priority 2 is up: `xdp-lb failback dns`"),
        "{text}"
    );
}

#[test]
fn colours_only_where_they_may_be() {
    assert!(!render(&example(), &window(None)).contains('\x1b'));
    let coloured = Window {
        look: Look {
            colour: true,
            width: None,
        },
        ..window(None)
    };
    assert!(render(&example(), &coloured).contains('\x1b'));
}
