//! A whole scene: a testbed whose backends serve, and xdp-lb running on its director.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::director::XdpLb;
use super::error::{Error, Result};
use super::host::Host;
use super::http::{Response, get};
use super::nginx::Nginx;
use super::{Testbed, VIP6, load::LoadSpec};

/// After how long a client gives up. Far longer than on the slowest machine: only what is lost for good takes it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A `[service.probe]` that sees a failure after a few tenths of a second.
pub const HTTP_PROBE: &str = "[service.probe]\ntype = \"http\"\nport = 80\ninterval = \"100ms\"\ntimeout = \"100ms\"\n\
                              rise = 2\nfall = 3\n";
/// A `[service.probe]` that sends nothing: whoever has a MAC address is up.
pub const NO_PROBE: &str = "[service.probe]\ntype = \"none\"\n";
/// A hash seed for the `[node]` section: with it, every run of a test picks alike.
pub const SEED: &str = "seed = \"000102030405060708090a0b0c0d0e0f\"\n";

/// The head of a `[[service]]` on the testbed's VIP: its name, ports (as TOML has them), affinity and probe. Backends are
/// to follow. A silent flow is forgotten after six seconds, so that a drain completes within a test, and a transfer that
/// pauses on a busy machine is not taken for ended.
#[must_use]
pub fn tcp_service(
    testbed: &Testbed,
    name: &str,
    port: u16,
    affinity: &str,
    probe: &str,
) -> String {
    service(testbed, name, "tcp", port, affinity, probe)
}

/// As [`tcp_service`], for any protocol.
#[must_use]
pub fn service(
    testbed: &Testbed,
    name: &str,
    protocol: &str,
    port: u16,
    affinity: &str,
    probe: &str,
) -> String {
    service_on(testbed.vip(), name, protocol, port, affinity, probe)
}

/// As [`tcp_service`], on the IPv6 VIP.
#[must_use]
pub fn tcp_service6(name: &str, port: u16, affinity: &str, probe: &str) -> String {
    service_on(VIP6, name, "tcp", port, affinity, probe)
}

fn service_on(
    vip: IpAddr,
    name: &str,
    protocol: &str,
    port: u16,
    affinity: &str,
    probe: &str,
) -> String {
    format!(
        "\n[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"{protocol}\"\nports = [{port}]\n\
         affinity = \"{affinity}\"\nflow_idle = \"6s\"\n\n{probe}"
    )
}

/// The network, its web servers and the daemon. Dropping it removes everything, in the order of the fields.
#[derive(Debug)]
pub struct Scene {
    /// xdp-lb on the director.
    pub daemon: XdpLb,
    /// nginx on every backend.
    pub servers: Vec<Nginx>,
    /// The network.
    pub testbed: Testbed,
}

impl Scene {
    /// Starts nginx with these ports on every backend, then xdp-lb, and waits until all backends are up.
    ///
    /// `config` is the whole configuration file.
    ///
    /// # Errors
    /// When a server or the daemon does not start, or a backend is not up in time.
    pub fn start(testbed: Testbed, ports: &[u16], config: &str) -> Result<Self> {
        let servers = testbed
            .backends()
            .map(|host| Nginx::start_on(host, ports))
            .collect::<Result<Vec<_>>>()?;
        let daemon = XdpLb::start(&testbed, config)?;
        Ok(Self {
            daemon,
            servers,
            testbed,
        })
    }

    /// A scene with one probed service on port 80, with affinity `client`, on every backend.
    ///
    /// # Errors
    /// As [`Scene::start`].
    pub fn of_one_service(testbed: Testbed) -> Result<Self> {
        let config = Self::config_of_one_service(&testbed);
        Self::start(testbed, &[80], &config)
    }

    /// The configuration file of [`Scene::of_one_service`].
    #[must_use]
    pub fn config_of_one_service(testbed: &Testbed) -> String {
        [
            testbed.node_config_with(SEED),
            tcp_service(testbed, "web", 80, "client", HTTP_PROBE),
            testbed.backend_config(),
        ]
        .concat()
    }

    /// The VIP with port 80.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.testbed.vip(), 80)
    }

    /// A load on [`Scene::target`] whose requests fail only if they are lost for good.
    #[must_use]
    pub fn load(&self) -> LoadSpec {
        LoadSpec {
            rate: 200,
            timeout: PATIENCE,
            ..LoadSpec::new(self.target())
        }
    }

    /// nginx of that backend.
    ///
    /// # Panics
    /// When there is none: a test asked for more than it built.
    pub fn server(&mut self, backend: &str) -> &mut Nginx {
        self.servers
            .iter_mut()
            .find(|server| server.host().name() == backend)
            .unwrap_or_else(|| panic!("no nginx runs on {backend}"))
    }

    /// One request over a connection of its own, from an address of a client to a port of the VIP of its family.
    ///
    /// # Errors
    /// When it fails.
    pub fn get(&self, source: IpAddr, port: u16) -> Result<Response> {
        let vip = match source {
            IpAddr::V4(_) => self.testbed.vip(),
            IpAddr::V6(_) => VIP6,
        };
        let target = SocketAddr::new(vip, port);
        get(self.client_of(source)?, source, target, "/", PATIENCE)
    }

    /// The backend that answers a new connection of that address.
    ///
    /// # Errors
    /// When the request fails or does not say who answered.
    pub fn who(&self, source: IpAddr, port: u16) -> Result<String> {
        let answer = self.get(source, port)?;
        answer
            .headers
            .get("x-backend")
            .cloned()
            .ok_or_else(|| Error::Request(format!("who answered {source} is not in {answer:?}")))
    }

    /// The backend of each of these addresses, each found by a new connection to port 80.
    ///
    /// # Errors
    /// As [`Scene::who`].
    pub fn homes<'s>(
        &self,
        sources: impl IntoIterator<Item = &'s IpAddr>,
    ) -> Result<BTreeMap<IpAddr, String>> {
        sources
            .into_iter()
            .map(|source| Ok((*source, self.who(*source, 80)?)))
            .collect()
    }

    fn client_of(&self, source: IpAddr) -> Result<&Host> {
        self.testbed
            .clients()
            .find(|client| {
                let own = [client.address(), client.address6()];
                own.contains(&source)
                    || client.sources().contains(&source)
                    || client.sources6().contains(&source)
            })
            .ok_or_else(|| Error::Request(format!("no client has the address {source}")))
    }
}
