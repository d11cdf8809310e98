//! Which parts of the data path a configuration uses, and with which the programs are loaded.

use lb_common::features::Features;

use super::ports;
use crate::{
    config::{Config, Mode, Track},
    neighbour::HostFacts,
};

/// What the configuration uses on this host: the programs are loaded with exactly that.
///
/// Where a reload changes it, there is a moment in which the maps use less than the programs know, never more: a program that
/// knows what is new is there before the maps use it, and one that has forgotten what is not used any more only after them.
#[must_use]
pub fn features(config: &Config, facts: &HostFacts) -> Features {
    let mut features = ports::features(config, facts);
    let mut uses = |used: bool, feature| {
        if used {
            features = features.with(feature);
        }
    };
    uses(config.node.mode == Mode::Pick, Features::PICK);
    uses(config.limits.fragments > 0, Features::FRAGMENTS);
    for service in &config.services {
        uses(service.vip.is_ipv6(), Features::IPV6);
        uses(service.track == Track::Always, Features::TRACK_ALWAYS);
        uses(service.track == Track::Quic, Features::QUIC);
        uses(service.affinity_timeout.is_some(), Features::CLIENTS);
        uses(service.spread_hot_sources.is_some(), Features::SPREAD);
    }
    features
}

/// Their names, in the order of the bits.
#[must_use]
pub fn names(features: Features) -> Vec<String> {
    (0..)
        .zip(Features::NAMES)
        .filter(|(bit, _)| features.has(Features(1 << bit)))
        .map(|(_, name)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limits: &str, keys: &str) -> Vec<String> {
        let text = format!(
            "[node]\nname = \"lb1\"\ninterfaces = [\"eth0\"]\n{limits}\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\n\
             protocol = \"tcp+udp\"\nports = [443]\naffinity = \"client\"\n{keys}\n\
             [[service.backend]]\nname = \"lb1\"\naddress = \"192.0.2.2\"\n"
        );
        let config =
            Config::parse("config.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        names(features(&config, &HostFacts::default()))
    }

    #[test]
    fn only_what_is_used() {
        assert_eq!(of("", ""), ["fragments"]);
        assert!(of("[limits]\nfragments = 0", "").is_empty());
        assert_eq!(of("", "track = \"never\""), ["fragments"]);
        assert_eq!(of("", "track = \"always\""), ["fragments", "track_always"]);
        assert_eq!(
            of("", "track = \"quic\"\naffinity_timeout = \"10m\""),
            ["fragments", "quic", "affinity_timeout"]
        );
        assert_eq!(
            of("", "spread_hot_sources = \"5%\""),
            ["fragments", "spread_hot_sources"]
        );
        let mode = "mode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"";
        assert_eq!(of(mode, ""), ["fragments", "pick"]);
    }
}
