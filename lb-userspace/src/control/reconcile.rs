//! Desired state against actual state: the operations that make one of the other. Pure.

mod nodes;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    abi::BackendState,
    pick::{Backend, Slot},
    wire::mac_word,
};

use self::nodes::Nodes;
pub use self::nodes::OTHERS;
pub(super) use self::nodes::Others;
use super::{
    actual::{Actual, ActualBackend, ActualService, BuiltFor, Millis, Op, Share},
    desired::{DesiredBackend, DesiredService},
    directory::{self, DirectoryFull},
    regions::Regions,
    retarget::{Track, retarget},
};
use crate::maglev::{self, Run};

/// The maps are too small for what is wanted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooSmall {
    /// More services than ids.
    #[error(
        "{needed} services are too many, those removed within the last seconds among them: the maps have room for {capacity}; \
         remove some, or wait a moment and try again"
    )]
    Services {
        /// How many ids it would take.
        needed: u64,
        /// How many ids there are.
        capacity: u32,
    },
    /// More backends than numbers.
    #[error(
        "{needed} backends are too many, those that are leaving among them: the maps have room for {capacity}; raise \
         `backends` in [limits] to at least {needed}, which takes maps made anew (end xdp-lb, remove its pins, start it \
         again), or wait until the ones that are leaving have gone"
    )]
    Backends {
        /// How many numbers it would take.
        needed: u64,
        /// How many numbers there are.
        capacity: u32,
    },
    /// All tables together are too large.
    #[error(
        "the services' tables take {needed} slots together, and the maps have room for {capacity}: raise `slots` in [limits] \
         to at least {needed}, which takes maps made anew (end xdp-lb, remove its pins, start it again)"
    )]
    AllSlots {
        /// How many slots the tables take.
        needed: u64,
        /// How many there are.
        capacity: u32,
    },
    /// No room for a table.
    #[error(
        "service {service} needs a table of {needed} slots in one piece, but {used} of {capacity} are in use: raise `slots` in [limits], which takes maps made anew (end xdp-lb, remove its pins, start it again)"
    )]
    Slots {
        /// The service.
        service: String,
        /// How many slots it needs in one piece.
        needed: u32,
        /// How many are in use.
        used: u32,
        /// How many there are.
        capacity: u32,
    },
    /// Too many ports.
    #[error(transparent)]
    Directory(#[from] DirectoryFull),
}

/// Which services are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The services given are all there should be: others are removed.
    All,
    /// An event about a few: the others stay as they are, and cost nothing.
    Only,
}

/// The operations that bring the maps from `actual` to `desired`, in the order in which they must be done.
///
/// # Errors
/// [`TooSmall`]: then nothing must be done.
pub fn reconcile(
    desired: &[DesiredService],
    scope: Scope,
    actual: &Actual,
    unix_ms: u64,
    now: Millis,
) -> Result<Vec<Op>, TooSmall> {
    let mut plan = Plan {
        actual,
        desired,
        regions: Cow::Borrowed(&actual.regions),
        next_id: 0,
        next_number: 1,
        ops: Vec::new(),
        swap: false,
        unix_ms,
        now,
    };
    if scope == Scope::All {
        let names: HashSet<&str> = desired.iter().map(|s| s.name.as_str()).collect();
        for (id, service) in actual.services() {
            if !names.contains(service.name.as_str()) {
                plan.remove_service(*id);
            }
        }
    }
    for service in desired {
        plan.service(service)?;
    }
    if plan.swap {
        let layout = plan.lay_out()?;
        plan.ops.push(Op::SwapDirectory { layout });
    }
    Ok(plan.ops)
}

struct Plan<'a> {
    actual: &'a Actual,
    /// Everything that is wanted, for the numbers of a refusal.
    desired: &'a [DesiredService],
    regions: Cow<'a, Regions>,
    /// Where the search for a free service id goes on.
    next_id: u32,
    /// Where the search for a free backend number goes on.
    next_number: u32,
    ops: Vec<Op>,
    swap: bool,
    unix_ms: u64,
    now: Millis,
}

impl Plan<'_> {
    fn remove_service(&mut self, id: u16) {
        self.swap = true;
        self.ops.push(Op::RemoveService { id });
        for (number, _) in self.actual.backends_of(id) {
            self.ops.push(Op::RemoveBackend { number });
        }
    }

    /// The lookup as it will be, in the half that is not in use.
    fn lay_out(&self) -> Result<directory::Layout, DirectoryFull> {
        let mut after: BTreeMap<u16, &ActualService> = self
            .actual
            .services()
            .iter()
            .map(|(id, service)| (*id, service))
            .collect();
        for op in &self.ops {
            match op {
                Op::Service { id, service } => {
                    after.insert(*id, service);
                }
                Op::RemoveService { id } => {
                    after.remove(id);
                }
                _ => {}
            }
        }
        let entries = directory::entries(after.iter().map(|(id, s)| (&s.entries, s.value(*id))));
        let in_use = self.actual.directory();
        let in_use = (in_use.0 != 0).then_some(in_use);
        directory::lay_out(&entries, self.actual.bucket_bits, in_use, self.unix_ms)
    }

    /// The lowest service id that nobody has or had until just now.
    fn free_id(&mut self) -> Option<u16> {
        while self.next_id < self.actual.service_capacity.min(1 << 16) {
            let id = self.next_id as u16;
            self.next_id += 1;
            if self.actual.is_free_id(id) {
                return Some(id);
            }
        }
        None
    }

    /// The lowest backend number that nobody has or had until just now.
    fn free_number(&mut self) -> Option<u16> {
        while self.next_number < self.actual.backend_capacity.min(1 << 16) {
            let number = self.next_number as u16;
            self.next_number += 1;
            if self.actual.is_free_number(number) {
                return Some(number);
            }
        }
        None
    }

    fn too_many_services(&self) -> TooSmall {
        let new = self
            .desired
            .iter()
            .filter(|service| self.actual.service_id(&service.name).is_none());
        let there = self.actual.services().len() + self.actual.retired().services.len();
        TooSmall::Services {
            needed: (there + new.count()) as u64,
            capacity: self.actual.service_capacity,
        }
    }

    fn too_many_backends(&self) -> TooSmall {
        let new = self.desired.iter().flat_map(|service| {
            let id = self.actual.service_id(&service.name);
            service.backends.iter().filter(move |backend| {
                id.and_then(|id| {
                    self.actual
                        .backend_number(id, &backend.name, backend.address)
                })
                .is_none()
            })
        });
        let there = self.actual.backends().len() + self.actual.retired().backends.len();
        TooSmall::Backends {
            needed: (there + new.count()) as u64,
            capacity: self.actual.backend_capacity - 1,
        }
    }

    fn service(&mut self, desired: &DesiredService) -> Result<(), TooSmall> {
        let id = match self.actual.service_id(&desired.name) {
            Some(id) => id,
            None => self.free_id().ok_or_else(|| self.too_many_services())?,
        };
        let numbers = self.numbers(id, desired)?;
        let weights: Vec<u32> = desired.backends.iter().map(|b| b.weight).collect();
        let old = self.actual.services().get(&id);
        // A table never shrinks while it is in use: that would tear slots in transition together.
        let mut bits = maglev::table_bits(&weights).max(old.map_or(0, |old| old.bits));
        if let Some(pick) = &desired.pick {
            // Nor can two nodes pick alike from tables of different sizes.
            bits = pick
                .tables
                .values()
                .map(|table| table.bits.min(maglev::MAX_BITS))
                .fold(bits, u8::max);
        }
        // Who had its number before is the same backend: its identity need not be put into words again.
        let known: HashMap<u16, &Arc<str>> = old
            .iter()
            .flat_map(|old| old.built_for.iter().flatten())
            .map(|share| (share.number, &share.identity))
            .collect();
        let mut built_for: BuiltFor = desired
            .sharing()
            .map(|(b, weight)| {
                let number = numbers[&(b.name.as_str(), b.address)];
                let identity = known
                    .get(&number)
                    .map_or_else(|| b.identity().into(), |known| Arc::clone(known));
                Share {
                    identity,
                    configured: b.configured,
                    weight,
                    number,
                }
            })
            .collect();
        // The order in which a table is built: so that a failure, which has no time, need not sort.
        built_for.sort_unstable();
        if let (Some(pick), Some(before)) =
            (&desired.pick, old.and_then(|old| old.built_for.as_ref()))
            && !pick.same_file
        {
            built_for = nodes::by_the_file_before(before, built_for);
        }

        // Backends before slots: a slot never names a backend whose entry is not there yet, and a failed backend's
        // recorded flows move with the one store of its entry.
        let failed = self.backends(id, desired, &numbers);

        let is_failed = |number: u16| failed.contains(&number);
        let (before, changed, offset) = match old {
            Some(old) if old.bits == bits => (
                Cow::Borrowed(&old.slots[..]),
                Cow::Borrowed(&old.changed[..]),
                old.offset,
            ),
            Some(old) => {
                let mut slots = old.slots.clone();
                let mut changed = old.changed.clone();
                for _ in old.bits..bits {
                    slots = maglev::grow(&slots);
                    changed = maglev::grow(&changed);
                }
                (slots.into(), changed.into(), self.region(desired, bits)?)
            }
            None => {
                let size = 1usize << bits;
                (
                    vec![Slot::default(); size].into(),
                    vec![self.now; size].into(),
                    self.region(desired, bits)?,
                )
            }
        };
        let table_is_new = old.is_none_or(|old| old.bits != bits);
        let names_failed = || failed.iter().any(|number| self.actual.is_named(*number));
        let stale = table_is_new
            // Where nothing is tracked any more, nothing stays in transition.
            || old.is_some_and(|old| old.track != desired.track)
            || old.is_none_or(|old| old.built_for.as_ref() != Some(&built_for))
            // What a peer had not given up the last time, it may have by now.
            || desired.pick.is_some()
            || (!failed.is_empty() && names_failed());
        let joins = desired.pick.as_ref().is_some_and(|pick| {
            let lives = |b: &DesiredBackend| b.name != pick.own && !b.has_failed();
            pick.joining && desired.backends.iter().any(lives)
        });
        let slots: Cow<'_, [Slot]> = if joins {
            let others = self.others(id)?;
            self.ops.extend(others.op);
            table(&built_for, bits)
                .into_iter()
                .map(|target| Slot::new(target, others.number))
                .collect()
        } else if stale {
            match &desired.pick {
                None => target(&before, &built_for, bits, desired.track, is_failed).into(),
                Some(pick) => {
                    let Others { number, op } = self.others(id)?;
                    let nodes =
                        Nodes::of(desired, pick, &numbers, bits, &built_for, &failed, number);
                    let table = table(&built_for, bits);
                    let slots: Vec<Slot> = before
                        .iter()
                        .zip(table)
                        .map(|(slot, target)| nodes.retarget(*slot, target, desired.track))
                        .collect();
                    let names = |slot: &Slot| slot.current() == number || slot.previous() == number;
                    if slots.iter().any(names) {
                        self.ops.extend(op);
                    }
                    slots.into()
                }
            }
        } else {
            before.clone()
        };

        let service = |slots: Cow<'_, [Slot]>, changed: Vec<Millis>| ActualService {
            name: desired.name.clone(),
            entries: desired.entries.clone(),
            affinity: desired.affinity,
            track: desired.track,
            spreads: desired.spreads,
            following: desired.following,
            flow_idle: desired.flow_idle,
            offset,
            bits,
            slots: slots.into_owned(),
            changed,
            built_for: Some(built_for.clone()),
        };
        if table_is_new {
            let mut changed = changed.into_owned();
            for ((slot, old), changed) in slots.iter().zip(&*before).zip(&mut changed) {
                if slot != old {
                    *changed = self.now;
                }
            }
            self.ops.push(Op::Service {
                id,
                service: service(slots, changed),
            });
            self.swap = true;
            return Ok(());
        }
        let changes: Vec<(u32, Slot)> = (0..)
            .zip(slots.iter().zip(&*before))
            .filter(|(_, (new, old))| new != old)
            .map(|(index, (new, _))| (index, *new))
            .collect();
        let rebuilt = old.is_some_and(|old| old.built_for.as_ref() != Some(&built_for));
        if !changes.is_empty() || rebuilt {
            self.ops.push(Op::Slots {
                service: id,
                changes,
                built_for: Some(built_for.clone()),
            });
        }
        if let Some(old) = old
            && (old.entries != desired.entries
                || old.affinity != desired.affinity
                || old.track != desired.track
                || old.spreads != desired.spreads
                || old.following != desired.following
                || old.flow_idle != desired.flow_idle)
        {
            // The table is written already; the service keeps it.
            self.swap |= old.entries != desired.entries
                || old.affinity != desired.affinity
                || old.following.marked(old.value(id)) != desired.following.marked(old.value(id))
                || old.spreads != desired.spreads;
            let mut changed = changed.into_owned();
            for ((slot, old), changed) in slots.iter().zip(&*before).zip(&mut changed) {
                if slot != old {
                    *changed = self.now;
                }
            }
            self.ops.push(Op::Service {
                id,
                service: service(slots, changed),
            });
        }
        Ok(())
    }

    fn others(&mut self, id: u16) -> Result<Others, TooSmall> {
        match Others::known(self.actual, id) {
            Some(known) => Ok(known),
            None => {
                let number = self.free_number().ok_or_else(|| self.too_many_backends())?;
                Ok(Others::new(id, number, self.unix_ms))
            }
        }
    }

    fn region(&mut self, desired: &DesiredService, bits: u8) -> Result<u32, TooSmall> {
        self.regions
            .to_mut()
            .take(bits)
            .ok_or_else(|| TooSmall::Slots {
                service: desired.name.clone(),
                needed: 1 << bits,
                used: self.regions.used(),
                capacity: self.regions.capacity(),
            })
    }

    /// The number of each backend: the one it has, or a free one.
    fn numbers<'d>(
        &mut self,
        id: u16,
        desired: &'d DesiredService,
    ) -> Result<BTreeMap<(&'d str, IpAddr), u16>, TooSmall> {
        let mut numbers = BTreeMap::new();
        for backend in &desired.backends {
            let number = match self
                .actual
                .backend_number(id, &backend.name, backend.address)
            {
                Some(number) => number,
                None => self.free_number().ok_or_else(|| self.too_many_backends())?,
            };
            numbers.insert((backend.name.as_str(), backend.address), number);
        }
        Ok(numbers)
    }

    /// Writes the backends' entries; gives the numbers that have failed just now or before.
    fn backends(
        &mut self,
        id: u16,
        desired: &DesiredService,
        numbers: &BTreeMap<(&str, IpAddr), u16>,
    ) -> BTreeSet<u16> {
        let mut failed = BTreeSet::new();
        for wanted in &desired.backends {
            let number = numbers[&(wanted.name.as_str(), wanted.address)];
            let old = self.actual.backends().get(&number);
            if wanted.has_failed() {
                failed.insert(number);
            }
            let new = self.backend(id, wanted, old);
            if old != Some(&new) {
                self.ops.push(Op::Backend {
                    number,
                    backend: new,
                });
            }
        }
        let listed: BTreeSet<u16> = numbers.values().copied().collect();
        for (number, old) in self.actual.backends_of(id) {
            if listed.contains(&number) {
                continue;
            }
            let known = desired
                .leaving
                .iter()
                .find(|known| known.name == old.name && known.address == old.address);
            let new = self.leaving(old, known);
            if new.entry.failed() {
                failed.insert(number);
            }
            if *old != new {
                self.ops.push(Op::Backend {
                    number,
                    backend: new,
                });
            }
        }
        failed
    }

    /// A backend that is not in the configuration any more. Once its flows have moved it gets none back: as soon as no
    /// slot names it, it is gone.
    fn leaving(&self, old: &ActualBackend, known: Option<&DesiredBackend>) -> ActualBackend {
        let leaves_now = old.state != BackendState::Leaving;
        let fails_now = !old.entry.failed() && known.is_some_and(DesiredBackend::has_failed);
        let reason = match known {
            Some(known) if fails_now => {
                format!(
                    "removed from the configuration; its flows have moved: {}",
                    known.reason
                )
            }
            _ if !leaves_now => old.reason.clone(),
            _ if old.state == BackendState::Drained => {
                "removed from the configuration after it had been drained".into()
            }
            _ if old.entry.failed() => "removed from the configuration after it had failed".into(),
            _ => "removed from the configuration; its flows stay until they end".into(),
        };
        let entry = match known.and_then(|known| Some((known.mac?, known.port))) {
            Some((mac, port)) => Backend::new(mac_word(mac), port, old.entry.failed() || fails_now),
            None => Backend::new(
                old.entry.mac(),
                old.entry.port(),
                old.entry.failed() || fails_now,
            ),
        }
        .closed_to_new(true);
        ActualBackend {
            state: BackendState::Leaving,
            reason,
            since_ms: if leaves_now {
                self.unix_ms
            } else {
                old.since_ms
            },
            healthy: known.map_or(old.healthy, |known| known.healthy),
            entry,
            ..old.clone()
        }
    }

    fn backend(
        &self,
        service: u16,
        wanted: &DesiredBackend,
        old: Option<&ActualBackend>,
    ) -> ActualBackend {
        // Drained is draining with nothing left; the sweep says when.
        let state = match (wanted.state, old.map(|old| old.state)) {
            (BackendState::Draining, Some(BackendState::Drained)) => BackendState::Drained,
            (state, _) => state,
        };
        ActualBackend {
            service,
            name: wanted.name.clone(),
            address: wanted.address,
            entry: Backend::new(
                wanted.mac.map_or(0, mac_word),
                wanted.port,
                wanted.has_failed(),
            )
            .closed_to_new(wanted.is_closed_to_new()),
            state,
            reason: wanted.reason.clone(),
            since_ms: old
                .filter(|old| old.state == state)
                .map_or(self.unix_ms, |old| old.since_ms),
            weight: wanted.weight,
            priority: wanted.priority,
            healthy: wanted.healthy,
            base_packets: old.map_or(0, |old| old.base_packets),
            base_bytes: old.map_or(0, |old| old.base_bytes),
        }
    }
}

/// The table after the change.
fn target(
    before: &[Slot],
    built_for: &BuiltFor,
    bits: u8,
    track: Track,
    failed: impl Fn(u16) -> bool,
) -> Vec<Slot> {
    before
        .iter()
        .zip(table(built_for, bits))
        .map(|(slot, target)| retarget(*slot, target, track, &failed))
        .collect()
}

/// The slots that the change to the backends of `runs` changes, by their index.
pub(super) fn changes(
    before: &[Slot],
    runs: &[Run],
    track: Track,
    failed: impl Fn(u16) -> bool,
) -> Vec<(u32, Slot)> {
    let mut changes = Vec::new();
    let (mut index, mut rest) = (0, before);
    for run in runs {
        let Some((slots, after)) = rest.split_at_checked(run.slots as usize) else {
            break;
        };
        let same = Slot::settled(run.number);
        // Nearly all of them: settled on the backend that they go on with. Compared as a whole, many at once.
        if slots
            .iter()
            .fold(0, |other, slot| other | (slot.0 ^ same.0))
            != 0
        {
            for (index, slot) in (index..).zip(slots) {
                let new = retarget(*slot, run.number, track, &failed);
                if new != *slot {
                    changes.push((index, new));
                }
            }
        }
        (index, rest) = (index + run.slots, after);
    }
    changes
}

/// The backend of each of 2^`bits` slots.
pub(super) fn table(built_for: &BuiltFor, bits: u8) -> Vec<u16> {
    maglev::build(&members(built_for), bits)
}

/// The same as runs.
pub(super) fn runs(built_for: &BuiltFor, bits: u8) -> Vec<Run> {
    maglev::build_runs(&members(built_for), bits)
}

/// The same for a service's table without some of those whom it is built for, if it has that of the configured weights. In forward mode
/// the current backend of each slot is the one that the table gives it.
pub(super) fn runs_without(service: &ActualService, built_for: &BuiltFor) -> Option<Vec<Run>> {
    let as_configured = |share: &Share| share.weight == share.configured;
    if !service.built_for.as_ref()?.iter().all(as_configured) {
        return None;
    }
    let base = service
        .slots
        .chunk_by(|one, other| one.current() == other.current())
        .map(|slots| Run {
            slots: slots.len() as u32,
            number: slots[0].current(),
        });
    maglev::build_runs_without(base, &members(built_for), service.bits)
}

fn members(built_for: &BuiltFor) -> Vec<maglev::Member<'_>> {
    built_for
        .iter()
        .map(|share| maglev::Member {
            identity: &share.identity,
            configured: share.configured,
            weight: share.weight,
            number: share.number,
        })
        .collect()
}

#[cfg(test)]
mod tests;
