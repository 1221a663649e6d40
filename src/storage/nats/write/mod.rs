//! What goes out: the messages of one change, the batch that commits them, the task that sends it.

pub mod arbiter;
pub mod batch;
pub mod claim;
pub mod commit;
pub mod committer;
pub mod doubts;
pub mod end_of_stream;
pub mod find;
pub mod gather;
pub mod groups;
pub mod mend;
pub mod outgoing;
pub mod pending;
pub mod pieces;
pub mod preceding;
pub mod queue;
pub mod refusal;
pub mod turns;

#[cfg(test)]
mod model;
