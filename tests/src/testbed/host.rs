//! One host of a testbed: its addresses, what runs in it, and what can be broken on it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::error::Result;
use super::namespace::Namespace;
use super::plan::{INTERFACE, Mac, Planned, Role, VIP6};

/// A host: a network namespace with one interface, `eth0`, on the testbed's switch.
#[derive(Clone, Debug)]
pub struct Host {
    plan: Planned,
    namespace: Namespace,
    switch: Namespace,
    directory: PathBuf,
    vip: IpAddr,
    /// The IPv6 VIP, where the testbed has IPv6.
    vip6: Option<IpAddr>,
}

impl Host {
    pub(super) fn new(
        plan: Planned,
        namespace: Namespace,
        switch: Namespace,
        directory: PathBuf,
        vip: IpAddr,
        vip6: Option<IpAddr>,
    ) -> Self {
        Self {
            plan,
            namespace,
            switch,
            directory,
            vip,
            vip6,
        }
    }

    /// Its name: `c1`, `director`, `b1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// What it is there for.
    #[must_use]
    pub fn role(&self) -> Role {
        self.plan.role
    }

    /// Its address on the segment.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.plan.address
    }

    /// Its IPv6 address on the segment, in a testbed with IPv6.
    #[must_use]
    pub fn address6(&self) -> IpAddr {
        self.plan.address6
    }

    /// Whether it has IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.vip6.is_some()
    }

    /// The IPv6 addresses it sends requests from; empty unless it is a client in a testbed with IPv6.
    #[must_use]
    pub fn sources6(&self) -> &[IpAddr] {
        if self.has_ipv6() {
            &self.plan.sources6
        } else {
            &[]
        }
    }

    /// The MAC of its `eth0`.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.plan.mac
    }

    /// The addresses it sends requests from; empty unless it is a client.
    #[must_use]
    pub fn sources(&self) -> &[IpAddr] {
        &self.plan.sources
    }

    /// The testbed's VIP.
    #[must_use]
    pub fn vip(&self) -> IpAddr {
        self.vip
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A directory for the files of what runs in it, removed with the testbed.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn plan(&self) -> &Planned {
        &self.plan
    }

    /// A command that will run inside the host's network.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.namespace.command(program)
    }

    /// Runs a program inside the host's network and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.namespace.run(program, arguments)
    }

    /// Runs `work` in a thread inside the host's network.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic of `work` goes on in the caller.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.run_in(work)
    }

    /// Puts the VIPs on the loopback, as every backend needs them.
    ///
    /// # Errors
    /// When `ip` refuses, for instance because one is there already.
    pub fn add_vips(&self) -> Result<()> {
        self.add_vip()?;
        match self.vip6 {
            Some(_) => self.add_vip6(),
            None => Ok(()),
        }
    }

    /// Puts the VIP on the loopback.
    ///
    /// # Errors
    /// When `ip` refuses, for instance because it is there already.
    pub fn add_vip(&self) -> Result<()> {
        self.add(self.vip)
    }

    /// Puts the IPv6 VIP on the loopback.
    ///
    /// # Errors
    /// As [`Host::add_vip`].
    pub fn add_vip6(&self) -> Result<()> {
        self.add(VIP6)
    }

    /// Takes the VIP from the loopback: the mistake that makes a silent black hole of a DSR backend.
    ///
    /// # Errors
    /// When `ip` refuses, for instance because it is not there.
    pub fn remove_vip(&self) -> Result<()> {
        self.remove(self.vip)
    }

    /// As [`Host::remove_vip`], of the IPv6 VIP.
    ///
    /// # Errors
    /// As [`Host::remove_vip`].
    pub fn remove_vip6(&self) -> Result<()> {
        self.remove(VIP6)
    }

    fn add(&self, vip: IpAddr) -> Result<()> {
        // A VIP is on many hosts at once: IPv6 must not look for duplicates.
        let nodad = if vip.is_ipv4() { "" } else { " nodad" };
        self.namespace
            .ip_batch(&format!("address add {} dev lo{nodad}\n", whole(vip)))
    }

    fn remove(&self, vip: IpAddr) -> Result<()> {
        self.namespace
            .ip_batch(&format!("address delete {} dev lo\n", whole(vip)))
    }

    /// Pulls the cable: the host's port on the switch goes down, so its own interface loses the carrier.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link_down(&self) -> Result<()> {
        self.switch
            .ip_batch(&format!("link set {} down\n", self.name()))
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link_up(&self) -> Result<()> {
        self.switch
            .ip_batch(&format!("link set {} up\n", self.name()))
    }

    /// Tells the host for good which MAC an address has, instead of asking by ARP.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_neighbour(&self, address: IpAddr, mac: Mac) -> Result<()> {
        self.namespace.ip_batch(&format!(
            "neighbour replace {address} lladdr {mac} dev {INTERFACE} nud permanent\n"
        ))
    }
}

/// An address with the prefix length that means it alone.
pub(super) fn whole(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{bits}")
}
