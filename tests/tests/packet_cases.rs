//! The specification of the data path (`lb_tests::packets::cases`), over byte buffers and through the kernel.

use std::{collections::BTreeSet, io::Write};

use lb_common::verdict::Verdict;
use lb_tests::packets::{
    both::{Both, Plain, Programs},
    case::Case,
    cases,
};

#[test]
fn over_buffers() {
    let mut failures = Vec::new();
    for case in cases::all() {
        let mut plain = Plain::new(&case.given.setup);
        plain.given(&case.given, 1000);
        let seen = if case.without_room {
            plain.send_without_room(&case.frame)
        } else {
            plain.send(&case.frame)
        };
        if let Err(error) = case.check(&seen).and_then(|()| plain.check_sum()) {
            failures.push(format!("{}: {error}", case.what));
        }
    }
    report(&failures);
}

#[test]
fn through_the_kernel_and_over_buffers() -> anyhow::Result<()> {
    let mut programs = Programs::default();
    let mut failures = Vec::new();
    let cases = cases::all();
    // The kernel runs no program over less than an Ethernet header; those cases stand in `over_buffers` alone.
    for case in cases.iter().filter(|case| case.fits_kernel()) {
        if let Err(error) = run(programs.of(&case.given.setup)?, case) {
            failures.push(format!("{}: {error:#}", case.what));
        }
    }
    report(&failures);
    programs.check_sums()?;
    // Past the test harness, which keeps what a passing test prints to itself.
    writeln!(std::io::stdout().lock(), "{} packet cases", cases.len())?;
    Ok(())
}

fn run(both: &mut Both, case: &Case) -> anyhow::Result<()> {
    both.given(&case.given)?;
    let seen = both.send(&case.frame)?;
    case.check(&seen)
}

#[test]
fn the_table_is_a_specification() {
    let cases = cases::all();
    let verdicts: BTreeSet<Verdict> = cases.iter().map(|case| case.verdict).collect();
    for verdict in Verdict::ALL {
        assert!(verdicts.contains(verdict), "no case ends in {verdict:?}");
    }
    let mut sentences = BTreeSet::new();
    let twice: Vec<&str> = cases
        .iter()
        .map(|case| case.what.as_str())
        .filter(|what| !sentences.insert(*what))
        .collect();
    assert!(twice.is_empty(), "two cases say the same: {twice:#?}");
}

fn report(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} cases failed\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}
