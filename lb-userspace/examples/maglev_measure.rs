//! Measures what `docs/decisions/maglev-power-of-two.md` says of the tables: balance, disruption and the
//! time to build them, beside the turns of the Maglev paper.
//!
//! `cargo run --release --example maglev_measure`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Instant;

use lb_common::abi::AREA;
use lb_userspace::maglev::{MAX_BITS, Member, build, grow, table_bits};

type Scheme = fn(&[Member<'_>], u8) -> Vec<u16>;

fn main() {
    println!(
        "in % of all slots, mean (worst), besides the slots of the backend that goes, or the difference:"
    );
    println!(
        "`fails`: one of N, `second`: another one then, `removed`: one from the configuration,"
    );
    println!("`halved`: a configured weight; `grow`: moved when the size doubles.");
    println!("`alone`: runs of {AREA} slots that one backend has\n");
    println!(
        "| weights | N | slots | scheme | off by | fails | second | removed | halved | grow | alone | ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (weighted, kind) in [(false, "equal"), (true, "50..150")] {
        for count in [4, 10, 16, 100, 1000] {
            let schemes: [(&str, Scheme); 2] = [("paper", paper), ("ours", build)];
            for (name, scheme) in schemes {
                let row = measure(name, scheme, count, weighted);
                println!("| {kind} | {count} | {row} |");
            }
        }
    }
    println!();
    time("1,000 weighted backends, 65,536 slots", 1, 1000, 16);
    time(
        "4,096 services of 16 weighted backends, 2,048 slots each",
        4096,
        16,
        11,
    );
}

/// The turns of the paper's section 3.4 over a table of 2^`bits`: offset + j * skip with an odd skip,
/// each turn walks on to the next free slot, turns in proportion to the weights.
fn paper(members: &[Member<'_>], bits: u8) -> Vec<u16> {
    let mask = (1_u64 << bits) - 1;
    let mut sorted: Vec<_> = members.iter().filter(|member| member.weight > 0).collect();
    sorted.sort_by_key(|member| member.identity);
    let mut table = vec![0; 1 << bits];
    let mut tried = vec![0_u64; sorted.len()];
    let mut turns: BinaryHeap<_> = (0..sorted.len())
        .map(|index| Reverse((0_u64, index)))
        .collect();
    for _ in 0..table.len() {
        let Reverse((time, index)) = turns.pop().expect("everyone always has a next turn");
        let key = mix(sorted[index]
            .identity
            .bytes()
            .fold(1, |key, byte| mix(key ^ u64::from(byte))));
        let slot = loop {
            let slot = key.wrapping_add(tried[index].wrapping_mul(key >> 32 | 1)) & mask;
            tried[index] += 1;
            if table[slot as usize] == 0 {
                break slot;
            }
        };
        table[slot as usize] = sorted[index].number;
        turns.push(Reverse((
            time + (1 << 40) / u64::from(sorted[index].weight),
            index,
        )));
    }
    table
}

/// SplitMix64's output function.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn identities(count: usize, trial: usize) -> Vec<String> {
    (0..count)
        .map(|index| format!("be{index} 10.{trial}.{}.{}", index / 250, index % 250))
        .collect()
}

fn members(identities: &[String], weighted: bool) -> Vec<Member<'_>> {
    (1..)
        .zip(identities)
        .map(|(number, identity)| {
            let weight = if weighted {
                50 + (mix(u64::from(number)) % 101) as u32
            } else {
                50
            };
            Member::new(identity, weight, number)
        })
        .collect()
}

/// Of several sets of backends.
#[derive(Default)]
struct Sample {
    sum: f64,
    worst: f64,
    count: u32,
}

impl Sample {
    fn add(&mut self, part: f64) {
        self.sum += part;
        self.worst = self.worst.max(part);
        self.count += 1;
    }

    fn mean(&self) -> f64 {
        100.0 * self.sum / f64::from(self.count)
    }

    fn with_worst(&self) -> String {
        format!("{:.2} ({:.2})", self.mean(), 100.0 * self.worst)
    }
}

fn measure(name: &str, scheme: Scheme, count: usize, weighted: bool) -> String {
    let trials = (2000 / count).clamp(4, 200);
    let [
        mut off,
        mut fails,
        mut second,
        mut removed,
        mut halved,
        mut grown,
        mut alone,
        mut seconds,
    ] = std::array::from_fn(|_| Sample::default());
    let mut bits = 0;
    for trial in 0..trials {
        let identities = identities(count, trial);
        let all = members(&identities, weighted);
        let weights: Vec<u32> = all.iter().map(|member| member.weight).collect();
        bits = table_bits(&weights);
        let start = Instant::now();
        let before = scheme(&all, bits);
        seconds.add(start.elapsed().as_secs_f64());

        let total: u32 = weights.iter().sum();
        for member in &all {
            let share = f64::from(member.weight) / f64::from(total);
            off.add((part(&before, member.number) - share).abs() / share);
        }
        let victim = trial * 7 % count;
        let number = all[victim].number;
        let besides =
            |before: &[u16], after: &[u16], number| moved(before, after) - part(before, number);

        let mut left = all.clone();
        left[victim].weight = 0;
        let one = scheme(&left, bits);
        fails.add(besides(&before, &one, number));
        let another = (victim + 1) % count;
        left[another].weight = 0;
        second.add(besides(&one, &scheme(&left, bits), all[another].number));

        let mut rest = all.clone();
        rest.remove(victim);
        removed.add(besides(&before, &scheme(&rest, bits), number));

        let mut lighter = all.clone();
        lighter[victim].configured /= 2;
        lighter[victim].weight /= 2;
        let after = scheme(&lighter, bits);
        halved.add(moved(&before, &after) - (part(&before, number) - part(&after, number)));
        let larger = (bits + 1).min(MAX_BITS);
        grown.add(moved(
            &grow(&scheme(&all, larger - 1)),
            &scheme(&all, larger),
        ));
        let areas = before.chunks(AREA as usize);
        let owned = areas
            .clone()
            .filter(|area| area.iter().all(|slot| *slot == area[0]));
        alone.add(owned.count() as f64 / areas.len() as f64);
    }
    format!(
        "2^{bits} | {name} | {:.2} | {} | {} | {} | {:.2} | {:.2} | {:.1} | {:.2}",
        100.0 * off.worst,
        fails.with_worst(),
        second.with_worst(),
        removed.with_worst(),
        halved.mean(),
        grown.mean(),
        alone.mean(),
        10.0 * seconds.mean(),
    )
}

fn part(table: &[u16], number: u16) -> f64 {
    table.iter().filter(|&&slot| slot == number).count() as f64 / table.len() as f64
}

fn moved(before: &[u16], after: &[u16]) -> f64 {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count() as f64
        / before.len() as f64
}

fn time(what: &str, services: usize, count: usize, bits: u8) {
    let identities: Vec<Vec<String>> = (0..services)
        .map(|service| identities(count, service))
        .collect();
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            for identities in &identities {
                black_box(build(&members(identities, true), bits));
            }
            start.elapsed()
        })
        .min();
    println!("{what}: {best:?}", best = best.unwrap_or_default());
}
