//! `xdp-lb resume`: takes a drain or a failure back.

use super::{Context, Exit, change};
use crate::api::Request;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: change::TargetArgs,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    change::apply(
        &Request::Resume {
            backend: args.target.target(),
        },
        context,
    )
}
