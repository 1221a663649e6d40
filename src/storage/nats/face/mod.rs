//! What the store shows: the trait, the guide's names, health.

pub mod compat;
pub mod health;
pub mod storage;
