//! Tells the program where the kernel object is that it embeds. Nothing is built here: the kernel side needs another
//! compiler, which `cargo xtask build` finds or installs.

#[path = "../xtask/src/sources.rs"]
mod sources;

use std::{env, ffi::OsString, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=XDP_LB_KERNEL_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let Some(root) = manifest.parent() else {
        println!(
            "cargo::error={} has no parent directory",
            manifest.display()
        );
        return;
    };
    let object = env::var_os("XDP_LB_KERNEL_OBJECT").map_or_else(
        || root.join("target/kernel/xdp-lb.bpf.o"),
        |path| root.join(path),
    );
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=the kernel object {} is missing: run `cargo xtask build`, which builds it and then this",
            object.display()
        );
        return;
    }
    println!("cargo::rustc-env=XDP_LB_KERNEL_OBJECT={}", object.display());

    let mut written = OsString::from(&object);
    written.push(".sources");
    for source in sources::KERNEL_SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
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
