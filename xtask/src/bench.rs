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
    /// Passed on to the suite as they are: `--out DIR`, `--compare OLD.json`, `--quick`, `--vm`, names of rows
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Arguments {
    /// What the suite will want: a virtual machine only if it is told to use one.
    fn needs(&self) -> Needs {
        Needs {
            vm: self.arguments.iter().any(|argument| argument == "--vm"),
            ..Needs::DEMO
        }
    }
}

/// The task: sets up, builds everything for speed, and measures as root.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(workspace, arguments.needs())?;
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

    fn parsed(given: &[&str]) -> Arguments {
        let words = ["bench"].iter().chain(given);
        Line::try_parse_from(words).expect("a command line").bench
    }

    #[test]
    fn the_suite_gets_every_argument() {
        let given = ["--out", "results", "--quick", "tcp4", "--help"];
        assert_eq!(parsed(&given).arguments, given.map(OsString::from));
    }

    #[test]
    fn only_a_virtual_machine_needs_one() {
        let programs = |given: &[&str]| -> Vec<&str> {
            let needs = parsed(given).needs();
            needs.tools().map(|tool| tool.program).collect()
        };
        let plain = programs(&["--quick", "vm"]);
        assert!(plain.contains(&"nft") && !plain.contains(&"ipvsadm"));
        let vm = programs(&["--out", "results", "--vm"]);
        assert_eq!(vm[..plain.len()], plain);
        assert_eq!(
            vm[plain.len()..],
            ["qemu-system-x86_64", "ipvsadm", "modprobe"]
        );
        let everything: Vec<_> = Needs::EVERYTHING.tools().map(|t| t.program).collect();
        assert_eq!(everything, plain, "what the tests and the demo need");
    }
}
