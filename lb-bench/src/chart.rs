//! The results as a picture.

use anyhow::{Result, anyhow};
use lb_userspace::bench::{
    machine::Machine,
    results::{Outcome, Unit},
};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

const WIDTH: u32 = 860;
const BAR: i32 = 16;
const STEP: i32 = 26;
/// Where the bars begin.
const LEFT: i32 = 250;
const RIGHT: i32 = 90;
const TOP: i32 = 60;
const BOTTOM: i32 = 30;
const OWN: RGBColor = RGBColor(38, 110, 180);
const PEER: RGBColor = RGBColor(150, 150, 150);
const TARGET: RGBColor = RGBColor(200, 60, 40);
/// The rows that are not xdp-lb's begin so.
const OF_OTHERS: [&str; 5] = [
    crate::rows::FLOOR,
    crate::vm::FLOOR,
    "vm_ipvs",
    "vm_nftables",
    "vm_bridge",
];

/// One part of the picture: bars of one kind, with their title.
struct Part<'a> {
    title: &'static str,
    subtitle: String,
    rows: Vec<&'a Outcome>,
    /// The floor's own.
    floor: Option<f64>,
    /// Where the bars begin.
    least: f64,
    /// Digits behind the point.
    digits: usize,
}

impl<'a> Part<'a> {
    /// The rows with a time in nanoseconds per packet.
    fn data_path(results: &'a [Outcome], machine: &Machine) -> Self {
        Self {
            title: "Nanoseconds per packet, the program's own (minimum; logarithmic; red: at most)",
            subtitle: machine.line(),
            rows: with_unit(results, Unit::Floor),
            floor: minimum(results, crate::rows::FLOOR),
            least: 0.5,
            digits: 1,
        }
    }

    /// The rows of the virtual machine, if there are any.
    fn virtual_machine(results: &'a [Outcome], machine: &Machine) -> Option<Self> {
        Some(Self {
            title: "Instructions per frame in a virtual machine, with generator and sink (logarithmic; no times)",
            subtitle: machine.vm.as_ref()?.line(),
            rows: with_unit(results, Unit::Instructions),
            floor: minimum(results, crate::vm::FLOOR),
            least: 100.0,
            digits: 0,
        })
    }

    fn height(&self) -> i32 {
        TOP + BOTTOM + STEP * i32::try_from(self.rows.len()).unwrap_or(0)
    }

    /// The target of a row in nanoseconds.
    fn target(&self, row: &Outcome) -> Option<f64> {
        Some(row.target? * self.floor?)
    }
}

fn with_unit(results: &[Outcome], unit: Unit) -> Vec<&Outcome> {
    let rows = results.iter();
    rows.filter(|row| row.unit == unit && row.min_ns.is_some())
        .collect()
}

fn minimum(results: &[Outcome], name: &str) -> Option<f64> {
    results.iter().find(|row| row.name == name)?.min_ns
}

/// The rows of the data path, and those of the virtual machine below, as an SVG document.
pub(crate) fn svg(results: &[Outcome], machine: &Machine) -> Result<String> {
    let mut parts = vec![Part::data_path(results, machine)];
    parts.extend(Part::virtual_machine(results, machine));
    let mut document = String::new();
    let height: i32 = parts.iter().map(Part::height).sum();
    {
        let size = (WIDTH, height.unsigned_abs());
        let area = SVGBackend::with_string(&mut document, size).into_drawing_area();
        draw(&area, &parts).map_err(|error| anyhow!("drawing the chart: {error}"))?;
    }
    Ok(document)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(area: &Area<'_>, parts: &[Part<'_>]) -> Drawn {
    area.fill(&WHITE)?;
    let mut top = 0;
    for part in parts {
        draw_part(area, part, top)?;
        top += part.height();
    }
    area.present()?;
    Ok(())
}

fn draw_part(area: &Area<'_>, part: &Part<'_>, top: i32) -> Drawn {
    let words = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(part.title, (12, top + 12), words(17)))?;
    area.draw(&Text::new(part.subtitle.clone(), (12, top + 34), words(11)))?;
    let most = part
        .rows
        .iter()
        .flat_map(|row| [row.min_ns, part.target(row)])
        .flatten()
        .fold(20.0 * part.least, f64::max);
    let room = f64::from(i32::try_from(WIDTH)? - LEFT - RIGHT);
    let least = part.least;
    let place =
        |value: f64| LEFT + ((value.max(least) / least).ln() / (most / least).ln() * room) as i32;
    let tops = (top + TOP..).step_by(STEP.unsigned_abs() as usize);
    for (row, top) in part.rows.iter().zip(tops) {
        let right = Pos::new(HPos::Right, VPos::Center);
        let left = Pos::new(HPos::Left, VPos::Center);
        let middle = top + BAR / 2;
        let value = row.min_ns.unwrap_or_default();
        let colour = if OF_OTHERS.iter().any(|name| row.name.starts_with(name)) {
            PEER
        } else {
            OWN
        };
        area.draw(&Text::new(
            row.name.clone(),
            (LEFT - 8, middle),
            words(13).pos(right),
        ))?;
        area.draw(&Rectangle::new(
            [(LEFT, top), (place(value), top + BAR)],
            colour.filled(),
        ))?;
        let target = part.target(row).map(place);
        if let Some(target) = target {
            let line = [(target, top - 3), (target, top + BAR + 3)];
            area.draw(&PathElement::new(line, TARGET.stroke_width(2)))?;
        }
        let end = place(value).max(target.unwrap_or(0)) + 6;
        area.draw(&Text::new(
            format!("{value:.*}", part.digits),
            (end, middle),
            words(12).pos(left),
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_userspace::bench::{figures::Net, machine::VirtualMachine};

    fn rows() -> Vec<Outcome> {
        let net = |min| Net { min, median: min };
        vec![
            Outcome::net("floor", net(2.0), net(2.0), None),
            Outcome::net("tcp4_one_flow", net(9.0), net(2.0), Some(3.0)),
            Outcome::time("load", 1e9, 1e9, None),
        ]
    }

    fn machine() -> Machine {
        Machine {
            processor: "a processor".into(),
            ..Machine::default()
        }
    }

    #[test]
    fn every_row_is_drawn() {
        let picture = svg(&rows(), &machine()).expect("drawn");
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("tcp4_one_flow") && picture.contains("a processor"));
        assert!(!picture.contains("load"), "it is no time per packet");
        assert!(!picture.contains("virtual machine"), "there was none");
        // The background, the bar of each, and one line for the target.
        assert_eq!(picture.matches("<rect").count(), 3);
        assert_eq!(picture.matches("<polyline").count(), 1);
    }

    #[test]
    fn what_a_virtual_machine_counted_is_a_part_of_its_own() {
        let mut rows = rows();
        rows.push(Outcome {
            unit: Unit::Instructions,
            ..Outcome::time("vm_ipvs_dr", 6394.4, 6397.0, None)
        });
        let machine = Machine {
            vm: Some(VirtualMachine {
                kernel: "6.1.0".into(),
                ..VirtualMachine::default()
            }),
            ..machine()
        };
        let picture = svg(&rows, &machine).expect("drawn");
        assert_eq!(picture.matches("<rect").count(), 4);
        for part in [
            "Instructions per frame",
            "vm_ipvs_dr",
            "\n6394\n",
            "Linux 6.1.0",
        ] {
            assert!(picture.contains(part), "no {part} in {picture}");
        }
        // 60 + 30 around two rows of 26 each, and around one.
        assert!(picture.contains("height=\"258\""), "{picture}");
    }
}
