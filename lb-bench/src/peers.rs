//! What a distribution has besides, at the same end of the same veth: nothing of it runs in the driver.

use anyhow::Result;

use crate::live::{FAR, command, ip};

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// nftables' ingress hook: a backend's MAC address by `jhash` of the source, and `fwd`, as nftlb's direct server return.
    Nftables,
    /// A bridge that forwards by a table of MAC addresses, back to where the frame came from.
    Bridge,
}

/// The destination of all frames, which the bridge finds in its table.
const DESTINATION: &str = "02:00:00:00:00:fe";
/// The interface's address while the bridge works: a frame to the interface itself would not be forwarded.
const ASIDE: &str = "02:00:00:00:00:fd";
const BRIDGE: &str = "bridge0";
const TABLE: &str = "xdp_lb_bench";

impl Peer {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Nftables, Self::Bridge];

    /// The row's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "peer_nftables_fwd_jhash",
            Self::Bridge => "peer_bridge",
        }
    }

    /// Takes its place.
    pub(crate) fn set_up(self) -> Result<()> {
        match self {
            Self::Nftables => {
                let backends: Vec<String> = (0..10)
                    .map(|number| format!("{number} : 02:04:0a:00:00:{:02x}", number + 1))
                    .collect();
                let rules = format!(
                    "table netdev {TABLE} {{ chain ingress {{ type filter hook ingress device \"{FAR}\" priority 0; \
                     ether saddr set {DESTINATION} ether daddr set jhash ip saddr . tcp sport mod 10 map {{ {} }} \
                     fwd to \"{FAR}\"; }}; }}",
                    backends.join(", ")
                );
                command("nft", [rules.as_str()].into_iter())
            }
            Self::Bridge => {
                ip(&format!("link set {FAR} address {ASIDE}"))?;
                ip(&format!(
                    "link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"
                ))?;
                ip(&format!("link set {BRIDGE} up"))?;
                ip(&format!("link set {FAR} master {BRIDGE}"))?;
                command(
                    "bridge",
                    format!("link set dev {FAR} hairpin on").split(' '),
                )?;
                command(
                    "bridge",
                    format!("fdb replace {DESTINATION} dev {FAR} master static").split(' '),
                )
            }
        }
    }

    /// Leaves it.
    pub(crate) fn take_down(self) -> Result<()> {
        match self {
            Self::Nftables => command("nft", ["delete", "table", "netdev", TABLE].into_iter()),
            Self::Bridge => {
                ip(&format!("link delete {BRIDGE}"))?;
                ip(&format!("link set {FAR} address {DESTINATION}"))
            }
        }
    }
}
