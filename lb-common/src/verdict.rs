//! Every end a packet can come to: its name, what the kernel does with the packet, and why.

/// What the kernel does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `XDP_TX`: sent out of the interface it came in on.
    Transmit,
    /// `bpf_redirect_map`: sent out of another interface.
    Redirect,
    /// `XDP_PASS`: the host's own network stack gets it.
    Pass,
    /// `XDP_DROP`.
    Drop,
}

/// Declares the verdicts with their name on the command line, their action and their explanation in one place.
macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $action:ident, $why:literal;)*) => {
        /// What the program did with a packet and why; one counter each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Verdict {
            $($(#[$doc])* $name = $number,)*
        }

        impl Verdict {
            /// Every verdict, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name used on the command line, in `--json` and in the metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What the kernel does with such a packet.
            #[must_use]
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)* }
            }

            /// One sentence for the operator.
            #[must_use]
            pub const fn why(self) -> &'static str {
                match self { $(Self::$name => $why,)* }
            }
        }
    };
}

verdicts! {
    /// Counted by the backend's own counter, not by a verdict counter: one counter on the hot path.
    Forwarded = 0, "forwarded", Transmit, "rewritten to the backend's MAC and sent out of the interface it came in on";
    /// Counted by the backend's counter as well, and by its own.
    Redirected = 1, "redirected", Redirect, "rewritten to the backend's MAC and sent out of another interface";
    /// An ARP request for a VIP.
    ArpReplied = 2, "arp_replied", Transmit, "an ARP request for a VIP, answered with this interface's MAC (in `mode = \"pick\"` the cluster's)";
    /// Any ARP packet that does not ask for a VIP.
    ArpOther = 3, "arp_other", Pass, "ARP that does not ask for a VIP: left to the host";
    /// Neither IPv4 nor IPv6 nor ARP.
    OtherEthertype = 4, "other_ethertype", Pass, "neither IPv4 nor IPv6 nor ARP, or more than two VLAN tags: left to the host";
    /// No VIP has this destination address.
    NotOurs = 5, "not_ours", Pass, "the destination address is no VIP: left to the host";
    /// The frame is for a VIP, but not sent to this interface's MAC.
    OtherHost = 6, "other_host", Pass, "for a VIP, but the frame is not addressed to this interface's MAC: left to the host, which ignores it";
    /// `unserved = "pass"`.
    UnservedPassed = 7, "unserved_passed", Pass, "no service on this port of a VIP: left to the host, as `unserved = \"pass\"` says";
    /// `unserved = "drop"`.
    Unserved = 8, "unserved", Drop, "no service on this protocol and port of a VIP";
    /// For a VIP, but neither TCP, UDP, an ICMP error nor an echo request.
    UnsupportedProtocol = 9, "unsupported_protocol", Drop, "for a VIP, but neither TCP nor UDP, nor an ICMP error about a flow, nor an echo request";
    /// For a VIP, a fragment without ports, and nothing tells its backend.
    Fragment = 10, "fragment", Drop, "a later fragment of a packet for a VIP, whose first fragment, which alone names the ports, has not been seen, or fragments are not followed";
    /// The frame ends before the headers do.
    Truncated = 11, "truncated", Drop, "the frame ends before the headers or the length they state";
    /// A header that contradicts itself.
    Malformed = 12, "malformed", Drop, "an IP header that contradicts itself: version, header length or total length";
    /// The slot names no backend.
    NoBackend = 13, "no_backend", Drop, "no backend of the service takes new flows";
    /// The backend's MAC address is unknown.
    NoNeighbour = 14, "no_neighbour", Drop, "the picked backend's MAC address is not known";
    /// The maps do not hold what they name.
    Inconsistent = 15, "inconsistent", Drop, "the maps name a slot, backend or port that does not exist: please report this";
    /// An ICMP or ICMPv6 echo request for a VIP.
    EchoReplied = 16, "echo_replied", Transmit, "an ICMP echo request for a VIP, answered by the program itself";
    /// An ICMP error for a VIP that quotes no flow of it.
    IcmpUnrelated = 17, "icmp_unrelated", Drop, "an ICMP error for a VIP that quotes no TCP or UDP packet from that VIP, or too little of it";
    /// A source address that nobody can have.
    MartianSource = 18, "martian_source", Drop, "for a VIP, from an address that nobody can have: loopback, multicast, broadcast, unspecified, or the VIP itself";
    /// Counted by the backend's counter as well, and by its own.
    Local = 19, "local", Pass, "the backend is this very host: left to its own stack";
    /// `mode = "pick"`.
    OtherNode = 20, "other_node", Drop, "another node of the cluster has this flow, and the same frame";
    /// A neighbour solicitation for a VIP.
    NeighbourReplied = 21, "neighbour_replied", Transmit, "an IPv6 neighbour solicitation for a VIP, answered with this interface's MAC (in `mode = \"pick\"` the cluster's)";
    /// IPv6 extension headers beyond what is followed.
    ExtensionHeaders = 22, "extension_headers", Drop, "for a VIP, with IPv6 extension headers that are too many, too long, out of place or name another destination";
    /// The frame could not be made longer.
    NoRoom = 23, "no_room", Drop, "the driver leaves no room in front of the frame for a VLAN tag, or behind it for an answer";
    /// `mode = "pick"`: see [`crate::fence`].
    Fenced = 24, "fenced", Drop, "picked by this node, but the other nodes have taken its place while its xdp-lb was not heard: it keeps nothing of the service until its xdp-lb is back";
    /// `mode = "pick"`: a frame by which a node fences another, or asks another something.
    ClusterFrame = 25, "cluster_frame", Drop, "a frame by which a node of the cluster tells another one's data path that it has been replaced, or asks whether it is there: taken note of, or about another node";
    /// `mode = "pick"`: see [`crate::presence`].
    PresenceReplied = 26, "presence_replied", Transmit, "a question of a node of the cluster that has just begun, whether this one's data path is there: answered by the program itself";
}

impl Verdict {
    /// How many verdicts there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the packet went on to a backend: counted by the backend's counter.
    #[must_use]
    #[inline(always)]
    pub const fn reached_backend(self) -> bool {
        matches!(self, Self::Forwarded | Self::Redirected | Self::Local)
    }

    /// The verdict of this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

// The numbers are counter indices and must be dense.
const _: () = {
    let mut i = 0;
    while i < Verdict::COUNT {
        assert!(
            Verdict::ALL[i] as usize == i,
            "verdict numbers must be dense"
        );
        i += 1;
    }
};
