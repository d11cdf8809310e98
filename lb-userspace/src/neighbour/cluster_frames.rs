//! The frames of a cluster's nodes, which are no IP packets: `packet(7)`.

use std::{
    io::{self, Read as _},
    mem,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use lb_common::wire::ETHERTYPE_CLUSTER;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tracing::error;

/// How often a failure is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// The shortest frame of Ethernet, without its check sequence (IEEE 802.3).
const SHORTEST: usize = 60;
/// At most so many frames are taken in at a time; whoever wants more comes back.
const AT_A_TIME: usize = 8_192;
/// The listener's buffer, in bytes: as many small frames as are taken in at a time, with what the kernel adds to each.
const BUFFER: usize = AT_A_TIME * 1_024;

/// A whole frame, from one MAC address to another.
#[must_use]
pub fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let ethertype = ETHERTYPE_CLUSTER.to_be_bytes();
    let mut frame = [&to[..], &from, &ethertype, payload].concat();
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
    frame
}

/// Sends the frames by which the nodes of a cluster fence each other and ask whether they are there, and takes in the answers. Its
/// sockets are opened with the first use: most clusters never need them.
#[derive(Debug, Default)]
pub struct ClusterFrames {
    sender: Option<Socket>,
    listener: Option<Socket>,
    complained: Option<Instant>,
}

impl ClusterFrames {
    /// Sends a whole frame, Ethernet header included, out of an interface; gives whether it was sent. A failure is logged; whoever
    /// calls sends again.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) -> bool {
        match self.try_send(ifindex, frame) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.complain(&error);
                }
                false
            }
        }
    }

    /// From now on, frames that come in on any interface and that the data path leaves to the host are taken in; gives whether
    /// that is so. A failure is logged.
    pub fn listen(&mut self) -> bool {
        if self.listener.is_none() {
            match listener() {
                Ok(socket) => self.listener = Some(socket),
                Err(error) => self.complain(&error),
            }
        }
        self.listener.is_some()
    }

    /// The payloads that have come since the last call.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        match self.listener.as_mut().map_or(Ok(Vec::new()), receive) {
            Ok(payloads) => payloads,
            Err(error) => {
                self.complain(&error);
                self.listener = None;
                Vec::new()
            }
        }
    }

    /// Nothing is to come any more.
    pub fn stop_listening(&mut self) {
        self.listener = None;
    }

    fn complain(&mut self, error: &io::Error) {
        if self
            .complained
            .is_none_or(|before| before.elapsed() > COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            error!(
                %error,
                "a node whose xdp-lb is not heard can't be asked whether it is there, nor be told that it was replaced (that takes CAP_NET_RAW and AF_PACKET): it may answer as well"
            );
        }
    }

    fn try_send(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let socket = match &mut self.sender {
            Some(socket) => socket,
            closed => {
                // Protocol 0: it receives nothing.
                let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
                socket.set_nonblocking(true)?;
                closed.insert(socket)
            }
        };
        socket.send_to(frame, &to(ifindex)?).map(drop)
    }
}

/// A socket that is given what stands behind the EtherType of each of these frames.
fn listener() -> io::Result<Socket> {
    // In network byte order.
    let protocol = Protocol::from(i32::from(ETHERTYPE_CLUSTER.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    force_buffer(&socket)?;
    Ok(socket)
}

/// `SO_RCVBUFFORCE` of `socket(7)`: beyond what the system lets everybody have. The kernel doubles the number for its own part.
fn force_buffer(socket: &Socket) -> io::Result<()> {
    let bytes = libc::c_int::try_from(BUFFER / 2).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and the option is an integer of this size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            mem::size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn receive(socket: &mut Socket) -> io::Result<Vec<Vec<u8>>> {
    let mut payloads = Vec::new();
    while payloads.len() < AT_A_TIME {
        let mut payload = vec![0; SHORTEST];
        match socket.read(&mut payload) {
            Ok(length) => {
                payload.truncate(length);
                payloads.push(payload);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // An interface went down: the socket works on.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(payloads)
}

/// The interface as an address: `struct sockaddr_ll` of `linux/if_packet.h`. The frame itself says to whom it goes.
fn to(ifindex: u32) -> io::Result<SockAddr> {
    let ifindex = libc::c_int::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the storage is longer than a `sockaddr_ll` and aligned for any address; the length says how much was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_ifindex = ifindex;
            *length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_long_as_ethernet_wants_it() {
        let frame = frame([1; 6], [2; 6], &[3; 14]);
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..6], [1; 6]);
        assert_eq!(frame[6..12], [2; 6]);
        assert_eq!(frame[12..14], [0x88, 0xb5]);
        assert_eq!(frame[14..28], [3; 14]);
        assert!(frame[28..].iter().all(|byte| *byte == 0));
    }
}
