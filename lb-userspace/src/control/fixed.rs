//! What can't change while the maps are in use: settings that a reload can't apply, and sizes that the maps were made with.

use super::reconcile::TooSmall;
use crate::{
    config::{Config, Mode, Needs},
    dataplane::{Maps, Sizes},
};

/// The maps' sizes that a configuration asks for.
#[must_use]
pub fn sizes(config: &Config) -> Sizes {
    let wanted = config.capacities();
    Sizes {
        fragment_buckets: Sizes::fragment_buckets(config.limits.fragments),
        ..Sizes::of(wanted.flows, wanted.slots, wanted.backends, wanted.ports)
            .with_flows6(wanted.flows6)
    }
}

/// The sizes that the maps were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// As [`Sizes`] has them.
    pub sizes: Sizes,
}

impl Held {
    /// Of maps that are there.
    #[must_use]
    pub fn of(maps: &Maps) -> Self {
        Self {
            sizes: Sizes {
                service_buckets: u32::try_from(maps.service_buckets().len()).unwrap_or(u32::MAX),
                services: maps.service_capacity(),
                slots: maps.slot_capacity(),
                backends: maps.backend_capacity(),
                flow_buckets: u32::try_from(maps.flow_buckets().len()).unwrap_or(u32::MAX),
                flow6_buckets: u32::try_from(maps.flow6_buckets().len()).unwrap_or(u32::MAX),
                fragment_buckets: u32::try_from(maps.fragment_buckets().len()).unwrap_or(u32::MAX),
            },
        }
    }
}

/// Refuses a configuration whose services take more than the maps were made for, whatever is leaving or in use besides.
///
/// # Errors
/// [`TooSmall`] with what is needed and what there is room for.
pub fn refuse_too_large(needs: &Needs, held: &Held) -> Result<(), TooSmall> {
    let sizes = held.sizes;
    if needs.services > u64::from(sizes.services) {
        return Err(TooSmall::Services {
            needed: needs.services,
            capacity: sizes.services,
        });
    }
    // Number 0 names no backend.
    let numbers = sizes.backends.saturating_sub(1);
    if needs.backends > u64::from(numbers) {
        return Err(TooSmall::Backends {
            needed: needs.backends,
            capacity: numbers,
        });
    }
    if needs.slots > u64::from(sizes.slots) {
        return Err(TooSmall::AllSlots {
            needed: needs.slots,
            capacity: sizes.slots,
        });
    }
    Ok(())
}

/// Where the file states a limit, and the maps were made with another: one line each, with both numbers.
#[must_use]
pub fn other_limits(config: &Config, held: &Held) -> Vec<String> {
    let (wanted, held) = (sizes(config), held.sizes);
    let limits = config.limits;
    let mut lines = Vec::new();
    let mut compare = |name: &str, stated: Option<u32>, rounded: u32, held: u32, shown: u32| {
        if let Some(stated) = stated
            && rounded != held
        {
            lines.push(format!(
                "`{name}` in [limits] is {stated}, and the maps were made with {shown}"
            ));
        }
    };
    let numbers = held.backends.saturating_sub(1);
    compare(
        "flows",
        Some(limits.flows),
        wanted.flow_buckets,
        held.flow_buckets,
        held.flow_buckets,
    );
    compare(
        "flows6",
        Some(limits.flows6),
        wanted.flow6_buckets,
        held.flow6_buckets,
        held.flow6_buckets,
    );
    compare("slots", limits.slots, wanted.slots, held.slots, held.slots);
    compare(
        "backends",
        limits.backends,
        wanted.backends,
        held.backends,
        numbers,
    );
    // Four buckets for each port: two halves, each half full at most.
    compare(
        "ports",
        limits.ports,
        wanted.service_buckets,
        held.service_buckets,
        held.service_buckets / 4,
    );
    lines
}

/// Why a configuration can't be applied to a running daemon, and what would apply it.
#[must_use]
pub fn fixed_while_running(old: &Config, new: &Config, held: &Held) -> Option<String> {
    const RESTART: &str =
        "takes a restart (`systemctl restart xdp-lb`), during which the data path forwards on";
    let (old_node, new_node) = (&old.node, &new.node);
    let pins = old_node.pin_path.display();
    let anew = |why: &str| {
        format!(
            "{why}; to accept that, end xdp-lb, stop forwarding with `rm -r {pins}`, and start it again"
        )
    };
    if old_node.interfaces != new_node.interfaces {
        return Some(format!("a change of `interfaces` in [node] {RESTART}"));
    }
    if old_node.unserved != new_node.unserved {
        return Some(format!("a change of `unserved` in [node] {RESTART}"));
    }
    let cluster = |config: &Config| {
        let node = &config.node;
        (
            node.mode,
            node.cluster_mac,
            config.cluster_ip(),
            node.peer_port,
        )
    };
    if (old_node.mode, new_node.mode) != (Mode::Forward, Mode::Forward) {
        if cluster(old) != cluster(new) {
            return Some(anew(
                "`mode`, `cluster_mac`, `cluster_ip` and `peer_port` in [node] belong to the loaded program",
            ));
        }
        if (&old_node.name, old.own_address()) != (&new_node.name, new.own_address()) {
            return Some(format!(
                "who this node is, by `name` in [node] and the address of that backend, {RESTART}"
            ));
        }
    }
    if old.control != new.control {
        return Some(format!("a change in [control] {RESTART}"));
    }
    if old_node.xdp_mode != new_node.xdp_mode {
        return Some(anew("`xdp_mode` in [node] belongs to the attached program"));
    }
    if old_node.pin_path != new_node.pin_path {
        return Some(anew(
            "`pin_path` in [node] is where the running data path is",
        ));
    }
    if old_node.seed != new_node.seed {
        return Some(anew(
            "with another `seed` in [node] every client goes to another backend, which breaks all connections",
        ));
    }
    // A limit that was stated before and is not met either was warned of at the start.
    if old.limits != new.limits
        && let Some(difference) = other_limits(new, held).first()
    {
        return Some(anew(difference));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::samples::with_limits as config;

    fn held(config: &Config) -> Held {
        Held {
            sizes: sizes(config),
        }
    }

    #[test]
    fn a_limit_that_the_maps_meet_already_may_be_written_down() {
        let silent = config("");
        let maps = held(&silent);
        for same in [
            "slots = 1048576",
            "backends = 4096",
            "ports = 65536",
            "flows = 65536",
            // Rounded up to the same power of two.
            "flows = 40000",
        ] {
            assert_eq!(
                fixed_while_running(&silent, &config(same), &maps),
                None,
                "{same}"
            );
        }
        for (other, words) in [
            (
                "slots = 2097152",
                "`slots` in [limits] is 2097152, and the maps were made with 1048576",
            ),
            (
                "backends = 8000",
                "`backends` in [limits] is 8000, and the maps were made with 4096",
            ),
            (
                "ports = 1000000",
                "`ports` in [limits] is 1000000, and the maps were made with 65536",
            ),
            (
                "flows = 25600000",
                "`flows` in [limits] is 25600000, and the maps were made with 65536",
            ),
        ] {
            let refusal = fixed_while_running(&silent, &config(other), &maps).expect(other);
            assert!(refusal.starts_with(words), "{refusal}");
            assert!(refusal.contains("rm -r /sys/fs/bpf/xdp-lb"), "{refusal}");
        }
    }

    /// Without limits in the file, growth within what the maps hold is no change of limits, though more room would be taken
    /// if the maps were made anew.
    #[test]
    fn growth_within_the_maps_is_taken() {
        let small = config("");
        let mut large = small.clone();
        let one = large.services[0].backends[0].clone();
        large.services[0].backends = (0..3000)
            .map(|n| crate::config::Backend {
                name: format!("b{n}"),
                ..one.clone()
            })
            .collect();
        assert_ne!(sizes(&small), sizes(&large));
        assert_eq!(fixed_while_running(&small, &large, &held(&small)), None);
        assert_eq!(refuse_too_large(&large.needs(), &held(&small)), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let maps = Held {
            sizes: Sizes::of(1024, 4096, 3, 10),
        };
        let needs = Needs {
            services: 2,
            backends: 3,
            slots: 4096,
            ports: 2,
        };
        assert_eq!(refuse_too_large(&needs, &maps), Ok(()));
        let cases = [
            (
                Needs {
                    services: 4097,
                    ..needs
                },
                ["4097", "4096"],
            ),
            (
                Needs {
                    backends: 4,
                    ..needs
                },
                ["4 backends", "3"],
            ),
            (
                Needs {
                    slots: 6144,
                    ..needs
                },
                ["6144", "4096"],
            ),
        ];
        for (needs, numbers) in cases {
            let text = refuse_too_large(&needs, &maps).unwrap_err().to_string();
            for number in numbers {
                assert!(text.contains(number), "no {number} in {text}");
            }
        }
    }
}
