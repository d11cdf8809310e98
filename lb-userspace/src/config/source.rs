//! The file's text, and where in it the settings stand whose truth depends on the host.

use std::ops::Range;

/// A file's name and its text, with the places of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    file: String,
    text: String,
    /// The first byte of each line; never empty.
    lines: Vec<usize>,
}

impl Text {
    pub(super) fn new(file: &str, text: &str) -> Self {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            lines,
        }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Line and column (in characters) of a byte, both from 1.
    pub(super) fn position(&self, byte: usize) -> (usize, usize) {
        let (number, start, line) = self.line_at(byte);
        let before = line.get(..byte.saturating_sub(start)).unwrap_or(line);
        (number, before.chars().count() + 1)
    }

    /// The line a byte is in: its number from 1, its first byte, its text without the line's end.
    pub(super) fn line_at(&self, byte: usize) -> (usize, usize, &str) {
        let number = self.lines.partition_point(|start| *start <= byte);
        let start = self.lines.get(number.wrapping_sub(1)).copied().unwrap_or(0);
        let end = self.lines.get(number).copied().unwrap_or(self.text.len());
        let line = self.text.get(start..end).unwrap_or("");
        (number, start, line.trim_end_matches(['\n', '\r']))
    }

    /// Makes what is written at `span` unreadable, without moving anything else: a secret must not get into a log
    /// because the line it is in has an error.
    pub(super) fn mask(&mut self, span: Range<usize>) {
        if let Some(secret) = self.text.get(span.clone()) {
            let masked: String = secret
                .chars()
                .flat_map(|c| {
                    let keep = matches!(c, '\n' | '\r' | '"' | '\'');
                    let (shown, times) = if keep { (c, 1) } else { ('*', c.len_utf8()) };
                    std::iter::repeat_n(shown, times)
                })
                .collect();
            self.text.replace_range(span, &masked);
        }
    }
}

/// Where in the text the settings stand that only a host can judge. The order is the configuration's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) text: Text,
    /// Each entry of `node.interfaces`.
    pub(super) interfaces: Vec<Range<usize>>,
    /// Each service.
    pub(super) services: Vec<ServiceSource>,
}

/// One service's places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceSource {
    /// The value of `vip`.
    pub(super) vip: Range<usize>,
    /// The value of each backend's `address`.
    pub(super) addresses: Vec<Range<usize>>,
}
