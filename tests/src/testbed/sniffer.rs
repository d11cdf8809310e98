//! Who answers the client, and by which way: the proof of direct server return.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::Testbed;
use super::error::{Error, IoContext, Result};
use super::host::Host;
use super::http::thread_lost;
use super::namespace::Namespace;
use super::plan::{INTERFACE, Mac};

/// How often the thread looks whether it shall end.
const LOOK_UP: Duration = Duration::from_millis(50);

/// One kind of reply: whose frame, to which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reply {
    /// The Ethernet source: who put it on the wire.
    pub sender: Mac,
    /// The IP destination.
    pub destination: IpAddr,
}

/// Counts the frames whose IP source is the VIP. Dropping it ends it.
///
/// The kernel filters, so a sniffer costs nothing for the frames it does not count.
#[derive(Debug)]
pub struct ReplySniffer {
    seen: Arc<Mutex<BTreeMap<Reply, u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl ReplySniffer {
    /// Counts the replies that cross the director on their way to a client; with DSR there are none.
    ///
    /// It listens on the director's port of the switch, so it sees what the switch sends to the director and what the
    /// director sends, whatever the director's own XDP program does with it. The answers to the director's
    /// own probes are not counted.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn at_director(testbed: &Testbed) -> Result<Self> {
        let director = testbed.director();
        Self::start(
            testbed.switch(),
            director.name(),
            testbed.vip(),
            Some(director.address()),
        )
    }

    /// Counts the replies that arrive at a client.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn at_client(client: &Host) -> Result<Self> {
        Self::start(client.namespace(), INTERFACE, client.vip(), None)
    }

    fn start(
        namespace: &Namespace,
        interface: &str,
        vip: IpAddr,
        except: Option<IpAddr>,
    ) -> Result<Self> {
        let (IpAddr::V4(vip), None | Some(IpAddr::V4(_))) = (vip, except) else {
            return Err(Error::Request(format!(
                "replies of {vip} cannot be counted: only IPv4 is"
            )));
        };
        let except = except.and_then(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let socket = namespace
            .run_in(|| open(interface, &filter(vip, except)))?
            .to_do(|| format!("listen on {interface} in {}", namespace.name()))?;
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("sniffer".into())
            .spawn(move || listen(socket, &stopped, &shared))
            .to_do(|| "start the sniffer's thread".into())?;
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// The frames counted so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.lock().values().sum()
    }

    /// The frames counted so far, by sender and destination.
    #[must_use]
    pub fn replies(&self) -> BTreeMap<Reply, u64> {
        self.lock().clone()
    }

    /// Ends it and gives what it counted.
    ///
    /// # Errors
    /// When listening failed on the way: the count would be too low.
    pub fn stop(mut self) -> Result<BTreeMap<Reply, u64>> {
        self.end()?;
        Ok(self.replies())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| thread_lost("a sniffer"))?,
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Reply, u64>> {
        // Only a counter is raised under the lock; a panic elsewhere leaves the map whole.
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for ReplySniffer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

fn listen(mut socket: Socket, stop: &AtomicBool, seen: &Mutex<BTreeMap<Reply, u64>>) -> Result<()> {
    // The headers are all that is looked at.
    let mut frame = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        match socket.read(&mut frame) {
            Ok(length) => {
                if let Some(reply) = parse(&frame[..length]) {
                    *seen
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .entry(reply)
                        .or_default() += 1;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) => {}
            Err(source) => {
                return Err(Error::Io {
                    what: "listen for replies".into(),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn parse(frame: &[u8]) -> Option<Reply> {
    // The kernel's filter has checked that it is IPv4 from the VIP; the payload may be cut by the buffer.
    let (ethernet, rest) = etherparse::Ethernet2Header::from_slice(frame).ok()?;
    let (header, _) = etherparse::Ipv4Header::from_slice(rest).ok()?;
    Some(Reply {
        sender: Mac(ethernet.source),
        destination: IpAddr::V4(Ipv4Addr::from(header.destination)),
    })
}

fn open(interface: &str, filter: &[SockFilter]) -> std::io::Result<Socket> {
    // No protocol until the filter is in place: the socket hears nothing before `bind` names one.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.attach_filter(filter)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    let all = u16::try_from(libc::ETH_P_ALL).expect("an EtherType has 16 bits");
    let address = link_address(nix::net::if_::if_nametoindex(interface)?, all)?;
    socket.bind(&address)?;
    Ok(socket)
}

/// The frames of this protocol, in both directions, of the interface with this index.
pub(super) fn link_address(index: u32, protocol: u16) -> std::io::Result<SockAddr> {
    let protocol = protocol.to_be();
    let index = i32::try_from(index).map_err(std::io::Error::other)?;
    // SAFETY: the storage is zeroed, larger than a `sockaddr_ll` and aligned for every socket address; the fields that
    // bind(2) reads of a packet address are set, and the length is the structure's.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_protocol = protocol;
            (*link).sll_ifindex = index;
            *length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

/// A classic BPF program (linux/filter.h): IPv4 frames from `source`, except those to `except`. The kernel keeps a VLAN tag
/// apart from the frame, so the offsets hold with one too.
fn filter(source: Ipv4Addr, except: Option<Ipv4Addr>) -> Vec<SockFilter> {
    const ETHER_TYPE: u32 = 12;
    const IP_SOURCE: u32 = 14 + 12;
    const IP_DESTINATION: u32 = 14 + 16;
    let code = |code: u32| u16::try_from(code).expect("classic BPF codes have 16 bits");
    let load = |size: u32, offset: u32| {
        SockFilter::new(code(libc::BPF_LD | libc::BPF_ABS | size), 0, 0, offset)
    };
    let jump = |value: u32, yes: u8, no: u8| {
        SockFilter::new(
            code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            yes,
            no,
            value,
        )
    };
    let give = |bytes: u32| SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, bytes);
    // Without an exception: 0.0.0.0, which is no destination.
    let except = except.unwrap_or(Ipv4Addr::UNSPECIFIED);
    vec![
        load(libc::BPF_H, ETHER_TYPE),
        jump(0x0800, 0, 5),
        load(libc::BPF_W, IP_SOURCE),
        jump(source.to_bits(), 0, 3),
        load(libc::BPF_W, IP_DESTINATION),
        jump(except.to_bits(), 1, 0),
        give(u32::MAX),
        give(0),
    ]
}
