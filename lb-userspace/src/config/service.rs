//! Reads one `[[service]]` with its probe and its backends.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use toml::Spanned;

use super::{
    error::{ConfigError, ErrorKind},
    model::{
        Affinity, Backend, Failback, Mode, Ports, Probe, ProbeKind, Protocol, Rule, Service, Share,
        Track, Via,
    },
    ports,
    raw::{RawBackend, RawService, ServicePlaces},
    reader::{Field, Fields, Sink, nearest, one_of},
    sections, values,
};

const FLOW_IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(8 * 3600);
/// Below one percent a source is too small to overload anybody, and its share too small to be told for sure.
const HOT_SHARE: RangeInclusive<Share> = Share(10_000)..=Share::WHOLE;
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
const WEIGHT: RangeInclusive<u32> = 0..=65_535;
const PRIORITY: RangeInclusive<u32> = 1..=255;
/// The probe types of this version.
const PROBES: [&str; 3] = ["tcp", "http", "none"];
/// The longest request target a probe sends, in bytes; servers commonly take 8,000 (RFC 9110, section 4.1).
const PATH_MAX: usize = 2_048;
/// The longest `Host` header: a domain name's 253 bytes (RFC 1035) and a port.
const HOST_MAX: usize = 259;

/// Reads the service whose table is `fields`, of a node that works in this mode.
pub(super) fn read(fields: &Fields<'_, '_>, mode: Mode, sink: &Sink) -> RawService {
    let name = fields
        .require("name", "name = \"web\"", sink)
        .and_then(|field| with_span(&field, values::name(&field, sink)));
    let vip = fields
        .require("vip", "vip = \"192.0.2.10\"", sink)
        .and_then(|field| with_span(&field, values::address(&field, sink)));
    let protocol = fields
        .require("protocol", "protocol = \"tcp\"", sink)
        .and_then(|field| {
            values::choice(
                &field,
                &[
                    ("tcp", Protocol::Tcp),
                    ("udp", Protocol::Udp),
                    ("tcp+udp", Protocol::TcpUdp),
                ],
                sink,
            )
        });
    let listed = fields
        .require("ports", "ports = [80]", sink)
        .and_then(|field| with_span(&field, ports::ports(&field, sink)));
    let affinity = fields.read_or("affinity", Affinity::default(), |field| {
        let affinities = [
            ("none", Affinity::None),
            ("client", Affinity::Client),
            ("network", Affinity::Network),
        ];
        values::choice(field, &affinities, sink)
    });
    let spread_hot_sources = fields.read_or("spread_hot_sources", None, |field| {
        with_span(field, values::share(field, HOT_SHARE, sink)).map(Some)
    });
    let network_prefix = read_network_prefix(fields, vip.as_ref(), affinity, sink);
    let rule = match fields.get("rule") {
        Some(field) => {
            let rules = [
                ("multiple", Rule::Multiple),
                ("single", Rule::Single),
                ("disabled", Rule::Disabled),
            ];
            with_span(&field, values::choice(&field, &rules, sink))
        }
        None => Some(Spanned::new(fields.span(), Rule::default())),
    };
    let flow_idle = fields.read_or("flow_idle", Service::FLOW_IDLE, |field| {
        values::duration(field, FLOW_IDLE, sink)
    });
    let failback = fields.read_or("failback", Failback::default(), |field| {
        let ways = [("auto", Failback::Auto), ("manual", Failback::Manual)];
        values::choice(field, &ways, sink)
    });
    let track = read_track(fields, protocol, sink);
    let affinity_timeout = read_affinity_timeout(fields, affinity, track, sink);
    let probe = read_probe(fields, mode, protocol, listed.as_ref(), sink);
    // An error in it has been reported with the probe.
    let via = fields
        .get("probe")
        .and_then(|field| {
            let quiet = Sink::default();
            Fields::open(&sections::PROBE, field.value, field.span.clone(), &quiet)?.get("via")
        })
        .map(|field| field.span);
    let place = |key| fields.get(key).map(|field| field.span);
    let places = ServicePlaces {
        failback: place("failback"),
        track: place("track"),
        affinity_timeout: place("affinity_timeout"),
        via,
    };
    let backends = fields.tables(&sections::BACKEND, sink).unwrap_or_default();
    RawService {
        span: fields.span(),
        name,
        vip,
        protocol,
        ports: listed.map(|ports| Spanned::new(ports.span(), ports.into_inner().0)),
        affinity,
        spread_hot_sources,
        network_prefix,
        rule,
        flow_idle,
        track,
        affinity_timeout,
        failback,
        probe,
        places,
        backends: backends
            .iter()
            .map(|fields| read_backend(fields, sink))
            .collect(),
    }
}

fn read_track(fields: &Fields<'_, '_>, protocol: Option<Protocol>, sink: &Sink) -> Option<Track> {
    let Some(field) = fields.get("track") else {
        return Some(Track::default());
    };
    let tracks = [
        ("changes", Track::Changes),
        ("always", Track::Always),
        ("never", Track::Never),
        ("quic", Track::Quic),
    ];
    let track = values::choice(&field, &tracks, sink)?;
    if track == Track::Quic && protocol? == Protocol::Tcp {
        sink.push(
            field
                .error(ErrorKind::Conflict, "is for UDP, and the service is TCP")
                .expected("\"changes\", \"always\" or \"never\"")
                .help("TCP flows stay where they are with `track = \"changes\"`, the default"),
        );
        return None;
    }
    Some(track)
}

fn read_affinity_timeout(
    fields: &Fields<'_, '_>,
    affinity: Option<Affinity>,
    track: Option<Track>,
    sink: &Sink,
) -> Option<Option<Duration>> {
    let Some(field) = fields.get("affinity_timeout") else {
        return Some(None);
    };
    let timeout = values::duration(&field, FLOW_IDLE, sink)?;
    // Compared only with what was read: what is wrong has its own error.
    if affinity? == Affinity::None {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`affinity_timeout` has no meaning with the affinity \"none\"",
            )
            .at(field.key_span)
            .expected("it only with `affinity = \"client\"` or \"network\"")
            .help("without an affinity every connection picks anew, and no client stays anywhere"),
        );
        return None;
    }
    if track? == Track::Never {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`affinity_timeout` contradicts `track = \"never\"`",
            )
            .at(field.key_span)
            .expected("one of the two")
            .help("\"never\" moves clients and connections at once with every change"),
        );
        return None;
    }
    Some(Some(timeout))
}

/// How long a network is that picks; `Some(None)` where networks don't.
fn read_network_prefix(
    fields: &Fields<'_, '_>,
    vip: Option<&Spanned<IpAddr>>,
    affinity: Option<Affinity>,
    sink: &Sink,
) -> Option<Option<u8>> {
    let (bits, default) = match vip.map(Spanned::get_ref) {
        Some(IpAddr::V4(_)) => (32, Service::NETWORK_PREFIX_IPV4),
        Some(IpAddr::V6(_)) => (128, Service::NETWORK_PREFIX_IPV6),
        // The family is not known: the VIP's own error stands already.
        None => (128, Service::NETWORK_PREFIX_IPV6),
    };
    let picks = affinity? == Affinity::Network;
    let Some(field) = fields.get("network_prefix") else {
        return Some(picks.then_some(default));
    };
    let prefix = values::number_u8(&field, 1..=bits, sink)?;
    if !picks {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`network_prefix` has no effect: only with `affinity = \"network\"` do networks pick",
            )
            .at(field.key_span.clone())
            .expected("`affinity = \"network\"` in the same service, or no `network_prefix`"),
        );
        return None;
    }
    Some(Some(prefix))
}

fn with_span<T>(field: &Field<'_, '_>, value: Option<T>) -> Option<Spanned<T>> {
    value.map(|value| Spanned::new(field.span.clone(), value))
}

fn read_backend(fields: &Fields<'_, '_>, sink: &Sink) -> RawBackend {
    let name = fields
        .require("name", "name = \"web1\"", sink)
        .and_then(|field| with_span(&field, values::name(&field, sink)));
    let address = fields
        .require("address", "address = \"192.0.2.21\"", sink)
        .and_then(|field| with_span(&field, values::address(&field, sink)));
    let weight = fields.read_or("weight", Backend::WEIGHT, |field| {
        values::number(field, WEIGHT, sink)
    });
    let priority = fields.read_or("priority", Backend::PRIORITY, |field| {
        values::number(field, PRIORITY, sink)
    });
    RawBackend {
        span: fields.span(),
        name,
        address,
        weight,
        priority,
    }
}

/// What kind of probe a file asks for.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    Tcp,
    Http,
    None,
}

/// The service's probe, given or by default; `Some(None)` for none.
fn read_probe(
    service: &Fields<'_, '_>,
    mode: Mode,
    protocol: Option<Protocol>,
    listed: Option<&Spanned<(Ports, Option<u16>)>>,
    sink: &Sink,
) -> Option<Option<Probe>> {
    let default_via = match mode {
        Mode::Forward => Via::Vip,
        // A node keeps nothing of what another sends to the VIP unless it picks itself.
        Mode::Pick => Via::Address,
    };
    let Some(field) = service.get("probe") else {
        // A misspelt [service.probe] gets here too; its own error stands already.
        return match protocol? {
            Protocol::Udp => Some(None),
            Protocol::Tcp | Protocol::TcpUdp => default_port(None, listed?, sink).map(|port| {
                Some(Probe {
                    via: default_via,
                    ..Probe::tcp(port)
                })
            }),
        };
    };
    let fields = Fields::open(&sections::PROBE, field.value, field.span.clone(), sink)?;
    let kind = fields
        .require("type", "type = \"tcp\"", sink)
        .and_then(|field| read_type(&field, sink));
    let port = match fields.get("port") {
        Some(field) => values::number_u16(&field, 1..=u16::MAX, sink),
        None if kind.is_none_or(|kind| kind == Type::None) => None,
        None => listed.and_then(|ports| default_port(Some(&fields), ports, sink)),
    };
    let interval = fields.read_or("interval", Probe::INTERVAL, |field| {
        values::duration(field, INTERVAL, sink)
    });
    let timeout = read_timeout(&fields, interval, sink);
    let rise = fields.read_or("rise", Probe::RISE, |field| {
        values::number_u8(field, 1..=u8::MAX, sink)
    });
    let fall = fields.read_or("fall", Probe::FALL, |field| {
        values::number_u8(field, 1..=u8::MAX, sink)
    });
    let via = fields.read_or("via", default_via, |field| {
        values::choice(field, &[("vip", Via::Vip), ("address", Via::Address)], sink)
    });
    let http = read_http(&fields, sink);
    let kind = match kind? {
        // The other settings may stay in the file while probing is off; a wrong one has its error by now.
        Type::None => return Some(None),
        Type::Http => http?,
        Type::Tcp => {
            refuse_http_keys(&fields, sink);
            ProbeKind::Tcp
        }
    };
    Some(Some(Probe {
        kind,
        port: port?,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        via: via?,
    }))
}

fn read_type(field: &Field<'_, '_>, sink: &Sink) -> Option<Type> {
    // What other versions or other balancers probe; here only to say that this version does not.
    const LATER: [&str; 12] = [
        "https", "smtp", "smtps", "imap", "pop3", "dns", "ldap", "radius", "mysql", "postgres",
        "redis", "icmp",
    ];
    let expected = one_of(&PROBES, '"');
    let found = values::text(field, &expected, sink)?;
    let problem = match found {
        "tcp" => return Some(Type::Tcp),
        "http" => return Some(Type::Http),
        "none" => return Some(Type::None),
        later if LATER.contains(&later) => "is not available in this version",
        _ => "has an unknown value",
    };
    let mut error = field.error(ErrorKind::BadValue, problem).expected(expected);
    if LATER.contains(&found) {
        error = error.help("\"tcp\" checks that the port accepts connections");
    } else if let Some(meant) = nearest(found, PROBES.into_iter()) {
        error = error.help(format!("did you mean \"{meant}\"?"));
    }
    sink.push(error);
    None
}

/// The port a probe takes if none is given: the first that the service lists.
fn default_port(
    probe: Option<&Fields<'_, '_>>,
    listed: &Spanned<(Ports, Option<u16>)>,
    sink: &Sink,
) -> Option<u16> {
    let (_, first) = listed.get_ref();
    if first.is_none() {
        let (span, title) = match probe {
            Some(probe) => (probe.span(), "missing key `port` in [service.probe]"),
            None => (
                listed.span(),
                "a TCP service on any port needs a [service.probe]",
            ),
        };
        sink.push(
            ConfigError::new(
                ErrorKind::MissingKey,
                format!("{title}: found ports = \"any\", which has no first port to probe"),
            )
            .at(span)
            .expected("a [service.probe] with a port")
            .help("add `port = 80` to [service.probe], or turn probing off with `type = \"none\"`"),
        );
    }
    *first
}

fn read_timeout(
    fields: &Fields<'_, '_>,
    interval: Option<Duration>,
    sink: &Sink,
) -> Option<Duration> {
    let Some(field) = fields.get("timeout") else {
        return Some(interval.map_or(Probe::TIMEOUT, |interval| interval.min(Probe::TIMEOUT)));
    };
    let timeout = values::duration(&field, TIMEOUT, sink)?;
    // Compared only with an interval that was read: a wrong one has its own error.
    if let Some(interval) = interval
        && timeout > interval
    {
        let mut error = field
            .error(ErrorKind::Conflict, "is longer than the interval")
            .expected(format!(
                "at most the interval, {}, so that two probes of a backend never overlap",
                humantime::format_duration(interval)
            ));
        if let Some(interval) = fields.get("interval") {
            error = error.related(interval.span, "the interval");
        }
        sink.push(error);
        return None;
    }
    Some(timeout)
}

fn read_http(fields: &Fields<'_, '_>, sink: &Sink) -> Option<ProbeKind> {
    let path = fields.read_or("path", "/".to_owned(), |field| {
        let expected =
            "a path that begins with `/` and has only printable ASCII characters, as \"/health\"";
        let path = values::text(field, expected, sink)?;
        let valid = path.starts_with('/')
            && path.len() <= PATH_MAX
            && path
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !valid {
            let error = field.error(ErrorKind::BadValue, "is no request path");
            sink.push(error.expected(expected));
        }
        valid.then(|| path.to_owned())
    });
    let host = fields.read_or("host", None, |field| {
        let expected = "a host name as the `Host` header carries it, as \"www.example.com\"";
        let host = values::text(field, expected, sink)?;
        let valid = (1..=HOST_MAX).contains(&host.len())
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        if !valid {
            sink.push(
                field
                    .error(ErrorKind::BadValue, "is no host name")
                    .expected(expected),
            );
        }
        valid.then(|| Some(host.to_owned()))
    });
    let status = fields.read_or("status", Probe::STATUS, |field| ports::status(field, sink));
    Some(ProbeKind::Http {
        path: path?,
        host: host?,
        status: status?,
    })
}

fn refuse_http_keys(fields: &Fields<'_, '_>, sink: &Sink) {
    for key in ["path", "host", "status"] {
        if let Some(field) = fields.get(key) {
            sink.push(
                ConfigError::new(
                    ErrorKind::Conflict,
                    format!("`{key}` has no meaning for a probe of type \"tcp\""),
                )
                .at(field.key_span)
                .expected("it only with `type = \"http\"`")
                .help("remove it, or set `type = \"http\"`"),
            );
        }
    }
}
