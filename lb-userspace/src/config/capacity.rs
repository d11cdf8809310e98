//! How much a configuration needs of each map, and how much it gets: what `[limits]` says, or room to grow.

use super::model::{Config, Limits};
use crate::maglev;

/// The most services there can be.
pub const SERVICES_MAX: usize = 4_096;
/// The most backends there can be: a slot names one in 16 bits, and 0 names none.
pub const BACKENDS_MAX: u32 = 65_535;
/// The most flows that can be asked for: 64 bytes each make 4 GiB.
pub const FLOWS_MAX: u32 = 1 << 26;
/// The most slots there can be, which a service's value in the lookup can name: 256 MiB.
pub const SLOTS_MAX: u32 = lb_common::service::MAX_SLOT_OFFSET;
/// The most ports that can be asked for: their lookup takes as much as a direct map may (`MOST_DIRECT_BYTES`).
pub const PORTS_MAX: u32 = 1 << 21;

/// No fewer than these, however little the file holds: a small file grows without the maps being made anew.
const BACKENDS_MIN: u32 = 4_096;
/// As above: 4 MiB.
const SLOTS_MIN: u32 = 1 << 20;
/// As above: one service that lists a whole port space.
const PORTS_MIN: u32 = 65_536;

/// The slots of the table of a service whose backends have these weights.
#[must_use]
pub fn table_slots(weights: &[u32]) -> u64 {
    1 << maglev::table_bits(weights)
}

/// What the services of a file take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Services.
    pub services: u64,
    /// Backends, those of two services twice.
    pub backends: u64,
    /// Slots of all tables, with the weights that the file says.
    pub slots: u64,
    /// (VIP, protocol, port) triples.
    pub ports: u64,
}

/// How many entries the maps are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Flows.
    pub flows: u32,
    /// IPv6 clients' flows.
    pub flows6: u32,
    /// Slots of all tables together.
    pub slots: u32,
    /// Backends of all services together.
    pub backends: u32,
    /// (VIP, protocol, port) triples.
    pub ports: u32,
}

impl Config {
    /// What the services take.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for service in &self.services {
            let weights: Vec<u32> = service.backends.iter().map(|b| b.weight).collect();
            needs.services += 1;
            needs.backends += weights.len() as u64;
            needs.slots += table_slots(&weights);
            needs.ports +=
                u64::from(service.ports.entries()) * service.protocol.each().len() as u64;
        }
        needs
    }

    /// What the maps are made for: the limits that the file states; for the others twice what the services take, rounded up
    /// to a power of two, and no less than 4,096 backends, 1,048,576 slots and 65,536 ports.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        let needs = self.needs();
        let Limits {
            flows,
            flows6,
            slots,
            backends,
            ports,
            fragments: _,
        } = self.limits;
        Capacities {
            flows,
            flows6,
            slots: slots.unwrap_or(roomy(needs.slots, SLOTS_MIN, SLOTS_MAX)),
            backends: backends.unwrap_or(roomy(needs.backends, BACKENDS_MIN, BACKENDS_MAX)),
            ports: ports.unwrap_or(roomy(needs.ports, PORTS_MIN, PORTS_MAX)),
        }
    }
}

/// Twice what is needed, as a power of two between the bounds.
fn roomy(needed: u64, least: u32, most: u32) -> u32 {
    let doubled = needed.saturating_mul(2).min(u64::from(most));
    u32::try_from(doubled.next_power_of_two())
        .unwrap_or(most)
        .clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_to_grow_up_to_the_most() {
        assert_eq!(roomy(3, SLOTS_MIN, SLOTS_MAX), 1 << 20);
        assert_eq!(roomy(1 << 19, SLOTS_MIN, SLOTS_MAX), 1 << 20);
        assert_eq!(roomy((1 << 19) + 1, SLOTS_MIN, SLOTS_MAX), 1 << 21);
        assert_eq!(roomy(1 << 25, SLOTS_MIN, SLOTS_MAX), 1 << 26);
        assert_eq!(roomy(1 << 26, SLOTS_MIN, SLOTS_MAX), 1 << 26);
        assert_eq!(roomy(u64::MAX, SLOTS_MIN, SLOTS_MAX), 1 << 26);
        assert_eq!(roomy(3000, BACKENDS_MIN, BACKENDS_MAX), 8192);
        assert_eq!(roomy(40_000, BACKENDS_MIN, BACKENDS_MAX), 65_535);
    }

    /// A file of the most services there can be with sixteen backends each, but for the first.
    fn large(of_first: usize) -> String {
        let mut text = String::from("[node]\nname = \"lb\"\ninterfaces = [\"eth0\"]\n");
        for service in 0..SERVICES_MAX {
            let count = if service == 0 { of_first } else { 16 };
            let backends: Vec<String> = (1..=count)
                .map(|n| format!("{{ name = \"b{n}\", address = \"198.51.100.{n}\" }}"))
                .collect();
            text += &format!(
                "[[service]]\nname = \"s{service}\"\nvip = \"10.0.{}.{}\"\nprotocol = \"tcp\"\nports = [80]\nbackend = [{}]\n",
                service >> 8,
                service & 255,
                backends.join(", "),
            );
        }
        text
    }

    #[test]
    fn the_largest_file_needs_no_limits() {
        let config = Config::parse("large.toml", &large(15))
            .unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        assert_eq!(
            config.needs(),
            Needs {
                services: 4_096,
                backends: 65_535,
                slots: 4_096 << 11,
                ports: 4_096,
            }
        );
        assert_eq!(
            config.capacities(),
            Capacities {
                flows: Limits::FLOWS,
                flows6: Limits::FLOWS,
                slots: 4_096 << 12,
                backends: 65_535,
                ports: 65_536,
            }
        );
    }

    #[test]
    fn one_backend_too_many_is_refused_with_the_numbers() {
        let errors = Config::parse("large.toml", &large(16)).unwrap_err();
        let text = errors.render(false);
        for part in ["found 65536", "at most 65535", "several directors"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
}
