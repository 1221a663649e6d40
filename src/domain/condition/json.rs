//! JSON as values of CEL, lent and not copied: to hand over a token costs the same whatever its size.
//!
//! `cel` has conversions of its own, but they copy everything, and they make every positive number
//! unsigned, so that `token.data.amount - 1` would have no overload. Here a number is an int if it
//! fits, else a uint, else a double.

use cel::ExecutionError;
use cel::common::traits;
use cel::common::types::{CelBool, CelDouble, CelInt, CelNull, CelString, CelTimestamp, CelUInt};
use cel::common::value::Val;
use serde_json::Value;

use super::list::List;
use super::object::{Members, Object};
use crate::domain::caller::Caller;
use crate::domain::token::Token;

/// Bytes of text that one step compares.
pub const BYTES_PER_STEP: usize = 64;

/// Items of a list that one step makes ready.
pub const ITEMS_PER_STEP: usize = 4;

/// A JSON value, lent.
pub fn value(json: &Value) -> Box<dyn Val + '_> {
    match json {
        Value::Null => Box::new(CelNull),
        Value::Bool(bool) => Box::new(CelBool::from(*bool)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Box::new(CelInt::from(int)),
            (None, Some(uint)) => Box::new(CelUInt::from(uint)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(items) => Box::new(List::lent(items)),
        Value::Object(members) => Box::new(Object::new(Members::Json(members))),
    }
}

/// A token, lent: an object with `id`, `place`, `version`, `data`, `metadata` and, as timestamps,
/// `created_at` and `updated_at`.
pub fn token_value(token: &Token) -> Box<dyn Val + '_> {
    let members: Vec<(&str, Box<dyn Val + '_>)> = vec![
        ("id", Box::new(CelString::from(token.id.to_string()))),
        ("place", Box::new(CelString::from(token.place.as_str()))),
        ("version", Box::new(CelInt::from(i64::from(token.version)))),
        ("data", value(&token.data)),
        ("metadata", Box::new(Object::new(Members::Json(&token.metadata)))),
        ("created_at", Box::new(CelTimestamp::from(token.created_at.fixed_offset()))),
        ("updated_at", Box::new(CelTimestamp::from(token.updated_at.fixed_offset()))),
    ];
    Box::new(Object::new(Members::Made(members)))
}

/// A caller, lent: an object with `id`, `roles` and `claims`.
pub fn caller_value(caller: &Caller) -> Box<dyn Val + '_> {
    let role = |role: &'_ String| Box::new(CelString::from(role.clone())) as Box<dyn Val + '_>;
    let members: Vec<(&str, Box<dyn Val + '_>)> = vec![
        ("id", Box::new(CelString::from(caller.id.as_str()))),
        ("roles", Box::new(List::of(caller.roles.iter().map(role).collect()))),
        ("claims", Box::new(Object::new(Members::Json(&caller.claims)))),
    ];
    Box::new(Object::new(Members::Made(members)))
}

/// The values of a list, or the keys of an object, one after the other.
pub struct Items<'b, 'a> {
    pub rest: std::slice::Iter<'b, Box<dyn Val + 'a>>,
}

impl<'b, 'a: 'v, 'v> traits::Iterator<'b, 'v> for Items<'b, 'a> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.rest.next().map(|item| item.as_ref() as &'b (dyn Val + 'v))
    }
}

pub fn size(length: usize) -> CelInt {
    i64::try_from(length).unwrap_or(i64::MAX).into()
}

pub fn wrong_type(found: &dyn Val, wanted: &str) -> ExecutionError {
    ExecutionError::UnexpectedType {
        got: found.get_type().name().to_owned(),
        want: wanted.to_owned(),
    }
}
