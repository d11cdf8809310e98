//! How the hosts are cabled: a bridge, a veth pair per host, addresses, routes and the settings DSR needs.

use std::fmt::Write as _;
use std::path::Path;

use super::error::Result;
use super::host::Host;
use super::namespace::Namespace;
use super::offload::disable_transmit_checksum;
use super::plan::{BRIDGE, INTERFACE, Role, SEGMENT_PREFIX};

/// Builds the switch and a cable to every host.
pub(super) fn cable(switch: &Namespace, hosts: &[Host]) -> Result<()> {
    quiet(switch)?;
    // A switch does not look into IP: with this the kernel's bridge would drop malformed packets and keep fragments. The
    // setting is there where the kernel has br_netfilter.
    if Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() {
        switch.sysctl(&[("bridge.bridge-nf-call-iptables", "0")])?;
    }
    let mut lines = format!(
        "link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"
    );
    for host in hosts {
        let (name, mac, namespace) = (host.name(), host.mac(), host.namespace().name());
        write_lines(
            &mut lines,
            format_args!(
                "link add {name} type veth peer name {INTERFACE} address {mac} netns {namespace}\n\
             link set {name} master {BRIDGE} up\n"
            ),
        );
    }
    switch.ip_batch(&lines)?;
    for host in hosts {
        disable_transmit_checksum(switch, host.name())?;
    }
    Ok(())
}

/// Gives a host its addresses, its routes to the networks behind the others, and its role's settings.
pub(super) fn configure(host: &Host, all: &[Host]) -> Result<()> {
    quiet(host.namespace())?;
    disable_transmit_checksum(host.namespace(), INTERFACE)?;
    let mut lines = format!(
        "link set lo up\naddress add {}/{SEGMENT_PREFIX} dev {INTERFACE}\nlink set {INTERFACE} up\n",
        host.address()
    );
    for source in host.sources() {
        let bits = if source.is_ipv4() { 32 } else { 128 };
        write_lines(
            &mut lines,
            format_args!("address add {source}/{bits} dev {INTERFACE}\n"),
        );
    }
    for other in all.iter().filter(|other| other.name() != host.name()) {
        for (network, bits) in &other.plan().networks {
            write_lines(
                &mut lines,
                format_args!("route add {network}/{bits} via {}\n", other.address()),
            );
        }
    }
    host.namespace().ip_batch(&lines)?;
    match host.role() {
        Role::Backend => {
            // The VIP is on the loopback, but ARP for it is the director's to answer, and the backend must not ask
            // for others in the VIP's name.
            host.namespace().sysctl(&[
                ("ipv4.conf.all.arp_ignore", "1"),
                ("ipv4.conf.all.arp_announce", "2"),
            ])?;
            host.add_vip()
        }
        // Whoever is asked remembers the asker: ask as the one address that is on the segment.
        Role::Client => host
            .namespace()
            .sysctl(&[("ipv4.conf.all.arp_announce", "2")]),
        Role::Director => Ok(()),
    }
}

/// Settings that a namespace inherits from the machine and that must not depend on it. Without IPv6 nothing but
/// what a test sends is on the wire, so packets can be counted.
fn quiet(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("ipv4.ip_forward", "0"),
        ("ipv4.conf.all.rp_filter", "0"),
        ("ipv4.conf.default.rp_filter", "0"),
        ("ipv4.conf.all.arp_ignore", "0"),
        ("ipv4.conf.all.arp_announce", "0"),
    ])?;
    // A kernel may be built without IPv6.
    if Path::new("/proc/sys/net/ipv6").exists() {
        namespace.sysctl(&[
            ("ipv6.conf.default.disable_ipv6", "1"),
            ("ipv6.conf.all.disable_ipv6", "1"),
        ])?;
    }
    Ok(())
}

fn write_lines(lines: &mut String, what: std::fmt::Arguments<'_>) {
    lines.write_fmt(what).expect("a String takes everything");
}
