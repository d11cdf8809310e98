//! The specification of the data path (`lb_tests::packets::cases`), over byte buffers and through the kernel.

use std::{collections::BTreeSet, io::Write};

use lb_common::verdict::Verdict;
use lb_tests::packets::{
    both::{Both, Plain},
    case::Case,
    cases,
};

#[test]
fn over_buffers() {
    let mut failures = Vec::new();
    for case in cases::all() {
        let mut plain = Plain::new(case.given.unserved_pass);
        plain.given(&case.given, 1000);
        let seen = plain.send(&case.frame);
        if let Err(error) = case.check(&seen).and_then(|()| plain.check_sum()) {
            failures.push(format!("{}: {error}", case.what));
        }
    }
    report(&failures);
}

#[test]
fn through_the_kernel_and_over_buffers() -> anyhow::Result<()> {
    let (mut dropping, mut passing) = (Both::load(false)?, Both::load(true)?);
    let mut failures = Vec::new();
    let mut count = 0;
    // The kernel runs no program over less than an Ethernet header; those cases stand in `over_buffers` alone.
    for case in cases::all().iter().filter(|case| case.fits_kernel()) {
        let both = if case.given.unserved_pass {
            &mut passing
        } else {
            &mut dropping
        };
        if let Err(error) = run(both, case) {
            failures.push(format!("{}: {error:#}", case.what));
            // Counters that differ once would differ in every case to come.
            *both = Both::load(case.given.unserved_pass)?;
        }
        count += 1;
    }
    report(&failures);
    dropping.check_sum()?;
    passing.check_sum()?;
    // Past the test harness, which keeps what a passing test prints to itself.
    writeln!(std::io::stdout().lock(), "{count} packet cases")?;
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
    for case in &cases {
        assert!(
            sentences.insert(case.what.as_str()),
            "two cases say the same: {}",
            case.what
        );
    }
}

fn report(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} cases failed\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}
