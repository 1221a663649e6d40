//! Stands before every request, and sees to it that every error has a code.

use std::any::TypeId;
use std::sync::{Arc, OnceLock};

use async_graphql::extensions::{
    Extension, ExtensionContext, ExtensionFactory, NextExecute, NextPrepareRequest, NextRequest,
    NextResolve, NextValidation, ResolveInfo,
};
use async_graphql::parser::types::{ExecutableDocument, OperationType};
use async_graphql::{
    CacheControl, Request, Response, ServerError, ServerResult, ValidationResult, Value,
};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::budget::Scale;
use super::collect::{collect, operation_of};
use super::document::check_document;
use super::error::{ErrorCode, answer, refusal, with_code};
use super::progress::Progress;
use super::text::check_text;
use super::validate::{Operations, validate};
use crate::domain::Caller;
use crate::engine::{Engine, Session};

/// Bytes of the texts of parsed queries that are kept. What was parsed takes up to 200 times as much.
const KEPT_TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of one such text: a longer one would push out many.
const KEPT_QUERY_BYTES_MAX: usize = 4 * 1024;

/// Queries that the cache is laid out for.
const KEPT_QUERIES: usize = 64;

/// Errors in one answer: a wrong query can have as many as it has fields.
const ERRORS_MAX: usize = 20;

/// Characters of a syntax error that are passed on; it can quote the query.
const SYNTAX_ERROR_CHARS_MAX: usize = 200;

/// Refuses what would cost too much, gives each request its budgets, and keeps parsed queries.
#[derive(Clone)]
pub struct Guard {
    engine: Arc<Engine>,
    parsed: Arc<Cache<String, Arc<Parsed>, TextBytes>>,
    /// Of the one request that this guard stands before.
    progress: OnceLock<Progress>,
    /// What is wrong with its document.
    wrong: OnceLock<Vec<ServerError>>,
}

struct Parsed {
    document: ExecutableDocument,
    valid: Result<Operations, Vec<ServerError>>,
}

#[derive(Clone)]
struct TextBytes;

impl Weighter<String, Arc<Parsed>> for TextBytes {
    fn weight(&self, text: &String, _: &Arc<Parsed>) -> u64 {
        text.len() as u64
    }
}

impl Guard {
    /// A guard of the requests to one engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        let parsed = Cache::with_weighter(KEPT_QUERIES, KEPT_TEXT_BYTES_MAX, TextBytes);
        Self { engine, parsed: Arc::new(parsed), progress: OnceLock::new(), wrong: OnceLock::new() }
    }

    fn progress(&self) -> &Progress {
        self.progress.get_or_init(Progress::default)
    }

    /// Parses the query, unless it is too much for parser, validation or execution.
    fn admit(&self, request: &mut Request) -> Result<(), ServerError> {
        // The parsed query depends on its text alone: not on the operation's name or the variables.
        let parsed = match self.parsed.get(&request.query) {
            Some(parsed) => parsed,
            None => {
                let parsed = Arc::new(parse(&request.query)?);
                if request.query.len() <= KEPT_QUERY_BYTES_MAX {
                    self.parsed.insert(request.query.clone(), Arc::clone(&parsed));
                }
                parsed
            }
        };
        let mut executed = None;
        match &parsed.valid {
            Ok(operations) => {
                let operation = request.operation_name.as_deref();
                operations.coerce(operation, &mut request.variables)?;
                executed = collect(&parsed.document, operation, &mut request.variables)?;
            }
            Err(errors) => {
                let _ = self.wrong.set(errors.clone());
            }
        }
        if executed.is_some() {
            // It is the only one that is left.
            request.operation_name = None;
        }
        // Where nothing is to be executed, the library says so of the whole.
        let document = executed.unwrap_or_else(|| parsed.document.clone());
        request.set_parsed_query(document);
        Ok(())
    }
}

fn parse(query: &str) -> Result<Parsed, ServerError> {
    let text = check_text(query)?;
    let document = parse_text(&text)?;
    check_document(&document)?;
    Ok(Parsed { document, valid: validate(&text) })
}

fn parse_text(text: &str) -> Result<ExecutableDocument, ServerError> {
    async_graphql::parser::parse_query(text).map_err(|error| {
        // The parser's text shows the line with an arrow; its last line says what was expected.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim_start_matches([' ', '=']);
        let reason: String = last.chars().take(SYNTAX_ERROR_CHARS_MAX).collect();
        let mut answer =
            refusal(ErrorCode::InvalidInput, format!("the query is not GraphQL: {reason}"));
        answer.locations = error.positions().collect();
        answer
    })
}

/// Whether the operation that a request names is a query; none if the query is wrong, which
/// execution will say.
pub fn is_query(request: &Request) -> Option<bool> {
    let document = parse_text(&check_text(&request.query).ok()?).ok()?;
    let name = request.operation_name.as_deref().filter(|name| !name.is_empty());
    let operation = operation_of(&document.operations, name);
    operation.map(|operation| operation.node.ty == OperationType::Query)
}

impl ExtensionFactory for Guard {
    fn create(&self) -> Arc<dyn Extension> {
        Arc::new(Self { progress: OnceLock::new(), wrong: OnceLock::new(), ..self.clone() })
    }
}

#[async_trait::async_trait]
impl Extension for Guard {
    async fn request(&self, ctx: &ExtensionContext<'_>, next: NextRequest<'_>) -> Response {
        let mut response = next.run(ctx).await;
        response.errors.truncate(ERRORS_MAX);
        for error in &mut response.errors {
            with_code(error);
            self.progress().name_done_in(error);
        }
        response
    }

    async fn prepare_request(
        &self,
        ctx: &ExtensionContext<'_>,
        mut request: Request,
        next: NextPrepareRequest<'_>,
    ) -> ServerResult<Request> {
        // Some clients send an empty one where there is none.
        request.operation_name = request.operation_name.take().filter(|name| !name.is_empty());
        self.admit(&mut request)?;
        // One that does not come through HTTP has no session yet.
        if !request.data.contains_key(&TypeId::of::<Session>()) {
            request = request.data(self.engine.session(Caller::anyone()));
        }
        let given = request.data.get(&TypeId::of::<Progress>());
        let given = given.and_then(|given| given.downcast_ref::<Progress>()).cloned();
        let progress = self.progress.get_or_init(|| given.unwrap_or_default()).clone();
        next.run(ctx, request.data(progress)).await
    }

    async fn validation(
        &self,
        _: &ExtensionContext<'_>,
        _: NextValidation<'_>,
    ) -> Result<ValidationResult, Vec<ServerError>> {
        match self.wrong.get() {
            Some(errors) => Err(errors.clone()),
            // It was validated once, whoever sends it; what the library would look at is a part of that.
            None => Ok(ValidationResult {
                cache_control: CacheControl::default(),
                complexity: 0,
                depth: 0,
            }),
        }
    }

    async fn execute(
        &self,
        ctx: &ExtensionContext<'_>,
        operation: Option<&str>,
        next: NextExecute<'_>,
    ) -> Response {
        self.progress().begin();
        next.run(ctx, operation).await
    }

    /// Weighs each value of the answer. Where it is too much, the next value fails that may not be null: an error
    /// of what may be null would make nothing else of it null here.
    async fn resolve(
        &self,
        ctx: &ExtensionContext<'_>,
        info: ResolveInfo<'_>,
        next: NextResolve<'_>,
    ) -> ServerResult<Option<Value>> {
        let (scale, at) = (Scale::of(&info), info.field.name.pos);
        let may_fail = info.return_type.ends_with('!');
        let refused = |error| answer(error).into_server_error(at);
        let session = ctx.data_opt::<Session>();
        if let Some(session) = session.filter(|_| may_fail) {
            session.check_answer().map_err(refused)?;
        }
        let value = next.run(ctx, info).await?;
        if let (Some(value), Some(session)) = (&value, session) {
            let charged = session.charge_answer(scale.weigh(value)).await;
            charged.map_err(refused).or_else(|error| if may_fail { Err(error) } else { Ok(()) })?;
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_asks_for_is_known_before_it_is_executed() {
        let two = "query A { a } mutation B { b }";
        for (query, name, expected) in [
            ("{ a }", None, Some(true)),
            ("mutation { a }", None, Some(false)),
            ("mutation { a }", Some(""), Some(false)),
            ("mutation B { a }", None, Some(false)),
            (two, Some("A"), Some(true)),
            (two, Some("B"), Some(false)),
            // Execution says what is wrong.
            (two, None, None),
            (two, Some("C"), None),
            ("{ a }", Some("A"), None),
            ("{ a", None, None),
        ] {
            let mut request = Request::new(query);
            request.operation_name = name.map(str::to_owned);
            assert_eq!(is_query(&request), expected, "{query} {name:?}");
        }
    }
}
