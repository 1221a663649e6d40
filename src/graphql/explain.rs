//! Whether a transition may fire, and if not, why.

use async_graphql::{Context, Json, Result, SimpleObject};
use serde_json::{Map, Value};

use super::budget::charge_members;
use super::error::blocked;
use super::types::Transition;
use crate::domain;

/// A transition that starts where the token is, and whether it may fire.
#[derive(SimpleObject)]
pub struct TransitionExplanation {
    transition: Transition,
    allowed: bool,
    /// Empty where allowed; else everything that stands in the way, not just the first.
    blockers: Vec<Blocker>,
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

impl TransitionExplanation {
    /// An explanation as the domain gives it.
    pub fn new(ctx: &Context<'_>, explained: domain::Explanation) -> Result<Self> {
        let blockers = explained.blockers.into_iter().map(|blocker| Blocker::new(ctx, blocker));
        let blockers = blockers.collect::<Result<Vec<_>>>()?;
        let transition = Transition(explained.transition);
        Ok(Self { transition, allowed: blockers.is_empty(), blockers })
    }
}

impl Blocker {
    fn new(ctx: &Context<'_>, blocker: domain::Blocker) -> Result<Self> {
        let (code, message) = (blocked(&blocker).as_str().to_owned(), blocker.to_string());
        let (condition, values) = match blocker {
            domain::Blocker::ConditionFalse { condition, values, .. }
            | domain::Blocker::ConditionFailed { condition, values, .. } => {
                charge_members(ctx, &values)?;
                (Some(condition), Some(Json(values)))
            }
            domain::Blocker::NotAccepted { .. } | domain::Blocker::VersionsUsedUp { .. } => {
                (None, None)
            }
        };
        Ok(Self { code, message, condition, values })
    }
}
