//! Bursts of all programs, taking turns: whatever the machine does meanwhile, it does to all of them.

use lb_common::verdict::Action;

use super::figures::{Net, Series};
use crate::dataplane::{
    DataplaneError,
    rig::{LAP, MOST_LAPS, Recipe, Rig, Stand, Target},
};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Laps of one burst, of [`LAP`] packets each.
    pub laps: u32,
    /// Bursts of each program.
    pub bursts: u32,
}

impl Plan {
    /// Packets of one burst.
    #[must_use]
    pub const fn packets(&self) -> u32 {
        self.laps * LAP
    }

    /// What figures are published of.
    pub const FULL: Self = Self {
        laps: 124,
        bursts: 31,
    };
    /// Enough to see that everything works; the figures mean little.
    pub const QUICK: Self = Self { laps: 4, bursts: 3 };
    /// What a processor with other things to do is given: a burst is over in a fraction of a millisecond, within which
    /// packets that come in there have to wait.
    pub const CONSIDERATE: Self = Self {
        laps: 8,
        bursts: 63,
    };
}

/// What is measured.
#[derive(Debug)]
pub enum Contender {
    /// One of the benchmark's own programs.
    Stand(Stand),
    /// A program from elsewhere.
    Program(Target),
}

/// One row: packets, and a program that they are given to.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What prepares its packets.
    pub rig: Rig,
    /// The program.
    pub contender: Contender,
    /// What it must do with every packet, where that is one and the same.
    pub action: Option<Action>,
    /// Laps that are run before the first burst, so that what is recorded once is recorded.
    pub warm_up: u32,
}

/// What came of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Preparing alone.
    pub base: Series,
    /// Preparing, and the program.
    pub program: Series,
}

impl Sample {
    /// The program's own time; `None` if no burst was made.
    #[must_use]
    pub fn net(&self) -> Option<Net> {
        Net::of(&self.program, &self.base)
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The kernel refused.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The program did something else than the row is about.
    #[error(
        "{row}: the program under test answers {found:?} instead of {expected:?}: the figures would be of another way through it"
    )]
    Action {
        /// The row.
        row: String,
        /// What it answered.
        found: Action,
        /// What the row is about.
        expected: Action,
    },
    /// Somebody said stop.
    #[error("{0}")]
    Stopped(String),
}

impl Row {
    /// What returns as it does, and does nothing else.
    fn base(&self) -> Stand {
        match self.action {
            Some(Action::Pass) => Stand::Pass,
            _ => Stand::Transmit,
        }
    }

    /// One burst: nanoseconds per packet of each lap.
    fn program(&mut self, laps: u32) -> Result<Vec<f64>, MeasureError> {
        let burst = match &self.contender {
            Contender::Stand(stand) => self.rig.run_stand(*stand, laps)?,
            Contender::Program(target) => self.rig.run(target, laps)?,
        };
        if let Some(expected) = self.action
            && expected != burst.action
        {
            return Err(MeasureError::Action {
                row: self.name.clone(),
                found: burst.action,
                expected,
            });
        }
        Ok(burst.laps)
    }
}

/// Measures all rows. `turn` is called before each burst of a program, with the row's name; it can say stop.
///
/// # Errors
/// [`MeasureError`].
pub fn measure(
    rows: &mut [Row],
    plan: Plan,
    mut turn: impl FnMut(&str) -> Result<(), String>,
) -> Result<Vec<Sample>, MeasureError> {
    let mut samples: Vec<Sample> = rows
        .iter()
        .map(|row| Sample {
            name: row.name.clone(),
            base: Series::default(),
            program: Series::default(),
        })
        .collect();
    for row in &mut *rows {
        if row.warm_up > 0 {
            turn(&row.name).map_err(MeasureError::Stopped)?;
            let mut left = row.warm_up;
            while left > 0 {
                let now = left.min(MOST_LAPS);
                row.program(now)?;
                left -= now;
            }
        }
    }
    let kinds: Vec<(Recipe, Stand)> = rows
        .iter()
        .map(|row| (row.rig.kind(), row.base()))
        .collect();
    for _ in 0..plan.bursts {
        for (row, sample) in rows.iter_mut().zip(&mut samples) {
            turn(&row.name).map_err(MeasureError::Stopped)?;
            let base = row.rig.run_stand(row.base(), plan.laps)?;
            sample.base.extend(base.laps);
            sample.program.extend(row.program(plan.laps)?);
        }
    }
    share_bases(&kinds, &mut samples);
    Ok(samples)
}

/// Rows whose packets are prepared by the same instructions have the base in common: the more laps, the surer the shortest.
fn share_bases(kinds: &[(Recipe, Stand)], samples: &mut [Sample]) {
    let mut bases: Vec<((Recipe, Stand), Series)> = Vec::new();
    for (kind, sample) in kinds.iter().zip(&*samples) {
        match bases.iter_mut().find(|(known, _)| known == kind) {
            Some((_, base)) => base.append(&sample.base),
            None => bases.push((*kind, sample.base.clone())),
        }
    }
    for (kind, sample) in kinds.iter().zip(samples) {
        if let Some((_, base)) = bases.iter().find(|(known, _)| known == kind) {
            sample.base = base.clone();
        }
    }
}

/// One sample of those of the same name.
#[must_use]
pub fn join(samples: Vec<Sample>) -> Vec<Sample> {
    let mut joined: Vec<Sample> = Vec::new();
    for sample in samples {
        match joined.iter_mut().find(|known| known.name == sample.name) {
            Some(known) => {
                known.base.append(&sample.base);
                known.program.append(&sample.program);
            }
            None => joined.push(sample),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, base: f64, program: f64) -> Sample {
        Sample {
            name: name.into(),
            base: [base].into_iter().collect(),
            program: [program].into_iter().collect(),
        }
    }

    #[test]
    fn bases_of_one_kind_are_shared() {
        let kind = |ipv6, mask| Recipe {
            frame: [0; crate::dataplane::rig::FRAME_WORDS],
            ipv6,
            flow_mask: mask,
            vip_mask: 0,
            port_mask: 0,
        };
        let kinds = [
            (kind(false, 0), Stand::Transmit),
            (kind(false, 1), Stand::Transmit),
            (kind(false, 0), Stand::Transmit),
            (kind(false, 0), Stand::Pass),
        ];
        let mut samples = [
            sample("a", 10.0, 20.0),
            sample("b", 9.0, 20.0),
            sample("c", 8.0, 20.0),
            sample("d", 7.0, 20.0),
        ];
        share_bases(&kinds, &mut samples);
        let least: Vec<Option<f64>> = samples.iter().map(|s| s.base.min()).collect();
        assert_eq!(least, [Some(8.0), Some(9.0), Some(8.0), Some(7.0)]);
        assert_eq!(samples[0].base.len(), 2);
    }

    #[test]
    fn rows_of_one_name_are_one() {
        let joined = join(vec![
            sample("floor", 10.0, 14.0),
            sample("a", 10.0, 20.0),
            sample("floor", 11.0, 13.0),
        ]);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].program.min(), Some(13.0));
        assert_eq!(joined[0].net().map(|net| net.min), Some(3.0));
    }
}
