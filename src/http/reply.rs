//! What is told over HTTP: the statuses and media types of the GraphQL-over-HTTP specification.

use std::sync::Arc;

use async_graphql::{Response as Answer, ServerError, Value, value};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::admission::{Admission, Client};
use super::answer::{Outgoing, text};
use crate::engine::Session;
use crate::graphql::{ErrorCode, Progress, defect, refusal};

/// Bytes of a body that are taken without a place for it, and of an answer that are.
pub const SMALL_BYTES: usize = 64 << 10;

/// Bytes of the text of an answer. What it is made of is bounded, but not how it is written: a control character
/// takes six.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// How a client wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: status 200 for every request that is well formed, whatever came of it.
    Json,
    /// `application/graphql-response+json`: status 400 for what could not be executed.
    GraphQLResponse,
}

impl Media {
    /// As the header `accept` asks for; JSON where it asks for neither. What it names with the same weight is
    /// GraphQL's own.
    pub fn of(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(header::ACCEPT).iter();
        let ranges = ranges.filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(','));
        let (mut own, mut json) = (0.0, 0.0_f32);
        for range in ranges {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            let weight = weight.unwrap_or(1.0);
            if name.eq_ignore_ascii_case("application/graphql-response+json") {
                own = weight;
            } else if ["application/json", "application/*", "*/*"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
            {
                json = weight.max(json);
            }
        }
        if own > 0.0 && own >= json { Self::GraphQLResponse } else { Self::Json }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::GraphQLResponse => "application/graphql-response+json",
        }
    }

    /// The status of one answer.
    pub fn status(self, reply: &Reply) -> StatusCode {
        match self {
            Self::GraphQLResponse if !reply.began => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        }
    }

    /// An answer as it is sent. A large one waits for room, which it holds until its client has taken it.
    pub async fn send<T: Serialize>(
        self,
        admission: &Admission,
        client: &Arc<Client>,
        session: &Session,
        (status, reply): (StatusCode, T),
    ) -> Response {
        let late = |code, message: String| {
            let mut error = refusal(code, message);
            outcome(&mut error, session.outcome());
            self.json(
                StatusCode::OK,
                &Reply { answer: Answer::from_errors(vec![error]), began: true },
            )
        };
        let text = match text(&reply, TEXT_BYTES_MAX) {
            Ok(Some(text)) => text,
            Ok(None) => {
                let message = format!(
                    "the answer takes more than {TEXT_BYTES_MAX} bytes as JSON; ask for less at once"
                );
                return late(ErrorCode::ResultTooLarge, message);
            }
            Err(error) => return self.unwritten(&error),
        };
        drop(reply);
        let mut room = None;
        if text.bytes() > SMALL_BYTES {
            room = admission.answer(client, text.bytes()).await;
            if room.is_none() {
                let message =
                    "too many large answers wait for their clients to take them; try again later";
                return late(ErrorCode::StorageUnavailable, message.to_owned());
            }
        }
        let body = Body::new(Outgoing::new(text, Arc::clone(client), room));
        (status, [(header::CONTENT_TYPE, self.name())], body).into_response()
    }

    /// That a request is not executed.
    pub fn refuse(self, refused: Refused) -> Response {
        let Refused(status, error) = refused;
        let answer = Answer::from_errors(vec![*error]);
        let mut response = self.json(status, &Reply { answer, began: false });
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }

    fn json(self, status: StatusCode, reply: &Reply) -> Response {
        match serde_json::to_vec(reply) {
            Ok(body) => (status, [(header::CONTENT_TYPE, self.name())], body).into_response(),
            Err(error) => self.unwritten(&error),
        }
    }

    fn unwritten(self, error: &serde_json::Error) -> Response {
        let error = defect(&format!("an answer could not be written as JSON: {error}"));
        let body = serde_json::to_vec(&Answer::from_errors(vec![error])).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, self.name())];
        (StatusCode::INTERNAL_SERVER_ERROR, kind, body).into_response()
    }
}

/// An answer. That of a request whose execution has not begun has errors and no `data`.
pub struct Reply {
    answer: Answer,
    began: bool,
}

impl Reply {
    pub fn new(answer: Answer, progress: &Progress) -> Self {
        Self { answer, began: progress.began() }
    }
}

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        if self.began {
            members.serialize_entry("data", &self.answer.data)?;
        }
        if !self.answer.errors.is_empty() {
            members.serialize_entry("errors", &self.answer.errors)?;
        }
        members.end()
    }
}

/// Why a request is not executed: an HTTP status and the one error of the answer.
pub struct Refused(StatusCode, Box<ServerError>);

impl Refused {
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self(status, Box::new(refusal(code, message)))
    }

    /// That there is no room for it now.
    pub fn busy() -> Self {
        Self::not_done("too many large requests are being answered; try again later")
    }

    /// That no query is kept by its hash. Clients know this message, and send the text then.
    pub fn persisted() -> Self {
        let message = "PersistedQueryNotSupported";
        Self::new(StatusCode::OK, ErrorCode::InvalidInput, message)
    }

    #[cfg(test)]
    pub fn message(&self) -> &str {
        &self.1.message
    }

    fn not_done(message: &str) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut refused = Self::new(status, ErrorCode::StorageUnavailable, message);
        outcome(&mut refused.1, "NOT_DONE");
        refused
    }
}

/// What is told over a connection that was let in for probes alone.
pub fn no_place(headers: &HeaderMap) -> Response {
    let message = "this server has no place for another connection, other than for /health/live, /health/ready and /metrics; try again later";
    Media::of(headers).refuse(Refused::not_done(message))
}

/// A request that is not for this server.
pub fn refused(headers: &HeaderMap, status: StatusCode, message: String) -> Response {
    Media::of(headers).refuse(Refused::new(status, ErrorCode::InvalidInput, message))
}

/// What became of the writes of a request.
pub fn outcome(error: &mut ServerError, outcome: &str) {
    let details: Value = value!({ "outcome": outcome });
    error.extensions.get_or_insert_default().set("details", details);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_media_type_that_it_prefers() {
        let (json, own) = (Media::Json, Media::GraphQLResponse);
        let cases = [
            ("", json),
            ("*/*", json),
            ("application/json", json),
            ("application/*", json),
            ("text/html", json),
            ("application/graphql-response+json", own),
            ("Application/GraphQL-Response+JSON; charset=utf-8", own),
            ("application/graphql-response+json, application/json", own),
            ("application/json, application/graphql-response+json", own),
            ("application/graphql-response+json, application/json;q=0.9, */*;q=0.1", own),
            ("application/graphql-response+json;q=0.8, application/json", json),
            ("application/graphql-response+json; q=0, */*", json),
            ("application/graphql-response+json;q=nonsense", own),
        ];
        for (accept, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Media::of(&headers), expected, "{accept}");
        }
        assert_eq!(Media::of(&HeaderMap::new()), json);
    }
}
