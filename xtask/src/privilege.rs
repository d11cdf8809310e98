//! How a command gets root: it has it already, by sudo, or not at all.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{Workspace, command_line};

/// A variable of the environment: name and value.
pub(crate) type Variable = (String, OsString);

/// The way to root on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process is root.
    Root,
    /// It isn't, but there is sudo.
    Sudo,
}

impl Privilege {
    /// Finds the way; without one the error says that `purpose` is what root is wanted for.
    pub(crate) fn find(purpose: &str) -> Result<Self> {
        if rustix::process::geteuid().is_root() {
            Ok(Self::Root)
        } else if which::which("sudo").is_ok() {
            Ok(Self::Sudo)
        } else {
            bail!("root is needed {purpose}, and there is no sudo here: run this command as root");
        }
    }

    /// `program` with root's rights. sudo clears the environment, so what the program is to see is named in `environment`.
    pub(crate) fn command(self, program: impl AsRef<OsStr>, environment: &[Variable]) -> Command {
        match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.envs(environment.iter().map(|(name, value)| (name, value)));
                command
            }
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.arg("--").arg("env");
                for (name, value) in environment {
                    let mut assignment = OsString::from(name);
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }
}

/// Becomes a program that measures or shows what was built, as root, which `purpose` wants; it is told where xdp-lb is.
///
/// In place of xtask, so that a signal, wherever it is sent, reaches the program, and its clean-up and exit status are all that
/// the caller waits for: it returns only with an error.
pub(crate) fn become_root_program(
    workspace: &Workspace,
    program: &str,
    arguments: &[OsString],
    purpose: &str,
) -> Result<()> {
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
    let root = Privilege::find(purpose)?;
    let mut command = root.command(workspace.target.join(program), &environment);
    command.args(arguments);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", command_line(&command)))
}

/// `PATH` with the directories where ip, nginx and the like live, which a user's `PATH` may lack.
pub(crate) fn administrator_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    for directory in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !path.is_empty() {
            path.push(":");
        }
        path.push(directory);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary() -> [Variable; 1] {
        [("XDP_LB_BINARY".to_owned(), "/x/xdp-lb".into())]
    }

    #[test]
    fn sudo_is_told_the_environment_on_its_command_line() {
        let command = Privilege::Sudo.command("/x/demo", &binary());
        assert_eq!(
            command_line(&command),
            "sudo -- env XDP_LB_BINARY=/x/xdp-lb /x/demo"
        );
    }

    #[test]
    fn root_starts_the_program_itself() {
        let command = Privilege::Root.command("/x/demo", &binary());
        assert_eq!(command_line(&command), "/x/demo");
        assert_eq!(command.get_envs().count(), 1);
    }
}
