//! `xdp-lb weight`: another share while running.

use super::{Context, Exit, change};
use crate::api::Request;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: change::TargetArgs,
    /// The new weight, against those of the backends with the same priority, or `default` for the configuration's
    #[arg(value_name = "N|default", value_parser = weight)]
    weight: Weight,
    /// Weight 0 even where no other backend of a service would take new flows
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Configured,
    Exactly(u32),
}

fn weight(text: &str) -> Result<Weight, String> {
    if text == "default" {
        return Ok(Weight::Configured);
    }
    let number = text
        .parse()
        .map_err(|_error| "expected a whole number or `default`".to_owned())?;
    Ok(Weight::Exactly(number))
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let weight = match args.weight {
        Weight::Configured => None,
        Weight::Exactly(number) => Some(number),
    };
    change::apply(
        &Request::Weight {
            backend: args.target.target(),
            weight,
            force: args.force,
        },
        context,
    )
}
