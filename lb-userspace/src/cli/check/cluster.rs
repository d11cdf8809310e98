//! What a node of a cluster needs of its host (`mode = "pick"`).

use super::Check;
use crate::config::Config;

/// The cluster, and whether the node keeps its name for itself. Nothing where packets are forwarded.
pub(super) fn cluster(config: &Config) -> Vec<Check> {
    let Some([a, b, c, d, e, f]) = config.cluster_mac() else {
        return Vec::new();
    };
    let peers: Vec<&str> = config.peers().into_keys().collect();
    let mut checks = vec![Check::ok(
        "cluster",
        format!(
            "MAC address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}, this node is {}, its peers {}",
            config.node.name,
            if peers.is_empty() {
                "none".to_owned()
            } else {
                peers.join(", ")
            }
        ),
    )];
    for interface in &config.node.interfaces {
        checks.extend(announces(
            interface,
            setting("all", "arp_announce"),
            setting(interface, "arp_announce"),
        ));
    }
    checks
}

/// An IPv4 setting of an interface; `None` where it can't be read.
fn setting(interface: &str, name: &str) -> Option<u8> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{name}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// With less than 2 the host asks for its router in the VIP's name, and the router learns the node's own MAC address for it
/// (Documentation/networking/ip-sysctl.rst: the larger of the two counts).
fn announces(interface: &str, all: Option<u8>, own: Option<u8>) -> Option<Check> {
    let level = all.max(own)?;
    (level < 2).then(|| {
        Check::warning(
            "cluster",
            format!("arp_announce of {interface} is {level}: this node would ask for others in the VIP's name, and they would learn its own MAC address for it"),
        )
        .help("`sysctl -w net.ipv4.conf.all.arp_announce=2`, and keep it in /etc/sysctl.d")
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn the_larger_setting_counts() {
        let grade = |all, own| announces("eth0", all, own).map(|check| check.result);
        assert_eq!(grade(Some(0), Some(0)), Some(Grade::Warning));
        assert_eq!(grade(Some(1), Some(0)), Some(Grade::Warning));
        assert_eq!(grade(Some(2), Some(0)), None);
        assert_eq!(grade(Some(0), Some(2)), None);
        assert_eq!(grade(None, None), None, "what can't be read is not judged");
    }

    #[test]
    fn only_a_cluster_is_looked_at() {
        let text = |mode: &str| {
            format!(
                "[node]\nname = \"n2\"\ninterfaces = [\"nosuch0\"]\n{mode}[[service]]\nname = \"web\"\nvip = \"192.0.2.10\"\n\
                 protocol = \"tcp\"\nports = [80]\nbackend = [{{ name = \"n1\", address = \"192.0.2.1\" }}, \
                 {{ name = \"n2\", address = \"192.0.2.2\" }}]\n"
            )
        };
        let checks = |mode: &str| {
            cluster(&Config::parse("t", &text(mode)).unwrap_or_else(|errors| panic!("{errors}")))
        };
        assert!(checks("").is_empty());
        let found = checks("mode = \"pick\"\nseed = \"00112233445566778899aabbccddeeff\"\n");
        assert_eq!(
            found[0].message,
            "MAC address 02:bf:c0:00:02:0a, this node is n2, its peers n1"
        );
    }
}
