//! What becomes of the slots of a cluster's service: by the rules of nodes that each decide for themselves. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use lb_common::{
    abi::BackendState,
    pick::{Backend, Slot},
};

use super::{
    super::{
        actual::{Actual, ActualBackend, BuiltFor, Op, Share},
        desired::{DesiredBackend, DesiredService, Missed, Pending, Pick},
        retarget::Track,
        words::Table,
    },
    TooSmall,
};

/// The name of the backend that stands for all other nodes; no configured one can have it.
pub const OTHERS: &str = "(others)";

/// The number that stands for "another node, whichever": where the flows are that this node has not seen open. It never fails,
/// nothing takes new flows there, and it leaves when no slot and no flow names it any more.
#[derive(Debug)]
pub(in crate::control) struct Others {
    pub(in crate::control) number: u16,
    /// What makes it, where it is not there.
    pub(in crate::control) op: Option<Op>,
}

impl Others {
    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    /// The number, where there is one.
    pub(in crate::control) fn number(actual: &Actual, service: u16) -> Option<u16> {
        actual.backend_number(service, OTHERS, Self::ADDRESS)
    }

    pub(super) fn known(actual: &Actual, service: u16) -> Option<Self> {
        let number = Self::number(actual, service)?;
        Some(Self { number, op: None })
    }

    pub(super) fn new(service: u16, number: u16, unix_ms: u64) -> Self {
        let backend = ActualBackend {
            service,
            name: OTHERS.into(),
            address: Self::ADDRESS,
            entry: Backend::default().closed_to_new(true),
            state: BackendState::Leaving,
            reason: "stands for another node, whichever: flows that this one has not seen open, slots that nobody has taken yet".into(),
            since_ms: unix_ms,
            weight: 0,
            priority: 0,
            healthy: true,
            base_packets: 0,
            base_bytes: 0,
        };
        Self {
            number,
            op: Some(Op::Backend { number, backend }),
        }
    }

    /// The one that a service has, or a free number.
    pub(in crate::control) fn of(
        actual: &Actual,
        service: u16,
        unix_ms: u64,
    ) -> Result<Self, TooSmall> {
        if let Some(known) = Self::known(actual, service) {
            return Ok(known);
        }
        let free = (1..actual.backend_capacity.min(1 << 16))
            .map(|number| number as u16)
            .find(|number| actual.is_free_number(*number));
        let number = free.ok_or(TooSmall::Backends {
            needed: u64::from(actual.backend_capacity),
            capacity: actual.backend_capacity - 1,
        })?;
        Ok(Self::new(service, number, unix_ms))
    }
}

/// What the table is built for while the nodes' files differ: the nodes of the file before, with the weights that they have now;
/// a node that is in the new file alone waits. Where none of those before takes new flows any more, what is there now counts.
pub(super) fn by_the_file_before(before: &BuiltFor, now: BuiltFor) -> BuiltFor {
    let kept: BuiltFor = before
        .iter()
        .map(|share| {
            let same = now.iter().find(|now| now.identity == share.identity);
            Share {
                // Another one may have the number of a node that is gone.
                number: same.map_or(0, |now| now.number),
                weight: match same {
                    // Nobody's order, but the new file's.
                    Some(now) if now.weight == now.configured => share.configured,
                    Some(now) => now.weight,
                    None => 0,
                },
                ..share.clone()
            }
        })
        .collect();
    if kept.iter().any(|share| share.weight > 0) {
        kept
    } else {
        now
    }
}

/// The nodes of a cluster, for what becomes of its slots.
///
/// That a peer goes by a table counts once that peer has heard that this node does. What this node said before may be on its way,
/// and the peer may act upon it.
///
/// Whoever loses a slot gives it up at once. Whoever gets it takes it when nobody else can have it any more:
/// - the slot of a peer that lives, when all peers that live go by the new table;
/// - the slot of a peer that has failed, when all of those that are heard do; until then it is another's, whoever's. Each takes
///   over by its own table, and while these differ two would have it.
/// - a slot that nobody has, when all peers that are heard count this node in as well;
/// - where this node was away and has not caught up, nobody's slot but its own before all peers that live go by its table.
pub(super) struct Nodes<'a> {
    own: Option<u16>,
    others: u16,
    failed: &'a BTreeSet<u16>,
    alive: BTreeSet<u16>,
    /// All peers that live go by the new table.
    agreed: bool,
    /// All of those that are heard do.
    heard_agree: bool,
    /// All that are heard count this node in.
    counted_in: bool,
    /// What has failed was so by the new table: nobody has had a slot of it by another one.
    at_once: bool,
    missed: Missed,
}

impl<'a> Nodes<'a> {
    pub(super) fn of(
        desired: &DesiredService,
        pick: &Pick,
        numbers: &BTreeMap<(&str, IpAddr), u16>,
        bits: u8,
        built_for: &BuiltFor,
        failed: &'a BTreeSet<u16>,
        others: u16,
    ) -> Self {
        let table = Table::of(desired.affinity, bits, built_for);
        let number = |backend: &DesiredBackend| numbers[&(backend.name.as_str(), backend.address)];
        let (own, peers): (Vec<&DesiredBackend>, Vec<&DesiredBackend>) = desired
            .backends
            .iter()
            .partition(|backend| backend.name == pick.own);
        let alive: Vec<&DesiredBackend> = peers
            .into_iter()
            .filter(|backend| !failed.contains(&number(backend)))
            .collect();
        let goes_by = |peer: &&DesiredBackend| {
            let by = pick.tables.get(&peer.name)?;
            Some(*by == table && pick.said == table && pick.aware.contains(&peer.name))
        };
        Self {
            own: own.first().map(|own| number(own)),
            others,
            failed,
            agreed: alive.iter().all(|peer| goes_by(peer) == Some(true)),
            counted_in: pick.counted_in,
            heard_agree: alive.iter().all(|peer| goes_by(peer) != Some(false)),
            alive: alive.into_iter().map(number).collect(),
            at_once: match pick.pending {
                Pending::Nothing => true,
                Pending::By(by) => by == table,
                Pending::BySeveral => false,
            },
            missed: pick.missed,
        }
    }

    fn is_lost(&self, number: u16) -> bool {
        Some(number) != self.own && self.failed.contains(&number)
    }

    /// Whether a slot that this node or nobody has stays as it is.
    fn waits(&self, holder: u16) -> bool {
        if Some(holder) == self.own {
            return false;
        }
        if holder == 0 && !self.counted_in {
            return true;
        }
        if self.agreed {
            return false;
        }
        if self.missed == Missed::Tables || self.alive.contains(&holder) {
            return true;
        }
        !self.heard_agree
    }

    pub(super) fn retarget(&self, slot: Slot, target: u16, track: Track) -> Slot {
        let (current, previous) = (slot.current(), slot.previous());
        let holder = if self.is_lost(current) {
            self.others
        } else {
            current
        };
        let next = if self.waits(holder) { holder } else { target };
        if track == Track::Nothing {
            return Slot::settled(next);
        }
        if previous != 0 {
            // Flows of a node that has failed are lost. Nobody answers them: who would, might answer those of another that has
            // taken them over meanwhile.
            let lost = self.is_lost(previous);
            return self.in_transition(next, if lost { self.others } else { previous });
        }
        let unseen = self.missed != Missed::Nothing;
        let before = if next == holder {
            0
        } else if Some(holder) == self.own {
            if self.failed.contains(&holder) {
                0
            } else {
                holder
            }
        } else if unseen {
            self.others
        } else if holder == 0 {
            // A service that this node has only just come to know may have been served by the others.
            if self.alive.is_empty() {
                0
            } else {
                self.others
            }
        } else if holder == self.others {
            // Whoever takes it answers the flows of the node that has failed, with a reset, unless a third one may have had it
            // in between.
            if self.at_once { 0 } else { self.others }
        } else {
            holder
        };
        self.in_transition(next, before)
    }

    /// Where there are older flows and nobody takes new ones, another may already do, unheard: what opens is recorded all the
    /// same, or it would be taken for an older one, or for the flow of these ports that was recorded here before.
    fn in_transition(&self, current: u16, previous: u16) -> Slot {
        let unheard = current == 0 && previous != 0;
        Slot::new(if unheard { self.others } else { current }, previous)
    }
}
