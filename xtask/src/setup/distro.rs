//! The commands that a machine without apt needs, in its own distribution's words.

use std::fmt::Write as _;

use os_release::OsRelease;

use super::plan::{Found, kernel_toolchain};
use crate::toolchain::LINKER_VERSION;

/// The distributions whose package manager we can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Fedora,
    Arch,
    Suse,
    Other,
}

impl Distribution {
    /// By `ID`, else by the first relative in `ID_LIKE` that we know (os-release(5)).
    fn of(release: &OsRelease) -> Self {
        std::iter::once(release.id.as_str())
            .chain(release.id_like.split_whitespace())
            .find_map(|id| match id {
                "fedora" | "rhel" | "centos" => Some(Self::Fedora),
                "arch" | "archlinux" => Some(Self::Arch),
                "suse" | "opensuse" => Some(Self::Suse),
                id if id.starts_with("opensuse-") => Some(Self::Suse),
                _ => None,
            })
            .unwrap_or(Self::Other)
    }

    /// The command that installs packages.
    fn install(self) -> &'static str {
        match self {
            Self::Fedora => "sudo dnf install",
            Self::Arch => "sudo pacman -S --needed",
            Self::Suse => "sudo zypper install",
            Self::Other => "# with your package manager:",
        }
    }

    /// Its own compiler with the standard library's source, and LLVM's development files, where it has them.
    fn compiler(self) -> Option<&'static str> {
        match self {
            Self::Fedora => Some("rust cargo rust-src llvm-devel"),
            Self::Arch => Some("rust rust-src llvm"),
            Self::Suse | Self::Other => None,
        }
    }

    /// Its name of one of Debian's packages.
    fn package(self, debian: &'static str) -> &'static str {
        match (self, debian) {
            (Self::Fedora, "iproute2") => "iproute",
            _ => debian,
        }
    }
}

/// What to type to get what `found` lacks, on the machine that `release` describes.
pub(crate) fn advice(release: &OsRelease, found: &Found) -> String {
    let distribution = Distribution::of(release);
    let mut text = String::new();
    let mut line = |line: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "  {line}");
    };
    if !found.missing_tools.is_empty() {
        let packages: Vec<_> = found
            .missing_tools
            .iter()
            .map(|tool| distribution.package(tool.package))
            .collect();
        line(&format!(
            "{} {}",
            distribution.install(),
            packages.join(" ")
        ));
    }
    if kernel_toolchain(found).is_none() {
        match distribution.compiler().filter(|_| found.rustup.is_none()) {
            Some(packages) => {
                line(&format!("{} {packages}", distribution.install()));
                line(&format!(
                    "LLVM_PREFIX=$(llvm-config --prefix) cargo install bpf-linker --version {LINKER_VERSION} --locked \
                     --no-default-features --features llvm-$(llvm-config --version | cut -d. -f1)"
                ));
            }
            None => {
                if found.rustup.is_none() {
                    line("# rustup, from https://rustup.rs, then:");
                }
                line("rustup toolchain install nightly --profile minimal --component rust-src");
                line(&format!(
                    "curl -L https://github.com/aya-rs/bpf-linker/releases/download/v{LINKER_VERSION}/\
                     bpf-linker-{}-unknown-linux-musl.tar.zst | tar --zstd -x -C ~/.cargo/bin",
                    std::env::consts::ARCH
                ));
            }
        }
    }
    if !found.missing_lints.is_empty() {
        let components: Vec<_> = found.missing_lints.iter().map(|l| l.component).collect();
        match distribution {
            _ if found.rustup.is_some() => {
                line(&format!("rustup component add {}", components.join(" ")));
            }
            _ => line(&format!(
                "{} {}",
                distribution.install(),
                components.join(" ")
            )),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use semver::Version;

    use super::*;
    use crate::setup::plan::{RUNTIME_TOOLS, Rustup};

    fn release(text: &str) -> OsRelease {
        text.lines().map(str::to_owned).collect()
    }

    fn bare() -> Found {
        Found {
            minimum: Version::new(1, 95, 0),
            rustup: None,
            compilers: Vec::new(),
            linkers: Vec::new(),
            llvm: BTreeMap::new(),
            missing_tools: RUNTIME_TOOLS.iter().collect(),
            missing_lints: Vec::new(),
        }
    }

    #[test]
    fn relatives_count() {
        let of = |text| Distribution::of(&release(text));
        assert_eq!(of("NAME=Fedora\nID=fedora\n"), Distribution::Fedora);
        assert_eq!(
            of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"),
            Distribution::Fedora
        );
        assert_eq!(of("ID=manjaro\nID_LIKE=arch\n"), Distribution::Arch);
        assert_eq!(
            of("ID='opensuse-tumbleweed'\nID_LIKE='opensuse suse'\n"),
            Distribution::Suse
        );
        assert_eq!(of("ID=gentoo\n"), Distribution::Other);
    }

    #[test]
    fn fedora_gets_its_own_names() {
        let text = advice(&release("ID=fedora\n"), &bare());
        assert!(
            text.contains("sudo dnf install iproute util-linux nginx nftables curl\n"),
            "{text}"
        );
        assert!(
            text.contains("sudo dnf install rust cargo rust-src llvm-devel\n"),
            "{text}"
        );
    }

    #[test]
    fn who_has_rustup_stays_with_it() {
        let mut found = bare();
        found.rustup = Some(Rustup {
            packaged: false,
            active: true,
        });
        found.missing_tools.clear();
        let text = advice(&release("ID=arch\n"), &found);
        assert!(text.contains("rustup toolchain install nightly"), "{text}");
        assert!(!text.contains("pacman"), "{text}");
    }
}
