//! `xdp-lb check`: the configuration and this host, before the daemon meets them.

mod cluster;
mod host;
mod network;
mod room;

use std::{fmt::Write as _, path::Path};

use console::Style;
use serde::Serialize;

use super::{Context, Exit, human, screen::Look};
use crate::{
    config::{ConfigError, ConfigErrors, ConfigFile, Mode, check_host},
    neighbour::{HostFacts, host_facts, offload},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Ok,
    /// It works, but the operator should know.
    Warning,
    /// The daemon would not start, or would not forward.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What: `configuration`, `privileges`, an interface's or a backend's name.
    name: String,
    result: Grade,
    /// What was found.
    message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, result: Grade, message: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            result,
            message: message.into(),
            help: None,
        }
    }

    fn ok(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(name, Grade::Ok, message)
    }

    fn warning(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(name, Grade::Warning, message)
    }

    fn error(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(name, Grade::Error, message)
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Everything that was found.
#[derive(Default)]
struct Findings {
    checks: Vec<Check>,
    /// What is wrong with the file, or with it on this host.
    errors: Option<ConfigErrors>,
    /// What the maps take.
    memory: Option<room::Memory>,
}

/// The shape of `check --json`.
#[derive(Serialize)]
struct Report<'f> {
    ok: bool,
    checks: &'f [Check],
    /// Each error of the configuration file, with its place.
    configuration_errors: &'f [ConfigError],
    /// What the maps take of the kernel's memory; absent where the file does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<&'f room::Memory>,
}

impl Findings {
    fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.result == Grade::Error)
    }

    fn report(&self) -> Report<'_> {
        Report {
            ok: !self.failed(),
            checks: &self.checks,
            configuration_errors: self.errors.as_ref().map_or(&[], ConfigErrors::errors),
            memory: self.memory.as_ref(),
        }
    }

    /// The errors of a file stand below the checks, with their lines; here only how many.
    fn file(&mut self, name: &str, what: &str, errors: ConfigErrors) {
        let count = human::counted(errors.errors().len() as u64, "error");
        self.checks
            .push(Check::error(name, format!("{what}: {count}, shown below")));
        self.errors = Some(errors);
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let findings = runtime.block_on(look(context.reach.config()));
    let text = if args.json {
        serde_json::to_string_pretty(&findings.report())?
    } else {
        render(&findings, context.screen.look)
    };
    context.screen.line(&text)?;
    Ok(if findings.failed() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

async fn look(path: &Path) -> Findings {
    let mut findings = Findings::default();
    let file = match ConfigFile::load(path) {
        Ok(file) => {
            let services = file.config.services.len();
            let backends: usize = file
                .config
                .services
                .iter()
                .map(|service| service.backends.len())
                .sum();
            findings.checks.push(Check::ok(
                "configuration",
                format!(
                    "{} is valid: {}, {}",
                    path.display(),
                    human::counted(services as u64, "service"),
                    human::counted(backends as u64, "backend"),
                ),
            ));
            Some(file)
        }
        Err(errors) => {
            findings.file("configuration", &path.display().to_string(), errors);
            None
        }
    };
    let clustered = file
        .as_ref()
        .is_some_and(|file| file.config.node.mode == Mode::Pick);
    let privileged = host::privileges(clustered);
    let rights = privileged.result != Grade::Error;
    findings.checks.push(privileged);
    findings.checks.push(host::kernel(rights));
    // What the rest is about is only known from a file that holds.
    let Some(file) = file else {
        return findings;
    };
    let (pins, pinned) = host::pins(&file.config.node.pin_path, rights);
    findings.checks.extend(pins);
    let (room, memory) = room::checks(&file.config, pinned.as_ref());
    findings.checks.extend(room);
    findings.memory = memory;
    match host_facts().await {
        Ok(facts) => network_of_host(&file, &facts, rights, &mut findings).await,
        Err(error) => findings.checks.push(Check::error(
            "network",
            format!("this host's interfaces can't be read: {error}"),
        )),
    }
    findings
}

async fn network_of_host(
    file: &ConfigFile,
    facts: &HostFacts,
    rights: bool,
    findings: &mut Findings,
) {
    match check_host(file, &facts.for_config()) {
        Ok(()) => findings.checks.push(Check::ok(
            "network",
            "all interfaces exist, every backend is in a subnet of theirs or this host, no VIP is where it must not be",
        )),
        Err(errors) => findings.file("network", "the configuration does not fit this host", errors),
    }
    for name in &file.config.node.interfaces {
        // One that does not exist is among the errors already.
        if let Some(interface) = facts.interface(name) {
            findings
                .checks
                .extend(network::interface(interface, &file.config.node));
            findings
                .checks
                .extend(network::vlans(interface, facts, offload::strips_tags(name)));
        }
    }
    findings.checks.extend(cluster::cluster(&file.config));
    findings
        .checks
        .extend(network::own_backends(&file.config, facts));
    findings
        .checks
        .extend(network::neighbours(&file.config, facts, rights).await);
}

fn render(findings: &Findings, look: Look) -> String {
    let checks = &findings.checks;
    let width = checks
        .iter()
        .map(|check| console::measure_text_width(&check.name))
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (word, style) = match check.result {
            Grade::Ok => ("ok     ", Style::new().green()),
            Grade::Warning => ("warning", Style::new().yellow()),
            Grade::Error => ("error  ", Style::new().red().bold()),
        };
        let _never = writeln!(
            text,
            "{}  {:width$}  {}",
            look.paint(style, word),
            check.name,
            check.message
        );
        if let Some(help) = &check.help {
            let _never = writeln!(
                text,
                "{:9}{:width$}  {}",
                "",
                "",
                look.paint(Style::new().dim(), help)
            );
        }
    }
    if let Some(errors) = &findings.errors {
        let _never = writeln!(text, "\n{}", errors.render(look.colour));
    }
    let count = |grade| checks.iter().filter(|check| check.result == grade).count();
    let _never = write!(
        text,
        "\n{} ok, {} to know about, {} wrong",
        count(Grade::Ok),
        count(Grade::Warning),
        count(Grade::Error)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let mut findings = Findings::default();
        findings.checks.push(Check::ok("privileges", "root"));
        findings.checks.push(
            Check::warning("eth0", "the driver e1000e has no native XDP")
                .help("generic XDP will be used"),
        );
        findings
    }

    fn errors() -> ConfigErrors {
        ConfigFile::parse("x.toml", "[nod]\n").expect_err("wrong")
    }

    #[test]
    fn warnings_do_not_fail() {
        let findings = findings();
        assert!(!findings.failed());
        let look = Look {
            colour: false,
            width: None,
        };
        assert_eq!(
            render(&findings, look),
            "ok       privileges  root\n\
             warning  eth0        the driver e1000e has no native XDP\n         \
                                  generic XDP will be used\n\n\
             1 ok, 1 to know about, 0 wrong"
                .replace("         generic", "                     generic")
        );
    }

    #[test]
    fn errors_of_the_file_are_shown_whole() {
        let mut findings = findings();
        findings.file("configuration", "x.toml", errors());
        assert!(findings.failed());
        let text = render(
            &findings,
            Look {
                colour: false,
                width: None,
            },
        );
        assert!(text.contains("shown below"), "{text}");
        assert!(text.contains("x.toml:1:"), "{text}");
    }

    #[test]
    fn the_json_names_each_check_and_each_error() {
        let mut findings = findings();
        findings.file("configuration", "x.toml", errors());
        let json = serde_json::to_value(findings.report()).expect("serializes");
        assert_eq!(json["ok"], false);
        for check in json["checks"].as_array().expect("a list") {
            for field in ["name", "result", "message"] {
                assert!(check.get(field).is_some(), "no {field} in {check}");
            }
        }
        assert_eq!(json["checks"][1]["result"], "warning");
        for error in json["configuration_errors"].as_array().expect("a list") {
            for field in ["kind", "line", "column", "message", "expected", "help"] {
                assert!(error.get(field).is_some(), "no {field} in {error}");
            }
        }
    }

    #[test]
    fn a_broken_file_does_not_keep_the_host_from_being_checked() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[nod]\n").expect("written");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let findings = runtime.block_on(look(file.path()));
        let names: Vec<_> = findings
            .checks
            .iter()
            .map(|check| check.name.as_str())
            .collect();
        assert_eq!(names, ["configuration", "privileges", "kernel"]);
        assert!(findings.failed());
    }
}
