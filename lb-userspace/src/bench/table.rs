//! Rows for people.

use comfy_table::{Cell, CellAlignment, Color, Row, Table, presets};

use super::results::{Outcome, Unit};

/// The rows of `results`, and how they have changed since `before`, if there is such a report.
#[must_use]
pub fn table(results: &[Outcome], before: Option<&[Outcome]>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let mut heads = vec!["NAME", "MINIMUM", "MEDIAN", "RATIO", "TARGET", "MET"];
    if before.is_some() {
        heads.push("CHANGE");
    }
    let head = |(place, title): (usize, &&str)| {
        let cell = Cell::new(title).fg(Color::DarkGrey);
        if place == 0 { cell } else { right(cell) }
    };
    table.set_header(Row::from(heads.iter().enumerate().map(head)));
    for result in results {
        let mut cells = vec![Cell::new(&result.name)];
        cells.extend(values(result).map(|text| right(Cell::new(text))));
        cells.push(right(match result.met() {
            None => Cell::new(""),
            Some(true) => Cell::new("yes").fg(Color::Green),
            Some(false) => Cell::new("no").fg(Color::Red),
        }));
        if let Some(before) = before {
            let old = before.iter().find(|old| old.name == result.name);
            cells.push(right(Cell::new(old.map_or_else(
                || "new".to_owned(),
                |old| percent(result.change(old)),
            ))));
        }
        table.add_row(Row::from(cells));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    let mut text = lines.join("\n");
    for old in before.unwrap_or_default() {
        if results.iter().all(|result| result.name != old.name) {
            text.push_str(&format!("\n {} is not measured any more", old.name));
        }
    }
    text
}

fn right(cell: Cell) -> Cell {
    cell.set_alignment(CellAlignment::Right)
}

/// Minimum, median, ratio, target.
fn values(result: &Outcome) -> [String; 4] {
    let (minimum, median) = match result.unit {
        Unit::Bytes | Unit::Percent | Unit::PerSecond => {
            (result.value.map(|value| in_unit(value, result.unit)), None)
        }
        Unit::Instructions => {
            let count = |value| in_unit(value, result.unit);
            (result.value.map(count), result.median_ns.map(count))
        }
        _ => (result.min_ns.map(time), result.median_ns.map(time)),
    };
    let ratio = result.ratio.map(|ratio| match result.unit {
        Unit::RateOfFloor => format!("{:.0} %", ratio * 100.0),
        _ => format!("{ratio:.1} x"),
    });
    let target = result.target.map(|target| match result.unit {
        Unit::RateOfFloor => format!("\u{2265} {:.0} %", target * 100.0),
        Unit::Floor => format!("\u{2264} {target} x"),
        unit => format!("\u{2264} {}", in_unit(target, unit)),
    });
    [minimum, median, ratio, target].map(Option::unwrap_or_default)
}

fn in_unit(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => indicatif::HumanBytes(value.max(0.0) as u64).to_string(),
        Unit::Percent => format!("{value:.1} %"),
        Unit::PerSecond => format!("{:.2} M/s", value / 1e6),
        Unit::Instructions => format!("{value:.0} instr"),
        Unit::Floor | Unit::RateOfFloor | Unit::Nanoseconds => time(value),
    }
}

/// A time with three digits or so.
fn time(ns: f64) -> String {
    match ns.abs() {
        ns_ if ns_ < 1e3 => format!("{ns:.1} ns"),
        ns_ if ns_ < 1e6 => format!("{:.1} \u{b5}s", ns / 1e3),
        ns_ if ns_ < 1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

fn percent(change: Option<f64>) -> String {
    change.map_or_else(String::new, |change| format!("{:+.0} %", change * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::Net;

    fn net(min: f64) -> Net {
        Net {
            min,
            median: min + 1.0,
        }
    }

    #[test]
    fn rows_with_their_targets() {
        let results = [
            Outcome::net("tcp4_one_flow", net(6.0), net(2.0), Some(3.0)),
            Outcome::time("load", 2.5e9, 2.6e9, Some(3e9)),
            Outcome::amount("rss", Unit::Bytes, 64.0 * 1024.0 * 1024.0, Some(1.0)),
            Outcome {
                ratio: Some(0.95),
                ..Outcome::amount("live", Unit::RateOfFloor, 0.95, Some(0.9))
            },
        ];
        let expected = " NAME            MINIMUM   MEDIAN  RATIO   TARGET  MET\n \
                        tcp4_one_flow    6.0 ns   7.0 ns  3.0 x    \u{2264} 3 x  yes\n \
                        load             2.50 s   2.60 s         \u{2264} 3.00 s  yes\n \
                        rss            64.00 MiB                   \u{2264} 1 B   no\n \
                        live                               95 %   \u{2265} 90 %  yes";
        let squeezed = |text: &str| -> Vec<String> {
            text.lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect()
        };
        assert_eq!(squeezed(&table(&results, None, false)), squeezed(expected));
    }

    #[test]
    fn instructions_are_no_nanoseconds() {
        let row = Outcome {
            unit: Unit::Instructions,
            median_ns: Some(1240.4),
            ratio: Some(2.5),
            ..Outcome::time("vm_bridge", 1234.4, 1.0, None)
        };
        let text = table(&[row], None, false);
        let line = text.lines().nth(1).expect("a row");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words,
            ["vm_bridge", "1234", "instr", "1240", "instr", "2.5", "x"]
        );
    }

    #[test]
    fn what_changed() {
        let old = [
            Outcome::time("a", 10.0, 10.0, None),
            Outcome::time("gone", 1.0, 1.0, None),
        ];
        let new = [
            Outcome::time("a", 9.0, 9.0, None),
            Outcome::time("b", 1.0, 1.0, None),
        ];
        let text = table(&new, Some(&old), false);
        assert!(text.contains("-10 %"), "{text}");
        assert!(
            text.lines()
                .any(|line| line.contains(" b ") && line.ends_with("new")),
            "{text}"
        );
        assert!(text.ends_with("gone is not measured any more"), "{text}");
    }
}
