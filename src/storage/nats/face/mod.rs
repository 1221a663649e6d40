//! What the store shows: the trait, the guide's names, health.

pub mod assembly;
pub mod compat;
pub mod health;
pub mod readiness;
pub mod storage;
