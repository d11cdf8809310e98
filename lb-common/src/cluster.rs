//! The frames of [`crate::wire::ETHERTYPE_CLUSTER`] that the nodes of a cluster send each other's data paths.

use crate::packet::Packet;
use crate::parse::Link;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::{fence, presence};

/// Does what such a frame asks for. What is no frame of these is left to the host, as are answers: its controller takes them.
#[inline(always)]
pub fn take<P: Packet, T: Tables>(packet: &mut P, tables: &T, link: &Link) -> Verdict {
    match packet.bytes::<4>(link.l3) {
        Some(&fence::MAGIC) => fence::take(packet, tables, link),
        Some(&presence::QUESTION) => presence::answer(packet, tables, link),
        _ => Verdict::OtherEthertype,
    }
}
