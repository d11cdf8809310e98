//! Numbers and times as people read them.

use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use jiff::{Timestamp, tz::TimeZone};

/// A count: exact up to 99,999, then with three digits and a unit.
pub(crate) fn count(number: u64) -> String {
    const EXACT: u64 = 100_000;
    if number < EXACT {
        HumanCount(number).to_string()
    } else {
        three_digits(number as f64)
    }
}

/// So many of something, whose plural takes an s.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!(
        "{} {what}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

/// Something per second.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second < 10.0 && per_second.fract() >= 0.05 {
        format!("{per_second:.1}/s")
    } else if per_second < 999.5 {
        format!("{per_second:.0}/s")
    } else {
        format!("{}/s", three_digits(per_second))
    }
}

/// Three digits and a decimal unit; `number` is at least 999.5.
fn three_digits(number: f64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    let mut scaled = number;
    let mut unit = "";
    for name in UNITS {
        // What rounds to 1000 is one of the next unit.
        if scaled < 999.5 {
            break;
        }
        (scaled, unit) = (scaled / 1000.0, name);
    }
    let decimals = if scaled < 9.995 {
        2
    } else if scaled < 99.95 {
        1
    } else {
        0
    };
    format!("{scaled:.decimals$}{unit}")
}

/// Bytes, in binary units.
pub(crate) fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// A share of a whole in percent.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        "-".to_owned()
    } else {
        format!("{:.1}%", part as f64 * 100.0 / whole as f64)
    }
}

/// A duration by its largest unit: what suffices to tell "just now" from "last week".
pub(crate) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration in whole seconds with all its units; tenths where it is short.
pub(crate) fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// How long ago an RFC 3339 time was; the text itself where it is none.
pub(crate) fn ago(since: &str, now: Timestamp) -> String {
    match passed(since, now) {
        Some(passed) if passed < Duration::from_secs(1) => "just now".to_owned(),
        Some(passed) => format!("{} ago", rough(passed)),
        None => since.to_owned(),
    }
}

/// How long ago an RFC 3339 time was; nothing where it lies ahead, as clocks may.
pub(crate) fn passed(since: &str, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = since.parse().ok()?;
    Some(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// An RFC 3339 time as the clock on the wall shows it, with the date where that is not today's.
pub(crate) fn clock(time: &str, now: Timestamp, zone: &TimeZone) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return time.to_owned();
    };
    let (time, now) = (time.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let format = if time.date() == now.date() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    time.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (99_999, "99,999"),
            (100_000, "100k"),
            (123_456, "123k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (1_234_567, "1.23M"),
            (12_345_678, "12.3M"),
            (9_999_999_999, "10.0G"),
            (u64::MAX, "18.4E"),
        ];
        for (number, text) in cases {
            assert_eq!(count(number), text, "{number}");
        }
    }

    #[test]
    fn plurals() {
        assert_eq!(counted(0, "flow"), "0 flows");
        assert_eq!(counted(1, "flow"), "1 flow");
        assert_eq!(counted(1_200, "flow"), "1,200 flows");
    }

    #[test]
    fn rates() {
        let cases = [
            (0.0, "0/s"),
            (0.3, "0.3/s"),
            (2.0, "2/s"),
            (9.97, "10.0/s"),
            (99.4, "99/s"),
            (999.4, "999/s"),
            (999.6, "1.00k/s"),
            (1_480_000.0, "1.48M/s"),
        ];
        for (number, text) in cases {
            assert_eq!(rate(number), text, "{number}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent(1, 3), "33.3%");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn durations() {
        let seconds = Duration::from_secs;
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7_199, "1h"),
            (86_400 * 3, "3d"),
        ];
        for (number, text) in cases {
            assert_eq!(rough(seconds(number)), text);
        }
        assert_eq!(duration(Duration::from_millis(1_234)), "1.2s");
        assert_eq!(duration(Duration::from_millis(90_900)), "1m 30s");
    }

    #[test]
    fn times() {
        let now: Timestamp = "2026-11-21T20:00:00Z".parse().expect("a time");
        assert_eq!(ago("2026-11-21T19:57:00Z", now), "3m ago");
        assert_eq!(
            ago("2026-11-21T20:00:00.2Z", now),
            "just now",
            "the other clock may be ahead"
        );
        assert_eq!(ago("yesterday", now), "yesterday");
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(clock("2026-11-21T20:05:00Z", now, &zone), "21:05:00");
        assert_eq!(
            clock("2026-11-21T23:05:00Z", now, &zone),
            "2026-11-22 00:05:00"
        );
    }
}
