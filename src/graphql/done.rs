//! Which fields of a mutation were done: one that fails later undoes none of them.

use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::{Context, Name, ServerError, Value};
use async_graphql_value::indexmap::IndexMap;

/// The fields of one request that have changed something, as the answer names them, in their order.
#[derive(Debug, Clone, Default)]
pub struct Done(Arc<Mutex<Vec<String>>>);

impl Done {
    /// Notes that the field that is being answered has changed something.
    pub fn record(ctx: &Context<'_>) {
        let field = ctx.field();
        let name = field.alias().unwrap_or_else(|| field.name()).to_owned();
        let Self(fields) = ctx.data_unchecked();
        fields.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    }

    /// Names them in an error of the same request.
    pub fn name_in(&self, error: &mut ServerError) {
        let done = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if done.is_empty() {
            return;
        }
        let extensions = error.extensions.get_or_insert_default();
        let mut details = match extensions.get("details") {
            Some(Value::Object(details)) => details.clone(),
            _ => IndexMap::new(),
        };
        details.insert(Name::new("done"), Value::List(done.into_iter().map(Value::from).collect()));
        extensions.set("details", Value::Object(details));
    }
}
