//! `xdp-lb status`: what the daemon knows, once or again and again.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use jiff::Timestamp;

use super::{
    Context, Exit,
    status_view::{Rates, Window, render},
};
use crate::api::{Request, Response, Status};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this service
    #[arg(add = super::completions::services())]
    service: Option<String>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
    /// Again every so many seconds, with rates, until Ctrl-C; with --json one object a line
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = interval
    )]
    watch: Option<Duration>,
}

/// Shortest and longest time between two looks, in seconds.
const INTERVAL: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if INTERVAL.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!(
            "expected seconds, from {} to {}",
            INTERVAL.start(),
            INTERVAL.end()
        )),
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let Some(interval) = args.watch else {
        let status = ask(args, context)?;
        let text = if args.json {
            serde_json::to_string_pretty(&status)?
        } else {
            render(&status, &Window::new(context.screen.look, Timestamp::now()))
        };
        context.screen.line(&text)?;
        return Ok(Exit::Done);
    };
    watch(args, context, interval)
}

fn watch(args: &Args, context: &Context, interval: Duration) -> anyhow::Result<Exit> {
    let mut before: Option<(Status, Instant)> = None;
    loop {
        let status = ask(args, context)?;
        let at = Instant::now();
        if args.json {
            context.screen.line(&serde_json::to_string(&status)?)?;
        } else {
            // The terminal may have been resized.
            let screen = super::Screen::stdout();
            let mut window = Window::new(screen.look, Timestamp::now());
            window.rates = before
                .as_ref()
                .map(|(old, then)| Rates::between(old, &status, at - *then));
            let text = render(&status, &window);
            if screen.is_terminal() {
                screen.replace(&text)?;
            } else {
                screen.line(&format!("-- {}\n{text}", window.now.strftime("%FT%TZ")))?;
            }
        }
        before = Some((status, at));
        thread::sleep(interval);
    }
}

fn ask(args: &Args, context: &Context) -> anyhow::Result<Status> {
    let Response::Status(mut status) = context.reach.ask(&Request::Status)? else {
        bail!("the daemon gave an answer to another question: restart it after an upgrade");
    };
    if let Some(name) = &args.service {
        only(&mut status, name)?;
    }
    Ok(*status)
}

/// Leaves the service of this name alone.
fn only(status: &mut Status, name: &str) -> anyhow::Result<()> {
    if !status.services.iter().any(|service| service.name == *name) {
        let names = status.services.iter().map(|service| service.name.as_str());
        return Err(anyhow!(
            "no service is named \"{name}\"{}",
            meant(name, names)
        ));
    }
    status.services.retain(|service| service.name == *name);
    Ok(())
}

/// "; did you mean ...?" with the nearest of `names`, or else all of them; to be put behind a message.
pub(crate) fn meant<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> String {
    /// How like two names must be, from 0 (not at all) to 1 (the same).
    const ALIKE: f64 = 0.5;
    /// How many names a message takes.
    const LISTED: usize = 10;
    let mut names: Vec<&str> = names.collect();
    let nearness = |other: &str| {
        strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &other.to_lowercase())
    };
    names.sort_by(|a, b| nearness(b).total_cmp(&nearness(a)));
    names.dedup();
    let near: Vec<&str> = names
        .iter()
        .copied()
        .filter(|other| nearness(other) >= ALIKE)
        .take(3)
        .collect();
    if !near.is_empty() {
        return format!("; did you mean {}?", near.join(" or "));
    }
    if names.is_empty() {
        return "; there is none".to_owned();
    }
    names.sort_unstable();
    let more = if names.len() > LISTED { ", ..." } else { "" };
    names.truncate(LISTED);
    format!("; there are: {}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status_view::tests::example;

    #[test]
    fn one_service_alone() {
        let mut status = example();
        only(&mut status, "dns").expect("there is one");
        let names: Vec<_> = status
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        assert_eq!(names, ["dns"]);
    }

    #[test]
    fn unknown_services_bring_the_nearest() {
        let error = |name| only(&mut example(), name).expect_err("unknown").to_string();
        assert_eq!(
            error("wbe"),
            "no service is named \"wbe\"; did you mean web?"
        );
        assert_eq!(
            error("mail"),
            "no service is named \"mail\"; there are: dns, web"
        );
        assert_eq!(meant("x", std::iter::empty()), "; there is none");
    }

    /// What design.md section 7 promises to whoever reads `status --json`.
    #[test]
    fn the_promised_fields_are_there() {
        let json = serde_json::to_value(example()).expect("serializes");
        let has = |value: &serde_json::Value, fields: &[&str]| {
            for field in fields {
                assert!(value.get(field).is_some(), "no field {field} in {value}");
            }
        };
        has(&json, &["node", "services", "verdicts"]);
        assert!(json["node"].is_object() && json["verdicts"].is_object());
        let service = &json["services"][0];
        has(service, &["name", "vip", "protocol", "ports", "backends"]);
        let fields = [
            "name", "address", "state", "reason", "since", "weight", "priority", "slots",
            "packets", "bytes", "flows",
        ];
        has(&service["backends"][0], &fields);
        assert!(json["verdicts"]["not_ours"].is_u64());
    }
}
