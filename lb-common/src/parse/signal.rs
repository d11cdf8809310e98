//! What a packet says about its flow's life: only asked where flows are recorded.

use crate::packet::Packet;
use crate::service::Track;
use crate::verdict::Verdict;
use crate::wire::{
    PROTO_TCP, TCP_ACK, TCP_FIN, TCP_FLAGS, TCP_RST, TCP_SYN, UDP_LEN, be32_at, u8_at,
};

use super::{Flow, Part};

/// What a packet says about its flow's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It opens the flow: TCP SYN without ACK, a QUIC Initial packet.
    Opens,
    /// It belongs to a flow that is there.
    Continues,
    /// FIN.
    Closes,
    /// RST.
    Resets,
    /// It is not of the flow, but about it: it goes where the flow goes and leaves no trace.
    Related,
    /// The protocol does not tell, and flows of it are not recorded.
    Unknown,
    /// The protocol does not tell, but every flow is recorded: one that is not known is new.
    Unmarked,
    /// Likewise, but not of the flow, only about it.
    UnmarkedRelated,
}

/// What the packet says, in a service that tracks so.
///
/// # Errors
/// [`Verdict::Truncated`] where the transport header is cut short.
#[inline(always)]
pub fn signal<P: Packet, A>(packet: &P, flow: &Flow<A>, track: Track) -> Result<Signal, Verdict> {
    let quoted = matches!(flow.part, Part::Quoted);
    if flow.protocol == PROTO_TCP {
        if quoted {
            return Ok(Signal::Related);
        }
        let flags = u8_at::<0, 1>(
            packet
                .bytes::<1>(flow.transport + TCP_FLAGS)
                .ok_or(Verdict::Truncated)?,
        );
        return Ok(of_flags(flags));
    }
    Ok(match track {
        Track::Changes => Signal::Unknown,
        Track::Always if quoted => Signal::UnmarkedRelated,
        Track::Always => Signal::Unmarked,
        Track::Quic if quoted => Signal::Related,
        Track::Quic if is_quic_initial(packet, flow) => Signal::Opens,
        Track::Quic => Signal::Continues,
    })
}

/// What a TCP segment's flags say.
#[inline(always)]
#[must_use]
pub const fn of_flags(flags: u8) -> Signal {
    if flags & TCP_RST != 0 {
        Signal::Resets
    } else if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        Signal::Opens
    } else if flags & TCP_FIN != 0 {
        Signal::Closes
    } else {
        Signal::Continues
    }
}

/// Long header (RFC 8999 section 5.1).
const LONG_HEADER: u8 = 0x80;
/// The type's bits.
const TYPE: u8 = 0x30;
/// QUIC version 2 (RFC 9369 section 3.1).
const VERSION_2: u32 = 0x6b33_43cf;

/// Whether the datagram starts with a QUIC Initial packet.
///
/// Versions that are not known are read as version 1, which the drafts before it are like; a server that does not know one
/// either answers with a Version Negotiation packet (RFC 8999 section 6), whichever server it is. The fixed bit (RFC 9000
/// section 17.2) says nothing: it may be greased (RFC 9287), and there are clients that do so from their first packet on.
#[inline(always)]
fn is_quic_initial<P: Packet, A>(packet: &P, flow: &Flow<A>) -> bool {
    let payload = flow.transport + UDP_LEN;
    if payload + 5 > flow.end {
        return false;
    }
    let Some(head) = packet.bytes::<5>(payload) else {
        return false;
    };
    let first = u8_at::<0, _>(head);
    let kind = first & TYPE;
    first & LONG_HEADER == LONG_HEADER
        && match be32_at::<1, _>(head) {
            VERSION_2 => kind == 0x10,
            // Version 0 is a Version Negotiation packet, which only servers send.
            0 => false,
            _ => kind == 0x00,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::packet::Buffer;
    use crate::parse::{Frame, Ip, parse};

    /// What a UDP packet with this payload says in a service that speaks QUIC.
    fn said(payload: &[u8]) -> Signal {
        let mut frame = [0u8; 14 + 20 + 8 + 16];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[17] = (20 + 8 + payload.len()) as u8;
        frame[23] = 17;
        frame[39] = (8 + payload.len()) as u8;
        frame[42..42 + payload.len()].copy_from_slice(payload);
        let packet = Buffer::new(&mut frame);
        let Ok(Frame::V4(Ip::Flow(flow))) = parse(&packet, Features::NONE) else {
            panic!("not parsed");
        };
        signal(&packet, &flow, Track::Quic).expect("whole")
    }

    #[test]
    fn which_packets_open_a_quic_connection() {
        assert_eq!(said(&[0xc3, 0, 0, 0, 1, 8]), Signal::Opens);
        // Greased, as quinn's first packet may be.
        assert_eq!(said(&[0x86, 0, 0, 0, 1, 20]), Signal::Opens);
        assert_eq!(said(&[0xd0, 0x6b, 0x33, 0x43, 0xcf]), Signal::Opens);
        // A draft, or a version to come.
        assert_eq!(said(&[0xc0, 0xff, 0, 0, 29]), Signal::Opens);
        // 0-RTT, Handshake, Retry; of version 2 what version 1 calls Initial.
        for first in [0xd0, 0xe0, 0xf0] {
            assert_eq!(said(&[first, 0, 0, 0, 1]), Signal::Continues);
        }
        assert_eq!(said(&[0xc0, 0x6b, 0x33, 0x43, 0xcf]), Signal::Continues);
        assert_eq!(said(&[0xc0, 0, 0, 0, 0]), Signal::Continues);
        // Short headers, greased or not; what is too short to tell.
        assert_eq!(said(&[0x43, 0, 0, 0, 1]), Signal::Continues);
        assert_eq!(said(&[0x06, 0, 0, 0, 1]), Signal::Continues);
        assert_eq!(said(&[0xc3, 0, 0, 0]), Signal::Continues);
        assert_eq!(said(&[]), Signal::Continues);
    }
}
