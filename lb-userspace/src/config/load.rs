//! From a path to a configuration.

use std::{fs::File, io, io::Read, path::Path};

use toml::{Spanned, de::DeTable};

use super::{
    check,
    error::{ConfigError, ConfigErrors, ErrorKind},
    model::{Config, Service},
    raw::{self, RawConfig, RawService},
    reader::Sink,
    source::{ServiceSource, Source, Text},
    syntax,
};

/// The largest file that is read, in bytes: the largest valid one, of 65,535 backends, takes about half of it.
const FILE_MAX: u64 = 16 << 20;

/// A valid configuration with its source, so that [`check_host`](super::check_host) can point at a line.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// What the file says.
    pub config: Config,
    pub(super) source: Source,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        ConfigFile::load(path).map(|file| file.config)
    }

    /// Reads and checks a configuration from `text`; messages call it `file_name`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, ConfigErrors> {
        ConfigFile::parse(file_name, text).map(|file| file.config)
    }
}

impl ConfigFile {
    /// As [`Config::load`].
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        match read_file(path) {
            Ok(text) => Self::parse(&name, &text),
            Err(error) => Err(ConfigErrors::new(Text::new(&name, ""), vec![*error])),
        }
    }

    /// As [`Config::parse`].
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim().is_empty() {
            let error = ConfigError::new(ErrorKind::File, "the configuration file is empty")
                .help("write at least [node] and one [[service]] into it; docs/configuration.md shows how")
                .help("if another program is just writing it, try again when that has finished");
            return Err(ConfigErrors::new(Text::new(file_name, ""), vec![error]));
        }
        let (document, parser_errors) = DeTable::parse_recoverable(text);
        let sink = Sink::default();
        let raw = raw::read(document.get_ref(), &sink);
        check::check(&raw, &sink);
        let (errors, secrets) = sink.into_parts();
        let mut source = Source {
            text: Text::new(file_name, text),
            interfaces: Vec::new(),
            services: Vec::new(),
        };
        for secret in secrets {
            source.text.mask(secret);
        }
        let errors = syntax::combine(&source.text, parser_errors, errors);
        if !errors.is_empty() {
            return Err(ConfigErrors::new(source.text, errors));
        }
        source.fill(&raw);
        let text = source.text.clone();
        match finish(raw) {
            Some(config) => Ok(Self { config, source }),
            // Each value that is missing has pushed its error, so there are errors and this isn't reached; if it
            // were, a refused file is better than a daemon that dies of it.
            None => Err(ConfigErrors::new(
                text,
                vec![ConfigError::new(
                    ErrorKind::File,
                    "the file has an error for which there is no message; this is a defect of xdp-lb",
                )],
            )),
        }
    }
}

impl Source {
    fn fill(&mut self, raw: &RawConfig) {
        let node = raw.node.iter();
        self.interfaces = node
            .flat_map(|node| &node.interfaces)
            .map(Spanned::span)
            .collect();
        self.services = raw
            .services
            .iter()
            .map(|service| ServiceSource {
                vip: service.vip.as_ref().map_or(0..0, Spanned::span),
                addresses: service
                    .backends
                    .iter()
                    .map(|backend| backend.address.as_ref().map_or(0..0, Spanned::span))
                    .collect(),
            })
            .collect();
    }
}

fn finish(raw: RawConfig) -> Option<Config> {
    Some(Config {
        node: raw.node?.node?,
        control: raw.control?,
        limits: raw.limits?.limits,
        services: raw
            .services
            .into_iter()
            .map(finish_service)
            .collect::<Option<_>>()?,
    })
}

fn finish_service(raw: RawService) -> Option<Service> {
    Some(Service {
        name: raw.name?.into_inner(),
        vip: raw.vip?.into_inner(),
        protocol: raw.protocol?,
        ports: raw.ports?.into_inner(),
        affinity: raw.affinity?,
        spread_hot_sources: raw.spread_hot_sources?.map(toml::Spanned::into_inner),
        network_prefix: raw.network_prefix?,
        rule: raw.rule?.into_inner(),
        flow_idle: raw.flow_idle?,
        track: raw.track?,
        affinity_timeout: raw.affinity_timeout?,
        failback: raw.failback?,
        probe: raw.probe?,
        backends: raw
            .backends
            .into_iter()
            .map(raw::RawBackend::finish)
            .collect::<Option<_>>()?,
    })
}

fn read_file(path: &Path) -> Result<String, Box<ConfigError>> {
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    // Bounded by what is read, not by what the file claims: a device or a pipe has no length.
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(Box::new(
            ConfigError::new(ErrorKind::File, "the configuration file is too large")
                .expected(format!("at most {} MiB", FILE_MAX >> 20))
                .help("is it really a configuration file? name another with --config FILE"),
        ));
    }
    String::from_utf8(bytes).map_err(|error| Box::new(not_utf8(&error)))
}

fn unreadable(error: &io::Error) -> ConfigError {
    let (message, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            "there is no configuration file here",
            "create it (the documentation has a commented example), or name another with --config FILE",
        ),
        io::ErrorKind::PermissionDenied => (
            "no permission to read the configuration file",
            "run as root, or give this user the right to read it",
        ),
        io::ErrorKind::IsADirectory => (
            "the configuration file is a directory",
            "name the file in it with --config FILE",
        ),
        _ => {
            let message = format!("the configuration file can't be read: {error}");
            return ConfigError::new(ErrorKind::File, message).help(
                "name another file with --config FILE, or look into the kernel's log for the disk",
            );
        }
    };
    ConfigError::new(ErrorKind::File, message).help(help)
}

fn not_utf8(error: &std::string::FromUtf8Error) -> ConfigError {
    let at = error.utf8_error().valid_up_to();
    let bytes = error.as_bytes();
    let before = String::from_utf8_lossy(bytes.get(..at).unwrap_or_default());
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    let byte = bytes.get(at).copied().unwrap_or_default();
    let mut problem = ConfigError::new(
        ErrorKind::File,
        format!("the configuration file is not UTF-8: found the byte 0x{byte:02x} in line {line}, column {column}"),
    )
    .help("save it as UTF-8; if it should be plain text, look for damage at that place");
    (problem.line, problem.column) = (Some(line), Some(column));
    problem
}
