//! `xdp-lb run`: the controller, in the foreground, for systemd.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt};

use super::{Context, Exit};
use crate::control::{self, Options};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Take the data path away at the end; without this it stays in place and forwards on
    #[arg(long)]
    detach_on_exit: bool,
    /// How the log on stderr is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `lb_userspace::health=debug`
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// One line for people
    Text,
    /// One JSON object a line
    Json,
}

pub(super) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(&args.log_level)
        .with_context(|| format!("--log-level {} is no filter", args.log_level))?;
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(control::run(Options {
        config: context.reach.config().to_owned(),
        detach_on_exit: args.detach_on_exit,
    }))?;
    Ok(Exit::Done)
}
