//! `cargo xtask setup`: installs what is missing, says what and why, and does nothing where nothing is.

mod apt;
mod distro;
mod plan;

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, IsTerminal as _},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};
use os_release::OsRelease;
use semver::Version;

pub(crate) use self::plan::Needs;
use self::plan::{Found, LINTS, Lint, Rustup, Step, Tool};
use crate::{
    privilege::{Privilege, administrator_path},
    toolchain::{self, KernelToolchain, LINKER_VERSION},
    workspace::{Workspace, output_of, quiet_stdout, run_to_end, say},
};

/// Installs packages without letting one start a service: nginx's would take this machine's port 80. While the file is there,
/// Debian's maintainer scripts ask it first (invoke-rc.d(8)); one that was there before comes back. Nor is nginx to
/// start at the next boot: update-rc.d(8) sees to that with systemd as without.
const INSTALL_WITHOUT_SERVICES: &str = r#"
set -e
policy=/usr/sbin/policy-rc.d
put_back() {
    rm -f "$policy"
    if [ -e "$policy.xdp-lb" ]; then mv "$policy.xdp-lb" "$policy"; fi
}
if [ -e "$policy" ]; then mv "$policy" "$policy.xdp-lb"; fi
trap put_back EXIT
trap 'exit 130' INT TERM HUP
printf '#!/bin/sh\nexit 101\n' > "$policy"
chmod 755 "$policy"
"$@"
update-rc.d nginx disable
"#;

/// Sees to it that this machine has what `needs` names; returns the toolchain for the kernel side.
pub(crate) fn ensure(workspace: &Workspace, needs: Needs) -> Result<KernelToolchain> {
    let mut done: Vec<Step> = Vec::new();
    let mut announced: Vec<Step> = Vec::new();
    loop {
        let found = inspect(workspace, needs)?;
        if let Some(toolchain) = plan::ready(&found) {
            say(&format!(
                "everything needed is installed; {toolchain} builds the kernel side"
            ));
            return Ok(toolchain);
        }
        let steps = if apt::is_here() {
            plan::with_apt(&found, &apt::offers(done.contains(&Step::AptUpdate)))
        } else {
            plan::without_apt(&found)
        };
        let Some(steps) = steps.filter(|steps| !steps.is_empty()) else {
            bail!(no_way(&found));
        };
        if !announced.ends_with(&steps) {
            announce(&steps);
            announced.clone_from(&steps);
        }
        let step = &steps[0];
        if done.contains(step) {
            bail!("`{step}` ended with success, but what it should bring is still missing");
        }
        say(&format!("now: {step}"));
        execute(workspace, step, &steps)?;
        done.push(step.clone());
    }
}

/// Looks at this machine.
fn inspect(workspace: &Workspace, needs: Needs) -> Result<Found> {
    let minimum = minimum_version(env!("CARGO_PKG_RUST_VERSION"))?;
    let compilers = toolchain::compilers();
    let rustup = which::which("rustup").is_ok().then(|| Rustup {
        packaged: Path::new("/usr/bin/rustup").exists() && apt::has("rustup"),
        // rustup's proxies tell those they start which toolchain they took.
        active: env::var_os("RUSTUP_TOOLCHAIN").is_some(),
    });
    let is_missing = |tool: &&Tool| {
        which::which_in(tool.program, Some(administrator_path()), &workspace.root).is_err()
    };
    let is_absent =
        |lint: &Lint| output_of(workspace.cargo().args([lint.subcommand, "--version"])).is_none();
    Ok(Found {
        minimum,
        rustup,
        compilers,
        linkers: toolchain::linkers(workspace),
        llvm: toolchain::llvm_installations(),
        missing_tools: needs.tools().filter(is_missing).collect(),
        missing_lints: if needs.lints {
            LINTS
                .iter()
                .copied()
                .filter(|lint| is_absent(lint))
                .collect()
        } else {
            Vec::new()
        },
    })
}

/// A `rust-version` as a full version: cargo lets the last numbers be left out.
fn minimum_version(text: &str) -> Result<Version> {
    let mut full = text.to_owned();
    while full.matches('.').count() < 2 {
        full.push_str(".0");
    }
    Version::parse(&full).with_context(|| format!("rust-version `{text}` is not a version"))
}

/// Says what will be done and why.
fn announce(steps: &[Step]) {
    say("this machine lacks something; it will be installed in these steps:");
    for step in steps {
        eprintln!("  {step}");
        // Several packages may come for one reason.
        let reasons: BTreeSet<_> = step.reasons().into_iter().collect();
        for reason in reasons {
            eprintln!("      {reason}");
        }
    }
}

/// Does `step`. When root is out of reach, the error lists all that root would have to type of `steps`.
fn execute(workspace: &Workspace, step: &Step, steps: &[Step]) -> Result<()> {
    let by_hand = || {
        let commands = steps.iter().filter(|step| step.needs_root());
        let lines: Vec<_> = commands.map(|step| format!("\n  {step}")).collect();
        format!("or, as root, type:{}\nthen try again", lines.concat())
    };
    let root = || {
        Privilege::find("to install packages").map_err(|error| anyhow!("{error}; {}", by_hand()))
    };
    match step {
        Step::AptUpdate => {
            // One broken source among many fails it; what is needed may be in the others.
            let mut update = root()?.command("apt-get", &[]);
            if let Err(error) = run_to_end(quiet_stdout(update.arg("update"))) {
                say(&format!(
                    "warning: {error:#}; going on with the lists there are"
                ));
            }
            Ok(())
        }
        Step::Apt(packages) => {
            let names = packages.iter().map(|package| package.name.as_str());
            let mut command = apt_install(root()?, &names.collect::<Vec<_>>());
            // The command line is no help here: it holds a whole script.
            run_to_end(quiet_stdout(&mut command)).map_err(|_| {
                anyhow!(
                    "`{step}` failed, for the reason above: mend that, {}",
                    by_hand()
                )
            })
        }
        Step::RustupNightly => run_to_end(quiet_stdout(
            Command::new("rustup")
                .args(["toolchain", "install", "nightly"])
                .args(["--profile", "minimal", "--component", "rust-src"]),
        )),
        Step::RustupComponents(components) => run_to_end(quiet_stdout(
            Command::new("rustup")
                .args(["component", "add"])
                .args(components),
        )),
        Step::Linker { llvm, beside } => install_linker(workspace, *llvm, *beside),
    }
}

/// The command that installs `packages` and nothing they merely recommend, and removes nothing.
fn apt_install(root: Privilege, packages: &[&str]) -> Command {
    let install = [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "--no-remove",
        // A new machine is often busy with its first automatic updates.
        "-o",
        "DPkg::Lock::Timeout=300",
    ];
    let environment = [("DEBIAN_FRONTEND".to_owned(), "noninteractive".into())];
    let mut command = if packages.contains(&"nginx") {
        let mut command = root.command("sh", &environment);
        command.args(["-c", INSTALL_WITHOUT_SERVICES, "sh"]);
        command.args(install);
        command
    } else {
        let mut command = root.command(install[0], &environment);
        command.args(&install[1..]);
        command
    };
    if io::stderr().is_terminal() {
        command.args(["-o", "Dpkg::Progress-Fancy=1"]);
    }
    command.args(packages);
    command
}

/// Builds bpf-linker against the LLVM installed under its prefix.
fn install_linker(workspace: &Workspace, llvm: u64, beside: bool) -> Result<()> {
    let installations = toolchain::llvm_installations();
    let prefix = installations
        .get(&llvm)
        .with_context(|| format!("LLVM {llvm} is not installed, or without its libLLVM.so"))?;
    let root = if beside {
        toolchain::own_linker_root(workspace)
    } else {
        toolchain::cargo_install_root()
    };
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    run_to_end(quiet_stdout(
        workspace
            .cargo()
            // Its build is no part of ours: a directory of its own, which cargo removes afterwards.
            .env_remove("CARGO_TARGET_DIR")
            .env("LLVM_PREFIX", prefix)
            .args(["install", "bpf-linker", "--locked", "--version"])
            .arg(LINKER_VERSION.to_string())
            .arg("--no-default-features")
            .arg(format!("--features=llvm-{llvm}"))
            .arg("--root")
            .arg(&root),
    ))
    .context("bpf-linker links the kernel side, and could not be built")
}

/// What to tell someone whose machine we can't set up.
fn no_way(found: &Found) -> String {
    let release = OsRelease::new().unwrap_or_default();
    let name = if release.pretty_name.is_empty() {
        "this machine"
    } else {
        &release.pretty_name
    };
    let advice = distro::advice(&release, found);
    format!(
        "xtask can't install on {name} what is missing. These commands do, then try again:\n{advice}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_rust_version_is_completed() {
        let parse = |text| minimum_version(text).expect("a version");
        assert_eq!(parse("1.95"), Version::new(1, 95, 0));
        assert_eq!(parse("1.95.1"), Version::new(1, 95, 1));
        assert!(minimum_version("new").is_err());
    }

    #[test]
    fn only_nginx_has_a_service_to_hold_back() {
        let line = |packages: &[&str]| {
            let command = apt_install(Privilege::Root, packages);
            command.get_program().to_owned()
        };
        assert_eq!(line(&["iproute2", "nginx"]), "sh");
        assert_eq!(line(&["iproute2"]), "apt-get");
    }
}
