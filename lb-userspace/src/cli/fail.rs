//! `xdp-lb fail`: emergency, the backend is treated as down now.

use super::{Context, Exit, change};
use crate::api::Request;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: change::TargetArgs,
    /// Even where no other backend of a service would be left
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let request = Request::Fail {
        backend: args.target.target(),
        force: args.force,
    };
    change::apply(&request, context)
}
