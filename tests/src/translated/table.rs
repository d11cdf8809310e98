//! The tables of `docs/instructions.md`, which are the bounds of the test as well: there is no second place for the numbers.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

/// The variable that writes what was counted into the tables.
pub const ACCEPT: &str = "XDP_LB_ACCEPT_INSTRUCTIONS";

/// One row: its name, then what was counted.
pub type Row = (String, Vec<Cell>);

/// One value of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A number that may differ by so many percent from one compiler or kernel to the next.
    About(u64, u64),
    /// What must be as it is written.
    Exactly(String),
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::About(number, _) => number.to_string(),
            Self::Exactly(text) => text.clone(),
        }
    }

    /// What is wrong with the value that the document has.
    fn differs_from(&self, written: &str) -> Option<String> {
        match self {
            Self::About(counted, percent) => match written.parse::<u64>() {
                Ok(known) if known.abs_diff(*counted) * 100 <= known * percent => None,
                Ok(known) => Some(format!(
                    "{counted} instead of {known}, {:+.1} % (up to {percent} % is let pass)",
                    (*counted as f64 / known as f64 - 1.0) * 100.0
                )),
                Err(_) => Some(format!("{counted}, and the document says `{written}`")),
            },
            Self::Exactly(text) if text == written => None,
            Self::Exactly(text) => Some(format!("`{text}` instead of `{written}`")),
        }
    }
}

/// Compares a table of the document with what was counted, or writes that into it if [`ACCEPT`] is set. `columns` are the
/// headings; the table is the one behind the line `<!-- NAME -->`.
///
/// # Errors
/// What differs, and how to accept it.
pub fn check(name: &str, columns: &[&str], rows: &[Row]) -> anyhow::Result<()> {
    let path = document();
    if std::env::var_os(ACCEPT).is_some() {
        return write(&path, name, columns, rows);
    }
    let (_, table, _) = cut(&path, name)?;
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default();
    let mut wrong = Vec::new();
    if cells(heading) != columns {
        wrong.push(format!(
            "the columns are `{heading}` instead of {columns:?}"
        ));
    }
    let written: Vec<Vec<&str>> = lines.skip(1).map(cells).collect();
    for (row, counted) in rows {
        let Some(written) = written
            .iter()
            .find(|cells| cells.first() == Some(&row.as_str()))
        else {
            wrong.push(format!("{row}: no such row"));
            continue;
        };
        for ((column, cell), written) in columns.iter().skip(1).zip(counted).zip(&written[1..]) {
            if let Some(difference) = cell.differs_from(written) {
                wrong.push(format!("{row}: {column}: {difference}"));
            }
        }
    }
    for known in &written {
        if !rows
            .iter()
            .any(|(row, _)| known.first() == Some(&row.as_str()))
        {
            wrong.push(format!("{}: is not counted any more", known.join(" | ")));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "what was counted is not what {} says:\n  {}\nThe numbers depend on the program, and a little on the compiler and the \
         kernel. If the program is worth it, write them down with `{ACCEPT}=1 cargo xtask test instructions`, and say in the \
         commit what they buy.",
        path.display(),
        wrong.join("\n  ")
    )
}

fn document() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
        .join("../docs/instructions.md")
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches(['|', ' '])
        .split('|')
        .map(str::trim)
        .collect()
}

/// The document before, in and behind a table.
fn cut(path: &Path, name: &str) -> anyhow::Result<(String, String, String)> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mark = format!("<!-- {name} -->\n");
    let at = text
        .find(&mark)
        .with_context(|| format!("{} has no line `{}`", path.display(), mark.trim()))?
        + mark.len();
    let end = text[at..]
        .find("\n\n")
        .map_or(text.len(), |end| at + end + 1);
    Ok((
        text[..at].to_owned(),
        text[at..end].to_owned(),
        text[end..].to_owned(),
    ))
}

fn write(path: &Path, name: &str, columns: &[&str], rows: &[Row]) -> anyhow::Result<()> {
    let (before, _, behind) = cut(path, name)?;
    let mut text = before;
    let _ = writeln!(text, "| {} |", columns.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(columns.len()));
    for (row, cells) in rows {
        ensure!(
            cells.len() + 1 == columns.len(),
            "{row} has {} values for {} columns",
            cells.len(),
            columns.len() - 1
        );
        let values: Vec<String> = cells.iter().map(Cell::text).collect();
        let _ = writeln!(text, "| {row} | {} |", values.join(" | "));
    }
    text += &behind;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::Cell;

    #[test]
    fn a_number_may_differ_a_little_both_ways() {
        let about = |number| Cell::About(number, 5).differs_from("200");
        assert!(about(190).is_none() && about(210).is_none());
        assert!(about(211).is_some_and(|text| text.starts_with("211 instead of 200, +5.5 %")));
        assert!(
            about(189).is_some(),
            "a table that is no longer true hides what grows next"
        );
        assert!(Cell::About(0, 5).differs_from("many").is_some());
    }

    #[test]
    fn text_must_be_the_same() {
        let cell = Cell::Exactly("SLOTS".into());
        assert!(cell.differs_from("SLOTS").is_none());
        assert!(cell.differs_from("SLOTS, FLOWS").is_some());
    }
}
