//! Reads numbers and ranges of numbers as a service's `ports` and a probe's `status` write them.

use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::{
    error::{ConfigError, ErrorKind},
    model::Ports,
    reader::{Field, Sink, found},
    values::integer,
};

const EXPECTED: &str = "a list of ports from 1 to 65535, as [80, 443, \"8000-8010\"], or \"any\"";
const ENTRY: &str = "a port from 1 to 65535, or a range as \"8000-8010\"";
const STATUS: &str = "an HTTP status from 100 to 599, or a range as \"200-399\"";

/// A service's ports, and the one that is listed first (`None` for `"any"`).
pub(super) fn ports(field: &Field<'_, '_>, sink: &Sink) -> Option<(Ports, Option<u16>)> {
    match field.value {
        DeValue::String(text) if text == "any" => Some((Ports::Any, None)),
        DeValue::Array(entries) => {
            if entries.is_empty() {
                let error = field
                    .error(ErrorKind::BadValue, "is empty")
                    .expected(EXPECTED);
                sink.push(error.help("a service on every port says \"any\""));
                return None;
            }
            // All entries are read before one that is wrong ends it, so that each reports its error.
            let ranges: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let field = Field {
                        key: field.key,
                        value: entry.get_ref(),
                        span: entry.span(),
                        key_span: field.key_span.clone(),
                    };
                    range(&field, 1..=u16::MAX, "a port", ENTRY).map_err(|error| sink.push(*error))
                })
                .collect();
            let ranges: Vec<_> = ranges.into_iter().collect::<Result<_, _>>().ok()?;
            let first = ranges.first().map(|range| *range.start());
            Some((Ports::Ranges(merged(ranges)), first))
        }
        DeValue::Integer(_) | DeValue::String(_) => {
            let list = format!("write a list: [{}]", found(field.value));
            sink.push(field.wrong_type(EXPECTED).help(list));
            None
        }
        _ => {
            sink.push(field.wrong_type(EXPECTED));
            None
        }
    }
}

/// The status codes an HTTP probe accepts.
pub(super) fn status(field: &Field<'_, '_>, sink: &Sink) -> Option<RangeInclusive<u16>> {
    range(field, 100..=599, "a status", STATUS)
        .map_err(|error| sink.push(*error))
        .ok()
}

/// A number, or "first-last".
fn range(
    field: &Field<'_, '_>,
    valid: RangeInclusive<u16>,
    what: &str,
    expected: &str,
) -> Result<RangeInclusive<u16>, Box<ConfigError>> {
    let check = |number: i128| {
        u16::try_from(number)
            .ok()
            .filter(|number| valid.contains(number))
            .ok_or_else(|| {
                let problem = format!("has {what} out of range");
                Box::new(
                    field
                        .error(ErrorKind::OutOfRange, &problem)
                        .expected(expected),
                )
            })
    };
    match field.value {
        DeValue::Integer(number) => {
            let number = check(integer(number).unwrap_or(i128::MAX))?;
            Ok(number..=number)
        }
        DeValue::String(text) => {
            let bad = || {
                let problem = format!("has {what} that is no number or range");
                field
                    .error(ErrorKind::BadValue, &problem)
                    .expected(expected)
            };
            let parse = |text: &str| {
                let text = text.trim();
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                digits.then(|| text.parse::<i128>().unwrap_or(i128::MAX))
            };
            let Some((first, last)) = text.split_once('-') else {
                let error = match parse(text) {
                    Some(number) => bad().help(format!("write it without quotes: {number}")),
                    None => bad(),
                };
                return Err(Box::new(error));
            };
            let (Some(first), Some(last)) = (parse(first), parse(last)) else {
                return Err(Box::new(bad()));
            };
            let (first, last) = (check(first)?, check(last)?);
            if first > last {
                let error = field
                    .error(ErrorKind::BadValue, "has a range that runs backwards")
                    .expected(expected);
                return Err(Box::new(error.help(format!("write \"{last}-{first}\""))));
            }
            Ok(first..=last)
        }
        _ => Err(Box::new(field.wrong_type(expected))),
    }
}

/// Sorted, with overlapping and adjacent ranges made one.
fn merged(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}
