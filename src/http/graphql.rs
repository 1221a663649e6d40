//! GraphQL over HTTP: requests in JSON by POST, queries by GET.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_graphql::{Request, Response as Answer};
use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use futures_util::FutureExt;

use super::admission::Client;
use super::reply::{Media, Refused, Reply, outcome};
use super::request::{Batch, GetParameters, parse, query, read};
use super::router::Served;
use crate::engine::{Caller, Session};
use crate::graphql::{CircuitBreakerSchema, ErrorCode, Progress, defect, refusal};

/// Time for one request, whatever it waits for.
const EXECUTION_TIME_MAX: Duration = Duration::from_secs(30);

/// Who asks: the connection that a request came over.
type Asking = Option<Extension<Arc<Client>>>;

fn asking(client: Asking) -> Arc<Client> {
    // Without a connection nobody waits for what it holds.
    client.map_or_else(Client::new, |Extension(client)| client)
}

/// Executes a request or a batch of them, one after the other.
pub async fn post(
    State(served): State<Served>,
    client: Asking,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (session, client) = (served.engine.session(Caller::anyone()), asking(client));
    let (media, _waiting) = (Media::of(&headers), session.waiting());
    let (body, values, _place) = match read(&served.admission, &client, &headers, body).await {
        Ok(read) => read,
        Err(refused) => return media.refuse(refused),
    };
    let _working = client.work();
    // Held until the answer is written.
    let Some(_turn) = served.admission.turn(body.len(), values).await else {
        return media.refuse(Refused::busy());
    };
    let schema = &served.schema;
    match parse(&body) {
        Err(refused) => media.refuse(refused),
        Ok(Batch::Single(request)) => {
            let reply = execute(schema, &session, *request).await;
            let reply = (media.status(&reply), reply);
            media.send(&served.admission, &client, &session, reply).await
        }
        Ok(Batch::Many(requests)) => {
            let mut replies = Vec::with_capacity(requests.len());
            for request in requests {
                replies.push(execute(schema, &session, request).await);
            }
            let reply = (StatusCode::OK, replies);
            media.send(&served.admission, &client, &session, reply).await
        }
    }
}

/// Executes a query from the URL.
pub async fn get(
    State(served): State<Served>,
    client: Asking,
    url: Uri,
    headers: HeaderMap,
    parameters: Result<Query<GetParameters>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let (session, client) = (served.engine.session(Caller::anyone()), asking(client));
    let (_waiting, _working) = (session.waiting(), client.work());
    let media = Media::of(&headers);
    let parameters = parameters.map(|Query(parameters)| parameters);
    let values = parameters.as_ref().map_or(0, GetParameters::values);
    // Before anything is parsed, as what is parsed takes far more memory than the text.
    let bytes = url.query().map_or(0, str::len);
    let Some(_turn) = served.admission.turn(bytes, values).await else {
        return media.refuse(Refused::busy());
    };
    match query(parameters.map_err(|error| error.body_text())) {
        Ok(request) => {
            let reply = execute(&served.schema, &session, request).await;
            let reply = (media.status(&reply), reply);
            media.send(&served.admission, &client, &session, reply).await
        }
        Err(refused) => media.refuse(refused),
    }
}

/// Executes a request of a session, which all members of a batch share: in bounded time, and with an answer even
/// if a defect makes it panic.
async fn execute(schema: &CircuitBreakerSchema, session: &Session, request: Request) -> Reply {
    let progress = Progress::default();
    let request = request.data(session.clone()).data(progress.clone());
    let execution = AssertUnwindSafe(schema.execute(request)).catch_unwind();
    let answer = match tokio::time::timeout(EXECUTION_TIME_MAX, execution).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            let reason = panic.downcast_ref::<&str>().map(ToString::to_string);
            let reason =
                reason.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            let mut error = defect(&format!("panic: {reason}"));
            progress.name_done_in(&mut error);
            Answer::from_errors(vec![error])
        }
        Err(_) => {
            let seconds = EXECUTION_TIME_MAX.as_secs();
            let mut error = refusal(
                ErrorCode::StorageUnavailable,
                format!("the request took longer than {seconds} s"),
            );
            outcome(&mut error, session.outcome());
            progress.name_done_in(&mut error);
            Answer::from_errors(vec![error])
        }
    };
    Reply::new(answer, &progress)
}
