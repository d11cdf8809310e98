//! Hot sources (`spread_hot_sources`): who they are, where their recorded flows belong, and how they change. Pure; what is
//! measured is in [`watch`].

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
};

use lb_common::{
    abi::{HOT_WAYS, HotInfo, MAX_HOT},
    address::{Address, Ipv6},
    flow::FlowKey,
    hash::Seed,
    hot::{HotState, digest, joined, line_of},
    pick::{Affinity, Slot, hash_of, slot_index},
};

use super::actual::{Actual, ActualService, Millis, Op};

pub mod watch;

/// A source of a service: what its affinity picks by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The service's id.
    pub service: u16,
    /// The address, or the first one of the network, as [`Address::mapped`].
    pub address: Ipv6,
}

impl Source {
    /// From the first source that a service could have to the last one.
    #[must_use]
    pub fn range(service: u16) -> RangeInclusive<Self> {
        let of = |word| Self {
            service,
            address: Ipv6 {
                high: word,
                low: word,
            },
        };
        of(0)..=of(u64::MAX)
    }

    /// The source that a client of a service belongs to.
    #[must_use]
    pub fn of<A: Address>(service: u16, affinity: Affinity, client: A) -> Self {
        Self {
            service,
            address: client.network(affinity.prefix).mapped(),
        }
    }
}

/// A source that is spread by its ports, or was until lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotSource {
    /// Its place in `HOT`, counted over all lines.
    pub place: u32,
    /// How its flows are picked.
    pub state: HotState,
    /// When it last changed; only means something in transition.
    pub changed: Millis,
    /// Unix time in milliseconds since when its new flows are picked as they are.
    pub since_ms: u64,
    /// Its share of the service's packets when last measured, in millionths.
    pub share_ppm: u32,
    /// How many bits of the address pick, counted as of its family.
    pub prefix: u8,
}

impl HotSource {
    /// As people and the next controller read it.
    #[must_use]
    pub fn info(&self, source: Source) -> HotInfo {
        HotInfo {
            source: source.address.addr().octets(),
            since_ms: self.since_ms,
            share_ppm: self.share_ppm,
            service: source.service,
            prefix: self.prefix,
            used: 1,
        }
    }
}

/// An address, or a network where `prefix` leaves bits out.
#[must_use]
pub fn network_text(address: IpAddr, prefix: u8) -> String {
    let whole = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    if prefix >= whole {
        address.to_string()
    } else {
        format!("{address}/{prefix}")
    }
}

/// The source of an entry of `HOT_INFO`.
#[must_use]
pub fn source_text(info: &HotInfo) -> String {
    network_text(Ipv6Addr::from(info.source).to_canonical(), info.prefix)
}

/// There is no room for another hot source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Too many of them.
    #[error("{MAX_HOT} sources are spread already, which is as many as there may be")]
    Full,
    /// The line that it would have to be in is full by chance.
    #[error("its line of the map HOT is full")]
    Line,
}

/// The operation by which new flows of a source are spread from now on, or no more; `None` where that is so already.
///
/// # Errors
/// [`NoRoom`]: it stays as it is.
pub fn turn(
    actual: &Actual,
    source: Source,
    spread: bool,
    share_ppm: u32,
    seed: Seed,
    unix_ms: u64,
) -> Result<Option<Op>, NoRoom> {
    let Some(service) = actual.services().get(&source.service) else {
        return Ok(None);
    };
    let old = actual.hot().get(&source);
    let state = old.map_or(HotState::COLD, |old| old.state);
    if state.spreads() == spread {
        return Ok(None);
    }
    let place = match old {
        Some(old) => old.place,
        None => free_place(actual, source, seed)?,
    };
    Ok(Some(Op::Hot {
        source,
        entry: Some(HotSource {
            place,
            state: state.turned(spread),
            changed: 0,
            since_ms: unix_ms,
            share_ppm,
            prefix: service.affinity.prefix,
        }),
    }))
}

fn free_place(actual: &Actual, source: Source, seed: Seed) -> Result<u32, NoRoom> {
    if actual.hot().len() >= MAX_HOT as usize {
        return Err(NoRoom::Full);
    }
    let first = line_of(digest(source.service, source.address, seed)) * HOT_WAYS as u32;
    (first..first + HOT_WAYS as u32)
        .find(|place| actual.hot().values().all(|other| other.place != *place))
        .ok_or(NoRoom::Line)
}

/// Whose transition a flow's record is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Keeper {
    /// The slot of this index in the service's table.
    Slot(u32),
    /// The source.
    Source(Source),
}

/// Where the packets of a recorded flow go, as the data path sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belongs {
    /// Its slot, or what stands for it.
    pub slot: Slot,
    /// Whether the flow table decides.
    pub in_transition: bool,
    /// Whose transition that is.
    pub keeper: Keeper,
}

/// What `lb_common::forward::place_of` finds for a flow, from the controller's picture.
#[must_use]
pub fn belongs<A: Address>(
    actual: &Actual,
    service: &ActualService,
    key: FlowKey<A>,
    seed: Seed,
) -> Belongs {
    let affinity = |spread| if spread { A::NONE } else { service.affinity };
    let slot_of = |spread| {
        let hash = hash_of(affinity(spread), key.client, key.ports, seed);
        let index = slot_index(hash, u32::from(service.bits));
        (index, service.slots[index as usize])
    };
    let source = Source::of(key.service, service.affinity, key.client);
    let hot = actual
        .hot()
        .get(&source)
        .map_or(HotState::COLD, |hot| hot.state);
    let (index, slot) = slot_of(hot.spreads());
    if hot.in_transition() {
        let (_, before) = slot_of(hot.spread_before());
        Belongs {
            slot: joined(slot, before),
            in_transition: true,
            keeper: Keeper::Source(source),
        }
    } else {
        Belongs {
            slot,
            in_transition: slot.in_transition(),
            keeper: Keeper::Slot(index),
        }
    }
}

/// Whether nobody picks by this source any more: its service is gone or has another affinity.
#[must_use]
pub fn is_stale(actual: &Actual, source: Source, hot: &HotSource) -> bool {
    actual
        .services()
        .get(&source.service)
        .is_none_or(|service| service.affinity.ports || service.affinity.prefix != hot.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_written_as_people_do() {
        let info = |address: &str, prefix| {
            let address: IpAddr = address.parse().unwrap();
            let source = match address {
                IpAddr::V4(four) => four.to_ipv6_mapped(),
                IpAddr::V6(six) => six,
            };
            source_text(&HotInfo {
                source: source.octets(),
                prefix,
                ..HotInfo::default()
            })
        };
        assert_eq!(info("203.0.113.7", 32), "203.0.113.7");
        assert_eq!(info("203.0.113.0", 24), "203.0.113.0/24");
        assert_eq!(info("2001:db8::1", 128), "2001:db8::1");
        assert_eq!(info("2001:db8::", 56), "2001:db8::/56");
    }
}
