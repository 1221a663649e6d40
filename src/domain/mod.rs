//! What may move and what a move yields: tokens, places, transitions, definitions, conditions.
//!
//! Everything here is a calculation: no I/O, no async, no clock, no randomness. Time and random
//! bytes come in as arguments.

mod caller;
mod change;
pub mod condition;
mod decision;
mod definition;
mod event;
mod id;
mod json;
pub mod limits;
#[cfg(test)]
mod samples;
mod steps;
mod time;
mod token;

pub use caller::Caller;
pub use change::{Cause, Change, CreateError, MoveRequest, NewToken};
pub use decision::{Blocker, Deciding, Explanation, MoveError, TooCostly};
pub use definition::{
    Completion, PlaceSettings, PlaceSettingsDraft, Problem, ProblemKind, SoundnessCode,
    SoundnessWarning, TransitionDefinition, TransitionDraft, Workflow, WorkflowDefinition,
    WorkflowDraft,
};
pub use event::{EventKind, WorkflowEvent};
pub use id::{
    InvalidId, NAME_RULE, PlaceId, Shown, TransitionId, WorkflowId, new_token_id, parse_token_id,
    workflow_hash,
};
pub use json::{depth_exceeds, merge_patch};
pub use steps::Steps;
pub use token::{HistoryEvent, Token, TokenMetadata, TransitionRecord};
