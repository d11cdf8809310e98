//! `cargo xtask test`: format, lints, every test; and nothing is left on the machine afterwards.

use std::{
    env,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::{
    build,
    leftovers::Leftovers,
    privilege::{Privilege, Variable, administrator_path},
    setup::{self, Needs},
    workspace::{Workspace, command_line, run_to_end, say},
};

/// The end-to-end suites run one test at a time: each has a network with traffic of its own, and on a small machine two
/// of them would steal each other's time until probes miss their timeouts.
const END_TO_END_THREADS: &str = "--test-threads=1";

/// The tests that make networks or load programs into the kernel, by the directory of their package and their target;
/// without a target, all of the package. A test that needs root and is not named here fails for whoever is not root.
const END_TO_END: &[(&str, Option<&str>)] = &[
    ("tests", None),
    ("lb-bench", Some("suite")),
    ("lb-userspace", Some("commands")),
    ("lb-userspace", Some("neighbour")),
];

/// All packages with tests; the kernel side has none of its own and links only for the kernel.
const TESTED: [&str; 5] = [
    "--workspace",
    "--exclude",
    "lb-ebpf",
    "--exclude",
    "lb-bench-ebpf",
];

/// The variables that go with a test through sudo, by how they begin.
const ENVIRONMENT_PREFIXES: [&str; 5] = ["RUST_", "PROPTEST_", "INSTA_", "XDP_LB_", "NO_COLOR"];

/// The task. `name_filter` leaves out the checks of format and lints, and all tests whose name does not contain it.
pub(crate) fn run(workspace: &Workspace, name_filter: Option<&str>) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::EVERYTHING)?;
    build::everything(workspace, &toolchain)?;
    let mut report = Report::default();
    let mut counts = Counts::default();
    if name_filter.is_none() {
        report.step("format", || check_format(workspace));
        report.step("lints", || check_lints(workspace));
    }
    let mut binaries = Vec::new();
    report.step("compiling the tests", || {
        binaries = compile(workspace)?;
        Ok(())
    });
    let (end_to_end, ordinary): (Vec<_>, Vec<_>) =
        binaries.into_iter().partition(TestBinary::is_end_to_end);
    report.step("unit, property and packet tests", || {
        let failed = failures(&ordinary, |binary| {
            // What xtask's own tests print are the numbers of tests that are none.
            let mut nothing = Counts::default();
            let of_xtask = binary.package.ends_with("xtask");
            let counts = if of_xtask { &mut nothing } else { &mut counts };
            run_ordinary(workspace, binary, name_filter, counts)
        });
        run_documentation(workspace, name_filter).and(failed)
    });
    report.step("end-to-end tests", || {
        run_end_to_end(workspace, &end_to_end, name_filter, &mut counts)
    });
    if name_filter.is_none() {
        report.step("counts", || counts.complete());
    }
    report.finish(&counts)
}

/// What tests count and print as `N LABEL`: how thorough a run was. The first two are the data path's (`tests/tests`), the
/// third is the controller's (`lb-userspace/src/control/simulation.rs`).
const COUNTED: [&str; 3] = ["packet cases", "differential packets", "transition steps"];

/// What the tests of this run have counted, in the order of [`COUNTED`].
#[derive(Debug, Default)]
struct Counts([u64; COUNTED.len()]);

impl Counts {
    /// Takes what a line says. The test harness may have begun the line with a test's name.
    fn read(&mut self, line: &str) {
        for (count, label) in self.0.iter_mut().zip(COUNTED) {
            let Some((before, after)) = line.split_once(label) else {
                continue;
            };
            let is_whole = !after.starts_with(|next: char| next.is_alphanumeric());
            let number = before
                .strip_suffix(' ')
                .map(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next());
            if let Some(Some(digits)) = number
                && is_whole
                && let Ok(number) = digits.parse::<u64>()
            {
                *count += number;
            }
        }
    }

    /// A run whose tests have not told a number did not run them.
    fn complete(&self) -> Result<()> {
        let missing: Vec<_> = self
            .0
            .iter()
            .zip(COUNTED)
            .filter(|(count, _)| **count == 0)
            .map(|(_, label)| format!("no test printed a line `N {label}`"))
            .collect();
        if !missing.is_empty() {
            bail!("{}", missing.join("\n"));
        }
        Ok(())
    }
}

/// [`run_to_end`], with what the command prints taken into the counts as well.
fn run_counting(command: &mut Command, counts: &mut Counts) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", command_line(command)))?;
    if let Some(mut output) = child.stdout.take() {
        let (mut line, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let len = output.read(&mut piece).context("cannot read from a test")?;
            // At once, so that whoever watches sees which test is running.
            let mut shown = io::stdout().lock();
            shown
                .write_all(&piece[..len])
                .and_then(|()| shown.flush())?;
            for byte in &piece[..len] {
                if *byte == b'\n' {
                    counts.read(&String::from_utf8_lossy(&line));
                    line.clear();
                } else {
                    line.push(*byte);
                }
            }
            if len == 0 {
                counts.read(&String::from_utf8_lossy(&line));
                break;
            }
        }
    }
    let status = child.wait().context("cannot wait for a test")?;
    if !status.success() {
        bail!("`{}` ended with {status}", command_line(command));
    }
    Ok(())
}

/// What became of each step.
#[derive(Debug, Default)]
struct Report {
    steps: Vec<(&'static str, Duration, Option<String>)>,
}

impl Report {
    /// Runs one step under its heading. After a failure the others run all the same: one run shows all there is to mend.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            say(&format!("{name}: {failure}"));
        }
        self.steps.push((name, start.elapsed(), failure));
    }

    /// The summary, and the error if there was one.
    fn finish(self, counts: &Counts) -> Result<()> {
        eprintln!("\n== summary");
        for (name, took, failure) in &self.steps {
            let outcome = if failure.is_none() { "ok" } else { "FAILED" };
            eprintln!("{outcome:>6}  {name} ({:.1} s)", took.as_secs_f64());
            for line in failure.iter().flat_map(|failure| failure.lines()) {
                eprintln!("        {line}");
            }
        }
        for (count, label) in counts
            .0
            .iter()
            .zip(COUNTED)
            .filter(|(count, _)| **count > 0)
        {
            eprintln!("{count} {label}");
        }
        let failed = self.steps.iter().filter(|step| step.2.is_some()).count();
        if failed > 0 {
            bail!("{failed} of {} steps failed", self.steps.len());
        }
        Ok(())
    }
}

fn check_format(workspace: &Workspace) -> Result<()> {
    run_to_end(workspace.cargo().args(["fmt", "--all", "--check"]))
        .context("`cargo fmt` puts it right")
}

/// The kernel side is looked at by itself: together with the rest it would get the features of `lb-common` that the tests
/// turn on, and these need an allocator.
fn check_lints(workspace: &Workspace) -> Result<()> {
    let lint = |packages: &[&str]| {
        run_to_end(workspace.cargo().arg("clippy").args(packages).args([
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    };
    let kernel_side = lint(&["--package", "lb-ebpf", "--package", "lb-bench-ebpf"]);
    lint(&TESTED).and(kernel_side)
}

/// A compiled test program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TestBinary {
    executable: PathBuf,
    /// The directory of its package, where cargo would start it.
    package: PathBuf,
    target: String,
}

impl TestBinary {
    fn is_end_to_end(&self) -> bool {
        END_TO_END.iter().any(|(package, target)| {
            self.package.file_name() == Some(package.as_ref())
                && target.is_none_or(|target| self.target == target)
        })
    }

    /// Reads one of cargo's messages; `None` if it is about something else.
    fn from_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        Some(Self {
            executable: message["executable"].as_str()?.into(),
            package: Path::new(message["manifest_path"].as_str()?)
                .parent()?
                .into(),
            target: message["target"]["name"].as_str()?.to_owned(),
        })
    }

    /// How people call it: its package's directory and its target.
    fn name(&self) -> String {
        let package = self.package.file_name().unwrap_or_default();
        format!("{}: {}", package.to_string_lossy(), self.target)
    }
}

/// Compiles all tests at once, as this user, so that nothing in `target` will be root's.
fn compile(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    let mut command = workspace.cargo();
    command
        .arg("test")
        .args(TESTED)
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", command_line(&command)))?;
    let output = child.wait_with_output().context("cannot read from cargo")?;
    if !output.status.success() {
        bail!("`{}` ended with {}", command_line(&command), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    Ok(messages
        .lines()
        .filter_map(TestBinary::from_message)
        .collect())
}

/// Runs all of them, whatever becomes of the first ones; the error counts those that failed.
fn failures(
    binaries: &[TestBinary],
    mut work: impl FnMut(&TestBinary) -> Result<()>,
) -> Result<()> {
    let mut failed = Vec::new();
    for binary in binaries {
        eprintln!("   {}", binary.name());
        if let Err(error) = work(binary) {
            failed.push(format!("{}: {error:#}", binary.name()));
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

fn run_ordinary(
    workspace: &Workspace,
    binary: &TestBinary,
    filter: Option<&str>,
    counts: &mut Counts,
) -> Result<()> {
    run_counting(
        Command::new(&binary.executable)
            .current_dir(&binary.package)
            .env("CARGO_MANIFEST_DIR", &binary.package)
            .env("XDP_LB_BINARY", workspace.binary())
            .args(filter),
        counts,
    )
}

fn run_documentation(workspace: &Workspace, filter: Option<&str>) -> Result<()> {
    run_to_end(
        workspace
            .cargo()
            .arg("test")
            .args(TESTED)
            .args(["--doc", "--quiet", "--"])
            .args(filter),
    )
}

fn run_end_to_end(
    workspace: &Workspace,
    binaries: &[TestBinary],
    filter: Option<&str>,
    counts: &mut Counts,
) -> Result<()> {
    if binaries.is_empty() {
        bail!("not one end-to-end test was compiled");
    }
    let root = Privilege::find("by the end-to-end tests")?;
    let before = Leftovers::look(root, &workspace.binary())?;
    let needs_more = makes_vlan_links(root).then_some("--include-ignored");
    if needs_more.is_none() {
        say("this kernel makes no VLAN links: the tests that need some are told as ignored");
    }
    let mut outcome = failures(binaries, |binary| {
        let mut command = root.command(&binary.executable, &environment(workspace, binary));
        command.current_dir(&binary.package);
        command
            .args(filter)
            .args(needs_more)
            .arg(END_TO_END_THREADS);
        run_counting(&mut command, counts)
    });
    let after = Leftovers::look(root, &workspace.binary())?;
    let left = after.since(&before);
    if !left.is_empty() {
        let left = format!("the tests left behind: {}", left.join(", "));
        outcome = Err(match outcome {
            Ok(()) => anyhow!("{left}"),
            Err(error) => anyhow!("{error:#}\n{left}"),
        });
    }
    outcome
}

/// Whether the kernel has 802.1Q links built in, or as a module that can be loaded.
fn makes_vlan_links(root: Privilege) -> bool {
    let known = || Path::new("/proc/net/vlan").exists();
    if known() {
        return true;
    }
    let mut load = root.command("modprobe", &[]);
    load.arg("8021q")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Without such a module it fails, and no machine needs a modprobe: both are answers.
    load.status().is_ok_and(|status| status.success()) && known()
}

/// What an end-to-end test gets to see of the environment.
fn environment(workspace: &Workspace, binary: &TestBinary) -> Vec<Variable> {
    let passed = env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let goes = ENVIRONMENT_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
        goes.then_some((name, value))
    });
    passed
        .chain([
            (
                "XDP_LB_BINARY".to_owned(),
                workspace.binary().into_os_string(),
            ),
            (
                "CARGO_MANIFEST_DIR".to_owned(),
                binary.package.clone().into_os_string(),
            ),
            ("PATH".to_owned(), administrator_path()),
        ])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package: &str, target: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","manifest_path":"/w/{package}/Cargo.toml",
            "target":{{"kind":["test"],"name":"{target}"}},"profile":{{"test":{test}}},
            "executable":"/w/target/debug/deps/{target}-1"}}"#
        )
    }

    fn test_binary(package: &str, target: &str) -> TestBinary {
        TestBinary::from_message(&message(package, target, true)).expect("a test binary")
    }

    #[test]
    fn end_to_end_tests_are_told_by_package_and_target() {
        let binary = test_binary("tests", "failover");
        assert_eq!(
            binary.executable,
            Path::new("/w/target/debug/deps/failover-1")
        );
        assert!(binary.is_end_to_end());
        assert!(test_binary("lb-userspace", "neighbour").is_end_to_end());
        assert!(!test_binary("lb-userspace", "config").is_end_to_end());
        assert!(!test_binary("lb-common", "neighbour").is_end_to_end());
    }

    #[test]
    fn other_messages_are_no_tests() {
        assert_eq!(
            TestBinary::from_message(&message("tests", "demo", false)),
            None
        );
        assert_eq!(
            TestBinary::from_message(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(TestBinary::from_message("   Compiling"), None);
    }

    #[test]
    fn what_tests_count_is_read_wherever_it_stands() {
        let mut counts = Counts::default();
        for line in [
            "3233 packet cases",
            "test a_test ... 1000000 differential packets",
            "68 transition steps, 9 packets",
            "2 transition steps",
            "test the_packet_cases_are_many ... ok",
            "many packet cases",
            "17 packet casesets",
        ] {
            counts.read(line);
        }
        assert_eq!(counts.0, [3233, 1_000_000, 70]);
        assert!(counts.complete().is_ok());
    }

    #[test]
    fn a_number_that_is_missing_is_a_failure() {
        let mut counts = Counts::default();
        counts.read("5 packet cases");
        counts.read("0 transition steps");
        let error = counts.complete().expect_err("two are missing").to_string();
        assert!(
            error.contains("`N differential packets`") && error.contains("`N transition steps`")
        );
        assert!(!error.contains("packet cases"), "{error}");
    }

    #[test]
    fn what_a_test_prints_is_counted_and_its_failure_is_one() {
        let mut counts = Counts::default();
        let say = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            command
        };
        run_counting(
            &mut say("printf 'test x ... 12 packet cases\\nok'"),
            &mut counts,
        )
        .expect("it ends well");
        run_counting(&mut say("printf '30 packet cases'; exit 3"), &mut counts)
            .expect_err("it ends with 3");
        assert_eq!(counts.0[0], 42);
    }

    #[test]
    fn every_failure_is_named() {
        let binary = test_binary("tests", "failover");
        let mut number = 0;
        let error = failures(&[binary.clone(), binary.clone(), binary], |_| {
            number += 1;
            if number == 2 {
                Ok(())
            } else {
                bail!("broken {number}")
            }
        });
        assert_eq!(
            format!("{:#}", error.expect_err("two failed")),
            "tests: failover: broken 1\ntests: failover: broken 3"
        );
    }

    #[test]
    fn a_failed_step_fails_the_run_and_the_next_one_runs() {
        let mut report = Report::default();
        let mut second = false;
        report.step("one", || bail!("no"));
        report.step("two", || {
            second = true;
            Ok(())
        });
        assert!(second);
        let error = report.finish(&Counts::default()).expect_err("one failed");
        assert_eq!(error.to_string(), "1 of 2 steps failed");
    }
}
