//! `xdp-lb maps`: the pinned maps, or the content of one of them.

mod content;

use anyhow::bail;
use lb_common::abi::map;
use serde::Serialize;

use super::{
    Context, Exit, human,
    pinned::Pinned,
    rows::{self, Row, row},
    status::meant,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show this map's content; without it, a list of all maps
    #[arg(value_name = "NAME", add = super::completions::maps())]
    name: Option<String>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

/// The shape of `maps --json`.
#[derive(Serialize)]
struct List {
    maps: Vec<Row>,
    /// Bytes of all of them.
    memory: u64,
}

/// The shape of `maps NAME --json`.
#[derive(Serialize)]
struct Content {
    map: &'static str,
    entries: Vec<Row>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let name = args.name.as_deref().map(known).transpose()?;
    let pinned = Pinned::open(context)?;
    let text = match name {
        None => list(&pinned, args.json, context)?,
        Some(map) => {
            let entries = content::rows(map, &pinned)?;
            if args.json {
                serde_json::to_string_pretty(&Content { map, entries })?
            } else {
                rows::table(&entries, context.screen.look)
            }
        }
    };
    context.screen.line(&text)?;
    Ok(Exit::Done)
}

/// The map of this name, in whatever case.
fn known(name: &str) -> anyhow::Result<&'static str> {
    let found = map::ALL
        .into_iter()
        .find(|map| map.eq_ignore_ascii_case(name));
    match found {
        Some(map) => Ok(map),
        None => bail!(
            "no map is named \"{name}\"{}",
            meant(name, map::ALL.into_iter())
        ),
    }
}

fn list(pinned: &Pinned, json: bool, context: &Context) -> anyhow::Result<String> {
    let mut maps = Vec::new();
    let mut memory = 0;
    for facts in pinned.maps.facts() {
        let usage = content::usage(facts.name, pinned)?;
        memory += facts.memory;
        let size = if json {
            serde_json::json!(facts.memory)
        } else {
            human::bytes(facts.memory).into()
        };
        maps.push(row! {
            "name" => facts.name,
            "type" => facts.kind,
            "key_size" => facts.key_size,
            "value_size" => facts.value_size,
            "max_entries" => facts.max_entries,
            "used" => usage.used,
            "maximum" => usage.maximum,
            "of" => usage.unit,
            "memory" => size,
        });
    }
    if json {
        return Ok(serde_json::to_string_pretty(&List { maps, memory })?);
    }
    Ok(format!(
        "{}\n\n{} in all",
        rows::table(&maps, context.screen.look),
        human::bytes(memory)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_case_and_the_nearest_of_wrong_ones() {
        assert_eq!(known("slots").expect("there is one"), "SLOTS");
        let error = known("slosts").expect_err("there is none").to_string();
        assert!(
            error.starts_with("no map is named \"slosts\"; did you mean SLOTS"),
            "{error}"
        );
    }
}
