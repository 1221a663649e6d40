//! The environment, checked before anything starts.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::variables::*;
use crate::storage::nats::{NATSStorageConfig, NATSStorageOptions};

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `STORAGE_BACKEND` and what belongs to it.
    pub backend: Backend,
    /// `LISTEN_ADDR`: where to listen; with port 0 the system chooses a free one.
    pub listen: SocketAddr,
    /// `ALLOWED_HOSTS`: names that the server is called by.
    pub hosts: Vec<String>,
    /// `METRICS_ENABLED`: whether `/metrics` is served.
    pub metrics: bool,
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
    /// `nats`: in a JetStream stream.
    Nats {
        /// `NATS_URL`, the limits and the times.
        config: NATSStorageConfig,
        /// Replicas, credentials and certificates.
        options: Box<NATSStorageOptions>,
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

impl Config {
    /// Reads the configuration; `variable` looks one up in the environment.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let environment = Environment { variable: &variable };
        let name = environment.text(&STORAGE_BACKEND)?;
        let unused: &[&[Variable]] = match name.as_str() {
            "sqlite" => &[&NATS_VARIABLES],
            "memory" => &[&[SQLITE_PATH], &NATS_VARIABLES],
            "nats" => &[&[SQLITE_PATH]],
            other => return Err(wrong(&STORAGE_BACKEND, other, "use sqlite, nats or memory")),
        };
        for wanted in unused.iter().copied().flatten() {
            if let Some(value) = environment.given(wanted)? {
                let rule =
                    format!("it has no meaning with STORAGE_BACKEND={name}; unset one of them");
                return Err(wrong(wanted, &shown(wanted, value), &rule));
            }
        }
        let backend = match name.as_str() {
            "sqlite" => Backend::Sqlite { path: environment.text(&SQLITE_PATH)?.into() },
            "memory" => Backend::Memory,
            _ => environment.nats()?,
        };
        // It has no meaning without NATS; a wrong one is wrong all the same.
        environment.seconds(&HEALTH_CHECK_INTERVAL, HOUR)?;
        let listen = environment.text(&LISTEN_ADDR)?;
        let rule =
            "use an IP address and a port, such as 127.0.0.1:4000, [::1]:4000 or 0.0.0.0:4000";
        let listen = listen.parse().map_err(|_| wrong(&LISTEN_ADDR, &listen, rule))?;
        let log = environment.text(&RUST_LOG)?;
        if let Err(error) = EnvFilter::try_new(&log) {
            return Err(wrong(&RUST_LOG, &log, error.to_string().trim()));
        }
        let metrics = environment.is_true(&METRICS_ENABLED)?;
        let hosts = environment.hosts()?;
        Ok(Self { backend, listen, hosts, metrics, log })
    }
}

/// In seconds.
const HOUR: i64 = 60 * 60;

struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Environment<'_> {
    /// The value, if there is one. Set to nothing counts as not set, as it does in most shells and
    /// compose files.
    fn given(&self, wanted: &Variable) -> Result<Option<String>, ConfigError> {
        match (self.variable)(wanted.name) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|value| {
                wrong(wanted, &shown(wanted, value.to_string_lossy().into()), "it is not UTF-8")
            }),
        }
    }

    fn is_true(&self, variable: &Variable) -> Result<bool, ConfigError> {
        match self.text(variable)?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(wrong(variable, other, "use true or false")),
        }
    }

    fn hosts(&self) -> Result<Vec<String>, ConfigError> {
        let text = self.text(&ALLOWED_HOSTS)?;
        let rule =
            "use names of hosts without a port, separated by commas, such as orders.example.com";
        let is_name = |name: &str| {
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            !name.is_empty() && name.bytes().all(allowed)
        };
        let names: Vec<_> = text.split(',').map(str::trim).map(str::to_owned).collect();
        match names.as_slice() {
            [one] if one.is_empty() => Ok(Vec::new()),
            all if all.iter().all(|name| is_name(name)) => Ok(names),
            _ => Err(wrong(&ALLOWED_HOSTS, &text, rule)),
        }
    }

    fn text(&self, wanted: &Variable) -> Result<String, ConfigError> {
        Ok(self.given(wanted)?.unwrap_or_else(|| wanted.default.to_owned()))
    }

    fn path(&self, wanted: &Variable) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.given(wanted)?.map(PathBuf::from))
    }

    fn number(&self, wanted: &Variable, least: i64, most: i64) -> Result<i64, ConfigError> {
        let text = self.text(wanted)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && (least..=most).contains(&number) => Ok(number),
            _ => Err(wrong(wanted, &text, &format!("use a whole number from {least} to {most}"))),
        }
    }

    fn seconds(&self, wanted: &Variable, most: i64) -> Result<Duration, ConfigError> {
        let seconds = self.number(wanted, 1, most)?;
        Ok(Duration::from_secs(seconds.unsigned_abs()))
    }

    fn nats(&self) -> Result<Backend, ConfigError> {
        const YEARS_100: i64 = 100 * 365 * 24 * HOUR;
        let url = self.text(&NATS_URL)?;
        let buffer = self.number(&NATS_RECONNECT_BUFFER_SIZE, 64 << 10, 1 << 30)?;
        let config = NATSStorageConfig {
            nats_urls: url.split(',').map(|url| url.trim().to_owned()).collect(),
            default_max_messages: self.number(&NATS_MAX_MESSAGES, 100, i64::MAX)?,
            default_max_bytes: self.number(&NATS_MAX_BYTES, 1 << 20, i64::MAX)?,
            default_max_age: self.seconds(&NATS_MAX_AGE, YEARS_100)?,
            connection_timeout: self.seconds(&NATS_CONNECTION_TIMEOUT, HOUR)?,
            reconnect_buffer_size: usize::try_from(buffer).unwrap_or(usize::MAX),
            ..NATSStorageConfig::default()
        };
        let certificate = self.path(&NATS_TLS_CERT_FILE)?;
        let tls_client_files = match (certificate, self.path(&NATS_TLS_KEY_FILE)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(one), None) => {
                let rule = "set NATS_TLS_KEY_FILE, too";
                return Err(wrong(&NATS_TLS_CERT_FILE, &one.to_string_lossy(), rule));
            }
            (None, Some(one)) => {
                let rule = "set NATS_TLS_CERT_FILE, too";
                return Err(wrong(&NATS_TLS_KEY_FILE, &one.to_string_lossy(), rule));
            }
        };
        let replicas = self.number(&NATS_REPLICAS, 1, 5)?;
        let options = NATSStorageOptions {
            replicas: usize::try_from(replicas).unwrap_or(1),
            credentials_file: self.path(&NATS_CREDENTIALS_FILE)?,
            tls_ca_file: self.path(&NATS_TLS_CA_FILE)?,
            tls_client_files,
            lower_limits: self.is_true(&NATS_LOWER_LIMITS)?,
            recreate_stream: self.is_true(&NATS_RECREATE_STREAM)?,
            health_check_interval: self.seconds(&HEALTH_CHECK_INTERVAL, HOUR)?,
        };
        for path in [&options.credentials_file, &options.tls_ca_file].into_iter().flatten() {
            if let Err(error) = std::fs::File::open(path) {
                let of_credentials = options.credentials_file.as_ref() == Some(path);
                let wanted =
                    if of_credentials { &NATS_CREDENTIALS_FILE } else { &NATS_TLS_CA_FILE };
                return Err(wrong(wanted, &path.to_string_lossy(), &error.to_string()));
            }
        }
        if let Err(error) = config.check(&options) {
            // All but the addresses has been checked above.
            return Err(wrong(&NATS_URL, &shown(&NATS_URL, url), &error.rule));
        }
        Ok(Backend::Nats { config, options: Box::new(options) })
    }
}

/// A value as a message may show it: an address without user and password.
fn shown(variable: &Variable, value: String) -> String {
    if variable.name != NATS_URL.name {
        return value;
    }
    let urls: Vec<_> = value.split(',').map(|url| url.trim().to_owned()).collect();
    crate::storage::nats::shown_urls(&urls)
}

fn wrong(variable: &Variable, value: &str, rule: &str) -> ConfigError {
    ConfigError { variable: variable.name, value: value.to_owned(), rule: rule.to_owned() }
}
