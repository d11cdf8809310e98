//! `cargo xtask bench`: builds the suite of `lb-bench` and becomes it.

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build,
    privilege::become_root_program,
    setup::{self, Needs},
    workspace::{Workspace, quiet_stdout, run_to_end},
};

/// What the suite is told; `--help` behind `--` shows it all.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Passed on to the suite as they are: `--out DIR`, `--compare OLD.json`, `--quick`, names of rows
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// The task: sets up, builds everything for speed, and measures as root.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::DEMO)?;
    build::everything(workspace, &toolchain)?;
    run_to_end(quiet_stdout(workspace.cargo().args([
        "build",
        "--release",
        "--package",
        "lb-bench",
    ])))?;
    become_root_program(
        workspace,
        "release/lb-bench",
        &arguments.arguments,
        "to load BPF programs and make network namespaces",
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: Arguments,
    }

    #[test]
    fn the_suite_gets_every_argument() {
        let given = ["--out", "results", "--quick", "tcp4", "--help"];
        let line =
            Line::try_parse_from(["bench"].into_iter().chain(given)).expect("a command line");
        assert_eq!(line.bench.arguments, given.map(OsString::from));
    }
}
