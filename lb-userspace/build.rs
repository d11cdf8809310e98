//! Tells the program where the kernel objects are that it embeds. Nothing is built here: the kernel side needs another
//! compiler, which `cargo xtask build` finds or installs.

#[path = "../xtask/src/sources.rs"]
mod sources;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// The objects: the variable that names each in the program, and that may name another file than this one.
const OBJECTS: [(&str, &str); 2] = [
    ("XDP_LB_KERNEL_OBJECT", "target/kernel/xdp-lb.bpf.o"),
    ("XDP_LB_BENCH_OBJECT", "target/kernel/xdp-lb-bench.bpf.o"),
];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let Some(root) = manifest.parent() else {
        println!(
            "cargo::error={} has no parent directory",
            manifest.display()
        );
        return;
    };
    for source in sources::KERNEL_SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    for (variable, usual) in OBJECTS {
        println!("cargo::rerun-if-env-changed={variable}");
        let object = env::var_os(variable).map_or_else(|| root.join(usual), |path| root.join(path));
        embed(root, variable, &object);
    }
}

fn embed(root: &Path, variable: &str, object: &Path) {
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=the kernel object {} is missing: run `cargo xtask build`, which builds it and then this",
            object.display()
        );
        return;
    }
    println!("cargo::rustc-env={variable}={}", object.display());

    let mut written = OsString::from(object);
    written.push(".sources");
    println!(
        "cargo::rerun-if-changed={}",
        PathBuf::from(&written).display()
    );
    // An object from elsewhere, without a digest, can't be judged.
    if let (Ok(written), Ok(present)) = (fs::read_to_string(&written), sources::digest(root))
        && written != present
    {
        println!(
            "cargo::warning=the kernel object {} is older than its sources: run `cargo xtask build`",
            object.display()
        );
    }
}
