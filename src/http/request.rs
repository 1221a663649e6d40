//! A GraphQL request as it comes over HTTP: in JSON by POST, alone or in a batch, or in the URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_graphql::{Request, Variables};
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as HttpBody;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::admission::{Admission, Client, Held};
use super::reply::{Refused, SMALL_BYTES};
use crate::graphql::{ErrorCode, guard, numbers};

/// Bytes of a request's body: a token of the largest size, with room for escapes, or a batch.
const BODY_BYTES_MAX: usize = 4 << 20;

/// JSON values of a request's body. In memory each takes up to 600 bytes until the request is answered: as the
/// library has them, as its variables, and as data.
const BODY_VALUES_MAX: usize = 100_000;

/// Requests in one batch.
const BATCH_MAX: usize = 10;

/// Time for a client to send its body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// A request by GET.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetParameters {
    query: Option<String>,
    operation_name: Option<String>,
    variables: Option<String>,
    extensions: Option<String>,
}

impl GetParameters {
    /// About how many JSON values they have.
    pub fn values(&self) -> usize {
        self.variables.as_ref().map_or(0, |variables| values(variables.as_bytes()))
    }
}

/// The query of a URL.
pub fn query(parameters: Result<GetParameters, String>) -> Result<Request, Refused> {
    let parameters =
        parameters.map_err(|error| bad(format!("the parameters of the URL: {error}")))?;
    let Some(query) = parameters.query else {
        let is_persisted = parameters.extensions.is_some_and(|it| it.contains("persistedQuery"));
        let missing = || bad("put a GraphQL query into the parameter query");
        return Err(if is_persisted { Refused::persisted() } else { missing() });
    };
    let mut request = Request::new(query);
    if let Some(name) = parameters.operation_name {
        request = request.operation_name(name);
    }
    if let Some(variables) = parameters.variables {
        if let Some((number, place)) = numbers::first_changed(&variables) {
            return Err(bad(numbers::told(number, &format!("variables.{place}"))));
        }
        let variables = serde_json::from_str::<Variables>(&variables).map_err(|error| {
            bad(format!("the parameter variables is not a JSON object: {error}"))
        })?;
        request = request.variables(variables);
    }
    check(&request)?;
    // A wrong query is executed: that says what is wrong with it.
    if guard::is_query(&request) == Some(false) {
        let message = "a GET request may only query; send mutations by POST";
        return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidInput, message));
    }
    Ok(request)
}

/// What a body asks for.
pub enum Batch {
    Single(Box<Request>),
    Many(Vec<Request>),
}

/// A body, about how many values it has, and its place among the large ones if it is one.
pub type Placed = (Vec<u8>, usize, Option<Held>);

/// Reads a body, which has to be JSON: no web page of another origin can send that unasked.
pub async fn read(
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
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|it| *it != "identity") {
        let message = format!("send the body as it is, without content-encoding {encoding:?}");
        return Err(Refused::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::InvalidInput,
            message,
        ));
    }
    read_body(admission, client, body).await
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
        Ok(Err(Unread::NoPlace)) => Err(Refused::busy()),
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
                    let Some(Object(request)) = items.next_element()? else { break };
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

/// A request, which is an object: the library would take a list of its members, too.
struct Object(Request);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a query")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object, A::Error> {
                Request::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The request or the requests in a body.
pub fn parse(body: &[u8]) -> Result<Batch, Refused> {
    // Some editors begin each text with this mark.
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let not_a_request = |error: serde_json::Error| bad(why_not_json(body, &error));
    if let Some((number, place)) = str::from_utf8(body).ok().and_then(numbers::first_changed) {
        return Err(bad(numbers::told(number, &place)));
    }
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        let Object(request) = serde_json::from_slice(body).map_err(not_a_request)?;
        check(&request)?;
        return Ok(Batch::Single(Box::new(request)));
    }
    let Requests { first, count } = serde_json::from_slice(body).map_err(not_a_request)?;
    match count {
        0 => Err(bad("the batch is empty")),
        1..=BATCH_MAX => {
            first.iter().try_for_each(check)?;
            Ok(Batch::Many(first))
        }
        count => {
            let message =
                format!("the batch has {count} requests, at most {BATCH_MAX} are allowed");
            Err(Refused::new(StatusCode::BAD_REQUEST, ErrorCode::QueryTooComplex, message))
        }
    }
}

fn why_not_json(body: &[u8], error: &serde_json::Error) -> String {
    const EXAMPLE: &str = r#"send {"query": "...", "variables": {...}}"#;
    const GZIP: &[u8] = &[0x1f, 0x8b];
    if body.iter().all(u8::is_ascii_whitespace) {
        format!("the body is empty; {EXAMPLE}")
    } else if body.starts_with(GZIP) {
        format!("the body is compressed with gzip; send it as it is: {EXAMPLE}")
    } else {
        format!("the body is not a GraphQL request in JSON: {error}; {EXAMPLE}")
    }
}

/// Refuses a request without a query.
fn check(request: &Request) -> Result<(), Refused> {
    if !request.query.trim().is_empty() {
        return Ok(());
    }
    if request.extensions.contains_key("persistedQuery") {
        return Err(Refused::persisted());
    }
    Err(bad(r#"the request has no query; send {"query": "..."}"#))
}

fn bad(message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_told_so() {
        let cases: [(&[u8], &str); 12] = [
            (br#"[["{a}"]]"#, "expected an object with a query"),
            (b"", "the body is empty"),
            (b" \n", "the body is empty"),
            (b"\x1f\x8b\x08\x00", "compressed with gzip"),
            (br#"{"query": "{a}", "variables": {"v": [1e-400]}}"#, "variables.v[0] is 1e-400"),
            (b"5", "expected an object with a query"),
            (b"[5]", "expected an object with a query"),
            (b"[]", "the batch is empty"),
            (b"{}", "the request has no query"),
            (br#"{"query": " "}"#, "the request has no query"),
            (br#"[{"query": "{a}"}, {"variables": {}}]"#, "the request has no query"),
            (br#"{"extensions": {"persistedQuery": {}}}"#, "PersistedQueryNotSupported"),
        ];
        for (body, expected) in cases {
            let Err(refused) = parse(body) else { panic!("{body:?} is taken") };
            assert!(refused.message().contains(expected), "{body:?}: {}", refused.message());
        }
        assert!(parse("\u{feff}{\"query\": \"{a}\"}".as_bytes()).is_ok());
    }
}
