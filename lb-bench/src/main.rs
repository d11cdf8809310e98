//! The suite of xdp-lb's benchmark; `cargo xtask bench` builds and runs it.

mod rows;
mod scenes;
mod stage;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_userspace::bench::measure::{Plan, measure};

/// Nanoseconds per packet of the data path, against the least that a balancer must do.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// A few short bursts: to see that everything works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Bursts of each program
    #[arg(long)]
    bursts: Option<u32>,
    /// Only the rows whose name contains one of these
    rows: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut plan = if arguments.quick {
        Plan::QUICK
    } else {
        Plan::FULL
    };
    plan.bursts = arguments.bursts.unwrap_or(plan.bursts);
    let wanted = |name: &str| {
        arguments.rows.is_empty()
            || arguments
                .rows
                .iter()
                .any(|part| name.contains(part.as_str()))
    };
    let mut rows = rows::rows(wanted)?;
    let samples = measure(&mut rows.rows, plan, |_| Ok(()))?;
    let floor = samples
        .iter()
        .find(|sample| sample.name == rows::FLOOR)
        .and_then(|sample| sample.net())
        .context("the floor was not measured")?;
    for sample in &samples {
        let Some(net) = sample.net() else {
            continue;
        };
        println!(
            "{:20} base {:6.2}/{:6.2} net {:6.2}/{:6.2} ratio {:5.2}",
            sample.name,
            sample.base.min().unwrap_or_default(),
            sample.base.median().unwrap_or_default(),
            net.min,
            net.median,
            net.ratio(&floor).unwrap_or_default()
        );
    }
    Ok(())
}
