//! Many backends on one host: as many addresses, one server that accepts on all of them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_userspace::config::BACKENDS_MAX;

use super::error::{Error, IoContext as _, Result};
use super::plan::INTERFACE;
use super::{Host, Testbed};

/// As many addresses as there is room for on the segment, 10.77.64.0 to 10.77.127.255.
pub const MAX_ADDRESSES: usize = 1 << 14;
/// The port that is served on every address.
const PORT: u16 = 80;
/// How often the server looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

/// A testbed whose only backend host has the addresses of many backends. It is no place for traffic, but the controller sees
/// each of them as a real server: it has a neighbour to follow, and answers probes, on its own address and on the VIP.
#[derive(Debug)]
pub struct Farm {
    // Dropped in this order: who serves, then what it is served on.
    _server: Server,
    _room: NeighbourRoom,
    addresses: Vec<IpAddr>,
    testbed: Testbed,
}

impl Farm {
    /// Builds it with so many addresses; `label` goes into the names of its namespaces.
    ///
    /// # Errors
    /// As [`super::Builder::build`], and when more addresses are asked for than [`MAX_ADDRESSES`].
    pub fn build(label: &str, addresses: usize) -> Result<Self> {
        if addresses > MAX_ADDRESSES {
            return Err(Error::Request(format!(
                "{addresses} addresses were asked for; the address plan has room for {MAX_ADDRESSES}"
            )));
        }
        let room = NeighbourRoom::for_so_many(addresses)?;
        let testbed = Testbed::builder()
            .clients(0, 0)
            .backends(1)
            .label(label)
            .build()?;
        let first = Ipv4Addr::new(10, 77, 64, 0).to_bits();
        let addresses: Vec<IpAddr> = (first..)
            .take(addresses)
            .map(|bits| Ipv4Addr::from_bits(bits).into())
            .collect();
        let host = testbed.host("b1");
        let mut lines = String::new();
        for address in &addresses {
            // Writing to a string succeeds.
            let _ = writeln!(lines, "address add {address}/32 dev {INTERFACE}");
        }
        host.namespace().ip_batch(&lines)?;
        Ok(Self {
            _server: Server::start_on(host)?,
            _room: room,
            addresses,
            testbed,
        })
    }

    /// The network.
    #[must_use]
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The backends' addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// A configuration of so many services with so many backends each, which take the addresses in turn and are
    /// called after them: `b0` has the first one; `probe` is each
    /// service's `[service.probe]`. Every service has a VIP of its own; the first one's is the testbed's.
    #[must_use]
    pub fn config(&self, services: usize, backends: usize, probe: &str) -> String {
        let mut text = self.testbed.node_config_with(super::scene::SEED);
        for number in 0..services {
            let vip = match number {
                0 => self.testbed.vip(),
                _ => Ipv4Addr::from_bits(
                    Ipv4Addr::new(10, 79, 0, 0).to_bits() + u32::try_from(number).unwrap_or(0),
                )
                .into(),
            };
            let _ = write!(
                text,
                "\n[[service]]\nname = \"s{number}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nports = [{PORT}]\n{probe}"
            );
            let room = BACKENDS_MAX as usize - number * backends;
            for backend in 0..backends.min(room) {
                let place = (number + backend) % self.addresses.len();
                let address = self.addresses[place];
                let _ = write!(
                    text,
                    "\n[[service.backend]]\nname = \"b{place}\"\naddress = \"{address}\"\n"
                );
            }
        }
        text
    }

    /// Takes an address away: whoever is probed there answers no more.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn silence(&self, address: IpAddr) -> Result<()> {
        self.ip(&format!("address delete {address}/32 dev {INTERFACE}\n"))
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn wake(&self, address: IpAddr) -> Result<()> {
        self.ip(&format!("address add {address}/32 dev {INTERFACE}\n"))
    }

    fn ip(&self, lines: &str) -> Result<()> {
        self.testbed.host("b1").namespace().ip_batch(lines)
    }
}

/// Accepts connections on every address of a host, the VIP among them, and lets them go.
#[derive(Debug)]
struct Server {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    fn start_on(host: &Host) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let listener = host
            .run_in(|| TcpListener::bind(address))?
            .to_do(|| format!("serve {address} on {}", host.name()))?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::Builder::new()
            .name("farm".into())
            .spawn(move || accept(&listener, &ended))
            .to_do(|| "start a thread".into())?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("{error}");
        }
    }
}

fn accept(listener: &TcpListener, end: &AtomicBool) -> Result<()> {
    socket2::SockRef::from(listener)
        .set_read_timeout(Some(LOOK))
        .to_do(|| "set a timeout".into())?;
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok(_) => {}
            // Nobody came, or went again before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error).to_do(|| "accept a connection".into()),
        }
    }
    Ok(())
}

/// The settings that bound the kernel's neighbour table, which all namespaces share; put back when dropped.
#[derive(Debug)]
struct NeighbourRoom {
    before: Vec<(String, String)>,
}

impl NeighbourRoom {
    /// Room for twice so many neighbours, and for those of everybody else.
    fn for_so_many(neighbours: usize) -> Result<Self> {
        let mut room = Self { before: Vec::new() };
        for name in ["gc_thresh3", "gc_thresh2", "gc_thresh1"] {
            let path = format!("/proc/sys/net/ipv4/neigh/default/{name}");
            let text = fs::read_to_string(&path).to_do(|| format!("read {path}"))?;
            let found: usize = text.trim().parse().unwrap_or(0);
            let wanted = 2 * neighbours + 1024;
            if found < wanted {
                fs::write(&path, wanted.to_string()).to_do(|| format!("write {path}"))?;
                room.before.push((path, text));
            }
        }
        Ok(room)
    }
}

impl Drop for NeighbourRoom {
    fn drop(&mut self) {
        for (path, text) in self.before.iter().rev() {
            if let Err(error) = fs::write(path, text) {
                eprintln!("{path} could not be put back to {text}: {error}");
            }
        }
    }
}
