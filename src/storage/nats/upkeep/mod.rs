//! What keeps the stream fit: its settings, room in it, and what nats-server brings back.

pub mod retention;
pub mod stale_states;
pub mod stream;
pub mod supervisor;
