//! A workflow engine whose store is a message bus.
//!
//! The rooms, in reading order: [`domain`] decides, [`storage`] keeps, [`engine`] does what a user
//! asks for, [`graphql`] and [`http`] let users ask, [`cli`] starts it. `ARCHITECTURE.md` walks
//! through one move.

pub mod cli;
pub mod domain;
pub mod engine;
pub mod graphql;
pub mod http;
pub mod storage;

pub use domain::{PlaceId, Token, TransitionId, TransitionRecord, WorkflowDefinition, WorkflowId};
pub use graphql::{StorageBackend, create_schema_with_nats, create_schema_with_storage};
pub use storage::memory::InMemoryStorage;
pub use storage::nats::{
    ConnectionStatus, HealthStatus, NATSConfigError, NATSMetrics, NATSOpenError, NATSStorage,
    NATSStorageConfig, NATSStorageOptions, nats_health_check,
};
pub use storage::sqlite::{SqliteStorage, SqliteStorageConfig};
