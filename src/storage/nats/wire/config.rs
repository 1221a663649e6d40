//! How to reach the bus and how much to keep there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where the store is and how much it may keep. The fields are those of the product's NATS guide;
/// [`NATSStorageOptions`] has the rest.
#[derive(Clone, PartialEq, Eq)]
pub struct NATSStorageConfig {
    /// Servers to try, such as `nats://localhost:4222`; `tls://` asks for TLS, and user and password
    /// may stand before the host. At least one.
    pub nats_urls: Vec<String>,
    /// Messages that the stream may hold; at least 100. A workflow takes two, a token two and each
    /// of its moves one. History goes first.
    pub default_max_messages: i64,
    /// Bytes that the stream may hold; at least 1 MiB.
    pub default_max_bytes: i64,
    /// How long events and completed tokens are kept; at least a second. Nothing live ever ages.
    pub default_max_age: Duration,
    /// The most time that one list or one walk through a token's history takes.
    pub consumer_timeout: Duration,
    /// How often a read that got no answer is asked, at least once.
    pub max_deliver: i64,
    /// The most time that one attempt to connect takes.
    pub connection_timeout: Duration,
    /// Bytes of writes that may wait for the store, such as while the connection is being made
    /// anew. What comes on top is refused with `STORAGE_UNAVAILABLE`.
    pub reconnect_buffer_size: usize,
}

impl Default for NATSStorageConfig {
    /// A server on this machine, a million messages, 1 GiB, seven days.
    fn default() -> Self {
        Self {
            nats_urls: vec!["nats://localhost:4222".to_owned()],
            default_max_messages: 1_000_000,
            default_max_bytes: 1 << 30,
            default_max_age: Duration::from_secs(7 * 24 * 60 * 60),
            consumer_timeout: Duration::from_secs(5),
            max_deliver: 3,
            connection_timeout: Duration::from_secs(10),
            reconnect_buffer_size: 4 << 20,
        }
    }
}

impl fmt::Debug for NATSStorageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NATSStorageConfig")
            .field("nats_urls", &shown_urls(&self.nats_urls))
            .field("default_max_messages", &self.default_max_messages)
            .field("default_max_bytes", &self.default_max_bytes)
            .field("default_max_age", &self.default_max_age)
            .field("consumer_timeout", &self.consumer_timeout)
            .field("max_deliver", &self.max_deliver)
            .field("connection_timeout", &self.connection_timeout)
            .field("reconnect_buffer_size", &self.reconnect_buffer_size)
            .finish()
    }
}

/// What the guide's configuration has no field for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NATSStorageOptions {
    /// Copies of the stream in a cluster, 1 to 5; with 3, any one server may be lost.
    pub replicas: usize,
    /// A file of credentials, as `nsc` makes them.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the system.
    pub tls_ca_file: Option<PathBuf>,
    /// Certificate and key (PEM) to show to the server.
    pub tls_client_files: Option<(PathBuf, PathBuf)>,
    /// Whether a start may lower the limits of a stream that is there, to what it holds at the least.
    /// Else they are only ever raised, as other servers may rely on them.
    pub lower_limits: bool,
    /// Whether a running server makes a stream anew that was deleted; else it says that it is gone.
    pub recreate_stream: bool,
    /// How often the store is looked at and, while it cannot be reached, the log says so.
    pub health_check_interval: Duration,
}

impl NATSStorageOptions {
    /// One copy, no credentials, the system's certificates, a look every 30 s.
    pub fn new() -> Self {
        Self {
            replicas: 1,
            credentials_file: None,
            tls_ca_file: None,
            tls_client_files: None,
            lower_limits: false,
            recreate_stream: false,
            health_check_interval: Duration::from_secs(30),
        }
    }
}

impl Default for NATSStorageOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct NATSConfigError {
    /// The field.
    pub field: &'static str,
    /// What it must be, and what it is.
    pub rule: String,
}

/// Messages below which a stream cannot do its work: what is reserved for moves must fit in.
const MAX_MESSAGES_MIN: i64 = 100;
/// Bytes below which a stream cannot do its work.
const MAX_BYTES_MIN: i64 = 1 << 20;
/// nats-server counts the age of messages in nanoseconds, of which 292 years fit 64 bits.
const MAX_AGE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// Bytes of writes that may wait; the least lets a few wait, the most is what a counter holds.
const BUFFER_BYTES_MIN: usize = 64 << 10;
const BUFFER_BYTES_MAX: usize = 1 << 30;

impl NATSStorageConfig {
    /// Checks every field; what is wrong never reaches the bus.
    pub fn check(&self, options: &NATSStorageOptions) -> Result<(), NATSConfigError> {
        let wrong = |field, rule: String| Err(NATSConfigError { field, rule });
        if self.nats_urls.is_empty() {
            return wrong("nats_urls", "name at least one server".to_owned());
        }
        for url in &self.nats_urls {
            let scheme = url.split_once("://").map_or("nats", |(scheme, _)| scheme);
            let parsed = url.parse::<async_nats::ServerAddr>();
            let no_host = parsed.as_ref().map_or(true, |address| address.host().is_empty());
            if !matches!(scheme, "nats" | "tls") || no_host {
                let rule = format!(
                    "{} is not an address such as nats://localhost:4222 or tls://nats.example.com",
                    shown_url(url)
                );
                return wrong("nats_urls", rule);
            }
        }
        if let Err(rule) = self.login() {
            return wrong("nats_urls", rule);
        }
        let least = |field, is: i64, least: i64| {
            let rule = format!("at least {least} is needed, not {is}");
            if is < least { Err(NATSConfigError { field, rule }) } else { Ok(()) }
        };
        least("default_max_messages", self.default_max_messages, MAX_MESSAGES_MIN)?;
        least("default_max_bytes", self.default_max_bytes, MAX_BYTES_MIN)?;
        least("max_deliver", self.max_deliver, 1)?;
        let whole_seconds = |field, is: Duration| {
            let rule = format!("at least 1 second is needed, not {is:?}");
            if is.as_secs() < 1 { Err(NATSConfigError { field, rule }) } else { Ok(()) }
        };
        whole_seconds("default_max_age", self.default_max_age)?;
        if self.default_max_age > MAX_AGE_MAX {
            let rule = format!("at most 100 years are allowed, not {:?}", self.default_max_age);
            return wrong("default_max_age", rule);
        }
        if !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&self.reconnect_buffer_size) {
            let is = self.reconnect_buffer_size;
            let rule = format!("use {BUFFER_BYTES_MIN} to {BUFFER_BYTES_MAX} bytes, not {is}");
            return wrong("reconnect_buffer_size", rule);
        }
        whole_seconds("consumer_timeout", self.consumer_timeout)?;
        whole_seconds("connection_timeout", self.connection_timeout)?;
        whole_seconds("health_check_interval", options.health_check_interval)?;
        if !(1..=5).contains(&options.replicas) {
            return wrong("replicas", format!("use 1 to 5, not {}", options.replicas));
        }
        Ok(())
    }
}

impl NATSStorageConfig {
    /// The user and the password that stand before the hosts, or one word, which is an access key.
    /// Where several hosts have them, they must be the same.
    pub fn login(&self) -> Result<Option<(String, Option<String>)>, String> {
        let mut login = None;
        for url in &self.nats_urls {
            let Ok(address) = url.parse::<async_nats::ServerAddr>() else { continue };
            let Some(user) = address.username() else { continue };
            let found = (decoded(user), address.password().map(decoded));
            if login.get_or_insert_with(|| found.clone()) != &found {
                return Err("all addresses must have the same user and password".to_owned());
            }
        }
        Ok(login)
    }
}

/// A part of an address without its percent signs (RFC 3986).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Addresses as logs and messages may show them, without user and password.
pub fn shown_urls(urls: &[String]) -> String {
    urls.iter().map(|url| shown_url(url)).collect::<Vec<_>>().join(",")
}

fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    // What stands after the colon must be a port; else it may be a part of a password.
    match host.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_err() => format!("{scheme}://{host}:…"),
        _ => format!("{scheme}://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        let config = NATSStorageConfig {
            nats_urls: vec!["nats://me:se@cret@host:4222".to_owned()],
            ..NATSStorageConfig::default()
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("nats://host:4222") && !shown.contains("cret"), "{shown}");
        // A comma in a password ends an address.
        let parts = ["nats://me:first".to_owned(), "secret@host:4222".to_owned()];
        let shown = shown_urls(&parts);
        assert!(!shown.contains("first") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn user_and_password_are_those_before_the_hosts() {
        let login = |urls: &[&str]| {
            let nats_urls = urls.iter().map(ToString::to_string).collect();
            NATSStorageConfig { nats_urls, ..NATSStorageConfig::default() }.login()
        };
        let me = |password: &str| Ok(Some(("me".to_owned(), Some(password.to_owned()))));
        assert_eq!(login(&["nats://key@a"]), Ok(Some(("key".to_owned(), None))));
        assert_eq!(login(&["nats://a:4222"]), Ok(None));
        assert_eq!(login(&["nats://a:4222", "nats://me:pw@b:4222"]), me("pw"));
        assert_eq!(login(&["nats://me:p%40%3Aw%@b:4222"]), me("p@:w%"));
        assert!(login(&["nats://me:pw@a", "nats://me:other@b"]).is_err());
    }

    #[test]
    fn what_cannot_work_is_named() {
        let good = NATSStorageConfig::default();
        assert_eq!(good.check(&NATSStorageOptions::new()), Ok(()));
        let with = |change: fn(&mut NATSStorageConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.check(&NATSStorageOptions::new()).unwrap_err().field
        };
        assert_eq!(with(|c| c.nats_urls.clear()), "nats_urls");
        assert_eq!(with(|c| c.nats_urls[0] = "http://x".to_owned()), "nats_urls");
        assert_eq!(with(|c| c.nats_urls[0] = "nats://".to_owned()), "nats_urls");
        assert_eq!(with(|c| c.default_max_messages = 0), "default_max_messages");
        assert_eq!(with(|c| c.default_max_bytes = -1), "default_max_bytes");
        assert_eq!(with(|c| c.default_max_age = Duration::ZERO), "default_max_age");
        assert_eq!(with(|c| c.consumer_timeout = Duration::ZERO), "consumer_timeout");
        assert_eq!(with(|c| c.connection_timeout = Duration::ZERO), "connection_timeout");
        assert_eq!(with(|c| c.max_deliver = 0), "max_deliver");
        assert_eq!(with(|c| c.default_max_age = Duration::MAX), "default_max_age");
        assert_eq!(with(|c| c.reconnect_buffer_size = 1), "reconnect_buffer_size");
        assert_eq!(with(|c| c.reconnect_buffer_size = usize::MAX), "reconnect_buffer_size");
        let many = NATSStorageOptions { replicas: 6, ..NATSStorageOptions::new() };
        assert_eq!(good.check(&many).unwrap_err().field, "replicas");
    }
}
