//! The table from what went wrong to the code that a client sees.

use async_graphql::{ErrorExtensionValues, ServerError, Value as GraphqlValue, value};
use serde_json::{Value, json};

use crate::domain::{Blocker, CreateError, InvalidId, MoveError};
use crate::engine::EngineError;
use crate::storage::StorageError;

/// What a client can tell errors apart by. Codes never change, messages may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// A name or id breaks its rule.
    InvalidId,
    /// A value, or the request itself, breaks its rule.
    InvalidInput,
    /// A definition is wrong; `details.problems` lists all that is.
    InvalidWorkflow,
    /// No such workflow.
    WorkflowNotFound,
    /// No such place in the workflow.
    PlaceNotFound,
    /// No such token.
    TokenNotFound,
    /// No such transition in the workflow.
    TransitionNotFound,
    /// Another definition has the id.
    WorkflowExists,
    /// A token has the id.
    TokenExists,
    /// The token is not where the transition starts.
    TransitionNotAllowed,
    /// The transition leads elsewhere.
    PlaceMismatch,
    /// A condition is false.
    ConditionFalse,
    /// A condition could not be evaluated.
    ConditionFailed,
    /// The token is not at the expected version any more.
    Conflict,
    /// Larger than the store or the server takes.
    PayloadTooLarge,
    /// More rows or bytes than an answer may hold.
    ResultTooLarge,
    /// Depth, fields or batch over the limit.
    QueryTooComplex,
    /// Live state alone fills the store.
    StorageFull,
    /// The store does not answer; `details.outcome` says whether the write may have happened.
    StorageUnavailable,
    /// A defect of this program; the log has the same id.
    Internal,
}

impl ErrorCode {
    /// The code as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidId => "INVALID_ID",
            Self::InvalidInput => "INVALID_INPUT",
            Self::InvalidWorkflow => "INVALID_WORKFLOW",
            Self::WorkflowNotFound => "WORKFLOW_NOT_FOUND",
            Self::PlaceNotFound => "PLACE_NOT_FOUND",
            Self::TokenNotFound => "TOKEN_NOT_FOUND",
            Self::TransitionNotFound => "TRANSITION_NOT_FOUND",
            Self::WorkflowExists => "WORKFLOW_EXISTS",
            Self::TokenExists => "TOKEN_EXISTS",
            Self::TransitionNotAllowed => "TRANSITION_NOT_ALLOWED",
            Self::PlaceMismatch => "PLACE_MISMATCH",
            Self::ConditionFalse => "CONDITION_FALSE",
            Self::ConditionFailed => "CONDITION_FAILED",
            Self::Conflict => "CONFLICT",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::ResultTooLarge => "RESULT_TOO_LARGE",
            Self::QueryTooComplex => "QUERY_TOO_COMPLEX",
            Self::StorageFull => "STORAGE_FULL",
            Self::StorageUnavailable => "STORAGE_UNAVAILABLE",
            Self::Internal => "INTERNAL",
        }
    }

    /// Whether the same request may work later. Where `details.outcome` is `UNKNOWN`, the caller
    /// must make sure that a second try does no harm.
    pub fn retryable(self) -> bool {
        self == Self::StorageUnavailable
    }

    /// Puts code and retryability into an error's extensions.
    pub fn put_into(self, error: &mut ServerError) {
        self.put(error.extensions.get_or_insert_default());
    }

    fn put(self, extensions: &mut ErrorExtensionValues) {
        extensions.set("code", self.as_str());
        extensions.set("retryable", self.retryable());
    }
}

/// Characters of a message of the GraphQL library that are passed on; it can quote the request.
const LIBRARY_MESSAGE_CHARS_MAX: usize = 300;

/// Gives an error of the GraphQL library itself a code: what it refuses is the client's input.
pub fn with_code(error: &mut ServerError) {
    let has_code =
        error.extensions.as_ref().is_some_and(|extensions| extensions.get("code").is_some());
    if has_code {
        return;
    }
    ErrorCode::InvalidInput.put_into(error);
    if let Some((end, _)) = error.message.char_indices().nth(LIBRARY_MESSAGE_CHARS_MAX) {
        error.message.truncate(end);
        error.message.push('…');
    }
}

/// An answer of one error with a code, for requests that never reach a resolver.
pub fn refusal(code: ErrorCode, message: impl Into<String>) -> ServerError {
    let mut error = ServerError::new(message, None);
    code.put_into(&mut error);
    error
}

/// A defect: logged in full under a new id, and told to the client by that id alone.
pub fn defect(reason: &str) -> ServerError {
    let id = uuid::Uuid::new_v4();
    tracing::error!(error.id = %id, reason, "a request failed by a defect or by damaged data");
    let mut error = refusal(
        ErrorCode::Internal,
        format!("internal error {id}; the server's log says more under this id"),
    );
    if let Some(extensions) = &mut error.extensions {
        extensions.set("details", value!({ "errorId": (id.to_string()) }));
    }
    error
}

/// A wrong name or id, with the field that it stood in.
pub fn invalid_id(field: &str, error: &InvalidId) -> async_graphql::Error {
    let details = json!({ "field": field, "rule": error.rule });
    build(ErrorCode::InvalidId, format!("{field}: {error}"), Some(details))
}

/// A wrong value, with the field that it stood in.
pub fn invalid_input(field: &str, rule: &str) -> async_graphql::Error {
    let details = json!({ "field": field, "rule": rule });
    build(ErrorCode::InvalidInput, format!("{field}: {rule}"), Some(details))
}

/// The error that a client sees for one of the engine's.
pub fn answer(error: EngineError) -> async_graphql::Error {
    let message = error.to_string();
    match error {
        EngineError::InvalidInput { field, rule } => invalid_input(field, &rule),
        EngineError::InvalidWorkflow { problems } => {
            // Names alone are wrong: the rule of names says it all. Everything is listed in any case.
            let only_names =
                problems.iter().all(|p| p.problem == crate::domain::ProblemKind::InvalidId);
            let code = if only_names { ErrorCode::InvalidId } else { ErrorCode::InvalidWorkflow };
            build(code, message, Some(json!({ "problems": problems })))
        }
        EngineError::WorkflowNotFound { workflow } => {
            build(ErrorCode::WorkflowNotFound, message, Some(json!({ "workflowId": workflow })))
        }
        EngineError::PlaceNotFound { workflow, place } => build(
            ErrorCode::PlaceNotFound,
            message,
            Some(json!({ "workflowId": workflow, "placeId": place })),
        ),
        EngineError::TokenNotFound { token } => {
            build(ErrorCode::TokenNotFound, message, Some(json!({ "tokenId": token })))
        }
        EngineError::WorkflowExists { workflow, differs } => {
            let details = json!({ "workflowId": workflow, "differs": differs });
            build(ErrorCode::WorkflowExists, message, Some(details))
        }
        EngineError::TokenExists { token } => {
            build(ErrorCode::TokenExists, message, Some(json!({ "tokenId": token })))
        }
        EngineError::Create(CreateError::PlaceNotFound { workflow, place }) => build(
            ErrorCode::PlaceNotFound,
            message,
            Some(json!({ "workflowId": workflow, "placeId": place })),
        ),
        EngineError::Create(CreateError::NotAnEntry {
            workflow,
            place,
            initial_place,
            entry_places,
        }) => {
            let details = json!({
                "field": "initialPlace", "workflowId": workflow, "placeId": place,
                "initialPlace": initial_place, "entryPlaces": entry_places,
            });
            build(ErrorCode::InvalidInput, message, Some(details))
        }
        EngineError::Move(error) => refused_move(error, message),
        EngineError::Contended { token, attempts } | EngineError::NoTurn { token, attempts } => {
            build(
                ErrorCode::Conflict,
                message,
                Some(json!({ "tokenId": token, "attempts": attempts })),
            )
        }
        EngineError::ResultTooLarge { rows, bytes, .. } => build(
            ErrorCode::ResultTooLarge,
            message,
            Some(json!({ "rowsMax": rows, "bytesMax": bytes })),
        ),
        EngineError::TooCostly(error) => {
            build(ErrorCode::QueryTooComplex, message, Some(json!({ "stepsMax": error.steps_max })))
        }
        EngineError::Storage(error) => failed_storage(error, message),
        EngineError::Defect { reason } => from_server_error(defect(&reason)),
    }
}

fn refused_move(error: MoveError, message: String) -> async_graphql::Error {
    let (code, details) = match error {
        MoveError::VersionMismatch { expected, actual, place, .. } => {
            let details = json!({ "expectedVersion": expected, "version": actual, "place": place });
            (ErrorCode::Conflict, details)
        }
        MoveError::TransitionNotFound { workflow, transition } => (
            ErrorCode::TransitionNotFound,
            json!({ "workflowId": workflow, "transitionId": transition }),
        ),
        MoveError::PlaceMismatch { transition, to_place, new_place } => {
            let details =
                json!({ "transitionId": transition, "toPlace": to_place, "newPlace": new_place });
            (ErrorCode::PlaceMismatch, details)
        }
        MoveError::NotAllowed { transition, place, from_places, enabled, .. } => {
            let details = json!({ "transitionId": transition, "place": place, "fromPlaces": from_places, "mayFire": enabled });
            (ErrorCode::TransitionNotAllowed, details)
        }
        MoveError::Blocked(blocker) => (blocked(&blocker), blocker_details(*blocker)),
        MoveError::TooCostly(error) => {
            (ErrorCode::QueryTooComplex, json!({ "stepsMax": error.steps_max }))
        }
    };
    build(code, message, Some(details))
}

/// The code of what stands in the way of a transition.
pub fn blocked(blocker: &Blocker) -> ErrorCode {
    match blocker {
        Blocker::NotAccepted { .. } => ErrorCode::InvalidInput,
        Blocker::ConditionFalse { .. } => ErrorCode::ConditionFalse,
        Blocker::ConditionFailed { .. } => ErrorCode::ConditionFailed,
        Blocker::VersionsUsedUp { .. } => ErrorCode::TransitionNotAllowed,
    }
}

fn blocker_details(blocker: Blocker) -> Value {
    match blocker {
        Blocker::NotAccepted { transition, accepts, others } => {
            json!({ "transitionId": transition, "accepts": accepts, "others": others })
        }
        Blocker::ConditionFalse { transition, condition, values, .. } => {
            json!({ "transitionId": transition, "condition": condition, "values": values })
        }
        Blocker::ConditionFailed { transition, condition, reason, values, .. } => json!({
            "transitionId": transition, "condition": condition, "reason": reason, "values": values,
        }),
        Blocker::VersionsUsedUp { token } => json!({ "tokenId": token }),
    }
}

fn failed_storage(error: StorageError, message: String) -> async_graphql::Error {
    match error {
        StorageError::TooLarge { bytes, bytes_max, .. } => {
            let details = json!({ "bytes": bytes, "bytesMax": bytes_max });
            build(ErrorCode::PayloadTooLarge, message, Some(details))
        }
        StorageError::Full { .. } => build(ErrorCode::StorageFull, message, None),
        StorageError::Unavailable { .. } => {
            build(ErrorCode::StorageUnavailable, message, Some(json!({ "outcome": "NOT_DONE" })))
        }
        StorageError::OutcomeUnknown { .. } => {
            build(ErrorCode::StorageUnavailable, message, Some(json!({ "outcome": "UNKNOWN" })))
        }
        // The engine has turned these into its own; what is left of them is a defect.
        StorageError::Conflict { .. }
        | StorageError::WorkflowExists { .. }
        | StorageError::TokenExists { .. }
        | StorageError::ForeignCursor { .. }
        | StorageError::Unfit { .. }
        | StorageError::Corrupt { .. } => from_server_error(defect(&message)),
    }
}

fn build(code: ErrorCode, message: String, details: Option<Value>) -> async_graphql::Error {
    let mut extensions = ErrorExtensionValues::default();
    code.put(&mut extensions);
    if let Some(details) = details {
        // Every JSON value is a GraphQL value.
        extensions.set("details", GraphqlValue::from_json(details).unwrap_or(GraphqlValue::Null));
    }
    async_graphql::Error { message, source: None, extensions: Some(extensions) }
}

fn from_server_error(error: ServerError) -> async_graphql::Error {
    async_graphql::Error { message: error.message, source: None, extensions: error.extensions }
}
