//! What the kernel must allow and have: rights, version, BPF file system.

use std::path::Path;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use rustix::thread::CapabilitySet;

use super::Check;
use crate::{
    cli::human,
    dataplane::{Access, DataplaneError, Maps, bpffs},
};

/// The oldest kernel that has all the program needs. In the order they came: memory-mapped arrays (5.5), XDP links
/// that outlive their maker and take a new program (5.9), `bpf_ktime_get_coarse_ns` and BPF memory that no longer
/// counts against `RLIMIT_MEMLOCK` (5.11).
const OLDEST: (u32, u32) = (5, 11);
/// The oldest kernel whose verifier has taken the program, with all packet cases; those before it know less of the ranges of
/// numbers, and may refuse it.
const SUPPORTED: (u32, u32) = (6, 1);

/// Whether this process may load programs and configure interfaces; and, as a node of a cluster, fence another one.
pub(super) fn privileges(clustered: bool) -> Check {
    let mut needed = vec![
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ];
    if clustered {
        needed.push((CapabilitySet::NET_RAW, "CAP_NET_RAW"));
    }
    let effective = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective,
        Err(error) => {
            return Check::error(
                "privileges",
                format!("the kernel does not tell them: {error}"),
            );
        }
    };
    // CAP_SYS_ADMIN stands for the two that were split off from it (Linux 5.8).
    let admin = effective.contains(CapabilitySet::SYS_ADMIN);
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|(capability, _)| {
            let split_off = CapabilitySet::BPF | CapabilitySet::PERFMON;
            let implied = admin && split_off.contains(*capability);
            !effective.contains(*capability) && !implied
        })
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        let root = rustix::process::geteuid().is_root();
        Check::ok(
            "privileges",
            if root {
                "root"
            } else {
                "not root, but with all capabilities needed"
            },
        )
    } else {
        Check::error("privileges", format!("missing {}", missing.join(", ")))
            .help("run as root: `sudo xdp-lb check`")
    }
}

/// Whether the kernel has what the program uses.
pub(super) fn kernel(rights: bool) -> Check {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    // What the kernel does counts for more than its number: distributions port features back.
    let has_clock = rights
        .then(|| {
            is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_coarse_ns).ok()
        })
        .flatten();
    judge_kernel(&release, has_clock)
}

/// `has_clock`: whether the newest helper that is needed is there, where the kernel could be asked.
fn judge_kernel(release: &str, has_clock: Option<bool>) -> Check {
    let found = format!("Linux {release}");
    let needs = format!("xdp-lb needs Linux {}.{} or newer", OLDEST.0, OLDEST.1);
    match (has_clock, version(release)) {
        (Some(false), _) => {
            Check::error("kernel", format!("{found} has no bpf_ktime_get_coarse_ns")).help(needs)
        }
        (None, Some(version)) if version < OLDEST => Check::error("kernel", found).help(needs),
        (_, Some(version)) if version < SUPPORTED => {
            let (major, minor) = SUPPORTED;
            Check::warning("kernel", format!("{found} is older than {major}.{minor}"))
                .help("it has what xdp-lb needs, but its verifier may refuse the program: xdp-lb is not tested on it")
        }
        (None, None) => Check::warning(
            "kernel",
            format!("the version of \"{found}\" can't be told"),
        )
        .help(needs),
        _ => Check::ok("kernel", found),
    }
}

/// Major and minor version in a release as `uname -r` shows it.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The pin path, and what is pinned there already: those maps, if they are of this version.
pub(super) fn pins(pin_path: &Path, rights: bool) -> (Vec<Check>, Option<Maps>) {
    const STANDARD: &str = "/sys/fs/bpf";
    let name = "pins";
    let mut checks = vec![match bpffs::is_bpffs(pin_path) {
        Ok(true) => Check::ok(
            name,
            format!("{} is on a BPF file system", pin_path.display()),
        ),
        Ok(false) if pin_path.starts_with(STANDARD) => {
            Check::warning(name, format!("no BPF file system is mounted at {STANDARD}")).help(
                format!("`xdp-lb run` will mount it; by hand: `mount -t bpf bpf {STANDARD}`"),
            )
        }
        Ok(false) => {
            let parent = pin_path.parent().unwrap_or(pin_path).display();
            Check::error(
                name,
                format!("{} is not on a BPF file system", pin_path.display()),
            )
            .help(format!(
                "mount one (`mount -t bpf bpf {parent}`) or use a pin_path below {STANDARD}"
            ))
        }
        // The standard place is for root alone; without rights that has been said already.
        Err(error) if !rights => Check::warning(
            name,
            format!("{} can't be looked at: {error}", pin_path.display()),
        ),
        Err(error) => Check::error(
            name,
            format!("{} can't be looked at: {error}", pin_path.display()),
        ),
    }];
    if rights {
        match Maps::open_pinned(pin_path, Access::Read) {
            Ok(maps) => {
                checks.push(Check::ok(
                    name,
                    format!(
                        "maps of this version are pinned there ({} applied): a daemon that starts takes them over",
                        human::counted(maps.control().generation.get(), "change")
                    ),
                ));
                return (checks, Some(maps));
            }
            Err(DataplaneError::NotPinned { .. } | DataplaneError::HalfMade { .. }) => {}
            Err(error) => checks.push(Check::error(name, error.to_string())),
        }
    }
    (checks, None)
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn kernels() {
        let cases = [
            ("6.1.0-38-amd64", None, Grade::Ok),
            ("6.18.1", Some(true), Grade::Ok),
            ("6.1.0-50-amd64", None, Grade::Ok),
            ("5.15.0-91-generic", None, Grade::Warning),
            ("5.14.0-503.el9.x86_64", Some(true), Grade::Warning),
            ("5.10.0-35-amd64", None, Grade::Error),
            // A distribution's old number with new features.
            ("4.18.0-553.el8_10.x86_64", Some(true), Grade::Warning),
            ("6.1.0", Some(false), Grade::Error),
            ("mystery", None, Grade::Warning),
            ("mystery", Some(true), Grade::Ok),
        ];
        for (release, has_clock, grade) in cases {
            assert_eq!(
                judge_kernel(release, has_clock).result,
                grade,
                "{release} {has_clock:?}"
            );
        }
    }

    #[test]
    fn a_pin_path_elsewhere_says_how_to_mount() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let (checks, _) = pins(&dir.path().join("lb"), false);
        assert_eq!(checks[0].result, Grade::Error);
        let help = checks[0].help.as_deref().expect("what to do");
        assert!(help.contains("mount -t bpf bpf"), "{help}");
    }
}
