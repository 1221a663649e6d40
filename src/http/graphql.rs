//! GraphQL over HTTP: requests in JSON by POST, queries by GET.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_graphql::{Request, Response as Answer, ServerError, Value, Variables, value};
use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as HttpBody;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::admission::{Admission, Client, Held};
use super::answer::{Outgoing, text};
use super::router::Served;
use crate::engine::{Caller, Session};
use crate::graphql::{CircuitBreakerSchema, ErrorCode, defect, guard, refusal};

/// Bytes of a request's body: a token of the largest size, with room for escapes, or a batch.
const BODY_BYTES_MAX: usize = 4 << 20;

/// JSON values of a request's body. In memory each takes up to 600 bytes until the request is answered: as the
/// library has them, as its variables, and as data.
const BODY_VALUES_MAX: usize = 100_000;

/// Bytes of a body that are taken without a place for it, and of an answer that are.
const SMALL_BYTES: usize = 64 << 10;

/// Bytes of the text of an answer. What it is made of is bounded, but not how it is written: a control character
/// takes six.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// Requests in one batch.
const BATCH_MAX: usize = 10;

/// Time for a client to send its body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// Time for one request, whatever it waits for.
const EXECUTION_TIME_MAX: Duration = Duration::from_secs(30);

/// A request by GET.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetParameters {
    query: Option<String>,
    operation_name: Option<String>,
    variables: Option<String>,
}

/// Why a request is not executed: an HTTP status and the one error of the answer.
struct Refused(StatusCode, Box<ServerError>);

impl Refused {
    fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self(status, Box::new(refusal(code, message)))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = json(self.0, &Answer::from_errors(vec![*self.1]));
        if self.0 == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// Who asks: the connection that a request came over.
type Asking = Option<Extension<Arc<Client>>>;

fn asking(client: Asking) -> Arc<Client> {
    // Without a connection nobody waits for what it holds.
    client.map_or_else(Client::new, |Extension(client)| client)
}

/// Executes a request or a batch of them, one after the other.
///
/// Only with a JSON content type, which no web page of another origin can send unasked.
pub async fn post(
    State(served): State<Served>,
    client: Asking,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (session, client) = (served.engine.session(Caller::anyone()), asking(client));
    let _waiting = session.waiting();
    let (body, values, _place) = match read(&served.admission, &client, &headers, body).await {
        Ok(read) => read,
        Err(refused) => return refused.into_response(),
    };
    let _working = client.work();
    // Held until the answer is written.
    let Some(_turn) = served.admission.turn(body.len(), values).await else {
        return busy().into_response();
    };
    let schema = &served.schema;
    match parse(&body) {
        Err(refused) => refused.into_response(),
        Ok(Batch::Single(request)) => {
            let answer = execute(schema, &session, *request).await;
            written(&served.admission, &client, &session, answer).await
        }
        Ok(Batch::Many(requests)) => {
            let mut answers = Vec::with_capacity(requests.len());
            for request in requests {
                answers.push(execute(schema, &session, request).await);
            }
            written(&served.admission, &client, &session, answers).await
        }
    }
}

/// Executes a query from the URL.
pub async fn get(
    State(served): State<Served>,
    client: Asking,
    url: Uri,
    parameters: Result<Query<GetParameters>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let (session, client) = (served.engine.session(Caller::anyone()), asking(client));
    let (_waiting, _working) = (session.waiting(), client.work());
    let parameters = parameters.map(|Query(parameters)| parameters);
    let variables = parameters.as_ref().ok().and_then(|all| all.variables.as_ref());
    let values = variables.map_or(0, |variables| values(variables.as_bytes()));
    // Before anything is parsed, as what is parsed takes far more memory than the text.
    let bytes = url.query().map_or(0, str::len);
    let Some(_turn) = served.admission.turn(bytes, values).await else {
        return busy().into_response();
    };
    match query(parameters.map_err(|error| error.body_text())) {
        Ok(request) => {
            let answer = execute(&served.schema, &session, request).await;
            written(&served.admission, &client, &session, answer).await
        }
        Err(refused) => refused.into_response(),
    }
}

fn query(parameters: Result<GetParameters, String>) -> Result<Request, Refused> {
    let bad =
        |message: String| Refused::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message);
    let parameters =
        parameters.map_err(|error| bad(format!("the parameters of the URL: {error}")))?;
    let query = parameters
        .query
        .ok_or_else(|| bad("put a GraphQL query into the parameter query".to_owned()))?;
    let mut request = Request::new(query);
    if let Some(name) = parameters.operation_name {
        request = request.operation_name(name);
    }
    if let Some(variables) = parameters.variables {
        let variables = serde_json::from_str::<Variables>(&variables).map_err(|error| {
            bad(format!("the parameter variables is not a JSON object: {error}"))
        })?;
        request = request.variables(variables);
    }
    // A wrong query is executed: that says what is wrong with it.
    if guard::is_query(&request) == Some(false) {
        let message = "a GET request may only query; send mutations by POST";
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidInput, message));
    }
    Ok(request)
}

enum Batch {
    Single(Box<Request>),
    Many(Vec<Request>),
}

/// A body, about how many values it has, and its place among the large ones if it is one.
type Placed = (Vec<u8>, usize, Option<Held>);

async fn read(
    admission: &Admission,
    client: &Arc<Client>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Placed, Refused> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = "send the request as JSON, with the header content-type: application/json";
        return Err(Refused::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::InvalidInput,
            message,
        ));
    }
    read_body(admission, client, body).await
}

fn busy() -> Refused {
    not_done(StatusCode::OK, "too many large requests are being answered; try again later")
}

/// What is told over a connection that was let in for probes alone.
pub fn no_place() -> impl IntoResponse {
    let message = "this server has no place for another connection, other than for /health/live, /health/ready and /metrics; try again later";
    not_done(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// A request that is not for this server.
pub fn refused(status: StatusCode, message: String) -> impl IntoResponse {
    Refused::new(status, ErrorCode::InvalidInput, message)
}

fn not_done(status: StatusCode, message: &str) -> Refused {
    let mut refused = Refused::new(status, ErrorCode::StorageUnavailable, message);
    outcome(&mut refused.1, "NOT_DONE");
    refused
}

fn outcome(error: &mut ServerError, outcome: &str) {
    let details: Value = value!({ "outcome": outcome });
    error.extensions.get_or_insert_default().set("details", details);
}

async fn read_body(
    admission: &Admission,
    client: &Arc<Client>,
    body: Body,
) -> Result<Placed, Refused> {
    match tokio::time::timeout(BODY_TIME_MAX, collect(admission, client, body)).await {
        Ok(Ok((body, place))) => {
            let values = values(&body);
            if values > BODY_VALUES_MAX {
                let message = format!(
                    "the body has more than the {BODY_VALUES_MAX} JSON values that are allowed"
                );
                let code = ErrorCode::PayloadTooLarge;
                return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, code, message));
            }
            Ok((body, values, place))
        }
        Ok(Err(Unread::NoPlace)) => Err(busy()),
        Ok(Err(Unread::Broken(error))) if error.is::<LengthLimitError>() => {
            let message =
                format!("the body has more than the {BODY_BYTES_MAX} bytes that are allowed");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::PayloadTooLarge, message))
        }
        Ok(Err(Unread::Broken(error))) => {
            let message = format!("the body could not be read: {error}");
            Err(Refused::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::InvalidInput, message))
        }
    }
}

/// Why a body is not read.
enum Unread {
    NoPlace,
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// Reads a body; one that turns out to be large waits for room for all of it.
async fn collect(
    admission: &Admission,
    client: &Arc<Client>,
    body: Body,
) -> Result<(Vec<u8>, Option<Held>), Unread> {
    let declared = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let most = declared.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
    let mut body = Limited::new(body, BODY_BYTES_MAX);
    let (mut whole, mut place) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if place.is_none() && whole.len() + data.len() > SMALL_BYTES {
            let waiting = client.work();
            place = Some(admission.body(client, most).await.ok_or(Unread::NoPlace)?);
            drop(waiting);
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole, place))
}

/// About how many JSON values a text has, with the names of members: what a comma, a colon or an
/// opening bracket outside of strings comes before. Never fewer.
fn values(json: &[u8]) -> usize {
    let (mut count, mut in_string) = (1, false);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                bytes.next();
            }
            b',' | b':' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// The first requests of a list and how many there are: what is too much is counted, not kept.
struct Requests {
    first: Vec<Request>,
    count: usize,
}

impl<'de> Deserialize<'de> for Requests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Requests;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of requests")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Requests, A::Error> {
                let mut first = Vec::new();
                while first.len() < BATCH_MAX {
                    let Some(request) = items.next_element()? else { break };
                    first.push(request);
                }
                let mut count = first.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Requests { first, count })
            }
        }
        deserializer.deserialize_seq(Counting)
    }
}

fn parse(body: &[u8]) -> Result<Batch, Refused> {
    let bad =
        |message: String| Refused::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message);
    let not_a_request = |error: serde_json::Error| {
        bad(format!("the body is not a GraphQL request in JSON: {error}"))
    };
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return serde_json::from_slice(body)
            .map(|request| Batch::Single(Box::new(request)))
            .map_err(not_a_request);
    }
    let Requests { first, count } = serde_json::from_slice(body).map_err(not_a_request)?;
    match count {
        0 => Err(bad("the batch is empty".to_owned())),
        1..=BATCH_MAX => Ok(Batch::Many(first)),
        count => {
            let message =
                format!("the batch has {count} requests, at most {BATCH_MAX} are allowed");
            Err(Refused::new(StatusCode::OK, ErrorCode::QueryTooComplex, message))
        }
    }
}

/// Executes a request of a session, which all members of a batch share: in bounded time, and with an answer even
/// if a defect makes it panic.
async fn execute(schema: &CircuitBreakerSchema, session: &Session, request: Request) -> Answer {
    let request = request.data(session.clone());
    let execution = AssertUnwindSafe(schema.execute(request)).catch_unwind();
    match tokio::time::timeout(EXECUTION_TIME_MAX, execution).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            let reason = panic.downcast_ref::<&str>().map(ToString::to_string);
            let reason =
                reason.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Answer::from_errors(vec![defect(&format!("panic: {reason}"))])
        }
        Err(_) => {
            let seconds = EXECUTION_TIME_MAX.as_secs();
            let mut error = refusal(
                ErrorCode::StorageUnavailable,
                format!("the request took longer than {seconds} s"),
            );
            outcome(&mut error, session.outcome());
            Answer::from_errors(vec![error])
        }
    }
}

/// An answer as it is sent. A large one waits for room, which it holds until its client has taken it.
async fn written<T: serde::Serialize>(
    admission: &Admission,
    client: &Arc<Client>,
    session: &Session,
    answer: T,
) -> Response {
    let text = match text(&answer, TEXT_BYTES_MAX) {
        Ok(Some(text)) => text,
        Ok(None) => {
            let message = format!(
                "the answer takes more than {TEXT_BYTES_MAX} bytes as JSON; ask for less at once"
            );
            let mut error = refusal(ErrorCode::ResultTooLarge, message);
            outcome(&mut error, session.outcome());
            return json(StatusCode::OK, &Answer::from_errors(vec![error]));
        }
        Err(error) => return unwritten(&error),
    };
    drop(answer);
    let mut room = None;
    if text.len() > SMALL_BYTES {
        room = admission.answer(client, text.len()).await;
        if room.is_none() {
            let message =
                "too many large answers wait for their clients to take them; try again later";
            let mut error = refusal(ErrorCode::StorageUnavailable, message);
            outcome(&mut error, session.outcome());
            return json(StatusCode::OK, &Answer::from_errors(vec![error]));
        }
    }
    let body = Body::new(Outgoing::new(text, Arc::clone(client), room));
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn json<T: serde::Serialize>(status: StatusCode, answer: &T) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => unwritten(&error),
    }
}

fn unwritten(error: &serde_json::Error) -> Response {
    let error = defect(&format!("an answer could not be written as JSON: {error}"));
    let body = serde_json::to_vec(&Answer::from_errors(vec![error])).unwrap_or_default();
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (StatusCode::INTERNAL_SERVER_ERROR, kind, body).into_response()
}
