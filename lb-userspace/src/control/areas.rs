//! Areas of a service's table: who has all slots of one, for the data path, which then needs none of them. See
//! `lb_common::abi::map::AREAS`.

use lb_common::{abi::AREA, pick::Slot};

use super::{actual::ActualService, memory::Memory};

/// The backend that has all of these, settled; 0 otherwise.
#[must_use]
pub fn owner(slots: &[Slot]) -> u16 {
    match slots {
        [one, rest @ ..] if !one.in_transition() && rest.iter().all(|slot| slot == one) => {
            one.current()
        }
        _ => 0,
    }
}

/// Writes what all areas of a service's table hold; gives how many stores that took.
pub fn write_all<M: Memory>(maps: &M, service: &ActualService) -> u64 {
    let areas = service.slots.chunks(AREA as usize);
    (service.offset / AREA..)
        .zip(areas)
        .map(|(area, slots)| write(maps, area, slots))
        .sum()
}

/// Writes slots of a service's table, in the order of their indices, and behind those of an area the area itself: until then it is
/// as before the change, as a whole. Gives how many stores that took.
pub fn change<M: Memory>(maps: &M, service: &ActualService, changes: &[(u32, Slot)]) -> u64 {
    debug_assert!(changes.is_sorted_by_key(|(index, _)| *index), "by index");
    let same_area = |(one, _): &(u32, Slot), (other, _): &(u32, Slot)| one / AREA == other / AREA;
    let mut stores = changes.len() as u64;
    for changes in changes.chunk_by(same_area) {
        let first = changes[0].0 - changes[0].0 % AREA;
        let mut slots = [Slot::default(); AREA as usize];
        slots.copy_from_slice(&service.slots[first as usize..][..AREA as usize]);
        for (index, slot) in changes {
            maps.set_slot(service.offset + index, *slot);
            slots[(index - first) as usize] = *slot;
        }
        stores += write(maps, (service.offset + first) / AREA, &slots);
    }
    stores
}

fn write<M: Memory>(maps: &M, area: u32, slots: &[Slot]) -> u64 {
    let owner = owner(slots);
    if maps.area(area) == Some(owner) {
        return 0;
    }
    maps.set_area(area, owner);
    1
}
