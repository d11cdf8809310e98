//! The VLAN tag of the backend's side (IEEE 802.1Q).

use crate::packet::Packet;
use crate::parse::Link;
use crate::verdict::Verdict;
use crate::wire::{ETHERTYPE_VLAN, VLAN_ID, VLAN_LEN, be16_at};

/// Gives the frame the outer VLAN identifier `vlan`, 0 for none: set, pushed or popped, whatever it takes; an inner tag stays.
/// A tag that has the identifier already stays as it is. Priority bits stay where there was a tag and are 0 where there was
/// none. The Ethernet addresses are not written: the frame's first twelve bytes hold anything afterwards.
///
/// # Errors
/// [`Verdict::NoRoom`] where the driver leaves no room for a tag; [`Verdict::Truncated`] where there is none to set.
#[inline(always)]
pub fn set<P: Packet>(packet: &mut P, link: &Link, vlan: u16) -> Result<(), Verdict> {
    match (link.is_tagged(), vlan != 0) {
        (false, false) => Ok(()),
        (true, true) => {
            let tag = packet.bytes_mut::<4>(12).ok_or(Verdict::Truncated)?;
            let before = be16_at::<2, _>(tag);
            if before & VLAN_ID != vlan & VLAN_ID {
                // A provider's tag (IEEE 802.1ad) becomes a customer's: the backend's side knows no other.
                let [a, b] = ETHERTYPE_VLAN.to_be_bytes();
                let [c, d] = (before & !VLAN_ID | vlan & VLAN_ID).to_be_bytes();
                *tag = [a, b, c, d];
            }
            Ok(())
        }
        (true, false) => {
            if packet.move_head(VLAN_LEN as i32) {
                Ok(())
            } else {
                Err(Verdict::NoRoom)
            }
        }
        (false, true) => {
            if !packet.move_head(-(VLAN_LEN as i32)) {
                return Err(Verdict::NoRoom);
            }
            // The EtherType that was at 12 is now at 16.
            let tag = packet.bytes_mut::<4>(12).ok_or(Verdict::Truncated)?;
            let [a, b] = ETHERTYPE_VLAN.to_be_bytes();
            let [c, d] = (vlan & VLAN_ID).to_be_bytes();
            *tag = [a, b, c, d];
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        features::Features,
        packet::{Buffer, HEADROOM},
        parse::{Frame, Ip, parse},
    };

    /// What follows the Ethernet addresses of a UDP packet's frame with these tags (EtherType and TCI each), after `set`.
    fn set_on(tags: &[[u16; 2]], vlan: u16) -> [u8; 8] {
        const IP: [u8; 30] = [
            0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 10, 0, 1,
            0, 53, 0, 8, 0, 0,
        ];
        let mut memory = [0; HEADROOM + 12 + 8 + IP.len()];
        let mut end = HEADROOM + 12;
        for word in tags.iter().flatten() {
            memory[end..end + 2].copy_from_slice(&word.to_be_bytes());
            end += 2;
        }
        memory[end..end + IP.len()].copy_from_slice(&IP);
        end += IP.len();
        let mut packet = Buffer::with_room(&mut memory, HEADROOM, end - HEADROOM);
        let Ok(Frame::V4(Ip::Flow(flow))) = parse(&packet, Features::ALL_FORWARDING) else {
            panic!("{tags:04x?} is not parsed");
        };
        set(&mut packet, &flow.link, vlan).unwrap();
        *packet.bytes::<8>(12).unwrap()
    }

    #[test]
    fn the_tag_becomes_the_backends() {
        const IPV4: [u8; 8] = [0x08, 0, 0x45, 0, 0, 28, 0, 0];
        let cases: [(&[[u16; 2]], u16, [u8; 8]); 8] = [
            (&[], 0, IPV4),
            (&[], 10, [0x81, 0, 0, 10, 0x08, 0, 0x45, 0]),
            (&[[0x8100, 0x6005]], 0, IPV4),
            // The priority (its upper three bits) stays.
            (
                &[[0x8100, 0x6005]],
                10,
                [0x81, 0, 0x60, 10, 0x08, 0, 0x45, 0],
            ),
            (
                &[[0x8100, 0x600a]],
                10,
                [0x81, 0, 0x60, 10, 0x08, 0, 0x45, 0],
            ),
            // Two tags: the inner one is nobody's business but the backend's.
            (
                &[[0x8100, 5], [0x8100, 7]],
                10,
                [0x81, 0, 0, 10, 0x81, 0, 0, 7],
            ),
            (
                &[[0x88a8, 10], [0x8100, 7]],
                10,
                [0x88, 0xa8, 0, 10, 0x81, 0, 0, 7],
            ),
            // Nobody on the backend's VLAN would take a provider's tag.
            (&[[0x88a8, 5]], 10, [0x81, 0, 0, 10, 0x08, 0, 0x45, 0]),
        ];
        for (tags, vlan, expected) in cases {
            assert_eq!(set_on(tags, vlan), expected, "{tags:04x?} to {vlan}");
        }
    }
}
