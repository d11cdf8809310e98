//! `xdp-lb drain`: planned maintenance.

use std::time::Duration;

use super::{Context, Exit, change, wait};
use crate::api::Request;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: change::TargetArgs,
    /// Even where no other backend of a service would be left
    #[arg(long)]
    force: bool,
    /// Wait until the backend's flows have ended; Ctrl-C ends the waiting, not the drain
    #[arg(long)]
    wait: bool,
    /// Wait at most so long (`90s`, `10m`), then fail and leave the drain in force
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let target = args.target.target();
    let exit = change::apply(
        &Request::Drain {
            backend: target.clone(),
            force: args.force,
        },
        context,
    )?;
    if args.wait {
        wait::until_drained(target, args.timeout, context)
    } else {
        Ok(exit)
    }
}
