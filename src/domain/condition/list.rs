//! Lists as conditions see them: of JSON, of a literal, or joined.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::traits::{self, Container, Indexer, Iterable, Sizer};
use cel::common::types::{CelDouble, CelInt, CelUInt, Kind, LIST_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::{ExecutionError, Value as CelValue};
use serde_json::Value;

use super::json::{BYTES_PER_STEP, ITEMS_PER_STEP, Items, size, value, wrong_type};
use super::numbers::equal;
use super::purse::{pay, pay_or_fail, text_bytes};

/// A list, of JSON or of a literal. Copies share it.
pub struct List<'a>(Arc<ListInner<'a>>);

struct ListInner<'a> {
    source: &'a [Value],
    /// The items as values, made when they are first needed; those of a literal from the beginning.
    items: OnceLock<Vec<Box<dyn Val + 'a>>>,
}

impl<'a> List<'a> {
    /// A list of JSON, lent.
    pub fn lent(source: &'a [Value]) -> Self {
        Self(Arc::new(ListInner { source, items: OnceLock::new() }))
    }

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
            (None, None) => match index.downcast_ref::<CelDouble>() {
                // JSON does not tell 1.0 from 1.
                Some(index) if index.inner().fract() == 0.0 && *index.inner() >= 0.0 => {
                    format!("{:.0}", index.inner()).parse().ok()
                }
                Some(_) => None,
                None => return Err(wrong_type(index, "int")),
            },
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
