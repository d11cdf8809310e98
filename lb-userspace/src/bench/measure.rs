//! Bursts of all programs, taking turns: whatever the machine does meanwhile, it does to all of them.

use lb_common::verdict::Action;

use super::figures::{Net, Series};
use crate::dataplane::{
    DataplaneError,
    rig::{LAP, Rig, Stand, Target},
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
        laps: 31,
        bursts: 31,
    };
    /// Enough to see that everything works; the figures mean little.
    pub const QUICK: Self = Self { laps: 1, bursts: 3 };
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
    /// What it must do with every packet. Its time is told from that of a program that does nothing else.
    pub action: Action,
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
    fn base(&self) -> Stand {
        match self.action {
            Action::Pass => Stand::Pass,
            _ => Stand::Transmit,
        }
    }

    /// One burst: nanoseconds per packet of each lap.
    fn program(&mut self, laps: u32) -> Result<Vec<f64>, MeasureError> {
        let burst = match &self.contender {
            Contender::Stand(stand) => self.rig.run_stand(*stand, laps)?,
            Contender::Program(target) => self.rig.run(target, laps)?,
        };
        if burst.action != self.action {
            return Err(MeasureError::Action {
                row: self.name.clone(),
                found: burst.action,
                expected: self.action,
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
                let now = left.min(plan.laps.max(1));
                row.program(now)?;
                left -= now;
            }
        }
    }
    for _ in 0..plan.bursts {
        for (row, sample) in rows.iter_mut().zip(&mut samples) {
            turn(&row.name).map_err(MeasureError::Stopped)?;
            let base = row.rig.run_stand(row.base(), plan.laps)?;
            sample.base.extend(base.laps);
            sample.program.extend(row.program(plan.laps)?);
        }
    }
    Ok(samples)
}
