//! Flows: what names one, and what is recorded of it. Where that is recorded is in `table`.

use core::net::IpAddr;

use crate::address::Address;

mod table;

pub use table::{
    FlowBucket, FlowBucket6, FlowLine, FlowWay4, FlowWay6, HOMES, Key, Put, Way, bucket_indices,
    find, find_at_home, find_in_table, put_into_table, record, renew, touch,
};

/// Nanoseconds in one unit of the coarse time: a power of two, so that the kernel only shifts (about 0.54 s).
pub const TICK_NS: u64 = 1 << TICK_SHIFT;
/// log2 of [`TICK_NS`].
pub const TICK_SHIFT: u32 = 29;
/// Longest silence, in ticks, that the 16-bit time can tell from a shorter one (about 9.7 h).
pub const LONGEST_SILENCE: u16 = u16::MAX - 256;

/// A flow of one service, or a client of it where the ports are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey<A = u32> {
    /// The client's address.
    pub client: A,
    /// The client's port in the upper half, the service's in the lower one; 0 stands for all flows of the client.
    pub ports: u32,
    /// The service's id, which stands for the VIP.
    pub service: u16,
    /// Whether the flow is UDP: a service may have both protocols.
    pub udp: bool,
}

impl<A> FlowKey<A> {
    /// A TCP flow. `ports` holds the client's port in its upper half and the service's in its lower one.
    #[inline(always)]
    #[must_use]
    pub const fn tcp(client: A, ports: u32, service: u16) -> Self {
        Self {
            client,
            ports,
            service,
            udp: false,
        }
    }

    /// A UDP flow.
    #[inline(always)]
    #[must_use]
    pub const fn udp(client: A, ports: u32, service: u16) -> Self {
        Self {
            client,
            ports,
            service,
            udp: true,
        }
    }

    /// Whether this is no flow, but a client (`affinity_timeout`).
    #[must_use]
    pub const fn is_client(&self) -> bool {
        self.ports == 0
    }

    /// The client's port.
    #[must_use]
    pub const fn client_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// The service's port.
    #[must_use]
    pub const fn service_port(&self) -> u16 {
        self.ports as u16
    }
}

impl<A: Address> FlowKey<A> {
    /// The same flow, whatever the family.
    #[inline(always)]
    #[must_use]
    pub fn named(self) -> FlowName {
        FlowName {
            client: self.client.addr(),
            ports: self.ports,
            service: self.service,
            udp: self.udp,
        }
    }
}

/// A flow of either family, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowName {
    /// The client's address.
    pub client: IpAddr,
    /// As in [`FlowKey::ports`].
    pub ports: u32,
    /// The service's id.
    pub service: u16,
    /// Whether the flow is UDP.
    pub udp: bool,
}

/// Whose a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The service's id.
    pub service: u16,
    /// Whether the flow is UDP.
    pub udp: bool,
}

impl Owner {
    /// The service's id, and above it whether the flow is UDP.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        self.service as u32 | (self.udp as u32) << 16
    }

    /// The one of this number.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self {
            service: number as u16,
            udp: number >> 16 & 1 == 1,
        }
    }

    #[inline(always)]
    const fn bits(self) -> u64 {
        (self.service as u64) << 16 | (self.udp as u64) << 62
    }
}

/// How far a recorded flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Only packets that open the flow have been seen: another one is the same attempt, sent again.
    Opening,
    /// Neither side has been seen to end it.
    Open,
    /// The client sent FIN: it sends no more data, but may still receive.
    Closing,
    /// The client sent RST.
    Ended,
}

/// What is known of a recorded flow: bits 0-15 the backend, 16-31 the service, 32-47 the coarse time of its last packet,
/// 48-59 check bits of its key, 60-61 its phase, 62 whether it is UDP, 63 always set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState(pub u64);

const USED: u64 = 1 << 63;
const UDP: u64 = 1 << 62;
const CHECK_MASK: u64 = 0xfff << 48;
const PHASE_SHIFT: u32 = 60;

impl FlowState {
    /// Packs a state; `hash` is [`Key::hash`] of the flow's key.
    #[inline(always)]
    #[must_use]
    pub const fn new(backend: u16, owner: Owner, seen: u16, hash: u64, phase: Phase) -> Self {
        Self(
            USED | backend as u64
                | owner.bits()
                | (seen as u64) << 32
                | (hash << 28 & CHECK_MASK)
                | (phase as u64) << PHASE_SHIFT,
        )
    }

    /// Whether this is the state of a flow of `owner` with this hash, and not the rest of a torn write.
    #[inline(always)]
    #[must_use]
    pub const fn belongs(self, hash: u64, owner: Owner) -> bool {
        self.differs(hash, owner) == 0
    }

    /// The bits by which it is not the state of a flow of `owner` with this hash.
    #[inline(always)]
    const fn differs(self, hash: u64, owner: Owner) -> u64 {
        const MASK: u64 = USED | UDP | CHECK_MASK | 0xffff << 16;
        (self.0 ^ (USED | (hash << 28 & CHECK_MASK) | owner.bits())) & MASK
    }

    /// Whether there is a flow at all.
    #[inline(always)]
    #[must_use]
    pub const fn used(self) -> bool {
        self.0 & USED != 0
    }

    /// The flow's backend.
    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// The same of another backend.
    #[must_use]
    pub const fn on(self, backend: u16) -> Self {
        Self(self.0 & !0xffff | backend as u64)
    }

    /// The same after another packet at `now`, which brings the flow as far as `phase`, if it had not come further.
    #[inline(always)]
    #[must_use]
    pub const fn renewed(self, now: u16, phase: Phase) -> Self {
        const PHASE: u64 = 3 << PHASE_SHIFT;
        const KEPT: u64 = !(0xffff << 32 | PHASE);
        let (known, new) = (self.0 & PHASE, (phase as u64) << PHASE_SHIFT);
        let phase = if new > known { new } else { known };
        Self(self.0 & KEPT | (now as u64) << 32 | phase)
    }

    /// The service's id.
    #[must_use]
    pub const fn service(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whose it is.
    #[inline(always)]
    #[must_use]
    pub const fn owner(self) -> Owner {
        Owner {
            service: self.service(),
            udp: self.0 & UDP != 0,
        }
    }

    /// Coarse time of the last packet.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// How far it has come.
    #[inline(always)]
    #[must_use]
    pub const fn phase(self) -> Phase {
        match self.0 >> PHASE_SHIFT & 3 {
            0 => Phase::Opening,
            1 => Phase::Open,
            2 => Phase::Closing,
            _ => Phase::Ended,
        }
    }

    /// Ticks since the last packet.
    #[inline(always)]
    #[must_use]
    pub const fn silent(self, now: u16) -> u16 {
        now.wrapping_sub(self.seen())
    }

    /// Ticks since the last packet for a reader who takes his time: 0 where the packet came after he had looked at the
    /// clock, which [`Self::silent`] can't tell from a silence of hours.
    #[must_use]
    pub const fn silence(self, now: u16) -> u16 {
        let silent = self.silent(now);
        if silent > LONGEST_SILENCE { 0 } else { silent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        service: 0xabcd,
        udp: false,
    };

    #[test]
    fn state_round_trips() {
        let hash = 0x0123_4567_89ab_cdef;
        let state = FlowState::new(0xfffe, OWNER, 0x1234, hash, Phase::Closing);
        assert!(state.used() && state.belongs(hash, OWNER));
        let other = Owner {
            service: 0xabce,
            udp: false,
        };
        let udp = Owner { udp: true, ..OWNER };
        assert!(!state.belongs(hash, other) && !state.belongs(hash ^ 1 << 20, OWNER));
        assert!(
            !state.belongs(hash, udp),
            "the same ports of another protocol"
        );
        assert_eq!(
            (state.backend(), state.service(), state.seen()),
            (0xfffe, 0xabcd, 0x1234)
        );
        assert_eq!(state.silent(0x1233), u16::MAX);
        for phase in [Phase::Opening, Phase::Open, Phase::Closing, Phase::Ended] {
            let state = FlowState::new(1, udp, 3, hash, phase);
            assert_eq!((state.phase(), state.owner()), (phase, udp));
        }
        assert!(!FlowState(0).used());
    }
}
