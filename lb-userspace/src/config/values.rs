//! Reads single values: text, numbers, durations, names, addresses. Each returns `None` after reporting an error.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use toml::de::{DeInteger, DeValue};

use super::{
    error::{ErrorKind, visible},
    model::Share,
    reader::{Field, Sink, nearest, one_of},
};

/// The longest name of a service, a backend or a node, in bytes: a DNS label's length (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 63;
/// The longest interface name: IFNAMSIZ in linux/if.h, less the terminating zero.
const INTERFACE_MAX: usize = 15;

pub(super) fn text<'t>(field: &Field<'t, '_>, expected: &str, sink: &Sink) -> Option<&'t str> {
    let DeValue::String(text) = field.value else {
        sink.push(field.wrong_type(expected));
        return None;
    };
    Some(text)
}

/// An integer's value; `None` if it does not even fit 128 bits.
pub(super) fn integer(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

pub(super) fn number(
    field: &Field<'_, '_>,
    range: RangeInclusive<u32>,
    sink: &Sink,
) -> Option<u32> {
    let expected = format!("an integer from {} to {}", range.start(), range.end());
    let DeValue::Integer(found) = field.value else {
        let mut error = field.wrong_type(&expected);
        if let DeValue::String(text) = field.value
            && let Ok(number) = text.trim().parse::<u32>()
        {
            error = error.help(format!("write it without quotes: {number}"));
        }
        sink.push(error);
        return None;
    };
    let number = integer(found)
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| range.contains(number));
    if number.is_none() {
        sink.push(
            field
                .error(ErrorKind::OutOfRange, "is out of range")
                .expected(expected),
        );
    }
    number
}

/// A number that fits a `u16` because its range does.
pub(super) fn number_u16(
    field: &Field<'_, '_>,
    range: RangeInclusive<u16>,
    sink: &Sink,
) -> Option<u16> {
    let (start, end) = range.into_inner();
    u16::try_from(number(field, start.into()..=end.into(), sink)?).ok()
}

/// A number that fits a `u8` because its range does.
pub(super) fn number_u8(
    field: &Field<'_, '_>,
    range: RangeInclusive<u8>,
    sink: &Sink,
) -> Option<u8> {
    let (start, end) = range.into_inner();
    u8::try_from(number(field, start.into()..=end.into(), sink)?).ok()
}

pub(super) fn duration(
    field: &Field<'_, '_>,
    range: RangeInclusive<Duration>,
    sink: &Sink,
) -> Option<Duration> {
    let (low, high) = (
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end()),
    );
    let expected = format!("a duration from {low} to {high}, as \"500ms\", \"1s\" or \"15m\"");
    let DeValue::String(text) = field.value else {
        let mut error = field.wrong_type(&expected);
        if let DeValue::Integer(number) = field.value {
            error = error.help(format!(
                "write it as text with its unit: \"{}s\"",
                visible(number.as_str())
            ));
        }
        sink.push(error);
        return None;
    };
    let Ok(duration) = humantime::parse_duration(text) else {
        let mut error = field
            .error(ErrorKind::BadValue, "is no duration")
            .expected(expected);
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            error = error.help(format!("add the unit: \"{}s\"", visible(text)));
        }
        sink.push(error);
        return None;
    };
    if !range.contains(&duration) {
        sink.push(
            field
                .error(ErrorKind::OutOfRange, "is out of range")
                .expected(expected),
        );
        return None;
    }
    Some(duration)
}

/// A part of a whole: `"5%"`, or the fraction 0.05.
pub(super) fn share(
    field: &Field<'_, '_>,
    range: RangeInclusive<Share>,
    sink: &Sink,
) -> Option<Share> {
    let expected = format!(
        "a share from {} to {}, as \"5%\" or 0.05",
        range.start(),
        range.end()
    );
    let millionths = match field.value {
        DeValue::String(text) => {
            let Some(percent) = text
                .strip_suffix('%')
                .and_then(|number| number.trim().parse::<f64>().ok())
                .filter(|number| number.is_finite())
            else {
                let mut error = field
                    .error(ErrorKind::BadValue, "is no share")
                    .expected(expected);
                if text.trim().parse::<f64>().is_ok() {
                    error = error.help(format!(
                        "write it with its unit: \"{}%\"",
                        visible(text.trim())
                    ));
                }
                sink.push(error);
                return None;
            };
            percent * 10_000.0
        }
        DeValue::Float(number) => number.as_str().replace('_', "").parse::<f64>().ok()? * 1e6,
        _ => {
            let mut error = field.wrong_type(&expected);
            if let DeValue::Integer(number) = field.value {
                error = error.help(format!(
                    "write it as text with its unit: \"{}%\"",
                    visible(number.as_str())
                ));
            }
            sink.push(error);
            return None;
        }
    };
    // What is negative or too large saturates, and is out of range.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let share = Share(millionths.round() as u32);
    if !range.contains(&share) {
        sink.push(
            field
                .error(ErrorKind::OutOfRange, "is out of range")
                .expected(expected),
        );
        return None;
    }
    Some(share)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    field: &Field<'_, '_>,
    choices: &[(&str, T)],
    sink: &Sink,
) -> Option<T> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let expected = one_of(&words, '"');
    let found = text(field, &expected, sink)?;
    let choice = choices.iter().find(|(word, _)| *word == found);
    if choice.is_none() {
        let mut error = field
            .error(ErrorKind::BadValue, "has an unknown value")
            .expected(expected);
        if let Some(meant) = nearest(found, words.iter().copied()) {
            error = error.help(format!("did you mean \"{meant}\"?"));
        }
        sink.push(error);
    }
    choice.map(|(_, value)| *value)
}

/// Whether `name` can name a node, a service or a backend.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What [`is_name`] asks for.
pub(super) const NAME_RULE: &str = "1 to 63 of the letters A-Z and a-z, digits, `.`, `_` and `-`";

pub(super) fn name(field: &Field<'_, '_>, sink: &Sink) -> Option<String> {
    let name = text(field, &format!("a text: {NAME_RULE}"), sink)?;
    if !is_name(name) {
        sink.push(
            field
                .error(ErrorKind::BadValue, "is no valid name")
                .expected(NAME_RULE),
        );
        return None;
    }
    Some(name.to_owned())
}

/// The kernel's rule for an interface's name: `dev_valid_name` in net/core/dev.c.
pub(super) fn interface(field: &Field<'_, '_>, sink: &Sink) -> Option<String> {
    let expected = "an interface name as `ip link` shows it, of 1 to 15 bytes";
    let name = text(field, expected, sink)?;
    let valid = (1..=INTERFACE_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .chars()
            .any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control());
    if !valid {
        sink.push(
            field
                .error(ErrorKind::BadValue, "has an invalid entry")
                .expected(expected),
        );
        return None;
    }
    Some(name.to_owned())
}

/// An absolute path; `longest` in bytes, where the system has a bound below its usual one.
pub(super) fn path(field: &Field<'_, '_>, longest: Option<usize>, sink: &Sink) -> Option<PathBuf> {
    let expected = match longest {
        Some(longest) => format!("an absolute path of at most {longest} bytes"),
        None => "an absolute path".to_owned(),
    };
    let path = text(field, &expected, sink)?;
    if !path.starts_with('/') || path.contains('\0') {
        let error = field.error(ErrorKind::BadValue, "is no absolute path");
        sink.push(error.expected(expected));
        return None;
    }
    if longest.is_some_and(|longest| path.len() > longest) {
        let length = format!("{} bytes", path.len());
        let error = field.error_found(ErrorKind::OutOfRange, "is too long", &length);
        sink.push(error.expected(expected));
        return None;
    }
    Some(PathBuf::from(path))
}

/// A host's address, of either family.
pub(super) fn address(field: &Field<'_, '_>, sink: &Sink) -> Option<IpAddr> {
    let expected = "an IPv4 or IPv6 address, as \"192.0.2.10\" or \"2001:db8::10\"";
    let text = text(field, expected, sink)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let error = field
            .error(ErrorKind::BadValue, "is no IP address")
            .expected(expected);
        let net = text.parse::<ipnet::IpNet>().ok();
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let bracketed = inner.and_then(|t| t.parse::<IpAddr>().ok());
        let scoped = text.split_once('%').map(|(address, _)| address);
        let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        sink.push(if let Some(net) = net {
            error.help(format!(
                "write it without the prefix length: \"{}\"",
                net.addr()
            ))
        } else if let Some(address) = bracketed {
            error.help(format!("write it without brackets: \"{address}\""))
        } else if text.parse::<SocketAddr>().is_ok() {
            error.help("write it without a port")
        } else if scoped.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
            error.help("an address with a zone is good on one link only; write a global or unique local one")
        } else if digits {
            error
        } else {
            error.help("a name is not resolved; write the address itself")
        });
        return None;
    };
    let unusable = if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else {
        match address {
            IpAddr::V4(address) => address.is_broadcast().then_some("is the broadcast address"),
            // RFC 4291 sections 2.5.5.2 and 2.5.6.
            IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
                Some("is an IPv4-mapped address")
            }
            IpAddr::V6(address) if address.is_unicast_link_local() => {
                Some("is a link-local address")
            }
            IpAddr::V6(_) => None,
        }
    };
    if let Some(unusable) = unusable {
        let mut error = field
            .error(ErrorKind::BadValue, unusable)
            .expected("a unicast address on the wire");
        if let IpAddr::V6(address) = address {
            if let Some(mapped) = address.to_ipv4_mapped() {
                error = error.help(format!("write the IPv4 address: \"{mapped}\""));
            } else if address.is_unicast_link_local() {
                error = error.help(
                    "it is good on one link only, and another host may have it on the next; write a global or unique \
                     local one",
                );
            }
        }
        sink.push(error);
        return None;
    }
    Some(address)
}

/// An address and port to listen on, or `"off"`: `Some(None)`.
pub(super) fn listen(field: &Field<'_, '_>, sink: &Sink) -> Option<Option<SocketAddr>> {
    let expected = "an address and port, as \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"";
    let text = text(field, expected, sink)?;
    if text == "off" {
        return Some(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(Some(address)),
        Ok(_) => {
            let error = field
                .error(ErrorKind::BadValue, "has port 0")
                .expected(expected);
            sink.push(error);
            None
        }
        Err(_) => {
            let error = field.error(ErrorKind::BadValue, "is no address and port");
            sink.push(error.expected(expected));
            None
        }
    }
}

/// The hash seed. Its text gets into no message: it is a secret.
pub(super) fn seed(field: &Field<'_, '_>, sink: &Sink) -> Option<[u64; 2]> {
    const DIGITS: usize = 32;
    sink.secret(field.span.clone());
    let expected = "32 hex digits in quotes";
    let help = "make one with `openssl rand -hex 16`";
    let DeValue::String(text) = field.value else {
        let error = field.error_found(ErrorKind::WrongType, "has the wrong type", "no text");
        sink.push(error.expected(expected).help(help));
        return None;
    };
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let seed = (hex && text.len() == DIGITS)
        .then(|| text.split_at(DIGITS / 2))
        .and_then(|(high, low)| {
            Some([
                u64::from_str_radix(high, 16).ok()?,
                u64::from_str_radix(low, 16).ok()?,
            ])
        });
    if seed.is_none() {
        let found = if hex {
            format!("{} hex digits", text.len())
        } else {
            "other characters than hex digits".to_owned()
        };
        let error = field.error_found(ErrorKind::BadValue, "is no seed", &found);
        sink.push(error.expected(expected).help(help));
    }
    seed
}
