//! The decision: from what was found on the machine to what to install. Pure, so that machines that nobody has at
//! hand can be tested.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::PathBuf,
};

use semver::Version;

use super::apt::Offers;
use crate::toolchain::{Compiler, KernelToolchain, LINKER_LLVMS, LINKER_VERSION, Linker};

/// What the task at hand needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// rustfmt and clippy.
    pub(crate) lints: bool,
    /// What runs in the network of namespaces.
    pub(crate) runtime: bool,
    /// The benchmark's virtual machine.
    pub(crate) vm: bool,
}

impl Needs {
    /// To build; the kernel toolchain is always needed.
    pub(crate) const BUILD: Self = Self {
        lints: false,
        runtime: false,
        vm: false,
    };
    /// To run the demo.
    pub(crate) const DEMO: Self = Self {
        lints: false,
        runtime: true,
        vm: false,
    };
    /// To do everything but start a virtual machine, which only `bench --vm` does.
    pub(crate) const EVERYTHING: Self = Self {
        lints: true,
        runtime: true,
        vm: false,
    };

    /// The programs that these are.
    pub(crate) fn tools(self) -> impl Iterator<Item = &'static Tool> {
        let runtime = RUNTIME_TOOLS.iter().filter(move |_| self.runtime);
        runtime.chain(VM_TOOLS.iter().filter(move |_| self.vm))
    }
}

/// A program that is needed to run the tests and the demo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    /// Debian's name of the package.
    pub(crate) package: &'static str,
    pub(crate) why: &'static str,
}

/// Every program the tests and the demo start.
pub(crate) const RUNTIME_TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        why: "makes the network of namespaces",
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
        why: "enters a host's network, as `demo --keep` shows",
    },
    Tool {
        program: "nginx",
        package: "nginx",
        why: "is the web server of the backends; the system's own nginx service is not started",
    },
    Tool {
        program: "nft",
        package: "nftables",
        why: "is one of the benchmark's peers",
    },
    Tool {
        program: "curl",
        package: "curl",
        why: "asks a service by hand, as `demo --keep` shows",
    },
];

/// Every program that `bench --vm` starts besides, here or in the machine.
pub(crate) const VM_TOOLS: &[Tool] = &[
    Tool {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "is the virtual machine of `bench --vm`",
    },
    Tool {
        program: "ipvsadm",
        package: "ipvsadm",
        why: "sets IPVS up in it",
    },
    Tool {
        program: "modprobe",
        package: "kmod",
        why: "finds its modules",
    },
];

/// A component of cargo that the tests call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lint {
    /// rustup's name of the component.
    pub(crate) component: &'static str,
    /// What Debian's package is called, around the suffix of its family of Rust packages.
    pub(crate) package: (&'static str, &'static str),
    /// The cargo sub-command that shows whether it is there.
    pub(crate) subcommand: &'static str,
}

/// rustfmt and clippy.
pub(crate) const LINTS: &[Lint] = &[
    Lint {
        component: "rustfmt",
        package: ("rustfmt", ""),
        subcommand: "fmt",
    },
    Lint {
        component: "clippy",
        package: ("rust", "-clippy"),
        subcommand: "clippy",
    },
];

/// What this machine has.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The workspace's `rust-version`.
    pub(crate) minimum: Version,
    pub(crate) rustup: Option<Rustup>,
    /// The preferred ones first.
    pub(crate) compilers: Vec<Compiler>,
    pub(crate) linkers: Vec<Linker>,
    /// LLVM's major version to the prefix it is installed under.
    pub(crate) llvm: BTreeMap<u64, PathBuf>,
    pub(crate) missing_tools: Vec<&'static Tool>,
    pub(crate) missing_lints: Vec<Lint>,
}

/// A rustup on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rustup {
    /// It is Debian's package, which conflicts with Debian's compilers.
    pub(crate) packaged: bool,
    /// It is what runs this cargo.
    pub(crate) active: bool,
}

/// A package and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Fetch apt's lists.
    AptUpdate,
    /// Install packages.
    Apt(Vec<Package>),
    /// Install rustup's nightly with the standard library's source.
    RustupNightly,
    /// Add components to rustup's active toolchain.
    RustupComponents(Vec<&'static str>),
    /// Build bpf-linker for this major version of LLVM.
    Linker {
        /// LLVM's major version.
        llvm: u64,
        /// Leave the bpf-linker alone that is where `cargo install` would put ours.
        beside: bool,
    },
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AptUpdate => f.write_str("apt-get update"),
            Self::Apt(packages) => {
                f.write_str("apt-get install --no-install-recommends")?;
                packages
                    .iter()
                    .try_for_each(|package| write!(f, " {}", package.name))
            }
            Self::RustupNightly => f.write_str(
                "rustup toolchain install nightly --profile minimal --component rust-src",
            ),
            Self::RustupComponents(components) => {
                write!(f, "rustup component add {}", components.join(" "))
            }
            Self::Linker { llvm, .. } => write!(
                f,
                "cargo install bpf-linker --version {LINKER_VERSION} --locked --no-default-features --features llvm-{llvm}"
            ),
        }
    }
}

impl Step {
    /// Whether only root can do it.
    pub(crate) fn needs_root(&self) -> bool {
        matches!(self, Self::AptUpdate | Self::Apt(_))
    }

    /// Why it is done: a line each for the reasons.
    pub(crate) fn reasons(&self) -> Vec<String> {
        match self {
            Self::AptUpdate => {
                vec!["the package lists are missing, old, or lack what is needed".to_owned()]
            }
            Self::Apt(packages) => packages
                .iter()
                .map(|Package { name, why }| format!("{name}: {why}"))
                .collect(),
            Self::RustupNightly => {
                vec![
                    "the kernel side needs a `core` built from the standard library's source"
                        .to_owned(),
                ]
            }
            Self::RustupComponents(_) => vec!["the tests check format and lints".to_owned()],
            Self::Linker { llvm, .. } => vec![format!(
                "links the kernel side; it must share LLVM {llvm} with the compiler (takes minutes)"
            )],
        }
    }
}

/// The toolchain for the kernel side, if all that `found` was asked for is there.
pub(crate) fn ready(found: &Found) -> Option<KernelToolchain> {
    if !found.missing_tools.is_empty() || !found.missing_lints.is_empty() {
        return None;
    }
    kernel_toolchain(found)
}

/// The preferred compiler that is complete and has a linker.
pub(crate) fn kernel_toolchain(found: &Found) -> Option<KernelToolchain> {
    found
        .compilers
        .iter()
        .filter(|compiler| compiler.is_complete(&found.minimum))
        .find_map(|compiler| {
            let linker = found
                .linkers
                .iter()
                .find(|linker| linker.reads(compiler.llvm))?;
            Some(KernelToolchain {
                compiler: compiler.clone(),
                linker: linker.clone(),
            })
        })
}

/// What to do, in order, where apt installs packages. Some steps show what comes after them only when they are done,
/// so this is asked again after each. `None`: no way from here to a toolchain for the kernel side.
pub(crate) fn with_apt(found: &Found, offers: &Offers) -> Option<Vec<Step>> {
    let mut packages: Vec<Package> = Vec::new();
    let mut after: Vec<Step> = Vec::new();
    let mut dead_end = false;
    if kernel_toolchain(found).is_none() {
        match kernel_side(found, offers) {
            Some(way) => {
                packages.extend(way.packages);
                after.extend(way.after);
            }
            None => dead_end = true,
        }
    }
    packages.extend(found.missing_tools.iter().map(|tool| Package {
        name: tool.package.to_owned(),
        why: format!("`{}` {}", tool.program, tool.why),
    }));
    if !found.missing_lints.is_empty() {
        if found.rustup.is_some_and(|rustup| rustup.active) {
            let components = found.missing_lints.iter().map(|lint| lint.component);
            after.push(Step::RustupComponents(components.collect()));
        } else if let Some(family) = offers.families.iter().find(|family| family.installed) {
            packages.extend(found.missing_lints.iter().map(|lint| Package {
                name: format!("{}{}{}", lint.package.0, family.suffix, lint.package.1),
                why: format!("`cargo {}` is one of the tests", lint.subcommand),
            }));
        } else {
            dead_end = true;
        }
    }
    let stale = !offers.fresh && (dead_end || !packages.is_empty());
    if dead_end && !stale {
        return None;
    }
    if stale && !offers.lists {
        // What comes after is any guess: nothing is known of what apt has.
        return Some(vec![Step::AptUpdate]);
    }
    let update = stale.then_some(Step::AptUpdate);
    let install = (!packages.is_empty()).then_some(Step::Apt(packages));
    Some(update.into_iter().chain(install).chain(after).collect())
}

/// What to do where there is no apt: only what needs no packages. `None`: packages are needed.
pub(crate) fn without_apt(found: &Found) -> Option<Vec<Step>> {
    if !found.missing_tools.is_empty() {
        return None;
    }
    let mut steps = Vec::new();
    if kernel_toolchain(found).is_none() {
        let complete = found
            .compilers
            .iter()
            .filter(|compiler| compiler.is_complete(&found.minimum));
        let buildable = complete
            .map(|compiler| compiler.llvm)
            .find(|llvm| found.llvm.contains_key(llvm))?;
        steps.push(linker_step(found, buildable));
    }
    if !found.missing_lints.is_empty() {
        if !found.rustup.is_some_and(|rustup| rustup.active) {
            return None;
        }
        let components = found.missing_lints.iter().map(|lint| lint.component);
        steps.push(Step::RustupComponents(components.collect()));
    }
    Some(steps)
}

/// Packages first, then the rest.
struct Way {
    packages: Vec<Package>,
    after: Vec<Step>,
}

/// The first way that works, of those that install least: a compiler that is here and lacks only the linker, one of
/// the distribution's, rustup's nightly.
fn kernel_side(found: &Found, offers: &Offers) -> Option<Way> {
    found
        .compilers
        .iter()
        .filter(|compiler| compiler.is_complete(&found.minimum))
        .find_map(|compiler| linker_way(found, offers, compiler.llvm))
        .or_else(|| distribution_way(found, offers))
        .or_else(|| nightly_way(found))
}

/// A linker for this LLVM, and LLVM's development files to build it with, as far as they lack.
fn linker_way(found: &Found, offers: &Offers, llvm: u64) -> Option<Way> {
    if found.linkers.iter().any(|linker| linker.reads(llvm)) {
        return Some(Way {
            packages: Vec::new(),
            after: Vec::new(),
        });
    }
    if !LINKER_LLVMS.contains(&llvm) {
        return None;
    }
    let packages = if found.llvm.contains_key(&llvm) {
        Vec::new()
    } else {
        offers
            .llvm_dev
            .contains(&llvm)
            .then(|| llvm_package(llvm))
            .into_iter()
            .collect::<Vec<_>>()
    };
    if packages.is_empty() && !found.llvm.contains_key(&llvm) {
        return None;
    }
    Some(Way {
        packages,
        after: vec![linker_step(found, llvm)],
    })
}

/// The distribution's compiler with its source; what is installed of it already goes before the newest.
fn distribution_way(found: &Found, offers: &Offers) -> Option<Way> {
    if found.rustup.is_some_and(|rustup| rustup.packaged) {
        return None;
    }
    let mut families: Vec<_> = offers
        .families
        .iter()
        .filter(|family| family.version >= found.minimum)
        .collect();
    families.sort_by_key(|family| (family.installed, family.version.clone()));
    families.into_iter().rev().find_map(|family| {
        // Unknown until it is installed: then the rest is decided in the next round.
        let linking = match family.llvm {
            None => Way {
                packages: Vec::new(),
                after: Vec::new(),
            },
            Some(llvm) => linker_way(found, offers, llvm)?,
        };
        let compiler = family.missing.iter().map(|name| Package {
            name: name.clone(),
            why: format!(
                "the distribution's compiler, rustc {}, with its source builds the kernel side",
                family.version
            ),
        });
        let packages: Vec<_> = compiler.chain(linking.packages).collect();
        // With all of it installed this way leads nowhere: the compiler is there and was not good enough.
        (!family.missing.is_empty()).then_some(Way {
            packages,
            after: linking.after,
        })
    })
}

/// rustup's nightly, unless it is there, new enough, and was no use for want of a linker.
fn nightly_way(found: &Found) -> Option<Way> {
    found.rustup?;
    let nightly = found.compilers.iter().find(|compiler| {
        compiler.origin == crate::toolchain::Origin::RustupNightly
            && compiler.is_complete(&found.minimum)
    });
    nightly.is_none().then(|| Way {
        packages: Vec::new(),
        after: vec![Step::RustupNightly],
    })
}

fn linker_step(found: &Found, llvm: u64) -> Step {
    Step::Linker {
        llvm,
        beside: !found.linkers.is_empty(),
    }
}

fn llvm_package(llvm: u64) -> Package {
    Package {
        name: format!("llvm-{llvm}-dev"),
        why: format!("bpf-linker is built with LLVM {llvm}, as the compiler was"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
