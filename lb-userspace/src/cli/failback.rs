//! `xdp-lb failback`: new flows go back to the best priority.

use super::{Context, Exit, change};
use crate::api::Request;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service, whose `failback` is "manual"
    #[arg(add = super::completions::services())]
    service: String,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let request = Request::Failback {
        service: args.service.clone(),
    };
    if args.json {
        change::apply_as_json(&request, context)
    } else {
        change::apply(&request, context)
    }
}
