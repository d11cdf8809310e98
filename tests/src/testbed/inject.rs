//! Frames put on the wire one by one, so that what becomes of each can be counted.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{IoContext, Result};
use super::host::Host;
use super::plan::{INTERFACE, Mac};
use super::sniffer::link_address;

/// After so many frames the injector makes a pause: a veth's ring holds 256 frames and drops what finds no room.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(1);

/// Sends raw frames from a host's interface, past its own network stack.
#[derive(Debug)]
pub struct Injector {
    socket: Socket,
    mac: Mac,
    sent: usize,
}

impl Injector {
    /// An injector on that host's `eth0`.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn on(host: &Host) -> Result<Self> {
        let socket = host
            .run_in(|| {
                // Protocol 0: it hears nothing, so that nothing piles up.
                let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
                socket.bind(&link_address(nix::net::if_::if_nametoindex(INTERFACE)?, 0)?)?;
                Ok::<_, std::io::Error>(socket)
            })?
            .to_do(|| format!("open a raw socket on {}", host.name()))?;
        Ok(Self {
            socket,
            mac: host.mac(),
            sent: 0,
        })
    }

    /// Sends one frame as it is.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.socket
            .write_all(frame)
            .to_do(|| "send a frame".into())?;
        self.sent += 1;
        if self.sent.is_multiple_of(BURST) {
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Sends `count` times the frame that `frame` makes of the frame's number.
    ///
    /// # Errors
    /// As [`Injector::send`].
    pub fn send_all(&mut self, count: u16, frame: impl Fn(u16) -> Vec<u8>) -> Result<()> {
        (0..count).try_for_each(|number| self.send(&frame(number)))
    }

    /// An Ethernet header from this host, and what follows it.
    #[must_use]
    pub fn ethernet(&self, destination: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(14 + payload.len());
        frame.extend(destination.0);
        frame.extend(self.mac.0);
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A TCP segment with SYN alone.
    #[must_use]
    pub fn syn(&self, to: Mac, source: (Ipv4Addr, u16), destination: (IpAddr, u16)) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, to.0)
            .ipv4(source.0.octets(), octets(destination.0), 64)
            .tcp(source.1, destination.1, 1, 64000)
            .syn();
        let mut frame = Vec::new();
        builder
            .write(&mut frame, &[])
            .expect("a Vec takes everything");
        frame
    }

    /// A UDP datagram of eight bytes.
    #[must_use]
    pub fn udp(&self, to: Mac, source: (Ipv4Addr, u16), destination: (IpAddr, u16)) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, to.0)
            .ipv4(source.0.octets(), octets(destination.0), 64)
            .udp(source.1, destination.1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, b"question")
            .expect("a Vec takes everything");
        frame
    }

    /// A UDP datagram over IPv4 in fragments of `size` bytes of payload (a multiple of 8), the first one first (RFC 791
    /// section 3.2). Without a UDP checksum.
    #[must_use]
    pub fn udp_fragments(
        &self,
        to: Mac,
        source: (Ipv4Addr, u16),
        destination: (IpAddr, u16),
        payload: &[u8],
        (identification, size): (u16, usize),
    ) -> Vec<Vec<u8>> {
        const MORE: u16 = 0x2000;
        let mut datagram = Vec::with_capacity(8 + payload.len());
        datagram.extend(source.1.to_be_bytes());
        datagram.extend(destination.1.to_be_bytes());
        let length = u16::try_from(8 + payload.len()).expect("a datagram's size");
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let count = datagram.len().div_ceil(size);
        datagram
            .chunks(size)
            .enumerate()
            .map(|(number, part)| {
                let more = if number + 1 < count { MORE } else { 0 };
                let offset = u16::try_from(number * size / 8).expect("within a datagram") | more;
                let total = u16::try_from(20 + part.len()).expect("a fragment's size");
                let mut packet = vec![0x45, 0];
                packet.extend(total.to_be_bytes());
                packet.extend(identification.to_be_bytes());
                packet.extend(offset.to_be_bytes());
                // TTL, UDP, and a checksum to come.
                packet.extend([64, 17, 0, 0]);
                packet.extend(source.0.octets());
                packet.extend(octets(destination.0));
                let sum = packet
                    .chunks(2)
                    .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                    .sum::<u32>();
                let folded = (sum & 0xffff) + (sum >> 16);
                let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
                packet.extend(part);
                self.ethernet(to, 0x0800, &packet)
            })
            .collect()
    }

    /// A ping.
    #[must_use]
    pub fn echo_request(&self, to: Mac, source: Ipv4Addr, destination: IpAddr) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, to.0)
            .ipv4(source.octets(), octets(destination), 64)
            .icmpv4_echo_request(1, 1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, b"question")
            .expect("a Vec takes everything");
        frame
    }

    /// An ARP request (RFC 826) to all.
    #[must_use]
    pub fn arp_request(&self, sender: Ipv4Addr, wanted: IpAddr) -> Vec<u8> {
        // Ethernet, IPv4, their lengths, "request".
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(self.mac.0);
        body.extend(sender.octets());
        body.extend([0; 6]);
        body.extend(octets(wanted));
        self.ethernet(Mac([0xff; 6]), 0x0806, &body)
    }
}

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => panic!("frames are made for IPv4 only, not for {address}"),
    }
}
