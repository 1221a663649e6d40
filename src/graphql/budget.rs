//! What one answer may hold in memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_graphql::{Context, Result, SelectionField};
use serde_json::{Map, Value};

use super::error::answer;
use crate::domain::limits::LIST_ROWS_MAX;
use crate::engine::EngineError;

/// Bytes that the values of one answer may take in memory, roughly.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// Bytes that one field of an answer takes: its name, its value, its place in a map.
const FIELD_BYTES: usize = 96;

/// Counts down while an answer grows. One row is bounded by the limits on what is stored, but the
/// same row under many aliases is not, nor are many fields of many rows.
#[derive(Debug)]
pub struct AnswerBudget {
    left: AtomicUsize,
}

impl Default for AnswerBudget {
    fn default() -> Self {
        Self { left: AtomicUsize::new(ANSWER_BYTES_MAX) }
    }
}

impl AnswerBudget {
    /// The budget of the request that is being answered.
    pub fn of<'a>(ctx: &Context<'a>) -> &'a Self {
        ctx.data_unchecked::<Self>()
    }

    /// Takes out what a JSON value will need.
    pub fn charge_json(&self, value: &Value) -> Result<()> {
        self.charge(size(value))
    }

    /// Takes out what a JSON object will need.
    pub fn charge_members(&self, members: &Map<String, Value>) -> Result<()> {
        self.charge(members_size(members))
    }

    /// Takes out what the selected fields of `rows` rows will need, apart from free JSON.
    pub fn charge_rows(&self, ctx: &Context<'_>, rows: usize) -> Result<()> {
        self.charge(rows.saturating_mul(fields(ctx.field())).saturating_mul(FIELD_BYTES))
    }

    fn charge(&self, bytes: usize) -> Result<()> {
        let take = |left: usize| left.checked_sub(bytes);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(answer(EngineError::ResultTooLarge {
                rows: LIST_ROWS_MAX,
                bytes: ANSWER_BYTES_MAX,
            })),
        }
    }
}

/// Selected fields below one field, fragments written out; the guard has bounded them.
fn fields(field: SelectionField<'_>) -> usize {
    1 + field.selection_set().map(fields).sum::<usize>()
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => FIELD_BYTES + items.iter().map(size).sum::<usize>(),
        Value::Object(members) => members_size(members),
        Value::String(text) => 32 + text.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 32,
    }
}

fn members_size(members: &Map<String, Value>) -> usize {
    FIELD_BYTES
        + members.iter().map(|(name, value)| FIELD_BYTES + name.len() + size(value)).sum::<usize>()
}
