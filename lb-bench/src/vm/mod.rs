//! `--vm`: the rows of live frames once more, and IPVS among them, in a virtual machine with the distribution's own kernel.
//!
//! The machine is emulated, and its clock counts instructions: what is told is how many one frame takes, not how long.

mod guest;
mod initramfs;
mod kernel;
mod qemu;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_userspace::bench::{
    machine::VirtualMachine,
    results::{Outcome, Unit},
};

pub(crate) use self::guest::first_process;
use self::{guest::Told, initramfs::Archive, qemu::Signals};
use crate::progress::Progress;

/// All ratios of these rows are to this one.
pub(crate) const FLOOR: &str = "vm_floor";

/// The programs that the measuring starts, and the one that loads modules.
const PROGRAMS: [&str; 5] = ["ip", "bridge", "nft", "ipvsadm", "insmod"];
/// Where the kernel's package is unpacked: some 500 MB, too much for a `/tmp` in memory.
const SCRATCH: &str = "/var/tmp";

/// The rows whose name contains one of `wanted`, or all of them if that is empty, and the machine they are of. `None` where
/// none is wanted.
pub(crate) fn run(wanted: &[String]) -> Result<Option<(VirtualMachine, Vec<Outcome>)>> {
    if !guest::is_wanted(wanted) {
        return Ok(None);
    }
    // Before anything is made that has to go again.
    let signals = Signals::hold()?;
    let progress = Progress::spinner("virtual machine");
    let directory = tempfile::Builder::new()
        .prefix("xdp-lb-vm-")
        .tempdir_in(SCRATCH)
        .with_context(|| format!("making a directory in {SCRATCH}"))?;
    progress.note("virtual machine: the distribution's kernel");
    let kernel =
        kernel::fetch(directory.path(), &signals).context("the virtual machine's kernel")?;
    progress.note("virtual machine: its first file system");
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, file_system(&kernel.modules)?)
        .with_context(|| format!("writing {}", initrd.display()))?;
    let results = directory.path().join("results");
    let console = tempfile::Builder::new()
        .prefix("xdp-lb-vm-console-")
        .suffix(".log")
        .tempfile()
        .context("making a file for the console")?;
    let machine = qemu::Machine {
        kernel: &kernel.image,
        initrd: &initrd,
        console: console.path(),
        results: &results,
        arguments: wanted,
    };
    let told = machine
        .run(&signals, |row| {
            progress.note(&format!("virtual machine: {row}"));
        })
        .and_then(|()| understood(&fs::read_to_string(&results).unwrap_or_default()));
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            let last = last_line(&fs::read_to_string(console.path()).unwrap_or_default());
            let (_, kept) = console.keep().context("keeping the console's log")?;
            return Err(error.context(format!(
                "the virtual machine with Linux {}; its console is in {}, and ends with `{last}`",
                kernel.release,
                kept.display()
            )));
        }
    };
    let machine = VirtualMachine {
        kernel: told.kernel.clone(),
        emulator: qemu::version()?,
        icount_shift: qemu::SHIFT,
    };
    Ok(Some((machine, outcomes(&told)?)))
}

/// Everything in the machine's memory: this program, those it starts with their libraries, the modules.
fn file_system(modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let own = std::env::current_exe().context("finding this program")?;
    archive.program("init", &own)?;
    for name in PROGRAMS {
        let path = which::which(name)
            .with_context(|| format!("`{name}` is not installed; `cargo xtask bench --vm` does"))?;
        archive.program(&format!("bin/{name}"), &path)?;
    }
    for (place, module) in modules.iter().enumerate() {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        archive.file(
            &format!("{}/{place:03}-{name}", guest::MODULES),
            read(module)?,
        );
    }
    for directory in guest::MOUNT_POINTS {
        archive.directory(directory);
    }
    archive.bytes()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What the guest has written, or what it says went wrong.
fn understood(text: &str) -> Result<Told> {
    ensure!(
        !text.trim().is_empty(),
        "the machine ended before it had told its results"
    );
    let told: Result<Told, String> = serde_json::from_str(text)
        .with_context(|| format!("its results are cut short or garbled: {}", text.trim()))?;
    told.map_err(|error| anyhow!(error))
}

/// The rows against the machine's own floor.
fn outcomes(told: &Told) -> Result<Vec<Outcome>> {
    let Some(floor) = told.rows.iter().find(|row| row.name == FLOOR) else {
        bail!("the machine did not measure {FLOOR}");
    };
    let floor = floor.min;
    ensure!(floor > 0.0, "the machine's clock stands still");
    let rows = told.rows.iter().map(|row| Outcome {
        name: row.name.clone(),
        unit: Unit::Instructions,
        value: Some(row.min),
        min_ns: Some(row.min),
        median_ns: Some(row.median),
        ratio: Some(row.min / floor),
        target: None,
    });
    Ok(rows.collect())
}

fn last_line(console: &str) -> String {
    let line = console.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().to_owned()
}

/// What a command prints; an error says how it ended.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "`{command:?}` ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{guest::Figures, *};

    fn told(rows: &[(&str, f64)]) -> Told {
        Told {
            kernel: "6.1.0".into(),
            rows: rows
                .iter()
                .map(|(name, min)| Figures {
                    name: (*name).into(),
                    min: *min,
                    median: min + 1.0,
                })
                .collect(),
        }
    }

    #[test]
    fn rows_are_told_against_the_machines_floor() {
        let rows = outcomes(&told(&[(FLOOR, 200.0), ("vm_ipvs_dr", 900.0)])).expect("rows");
        let ipvs = &rows[1];
        assert_eq!(
            (ipvs.unit, ipvs.value, ipvs.median_ns, ipvs.ratio),
            (Unit::Instructions, Some(900.0), Some(901.0), Some(4.5))
        );
        let error = outcomes(&told(&[("vm_ipvs_dr", 900.0)])).expect_err("no floor");
        assert!(error.to_string().contains(FLOOR), "{error}");
        assert!(outcomes(&told(&[(FLOOR, 0.0)])).is_err());
    }

    #[test]
    fn what_the_guest_says_is_understood() {
        let rows = told(&[(FLOOR, 200.5)]);
        // A terminal makes its own of the end of a line.
        let text = |told: &Result<Told, String>| {
            format!("{}\r\n", serde_json::to_string(told).expect("written"))
        };
        assert_eq!(understood(&text(&Ok(rows.clone()))).expect("rows"), rows);
        let error = understood(&text(&Err("no module ip_vs".into()))).expect_err("an error");
        assert_eq!(error.to_string(), "no module ip_vs");
        let nothing = understood("\r\n").expect_err("nothing");
        assert!(nothing.to_string().contains("ended before"), "{nothing}");
        let half = understood("{\"Ok\":{\"kernel\":\"6.1").expect_err("half of it");
        assert!(half.to_string().contains("{\"Ok\":"), "{half}");
    }

    #[test]
    fn the_console_ends_with_what_was_said_last() {
        assert_eq!(
            last_line("booting\nKernel panic\r\n\n \r\n"),
            "Kernel panic"
        );
        assert_eq!(last_line(""), "");
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let error = output(Command::new("sh").args(["-c", "echo gone >&2; exit 3"]));
        let error = error.expect_err("it fails").to_string();
        assert!(
            error.contains("gone") && error.contains("exit status: 3"),
            "{error}"
        );
    }
}
