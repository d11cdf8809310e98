//! `xdp-lb reload`: the configuration file is read again and applied, or refused whole.

use anyhow::bail;

use super::{Context, Exit, screen::Screen};
use crate::api::{Request, Response, client};

pub(crate) fn run(context: &Context) -> anyhow::Result<Exit> {
    context.reach.hush();
    let socket = context.reach.socket()?;
    match client::ask(&socket, &Request::Reload, client::PATIENCE)? {
        Response::Done { changes } if changes.is_empty() => {
            context
                .screen
                .line("nothing changed: the configuration in force says the same")?;
            Ok(Exit::Done)
        }
        Response::Done { changes } => {
            for change in changes {
                context.screen.line(&change)?;
            }
            Ok(Exit::Done)
        }
        // Rendered configuration errors are several lines and begin with "error:" themselves.
        Response::Refused { message } if message.starts_with("error") => {
            let screen = Screen::stderr();
            screen.line(&message)?;
            screen.line("nothing was changed: the daemon goes on with what it has")?;
            Ok(Exit::Failed)
        }
        Response::Refused { message } => bail!(message),
        Response::Status(_) => {
            bail!("the daemon gave an answer to another question: restart it after an upgrade")
        }
    }
}
