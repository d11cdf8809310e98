//! What apt offers: compilers with their source, and the LLVM each was built with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::{Duration, SystemTime},
};

use semver::Version;

use crate::{toolchain::LINKER_LLVMS, workspace::output_of};

/// Package lists older than this are fetched anew before anything is installed: a mirror keeps no outdated packages.
const LISTS_STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What apt could install.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offers {
    pub(crate) families: Vec<Family>,
    /// The LLVM major versions with an `llvm-N-dev`.
    pub(crate) llvm_dev: BTreeSet<u64>,
    /// There are package lists at all; a new container has none.
    pub(crate) lists: bool,
    /// The package lists are there and not old.
    pub(crate) fresh: bool,
}

/// The packages of one Rust release: `rustc`, `rustc-web` (Debian's newer one, kept for browsers), `rustc-1.95` (Ubuntu).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// `""`, `"-web"`, `"-1.95"`.
    pub(crate) suffix: String,
    /// The version that would be there after installing.
    pub(crate) version: Version,
    /// The LLVM it depends on, as far as the packages tell.
    pub(crate) llvm: Option<u64>,
    /// The compiler is installed, in whatever version.
    pub(crate) installed: bool,
    /// What to ask apt for to have compiler, cargo and source in [`Self::version`].
    pub(crate) missing: Vec<String>,
}

/// Whether this machine installs packages with apt.
pub(crate) fn is_here() -> bool {
    which::which("apt-get").is_ok() && which::which("dpkg-query").is_ok()
}

/// Whether `package` is installed.
pub(crate) fn has(package: &str) -> bool {
    output_of(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// Asks apt for everything the decision wants to know. `updated`: its lists were fetched just now.
pub(crate) fn offers(updated: bool) -> Offers {
    let names =
        output_of(Command::new("apt-cache").args(["pkgnames", "rustc"])).unwrap_or_default();
    let llvms =
        output_of(Command::new("apt-cache").args(["pkgnames", "llvm-"])).unwrap_or_default();
    let suffixes = family_suffixes(&names);
    let packages = suffixes.iter().flat_map(|suffix| family_packages(suffix));
    let policy = output_of(
        Command::new("apt-cache")
            .arg("policy")
            .args(packages)
            .env("LC_ALL", "C"),
    );
    let policy = parse_policy(&policy.unwrap_or_default());
    let dependencies = output_of(
        Command::new("apt-cache")
            .args(["depends", "--recurse", "--important"])
            .args(suffixes.iter().map(|suffix| format!("rustc{suffix}")))
            .env("LC_ALL", "C"),
    );
    let dependencies = parse_depends(&dependencies.unwrap_or_default());
    let age = lists_age();
    Offers {
        families: suffixes
            .iter()
            .filter_map(|suffix| family(suffix, &policy, &dependencies))
            .collect(),
        llvm_dev: llvm_dev_packages(&llvms),
        lists: age.is_some(),
        fresh: updated || age.is_some_and(|age| age < LISTS_STALE_AFTER),
    }
}

/// How long ago apt's lists were fetched; `None` without any.
fn lists_age() -> Option<Duration> {
    let lists = "/var/lib/apt/lists";
    fs::read_dir(lists)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().contains("_Packages"))?;
    // Each fetch renames files into the directory; the files themselves bear the server's dates.
    let fetched = fs::metadata(lists).ok()?.modified().ok()?;
    Some(
        SystemTime::now()
            .duration_since(fetched)
            .unwrap_or_default(),
    )
}

/// The suffixes of the packages in `names` that are compilers.
fn family_suffixes(names: &str) -> BTreeSet<String> {
    names
        .lines()
        .filter_map(|name| name.strip_prefix("rustc"))
        .filter(|suffix| {
            let version = suffix.strip_prefix('-').unwrap_or("x");
            suffix.is_empty()
                || *suffix == "-web"
                || version.chars().all(|c| c.is_ascii_digit() || c == '.')
        })
        .map(str::to_owned)
        .collect()
}

/// Compiler, cargo and source.
fn family_packages(suffix: &str) -> [String; 3] {
    [
        format!("rustc{suffix}"),
        format!("cargo{suffix}"),
        format!("rust{suffix}-src"),
    ]
}

fn family(
    suffix: &str,
    policy: &BTreeMap<String, Policy>,
    dependencies: &BTreeMap<String, BTreeSet<String>>,
) -> Option<Family> {
    let packages = family_packages(suffix);
    let states: Vec<&Policy> = packages
        .iter()
        .map(|package| policy.get(package))
        .collect::<Option<_>>()?;
    let candidate = states[0].candidate.clone()?;
    // A source of another version is of no use.
    if states
        .iter()
        .any(|state| state.candidate.as_deref().map(upstream) != Some(upstream(&candidate)))
    {
        return None;
    }
    let missing = packages
        .iter()
        .zip(&states)
        .filter(|(_, state)| state.installed != state.candidate)
        .map(|(package, _)| package.clone())
        .collect();
    Some(Family {
        suffix: suffix.to_owned(),
        version: upstream(&candidate)?,
        llvm: llvm_of(&packages[0], dependencies),
        installed: states[0].installed.is_some(),
        missing,
    })
}

/// One package's versions, in Debian's notation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Policy {
    installed: Option<String>,
    candidate: Option<String>,
}

/// Reads `apt-cache policy`.
fn parse_policy(text: &str) -> BTreeMap<String, Policy> {
    let mut all: BTreeMap<String, Policy> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let version = |rest: &str| Some(rest.trim().to_owned()).filter(|v| v != "(none)");
        if let Some(name) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            current = Some(name.to_owned());
            all.insert(name.to_owned(), Policy::default());
        } else if let Some(policy) = current.as_ref().and_then(|name| all.get_mut(name)) {
            let line = line.trim_start();
            if let Some(rest) = line.strip_prefix("Installed:") {
                policy.installed = version(rest);
            } else if let Some(rest) = line.strip_prefix("Candidate:") {
                policy.candidate = version(rest);
            }
        }
    }
    all
}

/// The upstream version in a Debian one: `1:1.96.0+dfsg1-1~deb12u2` is 1.96.0.
fn upstream(debian: &str) -> Option<Version> {
    let without_epoch = debian.split_once(':').map_or(debian, |(_, rest)| rest);
    let end = without_epoch
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(without_epoch.len());
    Version::parse(&without_epoch[..end]).ok()
}

/// Reads `apt-cache depends --recurse`: package to what it depends on.
fn parse_depends(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if !line.starts_with([' ', '|']) {
            line.clone_into(&mut current);
        } else if let Some((_, dependency)) = line.split_once("Depends:") {
            let dependencies = all.entry(current.clone()).or_default();
            dependencies.insert(dependency.trim().to_owned());
        }
    }
    all
}

/// The LLVM that `package` depends on by way of its standard library. Only Rust's own packages are followed: a C compiler
/// among the dependencies may have an LLVM of its own.
fn llvm_of(package: &str, dependencies: &BTreeMap<String, BTreeSet<String>>) -> Option<u64> {
    let mut queue = vec![package];
    let mut seen = BTreeSet::new();
    while let Some(package) = queue.pop() {
        if !seen.insert(package) {
            continue;
        }
        for dependency in dependencies.get(package).into_iter().flatten() {
            if let Some(major) = dependency.strip_prefix("libllvm") {
                let digits = major.split(|c: char| !c.is_ascii_digit()).next()?;
                return digits.parse().ok();
            }
            if dependency.contains("rust") {
                queue.push(dependency);
            }
        }
    }
    None
}

/// LLVM's development files that apt could be asked for.
fn llvm_dev_packages(names: &str) -> BTreeSet<u64> {
    names
        .lines()
        .filter_map(|name| name.strip_prefix("llvm-")?.strip_suffix("-dev"))
        .filter_map(|major| major.parse().ok())
        .filter(|major| LINKER_LLVMS.contains(major))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_llvms_that_the_linker_takes_count() {
        let names = "llvm-14-dev\nllvm-22-dev\nllvm-dev\nllvm-22-runtime\nllvm-24-dev\n";
        assert_eq!(llvm_dev_packages(names), BTreeSet::from([22]));
    }

    /// Debian 12, shortened to what matters.
    const DEPENDS: &str = "rustc-web
  Depends: libc6
  Depends: libstd-rust-web-dev
  Depends: gcc
  Depends: <libc-dev>
    libc6-dev
libstd-rust-web-dev
  Depends: libstd-rust-web-1.96
gcc
  Depends: libllvm14
libstd-rust-web-1.96
  Depends: libc6
 |Depends: libllvm22
";

    const POLICY: &str = "rustc-web:
  Installed: 1.96.0+dfsg1-1~deb12u2
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
 *** 1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
cargo-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
rust-web-src:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
rustc:
  Installed: (none)
  Candidate: 1.63.0+dfsg1-2
";

    #[test]
    fn families_are_told_from_other_packages() {
        let names = "rustc-web\nrustc\nrustc-1.95\nrustc-doc\nrustc-wasm\n";
        let suffixes: Vec<_> = family_suffixes(names).into_iter().collect();
        assert_eq!(suffixes, ["", "-1.95", "-web"]);
        assert_eq!(
            family_packages("-1.95"),
            ["rustc-1.95", "cargo-1.95", "rust-1.95-src"]
        );
    }

    #[test]
    fn debian_versions_lose_epoch_and_revision() {
        let upstream = |text| upstream(text).map(|v| v.to_string());
        assert_eq!(
            upstream("1.96.0+dfsg1-1~deb12u2").as_deref(),
            Some("1.96.0")
        );
        assert_eq!(upstream("2:1.89.0-0ubuntu1").as_deref(), Some("1.89.0"));
        assert_eq!(upstream("1.95.0").as_deref(), Some("1.95.0"));
        assert_eq!(upstream("unknown"), None);
    }

    #[test]
    fn a_family_knows_its_llvm_and_what_it_lacks() {
        let family = family("-web", &parse_policy(POLICY), &parse_depends(DEPENDS));
        assert_eq!(
            family,
            Some(Family {
                suffix: "-web".to_owned(),
                version: Version::new(1, 96, 0),
                llvm: Some(22),
                installed: true,
                missing: vec!["cargo-web".to_owned(), "rust-web-src".to_owned()],
            })
        );
    }

    #[test]
    fn a_family_without_a_source_package_is_none() {
        let policy = parse_policy(POLICY);
        assert_eq!(family("", &policy, &parse_depends(DEPENDS)), None);
    }

    #[test]
    fn a_source_of_another_version_is_no_source() {
        let policy = POLICY.replace(
            "rust-web-src:\n  Installed: (none)\n  Candidate: 1.96.0",
            "rust-web-src:\n  Installed: (none)\n  Candidate: 1.85.0",
        );
        assert_eq!(
            family("-web", &parse_policy(&policy), &parse_depends(DEPENDS)),
            None
        );
    }
}
