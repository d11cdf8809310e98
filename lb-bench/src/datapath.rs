//! Measuring the rows of the data path, and what is told of them.

use anyhow::{Context as _, Result};
use lb_userspace::bench::{
    figures::Net,
    measure::{Plan, Sample, join, measure},
    results::Outcome,
};

use crate::{
    alone::Alone,
    progress::Progress,
    rows::{FLOOR, Rows},
    targets,
};

/// Measures rows, one of which is the floor.
pub(crate) fn run(what: &str, rows: &mut Rows, plan: Plan) -> Result<Vec<Sample>> {
    let turns = u64::from(plan.bursts) * rows.rows.len() as u64;
    let warm_ups = rows.rows.iter().filter(|row| row.warm_up > 0).count() as u64;
    let progress = Progress::new(what, turns + warm_ups);
    let _alone = Alone::new();
    let samples = measure(&mut rows.rows, plan, |name| {
        progress.step(name);
        Ok(())
    })?;
    Ok(join(samples))
}

/// The rows against the floor.
pub(crate) fn outcomes(samples: &[Sample]) -> Result<Vec<Outcome>> {
    let floor = net(samples.iter().find(|sample| sample.name == FLOOR))?;
    samples
        .iter()
        .map(|sample| {
            let target = targets::times_floor(&sample.name);
            Ok(Outcome::net(
                &sample.name,
                net(Some(sample))?,
                floor,
                target,
            ))
        })
        .collect()
}

fn net(sample: Option<&Sample>) -> Result<Net> {
    sample
        .and_then(Sample::net)
        .context("a row was not measured")
}
