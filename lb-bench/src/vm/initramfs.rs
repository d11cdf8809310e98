//! The machine's first file system, which is its only one: an archive that the kernel unpacks into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use cpio::{NewcBuilder, write_cpio};

use super::{output, read};

/// Modes (inode(7)): a directory, and a file that can be executed.
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
/// All libraries are in one directory; the machine's `LD_LIBRARY_PATH` names it.
pub(super) const LIBRARIES: &str = "lib";

/// What is to be in it, by the path below the root.
#[derive(Debug, Default)]
pub(super) struct Archive {
    directories: BTreeSet<String>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    /// A directory, and those it is in.
    pub(super) fn directory(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.directories.insert(path[..end].to_owned());
        }
        self.directories.insert(path.to_owned());
    }

    /// A file, and the directories it is in.
    pub(super) fn file(&mut self, path: &str, content: Vec<u8>) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
        self.files.insert(path.to_owned(), content);
    }

    /// A program of this machine, and the libraries it is linked with.
    pub(super) fn program(&mut self, path: &str, here: &Path) -> Result<()> {
        self.file(path, read(here)?);
        let listed = output(Command::new("ldd").arg(here));
        // It fails for what is linked with nothing, and says so.
        let listed = match listed {
            Err(error) if format!("{error}").contains("not a dynamic executable") => return Ok(()),
            listed => listed?,
        };
        for Library { place, here } in
            libraries(&listed).with_context(|| here.display().to_string())?
        {
            if !self.files.contains_key(&place) {
                self.file(&place, read(&here)?);
            }
        }
        Ok(())
    }

    /// The archive, in the format that the kernel takes (Documentation/driver-api/early-userspace/buffer-format.rst).
    pub(super) fn bytes(self) -> Result<Vec<u8>> {
        let directories = self
            .directories
            .into_iter()
            .map(|path| (NewcBuilder::new(&path).mode(DIRECTORY), Vec::new()));
        let files = self
            .files
            .into_iter()
            .map(|(path, content)| (NewcBuilder::new(&path).mode(EXECUTABLE), content));
        // A directory comes before what is in it: shorter names come first.
        let entries = directories
            .chain(files)
            .map(|(entry, content)| (entry, Cursor::new(content)));
        write_cpio(entries, Vec::new()).context("making the first file system")
    }
}

/// A library, and where it is to be in the archive.
#[derive(Debug, PartialEq, Eq)]
struct Library {
    place: String,
    here: PathBuf,
}

/// Reads what ldd(1) prints.
fn libraries(listed: &str) -> Result<Vec<Library>> {
    let mut all = Vec::new();
    for line in listed.lines().map(str::trim) {
        // `linux-vdso.so.1 (0x...)` is the kernel's; `statically linked` has none.
        let without_address = line.split(" (0x").next().unwrap_or(line);
        match without_address.split_once(" => ") {
            Some((name, "not found")) => bail!("its library {name} is not installed"),
            Some((name, path)) => all.push(Library {
                place: format!("{LIBRARIES}/{name}"),
                here: path.into(),
            }),
            // The one that loads the others, at the place that the program names.
            None if without_address.starts_with('/') => all.push(Library {
                place: without_address.trim_start_matches('/').to_owned(),
                here: without_address.into(),
            }),
            None => {}
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f07)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f08)\n";
        let library = |place: &str, here: &str| Library {
            place: place.into(),
            here: here.into(),
        };
        assert_eq!(
            libraries(listed).expect("read"),
            [
                library("lib/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
                library("lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
            ]
        );
        assert_eq!(libraries("\tstatically linked\n").expect("read"), []);
        let error = libraries("\tlibmnl.so.0 => not found\n").expect_err("it is missing");
        assert!(error.to_string().contains("libmnl.so.0"), "{error}");
    }

    /// Names, modes and contents, in their order.
    fn unpacked(archive: Archive) -> Vec<(String, u32, Vec<u8>)> {
        let bytes = archive.bytes().expect("an archive");
        let mut rest = bytes.as_slice();
        let mut entries = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).expect("its content");
            entries.push((name, mode, content));
            rest = reader.finish().expect("the next one");
        }
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("a/b/file", b"12345".to_vec());
        archive.file("init", b"1".to_vec());
        archive.directory("proc");
        let entry = |name: &str, mode, content: &[u8]| (name.to_owned(), mode, content.to_vec());
        assert_eq!(
            unpacked(archive),
            [
                entry("a", DIRECTORY, b""),
                entry("a/b", DIRECTORY, b""),
                entry("proc", DIRECTORY, b""),
                entry("a/b/file", EXECUTABLE, b"12345"),
                entry("init", EXECUTABLE, b"1"),
            ]
        );
    }

    #[test]
    fn a_program_comes_with_its_libraries() {
        let mut archive = Archive::default();
        let own = std::env::current_exe().expect("this test");
        archive.program("init", &own).expect("read");
        assert!(
            archive.files.contains_key("lib/libc.so.6"),
            "{:?}",
            archive.files.keys()
        );
        assert!(
            archive
                .files
                .keys()
                .any(|path| path.contains("/ld-linux") || path.contains("/ld-")),
            "{:?}",
            archive.files.keys()
        );
        assert!(
            archive
                .program("bin/none", Path::new("/nowhere/none"))
                .is_err()
        );
    }
}
