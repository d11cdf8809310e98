//! What a distribution has besides, at the same end of the same veth: nothing of it runs in the driver.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    live::{FAR, command, ip},
    scenes::{PORT, VIP4},
};

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// nftables' ingress hook: a backend's MAC address by `jhash` of the source, and `fwd`, as nftlb's direct server return.
    Nftables,
    /// A bridge that forwards by a table of MAC addresses, back to where the frame came from.
    Bridge,
    /// IPVS with direct routing: one service whose scheduler is its Maglev table (`mh`) over source address and port, and its
    /// table of connections.
    Ipvs,
}

/// The destination of all frames, which the bridge finds in its table.
const DESTINATION: &str = "02:00:00:00:00:fe";
/// The interface's address while the bridge works: a frame to the interface itself would not be forwarded.
const ASIDE: &str = "02:00:00:00:00:fd";
const BRIDGE: &str = "bridge0";
const TABLE: &str = "xdp_lb_bench";
/// The director's address, in the backends' subnet.
const ADDRESS: &str = "10.255.255.254/8";
/// Backends of IPVS and nftables: as many as a scene has.
const BACKENDS: u8 = 10;
/// IPVS takes a connection up in its middle, as the frames are, instead of leaving it to the director's own stack.
const SLOPPY: (&str, &str) = ("/proc/sys/net/ipv4/vs/sloppy_tcp", "1");

impl Peer {
    /// Those that are measured on every machine; IPVS is a module, which many kernels of virtual machines and containers lack.
    pub(crate) const HERE: [Self; 2] = [Self::Nftables, Self::Bridge];

    /// The row's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "peer_nftables_fwd_jhash",
            Self::Bridge => "peer_bridge",
            Self::Ipvs => "peer_ipvs_dr",
        }
    }

    /// Takes its place.
    pub(crate) fn set_up(self) -> Result<()> {
        match self {
            Self::Nftables => {
                let backends: Vec<String> = (0..BACKENDS)
                    .map(|number| format!("{number} : {}", mac(number + 1)))
                    .collect();
                let rules = format!(
                    "table netdev {TABLE} {{ chain ingress {{ type filter hook ingress device \"{FAR}\" priority 0; \
                     ether saddr set {DESTINATION} ether daddr set jhash ip saddr . tcp sport mod {BACKENDS} map {{ {} }} \
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
            Self::Ipvs => {
                ip(&format!("address add {VIP4}/32 dev {FAR}"))?;
                ip(&format!("address add {ADDRESS} dev {FAR}"))?;
                ipvsadm(&format!("-A -t {VIP4}:{PORT} -s mh -b mh-port"))?;
                for number in 1..=BACKENDS {
                    let backend = format!("10.0.0.{number}");
                    ip(&format!(
                        "neighbour replace {backend} lladdr {} dev {FAR} nud permanent",
                        mac(number)
                    ))?;
                    ipvsadm(&format!("-a -t {VIP4}:{PORT} -r {backend}:{PORT} -g -w 1"))?;
                }
                let (setting, value) = SLOPPY;
                fs::write(setting, value).with_context(|| format!("writing {setting}"))
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
            Self::Ipvs => {
                ipvsadm("-C")?;
                ip(&format!("address flush dev {FAR}"))
            }
        }
    }
}

/// A backend's MAC address.
fn mac(number: u8) -> String {
    format!("02:04:0a:00:00:{number:02x}")
}

/// `ipvsadm` with these arguments, in this thread's namespace.
fn ipvsadm(arguments: &str) -> Result<()> {
    command("ipvsadm", arguments.split(' '))
}
