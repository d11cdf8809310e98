//! Whether a node of a cluster is there, though its controller is gone: its data path says so itself, when a peer asks.
//!
//! A node that begins knows nothing of a peer whose controller is gone: its server answers, as one would where no data path runs,
//! and nobody vouches for it. So it asks, by the way of the clients' frames, and the data path tells what the peer's controller has
//! left for this: that it keeps its share of the service, and what its word would have said. Nothing is computed here; who asks
//! knows the tag to be the controller's.
//!
//! The question, behind its EtherType ([`crate::wire::ETHERTYPE_CLUSTER`]), is as long as the answer that takes its place:
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | [`QUESTION`]; [`ANSWER`] |
//! | 4 | 8 | [`crate::abi::Presence::asked`], big-endian: of whom, and of which service |
//! | 12 | 2 | the place of the service among those of that node, in the order of their names, from 0; big-endian |
//! | 14 | 8 | a number of the asker's, which the answer says again |
//! | 22 | 8 | 0; in the answer [`crate::abi::Presence::made_ms`], big-endian |
//! | 30 | 8 | 0; in the answer [`crate::abi::Presence::said`], big-endian |
//! | 38 | 8 | 0; in the answer [`crate::abi::Presence::tag`], big-endian |

use crate::fence::is_fenced;
use crate::packet::Packet;
use crate::parse::Link;
use crate::rewrite;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::{MAC_MASK, be16_at, be64_at, le64_at};

/// What a question holds first.
pub const QUESTION: [u8; 4] = *b"XLQ1";
/// What an answer holds first.
pub const ANSWER: [u8; 4] = *b"XLA1";
/// Bytes of both behind the EtherType: with its header the shortest frame of Ethernet.
pub const LEN: usize = 46;
/// Where the answer's own part begins.
const TOLD: usize = 22;
/// The bit of a MAC address's first byte that says "group" (IEEE 802).
const GROUP_BIT: u64 = 1;

/// What a node says of itself in one service: bits 0-15 its number in its own maps, 16 whether it is drained, 32-63 its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The number that it has in its own maps.
    pub number: u16,
    /// Its operator said `drain`.
    pub drained: bool,
    /// The weight in force.
    pub weight: u32,
}

impl Said {
    /// As one word.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.number as u64 | (self.drained as u64) << 16 | (self.weight as u64) << 32
    }

    /// What a word says.
    #[must_use]
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self {
            number: word as u16,
            drained: word >> 16 & 1 == 1,
            weight: (word >> 32) as u32,
        }
    }
}

/// What a question says behind its EtherType.
#[must_use]
pub fn question(asked: u64, place: u16, nonce: u64) -> [u8; LEN] {
    let mut question = [0; LEN];
    question[..4].copy_from_slice(&QUESTION);
    question[4..12].copy_from_slice(&asked.to_be_bytes());
    question[12..14].copy_from_slice(&place.to_be_bytes());
    question[14..22].copy_from_slice(&nonce.to_be_bytes());
    question
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number that the question said.
    pub nonce: u64,
    /// [`crate::abi::Presence::made_ms`].
    pub made_ms: u64,
    /// [`crate::abi::Presence::said`].
    pub said: u64,
    /// [`crate::abi::Presence::tag`].
    pub tag: u64,
}

impl Answer {
    /// What stands behind the EtherType of an answer; `None` if it is none.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = payload.first_chunk()?;
        bytes.starts_with(&ANSWER).then(|| Self {
            nonce: be64_at::<14, _>(bytes),
            made_ms: be64_at::<22, _>(bytes),
            said: be64_at::<30, _>(bytes),
            tag: be64_at::<38, _>(bytes),
        })
    }
}

/// Turns a question into its answer, in place, if it is this node that is asked, and it keeps its share. A fenced node has none.
#[inline(always)]
pub fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T, link: &Link) -> Verdict {
    let Some(head) = packet.bytes::<14>(0) else {
        return Verdict::OtherEthertype;
    };
    let asker = le64_at::<6, _>(head) & MAC_MASK;
    let Some(question) = packet.bytes_mut::<LEN>(link.l3) else {
        return Verdict::OtherEthertype;
    };
    let asked = be64_at::<4, _>(question);
    let Some(presence) = tables.presence(be16_at::<12, _>(question)) else {
        return Verdict::ClusterFrame;
    };
    let (made_ms, said, tag) = (
        presence.made_ms.get(),
        presence.said.get(),
        presence.tag.get(),
    );
    if asked == 0
        || presence.asked.get() != asked
        || asker & GROUP_BIT != 0
        || !tables.is_own(link.destination)
        || is_fenced(tables, Said::of(said).number)
    {
        return Verdict::ClusterFrame;
    }
    if let Some(place) = question.first_chunk_mut() {
        *place = ANSWER;
    }
    if let Some(place) = question.last_chunk_mut() {
        *place = as_bytes(made_ms, said, tag);
    }
    match rewrite::ethernet(packet, asker, tables.own_mac()) {
        Ok(()) => Verdict::PresenceReplied,
        Err(verdict) => verdict,
    }
}

/// The answer's own part.
#[inline(always)]
const fn as_bytes(made_ms: u64, said: u64, tag: u64) -> [u8; LEN - TOLD] {
    let [m0, m1, m2, m3, m4, m5, m6, m7] = made_ms.to_be_bytes();
    let [s0, s1, s2, s3, s4, s5, s6, s7] = said.to_be_bytes();
    let [t0, t1, t2, t3, t4, t5, t6, t7] = tag.to_be_bytes();
    [
        m0, m1, m2, m3, m4, m5, m6, m7, s0, s1, s2, s3, s4, s5, s6, s7, t0, t1, t2, t3, t4, t5, t6,
        t7,
    ]
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use crate::packet::Buffer;
    use crate::plain::{Capacity, Instance, PlainTables};

    #[test]
    fn what_is_said_comes_back() {
        for said in [
            Said {
                number: 0xfedc,
                drained: true,
                weight: u32::MAX,
            },
            Said {
                number: 1,
                drained: false,
                weight: 0,
            },
        ] {
            assert_eq!(Said::of(said.word()), said);
        }
    }

    #[test]
    fn a_question_is_no_answer_and_an_answer_cut_short_is_none() {
        let question = question(1, 2, 3);
        assert_eq!(Answer::parse(&question), None);
        let mut answer = question;
        answer[..4].copy_from_slice(&ANSWER);
        assert_eq!(Answer::parse(&answer).unwrap().nonce, 3);
        for end in 0..LEN {
            assert_eq!(Answer::parse(&answer[..end]), None);
        }
    }

    #[test]
    fn who_is_asked_says_what_was_left_for_this() {
        let tables = PlainTables::new(Capacity::default(), Instance::default());
        let entry = &tables.presences[3];
        entry.asked.set(77);
        entry.made_ms.set(1_700_000_000_000);
        let said = Said {
            number: 5,
            drained: true,
            weight: 9,
        };
        entry.said.set(said.word());
        entry.tag.set(0x0102_0304_0506_0708);
        let link = Link {
            destination: tables.own_mac(),
            l3: 14,
        };
        let mut frame = alloc::vec![0; 14];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame.extend(question(77, 3, 0xabcd));
        let verdict = answer(&mut Buffer::new(&mut frame), &tables, &link);
        assert_eq!(verdict, Verdict::PresenceReplied);
        assert_eq!(frame[..6], [2, 0, 0, 0, 0, 9]);
        let expected = Answer {
            nonce: 0xabcd,
            made_ms: 1_700_000_000_000,
            said: said.word(),
            tag: 0x0102_0304_0506_0708,
        };
        assert_eq!(Answer::parse(&frame[14..]), Some(expected));
    }
}
