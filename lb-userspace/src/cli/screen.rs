//! Where text goes, and how it may look there.

use std::io::{self, Write};

use console::{Style, Term};

/// What a place for text can show. The views take this, so that a test can ask for any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// Columns of the terminal; `None` where it is none, and lines may have any length.
    pub(crate) width: Option<u16>,
}

impl Look {
    /// `text` in `style`, where colours may be used.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.colour {
            style.force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.paint(Style::new().yellow(), text)
    }
}

/// Stdout or stderr.
#[derive(Debug)]
pub(crate) struct Screen {
    term: Term,
    pub(crate) look: Look,
}

impl Screen {
    pub(crate) fn stdout() -> Self {
        Self::new(Term::stdout(), console::colors_enabled())
    }

    pub(crate) fn stderr() -> Self {
        Self::new(Term::stderr(), console::colors_enabled_stderr())
    }

    fn new(term: Term, colour: bool) -> Self {
        let width = term.size_checked().map(|(_rows, columns)| columns);
        let width = width.filter(|_| term.is_term());
        Self {
            term,
            look: Look { colour, width },
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.term.is_term()
    }

    /// Writes `text` with a line feed at its end.
    ///
    /// # Errors
    /// As the system's; [`io::ErrorKind::BrokenPipe`] where nobody reads any more.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        // Both handles see the same file; the lock keeps a line whole.
        let mut out = &self.term;
        out.write_all(format!("{text}\n").as_bytes())?;
        out.flush()
    }

    /// Writes `text` over what the terminal shows; what has no room below is left out and counted.
    ///
    /// # Errors
    /// As [`Screen::line`].
    pub(crate) fn replace(&self, text: &str) -> io::Result<()> {
        // Each line is cleared behind its end only, so that nothing flickers that stays.
        let room = self
            .term
            .size_checked()
            .map_or(usize::MAX, |(rows, _)| usize::from(rows));
        let cleared = fitting(text, room).replace('\n', "\x1b[K\n");
        let mut out = &self.term;
        out.write_all(format!("\x1b[H{cleared}\x1b[K\n\x1b[J").as_bytes())?;
        out.flush()
    }

    /// Writes an error for a person to read; there is nowhere to say that this failed.
    pub(crate) fn error(&self, text: &str) {
        // The configuration's errors are rendered with their own heads.
        if text.starts_with("error:") {
            let _nowhere = self.line(text);
            return;
        }
        let head = self.look.paint(Style::new().red().bold(), "error:");
        let _nowhere = self.line(&format!("{head} {text}"));
    }

    /// Likewise, where the command goes on.
    pub(crate) fn warn(&self, text: &str) {
        let head = self.look.paint(Style::new().yellow().bold(), "warning:");
        let _nowhere = self.line(&format!("{head} {text}"));
    }
}

/// The first lines of `text` that fit into `rows`, the last of which stays free for the cursor.
fn fitting(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    if lines.len() <= room {
        return text.to_owned();
    }
    let shown = room - 1;
    let mut fitting: Vec<String> = lines
        .iter()
        .take(shown)
        .map(|line| (*line).to_owned())
        .collect();
    fitting.push(format!(
        "... {} more lines: enlarge the terminal or name a service",
        lines.len() - shown
    ));
    fitting.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(fitting("a\nb\nc", 4), "a\nb\nc");
        assert_eq!(
            fitting("a\nb\nc", 3),
            "a\n... 2 more lines: enlarge the terminal or name a service"
        );
        assert_eq!(
            fitting("a", 0),
            "a",
            "a terminal that does not know its size"
        );
    }
}
