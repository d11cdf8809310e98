//! Where the daemon and its pins are: the little that most commands need of the configuration file.
//!
//! This is read apart from the configuration itself: a drain must be possible while somebody is in the middle of
//! editing the file, so an error elsewhere in it is no reason to refuse. `check` and `reload` judge the whole file.

use std::{
    borrow::Cow,
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use toml::de::{DeTable, DeValue};

use super::{DEFAULT_CONFIG, screen::Screen};
use crate::{
    api::{Request, Response, client},
    config::Control,
};

/// More than any configuration has; a device given by mistake ends here.
const FILE_MAX: u64 = 16 << 20;

/// The way to the daemon.
#[derive(Debug)]
pub(crate) struct Reach {
    /// The configuration file, as given.
    config: Option<PathBuf>,
    /// Whether the operator has been told of errors in it.
    warned: Cell<bool>,
}

impl Reach {
    pub(crate) fn new(config: Option<PathBuf>) -> Self {
        Self {
            config,
            warned: Cell::new(false),
        }
    }

    /// Keeps quiet about errors in the file, where a command shows them itself.
    pub(crate) fn hush(&self) {
        self.warned.set(true);
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> &Path {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG))
    }

    /// The control socket.
    ///
    /// # Errors
    /// The file can't be read, or it is so broken that the key can't be told.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        Ok(self.setting("control", "socket", Control::SOCKET)?.into())
    }

    /// Asks the daemon; what it refuses is an error.
    ///
    /// # Errors
    /// No daemon, no answer, or it refuses.
    pub(crate) fn ask(&self, request: &Request) -> anyhow::Result<Response> {
        match client::ask(&self.socket()?, request, client::PATIENCE)? {
            Response::Refused { message } => bail!(message),
            response => Ok(response),
        }
    }

    /// One setting of the file.
    ///
    /// # Errors
    /// As [`Reach::socket`].
    pub(crate) fn setting(
        &self,
        section: &str,
        key: &str,
        default: &str,
    ) -> anyhow::Result<String> {
        let Some(text) = self.text()? else {
            return Ok(default.into());
        };
        let (document, errors) = DeTable::parse_recoverable(&text);
        let document = document.into_inner();
        match find(&document, section, key) {
            Some(value) => {
                if !errors.is_empty() && !self.warned.replace(true) {
                    Screen::stderr().warn(&format!(
                        "{} has errors, which `xdp-lb check` shows; the daemon goes on with what it has",
                        self.config().display()
                    ));
                }
                Ok(value.into_owned())
            }
            // In a broken file the key may be there and not be seen: another daemon would be asked.
            None if !errors.is_empty() => Err(anyhow!(
                "{} has errors, so that `{key}` of [{section}] can't be told from it: correct it with the help of `xdp-lb check`",
                self.config().display()
            )),
            None => Ok(default.into()),
        }
    }

    /// The file's text; `None` where there is none in the default place, so that all is as by default.
    fn text(&self) -> anyhow::Result<Option<String>> {
        let path = self.config();
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.config.is_none() => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| {
                let advice = if self.config.is_some() {
                    "name the daemon's configuration file with --config"
                } else {
                    "run as root"
                };
                format!("cannot read {} ({advice})", path.display())
            }),
        }
    }

    /// The names of the configured services, each with its backends', as far as the file can be read: for the
    /// shell's completion, which has nowhere to show an error.
    pub(crate) fn names(&self) -> Vec<(String, Vec<String>)> {
        let Ok(Some(text)) = self.text() else {
            return Vec::new();
        };
        let (document, _errors) = DeTable::parse_recoverable(&text);
        let services = array(document.get_ref(), "service");
        services
            .filter_map(|service| {
                let backends = array(service, "backend").filter_map(name).collect();
                Some((name(service)?, backends))
            })
            .collect()
    }
}

fn find<'d>(document: &'d DeTable<'_>, section: &str, key: &str) -> Option<Cow<'d, str>> {
    document
        .get(section)?
        .get_ref()
        .get(key)?
        .get_ref()
        .as_str()
        .map(Cow::Borrowed)
}

fn array<'d, 'i>(
    table: &'d DeTable<'i>,
    key: &str,
) -> impl Iterator<Item = &'d DeTable<'i>> + use<'d, 'i> {
    let items = table.get(key).and_then(|value| value.get_ref().as_array());
    items
        .into_iter()
        .flat_map(|items| items.iter())
        .filter_map(|item| match item.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        })
}

fn name(table: &DeTable<'_>) -> Option<String> {
    Some(table.get("name")?.get_ref().as_str()?.to_owned())
}
