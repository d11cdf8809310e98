//! What was measured, as `bench.json` has it.

use serde::{Deserialize, Serialize};

use super::{figures::Net, machine::Machine};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where and how it was measured.
    pub machine: Machine,
    /// The rows.
    pub results: Vec<Outcome>,
}

/// What a row's target is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Times of the floor's minimum; the target is the most.
    Floor,
    /// Share of the floor's rate; the target is the least.
    RateOfFloor,
    /// Nanoseconds; the target is the most.
    Nanoseconds,
    /// Bytes; the target is the most.
    Bytes,
    /// Percent of one processor; the target is the most.
    Percent,
    /// Frames in a second; there is no target.
    PerSecond,
    /// Instructions of one frame in a virtual machine whose clock counts them: `min_ns` and `median_ns` are of that clock, and
    /// compare with no other row's; there is no target.
    Instructions,
}

/// One row. A time is that of one packet, but for the controller's rows, where it is that of the whole work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What `value` and `target` are.
    pub unit: Unit,
    /// What is compared with the target; `null` where it could not be told.
    pub value: Option<f64>,
    /// The shortest, in nanoseconds; `null` where it is no time.
    pub min_ns: Option<f64>,
    /// The median, in nanoseconds; `null` where it is no time.
    pub median_ns: Option<f64>,
    /// Times of the floor's minimum, or share of its rate; `null` where the row is not compared with it.
    pub ratio: Option<f64>,
    /// What it should be at most, or at least; `null` for a row that is only told.
    pub target: Option<f64>,
}

impl Outcome {
    /// A program's own time, compared with the floor's.
    #[must_use]
    pub fn net(name: &str, net: Net, floor: Net, target: Option<f64>) -> Self {
        let ratio = net.ratio(&floor);
        Self {
            name: name.into(),
            unit: Unit::Floor,
            value: ratio,
            min_ns: Some(net.min),
            median_ns: Some(net.median),
            ratio,
            target,
        }
    }

    /// A time of its own; `target` in nanoseconds.
    #[must_use]
    pub fn time(name: &str, min_ns: f64, median_ns: f64, target: Option<f64>) -> Self {
        Self {
            name: name.into(),
            unit: Unit::Nanoseconds,
            value: Some(min_ns),
            min_ns: Some(min_ns),
            median_ns: Some(median_ns),
            ratio: None,
            target,
        }
    }

    /// Something that is no time of its own.
    #[must_use]
    pub fn amount(name: &str, unit: Unit, value: f64, target: Option<f64>) -> Self {
        Self {
            name: name.into(),
            unit,
            value: Some(value),
            min_ns: None,
            median_ns: None,
            ratio: None,
            target,
        }
    }

    /// Whether the target is met; `None` where there is none.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let target = self.target?;
        Some(self.value.is_some_and(|value| match self.unit {
            Unit::RateOfFloor => value >= target,
            _ => value <= target,
        }))
    }

    /// How the value has changed since `before`, as a share of it: 0.1 is ten percent more. `None` where the two are not of
    /// the same kind, or there was nothing.
    #[must_use]
    pub fn change(&self, before: &Self) -> Option<f64> {
        let (new, old) = (self.value?, before.value?);
        (self.unit == before.unit && old > 0.0).then(|| new / old - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_and_at_least() {
        let net = |min| Net { min, median: 9.0 };
        let row = |target| Outcome::net("tcp", net(6.0), net(2.0), Some(target));
        assert_eq!(row(3.0).met(), Some(true));
        assert_eq!(row(2.9).met(), Some(false));
        let rate = |value| Outcome::amount("live", Unit::RateOfFloor, value, Some(0.9));
        assert_eq!(rate(0.95).met(), Some(true));
        assert_eq!(rate(0.85).met(), Some(false));
        assert_eq!(Outcome::time("a", 1.0, 1.0, None).met(), None);
        let unknown = Outcome::net("a", net(6.0), net(0.0), Some(3.0));
        assert_eq!(unknown.met(), Some(false), "what can't be told is not met");
    }

    #[test]
    fn changes_are_shares() {
        let row = |ns| Outcome::time("a", ns, ns, None);
        assert_eq!(row(15.0).change(&row(10.0)), Some(0.5));
        assert_eq!(row(5.0).change(&row(10.0)), Some(-0.5));
        assert_eq!(row(5.0).change(&row(0.0)), None);
        let other = Outcome::amount("a", Unit::Bytes, 5.0, None);
        assert_eq!(other.change(&row(5.0)), None);
    }

    #[test]
    fn the_shape_of_the_file() {
        let report = Report {
            machine: Machine::default(),
            results: vec![
                Outcome::time("load", 1.5, 2.0, Some(3.0)),
                Outcome::amount("rss", Unit::Bytes, 7.0, None),
            ],
        };
        let json = serde_json::to_value(&report).expect("serializes");
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value
                .as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect()
        };
        assert_eq!(keys(&json), ["machine", "results"]);
        for row in json["results"].as_array().expect("rows") {
            let keys = keys(row);
            for key in ["name", "min_ns", "median_ns", "ratio", "target"] {
                assert!(keys.iter().any(|k| k == key), "{key} in {row}");
            }
        }
        assert_eq!(json["results"][1]["min_ns"], serde_json::Value::Null);
        let back: Report = serde_json::from_value(json).expect("reads back");
        assert_eq!(back, report);
    }
}
