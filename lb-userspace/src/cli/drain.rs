//! `xdp-lb drain`: planned maintenance.

use super::{Context, Exit, change, wait};
use crate::api::{DrainTimeout, Request};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: change::TargetArgs,
    /// Even where no other backend of a service would be left
    #[arg(long)]
    force: bool,
    /// Wait until the backend's flows have ended, or were ended; Ctrl-C ends the waiting, not the drain
    #[arg(long)]
    wait: bool,
    /// After so long (`90s`, `10m`) end the flows that are left; `none` takes an earlier timeout back. The daemon sees to
    /// it, also if nobody waits
    #[arg(long, value_name = "DURATION|none", value_parser = timeout)]
    timeout: Option<DrainTimeout>,
}

fn timeout(text: &str) -> Result<DrainTimeout, String> {
    if text == "none" {
        return Ok(DrainTimeout::Never);
    }
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("expected a duration (`90s`, `10m`) or `none`: {error}"))?;
    let ms = duration.as_millis().try_into();
    ms.map(|ms| DrainTimeout::After { ms })
        .map_err(|_error| "expected a shorter duration".to_owned())
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let target = args.target.target();
    let exit = change::apply(
        &Request::Drain {
            backend: target.clone(),
            force: args.force,
            timeout: args.timeout.unwrap_or_default(),
        },
        context,
    )?;
    if args.wait {
        wait::until_drained(target, context)
    } else {
        Ok(exit)
    }
}
