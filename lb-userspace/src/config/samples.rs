//! Configurations for the tests of other modules.

use super::Config;

/// One service with two backends, and these lines in `[limits]`.
pub(crate) fn with_limits(limits: &str) -> Config {
    let text = format!(
        r#"
        [node]
        name = "lb1"
        interfaces = ["eth0"]
        [limits]
        {limits}
        [[service]]
        name = "web"
        vip = "192.0.2.10"
        protocol = "tcp"
        ports = [80]
        backend = [{{ name = "one", address = "198.51.100.1" }}, {{ name = "two", address = "198.51.100.2" }}]
        "#
    );
    Config::parse("test.toml", &text).unwrap_or_else(|errors| panic!("{}", errors.render(false)))
}
