//! JSON as values of CEL, lent and not copied: to hand over a token costs the same whatever its size.
//!
//! `cel` has conversions of its own, but they copy everything, and they make every positive number
//! unsigned, so that `token.data.amount - 1` would have no overload. Here a number is an int if it
//! fits, else a uint, else a double.

use std::collections::HashMap;
use std::fmt;

use std::sync::{Arc, OnceLock};

use cel::common::traits::{self, Container, Indexer, Iterable, Sizer};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelNull, CelString, CelTimestamp, CelUInt, Kind, LIST_TYPE,
    MAP_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use cel::{ExecutionError, Value as CelValue};
use serde_json::{Map, Value};

use super::numbers::equal;
use super::price::{pay, pay_or_fail, text_bytes};
use crate::domain::caller::Caller;
use crate::domain::token::Token;

/// Bytes of text that one step compares.
const BYTES_PER_STEP: usize = 64;

/// Items of a list that one step makes ready.
const ITEMS_PER_STEP: usize = 4;

/// Characters of a missing key that a message repeats.
const KEY_CHARS_MAX: usize = 64;

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
        Value::Array(items) => {
            Box::new(List(Arc::new(ListInner { source: items, items: OnceLock::new() })))
        }
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

/// A list, of JSON or of a literal. Copies share it.
pub struct List<'a>(Arc<ListInner<'a>>);

struct ListInner<'a> {
    source: &'a [Value],
    /// The items as values, made when they are first needed; those of a literal from the beginning.
    items: OnceLock<Vec<Box<dyn Val + 'a>>>,
}

impl<'a> List<'a> {
    /// A list of values.
    pub fn of(values: Vec<Box<dyn Val + 'a>>) -> Self {
        Self(Arc::new(ListInner { source: &[], items: OnceLock::from(values) }))
    }

    fn len(&self) -> usize {
        self.0.items.get().map_or(self.0.source.len(), Vec::len)
    }

    /// Empty without steps left: the evaluation is about to fail.
    fn items(&self) -> &[Box<dyn Val + 'a>] {
        let make = || {
            let paid = pay(self.0.source.len() / ITEMS_PER_STEP);
            if paid { self.0.source.iter().map(value).collect() } else { Vec::new() }
        };
        self.0.items.get_or_init(make)
    }
}

impl fmt::Debug for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("list")
    }
}

impl<'a> Val for List<'a> {
    fn get_type(&self) -> &Type {
        &LIST_TYPE
    }
    fn cel_type() -> &'static Type {
        static TYPE: Type = LIST_TYPE;
        &TYPE
    }
    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }
    fn equals(&self, other: &dyn Val) -> bool {
        let sizes_match =
            other.as_sizer().is_some_and(|sizer| *sizer.size().inner() == *self.size().inner());
        let Some(others) =
            other.as_iterable().filter(|_| other.get_type().kind() == Kind::List && sizes_match)
        else {
            return false;
        };
        let mut others = others.iter();
        self.items().iter().all(|item| {
            let paid = pay(1 + text_bytes(item.as_ref()) / BYTES_PER_STEP);
            others.next().is_some_and(|other| paid && equal(item.as_ref(), other))
        })
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(List(Arc::clone(&self.0)))
    }
}

impl Sizer for List<'_> {
    fn size(&self) -> CelInt {
        size(self.len())
    }
}

impl Container for List<'_> {
    fn contains(&self, wanted: &dyn Val) -> Result<bool, ExecutionError> {
        let steps = 1 + text_bytes(wanted) / BYTES_PER_STEP;
        for item in self.items() {
            pay_or_fail(steps)?;
            if equal(item.as_ref(), wanted) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<'a> Iterable for List<'a> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn traits::Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Items { rest: self.items().iter() })
    }
}

impl<'a> Indexer for List<'a> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let at = match (index.downcast_ref::<CelInt>(), index.downcast_ref::<CelUInt>()) {
            (Some(index), _) => usize::try_from(*index.inner()).ok(),
            (None, Some(index)) => usize::try_from(*index.inner()).ok(),
            (None, None) => return Err(wrong_type(index, "int")),
        };
        let out_of_bounds = || {
            ExecutionError::IndexOutOfBounds(CelValue::try_from(index).unwrap_or(CelValue::Null))
        };
        let at = at.filter(|at| *at < self.len()).ok_or_else(out_of_bounds)?;
        self.items().get(at).map(|item| CowVal::Borrowed(item.as_ref())).ok_or_else(out_of_bounds)
    }
    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        Ok(self.get(index)?.into_owned())
    }
}

/// An object, of JSON or made of values. Copies share it.
pub struct Object<'a>(Arc<ObjectInner<'a>>);

struct ObjectInner<'a> {
    members: Members<'a>,
    /// The members that are lists or objects, as values, made when one of them is first needed.
    containers: OnceLock<HashMap<&'a str, Box<dyn Val + 'a>>>,
    /// Made when the object is first gone through.
    names: OnceLock<Vec<Box<dyn Val + 'a>>>,
}

enum Members<'a> {
    Json(&'a Map<String, Value>),
    Made(Vec<(&'a str, Box<dyn Val + 'a>)>),
}

impl<'a> Object<'a> {
    fn new(members: Members<'a>) -> Self {
        Self(Arc::new(ObjectInner { members, containers: OnceLock::new(), names: OnceLock::new() }))
    }

    fn len(&self) -> usize {
        match &self.0.members {
            Members::Json(members) => members.len(),
            Members::Made(members) => members.len(),
        }
    }

    fn names(&self) -> &[Box<dyn Val + 'a>] {
        let name = |name: &'a str| Box::new(CelString::from(name)) as Box<dyn Val + 'a>;
        let make = || match &self.0.members {
            _ if !pay(self.len() / ITEMS_PER_STEP) => Vec::new(),
            Members::Json(members) => members.keys().map(|key| name(key)).collect(),
            Members::Made(members) => members.iter().map(|(key, _)| name(key)).collect(),
        };
        self.0.names.get_or_init(make)
    }

    fn member<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'a>> {
        match &self.0.members {
            Members::Made(members) => members
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| CowVal::Borrowed(value.as_ref())),
            Members::Json(members) => match members.get(name)? {
                Value::Array(_) | Value::Object(_) => {
                    let nests =
                        |(_, member): &(&String, &Value)| member.is_array() || member.is_object();
                    let make = || {
                        members
                            .iter()
                            .filter(nests)
                            .map(|(key, member)| (key.as_str(), value(member)))
                    };
                    let containers = self.0.containers.get_or_init(|| make().collect());
                    containers.get(name).map(|member| CowVal::Borrowed(member.as_ref()))
                }
                scalar => Some(CowVal::Owned(value(scalar))),
            },
        }
    }
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("map")
    }
}

impl<'a> Val for Object<'a> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }
    fn cel_type() -> &'static Type {
        static TYPE: Type = MAP_TYPE;
        &TYPE
    }
    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }
    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }
    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }
    fn equals(&self, other: &dyn Val) -> bool {
        let sizes_match =
            other.as_sizer().is_some_and(|sizer| *sizer.size().inner() == *self.size().inner());
        let Some(others) =
            other.as_indexer().filter(|_| other.get_type().kind() == Kind::Map && sizes_match)
        else {
            return false;
        };
        self.names().iter().all(|name| {
            let paid = pay(2 + text_bytes(name.as_ref()) / BYTES_PER_STEP);
            match (self.get(name.as_ref()), others.get(name.as_ref())) {
                (Ok(mine), Ok(theirs)) if paid => {
                    pay(text_bytes(mine.as_ref()) / BYTES_PER_STEP)
                        && equal(mine.as_ref(), theirs.as_ref())
                }
                _ => false,
            }
        })
    }
    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(Object(Arc::clone(&self.0)))
    }
}

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        size(self.len())
    }
}

impl Container for Object<'_> {
    fn contains(&self, wanted: &dyn Val) -> Result<bool, ExecutionError> {
        let name =
            wanted.downcast_ref::<CelString>().ok_or_else(|| wrong_type(wanted, "string"))?;
        pay_or_fail(name.inner().len() / BYTES_PER_STEP)?;
        Ok(self.member(name.inner()).is_some())
    }
}

impl<'a> Iterable for Object<'a> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn traits::Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(Items { rest: self.names().iter() })
    }
}

impl<'a> Indexer for Object<'a> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = index.downcast_ref::<CelString>().ok_or_else(|| wrong_type(index, "string"))?;
        // A key may be a text of the data, of any length.
        pay_or_fail(name.inner().len() / BYTES_PER_STEP)?;
        self.member(name.inner()).ok_or_else(|| {
            ExecutionError::no_such_key(
                &name.inner().chars().take(KEY_CHARS_MAX).collect::<String>(),
            )
        })
    }
    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        Ok(self.get(index)?.into_owned())
    }
}

struct Items<'b, 'a> {
    rest: std::slice::Iter<'b, Box<dyn Val + 'a>>,
}

impl<'b, 'a: 'v, 'v> traits::Iterator<'b, 'v> for Items<'b, 'a> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.rest.next().map(|item| item.as_ref() as &'b (dyn Val + 'v))
    }
}

fn size(length: usize) -> CelInt {
    i64::try_from(length).unwrap_or(i64::MAX).into()
}

fn wrong_type(found: &dyn Val, wanted: &str) -> ExecutionError {
    ExecutionError::UnexpectedType {
        got: found.get_type().name().to_owned(),
        want: wanted.to_owned(),
    }
}
