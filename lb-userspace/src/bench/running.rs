//! What can be measured of a running data path without leaving a trace in it but counts.

use std::net::IpAddr;

use lb_common::{
    abi::{Port, ServiceInfo},
    pick::Backend,
    service::{ServiceValue, Track},
};

use super::frame::Kind;
use crate::{
    config::{Ports, Protocol, Service},
    dataplane::Maps,
};

/// Why a service is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// The maps do not have it.
    #[error("the running data path does not have it: `xdp-lb reload` first")]
    Unknown,
    /// `track = "always"`.
    #[error(
        "with `track = \"always\"` each flow of the benchmark would be recorded in place of your clients' flows"
    )]
    Recorded,
    /// `spread_hot_sources`.
    #[error("with `spread_hot_sources` the benchmark's source would be found hot")]
    Sampled,
    /// A change is under way.
    #[error(
        "{0} of its slots are in transition, where each flow of the benchmark would be recorded: try again when they have settled"
    )]
    InTransition(u32),
    /// Nobody serves it.
    #[error("no backend serves it")]
    Unserved,
    /// A backend is behind a VLAN.
    #[error(
        "a backend of it is behind a VLAN: the tag that is put on would be in the way of the next packet"
    )]
    Tagged,
}

/// What can be asked of the maps; in the tests, a few numbers.
pub trait Slots {
    /// The slot's two backends: current and previous, 0 for none.
    fn slot(&self, index: u32) -> Option<(u16, u16)>;
    /// A backend's entry.
    fn backend(&self, number: u16) -> Backend;
}

impl Slots for Maps {
    fn slot(&self, index: u32) -> Option<(u16, u16)> {
        let slot = Self::slot(self, index)?;
        Some((slot.current(), slot.previous()))
    }

    fn backend(&self, number: u16) -> Backend {
        Self::backend(self, number)
    }
}

/// Whether packets for this service would change nothing but counters.
///
/// # Errors
/// What they would change, or why there is nothing to measure.
pub fn judge(maps: &impl Slots, info: &ServiceInfo, ports: &[Port]) -> Result<(), LeftOut> {
    let value = ServiceValue(info.value);
    if value.track() == Track::Always {
        return Err(LeftOut::Recorded);
    }
    if value.spreads() {
        return Err(LeftOut::Sampled);
    }
    let slots = value.offset()..value.offset() + (1 << value.bits());
    let mut in_transition = 0;
    for index in slots {
        let (current, previous) = maps.slot(index).ok_or(LeftOut::Unknown)?;
        if previous != 0 {
            in_transition += 1;
        } else if current == 0 {
            return Err(LeftOut::Unserved);
        }
        let port = maps.backend(current).port();
        if ports
            .get(usize::from(port))
            .is_some_and(|port| port.vlan != 0)
        {
            return Err(LeftOut::Tagged);
        }
    }
    if in_transition > 0 {
        return Err(LeftOut::InTransition(in_transition));
    }
    Ok(())
}

/// The packets for a service: of its first protocol, to its first port.
#[must_use]
pub fn packets(service: &Service) -> (Kind, IpAddr, u16) {
    /// Of a service that has all ports: any of them.
    const ANY: u16 = 80;
    let kind = match service.protocol {
        Protocol::Udp => Kind::Udp,
        Protocol::Tcp | Protocol::TcpUdp => Kind::Tcp,
    };
    let port = match &service.ports {
        Ports::Any => ANY,
        Ports::Ranges(ranges) => ranges.first().map_or(ANY, |range| *range.start()),
    };
    (kind, service.vip, port)
}

#[cfg(test)]
mod tests {
    use lb_common::pick::Affinity;

    use super::*;

    struct Few([(u16, u16); 4]);

    impl Slots for Few {
        fn slot(&self, index: u32) -> Option<(u16, u16)> {
            self.0.get(index as usize).copied()
        }

        fn backend(&self, number: u16) -> Backend {
            Backend::new(1, number / 10, false)
        }
    }

    fn judged(
        change: impl Fn(ServiceValue) -> ServiceValue,
        slots: [(u16, u16); 4],
    ) -> Result<(), LeftOut> {
        let info = ServiceInfo {
            value: change(ServiceValue::new(1, 0, 2, Affinity::NONE_IPV4)).0,
            ..ServiceInfo::default()
        };
        let tagged = Port {
            vlan: 7,
            ..Port::default()
        };
        judge(&Few(slots), &info, &[Port::default(), tagged])
    }

    #[test]
    fn only_what_leaves_no_trace_is_measured() {
        let as_it_is = |value| value;
        let settled = [(1, 0), (2, 0), (1, 0), (2, 0)];
        assert_eq!(judged(as_it_is, settled), Ok(()));
        assert_eq!(
            judged(as_it_is, [(1, 2), (2, 0), (1, 1), (2, 0)]),
            Err(LeftOut::InTransition(2))
        );
        assert_eq!(
            judged(as_it_is, [(1, 0), (0, 0), (1, 0), (2, 0)]),
            Err(LeftOut::Unserved)
        );
        assert_eq!(
            judged(as_it_is, [(1, 0), (12, 0), (1, 0), (2, 0)]),
            Err(LeftOut::Tagged)
        );
        let always = |value: ServiceValue| value.tracking(Track::Always);
        assert_eq!(judged(always, settled), Err(LeftOut::Recorded));
        assert_eq!(
            judged(|value| value.spreading(true), settled),
            Err(LeftOut::Sampled)
        );
        let outside = |_| ServiceValue::new(1, 2, 2, Affinity::NONE_IPV4);
        assert_eq!(judged(outside, settled), Err(LeftOut::Unknown));
    }
}
