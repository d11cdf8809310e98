//! What a configuration uses of the data path: a read-only global, so that the verifier removes what is not used.

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub u32);

impl Features {
    /// None: IPv4 without tags and fragments, to other hosts.
    pub const NONE: Self = Self(0);
    /// Services with an IPv6 VIP.
    pub const IPV6: Self = Self(1 << 0);
    /// IEEE 802.1Q tags.
    pub const VLAN: Self = Self(1 << 1);
    /// Fragments are followed instead of dropped.
    pub const FRAGMENTS: Self = Self(1 << 2);
    /// A service with `track = "always"`.
    pub const TRACK_ALWAYS: Self = Self(1 << 3);
    /// A service with `track = "quic"`.
    pub const QUIC: Self = Self(1 << 4);
    /// A service with an `affinity_timeout`.
    pub const CLIENTS: Self = Self(1 << 5);
    /// A service with `spread_hot_sources`.
    pub const SPREAD: Self = Self(1 << 6);
    /// A backend that is this very host.
    pub const LOCAL: Self = Self(1 << 7);
    /// `mode = "pick"`: what is not for this host is dropped, because another node has it as well.
    pub const PICK: Self = Self(1 << 8);
    /// Everything there is.
    pub const ALL: Self = Self((1 << 9) - 1);
    /// Everything but [`Self::PICK`], which contradicts forwarding.
    pub const ALL_FORWARDING: Self = Self(Self::ALL.0 & !Self::PICK.0);

    /// What the hot path has to ask for at each packet. Of a configuration without these nothing is left of the questions.
    pub const RARE: Self = Self::SPREAD.with(Self::TRACK_ALWAYS).with(Self::PICK);

    /// Names of the features as `status` and the log show them, in the order of the bits.
    pub const NAMES: [&'static str; 9] = [
        "ipv6",
        "vlan",
        "fragments",
        "track_always",
        "quic",
        "affinity_timeout",
        "spread_hot_sources",
        "local",
        "pick",
    ];

    /// Whether `feature`, or one of several, is in the set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, feature: Self) -> bool {
        self.0 & feature.0 != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name() {
        assert_eq!(Features::ALL.0.count_ones() as usize, Features::NAMES.len());
        assert_eq!(
            Features::PICK.0.trailing_zeros() as usize,
            Features::NAMES.len() - 1
        );
    }
}
