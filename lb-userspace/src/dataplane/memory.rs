//! How much memory there is for the maps: the machine's, and what the control group leaves of it.

use std::{fs, path::Path};

use indicatif::HumanBytes;
use lb_common::abi::map;

use super::{
    DataplaneError, MapFacts, Sizes,
    layout::{planned, processors},
};

/// The maps would take more memory than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the maps would take {} of kernel memory, and {} are available {}: the largest is {largest} with {}; {advice}",
    HumanBytes(*needed),
    HumanBytes(available.bytes),
    available.bound,
    HumanBytes(*of_largest)
)]
pub struct NoRoom {
    /// Bytes of all maps.
    pub needed: u64,
    /// What there is.
    pub available: Available,
    /// The largest map.
    pub largest: &'static str,
    /// Its bytes.
    pub of_largest: u64,
    /// What to do.
    pub advice: String,
}

/// Whether maps of these sizes can be made: gives them, or the refusal with its numbers. Asked before the kernel is, which
/// would say no more than `ENOMEM`, or end another process to make room.
///
/// # Errors
/// [`DataplaneError::NoRoom`]; [`DataplaneError::Io`] where the processors can't be counted.
pub fn room_for(sizes: &Sizes) -> Result<Vec<MapFacts>, DataplaneError> {
    let maps = planned(sizes, processors()?);
    match available() {
        Some(available) => Ok(judge(maps, available)?),
        // The kernel has the last word.
        None => Ok(maps),
    }
}

/// Compares what the maps take with what there is.
fn judge(maps: Vec<MapFacts>, available: Available) -> Result<Vec<MapFacts>, NoRoom> {
    let needed: u64 = maps.iter().map(|facts| facts.memory).sum();
    if needed <= available.bytes {
        return Ok(maps);
    }
    let (largest, of_largest) = maps
        .iter()
        .map(|facts| (facts.name, facts.memory))
        .max_by_key(|(_, memory)| *memory)
        .unwrap_or_default();
    let limit = match largest {
        map::FLOWS => "flows",
        map::SLOTS => "slots",
        map::SERVICES => "ports",
        _ => "backends",
    };
    Err(NoRoom {
        needed,
        available,
        largest,
        of_largest,
        advice: format!("lower `{limit}` in [limits], or give the machine more memory"),
    })
}

/// How much can still be taken, and what bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// Whose bytes these are, for a message: `on this machine`, or the control group.
    pub bound: String,
}

/// What the maps can take at most: `MemAvailable` of the machine, or less where a memory limit of the control group of this
/// process, or of one above it, leaves less. The kernel charges maps to the group of whoever makes them (since Linux 5.11).
/// `None` where the system does not tell.
#[must_use]
pub fn available() -> Option<Available> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| of_machine(&text))
        .map(|bytes| Available {
            bytes,
            bound: "on this machine".into(),
        });
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    of_groups(Path::new("/sys/fs/cgroup"), &groups)
        .into_iter()
        .chain(machine)
        .min_by_key(|available| available.bytes)
}

/// `MemAvailable` in bytes (proc_meminfo(5)).
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// What each limit of the groups in `/proc/self/cgroup` (cgroups(7)) leaves: of version 2, or of the memory controller of
/// version 1. Pages of files that were not used for long count as free, as in `MemAvailable`.
fn of_groups(root: &Path, groups: &str) -> Vec<Available> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mounts, limit, usage, inactive): (&[&str], _, _, _) = if controllers.is_empty() {
            (
                &["", "unified"],
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        } else if controllers.split(',').any(|name| name == "memory") {
            (
                &["memory"],
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        } else {
            continue;
        };
        for mount in mounts {
            let mount = root.join(mount);
            let mut group = Some(Path::new(path.trim_start_matches('/')));
            while let Some(path) = group {
                let directory = mount.join(path);
                let number = |file: &str| -> Option<u64> {
                    let text = fs::read_to_string(directory.join(file)).ok()?;
                    text.trim().parse().ok()
                };
                // "max", where there is no limit, is no number.
                if let (Some(limit), Some(usage)) = (number(limit), number(usage)) {
                    let reclaimable = fs::read_to_string(directory.join("memory.stat"))
                        .ok()
                        .and_then(|text| statistic(&text, inactive))
                        .unwrap_or(0);
                    found.push(Available {
                        bytes: limit.saturating_sub(usage.saturating_sub(reclaimable)),
                        bound: format!(
                            "within the memory limit of the control group {}",
                            Path::new("/").join(path).display()
                        ),
                    });
                }
                group = path.parent();
            }
        }
    }
    found
}

/// A number of `memory.stat`.
fn statistic(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_numbers() {
        let sizes = Sizes::of(25_600_000, 1 << 20, 4096, 65_536);
        let maps = planned(&sizes, 2);
        let with = |bytes| {
            judge(
                maps.clone(),
                Available {
                    bytes,
                    bound: "on this machine".into(),
                },
            )
        };
        assert_eq!(with(4 << 30).as_deref(), Ok(&maps[..]));
        let refusal = with(1 << 30).unwrap_err();
        assert_eq!(refusal.of_largest, 2 << 30);
        let text = refusal.to_string();
        for part in [
            "the maps would take 2.02 GiB",
            "1.00 GiB are available on this machine",
            "FLOWS with 2.00 GiB",
            "lower `flows` in [limits]",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert_eq!(refusal.needed, maps.iter().map(|m| m.memory).sum::<u64>());
    }

    #[test]
    fn what_the_machine_has() {
        let meminfo = "MemTotal:        8000000 kB\nMemAvailable:      64000 kB\n";
        assert_eq!(of_machine(meminfo), Some(64_000 * 1024));
        assert_eq!(of_machine("MemTotal: 1 kB\n"), None);
    }

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        let directory = root.join(path);
        fs::create_dir_all(&directory).expect("made");
        for (name, content) in files {
            fs::write(directory.join(name), content).expect("written");
        }
    }

    #[test]
    fn what_the_groups_leave() {
        let root = tempfile::TempDir::new().expect("a directory");
        group(
            root.path(),
            "system.slice",
            &[("memory.max", "5000\n"), ("memory.current", "4500\n")],
        );
        group(
            root.path(),
            "system.slice/xdp-lb.service",
            &[
                ("memory.max", "max\n"),
                ("memory.current", "400\n"),
                ("memory.stat", "anon 100\ninactive_file 300\n"),
            ],
        );
        let found = of_groups(root.path(), "0::/system.slice/xdp-lb.service\n");
        assert_eq!(found.len(), 1, "the inner one has no limit: {found:?}");
        assert_eq!(found[0].bytes, 500);
        assert!(found[0].bound.ends_with(" /system.slice"), "{found:?}");

        group(
            root.path(),
            "memory/box",
            &[
                ("memory.limit_in_bytes", "1000\n"),
                ("memory.usage_in_bytes", "900\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
            ],
        );
        let found = of_groups(root.path(), "5:devices:/\n4:memory:/box\n0::/\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].bytes, 300);
        // More is in use than the limit allows: nothing is left.
        group(
            root.path(),
            "memory/box",
            &[("memory.usage_in_bytes", "2000\n")],
        );
        assert_eq!(of_groups(root.path(), "4:memory:/box\n")[0].bytes, 0);
    }
}
