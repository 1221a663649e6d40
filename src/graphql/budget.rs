//! What an answer takes out of the budget of its request, which holds it in memory until it is written.
//!
//! One row is bounded by the limits on what is stored, but the same row under many aliases is not, nor
//! are many fields of many rows. So each value is weighed once it is there, whatever field it is of.

use std::mem::size_of;

use async_graphql::extensions::ResolveInfo;
use async_graphql::{Context, Name, Value};

use crate::engine::Session;

/// Bytes of a value itself, and of a member of an object: its hash, its name, its value and its place in a map,
/// which has room for half as many more.
const VALUE_BYTES: usize = size_of::<Value>();
const MEMBER_BYTES: usize = 3 * (2 * size_of::<usize>() + size_of::<Name>() + VALUE_BYTES) / 2;

/// Bytes of a text beside its own.
const TEXT_BYTES: usize = 32;

/// The session of the request that is being answered.
pub fn session<'a>(ctx: &Context<'a>) -> &'a Session {
    ctx.data_unchecked()
}

/// How a value of an answer is weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// What it consists of was weighed before, value by value.
    Itself,
    /// All of it: it has no selection.
    Whole,
}

impl Scale {
    /// The one for what is asked for there.
    pub fn of(info: &ResolveInfo<'_>) -> Self {
        if info.field.selection_set.node.items.is_empty() { Self::Whole } else { Self::Itself }
    }

    /// Bytes that the value takes in memory, roughly.
    pub fn weigh(self, value: &Value) -> usize {
        match (self, value) {
            (Self::Itself, Value::List(items)) => items.len() * VALUE_BYTES,
            (Self::Itself, Value::Object(members)) => members.len() * MEMBER_BYTES,
            (Self::Itself, _) => 0,
            (Self::Whole, value) => content(value),
        }
    }
}

/// Bytes that a value takes in memory, roughly.
pub fn bytes_of(value: &Value) -> usize {
    VALUE_BYTES + content(value)
}

/// Bytes of a value beside the value itself.
fn content(value: &Value) -> usize {
    match value {
        Value::List(items) => {
            let room = items.capacity() * VALUE_BYTES;
            TEXT_BYTES + room + items.iter().map(content).sum::<usize>()
        }
        Value::Object(members) => {
            let each = members.iter();
            let member = |(name, value): (&Name, &Value)| {
                MEMBER_BYTES + TEXT_BYTES + name.len() + content(value)
            };
            TEXT_BYTES + each.map(member).sum::<usize>()
        }
        Value::String(text) => TEXT_BYTES + text.len(),
        Value::Enum(name) => TEXT_BYTES + name.len(),
        Value::Binary(bytes) => TEXT_BYTES + bytes.len(),
        Value::Null | Value::Boolean(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::value;

    use super::*;

    #[test]
    fn what_was_weighed_before_is_not_weighed_again() {
        let long = "x".repeat(10_000);
        let value = value!({ "a": { "b": long } });
        assert!(Scale::Whole.weigh(&value) > 10_000);
        assert_eq!(Scale::Itself.weigh(&value), MEMBER_BYTES);
        assert!(Scale::Whole.weigh(&value!([1, 2, 3])) >= 3 * VALUE_BYTES);
    }
}
