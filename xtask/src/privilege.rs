//! How a command gets root: it has it already, by sudo, or not at all.

use std::{
    ffi::{OsStr, OsString},
    process::Command,
};

use anyhow::{Result, bail};

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

/// `PATH` with the directories where ip, nginx and the like live, which a user's `PATH` may lack.
pub(crate) fn administrator_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
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
    use crate::workspace::command_line;

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
