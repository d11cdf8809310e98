//! `cargo xtask demo`: builds the demo of `lb-tests` and becomes it.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    build,
    privilege::{Privilege, administrator_path},
    setup::{self, Needs},
    workspace::{Workspace, command_line, quiet_stdout, run_to_end},
};

/// What the demo is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the network up, and print how to enter each host
    #[arg(long)]
    keep: bool,
    /// Print the result as one JSON object, in the last line of standard output
    #[arg(long)]
    json: bool,
    /// Passed on to the demo as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Arguments {
    fn to_pass_on(&self) -> Vec<OsString> {
        let keep = self.keep.then(|| OsString::from("--keep"));
        let json = self.json.then(|| OsString::from("--json"));
        keep.into_iter()
            .chain(json)
            .chain(self.arguments.iter().cloned())
            .collect()
    }
}

/// The task: sets up, builds, and runs the demo as root.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::DEMO)?;
    build::everything(workspace, &toolchain)?;
    run_to_end(quiet_stdout(workspace.cargo().args([
        "build",
        "--package",
        "lb-tests",
        "--bin",
        "demo",
    ])))?;
    let root = Privilege::find("to make network namespaces and load an XDP program")?;
    let mut environment = vec![
        (
            "XDP_LB_BINARY".to_owned(),
            workspace.binary().into_os_string(),
        ),
        ("PATH".to_owned(), administrator_path()),
    ];
    for name in ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"] {
        if let Some(value) = env::var_os(name) {
            environment.push((name.to_owned(), value));
        }
    }
    let mut command = root.command(workspace.target.join("debug/demo"), &environment);
    command.args(arguments.to_pass_on());
    // In place of xtask, so that a signal, wherever it is sent, reaches the demo, and its clean-up and exit status are all
    // that the caller waits for.
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", command_line(&command)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        demo: Arguments,
    }

    #[test]
    fn the_demo_gets_every_argument() {
        let line = Line::try_parse_from(["demo", "--json", "--seconds", "5", "--keep"])
            .expect("a valid command line");
        let passed = line.demo.to_pass_on();
        for argument in ["--json", "--seconds", "5", "--keep"] {
            assert!(passed.contains(&argument.into()), "{argument}: {passed:?}");
        }
        assert_eq!(passed.len(), 4);
    }
}
