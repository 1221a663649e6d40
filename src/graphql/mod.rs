//! The schema over the engine: short resolvers, its own types, and the table of error codes.

use std::sync::Arc;

use async_graphql::{EmptySubscription, Schema, ValidationMode};

mod budget;
mod collect;
mod document;
mod error;
mod explain;
pub mod guard;
mod input;
mod mutation;
pub mod numbers;
mod positions;
mod progress;
mod query;
mod rows;
mod text;
mod types;
mod validate;

pub use error::{ErrorCode, defect, refusal};
pub use mutation::Mutation;
pub use progress::Progress;
pub use query::Query;

use crate::engine::Engine;
use crate::storage::WorkflowStorage;
use crate::storage::nats::NATSStorage;

/// The schema that every backend serves.
pub type CircuitBreakerSchema = Schema<Query, Mutation, EmptySubscription>;

/// The schema over a store.
pub fn create_schema_with_storage(storage: Arc<dyn WorkflowStorage>) -> CircuitBreakerSchema {
    create_schema(Arc::new(Engine::new(storage)))
}

/// The schema over a store on NATS.
pub fn create_schema_with_nats(storage: Arc<NATSStorage>) -> CircuitBreakerSchema {
    create_schema_with_storage(storage)
}

/// Where a program keeps its tokens, as the NATS guide tells two cases apart: by
/// [`create_schema_with_nats`] or by [`create_schema_with_storage`]. The guide matches on both, so
/// there is no third; a store in SQLite is served as one in memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageBackend {
    /// On NATS.
    NATS,
    /// In this process.
    Memory,
}

/// The schema over an engine.
pub fn create_schema(engine: Arc<Engine>) -> CircuitBreakerSchema {
    Schema::build(Query, Mutation, EmptySubscription)
        // The guard validates.
        .validation_mode(ValidationMode::Fast)
        .extension(guard::Guard::new(Arc::clone(&engine)))
        .finish()
}
