//! Random packets into every kind of fixture: nothing panics, every packet keeps the promises of `packets::case`, and the
//! kernel does what the buffers do.

use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use lb_common::{features::Features, verdict::Verdict};
use lb_tests::packets::{
    both::{Both, Plain, Programs},
    case::check_change,
    cases::town,
    differential::{BATCH, fixtures, many, regressions, run, shrink},
    fixture::Setup,
    random::Frames,
};

/// Packets through buffers and kernel.
const PACKETS: usize = 1_000_000;
/// Packets over buffers alone: those shorter than an Ethernet header are among them.
const OVER_BUFFERS: usize = 200_000;

/// The seed, which is printed; `XDP_LB_SEED` repeats a run.
fn seed(what: &str) -> anyhow::Result<u64> {
    let seed = match std::env::var("XDP_LB_SEED") {
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("XDP_LB_SEED={seed} is no number"))?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    // Past the test harness, so that a run that hangs has told its seed.
    writeln!(std::io::stdout().lock(), "{what}: XDP_LB_SEED={seed}")?;
    Ok(seed)
}

#[test]
fn any_packet_keeps_the_promises_over_buffers() -> anyhow::Result<()> {
    let mut frames = Frames::new(seed("over buffers")?);
    let fixtures = fixtures();
    for (name, fixture) in fixtures.iter().cycle().take(OVER_BUFFERS / BATCH) {
        let mut plain = Plain::new(&fixture.setup);
        let mut hot = Plain::new(&fixture.setup).with_hot_path();
        plain.given(fixture, 7);
        hot.given(fixture, 7);
        for _ in 0..BATCH {
            let frame = frames.frame();
            let (outcome, after) = plain.run(&frame.0);
            let short = hot.run(&frame.0);
            ensure!(
                short == (outcome, after.clone()),
                "in the fixture `{name}` the hot path does {short:?} instead of {outcome:?} with {frame:?}"
            );
            check_change(
                &frame,
                outcome.verdict,
                &lb_tests::packets::frame::Frame(after),
            )
            .with_context(|| format!("in the fixture `{name}`: {frame:?}"))?;
        }
        plain.check_sum()?;
        hot.check_sum()?;
    }
    Ok(())
}

#[test]
fn the_kernel_does_what_the_buffers_do() -> anyhow::Result<()> {
    let seed = seed("kernel and buffers")?;
    let mut programs = Programs::default();
    let fixtures = fixtures();
    // What has once gone wrong goes first.
    for regression in regressions()? {
        let (_, fixture) = fixtures
            .iter()
            .find(|(name, _)| *name == regression.fixture)
            .with_context(|| format!("there is no fixture `{}`", regression.fixture))?;
        let both = programs.of(&fixture.setup)?;
        run(both, fixture, &regression.frames, true).with_context(|| regression.line())?;
    }
    let (sent, seen) = many(&mut programs, seed, PACKETS)
        .with_context(|| format!("XDP_LB_SEED={seed} repeats this run"))?;
    programs.check_sums()?;
    // The packets are worth their number only if they get everywhere. A test run's frames always find room.
    for verdict in Verdict::ALL {
        ensure!(
            seen[*verdict as usize] > 0 || *verdict == Verdict::NoRoom,
            "none of {sent} packets ended as {verdict:?}: {seen:?}"
        );
    }
    writeln!(std::io::stdout().lock(), "{sent} differential packets")?;
    Ok(())
}

/// Two programs that do not do the same are found out, and the packet that tells them apart is shrunk to its headers.
#[test]
fn a_difference_is_found_and_shrunk() -> anyhow::Result<()> {
    let forwarding = Setup::default();
    let without_tags = Setup {
        features: Features(Features::ALL_FORWARDING.0 & !Features::VLAN.0),
        ..forwarding
    };
    let mut both = Both::unequal(&forwarding, &without_tags)?;
    let mut frames = Frames::new(1);
    let batch: Vec<_> = std::iter::repeat_with(|| frames.frame())
        .filter(|frame| frame.0.len() >= lb_tests::packets::kernel::SHORTEST)
        .take(BATCH)
        .collect();
    ensure!(
        run(&mut both, &town(), &batch, false).is_err(),
        "no difference was found"
    );
    let shrunk = shrink(batch, &mut |frames| {
        Ok(run(&mut both, &town(), frames, true).is_err())
    })?
    .context("the difference did not come back")?;
    let [frame] = &shrunk[..] else {
        anyhow::bail!("{} packets are left, one is enough", shrunk.len());
    };
    ensure!(frame.0.len() <= 18, "more than a tag is left: {frame:?}");
    Ok(())
}
