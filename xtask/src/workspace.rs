//! Where the workspace and its build products are, and how its commands are started.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The checkout this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where all build products go. Always `target` below the root, whatever `CARGO_TARGET_DIR` says: the README,
    /// `lb-userspace/build.rs` and the packaging rely on that one place.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the workspace from where cargo says that xtask's own manifest is.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .with_context(|| format!("{} has no parent directory", manifest.display()))?
            .to_path_buf();
        let target = root.join("target");
        if let Some(elsewhere) = env::var_os("CARGO_TARGET_DIR")
            && root.join(&elsewhere) != target
        {
            say(&format!(
                "CARGO_TARGET_DIR={} is not used; everything goes to {}",
                elsewhere.display(),
                target.display()
            ));
        }
        Ok(Self { root, target })
    }

    /// The program that `cargo xtask build` leaves behind.
    pub(crate) fn binary(&self) -> PathBuf {
        self.target.join("release/xdp-lb")
    }

    /// The cargo that runs xtask, started in the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        self.cargo_at(Path::new(&program))
    }

    /// A cargo of the caller's choice, started in the workspace's root.
    pub(crate) fn cargo_at(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            // It would move the products to a sub-directory of its own.
            .env_remove("CARGO_BUILD_TARGET");
        command
    }
}

/// Tells the user something. To standard error, because `demo --json` promises its object as standard output's last line.
pub(crate) fn say(message: &str) {
    eprintln!("xtask: {message}");
}

/// Sends what `command` prints to standard error, for commands that are only a step on the way.
pub(crate) fn quiet_stdout(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::from(io::stderr()))
}

/// Runs `command` to its end; an error names the command line unless it ended with success.
pub(crate) fn run_to_end(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", command_line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", command_line(command));
    }
    Ok(())
}

/// What `command` prints on standard output if it can be started and succeeds.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `command` as one would type it.
pub(crate) fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
