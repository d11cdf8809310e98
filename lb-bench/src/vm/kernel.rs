//! The distribution's own kernel: its package is unpacked, never installed.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{output, qemu::Signals};

/// The packages that depend on the newest kernel: Debian's, Ubuntu's.
const NEWEST: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];
/// What the packages' names begin with that a kernel and its modules are in; its release follows.
const PARTS: [&str; 4] = [
    "linux-image-",
    "linux-binary-",
    "linux-modules-",
    "linux-modules-extra-",
];
/// The modules that the rows need; what they depend on comes with them.
const MODULES: [&str; 7] = [
    "veth",
    "bridge",
    "nf_tables",
    "nft_hash",
    "nft_fwd_netdev",
    "ip_vs",
    "ip_vs_mh",
];

/// A kernel that can be started.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub(super) release: String,
    /// The image.
    pub(super) image: PathBuf,
    /// The modules, each after those it depends on.
    pub(super) modules: Vec<PathBuf>,
}

/// Fetches the newest kernel that the distribution has into a directory.
pub(super) fn fetch(directory: &Path, signals: &Signals) -> Result<Kernel> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machine is made of x86-64 only; this is {}",
        std::env::consts::ARCH
    );
    ensure!(
        which::which("apt-get").is_ok() && which::which("dpkg-deb").is_ok(),
        "it is a package of Debian or Ubuntu, and there is no apt-get here"
    );
    let packages = match download(directory) {
        Ok(packages) => packages,
        // Lists that are old name packages which the archive has replaced.
        Err(_) => {
            signals.check()?;
            output(Command::new("apt-get").arg("update"))?;
            download(directory)?
        }
    };
    let root = directory.join("root");
    for package in packages {
        output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
    }
    unpacked(&root)
}

/// Downloads the packages of the newest kernel; returns where they are.
fn download(directory: &Path) -> Result<Vec<PathBuf>> {
    let names = NEWEST
        .iter()
        .find_map(|newest| packages(newest, depends).ok())
        .with_context(|| format!("apt knows none of {}", NEWEST.join(", ")))?;
    output(
        Command::new("apt-get")
            .current_dir(directory)
            // The directory is root's own, and the user whom apt downloads as can't write into it.
            .args(["-o", "APT::Sandbox::User=root", "download"])
            .args(&names),
    )?;
    with_extension(directory, "deb")
}

/// What `apt-cache depends` prints of a package.
fn depends(package: &str) -> Result<String> {
    output(
        Command::new("apt-cache")
            .args(["depends", "--important", package])
            .env("LC_ALL", "C"),
    )
}

/// The kernel's packages that a package depends on, in one step or several.
fn packages(newest: &str, depends: impl Fn(&str) -> Result<String>) -> Result<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    let mut next = vec![newest.to_owned()];
    while let Some(package) = next.pop() {
        let text = depends(&package)?;
        let found = text
            .lines()
            .filter_map(|line| line.split_once("Depends: "))
            .map(|(_, name)| name.trim())
            .filter(|name| {
                let release = |part: &&str| name.strip_prefix(*part);
                PARTS
                    .iter()
                    .filter_map(release)
                    .any(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
            });
        for name in found {
            if !all.iter().any(|known| known == name) {
                all.push(name.to_owned());
                next.push(name.to_owned());
            }
        }
    }
    ensure!(
        !all.is_empty(),
        "{newest} depends on no package of a kernel"
    );
    Ok(all)
}

/// Finds everything in the tree that the packages were unpacked to.
fn unpacked(root: &Path) -> Result<Kernel> {
    let image = files(&root.join("boot"))?
        .into_iter()
        .find_map(|path| {
            let name = path.file_name()?.to_str()?;
            Some((name.strip_prefix("vmlinuz-")?.to_owned(), path.clone()))
        })
        .with_context(|| format!("no vmlinuz-* in {}/boot", root.display()));
    let (release, image) = image?;
    one_directory_of_modules(root)?;
    output(Command::new("depmod").arg("-b").arg(root).arg(&release))?;
    let mut modules = Vec::new();
    for name in MODULES {
        let lines = output(Command::new("modprobe").arg("--dirname").arg(root).args([
            "--set-version",
            &release,
            "--show-depends",
            name,
        ]))
        .with_context(|| format!("Linux {release} has no module {name}"))?;
        for module in insmods(&lines)? {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

/// Makes `/lib/modules` and `/usr/lib/modules` the same: the packages have the one or the other, and the programs look in one
/// of them, by the distribution's version.
fn one_directory_of_modules(root: &Path) -> Result<()> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place));
    let [old, new] = &places;
    for (there, missing) in [(old, new), (new, old)] {
        if there.exists() && !missing.exists() {
            if let Some(parent) = missing.parent() {
                fs::create_dir_all(parent)?;
            }
            symlink(there, missing).with_context(|| missing.display().to_string())?;
        }
    }
    Ok(())
}

/// Reads `modprobe --show-depends`: `insmod PATH OPTIONS`, or `builtin NAME`.
fn insmods(lines: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for line in lines.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["insmod", path, ..] => all.push(path.into()),
            ["builtin", ..] | [] => {}
            _ => bail!("`modprobe --show-depends` printed `{line}`"),
        }
    }
    Ok(all)
}

fn with_extension(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut all = files(directory)?;
    all.retain(|path| path.extension().is_some_and(|it| it == extension));
    Ok(all)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    let mut all = read().with_context(|| format!("reading {}", directory.display()))?;
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    /// What apt says of these packages.
    fn archive<'a>(known: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Result<String> + 'a {
        |package| {
            known
                .iter()
                .find(|(name, _)| *name == package)
                .map(|(name, depends)| format!("{name}\n{depends}"))
                .ok_or_else(|| anyhow!("No packages found"))
        }
    }

    #[test]
    fn debian_has_one_package() {
        let known = [
            (
                "linux-image-amd64",
                "  Depends: linux-image-6.1.0-56-amd64\n",
            ),
            (
                "linux-image-6.1.0-56-amd64",
                "  Depends: kmod\n  Depends: linux-base\n |Depends: initramfs-tools\n",
            ),
        ];
        assert_eq!(
            packages("linux-image-amd64", archive(&known)).expect("known"),
            ["linux-image-6.1.0-56-amd64"]
        );
        assert!(packages("linux-image-generic", archive(&known)).is_err());
    }

    #[test]
    fn ubuntu_has_the_modules_apart() {
        let known = [
            (
                "linux-image-generic",
                " |Depends: linux-image-6.8.0-31-generic\n  Depends: linux-image-unsigned-6.8.0-31-generic\n\
                 \x20 Depends: linux-modules-extra-6.8.0-31-generic\n  Depends: linux-firmware\n",
            ),
            (
                "linux-image-6.8.0-31-generic",
                "  Depends: kmod\n  Depends: linux-modules-6.8.0-31-generic\n",
            ),
            (
                "linux-modules-extra-6.8.0-31-generic",
                "  Depends: linux-image-6.8.0-31-generic\n",
            ),
            ("linux-modules-6.8.0-31-generic", ""),
        ];
        let mut names = packages("linux-image-generic", archive(&known)).expect("known");
        names.sort();
        assert_eq!(
            names,
            [
                "linux-image-6.8.0-31-generic",
                "linux-modules-6.8.0-31-generic",
                "linux-modules-extra-6.8.0-31-generic",
            ]
        );
    }

    #[test]
    fn what_modprobe_would_do() {
        let lines = "builtin libcrc32c\ninsmod /x/nf_conntrack.ko \ninsmod /x/ip_vs.ko.xz conn_tab_bits=8\n";
        assert_eq!(
            insmods(lines).expect("read"),
            ["/x/nf_conntrack.ko", "/x/ip_vs.ko.xz"].map(PathBuf::from)
        );
        assert!(insmods("install /bin/true\n").is_err());
    }

    #[test]
    fn modules_are_found_in_either_place() {
        for place in ["lib/modules", "usr/lib/modules"] {
            let root = tempfile::tempdir().expect("a directory");
            fs::create_dir_all(root.path().join(place).join("6.1")).expect("a directory");
            one_directory_of_modules(root.path()).expect("linked");
            for path in ["lib/modules/6.1", "usr/lib/modules/6.1"] {
                assert!(root.path().join(path).is_dir(), "{path}");
            }
        }
    }

    #[test]
    fn a_package_without_a_kernel_says_what_is_missing() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("boot")).expect("a directory");
        let error = unpacked(root.path()).expect_err("nothing to start");
        assert!(error.to_string().contains("vmlinuz-"), "{error}");
    }
}
