//! Every variable of the environment, with its default and what it means.

/// A variable that the server reads.
pub struct Variable {
    pub name: &'static str,
    /// What it is when it is not set; empty where it is nothing then.
    pub default: &'static str,
    meaning: &'static str,
}

macro_rules! variables {
    ($($name:ident = $default:literal, $meaning:literal;)*) => {
        $(pub const $name: Variable =
            Variable { name: stringify!($name), default: $default, meaning: $meaning };)*
        /// All of them, in the order of `--help`.
        const VARIABLES: &[Variable] = &[$($name),*];
    };
}

variables! {
    STORAGE_BACKEND = "sqlite", "where everything is kept: sqlite (one file), nats (a JetStream stream) or memory (lost at the end)";
    SQLITE_PATH = "circuit-breaker.db", "the file of the sqlite backend; it is created if it is not there";
    LISTEN_ADDR = "127.0.0.1:4000", "address and port to listen on";
    ALLOWED_HOSTS = "", "names, separated by commas, that this server is called by beside IP addresses and localhost; requests by another name are refused";
    RUST_LOG = "info", "error, warn, info, debug or trace, or filters such as circuit_breaker=debug";
    METRICS_ENABLED = "true", "whether /metrics is served: true or false";
    HEALTH_CHECK_INTERVAL = "30", "seconds between two looks at the store; while it cannot be reached, the log says so once in that time";
    NATS_URL = "nats://localhost:4222", "servers of the nats backend, separated by commas; user:password@ may stand before a host, tls:// asks for TLS";
    NATS_REPLICAS = "1", "copies of the stream in a cluster, 1 to 5; with 3, any one server may be lost";
    NATS_MAX_MESSAGES = "1000000", "messages that the stream may hold; history goes first";
    NATS_MAX_BYTES = "1073741824", "bytes that the stream may hold; history goes first";
    NATS_MAX_AGE = "604800", "seconds that events and completed tokens are kept; nothing live ever ages";
    NATS_LOWER_LIMITS = "false", "whether a start may lower the limits of a stream that is there: true or false";
    NATS_RECREATE_STREAM = "false", "whether a running server makes a stream anew that was deleted: true or false";
    NATS_CONNECTION_TIMEOUT = "10", "seconds that one attempt to connect may take";
    NATS_RECONNECT_BUFFER_SIZE = "4194304", "bytes of writes that may wait for the store, such as during a reconnect";
    NATS_CREDENTIALS_FILE = "", "a file of credentials, as nsc makes them";
    NATS_TLS_CA_FILE = "", "certificates (PEM) to trust beside those of the system";
    NATS_TLS_CERT_FILE = "", "the certificate (PEM) to show to nats-server";
    NATS_TLS_KEY_FILE = "", "the key (PEM) of that certificate";
}

/// Those that have a meaning for the nats backend alone.
pub const NATS_VARIABLES: [Variable; 13] = [
    NATS_URL,
    NATS_REPLICAS,
    NATS_MAX_MESSAGES,
    NATS_MAX_BYTES,
    NATS_MAX_AGE,
    NATS_LOWER_LIMITS,
    NATS_RECREATE_STREAM,
    NATS_CONNECTION_TIMEOUT,
    NATS_RECONNECT_BUFFER_SIZE,
    NATS_CREDENTIALS_FILE,
    NATS_TLS_CA_FILE,
    NATS_TLS_CERT_FILE,
    NATS_TLS_KEY_FILE,
];

/// The text of `--help`.
pub fn help() -> String {
    let mut text = format!(
        "circuit_breaker {}: a workflow engine whose store is a message bus\n\n\
         Usage: server [--help | --version]\n\n\
         The server is configured by its environment:\n",
        env!("CARGO_PKG_VERSION")
    );
    for Variable { name, default, meaning } in VARIABLES {
        text.push_str(&format!("  {name:<26} {meaning}\n"));
        if !default.is_empty() {
            text.push_str(&format!("  {:<26} [default: {default}]\n", ""));
        }
    }
    text.push_str(
        "\nIt serves / (GraphiQL), /graphql, /schema.graphql, /health/live, /health/ready and /metrics.\n\
         SIGTERM or Ctrl-C stops it after the requests under way.\n",
    );
    text
}
