//! The demo's network with all that runs in it, and the one loop in which time passes.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_userspace::api::Status;

use super::interrupt::Interrupt;
use super::ledger::Ledger;
use super::screen::{Frame, Row, Screen};
use crate::testbed::{
    DEADLINE, Download, Host, LARGE_BYTES, LoadGenerator, LoadSpec, Nginx, ReplySniffer, StatusExt,
    Testbed, XdpLb,
};

/// What the viewer sees, for the opening.
pub(super) const PICTURE: &str = "
xdp-lb balances real HTTP requests, in a network inside this machine.
Each host is a network namespace:

     c1   c2   c3              three clients with 50 addresses each
      │    │    │
    ══╪════╪════╪════╪════╪══  the switch
      │    │    │    │    │
     b1   b2   b3   b4    │    four backends: nginx, with the VIP 10.77.0.100
                          │    on their loopback
                      director xdp-lb: picks a backend by the client's address,
                               in the network driver

   request  client ──> director ──> backend   only the MAC addresses change
   reply    client <─────────────── backend   direct, never by the director
";

const CLIENTS: usize = 3;
const SOURCES: usize = 50;
const BACKENDS: usize = 4;
const PORT: u16 = 80;
/// Requests per second of one client: what two busy cores carry easily, with the servers on the same machine.
const RATE: u32 = 200;
/// After how long a request counts as failed.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How often records are collected, the picture is drawn and the status is asked for.
const TICK: Duration = Duration::from_millis(100);

/// The `[[service]]` part of the configuration file.
const SERVICE: &str = r#"
[[service]]
name = "web"
vip = "10.77.0.100"
protocol = "tcp"
ports = [80]
affinity = "client"         # a client stays with its backend
flow_idle = "4s"            # short, so that a drain completes while you watch

[service.probe]
type = "http"
port = 80
interval = "200ms"
timeout = "150ms"
rise = 2
fall = 3
via = "vip"                 # through the VIP, like a client, to each backend
"#;

/// The network, what runs in it, and what has been measured. Dropping it removes everything, in the order of the fields.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    loads: Vec<LoadGenerator>,
    downloads: Vec<(IpAddr, Download)>,
    sniffer: Option<ReplySniffer>,
    pub(super) daemon: XdpLb,
    servers: Vec<Nginx>,
    pub(super) testbed: Testbed,
    pub(super) ledger: Ledger,
    screen: &'a mut Screen,
    interrupt: &'a Interrupt,
    begun: Instant,
    /// Up to when the ledger is complete.
    collected: Instant,
    status: Option<Status>,
    /// When the status was given.
    seen: Instant,
}

impl<'a> Stage<'a> {
    /// Builds the network, starts the servers, xdp-lb and, once all backends are up, the clients.
    pub(super) fn build(interrupt: &'a Interrupt, screen: &'a mut Screen) -> Result<Self> {
        let begun = Instant::now();
        let testbed = Testbed::builder()
            .clients(CLIENTS, SOURCES)
            .backends(BACKENDS)
            .label("demo")
            .build()?;
        screen.event(begun.elapsed(), "the network is built")?;
        interrupt.check()?;
        let servers = testbed
            .backends()
            .map(Nginx::start)
            .collect::<Result<Vec<_>, _>>()?;
        screen.event(begun.elapsed(), "nginx runs on the four backends")?;
        interrupt.check()?;
        let sniffer = ReplySniffer::at_director(&testbed)?;
        let config = format!(
            "{}{SERVICE}{}",
            testbed.node_config(),
            testbed.backend_config()
        );
        let mut daemon = XdpLb::prepare(&testbed, &config)?;
        show_config(screen, daemon.config(), &config)?;
        daemon.spawn(&[])?;
        let ledger = Ledger::new(testbed.backends().map(|host| host.name().to_owned()));
        let mut stage = Self {
            loads: Vec::new(),
            downloads: Vec::new(),
            sniffer: Some(sniffer),
            daemon,
            servers,
            testbed,
            ledger,
            screen,
            interrupt,
            begun,
            collected: begun,
            status: None,
            seen: begun,
        };
        stage.wait_for("every backend is up", Status::all_up)?;
        stage.event("xdp-lb is attached and sees every backend up; the clients begin")?;
        stage.start_loads()?;
        Ok(stage)
    }

    fn start_loads(&mut self) -> Result<()> {
        for client in self.testbed.clients() {
            let spec = LoadSpec {
                rate: RATE,
                timeout: TIMEOUT,
                ..LoadSpec::new(self.target())
            };
            self.loads.push(LoadGenerator::start(client, spec)?);
        }
        Ok(())
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.testbed.vip(), PORT)
    }

    /// Starts a long download from each address, which takes about `duration`.
    pub(super) fn start_downloads(&mut self, sources: &[IpAddr], duration: Duration) -> Result<()> {
        let rate = (LARGE_BYTES as f64 / duration.as_secs_f64()) as usize;
        for source in sources {
            let client = self
                .testbed
                .clients()
                .find(|client| client.sources().contains(source))
                .with_context(|| format!("no client has the address {source}"))?;
            self.downloads.push((
                *source,
                Download::start(client, *source, self.target(), rate)?,
            ));
        }
        Ok(())
    }

    pub(super) fn downloads(&self) -> &[(IpAddr, Download)] {
        &self.downloads
    }

    /// Takes the downloads away from the picture.
    pub(super) fn take_downloads(&mut self) -> Vec<(IpAddr, Download)> {
        std::mem::take(&mut self.downloads)
    }

    pub(super) fn server(&mut self, name: &str) -> Result<&mut Nginx> {
        let server = self
            .servers
            .iter_mut()
            .find(|server| server.host().name() == name);
        server.with_context(|| format!("there is no server {name}"))
    }

    pub(super) fn host(&self, name: &str) -> &Host {
        self.testbed.host(name)
    }

    /// Lets one tick pass: collects records, asks for the status, draws.
    pub(super) fn tick(&mut self) -> Result<()> {
        self.interrupt.check()?;
        let next = Instant::now() + TICK;
        self.collected = Instant::now();
        for load in &self.loads {
            self.ledger.add(load.take());
        }
        self.daemon.check_running()?;
        // While the daemon starts there is no one to ask; whoever waits for a state runs into its deadline.
        self.status = self.daemon.status().ok();
        self.seen = Instant::now();
        let frame = self.frame();
        if !self.loads.is_empty() {
            self.screen.draw(&frame)?;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        Ok(())
    }

    /// Lets time pass until `until`.
    pub(super) fn run_until(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            self.tick()?;
        }
        Ok(())
    }

    /// Lets time pass until the status is as wanted; gives it and when it was so.
    pub(super) fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<(Status, Instant)> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.tick()?;
            match &self.status {
                Some(status) if wanted(status) => return Ok((status.clone(), self.seen)),
                last if Instant::now() > deadline => {
                    let last = last
                        .as_ref()
                        .map_or_else(|| "no answer from xdp-lb".to_owned(), StatusExt::summary);
                    bail!(
                        "still waiting after {DEADLINE:?} until {what}; last seen: {last}\nxdp-lb's log:\n{}",
                        self.daemon.log_tail()
                    );
                }
                _ => {}
            }
        }
    }

    pub(super) fn event(&mut self, text: &str) -> Result<()> {
        self.screen.event(self.begun.elapsed(), text)
    }

    pub(super) fn headline(&mut self, title: &str, text: &str) -> Result<()> {
        self.screen.headline(title, text)
    }

    fn frame(&self) -> Frame {
        let rates = self.ledger.rates(self.collected);
        let rows = self.ledger.per_backend().iter().map(|(name, requests)| {
            let seen = self.status.as_ref().and_then(|status| status.backend(name));
            Row {
                name: name.clone(),
                state: seen.map_or_else(|| "unknown".to_owned(), |seen| seen.state.clone()),
                reason: seen.map(|seen| seen.reason.clone()).unwrap_or_default(),
                rate: rates.get(name.as_str()).copied().unwrap_or_default(),
                requests: *requests,
            }
        });
        let downloads = self.downloads.iter().map(|(source, download)| {
            let report = download.progress();
            let backend = report.backend.unwrap_or_else(|| "the VIP".to_owned());
            (
                format!("{source} downloads from {backend}"),
                report.bytes as f64 / LARGE_BYTES as f64,
            )
        });
        Frame {
            elapsed: self.begun.elapsed(),
            requests: self.ledger.requests(),
            failed: self.ledger.failed().count(),
            failed_in_detection: self.ledger.failed_in_detection(),
            rows: rows.collect(),
            downloads: downloads.collect(),
        }
    }

    /// Ends the clients' requests and takes the live picture away; the numbers are final then.
    pub(super) fn end_traffic(&mut self) -> Result<()> {
        for load in std::mem::take(&mut self.loads) {
            self.ledger.add(load.stop()?);
        }
        self.screen.erase()
    }

    /// How many replies crossed the director. Ends the counting.
    pub(super) fn replies_through_director(&mut self) -> Result<u64> {
        let sniffer = self
            .sniffer
            .take()
            .context("the replies were counted already")?;
        Ok(sniffer.stop()?.values().sum())
    }

    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.screen.say(text)
    }

    /// Removes everything.
    pub(super) fn remove(self) -> Result<()> {
        let Self {
            loads,
            downloads,
            sniffer,
            daemon,
            servers,
            testbed,
            screen,
            ..
        } = self;
        // In the order in which one stands on the other.
        drop((loads, downloads, sniffer, daemon, servers, testbed));
        screen.say("The network, its servers and the daemon are removed.")
    }

    /// Lets the network, the servers and the daemon outlive the demo, and says how to use and remove them.
    pub(super) fn keep(self) -> Result<()> {
        let Self {
            daemon,
            servers,
            testbed,
            screen,
            ..
        } = self;
        let mut text = String::from(
            "The network stays up. Enter a host (its network alone, so that pins stay visible) with:\n",
        );
        for host in testbed.hosts() {
            let path = host.namespace().path();
            writeln!(
                text,
                "  {:<9} {:<11} nsenter --net={}",
                host.name(),
                host.address().to_string(),
                path.display()
            )?;
        }
        writeln!(
            text,
            "  {:<9} {:<11} nsenter --net={}",
            "switch",
            "",
            testbed.switch().path().display()
        )?;
        let director = testbed.director().namespace().path();
        let (binary, config) = (daemon.binary().display(), daemon.config().display());
        writeln!(text, "\nAsk xdp-lb, and send a request:")?;
        writeln!(
            text,
            "  nsenter --net={} {binary} status --config {config}",
            director.display()
        )?;
        if let Some(client) = testbed.clients().next() {
            let client = client.namespace().path();
            writeln!(
                text,
                "  nsenter --net={} curl http://{}/",
                client.display(),
                testbed.vip()
            )?;
        }
        write!(text, "\nRemove everything:\n  cargo xtask demo --clean")?;
        testbed.keep()?;
        daemon.leave();
        servers.into_iter().for_each(Nginx::leave);
        screen.say(&text)
    }
}

fn show_config(screen: &mut Screen, path: &Path, config: &str) -> Result<()> {
    let indented: String = config.lines().map(|line| format!("    {line}\n")).collect();
    screen.say(&format!(
        "\nxdp-lb runs with the configuration file {}:\n\n{indented}",
        path.display()
    ))
}
