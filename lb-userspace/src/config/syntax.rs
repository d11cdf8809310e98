//! What to report of a text that is not TOML: every mistake, but not the misreadings a mistake causes further on.

use std::ops::Range;

use super::{
    error::{ConfigError, ErrorKind, visible},
    source::Text,
};

/// The message of a key that is set twice. The TOML parser has no kinds of errors to match on.
const DUPLICATE: &str = "duplicate key";

/// The beginning of the message about a value that begins like no value.
const UNQUOTED: &str = "string values must be quoted";
/// The beginnings of the messages about a word where a value belongs: `nativ` is taken for a misspelt `nan`.
const VALUES: [&str; 3] = [UNQUOTED, "invalid float", "invalid boolean"];

/// Puts the parser's own errors together with those errors of `read` (what reading the rest of the document found)
/// that are true in spite of them.
pub(super) fn combine(
    text: &Text,
    parser: Vec<toml::de::Error>,
    read: Vec<ConfigError>,
) -> Vec<ConfigError> {
    if parser.is_empty() {
        return read;
    }
    let parser = without_echoes(text, parser);
    let sections = Sections::new(text);
    // In the order of their beginnings and of their ends, as the errors are in the text's order.
    let broken: Vec<Range<usize>> = parser
        .iter()
        .filter(|error| error.message() != DUPLICATE)
        .map(|error| {
            let section = sections.around(text, place(text, error).start);
            match is_unclosed(error) {
                true => section.start..usize::MAX,
                false => section,
            }
        })
        .collect();
    let is_broken = |at: usize| {
        let begun = broken.partition_point(|section| section.start <= at);
        begun > 0
            && broken
                .get(begun - 1)
                .is_some_and(|section| at < section.end)
    };
    let true_still = read.into_iter().filter(|error| {
        let about_one_value = matches!(
            error.kind,
            ErrorKind::UnknownKey
                | ErrorKind::WrongType
                | ErrorKind::BadValue
                | ErrorKind::OutOfRange
        );
        about_one_value
            && error
                .span
                .as_ref()
                .is_some_and(|span| !is_broken(span.start))
    });
    let end = text.as_str().trim_end().len();
    let syntax: Vec<ConfigError> = parser
        .iter()
        .map(|error| translate(text, end, error))
        .collect();
    syntax.into_iter().chain(true_still).collect()
}

/// One error a line; and after a bracket that isn't closed, nothing, since all that follows is then read as part of
/// what the bracket opened.
fn without_echoes(text: &Text, mut errors: Vec<toml::de::Error>) -> Vec<toml::de::Error> {
    errors.sort_by_key(|error| place(text, error).start);
    let mut kept: Vec<toml::de::Error> = Vec::new();
    let mut last_line = None;
    for error in errors {
        let (line, ..) = text.line_at(place(text, &error).start);
        if last_line == Some(line) {
            continue;
        }
        last_line = Some(line);
        let unclosed = is_unclosed(&error);
        kept.push(error);
        if unclosed {
            break;
        }
    }
    kept
}

/// Whether all that follows is read as part of what was opened here.
fn is_unclosed(error: &toml::de::Error) -> bool {
    let message = error.message();
    !message.contains("array table")
        && ["array", "inline table", "multi-line"]
            .iter()
            .any(|part| message.contains(part))
}

/// `end` is where the text ends but for white space.
fn translate(text: &Text, end: usize, error: &toml::de::Error) -> ConfigError {
    let span = place(text, error);
    let what = text.as_str().get(span.clone()).unwrap_or("");
    if error.message() == DUPLICATE {
        return ConfigError::new(
            ErrorKind::Syntax,
            format!("duplicate key: found `{}` again", visible(what)),
        )
        .at(span)
        .expected("each key once in a table")
        .help("remove one of the two");
    }
    let value = "a text in quotes, a number, true or false";
    let unquoted = is_word(what) && VALUES.iter().any(|part| error.message().starts_with(part));
    let (message, expected) = match error.message().split_once(", expected ") {
        _ if unquoted => ("a text must be in quotes", Some(value)),
        Some((UNQUOTED, _)) if what.is_empty() => ("a key without a value", Some(value)),
        Some((UNQUOTED, _)) => ("this is no value", Some(value)),
        Some(("invalid basic string" | "invalid literal string", "`\"`" | "`'`")) => {
            ("a text without its closing quote", Some("the quote"))
        }
        // Of a bracket that isn't closed the parser sees only that no comma follows.
        Some((message, "`,`")) if is_unclosed(error) => {
            (message, Some("`,` or, on the line before, `]`"))
        }
        Some((message, "nothing")) => (message, None),
        Some((message, expected)) => (message, Some(expected)),
        None => (error.message(), None),
    };
    // A text that ends within a value, a key or a header was cut there: the parser points at its end.
    let cut_short = span.start >= end;
    let found = match (what, cut_short) {
        ("", true) => ": found the end of the file".to_owned(),
        ("", false) => String::new(),
        (what, _) => format!(": found `{}`", visible(what)),
    };
    let mut translated = ConfigError::new(
        ErrorKind::Syntax,
        format!("no valid TOML: {message}{found}"),
    )
    .at(span);
    if let Some(expected) = expected {
        translated = translated.expected(expected);
    }
    if unquoted {
        translated = translated.help(format!("write \"{}\"", visible(what)));
    }
    if cut_short {
        translated = translated
            .help("the file seems to have been cut short: write it to the end, or restore it, and try again");
    } else if is_unclosed(error) {
        translated = translated.help("what follows was not read; there may be more errors in it");
    }
    translated
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Where an error is: within the text, on character boundaries.
fn place(text: &Text, error: &toml::de::Error) -> Range<usize> {
    let text = text.as_str();
    let span = error.span().unwrap_or(0..0);
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    start..end
}

/// The parts of a text between its table headers.
struct Sections {
    /// The first byte of the text and of each line that looks like a header.
    starts: Vec<usize>,
}

impl Sections {
    fn new(text: &Text) -> Self {
        let headers = text
            .lines()
            .filter(|(_, line)| line.trim_start().starts_with('['));
        let starts = std::iter::once(0).chain(headers.map(|(start, _)| start));
        Self {
            starts: starts.collect(),
        }
    }

    /// The part of the text that an error at `at` makes unreliable: from the header above it to the next one.
    fn around(&self, text: &Text, at: usize) -> Range<usize> {
        let (_, line, _) = text.line_at(at);
        // The parser finds a missing bracket or comma only on the line below, which may be a header that is right.
        let above = if at == line { at.saturating_sub(1) } else { at };
        let start = self
            .starts
            .partition_point(|start| *start <= above)
            .saturating_sub(1);
        let next = self.starts.partition_point(|start| *start <= at);
        let start = self.starts.get(start).copied().unwrap_or(0);
        start..self.starts.get(next).copied().unwrap_or(usize::MAX)
    }
}
