//! Measures what `docs/decisions/maglev-power-of-two.md` says of the tables: balance, disruption and the
//! time to build them, beside the turns of the Maglev paper.
//!
//! `cargo run --release --example maglev_measure`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::time::Instant;

use lb_userspace::maglev::{MAX_BITS, Member, build, grow, table_bits};

type Scheme = fn(&[Member<'_>], u8) -> Vec<u16>;

fn main() {
    println!(
        "in % of all slots; `own`: the removed backend's; `extra`: what moved besides (mean, worst)"
    );
    println!(
        "`halved`: a weight halved, moved besides the difference; `grow`: moved when the size doubles\n"
    );
    println!(
        "| weights | N | scheme | slots | off by | own | extra | worst | halved | grow | ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for (weighted, kind) in [(false, "equal"), (true, "50..150")] {
        for count in [4, 10, 16, 100, 1000] {
            let schemes: [(&str, Scheme); 2] = [("paper", paper), ("ours", build)];
            for (name, scheme) in schemes {
                let row = measure(scheme, count, weighted);
                println!("| {kind} | {count} | {name} | {row} |");
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
    let mut sorted: Vec<_> = members.iter().collect();
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

fn measure(scheme: Scheme, count: usize, weighted: bool) -> String {
    let trials = (2000 / count).clamp(4, 200);
    let (mut off, mut own, mut extra, mut worst) = (0.0_f64, 0.0, 0.0, 0.0_f64);
    let (mut halved, mut grown, mut seconds, mut bits) = (0.0, 0.0, 0.0, 0);
    for trial in 0..trials {
        let identities = identities(count, trial);
        let all = members(&identities, weighted);
        let weights: Vec<u32> = all.iter().map(|member| member.weight).collect();
        bits = table_bits(&weights);
        let start = Instant::now();
        let before = scheme(&all, bits);
        seconds += start.elapsed().as_secs_f64();

        let total: u32 = weights.iter().sum();
        for member in &all {
            let share = f64::from(member.weight) / f64::from(total);
            off = off.max((part(&before, member.number) - share).abs() / share);
        }
        let victim = trial * 7 % count;
        let number = all[victim].number;
        let mut rest = all.clone();
        rest.remove(victim);
        let besides = moved(&before, &scheme(&rest, bits)) - part(&before, number);
        own += part(&before, number);
        extra += besides;
        worst = worst.max(besides);

        let mut lighter = all.clone();
        lighter[victim].weight /= 2;
        let after = scheme(&lighter, bits);
        halved += moved(&before, &after) - (part(&before, number) - part(&after, number));
        let larger = (bits + 1).min(MAX_BITS);
        grown += moved(&grow(&scheme(&all, larger - 1)), &scheme(&all, larger));
    }
    let mean = |sum: f64| 100.0 * sum / trials as f64;
    format!(
        "2^{bits} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2}",
        100.0 * off,
        mean(own),
        mean(extra),
        100.0 * worst,
        mean(halved),
        mean(grown),
        1000.0 * seconds / trials as f64,
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
