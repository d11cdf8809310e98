//! What a test run must not leave on the machine: namespaces, pins, processes.

use std::{collections::BTreeSet, fs, io, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    privilege::Privilege,
    workspace::{command_line, output_of},
};

/// The testbed names its network namespaces so.
const NAMESPACE_PREFIX: &str = "xlb-";
/// The pins of every instance begin so; it is the last part of the configuration's default `pin_path`.
const PIN_PREFIX: &str = "xdp-lb";

/// Everything of ours that is on the machine at one moment, each thing as a sentence's subject.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Looks at the machine; `binary` is the program whose processes count.
    pub(crate) fn look(root: Privilege, binary: &Path) -> Result<Self> {
        let mut all = BTreeSet::new();
        for name in names_in(root, "/run/netns")? {
            if name.starts_with(NAMESPACE_PREFIX) {
                all.insert(format!("network namespace {name}"));
            }
        }
        for name in names_in(root, "/sys/fs/bpf")? {
            if name.starts_with(PIN_PREFIX) {
                all.insert(format!("pins in /sys/fs/bpf/{name}"));
            }
        }
        all.extend(processes_of(binary)?);
        Ok(Self(all))
    }

    /// What is here and was not there `before`.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// The names in a directory that may be root's alone, or not be there.
fn names_in(root: Privilege, directory: &str) -> Result<Vec<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .with_context(|| format!("cannot read {directory}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mut command = root.command("ls", &[]);
            command.args(["-1", directory]);
            let names = output_of(&mut command)
                .with_context(|| format!("`{}` failed", command_line(&command)))?;
            Ok(names.lines().map(str::to_owned).collect())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {directory}")),
    }
}

/// The processes that were started as `binary`, by their command lines, which unlike `/proc/PID/exe` anyone may read.
fn processes_of(binary: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry.context("cannot read /proc")?;
        // Gone by now, or no process: not ours to report.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if program == binary.as_os_str().as_encoded_bytes() {
            found.push(format!(
                "process {} ({})",
                entry.file_name().to_string_lossy(),
                String::from_utf8_lossy(&line).replace('\0', " ").trim_end()
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn what_was_there_before_is_not_ours() {
        let set = |names: &[&str]| Leftovers(names.iter().map(|name| (*name).to_owned()).collect());
        let before = set(&["network namespace xlb-kept"]);
        let after = set(&["network namespace xlb-kept", "process 7"]);
        assert_eq!(after.since(&before), ["process 7"]);
        assert!(before.since(&after).is_empty());
    }

    #[test]
    fn a_running_process_is_found_by_its_program() {
        let mut child = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat starts");
        // Its answer shows that it runs: right after the start the kernel may not know its command line yet.
        let mut echo = [0];
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(b"x").expect("written");
        let mut output = child.stdout.take().expect("a pipe");
        output.read_exact(&mut echo).expect("read");
        let found = processes_of(Path::new("/bin/cat")).expect("a list");
        drop(input);
        child.wait().expect("cat ends");
        let name = format!("process {} (/bin/cat)", child.id());
        assert!(found.contains(&name), "{found:?}");
    }

    #[test]
    fn a_missing_directory_holds_nothing() {
        let names = names_in(Privilege::Root, "/run/netns-that-is-not-there");
        assert_eq!(names.expect("no error"), Vec::<String>::new());
    }
}
