//! How the hosts are cabled: a bridge, a veth pair per host, addresses, routes and the settings DSR needs.

use std::fmt::Write as _;
use std::path::Path;

use super::error::Result;
use super::host::{Host, whole};
use super::namespace::Namespace;
use super::offload::disable_transmit_checksum;
use super::plan::{BRIDGE, FAR, INTERFACE, Role, SEGMENT_PREFIX, SEGMENT6_PREFIX};

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
    let on_segment = || hosts.iter().filter(|host| host.role() != Role::Far);
    for host in on_segment() {
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
    for host in on_segment() {
        disable_transmit_checksum(switch, host.name())?;
    }
    Ok(())
}

/// The interface of the router towards the host behind it.
const FAR_INTERFACE: &str = "far0";

/// Cables the host behind the router to it. The router's end takes packets of at most `mtu` bytes; the host behind it does not
/// know that, so that it offers full-size segments.
pub(super) fn reach_far(hosts: &[Host], mtu: u32) -> Result<()> {
    let of = |role: Role| hosts.iter().find(|host| host.role() == role);
    let (Some(router), Some(far)) = (of(Role::Router), of(Role::Far)) else {
        return Ok(());
    };
    let ipv6 = router.has_ipv6();
    router.namespace().ip_batch(&format!(
        "link add {FAR_INTERFACE} mtu {mtu} type veth peer name {INTERFACE} address {} netns {}\n",
        far.mac(),
        far.namespace().name()
    ))?;
    router.namespace().sysctl(&[("ipv4.ip_forward", "1")])?;
    far.namespace().ip_batch("link set lo up\n")?;
    for (host, interface) in [(router, FAR_INTERFACE), (far, INTERFACE)] {
        disable_transmit_checksum(host.namespace(), interface)?;
        if ipv6 {
            lively(host.namespace(), &["all", "default", interface])?;
        }
    }
    if ipv6 {
        router
            .namespace()
            .sysctl(&[("ipv6.conf.all.forwarding", "1")])?;
    }
    let mut at_router = format!("link set {FAR_INTERFACE} up\n");
    let mut at_far = format!("link set {INTERFACE} mtu 1500 up\n");
    for ([gateway, address], bits) in FAR.into_iter().zip([24, 64]) {
        if address.is_ipv4() || ipv6 {
            write_lines(
                &mut at_router,
                format_args!("address add {gateway}/{bits} dev {FAR_INTERFACE}\n"),
            );
            write_lines(
                &mut at_far,
                format_args!(
                    "address add {address}/{bits} dev {INTERFACE}\nroute add default via {gateway}\n"
                ),
            );
        }
    }
    router.namespace().ip_batch(&at_router)?;
    far.namespace().ip_batch(&at_far)
}

/// Gives a host its addresses, its routes to the networks behind the others, and its role's settings.
pub(super) fn configure(host: &Host, all: &[Host]) -> Result<()> {
    quiet(host.namespace())?;
    if host.role() == Role::Far {
        return Ok(());
    }
    if host.has_ipv6() {
        lively(host.namespace(), &["all", "default", "lo", INTERFACE])?;
    }
    disable_transmit_checksum(host.namespace(), INTERFACE)?;
    let mut lines = format!(
        "link set lo up\naddress add {}/{SEGMENT_PREFIX} dev {INTERFACE}\nlink set {INTERFACE} up\n",
        host.address()
    );
    if host.has_ipv6() {
        write_lines(
            &mut lines,
            format_args!(
                "address add {}/{SEGMENT6_PREFIX} dev {INTERFACE}\n",
                host.address6()
            ),
        );
    }
    for source in host.sources().iter().chain(host.sources6()) {
        write_lines(
            &mut lines,
            format_args!("address add {} dev {INTERFACE}\n", whole(*source)),
        );
    }
    for other in all.iter().filter(|other| other.name() != host.name()) {
        for (network, bits) in &other.plan().networks {
            let gateway = match network.is_ipv4() {
                true => other.address(),
                false if host.has_ipv6() => other.address6(),
                false => continue,
            };
            write_lines(
                &mut lines,
                format_args!("route add {network}/{bits} via {gateway}\n"),
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
            host.add_vips()
        }
        // Whoever is asked remembers the asker: ask as the one address that is on the segment.
        Role::Client => host
            .namespace()
            .sysctl(&[("ipv4.conf.all.arp_announce", "2")]),
        Role::Director | Role::Router | Role::Far => Ok(()),
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

/// IPv6 without what would take time or depend on others: duplicate address detection and router advertisements.
fn lively(namespace: &Namespace, interfaces: &[&str]) -> Result<()> {
    for interface in interfaces {
        let settings = [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("router_solicitations", "0"),
        ]
        .map(|(key, value)| (format!("ipv6.conf.{interface}.{key}"), value));
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
            .collect();
        namespace.sysctl(&settings)?;
    }
    Ok(())
}

fn write_lines(lines: &mut String, what: std::fmt::Arguments<'_>) {
    lines.write_fmt(what).expect("a String takes everything");
}
