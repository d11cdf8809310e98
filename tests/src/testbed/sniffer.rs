//! Who answers the client, and by which way: the proof of direct server return.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
use super::plan::{INTERFACE, Mac, VIP6};

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

    /// As [`ReplySniffer::at_director`], the replies of the IPv6 VIP.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn at_director6(testbed: &Testbed) -> Result<Self> {
        let director = testbed.director();
        let except = Some(director.address6());
        Self::start(testbed.switch(), director.name(), VIP6, except)
    }

    /// Counts the replies of the IPv6 VIP that arrive at a client.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn at_client6(client: &Host) -> Result<Self> {
        Self::start(client.namespace(), INTERFACE, VIP6, None)
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
    // The kernel's filter has checked that it is IP from the VIP; the payload may be cut by the buffer.
    let (ethernet, rest) = etherparse::Ethernet2Header::from_slice(frame).ok()?;
    let destination = match rest.first()? >> 4 {
        4 => {
            let (header, _) = etherparse::Ipv4Header::from_slice(rest).ok()?;
            IpAddr::V4(Ipv4Addr::from(header.destination))
        }
        _ => {
            let (header, _) = etherparse::Ipv6Header::from_slice(rest).ok()?;
            IpAddr::V6(Ipv6Addr::from(header.destination))
        }
    };
    Some(Reply {
        sender: Mac(ethernet.source),
        destination,
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

/// A classic BPF program (linux/filter.h): frames from `source`, except those to `except`. The kernel keeps a VLAN tag
/// apart from the frame, so the offsets hold with one too.
fn filter(source: IpAddr, except: Option<IpAddr>) -> Vec<SockFilter> {
    const ETHER_TYPE: u32 = 12;
    let words = |address: IpAddr| -> Vec<u32> {
        match address {
            IpAddr::V4(address) => vec![address.to_bits()],
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                [96, 64, 32, 0].map(|shift| (bits >> shift) as u32).to_vec()
            }
        }
    };
    // The offsets of source and destination in a frame.
    let (ether_type, from, to, nobody) = match source {
        IpAddr::V4(_) => (0x0800, 14 + 12, 14 + 16, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (0x86dd, 14 + 8, 14 + 24, Ipv6Addr::UNSPECIFIED.into()),
    };
    let code = |code: u32| u16::try_from(code).expect("classic BPF codes have 16 bits");
    let load = |size: u32, offset: u32| {
        SockFilter::new(code(libc::BPF_LD | libc::BPF_ABS | size), 0, 0, offset)
    };
    let jump = |value: u32, yes: usize, no: usize| {
        let far = |by: usize| u8::try_from(by).expect("the program is short");
        let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
        SockFilter::new(equal, far(yes), far(no), value)
    };
    let give = |bytes: u32| SockFilter::new(code(libc::BPF_RET | libc::BPF_K), 0, 0, bytes);
    // Without an exception: the unspecified address, which is no destination.
    let (source, except) = (words(source), words(except.unwrap_or(nobody)));
    // Two instructions for each comparison; the last two accept and refuse.
    let accept = 2 * (1 + source.len() + except.len());
    let refuse = accept + 1;
    let mut program = vec![
        load(libc::BPF_H, ETHER_TYPE),
        jump(ether_type, 0, refuse - 2),
    ];
    for (word, offset) in source.iter().zip((from..).step_by(4)) {
        program.push(load(libc::BPF_W, offset));
        program.push(jump(*word, 0, refuse - program.len() - 1));
    }
    for (left, (word, offset)) in (0..except.len())
        .rev()
        .zip(except.iter().zip((to..).step_by(4)))
    {
        program.push(load(libc::BPF_W, offset));
        // Only who is the exception in every word is refused.
        let next = program.len() + 1;
        let same = if left == 0 { refuse - next } else { 0 };
        program.push(jump(*word, same, accept - next));
    }
    program.extend([give(u32::MAX), give(0)]);
    program
}
