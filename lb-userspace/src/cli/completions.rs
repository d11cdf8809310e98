//! `xdp-lb completions`: the shell asks the program itself, so names of services and backends complete as well.
//!
//! Registered once (`source <(xdp-lb completions bash)`), the shell calls the program with `COMPLETE` set for every
//! completion; the names come from the configuration file, which needs neither the daemon nor root.

use std::{ffi::OsString, path::PathBuf};

use anyhow::anyhow;
use clap::{CommandFactory, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    engine::ArgValueCandidates,
    env::{CompleteEnv, Shells},
};

use super::{Cli, Context, Exit, reach::Reach};

/// The variable that tells the program that a shell asks.
const VARIABLE: &str = "COMPLETE";
const NAME: &str = "xdp-lb";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell; for bash: `source <(xdp-lb completions bash)`
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Zsh,
}

impl Shell {
    const fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Elvish => "elvish",
            Self::Fish => "fish",
            Self::Zsh => "zsh",
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(args.shell.name())
        .ok_or_else(|| anyhow!("no completion for {}", args.shell.name()))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, NAME, NAME, NAME, &mut script)?;
    context.screen.line(String::from_utf8(script)?.trim_end())?;
    Ok(Exit::Done)
}

/// Answers the shell and ends the process, if it is a shell that asks.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .complete();
}

/// The names of all backends.
pub(crate) fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        candidates(
            reach()
                .names()
                .into_iter()
                .flat_map(|(_, backends)| backends),
        )
    })
}

/// The names of all services.
pub(crate) fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(reach().names().into_iter().map(|(service, _)| service)))
}

/// The names of the maps.
pub(crate) fn maps() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(lb_common::abi::map::ALL.into_iter().map(str::to_owned)))
}

fn candidates(names: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// The configuration that the line being completed names.
fn reach() -> Reach {
    Reach::new(config_in(std::env::args_os()))
}

/// The value of `--config` among the words of a line.
fn config_in(words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let mut words = words;
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word
            .to_str()
            .and_then(|word| word.strip_prefix("--config="))
        {
            return Some(PathBuf::from(path));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(words: &[&str]) -> Option<PathBuf> {
        config_in(words.iter().map(OsString::from))
    }

    #[test]
    fn the_line_names_the_configuration() {
        assert_eq!(config(&["xdp-lb", "drain", "b"]), None);
        assert_eq!(
            config(&["xdp-lb", "--config", "a.toml", "drain"]),
            Some("a.toml".into())
        );
        assert_eq!(
            config(&["xdp-lb", "drain", "--config=b.toml"]),
            Some("b.toml".into())
        );
        assert_eq!(config(&["xdp-lb", "--config"]), None);
    }

    #[test]
    fn names_come_from_the_file_even_a_broken_one() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = r#"
            [[service]]
            name = "web"
            [[service.backend]]
            name = "b2"
            [[service.backend]]
            name = "b1"
            [[service]]
            name = "mail"
            backend = [{ name = "b1" }]
            vip =
        "#;
        std::fs::write(file.path(), text).expect("written");
        let reach = Reach::new(Some(file.path().to_owned()));
        let names = reach.names();
        let backends = candidates(names.iter().flat_map(|(_, backends)| backends.clone()));
        let backends: Vec<_> = backends
            .iter()
            .map(|one| one.get_value().to_owned())
            .collect();
        assert_eq!(backends, ["b1", "b2"]);
        assert_eq!(names.len(), 2);
    }
}
