//! The keyed hash that turns a packet's source into a slot: the same function in the kernel and in userspace.

/// The secret that all directors of a cluster share: without it nobody can aim flows at one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub [u64; 2]);

// Odd multipliers with well spread bits: the finalizer constants of SplitMix64 (Steele, Lea, Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014).
const FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
const SECOND: u64 = 0x94d0_49bb_1331_11eb;
/// Spreads the number of a flow's owner over the word: the golden ratio's bits.
const SERVICE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes `source` with the secret: two multiplications with a fold of the upper half before each.
///
/// A multiplication carries upwards only; without the first fold, a change of the source's uppermost bits would reach
/// the second factor as one of a few differences, and the index would hardly depend on them.
///
/// Every input bit changes each of the **upper** 32 bits of the result with a probability near one half; take the
/// index from the top. The lower bits are weaker.
#[inline(always)]
#[must_use]
pub const fn mix(source: u64, seed: Seed) -> u64 {
    let second = mix_top(source, seed);
    second ^ (second >> 29)
}

/// [`mix`], of which only the upper 29 bits are asked for: all that a slot's index is taken from.
#[inline(always)]
#[must_use]
pub const fn mix_top(source: u64, seed: Seed) -> u64 {
    let keyed = source ^ seed.0[0];
    let first = (keyed ^ keyed >> 32).wrapping_mul(FIRST);
    (first ^ first >> 32 ^ seed.0[1]).wrapping_mul(SECOND)
}

/// `word` shifted right by the lower six bits of `by`: BPF's own shift (RFC 9669 section 4.1), of which the compiler does not
/// know that it leaves the upper bits aside.
#[inline(always)]
#[must_use]
pub fn shift_right(word: u64, by: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = word;
        // SAFETY: one instruction of two registers, without memory.
        unsafe {
            core::arch::asm!("{0} >>= {1}", inout(reg) word, in(reg) by, options(pure, nomem, nostack));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        word >> (by & 63)
    }
}

/// `word` shifted left by 16 bits, which the compiler does not know: it would keep the word for the bits that are gone.
#[inline(always)]
#[must_use]
pub fn shift_left_16(word: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = word;
        // SAFETY: one instruction of a register, without memory.
        unsafe {
            core::arch::asm!("{0} <<= 16", inout(reg) word, options(pure, nomem, nostack));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        word << 16
    }
}

/// `word` itself, where the compiler can't see that.
#[inline(always)]
#[must_use]
pub fn held(word: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut word = word;
        // SAFETY: the register keeps its value.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) word, options(nomem, nostack));
        }
        word
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        word
    }
}

/// 128 bits, such as an IPv6 address, folded into the word that [`mix`] takes. Two addresses of one /64 never meet; any
/// other two meet with a probability of about 2^-64 that only the secret decides.
#[inline(always)]
#[must_use]
pub const fn fold(high: u64, low: u64, seed: Seed) -> u64 {
    let first = (high ^ seed.0[1]).wrapping_mul(FIRST);
    let second = (first ^ first >> 32 ^ low ^ seed.0[0]).wrapping_mul(SECOND);
    second ^ second >> 32
}

/// The place of a flow in the flow table: independent of the pick, which may leave the ports out.
#[inline(always)]
#[must_use]
pub const fn mix_flow(flow: u64, owner: u32, seed: Seed) -> u64 {
    // The keys change places, so that the flow table's order tells nothing about the pick.
    mix(
        flow ^ (owner as u64).wrapping_mul(SERVICE),
        Seed([seed.0[1], seed.0[0]]),
    )
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Every one of the 64 input bits flips every output bit of the upper half, from which every index is taken, in about half of all cases.
    #[test]
    fn avalanche_of_the_index() {
        const INDEX_BITS: usize = 32;
        const SAMPLES: u32 = 8192;
        let seed = Seed([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        let inputs: Vec<u64> = (0..u64::from(SAMPLES))
            .map(|i| i.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (i << 40))
            .collect();
        for bit in 0..64 {
            let mut flips = [0u32; INDEX_BITS];
            for &input in &inputs {
                let difference =
                    (mix(input, seed) ^ mix(input ^ (1 << bit), seed)) >> (64 - INDEX_BITS);
                for (out, count) in flips.iter_mut().enumerate() {
                    *count += u32::try_from(difference >> out & 1).unwrap();
                }
            }
            for (out, count) in flips.iter().enumerate() {
                let share = f64::from(*count) / f64::from(SAMPLES);
                assert!(
                    (0.46..0.54).contains(&share),
                    "input bit {bit}, output bit {}: {share}",
                    out + 64 - INDEX_BITS
                );
            }
        }
    }

    /// Neighbouring clients, as they are in one network, fill 256 slots evenly (chi-squared, 255 degrees of freedom).
    #[test]
    fn consecutive_addresses_spread_evenly() {
        let seed = Seed([7, 11]);
        let mut counts = [0u32; 256];
        const CLIENTS: u32 = 256 * 256;
        for client in 0..CLIENTS {
            let source = u64::from(0x0a00_0000 + client) << 32;
            counts[(mix(source, seed) >> 56) as usize] += 1;
        }
        let expected = f64::from(CLIENTS) / 256.0;
        let chi: f64 = counts
            .iter()
            .map(|c| (f64::from(*c) - expected).powi(2) / expected)
            .sum();
        assert!(chi < 340.0, "chi-squared {chi}: above the 0.9998 quantile");
    }

    /// The clients of one /64 and the same interface identifier in many networks fill 256 slots evenly.
    #[test]
    fn ipv6_addresses_spread_evenly() {
        let seed = Seed([7, 11]);
        const CLIENTS: u32 = 256 * 256;
        for of_one_network in [true, false] {
            let mut counts = [0u32; 256];
            for client in 0..CLIENTS {
                let (high, low) = if of_one_network {
                    (0x2001_0db8_0000_0000, u64::from(client))
                } else {
                    (0x2001_0db8_0000_0000 + u64::from(client), 1)
                };
                counts[(mix(fold(high, low, seed), seed) >> 56) as usize] += 1;
            }
            let expected = f64::from(CLIENTS) / 256.0;
            let chi: f64 = counts
                .iter()
                .map(|c| (f64::from(*c) - expected).powi(2) / expected)
                .sum();
            assert!(chi < 340.0, "chi-squared {chi}: above the 0.9998 quantile");
        }
    }

    /// Without the secret the slot of a client can't be told: another seed moves almost every client.
    #[test]
    fn the_seed_decides() {
        let same = (0u64..10_000)
            .filter(|c| mix(c << 32, Seed([1, 2])) >> 56 == mix(c << 32, Seed([1, 3])) >> 56)
            .count();
        assert!(
            same < 120,
            "{same} of 10000 stayed in their slot, 39 are expected"
        );
    }
}
