//! `xdp-lb bench`: nanoseconds per packet of the program that is running, with its own maps.

use std::{cell::RefCell, net::Ipv4Addr};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lb_common::abi::{Port, text};

use super::{Context, Exit, human, pinned::Pinned, screen::Screen, status::meant};
use crate::{
    bench::{
        figures::Net,
        frame::{Destination, Flows, Kind, recipe},
        machine::Machine,
        measure::{Contender, Plan, Row, Sample, join, measure},
        results::{Outcome, Report},
        running::{judge, packets},
        table::table,
    },
    config::{Config, Node, Service},
    dataplane::{
        attach,
        rig::{Rig, Stand, Target},
    },
};

/// Services that are measured where none is named.
const UNASKED: usize = 4;
/// The rows that belong to no service. No service's name has a space.
const FLOOR: &str = "the floor";
const NOT_OURS: &str = "not ours";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure these services; without one, the first four of the file
    #[arg(value_name = "SERVICE", add = super::completions::services())]
    services: Vec<String>,
    /// The interface whose program is measured, if not the first
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// How often each row takes its turn; more find a shorter minimum on a busy machine
    #[arg(long, value_name = "N", default_value_t = Plan::CONSIDERATE.bursts,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    bursts: u32,
    /// For programs: one JSON object, as `bench.json` of the suite
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let stderr = Screen::stderr();
    let pinned = Pinned::open(context)?;
    let config = Config::load(context.reach.config())
        .map_err(|errors| anyhow::anyhow!("{}", errors.render(stderr.look.colour)))?;
    let ports = pinned.maps.ports()?;
    let subject = subject(args, context, &ports)?;
    let services = services(args, &config)?;
    let mut machine = Machine::read();

    let mut rows = vec![stand(&subject)?];
    let mut told = Vec::new();
    for service in services {
        match judged(&pinned, service, &ports) {
            Ok(()) => {
                rows.extend(of_service(service, &subject)?);
                told.push(service);
            }
            Err(why) => stderr.warn(&format!("{} is left out: {why}", service.name)),
        }
    }
    ensure!(!told.is_empty(), "no service can be measured now");
    rows.push(not_ours(&config, &subject)?);

    let plan = Plan {
        bursts: args.bursts,
        ..Plan::CONSIDERATE
    };
    let samples = samples(&mut rows, plan, &pinned, &told, &ports)?;
    machine.note(&samples);
    let report = Report {
        results: outcomes(&samples)?,
        machine,
    };
    if args.json {
        context
            .screen
            .line(&serde_json::to_string_pretty(&report)?)?;
        return Ok(Exit::Done);
    }
    let screen = &context.screen;
    screen.line(&format!("{} on {}\n", subject.name, report.machine.line()))?;
    screen.line(&table(&report.results, None, screen.look.colour))?;
    for warning in report.machine.warnings() {
        stderr.warn(&warning);
    }
    let packets = u64::from(plan.packets() + 1) * u64::from(plan.bursts);
    screen.line(&format!(
        "\nNothing was sent, and no flow was recorded. The packets were counted: {} for each row are in the counters of the \
         backends, and as many in the verdict `not_ours`.",
        human::count(packets)
    ))?;
    Ok(Exit::Done)
}

/// The program that is measured.
struct Subject {
    /// The interface's name.
    name: String,
    /// What frames are addressed to.
    mac: [u8; 6],
    program: u32,
}

fn subject(args: &Args, context: &Context, ports: &[Port]) -> Result<Subject> {
    let path = context.reach.setting("node", "pin_path", Node::PIN_PATH)?;
    let mut names = attach::pinned_interfaces(path.as_ref())?;
    names.sort();
    let name = match &args.interface {
        Some(name) if names.contains(name) => name.clone(),
        Some(name) => bail!(
            "xdp-lb has no program on {name}: expected one of {}",
            names.join(", ")
        ),
        None => names.first().cloned().with_context(|| {
            format!("no program is attached under {path}: start it with `xdp-lb run`")
        })?,
    };
    let program = attach::own_program(path.as_ref(), &name).with_context(|| {
        format!("the link of {name} under {path} can't be opened: run it with sudo")
    })?;
    let ifindex = nix::net::if_::if_nametoindex(name.as_str())
        .with_context(|| format!("there is no interface {name} in this network namespace"))?;
    let port = ports
        .iter()
        .find(|port| port.ifindex == ifindex && port.vlan == 0)
        .with_context(|| format!("the maps do not know {name}"))?;
    Ok(Subject {
        name,
        mac: lb_common::wire::mac_bytes(port.mac),
        program,
    })
}

/// Those that were named, or the first ones.
fn services<'c>(args: &Args, config: &'c Config) -> Result<Vec<&'c Service>> {
    if args.services.is_empty() {
        return Ok(config.services.iter().take(UNASKED).collect());
    }
    let find = |name: &String| {
        config
            .services
            .iter()
            .find(|service| service.name == *name)
            .with_context(|| {
                let names = config.services.iter().map(|service| service.name.as_str());
                format!("no service is named \"{name}\"{}", meant(name, names))
            })
    };
    args.services.iter().map(find).collect()
}

/// Whether the packets would leave a trace.
fn judged(pinned: &Pinned, service: &Service, ports: &[Port]) -> Result<()> {
    for id in pinned.names.services.keys() {
        // Read anew: a change may have moved its table.
        if let Some(info) = pinned.maps.service_info(*id)?
            && text(&info.name) == service.name
        {
            return Ok(judge(&pinned.maps, &info, ports)?);
        }
    }
    Err(crate::bench::running::LeftOut::Unknown.into())
}

fn stand(subject: &Subject) -> Result<Row> {
    let to = Destination::one(subject.mac, Ipv4Addr::new(192, 0, 2, 1).into(), 80);
    Ok(Row {
        name: FLOOR.into(),
        rig: Rig::load(&recipe(Kind::Tcp, Flows::One, &to))?,
        contender: Contender::Stand(Stand::Floor),
        action: None,
        warm_up: 0,
    })
}

fn of_service(service: &Service, subject: &Subject) -> Result<[Row; 2]> {
    let (kind, vip, port) = packets(service);
    let to = Destination::one(subject.mac, vip, port);
    let row = |name, flows| -> Result<Row> {
        Ok(Row {
            name: format!("{} {name}", service.name),
            rig: Rig::load(&recipe(kind, flows, &to))?,
            contender: Contender::Program(Target::of_id(subject.program)?),
            action: None,
            warm_up: 0,
        })
    };
    Ok([
        row("one flow", Flows::One)?,
        row("a million flows", Flows::MILLION)?,
    ])
}

/// A packet for nobody of the configuration.
fn not_ours(config: &Config, subject: &Subject) -> Result<Row> {
    let vips: Vec<_> = config.services.iter().map(|service| service.vip).collect();
    // Addresses for documentation (RFC 5737): 198.51.100.0/24.
    let other = (1..=u8::MAX)
        .map(|last| Ipv4Addr::new(198, 51, 100, last).into())
        .find(|address| !vips.contains(address))
        .context("all of 198.51.100.0/24 are VIPs")?;
    let to = Destination::one(subject.mac, other, 80);
    Ok(Row {
        name: NOT_OURS.into(),
        rig: Rig::load(&recipe(Kind::Tcp, Flows::One, &to))?,
        contender: Contender::Program(Target::of_id(subject.program)?),
        action: None,
        warm_up: 0,
    })
}

/// Measures; stops at once where a change begins that the packets would leave a trace in.
fn samples(
    rows: &mut [Row],
    plan: Plan,
    pinned: &Pinned,
    services: &[&Service],
    ports: &[Port],
) -> Result<Vec<Sample>> {
    let bar = ProgressBar::new(u64::from(plan.bursts) * rows.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta})") {
        bar.set_style(style);
    }
    let bar = RefCell::new(bar);
    let samples = measure(rows, plan, |name| {
        let bar = bar.borrow();
        bar.set_message(name.to_owned());
        bar.inc(1);
        let concerned = services
            .iter()
            .find(|s| name.starts_with(&format!("{} ", s.name)));
        match concerned {
            None => Ok(()),
            Some(service) => judged(pinned, service, ports).map_err(|why| {
                format!(
                    "stopped: {} changed while it was measured: {why}",
                    service.name
                )
            }),
        }
    });
    bar.borrow().finish_and_clear();
    Ok(join(samples?))
}

fn outcomes(samples: &[Sample]) -> Result<Vec<Outcome>> {
    let net = |sample: &Sample| -> Result<Net> {
        sample
            .net()
            .with_context(|| format!("{} was not measured", sample.name))
    };
    let floor = samples
        .iter()
        .find(|sample| sample.name == FLOOR)
        .context("the floor was not measured")?;
    let floor = net(floor)?;
    samples
        .iter()
        .map(|sample| Ok(Outcome::net(&sample.name, net(sample)?, floor, None)))
        .collect()
}
