// A digest of the kernel side's sources. `xtask build` writes it beside the kernel object, and
// `lb-userspace/build.rs`, which includes this very file, compares: an object older than its sources is noticed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What the kernel objects are made from, relative to the workspace's root.
pub(crate) const KERNEL_SOURCES: &[&str] = &[
    "lb-common/Cargo.toml",
    "lb-common/src",
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/src",
    "lb-bench-ebpf/Cargo.toml",
    "lb-bench-ebpf/src",
];

/// Digests names and contents of all files under [`KERNEL_SOURCES`].
pub(crate) fn digest(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in KERNEL_SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    // FNV-1a: it has to notice an edit, not an attacker, and to be the same from whichever compiler.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy();
        let content = fs::read(&file)?;
        add(name.as_bytes());
        add(&(content.len() as u64).to_le_bytes());
        add(&content);
    }
    Ok(format!("{hash:016x}\n"))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_path_buf());
    }
    Ok(())
}
