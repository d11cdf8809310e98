//! Whether what the file asks for finds room: in the machine's memory, or in the maps that are there already.

use serde::Serialize;

use super::Check;
use crate::{
    cli::human,
    config::Config,
    control::fixed::{Held, other_limits, refuse_too_large, sizes},
    dataplane::{MapFacts, Maps, layout::planned, layout::processors, memory},
};

/// The memory that the maps take, or will take: part of `check --json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Whether the maps are there already.
    pinned: bool,
    maps: Vec<OfMap>,
    /// Bytes of all of them.
    memory: u64,
    /// Bytes that can still be taken; absent where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct OfMap {
    name: &'static str,
    max_entries: u32,
    /// Bytes.
    memory: u64,
}

impl Memory {
    fn of(maps: &[MapFacts], pinned: bool) -> Self {
        Self {
            pinned,
            maps: maps
                .iter()
                .map(|facts| OfMap {
                    name: facts.name,
                    max_entries: facts.max_entries,
                    memory: facts.memory,
                })
                .collect(),
            memory: maps.iter().map(|facts| facts.memory).sum(),
            available: memory::available().map(|available| available.bytes),
        }
    }

    /// Each map with its memory, the largest first.
    fn sentence(&self) -> String {
        let mut maps: Vec<&OfMap> = self.maps.iter().collect();
        maps.sort_by_key(|map| std::cmp::Reverse(map.memory));
        let each: Vec<String> = maps
            .iter()
            .map(|map| format!("{} {}", map.name, human::bytes(map.memory)))
            .collect();
        format!(
            "{} of kernel memory: {}",
            human::bytes(self.memory),
            each.join(", ")
        )
    }
}

/// What the maps take, and whether there is room for what the file asks for.
pub(super) fn checks(config: &Config, pinned: Option<&Maps>) -> (Vec<Check>, Option<Memory>) {
    match pinned {
        Some(maps) => in_maps(config, maps.facts(), &Held::of(maps)),
        None => in_memory(config),
    }
}

/// No maps yet: a daemon that starts makes them.
fn in_memory(config: &Config) -> (Vec<Check>, Option<Memory>) {
    let name = "memory";
    let sizes = sizes(config);
    let memory = match processors() {
        Ok(cpus) => Memory::of(&planned(&sizes, cpus), false),
        Err(error) => return (vec![Check::error(name, error.to_string())], None),
    };
    let check = match memory::room_for(&sizes) {
        Ok(_) => {
            let available = memory.available.map_or_else(String::new, |bytes| {
                format!("; {} are available", human::bytes(bytes))
            });
            Check::ok(
                name,
                format!("the maps will take {}{available}", memory.sentence()),
            )
        }
        Err(error) => Check::error(name, error.to_string()),
    };
    (vec![check], Some(memory))
}

/// A daemon that starts, or reloads, has the maps as they are.
fn in_maps(config: &Config, facts: &[MapFacts], held: &Held) -> (Vec<Check>, Option<Memory>) {
    let name = "memory";
    let memory = Memory::of(facts, true);
    let mut checks = vec![Check::ok(
        name,
        format!("the maps that are pinned take {}", memory.sentence()),
    )];
    if let Err(refusal) = refuse_too_large(&config.needs(), held) {
        checks.push(Check::error("limits", refusal.to_string()));
    }
    checks.extend(other_limits(config, held).into_iter().map(|difference| {
        Check::warning("limits", difference).help(format!(
            "to have it, make the maps anew, which stops forwarding: end xdp-lb, `rm -r {}`, start it again",
            config.node.pin_path.display()
        ))
    }));
    (checks, Some(memory))
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};
    use crate::config::samples::with_limits as config;
    use crate::dataplane::Sizes;

    #[test]
    fn every_map_and_their_sum_are_stated() {
        let (checks, memory) = in_memory(&config(""));
        assert_eq!(checks[0].result, Grade::Ok);
        let json = serde_json::to_value(memory.expect("known")).expect("serializes");
        let maps = json["maps"].as_array().expect("a list");
        assert_eq!(maps.len(), lb_common::abi::map::ALL.len());
        let sum: u64 = maps
            .iter()
            .map(|map| map["memory"].as_u64().expect("bytes"))
            .sum();
        assert_eq!(json["memory"], sum);
        assert_eq!(json["pinned"], false);
        for map in lb_common::abi::map::ALL {
            assert!(checks[0].message.contains(map), "{}", checks[0].message);
        }
    }

    #[test]
    fn what_is_pinned_is_compared_with_the_file() {
        let small = Held {
            sizes: Sizes::of(65_536, 1024, 1, 65_536).with_flows6(65_536),
        };
        let facts = planned(&small.sizes, 1);
        let (checks, memory) = in_maps(&config("slots = 4096"), &facts, &small);
        let grades: Vec<Grade> = checks.iter().map(|check| check.result).collect();
        assert_eq!(grades, [Grade::Ok, Grade::Error, Grade::Warning]);
        assert!(
            checks[1].message.starts_with("2 backends are too many"),
            "{checks:?}"
        );
        assert!(
            checks[2]
                .message
                .contains("`slots` in [limits] is 4096, and the maps were made with 1024"),
            "{checks:?}"
        );
        assert!(memory.expect("known").pinned);
    }
}
