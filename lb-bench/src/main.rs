//! The suite of xdp-lb's benchmark; `cargo xtask bench` builds and runs it.

mod alone;
mod chart;
mod controller;
mod datapath;
mod growth;
mod live;
mod peers;
mod progress;
mod rows;
mod scenes;
mod stage;
mod targets;
mod vm;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Error, Result, ensure};
use clap::Parser;
use lb_userspace::bench::{
    machine::Machine,
    measure::Plan,
    results::{Outcome, Report},
    table::table,
};

/// Nanoseconds per packet of the data path, against the least that a balancer must do; and what the controller takes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// A few short bursts: to see that everything works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Bursts of each program, of 124 laps of 2,048 packets
    #[arg(long, value_name = "N")]
    bursts: Option<u32>,
    /// Write bench.json and bench.svg into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Show what has changed since this bench.json was written
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// In a virtual machine as well, beside IPVS: instructions of each frame with the distribution's own kernel (some minutes)
    #[arg(long)]
    vm: bool,
    /// As the first process of that machine
    #[arg(long, hide = true)]
    guest: bool,
    /// Only the rows whose name contains one of these
    rows: Vec<String>,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part.as_str()))
    }

    fn plan(&self) -> Plan {
        let plan = if self.quick { Plan::QUICK } else { Plan::FULL };
        Plan {
            bursts: self.bursts.unwrap_or(plan.bursts).max(1),
            ..plan
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.guest {
        return vm::first_process(&arguments.rows);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark loads BPF programs, which needs root: run it with sudo, or by `cargo xtask bench`, which does"
    );
    let before = arguments.compare.as_deref().map(read).transpose()?;
    let (report, failed) = measure(&arguments)?;
    let before = before.as_ref().map(|report| report.results.as_slice());
    println!("{}\n", report.machine.line());
    println!(
        "{}",
        table(&report.results, before, console::colors_enabled())
    );
    if let Some(vm) = &report.machine.vm {
        println!("\nvm_*: {}", vm.line());
    }
    for warning in report.machine.warnings() {
        eprintln!("warning: {warning}");
    }
    if let Some(directory) = &arguments.out {
        write(directory, &report)?;
    }
    for error in &failed {
        eprintln!("error: {error:#}");
    }
    ensure!(failed.is_empty(), "not every row could be measured");
    Ok(())
}

/// What could be measured, and why the rest could not.
fn measure(arguments: &Arguments) -> Result<(Report, Vec<Error>)> {
    let mut machine = Machine::read();
    let wanted = |name: &str| arguments.wants(name);
    let plan = arguments.plan();
    let mut results: Vec<Outcome> = Vec::new();

    let mut rows = rows::rows(wanted)?;
    growth::add(&mut rows, wanted)?;
    let samples = datapath::run("data path", &mut rows, plan)?;
    drop(rows);
    machine.note(&samples);
    results.extend(datapath::outcomes(&samples)?);

    let mut failed = Vec::new();
    let mut take = |part: Result<Vec<Outcome>>| match part {
        Ok(outcomes) => results.extend(outcomes),
        Err(error) => failed.push(error),
    };
    take(live::run(wanted, plan.bursts));
    take(controller::run(wanted, arguments.quick));
    if arguments.vm {
        take(vm::run(&arguments.rows).map(|measured| {
            let (virtual_machine, outcomes) = measured.unzip();
            machine.vm = virtual_machine;
            outcomes.unwrap_or_default()
        }));
    }
    Ok((Report { machine, results }, failed))
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no bench.json of this benchmark", path.display()))
}

fn write(directory: &Path, report: &Report) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("making the directory {}", directory.display()))?;
    let put = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("wrote {}", path.display());
        anyhow::Ok(())
    };
    put("bench.json", serde_json::to_string_pretty(report)? + "\n")?;
    put("bench.svg", chart::svg(&report.results, &report.machine)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_machine_is_only_there_when_asked_for() {
        let parsed =
            |line: &[&str]| Arguments::try_parse_from([&["bench"], line].concat()).expect("valid");
        let plain = parsed(&["--quick", "tcp4"]);
        assert!(!plain.vm && !plain.guest);
        let asked = parsed(&["--vm", "vm_ipvs", "vm_bridge"]);
        assert!(asked.vm && !asked.guest);
        assert_eq!(asked.rows, ["vm_ipvs", "vm_bridge"]);
        // As the machine's kernel starts it.
        assert!(parsed(&["--guest", "vm_ipvs"]).guest);
    }
}
