//! What is going on, for whoever waits.

use indicatif::{ProgressBar, ProgressStyle};

/// A line at the bottom of the terminal; nothing elsewhere.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Of so many steps.
    pub(crate) fn new(what: &str, steps: u64) -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} ({eta})");
        let bar = ProgressBar::new(steps).with_prefix(what.to_owned());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Something of one step, without a known number of them.
    pub(crate) fn spinner(what: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self(bar)
    }

    /// Something else is going on, within the same step.
    pub(crate) fn note(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }

    /// The next step begins.
    pub(crate) fn step(&self, name: &str) {
        self.0.set_message(name.to_owned());
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
