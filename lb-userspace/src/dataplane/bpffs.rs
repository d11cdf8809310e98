//! The BPF file system: whether the pin path is on one, and mounting it where it is missing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::DataplaneError;

/// Where every distribution mounts it.
const STANDARD: &str = "/sys/fs/bpf";

/// Whether `path`, or the nearest directory above it that exists, is on a BPF file system.
///
/// # Errors
/// What `statfs(2)` says.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let existing = path
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    Ok(statfs(existing)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes the pin path, mounting the BPF file system at its standard place if it is missing there.
///
/// Gives the place it had to be mounted at, for the log.
///
/// # Errors
/// [`DataplaneError::Io`] with what to do, where the path can't be on a BPF file system.
pub fn ensure(pin_path: &Path) -> Result<Option<PathBuf>, DataplaneError> {
    let mut mounted = None;
    if !is_bpffs(pin_path)
        .map_err(|e| DataplaneError::io(format!("looking at {}", pin_path.display()), e))?
    {
        if !pin_path.starts_with(STANDARD) {
            let root = pin_path.parent().unwrap_or(pin_path).display();
            return Err(DataplaneError::io(
                format!(
                    "pin_path {} is not on a BPF file system: mount one (`mount -t bpf bpf {root}`), or use a path below {STANDARD}",
                    pin_path.display()
                ),
                io::Error::from(io::ErrorKind::Unsupported),
            ));
        }
        mount(
            Some("bpf"),
            STANDARD,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .map_err(|e| {
            DataplaneError::io(
                format!("mounting the BPF file system (`mount -t bpf bpf {STANDARD}`)"),
                e,
            )
        })?;
        mounted = Some(PathBuf::from(STANDARD));
    }
    fs::create_dir_all(pin_path).map_err(|e| {
        DataplaneError::io(format!("making the directory {}", pin_path.display()), e)
    })?;
    Ok(mounted)
}
