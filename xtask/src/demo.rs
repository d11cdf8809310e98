//! `cargo xtask demo`: builds the demo of `lb-tests` and becomes it.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build,
    privilege::become_root_program,
    setup::{self, Needs},
    workspace::{Workspace, quiet_stdout, run_to_end},
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
    become_root_program(
        workspace,
        "debug/demo",
        &arguments.to_pass_on(),
        "to make network namespaces and load an XDP program",
    )
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
