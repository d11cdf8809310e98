//! Many packets through buffers and the kernel with the same maps; a packet that they do not agree on is shrunk to what
//! matters, and kept.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::{Context, bail, ensure};
use lb_common::{
    abi::MAX_PORTS,
    features::Features,
    pick::{Affinity, Backend, Slot},
    presence::Said,
    service::Track,
    verdict::Verdict,
    wire::{ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV6_LEN},
};

use super::{
    both::{Both, Programs},
    case::check_change,
    cases::{blank, clustered, lenient, town, town6},
    fixture::{CAPACITY, Fixture, Present},
    frame::Frame,
    kernel,
    network::NO_PORT,
    random::{FENCING_TOKEN, Frames, PRESENCE_ASKED},
};

/// Packets sent one after the other into one fixture: enough to fill its flow tables.
pub const BATCH: usize = 2000;

/// Every kind of content that the maps may have, by name.
#[must_use]
pub fn fixtures() -> Vec<(&'static str, Fixture)> {
    let mut misplaced = city();
    for service in &mut misplaced.services {
        service.misplaced = Some(CAPACITY.slots - 8);
    }
    let node = |fixture: Fixture| clustered(fixture.backend(8, Backend::LOCAL_PORT));
    let typical = Features::IPV6.with(Features::FRAGMENTS);
    let old = Features::VLAN.with(Features::QUIC).with(Features::CLIENTS);
    vec![
        ("blank", blank()),
        ("city", city()),
        ("lenient", lenient(city())),
        ("changing", city().every_slot(Slot::new(2, 1))),
        ("closing", city().every_slot(Slot::new(0, 5))),
        ("misplaced", misplaced),
        ("mixed", mixed(city())),
        ("mixed-lenient", mixed(lenient(city()))),
        ("always", mixed(city().track(Track::Always))),
        ("quic", mixed(city().track(Track::Quic))),
        ("clients", mixed(city().recording_clients())),
        (
            "networks",
            mixed(shared(city()).track(Track::Always).recording_clients()),
        ),
        ("shared", shared(city())),
        ("areas", mixed(city()).areas(&[2, 0, 5, 0, 1, 9, 0, 3])),
        (
            "shared-changing",
            shared(city()).every_slot(Slot::new(2, 1)),
        ),
        ("plain", mixed(city()).under(Features::NONE)),
        ("typical", mixed(city()).under(typical)),
        (
            "without-ipv6",
            mixed(city().track(Track::Quic).recording_clients()).under(old),
        ),
        ("cluster", node(city()).every_slot(Slot::settled(8))),
        (
            "cluster-fencing",
            node(city())
                .every_slot(Slot::settled(8))
                .fence(8, FENCING_TOKEN, 0)
                .present(Present {
                    place: 1,
                    asked: PRESENCE_ASKED,
                    made_ms: 1,
                    said: Said {
                        number: 8,
                        drained: false,
                        weight: 50,
                    },
                    tag: 2,
                }),
        ),
        (
            "cluster-fenced",
            node(mixed(city())).fence(8, FENCING_TOKEN, FENCING_TOKEN),
        ),
        ("cluster-mixed", node(mixed(city().track(Track::Always)))),
    ]
}

/// The services of both families.
fn city() -> Fixture {
    let mut fixture = town();
    for mut service in town6().services {
        service.id += 5;
        fixture.services.push(service);
    }
    fixture
}

/// Slots of every kind, in transition and settled, and backends of every kind.
fn mixed(fixture: Fixture) -> Fixture {
    let mut fixture = fixture
        .backend(6, NO_PORT)
        .backend(7, MAX_PORTS as u16)
        .backend(8, Backend::LOCAL_PORT)
        .backend(11, 0)
        .without_mac(11)
        .failed(3)
        .closed_to_new(4);
    let numbers = [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        CAPACITY.backends as u16,
    ];
    let mut number = 0;
    for service in &mut fixture.services {
        for slot in &mut service.slots {
            number += 1;
            let previous = numbers[(number * 5 + 1) % numbers.len()];
            *slot = if number % 3 == 0 {
                Slot::settled(numbers[number % numbers.len()])
            } else {
                Slot::new(numbers[number % numbers.len()], previous)
            };
        }
    }
    fixture
}

/// Picks without ports, and later fragments that need no first one.
fn shared(mut fixture: Fixture) -> Fixture {
    for service in &mut fixture.services {
        service.affinity = if service.vip.is_ipv4() {
            Affinity::NETWORK_IPV4
        } else {
            Affinity::NETWORK_IPV6
        };
        service.fragments = matches!(service.id, 1 | 2 | 6 | 7);
    }
    fixture
}

/// How often each verdict was seen.
pub type Histogram = [u64; Verdict::COUNT];

/// Sends frames into a fixture and compares what becomes of each, and in the end what is left behind; `each` compares that
/// after each one.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn run(
    both: &mut Both,
    fixture: &Fixture,
    frames: &[Frame],
    each: bool,
) -> anyhow::Result<Histogram> {
    both.given(fixture)?;
    let mut seen = [0; Verdict::COUNT];
    for (number, frame) in frames.iter().enumerate() {
        both.run(frame)
            .and_then(|(outcome, after)| {
                seen[outcome.verdict as usize] += 1;
                check_change(frame, outcome.verdict, &after)?;
                if each { both.compare(&seen) } else { Ok(()) }
            })
            .with_context(|| format!("packet {number}: {frame:?}"))?;
    }
    both.compare(&seen)?;
    Ok(seen)
}

/// Sends `packets` random packets, fixture after fixture.
///
/// # Errors
/// What buffers and kernel do not agree on: the packets, shrunk, which are now among the regressions.
pub fn many(
    programs: &mut Programs,
    seed: u64,
    packets: usize,
) -> anyhow::Result<(usize, Histogram)> {
    let fixtures = fixtures();
    let mut frames = Frames::new(seed);
    let (mut sent, mut seen) = (0, [0; Verdict::COUNT]);
    for (name, fixture) in fixtures.iter().cycle() {
        if sent >= packets {
            break;
        }
        // The kernel runs no program over less than an Ethernet header.
        let batch: Vec<Frame> = std::iter::repeat_with(|| frames.frame())
            .filter(|frame| frame.0.len() >= kernel::SHORTEST)
            .take(BATCH)
            .collect();
        let both = programs.of(&fixture.setup)?;
        match run(both, fixture, &batch, false) {
            Ok(histogram) => {
                sent += batch.len();
                for (sum, count) in seen.iter_mut().zip(histogram) {
                    *sum += count;
                }
            }
            Err(error) => {
                let shrunk = shrink(batch, &mut |frames| {
                    Ok(run(both, fixture, frames, true).is_err())
                })?;
                let Some(frames) = shrunk else {
                    bail!(
                        "{error:#}\nin the fixture `{name}`; the same packets once more did no harm"
                    );
                };
                let why = match run(both, fixture, &frames, true) {
                    Err(error) => format!("{error:#}"),
                    Ok(_) => format!("{error:#}"),
                };
                let regression = Regression {
                    fixture: (*name).to_owned(),
                    frames,
                };
                regression.keep(&why)?;
                bail!(
                    "{why}\n\nshrunk, and kept in {}:\n{}",
                    regressions_file().display(),
                    regression.line()
                );
            }
        }
    }
    Ok((sent, seen))
}

/// At most so many tries make a failure smaller.
const TRIES: usize = 4000;

/// Fewer and simpler frames that still fail; `None` where these don't.
///
/// # Errors
/// What `fails` says where it can't tell.
pub fn shrink(
    mut frames: Vec<Frame>,
    fails: &mut dyn FnMut(&[Frame]) -> anyhow::Result<bool>,
) -> anyhow::Result<Option<Vec<Frame>>> {
    if !fails(&frames)? {
        return Ok(None);
    }
    let mut tries = 0;
    // Whole packets, in ever smaller runs.
    let mut run = frames.len();
    while run > 0 && tries < TRIES {
        let mut at = 0;
        while at < frames.len() && tries < TRIES {
            let mut fewer = frames.clone();
            fewer.drain(at..(at + run).min(fewer.len()));
            tries += 1;
            if !fewer.is_empty() && fails(&fewer)? {
                frames = fewer;
            } else {
                at += run;
            }
        }
        run /= 2;
    }
    // Then each packet, until nothing more can be left out.
    let mut number = 0;
    while number < frames.len() && tries < TRIES {
        let mut smaller = false;
        for simpler in simpler(&frames[number]) {
            if tries >= TRIES {
                break;
            }
            let mut changed = frames.clone();
            changed[number] = simpler;
            tries += 1;
            if fails(&changed)? {
                frames = changed;
                smaller = true;
                break;
            }
        }
        if !smaller {
            number += 1;
        }
    }
    Ok(Some(frames))
}

/// Frames that are simpler than this one, the simplest first: each has fewer bytes, or more of them are 0.
fn simpler(frame: &Frame) -> Vec<Frame> {
    let bytes = &frame.0;
    let mut found = Vec::new();
    let ethertype = |at: usize| match bytes.get(at..at + 2) {
        Some([a, b]) => u16::from_be_bytes([*a, *b]),
        _ => 0,
    };
    let mut l3 = 14;
    if matches!(ethertype(12), ETHERTYPE_VLAN | ETHERTYPE_QINQ) && bytes.len() >= 18 {
        found.push(frame.clone().popped());
        l3 = 18;
    }
    // An IPv6 extension header goes with its length.
    if ethertype(l3 - 2) == ETHERTYPE_IPV6 && bytes.len() > l3 + IPV6_LEN + 2 {
        let start = l3 + IPV6_LEN;
        let end = (start + (usize::from(bytes[start + 1]) + 1) * 8).min(bytes.len());
        let mut without = bytes.clone();
        without[l3 + 6] = bytes[start];
        let payload = u16::from_be_bytes([bytes[l3 + 4], bytes[l3 + 5]]);
        let shorter = payload.wrapping_sub((end - start) as u16).to_be_bytes();
        without[l3 + 4..l3 + 6].copy_from_slice(&shorter);
        without.drain(start..end);
        found.push(Frame(without));
    }
    let mut cut = bytes.len() / 2;
    while cut > 0 {
        if bytes.len() - cut >= kernel::SHORTEST {
            found.push(frame.clone().cut(bytes.len() - cut));
        }
        cut /= 2;
    }
    for len in [16, 8, 4, 1] {
        for at in (0..bytes.len()).step_by(len) {
            let end = (at + len).min(bytes.len());
            if bytes[at..end].iter().any(|byte| *byte != 0) {
                found.push(frame.clone().with(at, &vec![0; end - at]));
            }
        }
    }
    found
}

/// Packets on which buffers and kernel once did not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression {
    /// The name of the fixture.
    pub fixture: String,
    /// The packets, in their order.
    pub frames: Vec<Frame>,
}

impl Regression {
    /// As a line of the file: the fixture's name, and each frame in hexadecimal.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.fixture.clone();
        for frame in &self.frames {
            line.push(' ');
            for byte in &frame.0 {
                line.push_str(&format!("{byte:02x}"));
            }
        }
        line
    }

    /// Reads such a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(line: &str) -> anyhow::Result<Self> {
        let mut words = line.split_whitespace();
        let fixture = words.next().context("an empty line")?.to_owned();
        let frames = words.map(frame_of).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!frames.is_empty(), "`{line}` names no packet");
        Ok(Self { fixture, frames })
    }

    /// Appends it to the file, with what was wrong.
    fn keep(&self, why: &str) -> anyhow::Result<()> {
        let path = regressions_file();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot keep `{}` in {}", self.line(), path.display()))?;
        let what: Vec<&str> = why.lines().filter(|line| line.contains("agree")).collect();
        let what = what
            .first()
            .copied()
            .unwrap_or("a promise was broken")
            .trim();
        writeln!(file, "\n# {what}\n{}", self.line())
            .with_context(|| format!("cannot write to {}", path.display()))
    }
}

fn frame_of(word: &str) -> anyhow::Result<Frame> {
    ensure!(
        word.len().is_multiple_of(2) && word.is_ascii(),
        "`{word}` is no frame in hexadecimal"
    );
    (0..word.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&word[at..at + 2], 16))
        .collect::<Result<Vec<u8>, _>>()
        .map(Frame)
        .with_context(|| format!("`{word}` is no frame in hexadecimal"))
}

/// The file that keeps the regressions, in the source tree.
#[must_use]
pub fn regressions_file() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.join("regressions/packets.txt")
}

/// All regressions.
///
/// # Errors
/// Where the file can't be read, or has a line that is none.
pub fn regressions() -> anyhow::Result<Vec<Regression>> {
    let path = regressions_file();
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(Regression::read)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::frame::{extension, tcp, tcp6, udp};
    use lb_common::wire::NEXT_DESTINATION;

    #[test]
    fn a_failure_shrinks_to_what_matters() {
        let mut frames: Vec<Frame> = (0..100).map(|_| tcp().build()).collect();
        frames[63] = udp().payload(&[7; 500]).vlan(9).build();
        frames[80] = tcp6().extended(NEXT_DESTINATION, extension(3)).build();
        // Needs a datagram and, behind it, anything of IPv6.
        let mut fails = |frames: &[Frame]| {
            let datagram = frames.iter().position(|frame| {
                frame.0.windows(2).any(|pair| pair == [0x08, 0x00]) && frame.0.contains(&17)
            });
            let ipv6 = frames
                .iter()
                .rposition(|frame| frame.0.windows(2).any(|pair| pair == [0x86, 0xdd]));
            Ok(matches!((datagram, ipv6), (Some(a), Some(b)) if a < b))
        };
        let shrunk = shrink(frames, &mut fails).unwrap().unwrap();
        assert_eq!(shrunk.len(), 2);
        for frame in &shrunk {
            let left = frame.0.iter().filter(|byte| **byte != 0).count();
            assert!(frame.0.len() < 40 && left <= 3, "{frame:?}");
        }
        assert!(fails(&shrunk).unwrap());
    }

    #[test]
    fn what_does_not_fail_does_not_shrink() {
        let frames = vec![tcp().build()];
        assert_eq!(shrink(frames, &mut |_| Ok(false)).unwrap(), None);
    }

    #[test]
    fn regressions_round_trip() {
        let regression = Regression {
            fixture: "city".into(),
            frames: vec![tcp().build(), udp().build()],
        };
        assert_eq!(Regression::read(&regression.line()).unwrap(), regression);
        for wrong in ["city", "city 0", "city 0g", "city äö"] {
            assert!(Regression::read(wrong).is_err(), "{wrong}");
        }
    }
}
