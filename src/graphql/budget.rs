//! What an answer takes out of the budget of its request, which an answer holds in memory until it is
//! written.
//!
//! One row is bounded by the limits on what is stored, but the same row under many aliases is not, nor
//! are many fields of many rows.

use async_graphql::{Context, Result, SelectionField};
use serde_json::{Map, Value};

use super::error::answer;
use crate::engine::Session;

/// Bytes that one field of an answer takes: its name, its value, its place in a map.
const FIELD_BYTES: usize = 96;

/// The session of the request that is being answered.
pub fn session<'a>(ctx: &Context<'a>) -> &'a Session {
    ctx.data_unchecked()
}

/// Takes out what a JSON value will need.
pub fn charge_json(ctx: &Context<'_>, value: &Value) -> Result<()> {
    charge(ctx, size(value))
}

/// Takes out what a JSON object will need.
pub fn charge_members(ctx: &Context<'_>, members: &Map<String, Value>) -> Result<()> {
    charge(ctx, members_size(members))
}

/// Takes out what texts will need.
pub fn charge_texts<'a>(ctx: &Context<'_>, texts: impl Iterator<Item = &'a str>) -> Result<()> {
    charge(ctx, texts.map(|text| 32 + text.len()).sum())
}

/// Takes out what the selected fields of `rows` rows will need, apart from free JSON.
pub fn charge_rows(ctx: &Context<'_>, rows: usize) -> Result<()> {
    charge(ctx, rows.saturating_mul(fields(ctx.field())).saturating_mul(FIELD_BYTES))
}

fn charge(ctx: &Context<'_>, bytes: usize) -> Result<()> {
    session(ctx).charge_answer(bytes).map_err(answer)
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
