//! The environment, checked before anything starts.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `STORAGE_BACKEND` and what belongs to it.
    pub backend: Backend,
    /// `LISTEN_ADDR`: where to listen; with port 0 the system chooses a free one.
    pub listen: SocketAddr,
    /// `RUST_LOG`: which log lines are written.
    pub log: String,
}

/// Where everything is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// `memory`: in the process, lost with it.
    Memory,
    /// `sqlite`: in one file.
    Sqlite {
        /// `SQLITE_PATH`.
        path: PathBuf,
    },
}

/// A variable whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?}: {rule}")]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub rule: String,
}

struct Variable {
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
}

const STORAGE_BACKEND: Variable = Variable {
    name: "STORAGE_BACKEND",
    default: "sqlite",
    meaning: "where everything is kept: sqlite (one file) or memory (lost at the end)",
};
const SQLITE_PATH: Variable = Variable {
    name: "SQLITE_PATH",
    default: "circuit-breaker.db",
    meaning: "the file of the sqlite backend; it is created if it is not there",
};
const LISTEN_ADDR: Variable = Variable {
    name: "LISTEN_ADDR",
    default: "127.0.0.1:4000",
    meaning: "address and port to listen on",
};
const RUST_LOG: Variable = Variable {
    name: "RUST_LOG",
    default: "info",
    meaning: "error, warn, info, debug or trace, or filters such as circuit_breaker=debug",
};

const VARIABLES: [Variable; 4] = [STORAGE_BACKEND, SQLITE_PATH, LISTEN_ADDR, RUST_LOG];

impl Config {
    /// Reads the configuration; `variable` looks one up in the environment.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let text = |wanted: &Variable| match variable(wanted.name) {
            // Set to nothing counts as not set, as it does in most shells and compose files.
            None => Ok((wanted.default.to_owned(), false)),
            Some(value) if value.is_empty() => Ok((wanted.default.to_owned(), false)),
            Some(value) => match value.into_string() {
                Ok(value) => Ok((value, true)),
                Err(value) => Err(wrong(wanted, &value.to_string_lossy(), "it is not UTF-8")),
            },
        };
        let (path, path_is_set) = text(&SQLITE_PATH)?;
        let (name, _) = text(&STORAGE_BACKEND)?;
        let backend = match name.as_str() {
            "sqlite" => Backend::Sqlite { path: path.into() },
            "memory" if path_is_set => {
                return Err(wrong(
                    &SQLITE_PATH,
                    &path,
                    "it has no meaning with STORAGE_BACKEND=memory; unset one of them",
                ));
            }
            "memory" => Backend::Memory,
            other => return Err(wrong(&STORAGE_BACKEND, other, "use sqlite or memory")),
        };
        let (listen, _) = text(&LISTEN_ADDR)?;
        let rule =
            "use an IP address and a port, such as 127.0.0.1:4000, [::1]:4000 or 0.0.0.0:4000";
        let listen = listen.parse().map_err(|_| wrong(&LISTEN_ADDR, &listen, rule))?;
        let (log, _) = text(&RUST_LOG)?;
        if let Err(error) = EnvFilter::try_new(&log) {
            return Err(wrong(&RUST_LOG, &log, error.to_string().trim()));
        }
        Ok(Self { backend, listen, log })
    }
}

fn wrong(variable: &Variable, value: &str, rule: &str) -> ConfigError {
    ConfigError { variable: variable.name, value: value.to_owned(), rule: rule.to_owned() }
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = format!(
        "circuit_breaker {}: a workflow engine whose store is a message bus\n\n\
         Usage: server [--help | --version]\n\n\
         The server is configured by its environment:\n",
        env!("CARGO_PKG_VERSION")
    );
    for Variable { name, default, meaning } in VARIABLES {
        text.push_str(&format!("  {name:<16} {meaning}\n  {:<16} [default: {default}]\n", ""));
    }
    text.push_str(
        "\nIt serves / (GraphiQL), /graphql, /schema.graphql, /health/live and /health/ready.\n\
         SIGTERM or Ctrl-C stops it after the requests under way.\n",
    );
    text
}
