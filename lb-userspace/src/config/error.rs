//! What can be wrong with a configuration file, where, and how it is shown.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::source::Text;

/// The kind of a [`ConfigError`], for those who read `--json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The file can't be read at all: missing, no permission, a directory, not UTF-8, empty, too large.
    File,
    /// The text is not TOML.
    Syntax,
    /// A key that does not exist.
    UnknownKey,
    /// A required key is missing.
    MissingKey,
    /// A value of another type than the key's, as a number where a text belongs.
    WrongType,
    /// A table where an array of tables belongs, or the like.
    WrongShape,
    /// A value of the right type that means nothing.
    BadValue,
    /// A number or a duration outside its range.
    OutOfRange,
    /// A name or an address that must be unique is not.
    Duplicate,
    /// Two services claim the same port of a VIP.
    Overlap,
    /// Two settings that exclude each other.
    Conflict,
    /// More than xdp-lb, or the file's own `[limits]`, can hold.
    Limit,
    /// Valid, but not on this host.
    Host,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The line in the file, from 1; `None` if the error is about the file as a whole.
    pub line: Option<usize>,
    /// The column in the line, in characters, from 1.
    pub column: Option<usize>,
    /// What is wrong and what was found, in one line.
    pub message: String,
    /// What was expected instead.
    pub expected: Option<String>,
    /// What to do about it, a line each.
    pub help: Vec<String>,
    /// Where in the text, in bytes.
    #[serde(skip)]
    pub(super) span: Option<Range<usize>>,
    /// Other places that belong to it, with what they are.
    #[serde(skip)]
    related: Vec<(Range<usize>, String)>,
}

impl ConfigError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            line: None,
            column: None,
            message: message.into(),
            expected: None,
            help: Vec::new(),
            span: None,
            related: Vec::new(),
        }
    }

    pub(super) fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    pub(super) fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    pub(super) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }
}

/// All that is wrong with one file, in the file's order; never empty.
///
/// Its [`Display`](fmt::Display) is [`render`](Self::render) without colours: several lines, to be printed as they
/// are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    text: Text,
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    pub(super) fn new(text: Text, mut errors: Vec<ConfigError>) -> Self {
        for error in &mut errors {
            if let Some(span) = &error.span {
                let (line, column) = text.position(span.start);
                (error.line, error.column) = (Some(line), Some(column));
            }
        }
        errors.sort_by_key(|error| error.span.as_ref().map_or(0, |span| span.start));
        Self { text, errors }
    }

    /// Each error by itself.
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// The file's name, as it was given.
    #[must_use]
    pub fn file(&self) -> &str {
        self.text.file()
    }

    /// All errors for a person to read: message, place, the line with the spot marked, and what to do. Ends without
    /// a line feed. `colour` adds terminal escape sequences; nothing from the file does.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut rendered = String::new();
        for error in &self.errors {
            rendered.push_str(&renderer.render(&[self.report(error)]));
            rendered.push_str("\n\n");
        }
        let count = match self.errors.len() {
            1 => "1 error".to_owned(),
            count => format!("{count} errors"),
        };
        let summary = Level::ERROR.primary_title(format!("{count} in {}", visible(self.file())));
        rendered.push_str(&renderer.render(&[Group::with_title(summary)]));
        rendered
    }

    fn report<'a>(&'a self, error: &'a ConfigError) -> Group<'a> {
        let title = Level::ERROR.primary_title(error.message.as_str());
        let mut group = Group::with_title(title);
        match &error.span {
            Some(span) => {
                let label = error
                    .expected
                    .as_ref()
                    .map(|what| format!("expected {what}"));
                group = group.element(self.snippet(span, AnnotationKind::Primary, label));
                for (span, label) in &error.related {
                    group = group.element(self.snippet(
                        span,
                        AnnotationKind::Context,
                        Some(label.clone()),
                    ));
                }
            }
            None => group = group.element(Origin::path(visible(self.file()))),
        }
        for help in &error.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    /// The one line `span` begins in, so that the work does not grow with the file; a longer span is cut there.
    fn snippet(
        &self,
        span: &Range<usize>,
        kind: AnnotationKind,
        label: Option<String>,
    ) -> Snippet<'_, annotate_snippets::Annotation<'_>> {
        let (number, start, line) = self.text.line_at(span.start);
        let from = (span.start - start).min(line.len());
        let to = (span.end.max(span.start) - start).clamp(from, line.len());
        Snippet::source(line)
            .line_start(number)
            .path(visible(self.file()))
            .annotation(kind.span(from..to).label(label))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigErrors {}

/// `text` from outside, fit for a message: control characters escaped, cut where it is too long to help.
pub(super) fn visible(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(|c| {
            let plain = !c.is_control();
            let escaped = (!plain).then(|| c.escape_default()).into_iter().flatten();
            plain.then_some(c).into_iter().chain(escaped)
        })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
