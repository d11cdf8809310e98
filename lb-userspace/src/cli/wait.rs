//! `xdp-lb drain --wait`: shows the flows falling to zero.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{Timestamp, tz::TimeZone};
use tokio::time::MissedTickBehavior;

use super::{
    Context, Exit, human,
    progress::{Progress, Remaining, Stage},
    screen::Screen,
};
use crate::api::{
    Request, Response, Status, Target,
    client::{self, ClientError},
};

/// How often the daemon is asked.
const POLL: Duration = Duration::from_millis(250);
/// How long a daemon may be away, as it is when it is upgraded in the middle of a drain.
const ABSENCE: Duration = Duration::from_secs(30);
/// Least time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until no flow is left on `target`.
///
/// # Errors
/// The daemon is away for too long, or gives a wrong answer. A drain that does not end well is [`Exit::Failed`], and
/// the reason has been said.
pub(crate) fn until_drained(target: Target, context: &Context) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(follow(target, context));
    // A question that is still under way must not hold up Ctrl-C.
    runtime.shutdown_background();
    result
}

async fn follow(target: Target, context: &Context) -> anyhow::Result<Exit> {
    let socket = context.reach.socket()?;
    let start = Instant::now();
    let mut display = Display::new(&target);
    let mut progress = Progress::new(target.clone());
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut answered = Instant::now();
    let mut remaining: Option<Remaining> = None;
    loop {
        let socket = socket.clone();
        let poll = async {
            ticks.tick().await;
            let ask = move || client::ask(&socket, &Request::Status, client::PATIENCE);
            tokio::task::spawn_blocking(ask).await
        };
        let answer = tokio::select! {
            answer = poll => answer?,
            _ = &mut interrupt => {
                display.clear();
                context.screen.line(&format!(
                    "stopped waiting; {}. The drain stays in force: {}",
                    still(remaining.as_ref()), advice(&target)
                ))?;
                return Ok(Exit::Failed);
            }
        };
        let status = match status(answer) {
            Ok(status) => status?,
            Err(_away) if answered.elapsed() < ABSENCE => {
                display.away();
                continue;
            }
            Err(error) => {
                display.clear();
                return Err(error.into());
            }
        };
        answered = Instant::now();
        match progress.read(&status, start.elapsed()) {
            Stage::Waiting(now) => {
                display.show(&now, context)?;
                remaining = Some(now);
            }
            Stage::Drained { ended } => {
                display.clear();
                context.screen.line(&format!(
                    "{} is drained after {}: {}",
                    target.backend,
                    human::duration(start.elapsed()),
                    outcome(ended)
                ))?;
                return Ok(Exit::Done);
            }
            Stage::Over(reason) => {
                display.clear();
                Screen::stderr().error(&format!("the drain ended early: {reason}"));
                return Ok(Exit::Failed);
            }
        }
    }
}

/// The status in an answer. The outer error passes where the daemon comes back; the inner one does not.
fn status(
    answer: Result<Response, ClientError>,
) -> Result<anyhow::Result<Box<Status>>, ClientError> {
    let unexpected = || {
        bail!("the daemon gave an answer to another question: restart it after an upgrade");
    };
    match answer {
        Ok(Response::Status(status)) => Ok(Ok(status)),
        Ok(Response::Refused { message }) => Ok(Err(anyhow::Error::msg(message))),
        Ok(Response::Done { .. }) => Ok(unexpected()),
        Err(
            error @ (ClientError::NotRunning(_)
            | ClientError::HungUp(_)
            | ClientError::Silent { .. }),
        ) => Err(error),
        Err(error) => Ok(Err(error.into())),
    }
}

/// What remains, in words.
fn still(remaining: Option<&Remaining>) -> String {
    match remaining {
        Some(Remaining {
            flows: 0, names, ..
        }) => {
            format!(
                "no flow is seen on {}, but silent ones may exist",
                names.join(" and ")
            )
        }
        Some(Remaining {
            flows: 1, names, ..
        }) => {
            format!("1 flow remains on {}", names.join(" and "))
        }
        Some(Remaining { flows, names, .. }) => {
            format!(
                "{} flows remain on {}",
                human::count(*flows),
                names.join(" and ")
            )
        }
        None => "how many flows remain is not known yet".to_owned(),
    }
}

/// How a drain came to its end, in words.
fn outcome(ended: Option<u64>) -> String {
    match ended {
        None => "no flow is left".to_owned(),
        Some(0) => "when its time was up, no flow was left".to_owned(),
        Some(1) => "its time was up, and 1 flow was ended".to_owned(),
        Some(flows) => format!(
            "its time was up, and {} flows were ended",
            human::count(flows)
        ),
    }
}

/// How to go on after the waiting has ended.
fn advice(target: &Target) -> String {
    let service = target
        .service
        .as_ref()
        .map(|service| format!(" --service {service}"))
        .unwrap_or_default();
    let name = &target.backend;
    format!(
        "`xdp-lb resume {name}{service}` takes it back, `xdp-lb drain {name}{service} --wait` waits again"
    )
}

/// The rest of a line of progress.
fn details(remaining: &Remaining, now: Timestamp, zone: &TimeZone) -> String {
    let mut text = human::counted(remaining.flows, "flow");
    if let Some(rate) = remaining.rate {
        let rate = human::rate(rate);
        text.push_str(&format!(", {} packets/s", rate.trim_end_matches("/s")));
    }
    if let Some(until) = &remaining.drain_until {
        text.push_str(&format!(
            ", those left at {} are ended",
            human::clock(until, now, zone)
        ));
    } else if let Some(until) = &remaining.silent_until {
        text.push_str(&format!(
            ", silent flows may still exist until {}",
            human::clock(until, now, zone)
        ));
    }
    text
}

/// A bar on a terminal, otherwise a line for each change.
struct Display {
    bar: Option<ProgressBar>,
    name: String,
    zone: TimeZone,
    shown: Option<(u64, Instant)>,
}

impl Display {
    fn new(target: &Target) -> Self {
        let bar = Screen::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1);
            // A template that is wrong shows in the first try; the plain bar would do.
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:30}] {elapsed}\n  {wide_msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(format!("draining {}", target.backend));
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        Self {
            bar,
            name: target.backend.clone(),
            zone: TimeZone::system(),
            shown: None,
        }
    }

    fn show(&mut self, remaining: &Remaining, context: &Context) -> std::io::Result<()> {
        let details = details(remaining, Timestamp::now(), &self.zone);
        if let Some(bar) = &self.bar {
            bar.set_length(remaining.most.max(1));
            bar.set_position(remaining.most - remaining.flows);
            bar.set_message(details);
            return Ok(());
        }
        let due = self.shown.is_none_or(|(flows, at)| {
            flows != remaining.flows && (at.elapsed() >= LINE_INTERVAL || remaining.flows == 0)
        });
        if due {
            self.shown = Some((remaining.flows, Instant::now()));
            context
                .screen
                .line(&format!("draining {}: {details}", self.name))?;
        }
        Ok(())
    }

    fn away(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message("the daemon does not answer; its drain stays in force, waiting for it");
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remaining(flows: u64) -> Remaining {
        Remaining {
            flows,
            most: 20,
            rate: Some(340.0),
            silent_until: Some("2026-11-21T20:12:30Z".to_owned()),
            drain_until: None,
            names: vec!["web/web3".to_owned(), "dns/web3".to_owned()],
        }
    }

    #[test]
    fn what_remains_in_words() {
        let now = "2026-11-21T20:00:00Z".parse().expect("a time");
        assert_eq!(
            details(&remaining(17), now, &TimeZone::UTC),
            "17 flows, 340 packets/s, silent flows may still exist until 20:12:30"
        );
        let timed = Remaining {
            drain_until: Some("2026-11-21T20:05:00Z".to_owned()),
            ..remaining(17)
        };
        assert_eq!(
            details(&timed, now, &TimeZone::UTC),
            "17 flows, 340 packets/s, those left at 20:05:00 are ended"
        );
        assert_eq!(
            outcome(Some(12_345)),
            "its time was up, and 12,345 flows were ended"
        );
        assert_eq!(
            still(Some(&remaining(1))),
            "1 flow remains on web/web3 and dns/web3"
        );
        assert_eq!(
            still(Some(&remaining(0))),
            "no flow is seen on web/web3 and dns/web3, but silent ones may exist"
        );
    }

    #[test]
    fn the_way_back_names_the_service() {
        let target = Target {
            backend: "b1".to_owned(),
            service: Some("web".to_owned()),
        };
        assert_eq!(
            advice(&target),
            "`xdp-lb resume b1 --service web` takes it back, `xdp-lb drain b1 --service web --wait` waits again"
        );
    }

    #[test]
    fn a_daemon_that_restarts_is_waited_for() {
        let away = || ClientError::NotRunning("/run/x".into());
        assert!(status(Err(away())).is_err());
        let refused = Response::Refused {
            message: "no".to_owned(),
        };
        assert!(
            matches!(status(Ok(refused)), Ok(Err(_))),
            "what it refuses it will refuse again"
        );
    }
}
