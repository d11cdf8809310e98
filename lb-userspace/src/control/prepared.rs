//! Tables that are needed at once if a backend fails that has begun to: built while there is time.
//!
//! A table for a thousand backends takes a large part of a millisecond; one for a few takes a tenth of one. Between the first
//! probe that fails and the one that decides, mostly a second or more passes in which nothing else is to be done. What is
//! prepared is the very table that would be built then, or it is not used.

use std::collections::VecDeque;

use super::{
    actual::{Actual, ActualService, BuiltFor},
    failure::without,
    reconcile::{runs, runs_without},
};
use crate::maglev::Run;

/// So many are kept, with some fifty bytes for each backend. Where more backends have trouble at once, their
/// tables are built when they fail.
const KEPT: usize = 8;

/// Tables without one backend each.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Backends that may fail soon.
    suspects: VecDeque<u16>,
    /// The newest last.
    tables: VecDeque<Table>,
    built: u64,
}

#[derive(Debug)]
struct Table {
    bits: u8,
    built_for: BuiltFor,
    runs: Vec<Run>,
}

impl Prepared {
    /// A probe of this backend has failed, but its service still counts on it.
    pub fn suspect(&mut self, actual: &Actual, number: u16) {
        if self.without(actual, number).is_some() && !self.suspects.contains(&number) {
            self.suspects.push_back(number);
            if self.suspects.len() > KEPT {
                self.suspects.pop_front();
            }
        }
    }

    /// Whether there is anything to prepare.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Prepares one table.
    pub fn prepare(&mut self, actual: &Actual) {
        let suspect = self.suspects.pop_front();
        let Some((bits, built_for)) = suspect.and_then(|number| self.without(actual, number))
        else {
            return;
        };
        let runs = runs(&built_for, bits);
        self.built += 1;
        self.tables.push_back(Table {
            bits,
            built_for,
            runs,
        });
        if self.tables.len() > KEPT {
            self.tables.pop_front();
        }
    }

    /// The table that a service has when it is built for these, as its runs: prepared, or built now; from the one that it has, if
    /// nobody was missing in that.
    pub(super) fn runs(&mut self, service: &ActualService, built_for: &BuiltFor) -> Vec<Run> {
        let bits = service.bits;
        let same = |table: &Table| table.bits == bits && table.built_for == *built_for;
        match self.tables.iter().position(same) {
            Some(place) => self
                .tables
                .remove(place)
                .map_or_else(Vec::new, |table| table.runs),
            None => {
                self.built += 1;
                runs_without(service, built_for).unwrap_or_else(|| runs(built_for, bits))
            }
        }
    }

    /// How many tables have been built so far.
    #[must_use]
    pub const fn built(&self) -> u64 {
        self.built
    }

    /// What the table without this backend is built for, unless it is prepared already or would be empty.
    fn without(&self, actual: &Actual, number: u16) -> Option<(u8, BuiltFor)> {
        let backend = actual.backends().get(&number)?;
        let service = actual.services().get(&backend.service)?;
        let all = service.built_for.as_ref()?;
        let mut active = all.iter().filter(|share| share.weight > 0);
        if !active.clone().any(|share| share.number == number) || active.nth(1).is_none() {
            return None;
        }
        let left = without(all, |failed| failed == number);
        let known = |table: &Table| table.bits == service.bits && table.built_for == left;
        (!self.tables.iter().any(known)).then_some((service.bits, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        failure::{Failed, fail},
        samples::Bench,
    };

    fn down(number: u16) -> Failed {
        Failed {
            number,
            reason: "connection refused".into(),
            healthy: false,
            without_mac: false,
        }
    }

    #[test]
    fn a_failure_that_was_foreseen_builds_no_table() {
        let bench = Bench::of_one_large(300);
        let number = bench.number("web", "b7");
        let mut prepared = Prepared::default();
        let unprepared = fail(bench.actual(), 0, &[down(number)], 1, &mut prepared).unwrap();
        assert_eq!(prepared.built(), 1);

        prepared.suspect(bench.actual(), number);
        assert!(prepared.is_wanted());
        prepared.prepare(bench.actual());
        assert_eq!((prepared.is_wanted(), prepared.built()), (false, 2));
        // It is suspected with each probe that fails.
        prepared.suspect(bench.actual(), number);
        assert!(!prepared.is_wanted());

        let ops = fail(bench.actual(), 0, &[down(number)], 1, &mut prepared).unwrap();
        assert_eq!(prepared.built(), 2);
        assert_eq!(ops, unprepared);
    }

    #[test]
    fn what_was_prepared_before_a_change_is_not_used_after_it() {
        let mut bench = Bench::of_one_large(300);
        let [first, second] = ["b7", "b8"].map(|name| bench.number("web", name));
        let mut prepared = Prepared::default();
        prepared.suspect(bench.actual(), second);
        prepared.prepare(bench.actual());
        let ops = fail(bench.actual(), 0, &[down(first)], 1, &mut prepared).unwrap();
        bench.execute(&ops);
        let built = prepared.built();
        let ops = fail(bench.actual(), 0, &[down(second)], 1, &mut prepared).unwrap();
        assert_eq!(prepared.built(), built + 1);
        bench.execute(&ops);
        bench.check();
        assert_eq!(bench.actual().named(second).current, 0);
    }

    #[test]
    fn little_is_kept_and_nothing_of_services_that_would_be_empty() {
        let alone = Bench::of_one_large(1);
        let mut prepared = Prepared::default();
        prepared.suspect(alone.actual(), alone.number("web", "b0"));
        assert!(!prepared.is_wanted());
        let two = Bench::of_one_large(2);
        prepared.suspect(two.actual(), two.number("web", "b0"));
        assert!(prepared.is_wanted());

        let large = Bench::of_one_large(300);
        for n in 0..100 {
            prepared.suspect(large.actual(), large.number("web", &format!("b{n}")));
            assert!(prepared.suspects.len() <= KEPT);
            if n % 3 == 0 {
                prepared.prepare(large.actual());
            }
            assert!(prepared.tables.len() <= KEPT);
        }
        prepared.suspect(large.actual(), 2000);
    }
}
