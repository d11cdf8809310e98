//! Fencing, as clusters call it: in `mode = "pick"` the peers of a node whose server has failed take its place. A living
//! controller learns of it by their word and gives its slots up; where the controller is gone, its data path must hear of it
//! itself, or two nodes would answer.
//!
//! The frame that says so takes the way of the clients' frames: to the cluster's MAC address, hence to every node. It names a
//! token, which only the nodes that share the cluster's seed can work out, and which a new run of the controller changes; and
//! the number that the fenced node gives itself in its own maps.
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | [`MAGIC`] |
//! | 4 | 8 | the token, big-endian |
//! | 12 | 2 | the backend number, big-endian |

use crate::abi::Fence;
use crate::packet::Packet;
use crate::parse::Link;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{be16_at, be64_at};

/// What such a frame holds first, behind its EtherType ([`crate::wire::ETHERTYPE_CLUSTER`]).
pub const MAGIC: [u8; 4] = *b"XLF1";
/// Bytes behind the EtherType, without padding.
pub const LEN: usize = 14;

/// What a frame says behind its EtherType.
#[must_use]
pub const fn payload(token: u64, number: u16) -> [u8; LEN] {
    let [m0, m1, m2, m3] = MAGIC;
    let [t0, t1, t2, t3, t4, t5, t6, t7] = token.to_be_bytes();
    let [n0, n1] = number.to_be_bytes();
    [m0, m1, m2, m3, t0, t1, t2, t3, t4, t5, t6, t7, n0, n1]
}

/// Takes note of such a frame, whose [`MAGIC`] is known. Nobody is fenced by a wrong token, nor by a token of 0.
#[inline(always)]
pub fn take<P: Packet, T: Tables>(packet: &P, tables: &T, link: &Link) -> Verdict {
    let Some(said) = packet.bytes::<LEN>(link.l3) else {
        return Verdict::OtherEthertype;
    };
    let token = be64_at::<4, _>(said);
    if token != 0
        && tables.records()
        && let Some(fence) = tables.fence(be16_at::<12, _>(said))
        && fence.token.get() == token
    {
        fence.fenced_by.set(token);
    }
    Verdict::ClusterFrame
}

/// Whether this node keeps nothing of the service any more.
#[inline(always)]
pub fn is_fenced<T: Tables>(tables: &T, number: u16) -> bool {
    tables.fence(number).is_some_and(is_in_force)
}

/// Whether a fence is up: by the token of now.
#[inline(always)]
#[must_use]
pub fn is_in_force(fence: &Fence) -> bool {
    let token = fence.token.get();
    token != 0 && fence.fenced_by.get() == token
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use crate::packet::Buffer;
    use crate::plain::{Capacity, Instance, PlainTables};

    const LINK: Link = Link {
        destination: 0,
        l3: 14,
    };

    fn frame(token: u64, number: u16) -> alloc::vec::Vec<u8> {
        let mut frame = alloc::vec![0; 14];
        frame.extend(payload(token, number));
        frame
    }

    #[test]
    fn only_the_token_in_force_fences_and_only_that_backend() {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        tables.fences[5].token.set(77);
        let take = |mut frame: alloc::vec::Vec<u8>| take(&Buffer::new(&mut frame), &tables, &LINK);
        for (token, number) in [(78, 5), (77, 6), (0, 6), (77, u16::MAX)] {
            assert_eq!(take(frame(token, number)), Verdict::ClusterFrame);
            assert!(!is_fenced(&tables, 5) && !is_fenced(&tables, 6));
        }
        assert_eq!(take(frame(77, 5)), Verdict::ClusterFrame);
        assert!(is_fenced(&tables, 5) && !is_fenced(&tables, 6));
        // Another token lifts it, and the old frame does nothing any more.
        tables.fences[5].token.set(79);
        assert!(!is_fenced(&tables, 5));
        take(frame(77, 5));
        assert!(!is_fenced(&tables, 5));
    }

    #[test]
    fn what_is_cut_short_fences_nobody() {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        tables.fences[5].token.set(77);
        let whole = frame(77, 5);
        for end in 14..whole.len() {
            let mut cut = whole[..end].to_vec();
            let verdict = take(&Buffer::new(&mut cut), &tables, &LINK);
            assert_eq!(verdict, Verdict::OtherEthertype);
        }
        assert!(!is_fenced(&tables, 5));
    }
}
