//! A second segment: a director with two arms, one towards the clients and one towards backends.
//!
//! The hosts keep their interface on the first segment, on which the backends answer the clients themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::Testbed;
use super::error::{Error, Result};
use super::namespace::Namespace;
use super::offload::disable_transmit_checksum;
use super::xdp::{PASS, XdpProgram};

/// The name of every host's interface on the second segment.
pub const SECOND_INTERFACE: &str = "eth1";
/// The second segment's bridge, in the switch's namespace.
const BRIDGE: &str = "br1";

/// A second segment, `10.79.0.0/16`; a host's address there ends as that on the first one.
#[derive(Debug)]
pub struct SecondSegment {
    switch: Namespace,
    addresses: BTreeMap<String, IpAddr>,
    /// What a veth is redirected to is dropped unless the other end runs a program as well.
    _pass: XdpProgram,
}

impl Testbed {
    /// Cables the director and these hosts to a second switch.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn second_segment(&self, hosts: &[&str]) -> Result<SecondSegment> {
        let switch = self.switch().clone();
        switch.ip_batch(&format!(
            "link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"
        ))?;
        let mut addresses = BTreeMap::new();
        for name in hosts.iter().copied().chain(["director"]) {
            let host = self.host(name);
            let IpAddr::V4(first) = host.address() else {
                return Err(Error::Request(format!("{name} has no IPv4 address")));
            };
            let [a, _, c, d] = first.octets();
            let address = Ipv4Addr::new(a, 79, c, d);
            let port = port(name);
            let (namespace, mac) = (host.namespace().name(), super::Mac([2, 1, a, 79, c, d]));
            switch.ip_batch(&format!(
                "link add {port} type veth peer name {SECOND_INTERFACE} address {mac} netns {namespace}\n\
                 link set {port} master {BRIDGE} up\n"
            ))?;
            disable_transmit_checksum(&switch, &port)?;
            disable_transmit_checksum(host.namespace(), SECOND_INTERFACE)?;
            let mut lines = String::new();
            writeln!(lines, "address add {address}/16 dev {SECOND_INTERFACE}")
                .and_then(|()| writeln!(lines, "link set {SECOND_INTERFACE} up"))
                .expect("a String takes everything");
            host.namespace().ip_batch(&lines)?;
            addresses.insert(name.to_owned(), IpAddr::V4(address));
        }
        let pass = XdpProgram::attach(&switch, &port("director"), PASS, "testbed_pass")?;
        Ok(SecondSegment {
            switch,
            addresses,
            _pass: pass,
        })
    }
}

impl SecondSegment {
    /// A host's address on this segment.
    ///
    /// # Panics
    /// When it is not on it: a test asked for more than it built.
    #[must_use]
    pub fn address(&self, host: &str) -> IpAddr {
        *self
            .addresses
            .get(host)
            .unwrap_or_else(|| panic!("{host} is not on the second segment"))
    }

    /// The `[[service.backend]]` table of a host that is reached through this segment.
    #[must_use]
    pub fn backend_config(&self, host: &str) -> String {
        format!(
            "\n[[service.backend]]\nname = \"{host}\"\naddress = \"{}\"\n",
            self.address(host)
        )
    }

    /// Pulls a host's cable on this segment.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link_down(&self, host: &str) -> Result<()> {
        self.switch
            .ip_batch(&format!("link set {} down\n", port(host)))
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link_up(&self, host: &str) -> Result<()> {
        self.switch
            .ip_batch(&format!("link set {} up\n", port(host)))
    }
}

/// A host's port on the second switch.
fn port(host: &str) -> String {
    format!("{host}-b")
}
