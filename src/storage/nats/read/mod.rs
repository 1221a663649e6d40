//! What comes in: single messages, runs of them, lists, and the chain of a token's events.

pub mod anchor;
pub mod chain;
pub mod epoch;
pub mod hints;
pub mod identity;
pub mod known;
pub mod life;
pub mod lists;
pub mod reader;
pub mod scan;
pub mod search;
pub mod stored;
pub mod token;
pub mod workflow_index;
