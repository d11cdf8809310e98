//! The compilers and BPF linkers of this machine that could build the kernel side.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use semver::Version;

use crate::workspace::{Workspace, output_of};

/// The LLVM major versions that bpf-linker [`LINKER_VERSION`] can be built with: its features `llvm-21` to `llvm-23`.
pub(crate) const LINKER_LLVMS: std::ops::RangeInclusive<u64> = 21..=23;

/// The bpf-linker that is installed, and the oldest that is accepted.
pub(crate) const LINKER_VERSION: Version = Version::new(0, 13, 0);

/// Whose a compiler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The toolchain `nightly` of rustup.
    RustupNightly,
    /// The distribution's, in `/usr/bin`, or the administrator's own in `/usr/local/bin`.
    System,
}

/// One Rust compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) origin: Origin,
    pub(crate) rustc: PathBuf,
    /// The cargo that belongs to it, if it is installed.
    pub(crate) cargo: Option<PathBuf>,
    pub(crate) version: Version,
    /// The major version of the LLVM inside.
    pub(crate) llvm: u64,
    /// Whether the standard library's source is there; `core` for the BPF target is built from it.
    pub(crate) has_source: bool,
}

impl Compiler {
    /// Asks the compiler at `rustc` what it is; `None` if it does not answer.
    fn probe(origin: Origin, rustc: &Path) -> Option<Self> {
        let report = output_of(Command::new(rustc).arg("-vV"))?;
        let meta = rustc_version::version_meta_for(&report).ok()?;
        let sysroot = output_of(Command::new(rustc).args(["--print", "sysroot"]))?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock");
        // rustc-1.95 goes with cargo-1.95.
        let name = rustc.file_name()?.to_str()?.replacen("rustc", "cargo", 1);
        let cargo = rustc.with_file_name(name);
        Some(Self {
            origin,
            rustc: rustc.to_path_buf(),
            cargo: cargo.is_file().then_some(cargo),
            version: meta.semver,
            llvm: meta.llvm_version?.major,
            has_source: source.is_file(),
        })
    }

    /// Whether it can build the kernel side, given a linker and that the workspace wants `minimum`.
    pub(crate) fn is_complete(&self, minimum: &Version) -> bool {
        self.has_source && self.cargo.is_some() && self.version >= *minimum
    }
}

impl Display for Compiler {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { version, llvm, .. } = self;
        match self.origin {
            Origin::RustupNightly => write!(f, "rustup's nightly (rustc {version}, LLVM {llvm})"),
            Origin::System => {
                write!(f, "{} ({version}, LLVM {llvm})", self.rustc.display())
            }
        }
    }
}

/// One bpf-linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    /// The major version of its LLVM; unknown when that is linked statically, as in the released binaries.
    pub(crate) llvm: Option<u64>,
}

impl Linker {
    fn probe(path: &Path) -> Option<Self> {
        let report = output_of(Command::new(path).arg("--version"))?;
        let libraries = output_of(Command::new("ldd").arg(path)).unwrap_or_default();
        Some(Self {
            path: path.to_path_buf(),
            version: Version::parse(report.split_whitespace().nth(1)?).ok()?,
            llvm: llvm_of_libraries(&libraries),
        })
    }

    /// Whether it reads the bitcode of this LLVM: one major version goes with the same.
    pub(crate) fn reads(&self, llvm: u64) -> bool {
        self.version >= LINKER_VERSION && self.llvm.is_none_or(|own| own == llvm)
    }
}

impl Display for Linker {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "bpf-linker {} ({})", self.version, self.path.display())
    }
}

/// A compiler and a linker that go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelToolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

impl Display for KernelToolchain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.compiler, self.linker)
    }
}

/// All compilers found, the preferred ones first.
pub(crate) fn compilers() -> Vec<Compiler> {
    // Asked of rustup, not of `rustc +nightly`, which may answer by downloading a toolchain.
    let nightly = output_of(
        Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    let nightly =
        nightly.and_then(|path| Compiler::probe(Origin::RustupNightly, Path::new(path.trim_end())));
    let mut system: Vec<Compiler> = ["/usr/bin", "/usr/local/bin"]
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flat_map(|entries| entries.filter_map(Result::ok))
        .map(|entry| entry.path())
        .filter(|path| is_system_compiler(path))
        .filter_map(|path| Compiler::probe(Origin::System, &path))
        .collect();
    system.sort_by(|a, b| b.version.cmp(&a.version).then(a.rustc.cmp(&b.rustc)));
    nightly.into_iter().chain(system).collect()
}

/// `rustc` or `rustc-1.95`, but not a proxy of rustup's, nor a script of another name.
fn is_system_compiler(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let versioned = |suffix: &str| suffix.starts_with(|c: char| c.is_ascii_digit());
    let named = name == "rustc" || name.strip_prefix("rustc-").is_some_and(versioned);
    let proxy = || {
        fs::canonicalize(path).is_ok_and(|real| {
            real.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("rustup"))
        })
    };
    named && !proxy()
}

/// All bpf-linkers found that run, in the order of preference.
pub(crate) fn linkers(workspace: &Workspace) -> Vec<Linker> {
    let mut paths = vec![
        own_linker_root(workspace).join("bin/bpf-linker"),
        cargo_install_root().join("bin/bpf-linker"),
    ];
    paths.extend(which::which_all("bpf-linker").into_iter().flatten());
    let mut seen = Vec::new();
    paths.retain(|path| {
        let new = !seen.contains(path);
        seen.push(path.clone());
        new
    });
    paths
        .iter()
        .filter(|path| path.is_file())
        .filter_map(|path| Linker::probe(path))
        .collect()
}

/// Where `cargo install` puts programs unless told otherwise.
pub(crate) fn cargo_install_root() -> PathBuf {
    ["CARGO_INSTALL_ROOT", "CARGO_HOME"]
        .iter()
        .find_map(env::var_os)
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_else(|| PathBuf::from(".cargo"))
}

/// Where a bpf-linker goes when the user has one already, made for another LLVM, which is none of our business.
pub(crate) fn own_linker_root(workspace: &Workspace) -> PathBuf {
    workspace.target.join("tools")
}

/// The LLVM installations whose shared library a bpf-linker can be linked to: major version to prefix.
pub(crate) fn llvm_installations() -> BTreeMap<u64, PathBuf> {
    let mut installations = BTreeMap::new();
    for major in LINKER_LLVMS {
        let known = [
            format!("/usr/lib/llvm-{major}"),
            format!("/usr/lib64/llvm{major}"),
            format!("/usr/lib/llvm{major}"),
        ];
        let known = known.into_iter().map(PathBuf::from);
        if let Some(prefix) = known.into_iter().find(|prefix| has_shared_llvm(prefix)) {
            installations.insert(major, prefix);
        }
    }
    // The distribution's unversioned one, as on Arch and Fedora.
    let version = output_of(Command::new("llvm-config").arg("--version"));
    let prefix = output_of(Command::new("llvm-config").arg("--prefix"));
    if let (Some(version), Some(prefix)) = (version, prefix) {
        let major = version
            .trim()
            .split('.')
            .next()
            .and_then(|n| n.parse().ok());
        let prefix = PathBuf::from(prefix.trim());
        if let Some(major) = major
            && LINKER_LLVMS.contains(&major)
            && has_shared_llvm(&prefix)
        {
            installations.entry(major).or_insert(prefix);
        }
    }
    installations
}

fn has_shared_llvm(prefix: &Path) -> bool {
    ["lib", "lib64"]
        .iter()
        .any(|lib| prefix.join(lib).join("libLLVM.so").exists())
}

/// The LLVM major version in the output of `ldd`: `libLLVM.so.22.1 => …`, or `libLLVM-14.so.1 => …` of old.
fn llvm_of_libraries(libraries: &str) -> Option<u64> {
    libraries.lines().find_map(|line| {
        let name = line.trim_start();
        let rest = name
            .strip_prefix("libLLVM.so.")
            .or_else(|| name.strip_prefix("libLLVM-"))?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_llvm_is_read_from_its_libraries() {
        let debian = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n";
        assert_eq!(llvm_of_libraries(debian), Some(22));
        assert_eq!(
            llvm_of_libraries("\tlibLLVM-14.so.1 => /lib/x86_64-linux-gnu/libLLVM-14.so.1\n"),
            Some(14)
        );
        assert_eq!(llvm_of_libraries("\tstatically linked\n"), None);
    }

    #[test]
    fn a_proxy_of_rustup_is_no_system_compiler() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("rustup"), "").expect("a file");
        std::os::unix::fs::symlink(at("rustup"), at("rustc")).expect("a link");
        fs::write(at("rustc-1.95"), "").expect("a file");
        fs::write(at("rustc-wrapper"), "").expect("a file");
        assert!(!is_system_compiler(&at("rustc")));
        assert!(is_system_compiler(&at("rustc-1.95")));
        assert!(!is_system_compiler(&at("rustc-wrapper")));
    }

    #[test]
    fn a_linker_reads_by_its_llvm_and_its_age() {
        let linker = |version, llvm| Linker {
            path: "/x/bpf-linker".into(),
            version,
            llvm,
        };
        assert!(linker(LINKER_VERSION, Some(22)).reads(22));
        assert!(linker(LINKER_VERSION, None).reads(22));
        assert!(!linker(LINKER_VERSION, Some(23)).reads(22));
        assert!(!linker(Version::new(0, 9, 15), Some(22)).reads(22));
    }
}
