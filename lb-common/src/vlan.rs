//! The VLAN tag of the backend's side (IEEE 802.1Q).

use crate::packet::Packet;
use crate::parse::Link;
use crate::verdict::Verdict;
use crate::wire::{ETH_LEN, ETHERTYPE_VLAN, VLAN_ID, VLAN_LEN, be16_at};

/// Gives the frame the outer VLAN identifier `vlan`, 0 for none: set, pushed or popped, whatever it takes; an inner tag stays.
/// Priority bits stay where there was a tag and are 0 where there was none. The Ethernet addresses are not written: the
/// frame's first twelve bytes hold anything afterwards.
///
/// # Errors
/// [`Verdict::NoRoom`] where the driver leaves no room for a tag; [`Verdict::Truncated`] where there is none to set.
#[inline(always)]
pub fn set<P: Packet>(packet: &mut P, link: &Link, vlan: u16) -> Result<(), Verdict> {
    match (link.is_tagged(), vlan != 0) {
        (false, false) => Ok(()),
        (true, true) => {
            let tag = packet.bytes_mut::<2>(ETH_LEN).ok_or(Verdict::Truncated)?;
            let before = be16_at::<0, _>(tag);
            *tag = (before & !VLAN_ID | vlan & VLAN_ID).to_be_bytes();
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
