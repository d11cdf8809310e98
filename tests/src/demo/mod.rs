//! The demo: real HTTP requests through xdp-lb in a network of namespaces, with failures planted on the way.

mod interrupt;
mod ledger;
mod scenario;
mod screen;
mod stage;
mod summary;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::testbed;
use interrupt::{Interrupt, Interrupted};
use screen::Screen;
use stage::Stage;
use summary::Summary;

/// The exit status of a program that Ctrl-C ended, by the shells' convention (128 + SIGINT).
const INTERRUPTED: u8 = 130;

/// Watch xdp-lb spread, probe, fail over and drain real HTTP traffic, in a network inside this machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "demo", version)]
pub struct Options {
    /// Leave the network and the daemon up at the end, and print how to enter each host
    #[arg(long)]
    keep: bool,

    /// Print the measured numbers as one JSON object on the last line; exit with 1 if any is bad
    #[arg(long)]
    json: bool,

    /// About how long the show lasts, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(15..=3600))]
    seconds: u32,

    /// Remove what earlier runs with --keep have left, and do nothing else
    #[arg(long, conflicts_with_all = ["keep", "json", "seconds"])]
    clean: bool,
}

/// Runs the demo.
///
/// # Errors
/// When the network cannot be built, the daemon does not do what it should in time, or the show is interrupted by
/// something other than a signal. Whatever was built is removed before this returns.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.clean {
        return clean();
    }
    let interrupt = Interrupt::catch()?;
    let mut screen = Screen::new();
    match show(options, &interrupt, &mut screen) {
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; everything the demo made is removed");
            Ok(ExitCode::from(INTERRUPTED))
        }
        result => result,
    }
}

fn show(options: &Options, interrupt: &Interrupt, screen: &mut Screen) -> Result<ExitCode> {
    screen.say(stage::PICTURE)?;
    let mut stage = Stage::build(interrupt, screen)?;
    let findings = scenario::play(&mut stage, options.seconds)?;
    stage.end_traffic()?;
    let replies = stage.replies_through_director()?;
    let summary = Summary::new(&stage.ledger, &findings, replies);
    let text = summary.text(&stage.ledger, &findings);
    stage.say(&text)?;
    if options.keep {
        stage.keep().context("keep the network")?;
    } else {
        stage.remove()?;
    }
    let problems = summary.problems(&findings);
    for problem in &problems {
        eprintln!("not as it should be: {problem}");
    }
    if options.json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn clean() -> Result<ExitCode> {
    let removed = testbed::remove_kept()?;
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for tag in removed {
        println!("removed the network xlb-{tag}");
    }
    Ok(ExitCode::SUCCESS)
}
