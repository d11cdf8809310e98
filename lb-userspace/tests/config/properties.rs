//! What holds for every text and for every configuration.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use lb_userspace::config::{
    Affinity, Backend, Config, ConfigErrors, Control, Failback, Limits, Mode, Node, PORTS_MAX,
    Ports, Probe, ProbeKind, Protocol, Rule, Service, Share, Track, Unserved, Via, XdpMode,
};
use proptest::prelude::*;

use crate::BASE;

/// Renders both ways and checks what every error promises.
fn check_errors(errors: &ConfigErrors, text: &str) {
    assert!(!errors.errors().is_empty());
    let rendered = errors.render(false);
    assert!(errors.render(true).len() > rendered.len());
    assert!(
        !rendered.chars().any(|c| c.is_control() && c != '\n'),
        "{rendered:?}"
    );
    let lines = text.split('\n').count();
    let mut last = 0;
    for error in errors.errors() {
        assert!(!error.message.is_empty());
        let line = error.line.unwrap_or(0);
        assert!(
            line <= lines && line >= last,
            "line {line} of {lines} after {last}"
        );
        last = line;
        assert!(rendered.contains(&error.message), "{rendered}");
    }
}

fn check_text(text: &str) {
    if let Err(errors) = Config::parse("config.toml", text) {
        check_errors(&errors, text);
    }
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_errors(text in any::<String>()) {
        check_text(&text);
    }

    /// Text that is nearly TOML gets further into the reader than any text does.
    #[test]
    fn any_toml_gives_a_configuration_or_errors(pieces in prop::collection::vec(piece(), 0..30)) {
        check_text(&pieces.concat());
    }

    #[test]
    fn a_damaged_file_gives_a_configuration_or_errors(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..20_usize, piece()), 1..4),
    ) {
        let mut text: Vec<char> = BASE.chars().collect();
        for (at, length, piece) in cuts {
            let start = at.index(text.len() + 1);
            let end = (start + length).min(text.len());
            text.splice(start..end, piece.chars());
        }
        check_text(&text.into_iter().collect::<String>());
    }

    #[test]
    fn a_configuration_written_out_reads_the_same(config in config()) {
        let text = toml::to_string(&config).expect("a configuration is a TOML document");
        match Config::parse("config.toml", &text) {
            // The seed is a secret and not written out.
            Ok(read) => prop_assert_eq!(read, config),
            Err(errors) => return Err(TestCaseError::fail(format!("{text}\n{errors}"))),
        }
    }
}

fn piece() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "[node]\n",
        "[control]\n",
        "[limits]\n",
        "[[service]]\n",
        "[service.probe]\n",
        "[[service.backend]]\n",
        "[service]\n",
        "name",
        "interfaces",
        "vip",
        "ports",
        "seed",
        "http",
        "flows",
        "type",
        "interval",
        "weight",
        " = ",
        "\"",
        "\"\"\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        "\n",
        "\r\n",
        "#",
        "\t",
        "\u{feff}",
        "\0",
        "\u{1b}",
        "ä",
        "\u{1f4a9}",
        "\"eth0\"",
        "[\"eth0\"]",
        "[80, \"1-65535\"]",
        "[\"9-1\"]",
        "\"any\"",
        "\"192.0.2.1\"",
        "\"::1\"",
        "\"15m\"",
        "\"99999999999999y\"",
        "-1",
        "0x7f",
        "1e400",
        "nan",
        "true",
        "2026-01-01",
        "18446744073709551616",
        "node.name = 1\n",
        "service = []\n",
        "service = [1]\n",
        "node = 1\n",
    ];
    prop_oneof![
        8 => prop::sample::select(WORDS).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._-]{1,63}"
}

fn millis(low: u64, high: u64) -> impl Strategy<Value = Duration> {
    (low..=high).prop_map(Duration::from_millis)
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/[ -~]{0,60}".prop_map(PathBuf::from)
}

fn node() -> impl Strategy<Value = Node> {
    (
        name(),
        prop::collection::btree_set("[a-z]{1,10}[0-9.@-]{0,5}", 1..5),
        path(),
        prop::sample::select(&[XdpMode::Auto, XdpMode::Native, XdpMode::Generic][..]),
        prop::sample::select(&[Unserved::Drop, Unserved::Pass][..]),
    )
        .prop_map(|(name, interfaces, pin_path, xdp_mode, unserved)| Node {
            name,
            interfaces: interfaces.into_iter().collect(),
            pin_path,
            xdp_mode,
            unserved,
            // A cluster needs the seed, which no text shows.
            mode: Mode::Forward,
            cluster_mac: None,
            cluster_ip: None,
            peer_port: None,
            seed: None,
        })
}

fn control() -> impl Strategy<Value = Control> {
    (
        path(),
        prop::option::of((any::<IpAddr>(), 1..=u16::MAX)),
        path(),
    )
        .prop_map(|(socket, http, state)| Control {
            socket,
            http: http.map(Into::into),
            state,
        })
}

fn probe() -> impl Strategy<Value = Probe> {
    let http = (
        "/[!-\"$-~]{0,40}",
        prop::option::of("[a-z0-9.:-]{1,40}"),
        100..=599_u16,
        0..=499_u16,
    );
    let kind = prop_oneof![
        Just(ProbeKind::Tcp),
        http.prop_map(|(path, host, low, more)| ProbeKind::Http {
            path,
            host,
            status: low..=(low + more).min(599),
        }),
    ];
    let times = millis(100, 3_600_000).prop_flat_map(|interval| {
        let longest = u64::try_from(interval.as_millis()).expect("an hour fits");
        (Just(interval), millis(10, longest))
    });
    (
        kind,
        1..=u16::MAX,
        times,
        1..=u8::MAX,
        1..=u8::MAX,
        prop::bool::ANY,
    )
        .prop_map(|(kind, port, (interval, timeout), rise, fall, vip)| Probe {
            kind,
            port,
            interval,
            timeout,
            rise,
            fall,
            via: if vip { Via::Vip } else { Via::Address },
        })
}

fn ports() -> impl Strategy<Value = Ports> {
    let ranges = prop::collection::vec((1..=u16::MAX, 0..200_u16), 1..6).prop_map(|mut starts| {
        starts.sort_unstable();
        let mut ranges: Vec<std::ops::RangeInclusive<u16>> = Vec::new();
        for (start, more) in starts {
            // Apart by at least one port, as the reader merges what touches.
            let apart = ranges
                .last()
                .is_none_or(|last| u32::from(start) > u32::from(*last.end()) + 1);
            if apart {
                ranges.push(start..=start.saturating_add(more));
            }
        }
        Ports::Ranges(ranges)
    });
    prop_oneof![1 => Just(Ports::Any), 6 => ranges]
}

fn protocol_and_track() -> impl Strategy<Value = (Protocol, Track)> {
    let protocol = prop::sample::select(&[Protocol::Tcp, Protocol::Udp, Protocol::TcpUdp][..]);
    let track =
        prop::sample::select(&[Track::Changes, Track::Always, Track::Never, Track::Quic][..]);
    (protocol, track).prop_filter("QUIC is UDP", |(protocol, track)| {
        protocol.has_udp() || *track != Track::Quic
    })
}

/// Services are IPv4 and IPv6 in turn.
fn vip(service: u8) -> IpAddr {
    match service % 2 {
        0 => IpAddr::from([192, 0, 2, service + 1]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(service) + 1]),
    }
}

fn address(service: u8, own: u8) -> IpAddr {
    match service % 2 {
        0 => IpAddr::from([10, 0, service, own + 1]),
        _ => IpAddr::from([
            0x2001,
            0xdb8,
            1,
            service.into(),
            0,
            0,
            0,
            u16::from(own) + 1,
        ]),
    }
}

/// Backends are numbered by the service's and their own number, and VIPs are in other networks, so that no two are equal.
fn config() -> impl Strategy<Value = Config> {
    let backends = prop::collection::vec((1..=65_535_u32, 1..=255_u32), 1..8);
    let service = (
        name(),
        protocol_and_track(),
        ports(),
        (
            prop::sample::select(&[Affinity::None, Affinity::Client, Affinity::Network][..]),
            1..=32_u8,
            prop::option::of((10_000..=1_000_000_u32).prop_map(Share)),
        ),
        (
            millis(1_000, 8 * 3_600_000),
            prop::sample::select(&[Failback::Auto, Failback::Manual][..]),
            prop::option::of(millis(1_000, 8 * 3_600_000)),
        ),
        prop::option::of(probe()),
        backends,
    );
    let limits = (
        1_024..=1_u32 << 26,
        1_024..=1_u32 << 25,
        // Five services of the largest tables there can be.
        prop::option::of(5_u32 << 18..=1_u32 << 26),
        prop::option::of(100..=65_535_u32),
        prop::option::of(5_u32 << 17..=PORTS_MAX),
        0..=1_u32 << 20,
    )
        .prop_map(
            |(flows, flows6, slots, backends, ports, fragments)| Limits {
                flows,
                flows6,
                slots,
                backends,
                ports,
                fragments,
            },
        );
    (
        node(),
        control(),
        limits,
        prop::collection::vec(service, 1..6),
    )
        .prop_map(|(node, control, limits, services)| {
            let mut names = BTreeSet::new();
            let services = services
                .into_iter()
                .zip(0_u8..)
                .filter(|((name, ..), _)| names.insert(name.clone()))
                .map(
                    |(
                        (
                            name,
                            (protocol, track),
                            ports,
                            (affinity, prefix, hot),
                            (flow_idle, failback, timeout),
                            probe,
                            backends,
                        ),
                        number,
                    )| Service {
                        name,
                        vip: vip(number),
                        protocol,
                        ports,
                        affinity,
                        spread_hot_sources: hot
                            .filter(|_| affinity != Affinity::None && timeout.is_none()),
                        network_prefix: (affinity == Affinity::Network).then_some(prefix),
                        rule: if number % 3 == 2 {
                            Rule::Disabled
                        } else {
                            Rule::Multiple
                        },
                        flow_idle,
                        track,
                        affinity_timeout: timeout
                            .filter(|_| affinity != Affinity::None && track != Track::Never),
                        failback,
                        probe,
                        backends: backends
                            .into_iter()
                            .zip(0_u8..)
                            .map(|((weight, priority), own)| Backend {
                                name: format!("b{number}-{own}"),
                                address: address(number, own),
                                weight,
                                priority,
                            })
                            .collect(),
                    },
                )
                .collect();
            Config {
                node,
                control,
                limits,
                services,
            }
        })
}
