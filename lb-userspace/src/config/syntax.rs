//! What to report of a text that is not TOML: every mistake, but not the misreadings a mistake causes further on.

use std::ops::Range;

use super::error::{ConfigError, ErrorKind, visible};

/// The message of a key that is set twice. The TOML parser has no kinds of errors to match on.
const DUPLICATE: &str = "duplicate key";

/// The beginning of the message about a value that begins like no value.
const UNQUOTED: &str = "string values must be quoted";
/// The beginnings of the messages about a word where a value belongs: `nativ` is taken for a misspelt `nan`.
const VALUES: [&str; 3] = [UNQUOTED, "invalid float", "invalid boolean"];

/// Puts the parser's own errors together with those errors of `read` (what reading the rest of the document found)
/// that are true in spite of them.
pub(super) fn combine(
    text: &str,
    parser: Vec<toml::de::Error>,
    read: Vec<ConfigError>,
) -> Vec<ConfigError> {
    if parser.is_empty() {
        return read;
    }
    let parser = without_echoes(text, parser);
    let broken: Vec<Range<usize>> = parser
        .iter()
        .filter(|error| error.message() != DUPLICATE)
        .map(|error| {
            let section = section_around(text, place(text, error).start);
            match is_unclosed(error) {
                true => section.start..usize::MAX,
                false => section,
            }
        })
        .collect();
    let true_still = read.into_iter().filter(|error| {
        let about_one_value = matches!(
            error.kind,
            ErrorKind::UnknownKey
                | ErrorKind::WrongType
                | ErrorKind::BadValue
                | ErrorKind::OutOfRange
        );
        let in_broken =
            |span: &Range<usize>| broken.iter().any(|section| section.contains(&span.start));
        about_one_value && error.span.as_ref().is_some_and(|span| !in_broken(span))
    });
    let syntax: Vec<ConfigError> = parser.iter().map(|error| translate(text, error)).collect();
    syntax.into_iter().chain(true_still).collect()
}

/// One error a line; and after a bracket that isn't closed, nothing, since all that follows is then read as part of
/// what the bracket opened.
fn without_echoes(text: &str, mut errors: Vec<toml::de::Error>) -> Vec<toml::de::Error> {
    errors.sort_by_key(|error| place(text, error).start);
    let mut kept: Vec<toml::de::Error> = Vec::new();
    let mut last_line = None;
    for error in errors {
        let line = line_start(text, place(text, &error).start);
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

fn translate(text: &str, error: &toml::de::Error) -> ConfigError {
    let span = place(text, error);
    let what = text.get(span.clone()).unwrap_or("");
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
    let cut_short = span.start >= text.trim_end().len();
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
fn place(text: &str, error: &toml::de::Error) -> Range<usize> {
    let span = error.span().unwrap_or(0..0);
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    start..end
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1)
}

/// The part of the text that an error at `at` makes unreliable: from the header above it to the next one.
fn section_around(text: &str, at: usize) -> Range<usize> {
    let is_header = |start: usize| {
        text.get(start..)
            .is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with('['))
    };
    let mut start = line_start(text, at);
    // The parser finds a missing bracket or comma only on the line below, which may be a header that is right.
    if at == start && start > 0 {
        start = line_start(text, start - 1);
    }
    while start > 0 && !is_header(start) {
        start = line_start(text, start - 1);
    }
    let next = text
        .get(at..)
        .into_iter()
        .flat_map(|rest| rest.match_indices('\n'))
        .map(|(newline, _)| at + newline + 1)
        .find(|line| is_header(*line));
    start..next.unwrap_or(text.len() + 1)
}
