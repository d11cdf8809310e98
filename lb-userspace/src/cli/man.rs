//! `xdp-lb man`: the man pages, written from the definition of the command line, for packages.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{CommandFactory, ValueHint};
use clap_mangen::Man;

use super::{Cli, Context, Exit};

/// Commands for the administrator.
const SECTION: &str = "8";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write a page for each command into this directory; without it, the main page goes to stdout
    #[arg(value_hint = ValueHint::DirPath)]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let command = Cli::command();
    match &args.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .and_then(|()| write_pages(command, directory))
                .with_context(|| {
                    format!("cannot write the man pages to {}", directory.display())
                })?;
        }
        None => {
            let mut page = Vec::new();
            Man::new(command).section(SECTION).render(&mut page)?;
            context.screen.line(String::from_utf8(page)?.trim_end())?;
        }
    }
    Ok(Exit::Done)
}

/// A page for `command` and for each of its commands; `clap_mangen::generate_to` knows no section but 1.
fn write_pages(mut command: clap::Command, directory: &Path) -> io::Result<()> {
    command.build();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        Man::new(sub.clone())
            .section(SECTION)
            .generate_to(directory)?;
    }
    Man::new(command).section(SECTION).generate_to(directory)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::TempDir::new().expect("a directory");
        write_pages(Cli::command(), dir.path()).expect("written");
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect(name);
        assert!(page("xdp-lb.8").contains("direct server return"));
        assert!(page("xdp-lb-drain.8").contains("no new flow goes to the backend"));
        assert!(!dir.path().join("xdp-lb-man.8").exists(), "hidden");
    }
}
