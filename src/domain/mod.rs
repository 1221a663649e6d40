//! What may move and what a move yields: tokens, places, transitions, definitions, conditions.
//!
//! Everything here is a calculation: no I/O, no async, no clock, no randomness. Time and random
//! bytes come in as arguments.

mod change;
pub mod condition;
mod definition;
mod event;
mod id;
mod json;
pub mod limits;
mod token;

pub use change::{Cause, Change, CreateError, MoveError, MoveRequest, NewToken};
pub use definition::{
    Problem, ProblemKind, TransitionDefinition, TransitionDraft, Workflow, WorkflowDefinition,
    WorkflowDraft,
};
pub use event::{EventKind, WorkflowEvent};
pub use id::{
    InvalidId, NAME_RULE, PlaceId, Shown, TransitionId, WorkflowId, new_token_id, parse_token_id,
    workflow_hash,
};
pub use json::{depth_exceeds, merge_patch};
pub use token::{HistoryEvent, Token, TokenMetadata, TransitionRecord};
