//! What keeps the stream fit: its settings, which life of the store it is, room in it, and what
//! nats-server brings back.

pub mod beat;
pub mod cleaner;
pub mod history;
pub mod identity;
pub mod notices;
pub mod older_store;
pub mod retention;
pub mod room;
pub mod settings;
pub mod stale_states;
pub mod stream;
pub mod supervisor;
