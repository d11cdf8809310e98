//! The command line: what each command takes is in its own file, beside what it does.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. Results go to stdout, everything about them to stderr.

mod bench;
mod change;
mod check;
mod completions;
mod drain;
mod fail;
mod failback;
mod flows;
mod human;
mod man;
mod maps;
mod pinned;
mod progress;
mod reach;
mod reload;
mod resume;
mod rows;
mod run;
mod screen;
mod status;
mod status_view;
mod wait;
mod weight;
mod whereto;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueHint};

use self::{reach::Reach, screen::Screen};
use crate::config::ConfigErrors;

#[cfg(test)]
pub(crate) use status_view::tests::example as example_status;

/// Where the configuration is unless `--config` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/xdp-lb/config.toml";

/// The arguments of `xdp-lb`.
#[derive(Debug, Parser)]
#[command(
    name = "xdp-lb",
    version,
    about = "A layer-4 load balancer in the network driver (XDP, direct server return)",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage.\n\
                  Colours only on a terminal, and not where NO_COLOR is set.",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// The configuration file, from which every command learns the control socket and the pin path
    /// [default: /etc/xdp-lb/config.toml]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The controller, in the foreground, for systemd
    Run(run::Args),
    /// The configuration and this host: interfaces, XDP support, privileges, neighbours
    Check(check::Args),
    /// Services, backends, health and its reason, rates, flows
    Status(status::Args),
    /// Planned maintenance: no new flow goes to the backend, its flows stay until they end
    Drain(drain::Args),
    /// Takes a drain or a failure back
    Resume(resume::Args),
    /// Emergency: the backend is treated as down now and its flows move at once
    Fail(fail::Args),
    /// Lets new flows of a service go back to the best priority, where `failback` is "manual"
    Failback(failback::Args),
    /// Changes a backend's share while running
    Weight(weight::Args),
    /// Applies the configuration file; prints what changed
    Reload,
    /// Every map: type, entries used and maximum, memory; or one map's content decoded
    Maps(maps::Args),
    /// Live tracked flows, filtered by service, backend, client
    Flows(flows::Args),
    /// Which backend a packet would go to, and each step that leads there
    Where(whereto::Args),
    /// Nanoseconds per packet of the running program on this machine; nothing is sent
    Bench(bench::Args),
    /// Prints the script that completes commands and names in a shell
    Completions(completions::Args),
    /// Writes the man pages
    #[command(hide = true)]
    Man(man::Args),
}

/// What every command is given.
struct Context {
    reach: Reach,
    screen: Screen,
}

/// How a command ended, where it has said itself what there was to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
}

/// Runs the command that the process's arguments name.
#[must_use]
pub fn main() -> ExitCode {
    // Ends the process where a shell asks for completions.
    completions::answer_shell();
    let cli = Cli::parse();
    let context = Context {
        reach: Reach::new(cli.config),
        screen: Screen::stdout(),
    };
    match run(&cli.command, &context) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Failed) => ExitCode::FAILURE,
        // `xdp-lb status | head`: whoever read has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command, context: &Context) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::run(args, context),
        Command::Check(args) => check::run(args, context),
        Command::Status(args) => status::run(args, context),
        Command::Drain(args) => drain::run(args, context),
        Command::Resume(args) => resume::run(args, context),
        Command::Fail(args) => fail::run(args, context),
        Command::Failback(args) => failback::run(args, context),
        Command::Weight(args) => weight::run(args, context),
        Command::Reload => reload::run(context),
        Command::Maps(args) => maps::run(args, context),
        Command::Flows(args) => flows::run(args, context),
        Command::Where(args) => whereto::run(args, context),
        Command::Bench(args) => bench::run(args, context),
        Command::Completions(args) => completions::run(args, context),
        Command::Man(args) => man::run(args, context),
    }
}

/// Says what went wrong. The errors of a configuration file are rendered with their lines and begin with "error"
/// themselves.
fn report(error: &anyhow::Error) {
    let screen = Screen::stderr();
    let text = match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => errors.render(screen.look.colour),
        None => format!("{error:#}"),
    };
    if console::strip_ansi_codes(&text).starts_with("error") {
        let _nowhere = screen.line(&text);
    } else {
        screen.error(&text);
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser, error::ErrorKind};

    use super::Cli;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        let cases: &[(&[&str], ErrorKind)] = &[
            (&[], ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            (&["explode"], ErrorKind::InvalidSubcommand),
            (&["status", "--jsno"], ErrorKind::UnknownArgument),
            (&["status", "a", "b"], ErrorKind::UnknownArgument),
            (&["status", "--watch=soon"], ErrorKind::ValueValidation),
            (&["status", "--watch=0"], ErrorKind::ValueValidation),
            (&["drain"], ErrorKind::MissingRequiredArgument),
            (&["failback"], ErrorKind::MissingRequiredArgument),
            (
                &["drain", "b1", "--wait", "--timeout", "5"],
                ErrorKind::ValueValidation,
            ),
            (&["weight", "b1"], ErrorKind::MissingRequiredArgument),
            (&["weight", "b1", "heavy"], ErrorKind::ValueValidation),
            (&["weight", "b1", "-1"], ErrorKind::UnknownArgument),
            (&["where", "10.0.0.1"], ErrorKind::MissingRequiredArgument),
            (
                &["where", "10.0.0", "192.0.2.1:80"],
                ErrorKind::ValueValidation,
            ),
            (
                &["where", "10.0.0.1", "192.0.2.1"],
                ErrorKind::ValueValidation,
            ),
            (
                &["where", "10.0.0.1", "192.0.2.1:80", "--protocol", "sctp"],
                ErrorKind::InvalidValue,
            ),
            (
                &["flows", "--client", "10.0.0.1/33"],
                ErrorKind::ValueValidation,
            ),
            (&["completions", "cmd.exe"], ErrorKind::InvalidValue),
        ];
        for (arguments, kind) in cases {
            let line = std::iter::once("xdp-lb").chain(arguments.iter().copied());
            let error = Cli::try_parse_from(line).expect_err("wrong");
            assert_eq!(
                (error.kind(), error.exit_code()),
                (*kind, 2),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn right_usage_is_taken() {
        let cases: &[&[&str]] = &[
            &["status"],
            &["--config", "x.toml", "status", "web", "--json"],
            &["status", "--watch", "--config=x.toml"],
            &["status", "--watch=0.5"],
            &[
                "drain",
                "b1",
                "--service",
                "web",
                "--wait",
                "--timeout",
                "1h 30m",
            ],
            &["drain", "b1", "--timeout", "5m"],
            &["drain", "b1", "--wait", "--timeout", "none"],
            &["failback", "web", "--json"],
            &["weight", "b1", "default"],
            &["weight", "b1", "0"],
            &[
                "where",
                "10.0.0.1:4000",
                "192.0.2.1:80",
                "--protocol",
                "udp",
                "--json",
            ],
            &["flows", "--client", "10.0.0.0/8", "--limit", "0"],
            &["maps", "slots"],
        ];
        for arguments in cases {
            let line = std::iter::once("xdp-lb").chain(arguments.iter().copied());
            assert!(Cli::try_parse_from(line).is_ok(), "{arguments:?}");
        }
    }
}
