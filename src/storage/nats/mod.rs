//! Keeps everything in one JetStream stream of NATS: every place is a subject, every move one
//! atomic batch. `docs/storage-format.md` describes the messages.
//!
//! Five wings, each naming only those before it: `wire` speaks to nats-server, `read` is what comes
//! in, `upkeep` keeps the stream fit, `write` is what goes out, `face` is what the store shows.

mod face;
mod read;
mod upkeep;
mod wire;
mod write;

pub use face::compat::nats_health_check;
pub use face::health::{ConnectionStatus, HealthStatus, NATSMetrics};
pub use face::storage::NATSStorage;
pub use upkeep::supervisor::NATSOpenError;
pub use wire::config::{NATSConfigError, NATSStorageConfig, NATSStorageOptions, shown_urls};
