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
        return Ok(if flags & TCP_RST != 0 {
            Signal::Resets
        } else if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
            Signal::Opens
        } else if flags & TCP_FIN != 0 {
            Signal::Closes
        } else {
            Signal::Continues
        });
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

/// Long header (RFC 8999 section 5.1) with the fixed bit (RFC 9000 section 17.2).
const LONG_HEADER: u8 = 0xc0;
/// The type's bits.
const TYPE: u8 = 0x30;
/// QUIC version 2 (RFC 9369 section 3.1).
const VERSION_2: u32 = 0x6b33_43cf;

/// Whether the datagram starts with a QUIC Initial packet.
///
/// Versions that are not known are read as version 1, which the drafts before it are like; a server that does not know one
/// either answers with a Version Negotiation packet (RFC 8999 section 6), whichever server it is. The fixed bit may be greased (RFC 9287), but never by a client's first
/// packet, whose server has not yet said that it may.
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
