//! How far a request has come, for whoever answers for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::{Context, Name, ServerError, Value};
use async_graphql_value::indexmap::IndexMap;

/// Whether the execution of a request has begun, and the fields that have changed something since, as the answer
/// names them, in their order: one that fails later undoes none of them.
///
/// Put one into the data of a request to know it even where there is no answer.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    began: AtomicBool,
    done: Mutex<Vec<String>>,
}

impl Progress {
    /// Whether the request was found to be one that can be executed.
    pub fn began(&self) -> bool {
        self.0.began.load(Ordering::Relaxed)
    }

    pub(super) fn begin(&self) {
        self.0.began.store(true, Ordering::Relaxed);
    }

    /// Notes that the field that is being answered has changed something.
    pub(super) fn record(ctx: &Context<'_>) {
        let field = ctx.field();
        let name = field.alias().unwrap_or_else(|| field.name()).to_owned();
        let progress: &Self = ctx.data_unchecked();
        progress.0.done.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    }

    /// Names what was done in an error of the same request.
    pub fn name_done_in(&self, error: &mut ServerError) {
        let done = self.0.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
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
