//! Objects as conditions see them: of JSON, made of values, or of a literal.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::ExecutionError;
use cel::common::traits::{self, Container, Indexer, Iterable, Sizer};
use cel::common::types::{CelInt, CelString, Kind, MAP_TYPE, Type};
use cel::common::value::{CowVal, Val};
use serde_json::{Map, Value};

use super::json::{BYTES_PER_STEP, ITEMS_PER_STEP, Items, size, value, wrong_type};
use super::numbers::equal;
use super::purse::{pay, pay_or_fail, text_bytes};

/// Characters of a missing key that a message repeats.
const KEY_CHARS_MAX: usize = 64;

/// An object, of JSON or made of values. Copies share it.
pub struct Object<'a>(Arc<ObjectInner<'a>>);

struct ObjectInner<'a> {
    members: Members<'a>,
    /// The members that are lists or objects, as values, made when one of them is first needed.
    containers: OnceLock<HashMap<&'a str, Box<dyn Val + 'a>>>,
    /// Made when the object is first gone through.
    names: OnceLock<Vec<Box<dyn Val + 'a>>>,
}

pub enum Members<'a> {
    Json(&'a Map<String, Value>),
    Made(Vec<(&'a str, Box<dyn Val + 'a>)>),
    /// Keys and values in turn. The keys of a literal need not be texts.
    Literal(Vec<[Box<dyn Val + 'a>; 2]>),
}

impl<'a> Object<'a> {
    pub fn new(members: Members<'a>) -> Self {
        Self(Arc::new(ObjectInner { members, containers: OnceLock::new(), names: OnceLock::new() }))
    }

    fn len(&self) -> usize {
        match &self.0.members {
            Members::Json(members) => members.len(),
            Members::Made(members) => members.len(),
            Members::Literal(members) => members.len(),
        }
    }

    fn names(&self) -> &[Box<dyn Val + 'a>] {
        let name = |name: &'a str| Box::new(CelString::from(name)) as Box<dyn Val + 'a>;
        let make = || match &self.0.members {
            _ if !pay(self.len() / ITEMS_PER_STEP) => Vec::new(),
            Members::Json(members) => members.keys().map(|key| name(key)).collect(),
            Members::Made(members) => members.iter().map(|(key, _)| name(key)).collect(),
            Members::Literal(members) => members.iter().map(|[key, _]| key.clone()).collect(),
        };
        self.0.names.get_or_init(make)
    }

    /// The member with this key, where the key can be one at all.
    fn find<'b>(&'b self, key: &dyn Val) -> Result<Option<CowVal<'b, 'a>>, ExecutionError> {
        if let Members::Literal(members) = &self.0.members {
            // Each key is compared: literals are short.
            pay_or_fail(members.len() * (1 + text_bytes(key) / BYTES_PER_STEP))?;
            let found = members.iter().find(|[known, _]| equal(known.as_ref(), key));
            return Ok(found.map(|[_, value]| CowVal::Borrowed(value.as_ref())));
        }
        let name = key.downcast_ref::<CelString>().ok_or_else(|| wrong_type(key, "string"))?;
        // A key may be a text of the data, of any length.
        pay_or_fail(name.inner().len() / BYTES_PER_STEP)?;
        Ok(self.member(name.inner()))
    }

    fn member<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'a>> {
        match &self.0.members {
            // Found by comparing.
            Members::Literal(_) => None,
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
        Ok(self.find(wanted)?.is_some())
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
        self.find(index)?.ok_or_else(|| {
            let name = index.downcast_ref::<CelString>().map(CelString::inner);
            let shown = name.map_or_else(|| format!("{index:?}"), str::to_owned);
            ExecutionError::no_such_key(&shown.chars().take(KEY_CHARS_MAX).collect::<String>())
        })
    }
    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        Ok(self.get(index)?.into_owned())
    }
}
