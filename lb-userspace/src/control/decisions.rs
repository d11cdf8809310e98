//! What the operator decided, and the hash seed: kept in a file, so that it survives a restart of the daemon.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What the operator decided about one backend of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// `drain`.
    #[serde(default)]
    pub drained: bool,
    /// `fail`.
    #[serde(default)]
    pub failed: bool,
    /// `weight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `drain --timeout`: when the flows that are left are ended, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until_ms: Option<u64>,
    /// That time has come: so many flows were left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_ended: Option<u64>,
}

/// A service with `failback = "manual"` whose new flows went to a later priority: they stay there until the operator says
/// `failback`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The priority they stay on.
    pub priority: u32,
    /// The configured priority of each backend at that time: where one of them has another one now, nothing is held.
    pub priorities: BTreeMap<String, u32>,
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// By service and backend.
    pub backends: BTreeMap<(String, String), Decision>,
    /// By service.
    pub held: BTreeMap<String, Held>,
    /// The secret that decides which client goes where, where the configuration does not name one.
    pub seed: Option<[u64; 2]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<String>,
    decisions: Vec<Entry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    held: BTreeMap<String, Held>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    service: String,
    backend: String,
    #[serde(flatten)]
    decision: Decision,
}

const VERSION: u32 = 1;

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DecisionsError {
    /// Reading or writing failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} does not hold the operator's decisions ({problem}): move it away to start without them, or mend it; \
         nothing was changed"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Decisions {
    /// What was decided about a backend.
    #[must_use]
    pub fn of(&self, service: &str, backend: &str) -> Decision {
        self.backends
            .get(&(service.to_owned(), backend.to_owned()))
            .copied()
            .unwrap_or_default()
    }

    /// Decides about a backend; a decision that says nothing is forgotten.
    pub fn set(&mut self, service: &str, backend: &str, decision: Decision) {
        let key = (service.to_owned(), backend.to_owned());
        if decision == Decision::default() {
            self.backends.remove(&key);
        } else {
            self.backends.insert(key, decision);
        }
    }

    /// The drains whose time is up and whose flows have not been ended yet: service and backend.
    #[must_use]
    pub fn due(&self, unix_ms: u64) -> Vec<(String, String)> {
        self.backends
            .iter()
            .filter(|(_, decision)| {
                decision.flows_ended.is_none()
                    && decision
                        .drain_until_ms
                        .is_some_and(|until| until <= unix_ms)
            })
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Reads the file; a missing one holds nothing.
    ///
    /// # Errors
    /// [`DecisionsError`]: a file that can't be read is never taken for an empty one, which would undo every drain.
    pub fn load(path: &Path) -> Result<Self, DecisionsError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(DecisionsError::Io {
                    what: "reading",
                    path: path.into(),
                    source,
                });
            }
        };
        let content = |problem: String| DecisionsError::Content {
            path: path.into(),
            problem,
        };
        let file: File = serde_json::from_str(&text).map_err(|e| content(e.to_string()))?;
        if file.version != VERSION {
            return Err(content(format!(
                "version {}, expected {VERSION}",
                file.version
            )));
        }
        let seed = file
            .seed
            .map(|text| {
                parse_seed(&text)
                    .ok_or_else(|| content("the seed is not 32 hexadecimal digits".into()))
            })
            .transpose()?;
        let backends = file
            .decisions
            .into_iter()
            .map(|entry| ((entry.service, entry.backend), entry.decision))
            .collect();
        Ok(Self {
            backends,
            held: file.held,
            seed,
        })
    }

    /// Writes the file whole: to a new one beside it, flushed to the disk, then renamed. Readable by root alone, since
    /// the seed is a secret.
    ///
    /// # Errors
    /// [`DecisionsError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), DecisionsError> {
        let file = File {
            version: VERSION,
            seed: self.seed.map(|[a, b]| format!("{a:016x}{b:016x}")),
            decisions: self
                .backends
                .iter()
                .map(|((service, backend), decision)| Entry {
                    service: service.clone(),
                    backend: backend.clone(),
                    decision: *decision,
                })
                .collect(),
            held: self.held.clone(),
        };
        let error = |source| DecisionsError::Io {
            what: "writing",
            path: path.into(),
            source,
        };
        let text = serde_json::to_string_pretty(&file).map_err(|e| error(io::Error::other(e)))?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(error)?;
        }
        let temporary = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(error)
    }
}

fn parse_seed(text: &str) -> Option<[u64; 2]> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    Some([
        u64::from_str_radix(&text[..16], 16).ok()?,
        u64::from_str_radix(&text[16..], 16).ok()?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/state.json");
        assert_eq!(Decisions::load(&path).unwrap(), Decisions::default());
        let mut decisions = Decisions {
            seed: Some([1, u64::MAX]),
            ..Decisions::default()
        };
        decisions.set(
            "web",
            "b1",
            Decision {
                drained: true,
                ..Decision::default()
            },
        );
        decisions.set(
            "web",
            "b2",
            Decision {
                weight: Some(0),
                ..Decision::default()
            },
        );
        decisions.set(
            "mail",
            "b1",
            Decision {
                drained: true,
                drain_until_ms: Some(1_700_000_000_000),
                flows_ended: Some(3),
                ..Decision::default()
            },
        );
        decisions.held.insert(
            "web".into(),
            Held {
                priority: 2,
                priorities: BTreeMap::from([("b1".into(), 1), ("b2".into(), 2)]),
            },
        );
        decisions.save(&path).unwrap();
        assert_eq!(Decisions::load(&path).unwrap(), decisions);
        decisions.set("web", "b1", Decision::default());
        assert_eq!(decisions.backends.len(), 2);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "the seed is a secret");
    }

    #[test]
    fn a_drain_is_due_once() {
        let mut decisions = Decisions::default();
        let drain = Decision {
            drained: true,
            drain_until_ms: Some(1000),
            ..Decision::default()
        };
        decisions.set("web", "b1", drain);
        let endless = Decision {
            drain_until_ms: None,
            ..drain
        };
        decisions.set("web", "b2", endless);
        assert_eq!(decisions.due(999), []);
        assert_eq!(decisions.due(1000), [("web".to_owned(), "b1".to_owned())]);
        let ended = Decision {
            flows_ended: Some(0),
            ..drain
        };
        decisions.set("web", "b1", ended);
        assert_eq!(decisions.due(u64::MAX), []);
    }

    #[test]
    fn a_damaged_file_is_never_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in [
            "",
            "{\"version\":1,\"decis",
            "{\"version\":2,\"decisions\":[]}",
            "{\"version\":1,\"seed\":\"xyz\",\"decisions\":[]}",
        ] {
            fs::write(&path, text).unwrap();
            let error = Decisions::load(&path).unwrap_err().to_string();
            assert!(
                error.contains("state.json") && error.contains("nothing was changed"),
                "{error}"
            );
        }
    }
}
