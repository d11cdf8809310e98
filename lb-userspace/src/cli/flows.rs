//! `xdp-lb flows`: the flows that are recorded, which are those that a change has met, unless a service tracks always; and the
//! clients (`affinity_timeout`).

use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use ipnet::IpNet;
use lb_common::{
    abi::{ServiceInfo, text},
    flow::{FlowLine, FlowName, FlowState, Key as _, Phase, TICK_NS, Way},
    hash::Seed,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context, Exit,
    pinned::{Names, Pinned},
    rows::{self, Row, row},
    status::meant,
};
use crate::dataplane::clock::coarse_ticks;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only flows of this service
    #[arg(long, add = super::completions::services())]
    service: Option<String>,
    /// Only flows on this backend
    #[arg(long, add = super::completions::backends())]
    backend: Option<String>,
    /// Only flows of this client or network (`10.1.0.0/16`, `2001:db8::/48`)
    #[arg(long, value_name = "ADDRESS", value_parser = network)]
    client: Option<IpNet>,
    /// Those that have ended or have been silent for the service's flow_idle as well
    #[arg(long)]
    all: bool,
    /// At most so many, those with the latest packet first; 0 for all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_no_net| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_error| "expected an IPv4 or IPv6 address or network".to_owned())
}

/// A recorded flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    key: FlowName,
    state: FlowState,
}

/// The shape of `flows --json`.
#[derive(Serialize)]
struct Report {
    flows: Vec<Row>,
    /// How many there are, those cut off by `--limit` among them.
    total: usize,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let pinned = Pinned::open(context)?;
    known(
        args.service.as_deref(),
        "service",
        pinned.names.service_names(),
    )?;
    known(
        args.backend.as_deref(),
        "backend",
        pinned.names.backend_names(),
    )?;
    let seed = pinned.maps.control().seed();
    let mut flows = recorded(pinned.maps.flow_buckets(), seed);
    flows.extend(recorded(pinned.maps.flow6_buckets(), seed));
    let report = report(args, flows, &pinned.names, coarse_ticks());
    if args.json {
        context
            .screen
            .line(&serde_json::to_string_pretty(&report)?)?;
        return Ok(Exit::Done);
    }
    if report.flows.is_empty() {
        context
            .screen
            .line("no flow is recorded: only flows that a change has met are, unless a service says `track = \"always\"`")?;
        return Ok(Exit::Done);
    }
    context
        .screen
        .line(&rows::table(&report.flows, context.screen.look))?;
    let hidden = report.total - report.flows.len();
    if hidden > 0 {
        context
            .screen
            .line(&format!("and {hidden} more: --limit 0 shows all"))?;
    }
    Ok(Exit::Done)
}

fn known<'n>(
    name: Option<&str>,
    what: &str,
    names: impl Iterator<Item = &'n str>,
) -> anyhow::Result<()> {
    let names: Vec<&str> = names.collect();
    match name {
        Some(name) if !names.contains(&name) => {
            bail!(
                "no {what} is named \"{name}\"{}",
                meant(name, names.into_iter())
            );
        }
        _ => Ok(()),
    }
}

/// Every flow in a table whose words belong together.
fn recorded<W: Way>(buckets: &[FlowLine<W>], seed: Seed) -> Vec<Flow> {
    let ways = buckets.iter().flat_map(|bucket| &bucket.ways);
    ways.filter_map(|way| {
        let state = FlowState(way.state().get());
        let key = way.flow();
        let whole = state.used() && state.belongs(key.hash(seed), key.owner());
        let key = key.named();
        whole.then_some(Flow { key, state })
    })
    .collect()
}

fn report(args: &Args, mut flows: Vec<Flow>, names: &Names, now: u16) -> Report {
    let is = |info_name: Option<&[u8; 64]>, wanted: &Option<String>| {
        wanted
            .as_ref()
            .is_none_or(|wanted| info_name.is_some_and(|name| text(name) == wanted))
    };
    flows.retain(|flow| {
        let (service, backend) = (
            names.services.get(&flow.key.service),
            names.backends.get(&flow.state.backend()),
        );
        is(service.map(|info| &info.name), &args.service)
            && is(backend.map(|info| &info.name), &args.backend)
            && args.client.is_none_or(|net| net.contains(&flow.key.client))
            && (args.all || service.is_none_or(|info| lives(flow, info, now)))
    });
    flows.sort_by_key(|flow| (flow.state.silence(now), flow.key));
    let total = flows.len();
    if args.limit > 0 {
        flows.truncate(args.limit);
    }
    Report {
        flows: flows
            .iter()
            .map(|flow| flow_row(flow, names, now))
            .collect(),
        total,
    }
}

/// Whether a flow has neither ended nor been silent for too long; of a client (`affinity_timeout`), whether it would still be
/// sent where it was.
fn lives(flow: &Flow, service: &ServiceInfo, now: u16) -> bool {
    let silent = silent_ns(flow, now) / 1_000_000;
    if is_client(flow) {
        silent <= u64::from(service.affinity_timeout_ms)
    } else {
        flow.state.phase() != Phase::Ended && silent <= service.flow_idle_ms
    }
}

/// Whether the record is no flow's, but of all that a client does.
fn is_client(flow: &Flow) -> bool {
    flow.key.ports == 0
}

fn silent_ns(flow: &Flow, now: u16) -> u64 {
    u64::from(flow.state.silence(now)) * TICK_NS
}

fn flow_row(flow: &Flow, names: &Names, now: u16) -> Row {
    let service = flow.key.service;
    let (client_port, port) = ((flow.key.ports >> 16) as u16, flow.key.ports as u16);
    let client = is_client(flow);
    let vip = names.vip(service).map_or(Value::Null, |vip| {
        if client {
            json!(vip)
        } else {
            json!(SocketAddr::new(vip, port))
        }
    });
    let protocol = match (client, flow.key.udp) {
        (true, _) => Value::Null,
        (false, true) => json!("udp"),
        (false, false) => json!("tcp"),
    };
    let phase = match flow.state.phase() {
        _ if client => "client",
        Phase::Opening => "opening",
        Phase::Open => "open",
        Phase::Closing => "closing",
        Phase::Ended => "ended",
    };
    row! {
        "client" => if client {
            json!(flow.key.client)
        } else {
            json!(SocketAddr::new(flow.key.client, client_port))
        },
        "protocol" => protocol,
        "vip" => vip,
        "service" => names.service(service),
        "backend" => names.backend(flow.state.backend()),
        "phase" => phase,
        // Half a second is as exact as the data path keeps it.
        "silent_s" => silent_ns(flow, now) / 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use lb_common::{
        abi::{BackendInfo, text_field},
        address::Ipv6,
        flow::{FlowBucket, FlowBucket6, FlowKey},
    };

    use super::*;
    use crate::cli::{Cli, Command};

    const SEED: Seed = Seed([1, 2]);

    fn names() -> Names {
        let mut names = Names::default();
        let service = |name: &str| ServiceInfo {
            name: text_field(name),
            vip: Ipv4Addr::new(192, 0, 2, 10).to_ipv6_mapped().octets(),
            flow_idle_ms: 60_000,
            ..ServiceInfo::default()
        };
        names
            .services
            .extend([(1, service("web")), (2, service("mail"))]);
        names.services.insert(
            3,
            ServiceInfo {
                vip: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10).octets(),
                ..service("web6")
            },
        );
        let backend = |name: &str| BackendInfo {
            name: text_field(name),
            ..BackendInfo::default()
        };
        names
            .backends
            .extend([(5, backend("b1")), (6, backend("b2"))]);
        names
    }

    /// (client's last byte, service, backend, ticks of silence before tick 1000, phase)
    fn table(flows: &[(u32, u16, u16, u16, Phase)]) -> Vec<FlowBucket> {
        let bucket = |(client, service, backend, silent, phase): &(u32, u16, u16, u16, Phase)| {
            let bucket = FlowBucket::default();
            let key = FlowKey::tcp(0x0a00_0000 + client, 40_000 << 16 | 80, *service);
            let hash = key.hash(SEED);
            key.write(&bucket.ways[2]);
            bucket.ways[2]
                .state
                .set(FlowState::new(*backend, key.owner(), 1000 - silent, hash, *phase).0);
            bucket
        };
        flows.iter().map(bucket).collect()
    }

    fn ask<W: Way>(line: &[&str], buckets: &[FlowLine<W>]) -> Report {
        let words = ["xdp-lb", "flows"].iter().chain(line);
        let Command::Flows(args) = Cli::try_parse_from(words).expect("right usage").command else {
            panic!("another command");
        };
        report(&args, recorded(buckets, SEED), &names(), 1000)
    }

    fn clients(report: &Report) -> Vec<String> {
        let clients = report
            .flows
            .iter()
            .map(|row| row.0[0].1.as_str().expect("a text").to_owned());
        clients.collect()
    }

    #[test]
    fn filters() {
        let buckets = table(&[
            (1, 1, 5, 0, Phase::Open),
            (2, 1, 6, 10, Phase::Closing),
            (3, 2, 5, 4, Phase::Open),
            (4, 1, 5, 2, Phase::Ended),
            (5, 1, 5, 500, Phase::Open), // silent for 268 s of 60
        ]);
        let of = |line: &[&str]| clients(&ask(line, &buckets));
        assert_eq!(
            of(&[]),
            ["10.0.0.1:40000", "10.0.0.3:40000", "10.0.0.2:40000"],
            "the latest first"
        );
        assert_eq!(of(&["--service", "mail"]), ["10.0.0.3:40000"]);
        assert_eq!(of(&["--backend", "b2"]), ["10.0.0.2:40000"]);
        assert_eq!(
            of(&["--client", "10.0.0.2/31"]),
            ["10.0.0.3:40000", "10.0.0.2:40000"]
        );
        assert_eq!(of(&["--all"]).len(), 5);
        let cut = ask(&["--limit", "1"], &buckets);
        assert_eq!((cut.flows.len(), cut.total), (1, 3));
        assert_eq!(ask(&["--limit", "0"], &buckets).flows.len(), 3);
    }

    #[test]
    fn ipv6_flows_are_shown_with_brackets_and_found_by_network() {
        let bucket = FlowBucket6::default();
        for (way, host) in [(0, 7u16), (3, 8)] {
            let client = Ipv6Addr::new(0x2001, 0xdb8, 0xaa, 0, 0, 0, 0, host);
            let key = FlowKey::tcp(Ipv6::from(client), 40_000 << 16 | 443, 3);
            key.write(&bucket.ways[way]);
            let state = FlowState::new(6, key.owner(), 990, key.hash(SEED), Phase::Open);
            bucket.ways[way].state.set(state.0);
        }
        let buckets = [bucket];
        let report = ask(&["--client", "2001:db8:aa::7"], &buckets);
        assert_eq!(
            serde_json::to_string(&report).expect("serializes"),
            r#"{"flows":[{"client":"[2001:db8:aa::7]:40000","protocol":"tcp","vip":"[2001:db8::10]:443","service":"web6","backend":"b2","phase":"open","silent_s":5}],"total":1}"#
        );
        assert_eq!(ask(&["--client", "2001:db8:aa::/48"], &buckets).total, 2);
        assert_eq!(ask(&["--client", "10.0.0.0/8"], &buckets).total, 0);
    }

    #[test]
    fn clients_are_no_flows() {
        let mut names = names();
        let web = names.services.get_mut(&1).expect("web");
        web.affinity_timeout_ms = 600_000;
        let row = |silent: u16| {
            let bucket = FlowBucket::default();
            let key = FlowKey::tcp(0x0a00_0007, 0, 1);
            let state = FlowState::new(5, key.owner(), 1000 - silent, key.hash(SEED), Phase::Open);
            key.write(&bucket.ways[0]);
            bucket.ways[0].state.set(state.0);
            let Command::Flows(args) = Cli::try_parse_from(["xdp-lb", "flows"])
                .expect("right usage")
                .command
            else {
                panic!("another command");
            };
            let report = report(&args, recorded(&[bucket], SEED), &names, 1000);
            serde_json::to_string(&report.flows).expect("serializes")
        };
        // 268 s, which is more than `flow_idle`.
        assert_eq!(
            row(500),
            r#"[{"client":"10.0.0.7","protocol":null,"vip":"192.0.2.10","service":"web","backend":"b1","phase":"client","silent_s":268}]"#
        );
    }

    #[test]
    fn a_torn_entry_is_no_flow() {
        let buckets = table(&[(1, 1, 5, 0, Phase::Open)]);
        FlowKey::tcp(0x0a00_00ff, 1, 1).write(&buckets[0].ways[2]);
        assert!(recorded(&buckets, SEED).is_empty());
    }

    #[test]
    fn the_fields_of_a_flow() {
        let report = ask(&[], &table(&[(7, 1, 5, 20, Phase::Open)]));
        assert_eq!(
            serde_json::to_string(&report).expect("serializes"),
            r#"{"flows":[{"client":"10.0.0.7:40000","protocol":"tcp","vip":"192.0.2.10:80","service":"web","backend":"b1","phase":"open","silent_s":10}],"total":1}"#
        );
    }
}
