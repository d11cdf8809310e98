//! What is known about the followed neighbours, and what has to be asked or reported. It does no
//! input or output.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netlink_packet_route::neighbour::NeighbourState;

use super::Mac;

/// A neighbour to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// The interface behind which it is.
    pub ifindex: u32,
}

/// The MAC address of a followed neighbour became known, changed, or was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// The neighbour's address.
    pub address: IpAddr,
    /// The interface behind which it is.
    pub ifindex: u32,
    /// Its MAC address; `None` if it has none.
    pub mac: Option<Mac>,
    /// Why, for the operator.
    pub reason: String,
}

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// Nothing: never asked, or its entry was removed.
    Absent,
    /// It is being asked for.
    Asking,
    /// A MAC that the kernel keeps an eye on, confirming it from time to time.
    Learned,
    /// A MAC that was not confirmed for a while, and won't be before it is used.
    Stale,
    /// Set by the administrator, or in no need of resolution.
    Fixed,
    /// Asked for without an answer.
    Failed,
}

#[derive(Debug)]
struct Followed {
    entry: Entry,
    /// What was reported last.
    reported: Option<Option<Mac>>,
}

/// The followed neighbours.
#[derive(Debug, Default)]
pub(super) struct Table {
    followed: HashMap<Target, Followed>,
    interfaces: HashMap<u32, String>,
}

/// What a message about a neighbour leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) event: Option<NeighbourEvent>,
    /// The kernel has to be asked to resolve or to confirm it now.
    pub(super) ask: bool,
}

impl Table {
    /// Follows exactly these neighbours. What is known of those followed before stays.
    pub(super) fn follow(&mut self, targets: &HashSet<Target>) {
        self.followed.retain(|target, _| targets.contains(target));
        for target in targets {
            self.followed.entry(*target).or_insert(Followed {
                entry: Entry::Absent,
                reported: None,
            });
        }
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = Target> {
        self.followed.keys().copied()
    }

    /// Learns an interface's name, for the reasons.
    pub(super) fn name_interface(&mut self, ifindex: u32, name: &str) {
        self.interfaces.insert(ifindex, name.to_owned());
    }

    /// The kernel shows this entry.
    pub(super) fn shown(
        &mut self,
        target: Target,
        state: NeighbourState,
        mac: Option<Mac>,
    ) -> Outcome {
        let Some(followed) = self.followed.get_mut(&target) else {
            return Outcome::default();
        };
        let before = followed.entry;
        let entry = match state {
            NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => {
                Entry::Learned
            }
            NeighbourState::Stale => Entry::Stale,
            NeighbourState::Permanent | NeighbourState::Noarp => Entry::Fixed,
            NeighbourState::Incomplete => Entry::Asking,
            NeighbourState::Failed => Entry::Failed,
            _ => Entry::Absent,
        };
        followed.entry = entry;
        match entry {
            // Nothing new is known yet; what was reported stays true until it is known better.
            Entry::Asking => Outcome::default(),
            Entry::Absent => Outcome {
                event: None,
                ask: true,
            },
            Entry::Learned | Entry::Stale | Entry::Fixed => {
                let reason = match mac {
                    Some(_) => String::new(),
                    None => "its entry has no MAC address".to_owned(),
                };
                Outcome {
                    event: self.report(target, mac, reason),
                    ask: entry == Entry::Stale,
                }
            }
            Entry::Failed => match before {
                // It was asked for by broadcast, and nobody answered.
                Entry::Asking | Entry::Failed => Outcome {
                    event: self.report(target, None, String::new()),
                    ask: false,
                },
                // The kernel asked the MAC it knew, in vain, or somebody flushed the table (which
                // reports every entry as failed). The neighbour may have a new MAC, or be where it
                // was: only asking everybody tells, and until then what was reported stays true.
                _ => Outcome {
                    event: None,
                    ask: true,
                },
            },
        }
    }

    /// The kernel has no entry (any more). It may have been cleaned up for lack of use, so what was
    /// reported stays true until asking fails.
    pub(super) fn gone(&mut self, target: Target) -> Outcome {
        self.shown(target, NeighbourState::None, None)
    }

    /// The kernel was asked to resolve or to confirm. It announces the outcome, not the beginning.
    pub(super) fn asked(&mut self, target: Target) {
        if let Some(followed) = self.followed.get_mut(&target)
            && matches!(followed.entry, Entry::Absent | Entry::Failed)
        {
            followed.entry = Entry::Asking;
        }
    }

    /// The kernel refused to resolve. Where it only lacks `memory`, a MAC that is known stays true.
    pub(super) fn refused(
        &mut self,
        target: Target,
        error: &str,
        memory: bool,
    ) -> Option<NeighbourEvent> {
        let interface = self.interface(target.ifindex);
        let followed = self.followed.get_mut(&target)?;
        followed.entry = Entry::Absent;
        if memory && matches!(followed.reported, Some(Some(_))) {
            return None;
        }
        let hint = if memory {
            "; if the kernel's neighbour table is full, raise net.ipv4.neigh.default.gc_thresh3"
        } else {
            ""
        };
        let reason = format!(
            "cannot ask for {} on {interface}: {error}{hint}",
            target.address
        );
        self.report(target, None, reason)
    }

    /// Whom to ask for at the regular time: whom the kernel does not care for by itself.
    pub(super) fn neglected(&self) -> Vec<Target> {
        self.followed
            .iter()
            .filter(|(_, followed)| {
                matches!(followed.entry, Entry::Absent | Entry::Stale | Entry::Failed)
            })
            .map(|(target, _)| *target)
            .collect()
    }

    /// Whether its MAC is known and not set by hand, so that a confirmation can be asked for.
    pub(super) fn confirmable(&self, target: Target) -> bool {
        self.followed
            .get(&target)
            .is_some_and(|followed| matches!(followed.entry, Entry::Learned | Entry::Stale))
    }

    fn interface(&self, ifindex: u32) -> String {
        self.interfaces
            .get(&ifindex)
            .cloned()
            .unwrap_or_else(|| format!("interface {ifindex}"))
    }

    /// The event for this finding, unless it was reported already.
    fn report(
        &mut self,
        target: Target,
        mac: Option<Mac>,
        reason: String,
    ) -> Option<NeighbourEvent> {
        let before = {
            let followed = self.followed.get_mut(&target)?;
            if followed.reported == Some(mac) {
                return None;
            }
            followed.reported.replace(mac).flatten()
        };
        let (address, interface) = (target.address, self.interface(target.ifindex));
        let reason = match (mac, before) {
            _ if !reason.is_empty() => reason,
            (Some(mac), None) => format!("{address} is at {} on {interface}", show(mac)),
            (Some(mac), Some(before)) => format!(
                "{address} on {interface} moved from {} to {}",
                show(before),
                show(mac)
            ),
            (None, _) => match address {
                IpAddr::V4(_) => format!("no ARP answer from {address} on {interface}"),
                IpAddr::V6(_) => {
                    format!("no neighbour advertisement from {address} on {interface}")
                }
            },
        };
        Some(NeighbourEvent {
            address,
            ifindex: target.ifindex,
            mac,
            reason,
        })
    }
}

fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];

    fn target() -> Target {
        Target {
            address: "10.1.0.11".parse().unwrap(),
            ifindex: 3,
        }
    }

    fn table() -> Table {
        let mut table = Table::default();
        table.follow(&HashSet::from([target()]));
        table.name_interface(3, "eth0");
        table
    }

    /// Plays messages; gives what each was reported as, with `?` where the kernel must be asked.
    fn play(table: &mut Table, messages: &[(NeighbourState, Option<Mac>)]) -> Vec<String> {
        messages
            .iter()
            .map(|(state, mac)| {
                let outcome = table.shown(target(), *state, *mac);
                if outcome.ask {
                    table.asked(target());
                }
                let report = outcome.event.map_or(String::new(), |event| {
                    assert_eq!((event.address, event.ifindex), (target().address, 3));
                    match event.mac {
                        Some(A) => "A".to_owned(),
                        Some(B) => "B".to_owned(),
                        Some(other) => panic!("{other:?}"),
                        None => "none".to_owned(),
                    }
                });
                report + if outcome.ask { "?" } else { "" }
            })
            .collect()
    }

    #[test]
    fn sequences() {
        use NeighbourState::{
            Delay, Failed, Incomplete, None as Gone, Permanent, Probe, Reachable, Stale,
        };
        type Messages<'a> = &'a [(NeighbourState, Option<Mac>)];
        let a = Some(A);
        let b = Some(B);
        let n = None;
        let cases: [(&str, Messages, &[&str]); 11] = [
            ("resolved", &[(Incomplete, n), (Reachable, a)], &["", "A"]),
            (
                "confirmed again and again",
                &[
                    (Reachable, a),
                    (Stale, a),
                    (Delay, a),
                    (Probe, a),
                    (Reachable, a),
                ],
                &["A", "?", "", "", ""],
            ),
            ("found stale at the start", &[(Stale, a)], &["A?"]),
            (
                "nobody there",
                &[(Gone, n), (Failed, n), (Incomplete, n), (Failed, n)],
                &["?", "none", "", ""],
            ),
            (
                "failed long ago: asked once more first",
                &[(Failed, n), (Reachable, a)],
                &["?", "A"],
            ),
            (
                "a gratuitous ARP",
                &[(Reachable, a), (Stale, b)],
                &["A", "B?"],
            ),
            (
                "a silent change of the MAC",
                &[(Reachable, a), (Probe, a), (Failed, n), (Reachable, b)],
                &["A", "", "?", "B"],
            ),
            (
                "gone and back",
                &[
                    (Reachable, a),
                    (Failed, n),
                    (Failed, n),
                    (Incomplete, n),
                    (Reachable, a),
                ],
                &["A", "?", "none", "", "A"],
            ),
            (
                "flushed by hand",
                &[(Reachable, a), (Failed, n), (Gone, n), (Reachable, a)],
                &["A", "?", "?", ""],
            ),
            (
                "cleaned up by the kernel",
                &[(Stale, a), (Gone, n), (Incomplete, n), (Reachable, a)],
                &["A?", "?", "", ""],
            ),
            ("set by hand", &[(Permanent, a)], &["A"]),
        ];
        for (what, messages, expected) in cases {
            assert_eq!(play(&mut table(), messages), expected, "{what}");
        }
    }

    #[test]
    fn reasons() {
        let mut table = table();
        table.asked(target());
        let mut say = |state, mac| table.shown(target(), state, mac).event.unwrap().reason;
        assert_eq!(
            say(NeighbourState::Failed, None),
            "no ARP answer from 10.1.0.11 on eth0"
        );
        assert_eq!(
            say(NeighbourState::Reachable, Some(A)),
            "10.1.0.11 is at 02:00:00:00:00:0a on eth0"
        );
        assert_eq!(
            say(NeighbourState::Reachable, Some(B)),
            "10.1.0.11 on eth0 moved from 02:00:00:00:00:0a to 02:00:00:00:00:0b"
        );
        assert_eq!(
            table.refused(target(), "No buffer space", true),
            None,
            "a full table does not take a known MAC away"
        );
        assert_eq!(
            table
                .refused(target(), "Network is down", false)
                .unwrap()
                .reason,
            "cannot ask for 10.1.0.11 on eth0: Network is down"
        );
        let v6 = Target {
            address: "2001:db8::11".parse().unwrap(),
            ifindex: 4,
        };
        table.follow(&HashSet::from([v6]));
        table.asked(v6);
        assert_eq!(
            table
                .shown(v6, NeighbourState::Failed, None)
                .event
                .unwrap()
                .reason,
            "no neighbour advertisement from 2001:db8::11 on interface 4"
        );
    }

    #[test]
    fn others_are_not_reported() {
        let mut table = table();
        for other in [
            Target {
                ifindex: 4,
                ..target()
            },
            Target {
                address: "10.1.0.12".parse().unwrap(),
                ifindex: 3,
            },
        ] {
            assert_eq!(
                table.shown(other, NeighbourState::Reachable, Some(A)),
                Outcome::default()
            );
        }
    }

    #[test]
    fn only_those_the_kernel_does_not_care_for_are_asked_for_at_the_regular_time() {
        for (state, asked) in [
            (NeighbourState::None, true),
            (NeighbourState::Stale, true),
            (NeighbourState::Failed, true),
            (NeighbourState::Incomplete, false),
            (NeighbourState::Reachable, false),
            (NeighbourState::Delay, false),
            (NeighbourState::Probe, false),
            (NeighbourState::Permanent, false),
        ] {
            let mut table = table();
            table.shown(target(), state, Some(A));
            assert_eq!(table.neglected().contains(&target()), asked, "{state}");
        }
    }

    #[test]
    fn entries_set_by_hand_are_left_alone() {
        for (state, confirmable) in [
            (NeighbourState::Permanent, false),
            (NeighbourState::Failed, false),
            (NeighbourState::Stale, true),
            (NeighbourState::Reachable, true),
        ] {
            let mut table = table();
            table.shown(target(), state, Some(A));
            assert_eq!(table.confirmable(target()), confirmable, "{state}");
        }
    }

    #[test]
    fn following_a_new_set_keeps_what_is_known() {
        let mut table = table();
        table.shown(target(), NeighbourState::Reachable, Some(A));
        let other = Target {
            address: "10.1.0.12".parse().unwrap(),
            ifindex: 3,
        };
        table.follow(&HashSet::from([target(), other]));
        assert_eq!(table.neglected(), [other]);
        assert_eq!(
            table.shown(target(), NeighbourState::Reachable, Some(A)),
            Outcome::default()
        );
    }
}
