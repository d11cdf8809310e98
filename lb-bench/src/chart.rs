//! The results as a picture.

use anyhow::{Result, anyhow};
use lb_userspace::bench::results::{Outcome, Unit};
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

/// The rows with a time in nanoseconds per packet, as an SVG document.
pub(crate) fn svg(results: &[Outcome], subtitle: &str) -> Result<String> {
    let rows: Vec<&Outcome> = results
        .iter()
        .filter(|row| row.unit == Unit::Floor && row.min_ns.is_some())
        .collect();
    let floor = rows
        .iter()
        .find(|row| row.name == crate::rows::FLOOR)
        .and_then(|row| row.min_ns);
    let mut document = String::new();
    let height = TOP + BOTTOM + STEP * i32::try_from(rows.len()).unwrap_or(0);
    {
        let size = (WIDTH, height.unsigned_abs());
        let area = SVGBackend::with_string(&mut document, size).into_drawing_area();
        draw(&area, &rows, floor, subtitle)
            .map_err(|error| anyhow!("drawing the chart: {error}"))?;
    }
    Ok(document)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(
    area: &Area<'_>,
    rows: &[&Outcome],
    floor: Option<f64>,
    subtitle: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let words = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let title = "Nanoseconds per packet, the program's own (minimum; logarithmic; red: at most)";
    area.draw(&Text::new(title, (12, 12), words(17)))?;
    area.draw(&Text::new(subtitle.to_owned(), (12, 34), words(11)))?;
    let most = rows
        .iter()
        .flat_map(|row| [row.min_ns, target_ns(row, floor)])
        .flatten()
        .fold(10.0, f64::max);
    let room = f64::from(i32::try_from(WIDTH)? - LEFT - RIGHT);
    // Half a nanosecond is where the bars begin.
    let place = |ns: f64| LEFT + ((ns.max(0.5) / 0.5).ln() / (most / 0.5).ln() * room) as i32;
    for (row, top) in rows
        .iter()
        .zip((TOP..).step_by(STEP.unsigned_abs() as usize))
    {
        let right = Pos::new(HPos::Right, VPos::Center);
        let left = Pos::new(HPos::Left, VPos::Center);
        let middle = top + BAR / 2;
        let ns = row.min_ns.unwrap_or_default();
        let colour = if row.name.starts_with(crate::rows::FLOOR) {
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
            [(LEFT, top), (place(ns), top + BAR)],
            colour.filled(),
        ))?;
        if let Some(target) = target_ns(row, floor) {
            let line = [(place(target), top - 3), (place(target), top + BAR + 3)];
            area.draw(&PathElement::new(line, TARGET.stroke_width(2)))?;
        }
        let end = place(ns).max(target_ns(row, floor).map_or(0, place)) + 6;
        area.draw(&Text::new(
            format!("{ns:.1}"),
            (end, middle),
            words(12).pos(left),
        ))?;
    }
    area.present()?;
    Ok(())
}

/// The target of a row in nanoseconds.
fn target_ns(row: &Outcome, floor: Option<f64>) -> Option<f64> {
    Some(row.target? * floor?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_userspace::bench::figures::Net;

    #[test]
    fn every_row_is_drawn() {
        let net = |min| Net { min, median: min };
        let rows = [
            Outcome::net("floor", net(2.0), net(2.0), None),
            Outcome::net("tcp4_one_flow", net(9.0), net(2.0), Some(3.0)),
            Outcome::time("load", 1e9, 1e9, None),
        ];
        let picture = svg(&rows, "a machine").expect("drawn");
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("tcp4_one_flow") && picture.contains("a machine"));
        assert!(!picture.contains("load"), "it is no time per packet");
        // The background, the bar of each, and one line for the target.
        assert_eq!(picture.matches("<rect").count(), 3);
        assert_eq!(picture.matches("<polyline").count(), 1);
    }
}
