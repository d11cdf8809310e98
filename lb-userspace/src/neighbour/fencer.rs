//! Frames that are no IP packets, out of one interface: `packet(7)`.

use std::{
    io, mem,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};
use tracing::error;

/// How often a failure is worth a line in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Sends the frames by which the nodes of a cluster fence each other. The socket is opened with the first one: most clusters
/// never need it.
#[derive(Debug, Default)]
pub struct Fencer {
    socket: Option<Socket>,
    complained: Option<Instant>,
}

impl Fencer {
    /// Sends a whole frame, Ethernet header included, out of an interface. A failure is logged; whoever calls sends again.
    pub fn send(&mut self, ifindex: u32, frame: &[u8]) {
        if let Err(error) = self.try_send(ifindex, frame)
            && error.kind() != io::ErrorKind::WouldBlock
            && self
                .complained
                .is_none_or(|before| before.elapsed() > COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            error!(
                %error, ifindex,
                "a node that has failed, and whose xdp-lb is not heard, can't be told that it was replaced (that takes CAP_NET_RAW and AF_PACKET): it may answer as well"
            );
        }
    }

    fn try_send(&mut self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let socket = match &mut self.socket {
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
