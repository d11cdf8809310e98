//! Areas of a service's table: who has all slots of one, for the data path, which then needs none of them. See
//! `lb_common::abi::map::AREAS`.

use lb_common::{abi::AREA, pick::Slot};

use super::{actual::ActualService, memory::Memory};

/// The backend that has the area of the slot at an index of a service's table; 0 where its slots hold different things, or one
/// is in transition, or the table has fewer.
#[must_use]
pub fn owner(service: &ActualService, index: u32) -> u16 {
    let first = (index - index % AREA) as usize;
    let slots = service.slots.get(first..first + AREA as usize);
    slots.map_or(0, common)
}

/// The backend that has all of these, settled; 0 otherwise.
#[must_use]
pub fn common(slots: &[Slot]) -> u16 {
    match slots {
        [one, rest @ ..] if !one.in_transition() && rest.iter().all(|slot| slot == one) => {
            one.current()
        }
        _ => 0,
    }
}

/// After slots at these indices of a service's table were written: until now the areas that a backend had alone were still as before
/// the change, each as a whole.
pub fn write<M: Memory>(maps: &M, service: &ActualService, indices: impl Iterator<Item = u32>) {
    each(service, indices, |area, index| {
        let owner = owner(service, index);
        if maps.area(area) != Some(owner) {
            maps.set_area(area, owner);
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
