//! Walks a parsed TOML document and collects every error on the way, where serde would stop at the first.

use std::{cell::RefCell, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, ErrorKind, visible},
    sections::{self, Section},
};

/// The key whose value is a secret.
const SECRET: &str = "seed";

/// Where errors are collected.
#[derive(Debug, Default)]
pub(super) struct Sink {
    errors: RefCell<Vec<ConfigError>>,
    secrets: RefCell<Vec<Range<usize>>>,
}

impl Sink {
    pub(super) fn push(&self, error: ConfigError) {
        self.errors.borrow_mut().push(error);
    }

    /// What stands at `span` must be shown in no message, whatever is wrong with it.
    pub(super) fn secret(&self, span: Range<usize>) {
        self.secrets.borrow_mut().push(span);
    }

    /// The errors and the places of the secrets.
    pub(super) fn into_parts(self) -> (Vec<ConfigError>, Vec<Range<usize>>) {
        (self.errors.into_inner(), self.secrets.into_inner())
    }
}

/// One table of the file, whose unknown keys have been reported.
#[derive(Debug)]
pub(super) struct Fields<'t, 'i> {
    section: &'static Section,
    span: Range<usize>,
    table: &'t DeTable<'i>,
    /// Keys that are there, but misspelt: to call them missing as well would be one error too many.
    misspelt: Vec<&'static str>,
}

/// One key of a table and its value.
#[derive(Debug)]
pub(super) struct Field<'t, 'i> {
    /// The key, or what it is an entry of.
    pub(super) key: &'static str,
    pub(super) value: &'t DeValue<'i>,
    /// The value's place.
    pub(super) span: Range<usize>,
    /// The key's place.
    pub(super) key_span: Range<usize>,
}

impl<'t, 'i> Fields<'t, 'i> {
    /// Reads `value` as the table `section`. `None`, with an error, if it is no table.
    pub(super) fn open(
        section: &'static Section,
        value: &'t DeValue<'i>,
        span: Range<usize>,
        sink: &Sink,
    ) -> Option<Self> {
        let DeValue::Table(table) = value else {
            sink.push(
                ConfigError::new(
                    ErrorKind::WrongShape,
                    format!("{} must be a table: found {}", section.title, found(value)),
                )
                .at(span)
                .expected(format!("a table: `{}`", section.header)),
            );
            return None;
        };
        Some(Self::of(section, table, span, sink))
    }

    /// Reads the document itself.
    pub(super) fn of(
        section: &'static Section,
        table: &'t DeTable<'i>,
        span: Range<usize>,
        sink: &Sink,
    ) -> Self {
        let mut misspelt = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !section.keys.contains(&name) {
                let (error, meant) = unknown_key(section, key);
                if name == SECRET || meant == Some(SECRET) {
                    sink.secret(value.span());
                }
                sink.push(error);
                misspelt.extend(meant);
            }
        }
        Self {
            section,
            span,
            table,
            misspelt,
        }
    }

    /// The place of the table's header.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The key `key`, if it is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Field<'t, 'i>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is not declared");
        let (name, value) = self.table.get_key_value(key)?;
        Some(Field {
            key,
            value: value.get_ref(),
            span: value.span(),
            key_span: name.span(),
        })
    }

    /// The key `key`; an error if it is missing. `example` shows what to write.
    pub(super) fn require(
        &self,
        key: &'static str,
        example: &str,
        sink: &Sink,
    ) -> Option<Field<'t, 'i>> {
        let field = self.get(key);
        if field.is_none() && !self.misspelt.contains(&key) {
            sink.push(
                ConfigError::new(
                    ErrorKind::MissingKey,
                    format!("missing key `{key}` in {}", self.section.title),
                )
                .at(self.span())
                .expected(format!("the key `{key}` in here"))
                .help(format!("add `{example}`")),
            );
        }
        field
    }

    /// What `read` makes of the key, or `default` if it is not there. `None`: it is there, and wrong.
    pub(super) fn read_or<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Field<'t, 'i>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(field) => read(&field),
            None => Some(default),
        }
    }

    /// The tables of an array of tables such as `[[service]]`; an error if there are none. `None`: it is no array,
    /// or it is missing.
    pub(super) fn tables(
        &self,
        section: &'static Section,
        sink: &Sink,
    ) -> Option<Vec<Fields<'t, 'i>>> {
        let Some(field) = self.get(section.key) else {
            if !self.misspelt.contains(&section.key) {
                sink.push(
                    ConfigError::new(
                        ErrorKind::MissingKey,
                        format!("{} has no {}", self.section.title, section.title),
                    )
                    .at(self.span())
                    .expected(format!("at least one `{}`", section.header))
                    .help(section.advice),
                );
            }
            return None;
        };
        let DeValue::Array(array) = field.value else {
            sink.push(
                ConfigError::new(
                    ErrorKind::WrongShape,
                    format!(
                        "`{}` must be an array of tables: found {}",
                        field.key,
                        found(field.value)
                    ),
                )
                .at(field.key_span)
                .expected(format!("`{}`, with double brackets", section.header)),
            );
            return None;
        };
        if array.is_empty() {
            sink.push(
                ConfigError::new(
                    ErrorKind::BadValue,
                    format!("`{}` is empty: found []", field.key),
                )
                .at(field.span)
                .expected(format!("at least one `{}`", section.header))
                .help(section.advice),
            );
            return None;
        }
        Some(
            array
                .iter()
                .filter_map(|entry| Self::open(section, entry.get_ref(), entry.span(), sink))
                .collect(),
        )
    }
}

impl Field<'_, '_> {
    /// An error about this value: the title is "`key` {problem}: found {what}".
    pub(super) fn error(&self, kind: ErrorKind, problem: &str) -> ConfigError {
        self.error_found(kind, problem, &found(self.value))
    }

    /// The same, with what was found said otherwise.
    pub(super) fn error_found(&self, kind: ErrorKind, problem: &str, found: &str) -> ConfigError {
        ConfigError::new(kind, format!("`{}` {problem}: found {found}", self.key))
            .at(self.span.clone())
    }

    /// The error that this value has another type than `expected`.
    pub(super) fn wrong_type(&self, expected: &str) -> ConfigError {
        self.error(ErrorKind::WrongType, "has the wrong type")
            .expected(expected)
    }
}

fn unknown_key(
    section: &'static Section,
    key: &Spanned<toml::de::DeString<'_>>,
) -> (ConfigError, Option<&'static str>) {
    let name = key.get_ref().as_ref();
    let mut error = ConfigError::new(
        ErrorKind::UnknownKey,
        format!("unknown key `{}` in {}", visible(name), section.title),
    )
    .at(key.span())
    .expected(one_of(section.keys, '`'));
    let elsewhere = sections::ALL
        .iter()
        .find(|other| other.keys.contains(&name) && !std::ptr::eq(**other, section));
    let meant = nearest(name, section.keys.iter().copied());
    if let Some(meant) = meant {
        error = error.help(format!("did you mean `{meant}`?"));
    }
    if let Some(other) = elsewhere {
        error = error.help(format!("`{name}` is a key of {}", other.title));
    }
    (error, meant)
}

/// What stands in the file, for the end of "found ...".
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", visible(text)),
        DeValue::Integer(number) => match number.radix() {
            10 => visible(number.as_str()),
            radix => format!("{} (base {radix})", visible(number.as_str())),
        },
        DeValue::Float(number) => format!("the fraction {}", visible(number.as_str())),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(array) if array.is_empty() => "[]".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// "one of `a`, `b`", or the only one.
pub(super) fn one_of(names: &[&str], quote: char) -> String {
    let quoted: Vec<String> = names
        .iter()
        .map(|name| format!("{quote}{name}{quote}"))
        .collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        several => format!("one of {}", several.join(", ")),
    }
}

/// The name that `found` was most probably meant to be: at most a third of it may differ.
pub(super) fn nearest<'n>(found: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // A key of a whole page is no misspelling, and the comparison's cost is the product of both lengths.
    if found.len() > 64 {
        return None;
    }
    let found = found.to_lowercase();
    names
        .map(|name| (strsim::osa_distance(&found, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= (found.len().max(name.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
