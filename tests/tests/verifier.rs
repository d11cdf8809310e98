//! How hard the kernel's verifier has to work for the program: it gives up at a million instructions, and each way through
//! the program that is added multiplies.

use lb_common::features::Features;
use lb_tests::packets::{fixture::Setup, kernel::Kernel};

/// What the verifier may walk, at most, for each set of features: about a third more than it did when this was written.
/// The kernel gives up at 1,000,000 (`BPF_COMPLEXITY_LIMIT_INSNS` in `include/linux/bpf.h`), and kernels differ.
fn bounds() -> Vec<(&'static str, Features, u32)> {
    let v6 = Features::IPV6;
    vec![
        ("none", Features::NONE, 110_000),
        ("IPv6", v6, 230_000),
        ("VLAN", Features::VLAN, 120_000),
        ("fragments", Features::FRAGMENTS, 210_000),
        ("IPv6, fragments", v6.with(Features::FRAGMENTS), 340_000),
        (
            "IPv6, fragments, QUIC, clients",
            v6.with(Features::FRAGMENTS)
                .with(Features::QUIC)
                .with(Features::CLIENTS),
            360_000,
        ),
        (
            "a cluster of IPv4",
            Features::PICK.with(Features::LOCAL),
            110_000,
        ),
        ("all that forwards", Features::ALL_FORWARDING, 600_000),
        ("all", Features::ALL, 600_000),
    ]
}

#[test]
fn the_verifier_needs_no_more_than_it_did() -> anyhow::Result<()> {
    let mut over = Vec::new();
    for (name, features, bound) in bounds() {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let verified = Kernel::load(&setup)?.verified_instructions()?;
        println!("{name}: {verified} of {bound}");
        if verified > bound {
            over.push(format!("{name}: {verified} instructions, at most {bound}"));
        }
    }
    assert!(over.is_empty(), "the verifier walks\n{}", over.join("\n"));
    Ok(())
}
