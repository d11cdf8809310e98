//! Areas of a service's table: what all slots of one hold, for the data path, which then needs none of them. See
//! `lb_common::abi::map::AREAS`.

use lb_common::{abi::AREA, pick::Slot};

use super::{actual::ActualService, memory::Memory};

/// What the area of the slot at an index of a service's table holds; 0 where its slots hold different things, or one is in
/// transition, or the table has fewer.
#[must_use]
pub fn held(service: &ActualService, index: u32) -> Slot {
    let first = (index - index % AREA) as usize;
    let slots = service.slots.get(first..first + AREA as usize);
    slots.map_or(Slot::default(), common)
}

/// What all of these hold, if that is the same and they are settled; 0 otherwise.
#[must_use]
pub fn common(slots: &[Slot]) -> Slot {
    match slots {
        [one, rest @ ..] if !one.in_transition() && rest.iter().all(|slot| slot == one) => *one,
        _ => Slot::default(),
    }
}

/// Before any slot at these indices of a service's table is written: from now on the data path reads them one by one.
pub fn open<M: Memory>(maps: &M, service: &ActualService, indices: impl Iterator<Item = u32>) {
    each(service, indices, |area, _| {
        if maps.area(area).is_some_and(|held| held.0 != 0) {
            maps.set_area(area, Slot::default());
        }
    });
}

/// After they were written.
pub fn close<M: Memory>(maps: &M, service: &ActualService, indices: impl Iterator<Item = u32>) {
    each(service, indices, |area, index| {
        let held = held(service, index);
        if maps.area(area) != Some(held) {
            maps.set_area(area, held);
        }
    });
}

/// Each area once, where the indices are in order: its own index, counted over all tables, and one of a slot of it.
fn each(
    service: &ActualService,
    indices: impl Iterator<Item = u32>,
    mut visit: impl FnMut(u32, u32),
) {
    let mut last = None;
    for index in indices {
        let area = (service.offset + index) / AREA;
        if last != Some(area) {
            visit(area, index);
            last = Some(area);
        }
    }
}
