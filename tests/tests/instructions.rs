//! What a packet executes, and how large the programs are: a guard that needs no clock. The numbers, and what they mean, are
//! in `docs/instructions.md`.

use std::{io::Write as _, sync::Mutex};

use anyhow::{Context, ensure};
use lb_common::features::Features;
use lb_tests::{
    packets::{fixture::Setup, kernel::Kernel},
    translated::{
        machine::Executed,
        paths::{DUAL, Loaded, PLAIN, Path, all, execute},
        table::{Cell, Row, check},
    },
};
use lb_userspace::dataplane::{Sizes, layout::planned};

/// Percent by which a packet's instructions may differ from one compiler or kernel to the next.
const OF_A_PATH: u64 = 5;
/// The same of a whole program.
const OF_A_PROGRAM: u64 = 10;
/// The same of what the verifier walks, which small changes move a lot.
const OF_THE_VERIFIER: u64 = 33;

/// Both tests may write the document.
static DOCUMENT: Mutex<()> = Mutex::new(());

#[test]
fn a_packet_executes_what_it_did() -> anyhow::Result<()> {
    let mut loaded = Loaded::default();
    let mut rows = Vec::new();
    for path in all() {
        let executed = execute(&mut loaded, &path)?;
        if path.hot {
            no_calls(&path, &executed)?;
        }
        rows.push(row_of_path(&path, &executed));
    }
    print(&rows)?;
    let columns = [
        "packet",
        "instructions",
        "branches",
        "stack accesses",
        "calls",
        "cache lines of maps",
    ];
    let _held = DOCUMENT.lock();
    check("packets", &columns, &rows)
}

/// On the hot path nothing is called: neither the kernel nor another function of the program.
fn no_calls(path: &Path, executed: &Executed) -> anyhow::Result<()> {
    ensure!(
        executed.kernel_calls.is_empty() && executed.own_calls == 0,
        "{}: {:?} and {} functions of the program are called on the hot path. (Before Linux 5.10 a lookup in an array, \
         before 6.10 one in a per-CPU array is a call.)",
        path.name,
        executed.kernel_calls,
        executed.own_calls
    );
    Ok(())
}

fn row_of_path(path: &Path, executed: &Executed) -> Row {
    let about = |number: usize| Cell::About(number as u64, OF_A_PATH);
    let exactly = |number: usize| Cell::Exactly(number.to_string());
    let lines: Vec<String> = executed
        .lines
        .iter()
        // The read-only globals: all in one line, which every packet reads.
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, lines)| match lines {
            1 => name.clone(),
            _ => format!("{lines} x {name}"),
        })
        .collect();
    let values = vec![
        about(executed.instructions),
        // Few of them: a percentage of nothing is nothing.
        Cell::About(executed.branches as u64, 2 * OF_A_PATH),
        Cell::About(executed.stack_accesses as u64, 4 * OF_A_PATH),
        exactly(executed.kernel_calls.len() + executed.own_calls),
        Cell::Exactly(lines.join(", ")),
    ];
    (path.name.into(), values)
}

/// The programs that are counted: what each feature adds to what a plain configuration loads, and all together.
fn programs() -> Vec<(&'static str, Features)> {
    let beside = |feature: Features| PLAIN.with(feature);
    vec![
        ("nothing (`fragments = 0`)", Features::NONE),
        ("fragments: a plain configuration", PLAIN),
        ("fragments, IPv6", DUAL),
        ("fragments, VLAN", beside(Features::VLAN)),
        (
            "fragments, `track = \"always\"`",
            beside(Features::TRACK_ALWAYS),
        ),
        ("fragments, `track = \"quic\"`", beside(Features::QUIC)),
        ("fragments, `affinity_timeout`", beside(Features::CLIENTS)),
        ("fragments, `spread_hot_sources`", beside(Features::SPREAD)),
        ("fragments, a backend on this host", beside(Features::LOCAL)),
        (
            "fragments, IPv6, QUIC, `affinity_timeout`",
            DUAL.with(Features::QUIC).with(Features::CLIENTS),
        ),
        (
            "fragments, `mode = \"pick\"`",
            beside(Features::PICK.with(Features::LOCAL)),
        ),
        ("everything that forwards", Features::ALL_FORWARDING),
        ("everything", Features::ALL),
    ]
}

/// The verifier gives up at 1,000,000 instructions (`BPF_COMPLEXITY_LIMIT_INSNS` in `include/linux/bpf.h`), and kernels differ.
const MOST_VERIFIED: u32 = 600_000;

#[test]
fn programs_are_as_large_as_they_were() -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let facts = planned(&Sizes::default(), 1);
    for (name, features) in programs() {
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let program = Kernel::load(&setup)?.translated()?;
        ensure!(
            program.verified <= MOST_VERIFIED,
            "{name}: the verifier walks {} instructions, more than {MOST_VERIFIED}",
            program.verified
        );
        let (mut shared, mut per_cpu) = (0, 0);
        for map in program.named_maps() {
            let Some(fact) = facts.iter().find(|fact| fact.name == map.name) else {
                // The read-only globals.
                continue;
            };
            if map.is_per_cpu() || fact.name == lb_common::abi::map::SAMPLES {
                per_cpu += fact.memory;
            } else {
                shared += fact.memory;
            }
        }
        let about = |number: u32, percent| Cell::About(number.into(), percent);
        let kibibytes = |bytes: u64| Cell::Exactly(bytes.div_ceil(1024).to_string());
        let values = vec![
            about(program.instructions.len().try_into()?, OF_A_PROGRAM),
            about(program.verified, OF_THE_VERIFIER),
            about(program.jited, OF_A_PROGRAM),
            kibibytes(shared),
            kibibytes(per_cpu),
        ];
        rows.push((name.to_owned(), values));
    }
    print(&rows)?;
    let columns = [
        "program",
        "instructions, translated",
        "verified",
        "bytes of machine code",
        "maps, KiB",
        "and per processor, KiB",
    ];
    let _held = DOCUMENT.lock();
    check("programs", &columns, &rows)
}

/// Past the test harness, which keeps what a passing test prints to itself.
fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (row, cells) in rows {
        writeln!(out, "{row}: {cells:?}").context("printing")?;
    }
    Ok(())
}
