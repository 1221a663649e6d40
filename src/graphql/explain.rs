//! Whether a transition may fire, and if not, why.

use async_graphql::{Json, SimpleObject};
use serde_json::{Map, Value};

use super::error::blocked;
use super::rows::Rows;
use super::types::Transition;
use crate::domain;

/// A transition that starts where the token is, and whether it may fire.
#[derive(SimpleObject)]
pub struct TransitionExplanation {
    transition: Transition<'static>,
    allowed: bool,
    /// Empty where allowed; else everything that stands in the way, not just the first.
    blockers: Rows<Blocker>,
}

/// Something that stands in the way of a transition.
#[derive(SimpleObject)]
pub struct Blocker {
    /// As the error of fireTransition would have it: CONDITION_FALSE, CONDITION_FAILED, INVALID_INPUT, FORBIDDEN.
    code: String,
    message: String,
    /// The condition's text.
    condition: Option<String>,
    /// What the condition looked at, by its text: {"next.amount": 2400}. Only what the caller may read; what is long is left out.
    values: Option<Json<Map<String, Value>>>,
}

impl From<domain::Explanation> for TransitionExplanation {
    fn from(explained: domain::Explanation) -> Self {
        Self {
            transition: explained.transition.into(),
            allowed: explained.blockers.is_empty(),
            blockers: explained.blockers.into_iter().collect(),
        }
    }
}

impl From<domain::Blocker> for Blocker {
    fn from(blocker: domain::Blocker) -> Self {
        let (code, message) = (blocked(&blocker).as_str().to_owned(), blocker.to_string());
        let (condition, values) = match blocker {
            domain::Blocker::ConditionFalse { condition, values, .. }
            | domain::Blocker::ConditionFailed { condition, values, .. } => {
                (Some(condition), Some(Json(values)))
            }
            domain::Blocker::NotAccepted { .. } | domain::Blocker::VersionsUsedUp { .. } => {
                (None, None)
            }
        };
        Self { code, message, condition, values }
    }
}
