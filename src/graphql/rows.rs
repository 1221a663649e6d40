//! Lists, which may be long. The library would begin with all that is in them at once, which takes far more memory
//! than what they answer.

use std::borrow::Cow;

use async_graphql::parser::types::Field;
use async_graphql::registry::Registry;
use async_graphql::{ContextSelectionSet, OutputType, Positioned, ServerResult, Value};
use futures_util::{StreamExt, stream};

use super::budget::Scale;
use super::error::answer;
use crate::engine::Session;

/// Rows that are answered at once: some wait for the store.
const AT_ONCE: usize = 8;

/// Rows of an answer.
pub struct Rows<T>(Vec<T>);

impl<T, F> FromIterator<F> for Rows<T>
where
    T: From<F>,
{
    fn from_iter<I: IntoIterator<Item = F>>(rows: I) -> Self {
        Self(rows.into_iter().map(T::from).collect())
    }
}

impl<T: OutputType> OutputType for Rows<T> {
    fn type_name() -> Cow<'static, str> {
        Vec::<T>::type_name()
    }

    fn qualified_type_name() -> String {
        Vec::<T>::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Vec::<T>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        let row = |index: usize| resolve_row(ctx, field, index, &self.0[index]);
        let mut rows = stream::iter(0..self.0.len()).map(row).buffered(AT_ONCE);
        let mut values = Vec::with_capacity(self.0.len());
        while let Some(value) = rows.next().await {
            values.push(value?);
        }
        Ok(Value::List(values))
    }
}

async fn resolve_row<T: OutputType>(
    ctx: &ContextSelectionSet<'_>,
    field: &Positioned<Field>,
    index: usize,
    row: &T,
) -> ServerResult<Value> {
    let ctx = ctx.with_index(index);
    let value = row.resolve(&ctx, field).await.map_err(|error| ctx.set_error_path(error))?;
    let session: &Session = ctx.data_unchecked();
    let charged = session.charge_answer(Scale::Itself.weigh(&value)).await;
    charged.map_err(|error| ctx.set_error_path(answer(error).into_server_error(field.pos)))?;
    Ok(value)
}

/// Texts of an answer, which nothing has to wait for.
pub struct Texts<T>(Vec<T>);

impl<T> FromIterator<T> for Texts<T> {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        Self(texts.into_iter().collect())
    }
}

impl<T: AsRef<str> + Send + Sync> OutputType for Texts<T> {
    fn type_name() -> Cow<'static, str> {
        Vec::<String>::type_name()
    }

    fn qualified_type_name() -> String {
        Vec::<String>::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        Vec::<String>::create_type_info(registry)
    }

    async fn resolve(
        &self,
        _: &ContextSelectionSet<'_>,
        _: &Positioned<Field>,
    ) -> ServerResult<Value> {
        let text = |text: &T| Value::String(text.as_ref().to_owned());
        Ok(Value::List(self.0.iter().map(text).collect()))
    }
}
