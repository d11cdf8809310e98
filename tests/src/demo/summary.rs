//! What the demo has shown, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::ledger::Ledger;
use super::scenario::{Failure, Findings};

/// How many of the unexplained failures are shown.
const SHOWN_FAILURES: usize = 5;

/// The object of `--json`; all of it is measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    /// Requests sent.
    requests: usize,
    /// Requests that failed although no planted failure was waiting to be seen.
    failed: usize,
    /// Requests that failed while a planted failure was not yet seen.
    failed_in_detection: usize,
    /// Answered requests of each backend.
    per_backend: BTreeMap<String, u64>,
    /// Downloads through the draining backend that did not end whole.
    broken_by_drain: usize,
    /// The longer of the two failovers: from the planting of a failure until the last request that it broke was begun.
    failover_ms: u64,
    /// Replies of the VIP that crossed the director.
    replies_through_director: u64,
}

impl Summary {
    pub(super) fn new(ledger: &Ledger, findings: &Findings, replies_through_director: u64) -> Self {
        let failovers =
            [&findings.stopped, &findings.without_vip].map(|failure| failover(ledger, failure));
        Self {
            requests: ledger.requests(),
            failed: ledger.failed().count(),
            failed_in_detection: ledger.failed_in_detection(),
            per_backend: ledger.per_backend().clone(),
            broken_by_drain: findings.drain.broken.len(),
            failover_ms: failovers
                .into_iter()
                .flatten()
                .max()
                .unwrap_or_default()
                .as_millis()
                .try_into()
                .unwrap_or(u64::MAX),
            replies_through_director,
        }
    }

    /// What is not as it should be; empty when all is well.
    pub(super) fn problems(&self, findings: &Findings) -> Vec<String> {
        let mut problems = Vec::new();
        let mut expect = |well: bool, problem: String| {
            if !well {
                problems.push(problem);
            }
        };
        expect(
            self.failed == 0,
            format!("{} requests failed without a planted failure", self.failed),
        );
        expect(
            self.broken_by_drain == 0,
            format!("the drain broke {} downloads", self.broken_by_drain),
        );
        expect(
            self.replies_through_director == 0,
            format!(
                "{} replies crossed the director",
                self.replies_through_director
            ),
        );
        for (name, requests) in &self.per_backend {
            expect(*requests > 0, format!("{name} got no request"));
        }
        let new_flows = findings.drain.new_flows;
        expect(
            new_flows == 0,
            format!("{new_flows} new flows reached the drained backend"),
        );
        expect(
            findings.vip_named,
            format!(
                "the reason of the backend without the VIP does not say so: {}",
                findings.without_vip.reason
            ),
        );
        problems
    }

    /// The summary for people.
    pub(super) fn text(&self, ledger: &Ledger, findings: &Findings) -> String {
        let mut text = String::new();
        self.write(&mut text, ledger, findings)
            .expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String, ledger: &Ledger, findings: &Findings) -> std::fmt::Result {
        let Findings {
            stopped,
            drain,
            without_vip,
            back_home,
            ..
        } = findings;
        let shares: Vec<_> = self
            .per_backend
            .iter()
            .map(|(name, requests)| format!("{name} {requests}"))
            .collect();
        writeln!(text, "\nSummary")?;
        writeln!(
            text,
            "  requests          {} ({})",
            self.requests,
            shares.join(", ")
        )?;
        writeln!(
            text,
            "  failed            {}, and {} while a planted failure was not yet seen",
            self.failed, self.failed_in_detection
        )?;
        for record in ledger.failed().take(SHOWN_FAILURES) {
            writeln!(
                text,
                "                    {}: {}",
                record.source,
                record.error.as_deref().unwrap_or("no answer")
            )?;
        }
        for (what, failure) in [("server stopped", stopped), ("VIP lost", without_vip)] {
            let lost = match failover(ledger, failure) {
                Some(after) => format!(
                    "the last request it broke was sent after {} ms",
                    after.as_millis()
                ),
                None => "no request was broken".to_owned(),
            };
            writeln!(
                text,
                "  {what:<17} {} down after {} ms ({}); {lost}; {} of {} other clients stayed",
                failure.backend,
                failure.seen_after.as_millis(),
                failure.reason,
                failure.others.stayed,
                failure.others.of
            )?;
        }
        writeln!(
            text,
            "  drain             {} of {} downloads ended whole, {} new flows reached it, empty after {:.1} s; {} of {} other clients stayed",
            drain.downloads - drain.broken.len().min(drain.downloads),
            drain.downloads,
            drain.new_flows,
            drain.took.as_secs_f64(),
            drain.others.stayed,
            drain.others.of
        )?;
        writeln!(
            text,
            "  after the return  {} of {} clients are where they began",
            back_home.stayed, back_home.of
        )?;
        writeln!(
            text,
            "  direct return     {} replies crossed the director",
            self.replies_through_director
        )
    }
}

/// From the planting until the last request that it broke was begun.
fn failover(ledger: &Ledger, failure: &Failure) -> Option<Duration> {
    ledger.last_lost(failure.planted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::ledger::Stayed;
    use crate::demo::scenario::Drain;
    use std::time::Instant;

    fn failure(backend: &'static str, reason: &str) -> Failure {
        Failure {
            backend,
            planted: Instant::now(),
            seen_after: Duration::from_millis(600),
            reason: reason.to_owned(),
            others: Stayed { stayed: 10, of: 10 },
        }
    }

    fn findings() -> Findings {
        Findings {
            stopped: failure("b2", "connection refused"),
            drain: Drain {
                downloads: 3,
                broken: Vec::new(),
                new_flows: 0,
                took: Duration::from_secs(5),
                others: Stayed { stayed: 10, of: 10 },
            },
            without_vip: failure("b4", "VIP not served"),
            vip_named: true,
            back_home: Stayed { stayed: 20, of: 20 },
        }
    }

    fn good() -> Summary {
        Summary {
            requests: 12,
            failed: 0,
            failed_in_detection: 2,
            per_backend: BTreeMap::from([("b1".to_owned(), 6), ("b2".to_owned(), 4)]),
            broken_by_drain: 0,
            failover_ms: 600,
            replies_through_director: 0,
        }
    }

    #[test]
    fn the_object_has_the_documented_keys() {
        assert_eq!(
            serde_json::to_string(&good()).unwrap(),
            r#"{"requests":12,"failed":0,"failed_in_detection":2,"per_backend":{"b1":6,"b2":4},"broken_by_drain":0,"failover_ms":600,"replies_through_director":0}"#
        );
    }

    #[test]
    fn every_bad_number_is_a_problem() {
        assert_eq!(good().problems(&findings()), Vec::<String>::new());
        let one_problem = |summary: Summary, findings: Findings, word: &str| {
            let problems = summary.problems(&findings);
            assert!(
                matches!(&problems[..], [problem] if problem.contains(word)),
                "{word}: {problems:?}"
            );
        };
        one_problem(
            Summary {
                failed: 1,
                ..good()
            },
            findings(),
            "without a planted failure",
        );
        one_problem(
            Summary {
                broken_by_drain: 1,
                ..good()
            },
            findings(),
            "broke",
        );
        one_problem(
            Summary {
                replies_through_director: 1,
                ..good()
            },
            findings(),
            "crossed",
        );
        let per_backend = BTreeMap::from([("b1".to_owned(), 0)]);
        one_problem(
            Summary {
                per_backend,
                ..good()
            },
            findings(),
            "b1 got no request",
        );
        let drain = Drain {
            new_flows: 1,
            ..findings().drain
        };
        one_problem(
            good(),
            Findings {
                drain,
                ..findings()
            },
            "new flows",
        );
        one_problem(
            good(),
            Findings {
                vip_named: false,
                ..findings()
            },
            "VIP",
        );
    }
}
