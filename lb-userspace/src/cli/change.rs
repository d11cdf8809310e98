//! What the commands that change something have in common.

use anyhow::bail;

use super::{Context, Exit};
use crate::api::{Request, Response, Target};

/// The backend a command is for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// The backend's name
    #[arg(add = super::completions::backends())]
    backend: String,
    /// Only in this service; otherwise in every one that has a backend of this name
    #[arg(long, value_name = "SERVICE", add = super::completions::services())]
    service: Option<String>,
}

impl TargetArgs {
    pub(crate) fn target(&self) -> Target {
        Target {
            backend: self.backend.clone(),
            service: self.service.clone(),
        }
    }
}

/// Asks for a change and prints what was done.
///
/// # Errors
/// No daemon, no answer, or it refuses: then nothing was changed.
pub(crate) fn apply(request: &Request, context: &Context) -> anyhow::Result<Exit> {
    let changes = ask(request, context)?;
    if changes.is_empty() {
        context.screen.line("nothing to do: all is so already")?;
    }
    for change in changes {
        context.screen.line(&change)?;
    }
    Ok(Exit::Done)
}

/// The same for programs: `{"changes": [...]}`, empty where all was so already.
///
/// # Errors
/// As [`apply`].
pub(crate) fn apply_as_json(request: &Request, context: &Context) -> anyhow::Result<Exit> {
    let changes = ask(request, context)?;
    let object = serde_json::json!({ "changes": changes });
    context
        .screen
        .line(&serde_json::to_string_pretty(&object)?)?;
    Ok(Exit::Done)
}

fn ask(request: &Request, context: &Context) -> anyhow::Result<Vec<String>> {
    let Response::Done { changes } = context.reach.ask(request)? else {
        bail!("the daemon gave an answer to another question: restart it after an upgrade");
    };
    Ok(changes)
}
