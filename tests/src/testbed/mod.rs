//! A network in one machine: a switch, clients, a director and backends, each a network namespace.
//!
//! ```text
//!    c1   c2   c3        clients with many source addresses each
//!     |    |    |
//!   ==+====+====+==+=== switch: a bridge in a namespace of its own
//!     |    |    |  |
//!    b1   b2   b3  director
//! ```
//!
//! IPv4 alone, unless the builder is told otherwise; with IPv6 every host has both families, and there is a second VIP.
//!
//! It is real enough for native XDP, and needs root. Dropping a [`Testbed`] ends all that runs in it and removes it;
//! [`remove_all_of_this_process`] does so from a panic hook, and what a killed process left is removed by the next
//! [`Builder::build`].

mod director;
mod download;
mod echo;
mod error;
mod farm;
mod flood;
mod host;
mod http;
mod inject;
mod instance;
mod link;
mod load;
mod namespace;
mod nginx;
mod offload;
mod plan;
mod remains;
pub mod scene;
mod second;
mod sniffer;
mod status;
#[cfg(test)]
mod tests;
mod transfers;
mod usage;
mod xdp;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use director::{DEADLINE, XdpLb};
pub use download::{Download, DownloadReport};
pub use echo::{UdpClient, UdpEcho};
pub use error::{Error, Result};
pub use farm::{Farm, MAX_ADDRESSES};
pub use flood::SynFlood;
pub use host::Host;
pub use http::{Response, get};
pub use inject::Injector;
pub use instance::{remove_all_of_this_process, remove_kept};
pub use load::{LoadGenerator, LoadSpec, Record};
pub use namespace::Namespace;
pub use nginx::{LARGE_BYTES, Nginx};
pub use plan::{DEFAULT_VIP, INTERFACE, Mac, Role, VIP6};
pub use remains::remains;
pub use scene::Scene;
pub use second::{SECOND_INTERFACE, SecondSegment};
pub use sniffer::{Reply, ReplySniffer};
pub use status::StatusExt;
pub use transfers::Transfers;
pub use usage::{Resident, processor_time};
pub use xdp::XdpProgram;

use error::IoContext as _;
use instance::Instance;
use xdp::PASS;

/// A network of namespaces. See the module's documentation.
#[derive(Debug)]
pub struct Testbed {
    hosts: Vec<Host>,
    switch: Namespace,
    vip: IpAddr,
    pass: XdpProgram,
    // Last: dropping it removes everything the others stand on.
    instance: Instance,
}

/// What a testbed shall consist of.
#[derive(Clone, Debug)]
pub struct Builder {
    clients: usize,
    sources: usize,
    backends: usize,
    vip: IpAddr,
    ipv6: bool,
    far_mtu: Option<u32>,
    label: Option<String>,
}

impl Builder {
    /// How many clients, and how many source addresses each has.
    #[must_use]
    pub fn clients(self, clients: usize, sources: usize) -> Self {
        Self {
            clients,
            sources,
            ..self
        }
    }

    /// How many backends.
    #[must_use]
    pub fn backends(self, backends: usize) -> Self {
        Self { backends, ..self }
    }

    /// The VIP, an address of the segment `10.77.0.0/16` that no host has.
    #[must_use]
    pub fn vip(self, vip: IpAddr) -> Self {
        Self { vip, ..self }
    }

    /// IPv6 as well: an address for every host, and the VIP [`VIP6`].
    #[must_use]
    pub fn ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// A host `far` behind a router, which reaches it over a link that takes packets of at most `mtu` bytes; all other
    /// links take 1500.
    #[must_use]
    pub fn far(self, mtu: u32) -> Self {
        Self {
            far_mtu: Some(mtu),
            ..self
        }
    }

    /// A word for the names of the namespaces, so that a person knows whose they are.
    #[must_use]
    pub fn label(self, label: &str) -> Self {
        Self {
            label: Some(label.to_owned()),
            ..self
        }
    }

    /// Builds the network.
    ///
    /// # Errors
    /// Without root, when `ip` is missing, when more is asked for than the address plan has room for, and when the
    /// kernel refuses a step; what was built until then is removed.
    pub fn build(self) -> Result<Testbed> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot {
                uid: nix::unistd::geteuid().as_raw(),
            });
        }
        self.check()?;
        let instance = Instance::claim(self.label.as_deref())?;
        instance::mount_bpffs()?;
        let prefix = instance::namespace_prefix(instance.tag());
        let switch = Namespace::create(format!("{prefix}switch"))?;
        let mut hosts = Vec::new();
        let mut plans = plan::hosts(self.clients, self.sources, self.backends);
        if self.far_mtu.is_some() {
            plans.extend(plan::far());
        }
        for plan in plans {
            let namespace = Namespace::create(format!("{prefix}{}", plan.name))?;
            let directory = instance.directory().join(&plan.name);
            std::fs::create_dir(&directory).to_do(|| format!("create {}", directory.display()))?;
            hosts.push(Host::new(
                plan,
                namespace,
                switch.clone(),
                directory,
                self.vip,
                self.ipv6.then_some(VIP6),
            ));
        }
        link::cable(&switch, &hosts)?;
        for host in &hosts {
            link::configure(host, &hosts)?;
        }
        if let Some(mtu) = self.far_mtu {
            link::reach_far(&hosts, mtu)?;
        }
        let pass = XdpProgram::attach(&switch, "director", PASS, "testbed_pass")?;
        Ok(Testbed {
            hosts,
            switch,
            vip: self.vip,
            pass,
            instance,
        })
    }

    fn check(&self) -> Result<()> {
        for (what, wanted, room) in [
            ("clients", self.clients, plan::MAX_CLIENTS),
            (
                "source addresses per client",
                self.sources,
                plan::MAX_SOURCES,
            ),
            ("backends", self.backends, plan::MAX_BACKENDS),
        ] {
            if wanted > room {
                return Err(Error::Request(format!(
                    "{wanted} {what} were asked for; the address plan has room for {room}"
                )));
            }
        }
        if plan::hosts(self.clients, self.sources, self.backends)
            .iter()
            .any(|host| host.address == self.vip)
        {
            return Err(Error::Request(format!(
                "the VIP {} is a host's own address",
                self.vip
            )));
        }
        Ok(())
    }
}

impl Testbed {
    /// A builder of one client with 50 source addresses, a director and two backends, with the VIP [`DEFAULT_VIP`].
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            clients: 1,
            sources: 50,
            backends: 2,
            vip: DEFAULT_VIP,
            ipv6: false,
            far_mtu: None,
            label: None,
        }
    }

    /// The VIP that is on every backend's loopback and nowhere else.
    #[must_use]
    pub fn vip(&self) -> IpAddr {
        self.vip
    }

    /// Every host: the clients, the director, the backends.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of that name.
    ///
    /// # Panics
    /// When there is none: a test asked for more than it built.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name() == name)
            .unwrap_or_else(|| panic!("the testbed has no host {name}"))
    }

    /// The clients, in the order of their names.
    pub fn clients(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| host.role() == Role::Client)
    }

    /// The backends, in the order of their names.
    pub fn backends(&self) -> impl Iterator<Item = &Host> {
        self.hosts
            .iter()
            .filter(|host| host.role() == Role::Backend)
    }

    /// The director: the host to run xdp-lb in. It does not have the VIP.
    #[must_use]
    pub fn director(&self) -> &Host {
        self.host("director")
    }

    /// The switch's namespace; each port has the name of the host behind it.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// What tells this testbed's names from another's.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.instance.tag()
    }

    /// The pin path for this testbed's director, removed with it.
    #[must_use]
    pub fn pin_path(&self) -> PathBuf {
        self.instance.pin_path()
    }

    /// A directory for files, removed with the testbed.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.instance.directory()
    }

    /// The beginning of a configuration file for this testbed's director: `[node]` and `[control]`.
    #[must_use]
    pub fn node_config(&self) -> String {
        self.node_config_with("")
    }

    /// As [`Testbed::node_config`], with more lines for `[node]`.
    #[must_use]
    pub fn node_config_with(&self, more: &str) -> String {
        let files = self.director().directory();
        let path = |path: &Path| path.display().to_string();
        format!(
            "[node]\nname = \"director\"\ninterfaces = [\"{INTERFACE}\"]\npin_path = \"{}\"\n{more}\n\
             [control]\nsocket = \"{}\"\nstate = \"{}\"\nhttp = \"off\"\n",
            path(&self.pin_path()),
            path(&files.join("control.sock")),
            path(&files.join("state.json")),
        )
    }

    /// The `[[service.backend]]` tables of all backends, for the end of a configuration file.
    #[must_use]
    pub fn backend_config(&self) -> String {
        self.backends()
            .map(|host| self.one_backend_config(host.name(), ""))
            .collect()
    }

    /// As [`Testbed::backend_config`], with the backends' IPv6 addresses.
    #[must_use]
    pub fn backend_config6(&self) -> String {
        self.backends()
            .map(|host| {
                format!(
                    "\n[[service.backend]]\nname = \"{}\"\naddress = \"{}\"\n",
                    host.name(),
                    host.address6()
                )
            })
            .collect()
    }

    /// The `[[service.backend]]` table of one backend, with more lines for it.
    #[must_use]
    pub fn one_backend_config(&self, name: &str, more: &str) -> String {
        format!(
            "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{}\"\n{more}",
            self.host(name).address()
        )
    }

    /// Attaches to the director's interface an XDP program named `name`, natively, as another tool might: it passes every
    /// packet on. Dropping it detaches it.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because there is one already.
    pub fn occupy_director(&self, name: &str) -> Result<XdpProgram> {
        XdpProgram::attach(self.director().namespace(), INTERFACE, PASS, name)
    }

    /// Lets a host's XDP program send: the other end of its cable, at the switch, needs a program of its own. Dropping it
    /// takes that away; the director's port always has one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn let_send(&self, host: &str) -> Result<XdpProgram> {
        XdpProgram::attach(&self.switch, host, PASS, "testbed_pass")
    }

    /// Lets the network and what runs in it outlive this process, until [`remove_kept`] is called.
    ///
    /// # Errors
    /// When the mark cannot be made; the testbed is then removed as usual.
    pub fn keep(mut self) -> Result<()> {
        self.pass
            .pin(&self.instance.create_switch_pins()?.join("director-port"))?;
        self.instance.keep()
    }
}
