//! The live picture on a terminal, or plain lines elsewhere.

use std::time::{Duration, Instant};

use anyhow::Result;
use console::{Style, Term, measure_text_width, pad_str, style, truncate_str};

/// How often a line is printed where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);
/// How long the bar of a backend with all the traffic is, in characters.
const BAR: usize = 30;

/// One backend's line.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) reason: String,
    /// Answers per second.
    pub(super) rate: usize,
    /// Answers so far.
    pub(super) requests: u64,
}

/// One moment of the show.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) elapsed: Duration,
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) failed_in_detection: usize,
    pub(super) rows: Vec<Row>,
    /// Long downloads: who, and which part of the bytes has arrived (0 to 1).
    pub(super) downloads: Vec<(String, f64)>,
}

/// Where the show is shown.
#[derive(Debug)]
pub(super) struct Screen {
    /// Buffered: what belongs together appears at once, or the picture would flicker.
    term: Term,
    /// The lines of the picture that stand at the bottom of the terminal now.
    picture: Vec<String>,
    last_plain: Option<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            term: Term::buffered_stdout(),
            picture: Vec::new(),
            last_plain: None,
        }
    }

    /// Prints text above the picture, where it stays.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.term.clear_last_lines(self.picture.len())?;
        self.term.write_line(text)?;
        self.write_picture()
    }

    /// Prints what is beginning, with what to look at.
    pub(super) fn headline(&mut self, title: &str, text: &str) -> Result<()> {
        self.say(&format!("\n{}\n{text}", style(title).bold()))
    }

    /// Prints an event with its time.
    pub(super) fn event(&mut self, elapsed: Duration, text: &str) -> Result<()> {
        self.say(&format!("  {:5.1} s  {text}", elapsed.as_secs_f64()))
    }

    /// Shows the picture as it is now.
    pub(super) fn draw(&mut self, frame: &Frame) -> Result<()> {
        if self.term.is_term() {
            self.draw_live(frame)
        } else {
            self.draw_plain(frame)
        }
    }

    /// Takes the picture away; what was said stays.
    pub(super) fn erase(&mut self) -> Result<()> {
        self.term
            .clear_last_lines(std::mem::take(&mut self.picture).len())?;
        self.term.flush()?;
        Ok(())
    }

    fn write_picture(&mut self) -> Result<()> {
        for line in &self.picture {
            self.term.write_line(line)?;
        }
        self.term.flush()?;
        Ok(())
    }

    fn draw_live(&mut self, frame: &Frame) -> Result<()> {
        let total: usize = frame.rows.iter().map(|row| row.rate).sum();
        let mut lines = vec![String::new(), heading(frame, total)];
        lines.extend(frame.rows.iter().map(|row| backend_line(row, total)));
        lines.extend(frame.downloads.iter().map(|(who, part)| {
            format!(
                "  {} {:3.0} %  {who}",
                bar(*part, &Style::new().cyan()),
                part * 100.0
            )
        }));
        // A line that wraps would be two, and erased as one.
        let width = usize::from(self.term.size().1).saturating_sub(1);
        self.term.clear_last_lines(self.picture.len())?;
        self.picture = lines
            .iter()
            .map(|line| truncate_str(line, width, "…").into_owned())
            .collect();
        self.write_picture()
    }

    fn draw_plain(&mut self, frame: &Frame) -> Result<()> {
        if self
            .last_plain
            .is_some_and(|last| last.elapsed() < PLAIN_INTERVAL)
        {
            return Ok(());
        }
        self.last_plain = Some(Instant::now());
        let total: usize = frame.rows.iter().map(|row| row.rate).sum();
        let rows: Vec<_> = frame
            .rows
            .iter()
            .map(|row| format!("{} {} {}/s", row.name, row.state, row.rate))
            .collect();
        let downloads: Vec<_> = frame
            .downloads
            .iter()
            .map(|(who, part)| format!("  {who} {:.0} %", part * 100.0))
            .collect();
        self.term.write_line(&format!(
            "{}  {}{}",
            heading(frame, total),
            rows.join("  "),
            downloads.concat()
        ))?;
        self.term.flush()?;
        Ok(())
    }
}

fn heading(frame: &Frame, rate: usize) -> String {
    format!(
        "  {:5.1} s  {} requests, {rate}/s, {} failed ({} more while a planted failure was not yet seen)",
        frame.elapsed.as_secs_f64(),
        frame.requests,
        frame.failed,
        frame.failed_in_detection
    )
}

fn backend_line(row: &Row, total: usize) -> String {
    let colour = match row.state.as_str() {
        "up" => Style::new().green(),
        "draining" | "drained" => Style::new().yellow(),
        _ => Style::new().red(),
    };
    let part = if total == 0 {
        0.0
    } else {
        row.rate as f64 / total as f64
    };
    let state = pad_str(&row.state, "draining".len(), console::Alignment::Left, None).into_owned();
    let reason = if row.state == "up" {
        ""
    } else {
        row.reason.as_str()
    };
    format!(
        "  {} {:>4}/s {:>7} requests  {} {} {reason}",
        bar(part, &colour),
        row.rate,
        row.requests,
        style(&row.name).bold(),
        colour.apply_to(state),
    )
}

fn bar(part: f64, colour: &Style) -> String {
    let full = (part.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    let text = format!(
        "{}{}",
        colour.apply_to("█".repeat(full)),
        style("·".repeat(BAR - full)).dim()
    );
    debug_assert_eq!(measure_text_width(&text), BAR);
    text
}
