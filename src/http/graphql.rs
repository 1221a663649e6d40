//! GraphQL over HTTP: requests in JSON by POST, queries by GET.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_graphql::{Request, Response as Answer, ServerError, Value, Variables, value};
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::error::Elapsed;

use super::router::Served;
use crate::engine::{Caller, Session};
use crate::graphql::{CircuitBreakerSchema, ErrorCode, defect, guard, refusal};

/// Bytes of a request's body: a token of the largest size, with room for escapes, or a batch.
const BODY_BYTES_MAX: usize = 4 << 20;

/// JSON values of a request's body. In memory each takes a hundred times as much as in the body, and
/// no token could hold more: its JSON has at most 1,000,000 bytes.
const BODY_VALUES_MAX: usize = 500_000;

/// Bytes from which a body is large.
const LARGE_BODY_BYTES: usize = 64 << 10;

/// Large bodies that are being read, wait or are being answered at once.
static LARGE_BODIES: Semaphore = Semaphore::const_new(64);

/// KiB of the bodies that are being answered at once: one of the largest, or thousands of small ones.
static ANSWERING_KIB: Semaphore = Semaphore::const_new(BODY_BYTES_MAX >> 10);

/// Time that a request waits until others have been answered.
const TURN_TIME_MAX: Duration = Duration::from_secs(10);

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

/// Executes a request or a batch of them, one after the other.
///
/// Only with a JSON content type, which no web page of another origin can send unasked.
pub async fn post(State(served): State<Served>, headers: HeaderMap, body: Body) -> Response {
    let session = served.engine.session(Caller::anyone());
    let _waiting = session.waiting();
    let (body, _place) = match read(&headers, body).await {
        Ok(read) => read,
        Err(refused) => return refused.into_response(),
    };
    // Held until the answer is written.
    let Ok(_turn) = turn(body.len()).await else { return busy().into_response() };
    match parse(&body) {
        Err(refused) => refused.into_response(),
        Ok(Batch::Single(request)) => {
            json(StatusCode::OK, &execute(&served.schema, &session, *request).await)
        }
        Ok(Batch::Many(requests)) => {
            let mut answers = Vec::with_capacity(requests.len());
            for request in requests {
                answers.push(execute(&served.schema, &session, request).await);
            }
            json(StatusCode::OK, &answers)
        }
    }
}

/// Executes a query from the URL.
pub async fn get(
    State(served): State<Served>,
    url: Uri,
    parameters: Result<Query<GetParameters>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let session = served.engine.session(Caller::anyone());
    let _waiting = session.waiting();
    // Before anything is parsed, as what is parsed takes far more memory than the text.
    let bytes = url.query().map_or(0, str::len);
    let Ok(_turn) = turn(bytes).await else { return busy().into_response() };
    match query(parameters.map(|Query(parameters)| parameters).map_err(|error| error.body_text())) {
        Ok(request) => json(StatusCode::OK, &execute(&served.schema, &session, request).await),
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

/// A body, and its place among the large ones if it is one.
type Placed = (Vec<u8>, Option<SemaphorePermit<'static>>);

async fn read(headers: &HeaderMap, body: Body) -> Result<Placed, Refused> {
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
    read_body(body).await
}

/// A place among the requests that are being answered, for as many KiB as the body has.
async fn turn(bytes: usize) -> Result<SemaphorePermit<'static>, Elapsed> {
    let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
    let permit = tokio::time::timeout(TURN_TIME_MAX, ANSWERING_KIB.acquire_many(kib)).await?;
    Ok(permit.expect("nobody closes it"))
}

fn busy() -> Refused {
    let message = "too many large requests are being answered; try again later";
    let mut refused = Refused::new(StatusCode::OK, ErrorCode::StorageUnavailable, message);
    let details: Value = value!({ "outcome": "NOT_DONE" });
    refused.1.extensions.get_or_insert_default().set("details", details);
    refused
}

async fn read_body(body: Body) -> Result<Placed, Refused> {
    match tokio::time::timeout(BODY_TIME_MAX, collect(body)).await {
        Ok(Ok((body, _))) if values(&body) > BODY_VALUES_MAX => {
            let message = format!(
                "the body has more than the {BODY_VALUES_MAX} JSON values that are allowed"
            );
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::PayloadTooLarge, message))
        }
        Ok(Ok(placed)) => Ok(placed),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message =
                format!("the body has more than the {BODY_BYTES_MAX} bytes that are allowed");
            Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::PayloadTooLarge, message))
        }
        Ok(Err(error)) => {
            let message = format!("the body could not be read: {error}");
            Err(Refused::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::InvalidInput, message))
        }
    }
}

async fn collect(body: Body) -> Result<Placed, Box<dyn std::error::Error + Send + Sync>> {
    let mut body = Limited::new(body, BODY_BYTES_MAX);
    let (mut whole, mut place) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if place.is_none() && whole.len() + data.len() > LARGE_BODY_BYTES {
            place = Some(LARGE_BODIES.acquire().await?);
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

/// Executes one request: in bounded time, and with an answer even if a defect makes it panic.
/// Executes a request of a session; all members of a batch are of one.
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
            let details: Value = value!({ "outcome": "UNKNOWN" });
            error.extensions.get_or_insert_default().set("details", details);
            Answer::from_errors(vec![error])
        }
    }
}

fn json<T: serde::Serialize>(status: StatusCode, answer: &T) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            let body = Answer::from_errors(vec![defect(&format!(
                "an answer could not be written as JSON: {error}"
            ))]);
            let body = serde_json::to_vec(&body).unwrap_or_default();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "application/json")], body)
                .into_response()
        }
    }
}
