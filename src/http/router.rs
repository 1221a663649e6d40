//! Which path leads where.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::middleware;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::admission::Admission;
use super::graphql;
use super::hosts::{self, Hosts};
use crate::engine::{Caller, Engine, HealthStatus};
use crate::graphql::{CircuitBreakerSchema, create_schema};

/// GraphiQL and what it is made of, as its makers publish it; see `src/http/graphiql/README.md`.
const PAGE: &str = include_str!("graphiql/index.html");
const ASSETS: [(&str, &str, &[u8]); 5] = [
    ("/graphiql/start.js", "text/javascript", include_bytes!("graphiql/start.js")),
    ("/graphiql/react.js", "text/javascript", include_bytes!("graphiql/react.production.min.js")),
    (
        "/graphiql/react-dom.js",
        "text/javascript",
        include_bytes!("graphiql/react-dom.production.min.js"),
    ),
    ("/graphiql/graphiql.js", "text/javascript", include_bytes!("graphiql/graphiql.min.js")),
    ("/graphiql/graphiql.css", "text/css", include_bytes!("graphiql/graphiql.min.css")),
];

/// Gives the text of `/metrics`.
pub type Metrics = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// What all paths share.
#[derive(Clone)]
pub struct Served {
    pub engine: Arc<Engine>,
    pub schema: CircuitBreakerSchema,
    pub admission: Arc<Admission>,
}

const LIVE: &str = "/health/live";
const READY: &str = "/health/ready";
const METRICS: &str = "/metrics";

/// Whether a path says only how this server does.
pub fn is_health(path: &str) -> bool {
    matches!(path, LIVE | READY)
}

/// Whether a path is asked for by what watches over this server.
pub fn is_probe(path: &str) -> bool {
    is_health(path) || path == METRICS
}

/// All paths over one engine, with `/metrics` if there are any, for requests that call this server by its
/// address or by one of these names.
pub fn router(engine: Arc<Engine>, names: Hosts, metrics: Option<Metrics>) -> Router {
    let schema = create_schema(Arc::clone(&engine));
    let sdl: Arc<str> = schema.sdl().into();
    let mut router = Router::new()
        .route("/graphql", get(graphql::get).post(graphql::post))
        .route("/", get(|| async { Html(PAGE) }))
        .route(LIVE, get(|| async { json_answer(StatusCode::OK, &json!({ "status": "alive" })) }))
        .route(READY, get(ready))
        .route("/schema.graphql", get(move || async move { text(&sdl) }));
    for (path, kind, bytes) in ASSETS {
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=3600")];
        router = router.route(path, get(move || async move { (headers, bytes) }));
    }
    let mut paths = vec!["/", "/graphql", "/schema.graphql", LIVE, READY];
    if let Some(metrics) = metrics {
        paths.push(METRICS);
        let text = move || async move {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (kind, metrics().await)
        };
        router = router.route(METRICS, get(text));
    }
    let served = Served { engine, schema, admission: Arc::default() };
    let checked = middleware::from_fn_with_state(names, hosts::check);
    let nothing = move || async move {
        let body = json!({ "error": "there is nothing at this path", "paths": paths });
        json_answer(StatusCode::NOT_FOUND, &body)
    };
    router
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(checked)
        .with_state(served)
}

/// 200 while reads and writes work, else 503; which of the two stands in the body, too.
async fn ready(State(served): State<Served>) -> Response {
    let (status, body) = match served.engine.session(Caller::anyone()).health().await {
        Ok(health) => {
            let body = json!({
                "status": health.status.as_str(), "storage": health.storage, "detail": health.detail,
            });
            (health.status, body)
        }
        Err(error) => {
            let status = HealthStatus::Unhealthy;
            (status, json!({ "status": status.as_str(), "detail": error.to_string() }))
        }
    };
    let ready = status != HealthStatus::Unhealthy;
    json_answer(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

async fn wrong_method(method: Method) -> Response {
    let error = format!("{method} is not what this path takes; the header allow names what is");
    json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }))
}

fn json_answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn text(text: &Arc<str>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text.to_string()).into_response()
}
