//! What goes over the connection: names, requests and answers. It knows nothing of tokens.

pub mod config;
pub mod jetstream;
pub mod link;
pub mod meter;
pub mod names;
pub mod outage;
pub mod pulse;
pub mod subjects;
pub mod waiters;
