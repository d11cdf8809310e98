//! `xdp-lb flows`: the flows that are recorded, which are those that a change has met.

use std::net::Ipv4Addr;

use anyhow::bail;
use ipnet::Ipv4Net;
use lb_common::{
    abi::text,
    flow::{FlowBucket, FlowKey, FlowState, Key, Phase, TICK_NS},
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
    /// Only flows of this client or network (`10.1.0.0/16`)
    #[arg(long, value_name = "ADDRESS", value_parser = network)]
    client: Option<Ipv4Net>,
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

fn network(text: &str) -> Result<Ipv4Net, String> {
    text.parse()
        .or_else(|_no_net| text.parse::<Ipv4Addr>().map(Ipv4Net::from))
        .map_err(|_error| "expected an IPv4 address or network".to_owned())
}

/// A recorded flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    key: FlowKey,
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
    let flows = recorded(pinned.maps.flow_buckets(), pinned.maps.control().seed());
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
            .line("no flow is recorded: only flows that a change has met are")?;
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

/// Every flow in the table whose two words belong together.
fn recorded(buckets: &[FlowBucket], seed: Seed) -> Vec<Flow> {
    let ways = buckets.iter().flat_map(|bucket| &bucket.ways);
    ways.filter_map(|way| {
        let state = FlowState(way.state.get());
        let key = way.key();
        let whole = state.used() && state.belongs(key.hash(seed), key.owner());
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
            && args
                .client
                .is_none_or(|net| net.contains(&Ipv4Addr::from(flow.key.client)))
            && (args.all || lives(flow, service.map(|info| info.flow_idle_ms), now))
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

/// Whether a flow has neither ended nor been silent for too long.
fn lives(flow: &Flow, flow_idle_ms: Option<u64>, now: u16) -> bool {
    let silent = silent_ns(flow, now) / 1_000_000;
    flow.state.phase() != Phase::Ended && flow_idle_ms.is_none_or(|idle| silent <= idle)
}

fn silent_ns(flow: &Flow, now: u16) -> u64 {
    u64::from(flow.state.silence(now)) * TICK_NS
}

fn flow_row(flow: &Flow, names: &Names, now: u16) -> Row {
    let service = flow.key.service;
    let port = flow.key.service_port();
    let vip = names
        .vip(service)
        .map_or(Value::Null, |vip| json!(format!("{vip}:{port}")));
    let phase = match flow.state.phase() {
        Phase::Opening => "opening",
        Phase::Open => "open",
        Phase::Closing => "closing",
        Phase::Ended => "ended",
    };
    row! {
        "client" => format!("{}:{}", Ipv4Addr::from(flow.key.client), flow.key.client_port()),
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
    use lb_common::abi::{BackendInfo, ServiceInfo, text_field};

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

    fn ask(line: &[&str], buckets: &[FlowBucket]) -> Report {
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
            r#"{"flows":[{"client":"10.0.0.7:40000","vip":"192.0.2.10:80","service":"web","backend":"b1","phase":"open","silent_s":10}],"total":1}"#
        );
    }
}
