//! The checks that compare one setting with another.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    ops::Range,
};

use toml::Spanned;

use super::{
    capacity::{BACKENDS_MAX, PORTS_MAX, SERVICES_MAX, SLOTS_MAX, table_slots},
    error::{ConfigError, ErrorKind},
    model::{Affinity, Failback, Mode, Ports, Probe, Protocol, Rule, Track, Unserved, Via},
    raw::{RawBackend, RawConfig, RawNode, RawService},
    reader::{Sink, nearest},
};

/// Reports everything that is wrong between the settings of `config`.
pub(super) fn check(config: &RawConfig, sink: &Sink) {
    if let Some(node) = &config.node {
        unique(
            node.interfaces.iter(),
            "interface",
            " in `interfaces`",
            sink,
        );
    }
    let names = config
        .services
        .iter()
        .filter_map(|service| service.name.as_ref());
    unique(names, "service name", "", sink);
    for service in &config.services {
        backends_of(service, sink);
        hot_sources(service, sink);
    }
    same_address(&config.services, sink);
    families(&config.services, sink);
    vip_or_backend(&config.services, sink);
    overlaps(&config.services, sink);
    sizes(config, sink);
    for service in &config.services {
        priorities(service, sink);
    }
    cluster(config, sink);
}

/// With `rule = "single"` it must be clear who the single one is.
fn priorities(service: &RawService, sink: &Sink) {
    let Some(rule) = &service.rule else { return };
    if *rule.get_ref() != Rule::Single {
        return;
    }
    let mut seen: HashMap<u32, &RawBackend> = HashMap::new();
    for backend in &service.backends {
        let Some(priority) = backend.priority else {
            continue;
        };
        match seen.entry(priority) {
            Entry::Vacant(first) => {
                first.insert(backend);
            }
            Entry::Occupied(first) => sink.push(
                ConfigError::new(
                    ErrorKind::Conflict,
                    format!("two backends of a service with `rule = \"single\"` have the same priority: found {priority} again"),
                )
                .at(backend.span.clone())
                .expected("another `priority` for each backend; the lowest that is up serves")
                .related(first.get().span.clone(), "the other backend"),
            ),
        }
    }
}

/// What a cluster of nodes needs, and what means nothing without one.
fn cluster(config: &RawConfig, sink: &Sink) {
    let Some(RawNode {
        node: Some(node),
        places,
        ..
    }) = &config.node
    else {
        return;
    };
    if node.mode == Mode::Forward {
        for (key, span) in &places.cluster {
            sink.push(
                ConfigError::new(
                    ErrorKind::Conflict,
                    format!("`{key}` has no meaning with `mode = \"forward\"`"),
                )
                .at(span.clone())
                .expected("it only with `mode = \"pick\"`")
                .help("remove it, or set `mode = \"pick\"`"),
            );
        }
        return;
    }
    if node.seed.is_none() {
        sink.push(
            ConfigError::new(
                ErrorKind::MissingKey,
                "missing key `seed` in [node]: with `mode = \"pick\"` all nodes must pick alike",
            )
            .at(places.mode.clone())
            .expected("the same `seed` in the file of every node")
            .help("make one with `openssl rand -hex 16`"),
        );
    }
    if node.unserved == Unserved::Pass {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`unserved = \"pass\"` would have every node of the cluster answer",
            )
            .at(places.unserved.clone())
            .expected("\"drop\" with `mode = \"pick\"`")
            .help("give the port a service, with `rule = \"single\"` where one node alone shall serve it"),
        );
    }
    let names = || {
        config
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .filter_map(|backend| Some(backend.name.as_ref()?.get_ref().as_str()))
    };
    if !config.services.is_empty() && !names().any(|name| name == node.name) {
        let mut error = ConfigError::new(
            ErrorKind::Conflict,
            format!(
                "this node is in no service: found the name \"{}\"",
                node.name
            ),
        )
        .at(places.name.clone())
        .expected(
            "the name of one of the backends: with `mode = \"pick\"` they are the cluster's nodes",
        );
        if let Some(meant) = nearest(&node.name, names()) {
            error = error.help(format!("did you mean \"{meant}\"?"));
        }
        sink.push(error);
    }
    one_family(config, &places.mode, sink);
    for service in &config.services {
        service_of_a_cluster(service, sink);
    }
}

/// The nodes hear each other at addresses of one family.
fn one_family(config: &RawConfig, mode: &Range<usize>, sink: &Sink) {
    let mut families: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    let backends = config.services.iter().flat_map(|service| &service.backends);
    for RawBackend { name, address, .. } in backends {
        let (Some(name), Some(address)) = (name, address) else {
            return;
        };
        let (four, six) = families.entry(name.get_ref()).or_default();
        *four |= address.get_ref().is_ipv4();
        *six |= address.get_ref().is_ipv6();
    }
    let without = |six: bool| {
        let mut lacking = families
            .iter()
            .filter(|(_, has)| !if six { has.1 } else { has.0 });
        lacking.next().map(|(name, _)| *name)
    };
    if let (Some(no_four), Some(no_six)) = (without(false), without(true)) {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                format!(
                    "the nodes have no family in common: node \"{no_four}\" has no IPv4 address here, node \"{no_six}\" no \
                     IPv6 address"
                ),
            )
            .at(mode.clone())
            .expected("with `mode = \"pick\"` addresses of one family for all nodes, by which they hear each other")
            .help("list every node in a service of each family, or all in services of one"),
        );
    }
}

/// What differs between the nodes for good, or is known to some of them alone, must not decide who keeps a packet.
fn service_of_a_cluster(service: &RawService, sink: &Sink) {
    let places = &service.places;
    let refuse = |place: &Option<Range<usize>>, message: &str, expected: &str, help: &str| {
        let place = place.clone().unwrap_or_else(|| service.span.clone());
        let mut error = ConfigError::new(ErrorKind::Conflict, message)
            .at(place)
            .expected(expected);
        if !help.is_empty() {
            error = error.help(help);
        }
        sink.push(error);
    };
    if service.failback == Some(Failback::Manual) {
        refuse(
            &places.failback,
            "`failback = \"manual\"` has no meaning with `mode = \"pick\"`: each node would remember another past",
            "\"auto\", which is the default",
            "to keep a node from taking over again by itself, drain it before it comes back",
        );
    }
    if let Some(Some(Probe { via: Via::Vip, .. })) = &service.probe
        && places.via.is_some()
    {
        refuse(
            &places.via,
            "`via = \"vip\"` has no meaning with `mode = \"pick\"`: a node keeps only what it picks itself for",
            "\"address\", which is the default in this mode",
            "",
        );
    }
    if let Some(Some(share)) = &service.spread_hot_sources {
        refuse(
            &Some(share.span()),
            "`spread_hot_sources` contradicts `mode = \"pick\"`: each node would find other sources hot, and at another time",
            "it only with `mode = \"forward\"`",
            "with `affinity = \"none\"` every source is spread by its ports",
        );
    }
    if let Some(Some(_)) = service.affinity_timeout {
        refuse(
            &places.affinity_timeout,
            "`affinity_timeout` contradicts `mode = \"pick\"`: a node that has joined since does not know the clients that the \
             others have recorded",
            "it only with `mode = \"forward\"`",
            "without it a client leaves its node only where nodes come, go or are drained",
        );
    }
    if service.track == Some(Track::Always)
        && matches!(service.protocol, Some(Protocol::Udp | Protocol::TcpUdp))
    {
        refuse(
            &places.track,
            "`track = \"always\"` contradicts `mode = \"pick\"` where a service is UDP: a node that has joined since can't tell \
             a flow that another has recorded from a new one",
            "\"changes\", \"never\" or \"quic\"",
            "",
        );
    }
}

/// Reports each value that was there before.
fn unique<'a, T: std::hash::Hash + Eq + std::fmt::Display + 'a>(
    values: impl Iterator<Item = &'a Spanned<T>>,
    what: &str,
    place: &str,
    sink: &Sink,
) {
    let mut seen: HashMap<&T, Range<usize>> = HashMap::new();
    for value in values {
        match seen.entry(value.get_ref()) {
            Entry::Vacant(first) => {
                first.insert(value.span());
            }
            Entry::Occupied(first) => sink.push(
                ConfigError::new(
                    ErrorKind::Duplicate,
                    format!(
                        "duplicate {what}{place}: found \"{}\" again",
                        value.get_ref()
                    ),
                )
                .at(value.span())
                .expected(format!("another {what}"))
                .related(first.get().clone(), "first used here"),
            ),
        }
    }
}

fn backends_of(service: &RawService, sink: &Sink) {
    let place = match &service.name {
        Some(name) => format!(" in service \"{}\"", name.get_ref()),
        None => " in this service".to_owned(),
    };
    let names = service
        .backends
        .iter()
        .filter_map(|backend| backend.name.as_ref());
    unique(names, "backend name", &place, sink);
    let addresses = service
        .backends
        .iter()
        .filter_map(|backend| backend.address.as_ref());
    unique(addresses, "backend address", &place, sink);
    if !service.backends.is_empty()
        && service
            .backends
            .iter()
            .all(|backend| backend.weight == Some(0))
    {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                format!("every backend{place} has weight 0, so that none may get a new flow"),
            )
            .at(service.span.clone())
            .expected("at least one backend with a weight above 0")
            .help("to take the service out of use, remove it from the file"),
        );
    }
}

/// Where every connection picks for itself there is nothing left to spread.
fn hot_sources(service: &RawService, sink: &Sink) {
    if let (Some(Some(share)), Some(Affinity::None)) =
        (&service.spread_hot_sources, service.affinity)
    {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`spread_hot_sources` has no meaning with the affinity \"none\", which spreads every source",
            )
            .at(share.span())
            .expected("it only with `affinity = \"client\"` or \"network\"")
            .help("remove it, or set `affinity = \"client\"`"),
        );
    }
    if let (Some(Some(share)), Some(Some(_))) =
        (&service.spread_hot_sources, &service.affinity_timeout)
    {
        sink.push(
            ConfigError::new(
                ErrorKind::Conflict,
                "`spread_hot_sources` contradicts `affinity_timeout`",
            )
            .at(share.span())
            .expected("one of the two")
            .help("one takes a client's connections apart, the other keeps them together"),
        );
    }
}

/// A backend's name means the same server wherever it occurs: a drain by name takes all its services. It may have an address
/// of each family.
fn same_address(services: &[RawService], sink: &Sink) {
    let mut known: HashMap<(&str, bool), (usize, &Spanned<IpAddr>)> = HashMap::new();
    for (number, service) in services.iter().enumerate() {
        for RawBackend { name, address, .. } in &service.backends {
            let (Some(name), Some(address)) = (name, address) else {
                continue;
            };
            let server = (name.get_ref().as_str(), address.get_ref().is_ipv6());
            let (first, before) = *known.entry(server).or_insert((number, address));
            // Within one service the name itself is the error, and has been reported.
            if first != number && before.get_ref() != address.get_ref() {
                sink.push(
                    ConfigError::new(
                        ErrorKind::Conflict,
                        format!(
                            "backend \"{}\" has two addresses: found {} here and {} in another service",
                            name.get_ref(),
                            address.get_ref(),
                            before.get_ref()
                        ),
                    )
                    .at(address.span())
                    .expected(format!("{}, or another name", before.get_ref()))
                    .related(before.span(), "the other address"),
                );
            }
        }
    }
}

/// A backend gets the clients' packets as they are, so that its address is of their family: the VIP's.
fn families(services: &[RawService], sink: &Sink) {
    let family = |address: &IpAddr| match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    for service in services {
        let Some(vip) = &service.vip else { continue };
        let addresses = service.backends.iter().filter_map(|b| b.address.as_ref());
        let wanted = family(vip.get_ref());
        for address in addresses.filter(|address| family(address.get_ref()) != wanted) {
            sink.push(
                ConfigError::new(
                    ErrorKind::Conflict,
                    format!(
                        "a backend's address is of another family than its service's VIP: found the {} address {}",
                        family(address.get_ref()),
                        address.get_ref()
                    ),
                )
                .at(address.span())
                .expected(format!("an {wanted} address, as the VIP is one"))
                .help("to serve both families, write one service for each; the same servers may have the same names in both")
                .related(vip.span(), "the VIP"),
            );
        }
    }
}

fn vip_or_backend(services: &[RawService], sink: &Sink) {
    let mut vips: HashMap<IpAddr, &Spanned<IpAddr>> = HashMap::new();
    for vip in services.iter().filter_map(|service| service.vip.as_ref()) {
        vips.entry(*vip.get_ref()).or_insert(vip);
    }
    let backends = services.iter().flat_map(|service| &service.backends);
    for address in backends.filter_map(|backend| backend.address.as_ref()) {
        if let Some(vip) = vips.get(address.get_ref()) {
            sink.push(
                ConfigError::new(
                    ErrorKind::Conflict,
                    format!("a backend's address is a VIP: found {}", address.get_ref()),
                )
                .at(address.span())
                .expected("the backend's own address, by which the director reaches it")
                .related(vip.span(), "the VIP"),
            );
        }
    }
}

/// Services that claim the same port of a VIP: one error for each service that claims what an earlier line has.
fn overlaps(services: &[RawService], sink: &Sink) {
    struct Claim<'a> {
        first: u16,
        last: u16,
        ports: &'a Spanned<Ports>,
        service: usize,
    }
    let mut claims: HashMap<(IpAddr, Protocol), Vec<Claim<'_>>> = HashMap::new();
    for (number, service) in services.iter().enumerate() {
        let (Some(vip), Some(protocol), Some(ports)) =
            (&service.vip, service.protocol, &service.ports)
        else {
            continue;
        };
        for protocol in protocol.each() {
            let claims = claims.entry((*vip.get_ref(), *protocol)).or_default();
            let mut claim = |first, last| {
                claims.push(Claim {
                    first,
                    last,
                    ports,
                    service: number,
                });
            };
            match ports.get_ref() {
                Ports::Any => claim(0, u16::MAX),
                Ports::Ranges(ranges) => ranges
                    .iter()
                    .for_each(|range| claim(*range.start(), *range.end())),
            }
        }
    }
    // Two services of both protocols overlap in both, which is one mistake.
    let mut reported = std::collections::HashSet::new();
    let mut claims: Vec<_> = claims.into_iter().collect();
    claims.sort_by_key(|((vip, protocol), _)| (*vip, protocol.has_udp()));
    for ((vip, protocol), mut claims) in claims {
        claims.sort_by_key(|claim| (claim.first, claim.service));
        let mut reach: Option<&Claim<'_>> = None;
        for claim in &claims {
            if let Some(before) = reach
                && claim.first <= before.last
            {
                let (early, late) = match before.service < claim.service {
                    true => (before, claim),
                    false => (claim, before),
                };
                if reported.insert(late.service) {
                    let protocol = if protocol.has_tcp() { "TCP" } else { "UDP" };
                    // Port 0 stands for the beginning of "any" and is no port.
                    let port = claim.first.max(1);
                    sink.push(
                        ConfigError::new(
                            ErrorKind::Overlap,
                            format!("services overlap: found {protocol} port {port} of {vip} in two of them"),
                        )
                        .at(late.ports.span())
                        .expected("ports that no other service has on this VIP and protocol")
                        .related(early.ports.span(), "the other service's ports"),
                    );
                }
            }
            if reach.is_none_or(|before| before.last < claim.last) {
                reach = Some(claim);
            }
        }
    }
}

/// More than xdp-lb or the file's own limits can hold.
fn sizes(config: &RawConfig, sink: &Sink) {
    if let Some(service) = config.services.get(SERVICES_MAX) {
        sink.push(
            ConfigError::new(
                ErrorKind::Limit,
                format!("too many services: found {}", config.services.len()),
            )
            .at(service.span.clone())
            .expected(format!("at most {SERVICES_MAX}"))
            .help("this is the first that is too many; one service can have many ports"),
        );
    }
    let Some(limits) = &config.limits else {
        return;
    };
    Total {
        what: "backends",
        limit: limits.limits.backends,
        limit_span: limits.backends.clone(),
        most: BACKENDS_MAX,
        help: None,
    }
    .check(
        config
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| (1, backend.span.clone())),
        sink,
    );
    Total {
        what: "ports",
        limit: limits.limits.ports,
        limit_span: limits.ports.clone(),
        most: PORTS_MAX,
        help: Some("or use `ports = \"any\"`, which counts as one"),
    }
    .check(
        config.services.iter().filter_map(|service| {
            let ports = service.ports.as_ref()?;
            let protocols = service.protocol.map_or(1, |p| p.each().len() as u64);
            Some((
                protocols * u64::from(ports.get_ref().entries()),
                ports.span(),
            ))
        }),
        sink,
    );
    Total {
        what: "slots",
        limit: limits.limits.slots,
        limit_span: limits.slots.clone(),
        most: SLOTS_MAX,
        help: Some(
            "or make the weights within a service less unequal: a smaller table does for them then",
        ),
    }
    .check(
        config.services.iter().map(|service| {
            let weights: Vec<u32> = service.backends.iter().filter_map(|b| b.weight).collect();
            (table_slots(&weights), service.span.clone())
        }),
        sink,
    );
}

/// Something of which all services together may have only so much.
struct Total {
    what: &'static str,
    /// What [limits] says, if it says anything.
    limit: Option<u32>,
    limit_span: Option<Range<usize>>,
    /// The most that there can be, whatever [limits] says.
    most: u32,
    help: Option<&'static str>,
}

impl Total {
    /// Adds up `parts`, each with its place, and reports where they become too many.
    fn check(&self, parts: impl Iterator<Item = (u64, Range<usize>)>, sink: &Sink) {
        let at_most = self.limit.unwrap_or(self.most);
        let mut found: u64 = 0;
        let mut first_over = None;
        for (part, span) in parts {
            found += part;
            if found > u64::from(at_most) {
                first_over.get_or_insert(span);
            }
        }
        let Some(first_over) = first_over else {
            return;
        };
        let what = self.what;
        let mut error = ConfigError::new(
            ErrorKind::Limit,
            format!("too many {what} in all services together: found {found}"),
        )
        .at(first_over)
        .expected(format!("at most {at_most}; here it becomes too many"));
        error = if found > u64::from(self.most) {
            error.help(format!(
                "there can be {} at most: share the services among several directors",
                self.most
            ))
        } else {
            error.help(format!("raise `{what}` in [limits] to at least {found}"))
        };
        if let Some(help) = self.help {
            error = error.help(help);
        }
        if let Some(span) = &self.limit_span {
            error = error.related(span.clone(), "the limit");
        }
        sink.push(error);
    }
}
