//! `cargo xtask build`: the kernel objects, then the program that carries them.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    setup::{self, Needs},
    sources,
    toolchain::{KernelToolchain, Origin},
    workspace::{Workspace, quiet_stdout, run_to_end, say},
};

/// A program for the kernel: a binary of a package, and the file that the rest of the workspace finds it by.
struct KernelObject {
    package: &'static str,
    binary: &'static str,
    /// Below `target/kernel`.
    file: &'static str,
}

const KERNEL_OBJECTS: &[KernelObject] = &[
    KernelObject {
        package: "lb-ebpf",
        binary: "lb-ebpf",
        file: "xdp-lb.bpf.o",
    },
    KernelObject {
        package: "lb-bench-ebpf",
        binary: "lb-bench-ebpf",
        file: "xdp-lb-bench.bpf.o",
    },
];

/// What rustc is told beyond the release profile when it compiles for the kernel.
const KERNEL_RUSTFLAGS: &[&str] = &[
    // BTF, the type information the kernel wants, is made from the debug information: of everything, `core` included.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // 32-bit instructions and jumps (Linux 5.1): shorter code that the verifier follows more easily.
    "-Ctarget-cpu=v3",
    // Whole-word loads from packet bytes, whose references have no alignment. The kernel allows them where the processor
    // does; without this, LLVM makes every 4-byte load of four.
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

const KERNEL_TARGET: &str = "bpfel-unknown-none";

/// The task: sets up, and builds.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::BUILD)?;
    everything(workspace, &toolchain)?;
    say(&format!("built {}", workspace.binary().display()));
    Ok(())
}

/// Builds the kernel objects and the program; cargo skips what is fresh.
pub(crate) fn everything(workspace: &Workspace, toolchain: &KernelToolchain) -> Result<()> {
    kernel_objects(workspace, toolchain)?;
    release_binary(workspace)
}

fn kernel_objects(workspace: &Workspace, toolchain: &KernelToolchain) -> Result<()> {
    // Read before compiling: an edit during the build makes the object count as old, not as new.
    let digest =
        sources::digest(&workspace.root).context("cannot read the kernel side's sources")?;
    let compiled = workspace.target.join("bpf");
    let compiler = &toolchain.compiler;
    let cargo = compiler
        .cargo
        .as_deref()
        .with_context(|| format!("{compiler} has no cargo"))?;
    for object in KERNEL_OBJECTS {
        let mut command = workspace.cargo_at(cargo);
        command
            .env("CARGO_TARGET_DIR", &compiled)
            .env("RUSTC", &compiler.rustc)
            .env(
                "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
                &toolchain.linker.path,
            )
            .env("CARGO_ENCODED_RUSTFLAGS", KERNEL_RUSTFLAGS.join("\u{1f}"))
            // They are meant for programs of this machine.
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .args(["build", "--release", "--locked", "-Zbuild-std=core"])
            .args(["--target", KERNEL_TARGET])
            .args(["--package", object.package, "--bin", object.binary]);
        if compiler.origin == Origin::System {
            // A release compiler refuses -Z options otherwise.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        run_cargo(&mut command)
            .with_context(|| format!("the kernel side was compiled by {toolchain}"))?;
        let product = compiled
            .join(KERNEL_TARGET)
            .join("release")
            .join(object.binary);
        let kept = kernel_directory(workspace).join(object.file);
        update(
            &kept,
            &fs::read(&product).with_context(|| product.display().to_string())?,
        )?;
        update(&sources_file(&kept), digest.as_bytes())?;
    }
    Ok(())
}

fn release_binary(workspace: &Workspace) -> Result<()> {
    run_cargo(
        workspace
            .cargo()
            // What build.rs looks for, should it point elsewhere.
            .env_remove("XDP_LB_KERNEL_OBJECT")
            .env_remove("XDP_LB_BENCH_OBJECT")
            .args(["build", "--release", "--package", "lb-userspace"]),
    )
}

fn run_cargo(command: &mut std::process::Command) -> Result<()> {
    run_to_end(quiet_stdout(command))
}

fn kernel_directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("kernel")
}

/// The digest of the sources that the object `kept` was made from.
fn sources_file(kept: &Path) -> PathBuf {
    let mut name = OsString::from(kept);
    name.push(".sources");
    PathBuf::from(name)
}

/// Writes `content` to `path` only if that changes the file: whoever depends on it would be built again. Other processes see
/// the old or the new content, never half of it.
fn update(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        if fs::read(path).is_ok_and(|present| present == content) {
            return Ok(());
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let fresh = path.with_extension("new");
        fs::write(&fresh, content)?;
        fs::rename(&fresh, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("kernel/object");
        let modified = || {
            fs::metadata(&path)
                .and_then(|m| m.modified())
                .expect("a time")
        };
        update(&path, b"one").expect("written");
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let file = fs::File::options()
            .write(true)
            .open(&path)
            .expect("the file");
        file.set_modified(long_ago).expect("a new time");
        update(&path, b"one").expect("left alone");
        assert_eq!(modified(), long_ago);
        update(&path, b"two").expect("written");
        assert_ne!(modified(), long_ago);
        assert_eq!(fs::read(&path).expect("the file"), b"two");
    }

    #[test]
    fn the_digest_sees_an_edit_and_a_new_name() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let root = directory.path();
        for source in ["lb-common", "lb-ebpf", "lb-bench-ebpf"] {
            fs::create_dir_all(root.join(source).join("src")).expect("a directory");
            fs::write(root.join(source).join("Cargo.toml"), "").expect("a file");
        }
        fs::write(root.join("lb-ebpf/src/main.rs"), "a").expect("a file");
        let digest = || sources::digest(root).expect("a digest");
        let first = digest();
        assert_eq!(first, digest());
        fs::write(root.join("lb-ebpf/src/main.rs"), "b").expect("a file");
        let edited = digest();
        assert_ne!(first, edited);
        fs::rename(
            root.join("lb-ebpf/src/main.rs"),
            root.join("lb-ebpf/src/lib.rs"),
        )
        .expect("renamed");
        assert_ne!(edited, digest());
    }
}
