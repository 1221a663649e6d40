//! Which store it is.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Which store it is, and which life of it: a store that went back in time begins another one. A
/// sequence is valid for one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub store_id: Uuid,
    pub generation: Uuid,
}

impl Identity {
    /// Of a store that has none.
    pub fn new() -> Self {
        Self { store_id: Uuid::new_v4(), generation: Uuid::new_v4() }
    }

    /// Of the same store in its next life.
    pub fn next_life(self) -> Self {
        Self { generation: Uuid::new_v4(), ..self }
    }
}
