//! What stands around GraphQL: paths, methods, content types, sizes, health.

use std::io::{Read, Write};
use std::net::TcpStream;

use circuit_breaker::http::{Hosts, router};
use serde_json::{Value, json};

use crate::nats_server::NatsServer;
use crate::support::{Backend, CREATE_TOKEN, CREATE_WORKFLOW, Client, FIRE, Server, review_input};

fn memory_server() -> Server {
    Server::start(&[("STORAGE_BACKEND", "memory")])
}

fn code(answer: &Value) -> &str {
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer:#}");
    answer["errors"][0]["extensions"]["code"].as_str().unwrap()
}

#[test]
fn every_path_answers_as_the_readme_says() {
    let server = memory_server();
    let client = server.client();
    for (path, status, contains) in [
        ("/", 200, "<title>Circuit Breaker: GraphiQL</title>"),
        ("/graphiql/start.js", 200, "createFetcher"),
        ("/graphiql/react.js", 200, "React"),
        ("/graphiql/react-dom.js", 200, "ReactDOM"),
        ("/graphiql/graphiql.js", 200, "GraphiQL"),
        ("/graphiql/graphiql.css", 200, ".graphiql"),
        ("/health/live", 200, r#"{"status":"alive"}"#),
        ("/health/ready", 200, r#"{"status":"HEALTHY","storage":"memory","detail":null}"#),
        ("/schema.graphql", 200, "type Query"),
        ("/metrics", 200, "circuit_breaker_storage_health 1"),
        ("/nothing/here", 404, "/health/ready"),
        ("/..%2f..%2fetc%2fpasswd", 404, "nothing at this path"),
    ] {
        let (got, body) = client.get(path);
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.contains(contains), "{path}: {}", &body[..body.len().min(300)]);
    }
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let server = memory_server();
    let (_, page) = server.client().get("/");
    assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    let loads: Vec<_> = page
        .split(['"'])
        .filter(|part| part.starts_with('/') && (part.ends_with(".js") || part.ends_with(".css")))
        .collect();
    assert_eq!(loads.len(), 5, "{page}");
    for path in loads {
        assert_eq!(server.client().get(path).0, 200, "{path}");
    }
}

#[test]
fn a_query_may_come_by_get_and_a_mutation_may_not() {
    let server = memory_server();
    let client = server.client();
    let get = |query: &str| {
        let (status, body) = client.get(&format!("/graphql?{query}"));
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let health = json!({ "data": { "health": { "storage": "memory" } } });
    assert_eq!(get("query=%7Bhealth%7Bstorage%7D%7D"), (200, health.clone()));
    let named = "query=query%20A%7Bhealth%7Bstorage%7D%7Dmutation%20B%7BcreateToken(input:%7BworkflowId:%22w%22%7D)%7Bid%7D%7D&operationName=A";
    assert_eq!(get(named), (200, health));
    let variable = "query=query(%24id:String!)%7Bworkflow(id:%24id)%7Bid%7D%7D&variables=%7B%22id%22:%22w%22%7D";
    assert_eq!(get(variable), (200, json!({ "data": { "workflow": null } })));

    let mutation = "query=mutation%7BcreateToken(input:%7BworkflowId:%22w%22%7D)%7Bid%7D%7D";
    let (status, answer) = get(mutation);
    assert_eq!((status, code(&answer)), (405, "INVALID_INPUT"));
    for (wrong, status) in
        [("", 400), ("query=%7B", 200), ("query=%7Ba%7D&variables=%5B%5D", 400), ("query=%FF", 200)]
    {
        let (got, answer) = get(wrong);
        assert_eq!((got, code(&answer)), (status, "INVALID_INPUT"), "{wrong}");
    }
}

#[test]
fn only_json_is_taken_by_post() {
    let server = memory_server();
    let client = server.client();
    let body = json!({ "query": "{ health { status } }" }).to_string();
    for kind in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(client.post(kind, body.as_bytes()).unwrap().0, 200, "{kind}");
    }
    // What a page of another origin can send without being asked for leave.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"] {
        let (status, answer) = client.post(kind, body.as_bytes()).unwrap();
        assert_eq!((status, code(&answer)), (415, "INVALID_INPUT"), "{kind}");
    }
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for wrong in ["", "nonsense", "[]", "3", "null", r#"{"query":3}"#, "[{}, 1]", "\u{0}", &deep] {
        let (status, answer) = client.post("application/json", wrong.as_bytes()).unwrap();
        assert_eq!((status, code(&answer)), (400, "INVALID_INPUT"), "{wrong:.40}");
    }
    let (status, answer) = client.post("application/json", b"\xff\xfe{}").unwrap();
    assert_eq!((status, code(&answer)), (400, "INVALID_INPUT"));
}

#[test]
fn a_batch_is_answered_in_its_order_and_bounded() {
    let server = memory_server();
    let client = server.client();
    let post =
        |batch: &Value| client.post("application/json", batch.to_string().as_bytes()).unwrap();
    let create = "mutation($i: WorkflowDefinitionInput!) { createWorkflow(input: $i) { id } }";
    let (status, answer) = post(&json!([
        { "query": create, "variables": { "i": review_input("w") } },
        { "query": "{ workflow(id: \"w\") { id } }" },
        { "query": "{ nonsense }" },
    ]));
    assert_eq!(status, 200);
    assert_eq!(answer[0]["data"]["createWorkflow"]["id"], "w");
    assert_eq!(answer[1]["data"]["workflow"]["id"], "w", "each sees what those before it wrote");
    assert_eq!(code(&answer[2]), "INVALID_INPUT");
    let request = json!({ "query": "{ health { status } }" });
    assert_eq!(post(&json!(vec![&request; 10])).1.as_array().map(Vec::len), Some(10));
    assert_eq!(code(&post(&json!(vec![&request; 11])).1), "QUERY_TOO_COMPLEX");
}

#[test]
fn a_body_over_the_limit_is_refused_with_and_without_a_length() {
    let server = memory_server();
    let body = vec![b' '; (4 << 20) + 1];
    let (status, answer) = server.client().post("application/json", &body).unwrap();
    assert_eq!((status, code(&answer)), (413, "PAYLOAD_TOO_LARGE"));

    // In chunks, nobody says beforehand how long it will be.
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    for _ in 0..5 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[test]
fn a_body_of_too_many_values_is_refused_and_text_is_not_counted_as_such() {
    let server = memory_server();
    let post = |data: String| {
        let body =
            format!(r#"{{"query":"{{ health {{ storage }} }}","variables":{{"v":{data}}}}}"#);
        let (status, answer) = server.client().post("application/json", body.as_bytes()).unwrap();
        (status, answer.get("errors").map(|_| code(&answer).to_owned()))
    };
    let too_many = (413, Some("PAYLOAD_TOO_LARGE".to_owned()));
    assert_eq!(post(format!("[{}0]", "0,".repeat(99_000))), (200, None));
    assert_eq!(post(format!("[{}0]", "0,".repeat(100_000))), too_many);
    assert_eq!(post(format!("[{}0]", "[],".repeat(250_000))), too_many);
    assert_eq!(post(format!("{{{}\"z\":0}}", "\"k\":0,".repeat(250_000))), too_many);
    assert_eq!(post(format!("\"{}\"", ",[{\\\",".repeat(500_000))), (200, None));
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let server = memory_server();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!("GET /graphql?query={} HTTP/1.1\r\n", "x".repeat(70_000));
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[test]
fn what_is_not_http_does_not_hurt() {
    let server = memory_server();
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", &[0xff; 100_000]] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let mut answer = Vec::new();
        // The server may hang up in the middle of it.
        if stream.write_all(bytes).is_ok() && stream.shutdown(std::net::Shutdown::Write).is_ok() {
            drop(stream.read_to_end(&mut answer));
        }
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
    assert_eq!(server.client().get("/health/live").0, 200);
}

#[test]
fn a_store_that_does_not_work_makes_the_server_not_ready() {
    let storage = std::sync::Arc::new(circuit_breaker::InMemoryStorage::new());
    let engine = std::sync::Arc::new(circuit_breaker::engine::Engine::new(storage.clone()));
    let runtime = crate::support::runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let client = Client::new(&listener.local_addr().unwrap().to_string());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = runtime.spawn(circuit_breaker::http::serve(
        listener,
        router(engine, Hosts::default(), None),
        async {
            drop(stopped.await);
        },
    ));
    assert_eq!(client.get("/health/ready").0, 200);
    runtime.block_on(circuit_breaker::storage::WorkflowStorage::close(&*storage));
    let (status, body) = client.get("/health/ready");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("UNHEALTHY") && body.contains("closed"), "{body}");
    assert_eq!(client.get("/health/live").0, 200, "it lives all the same");
    drop(client);
    stop.send(()).unwrap();
    runtime.block_on(serving).unwrap();
}

/// The value of a figure.
fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("circuit_breaker_{name} ")));
    line.unwrap_or_else(|| panic!("{name} is missing:\n{text}")).parse().unwrap()
}

#[test]
fn metrics_count_what_was_asked_for_and_tell_how_the_store_does() {
    for backend in Backend::all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.db");
        let nats = (backend == Backend::Nats).then(|| NatsServer::start().unwrap());
        let url = nats.as_ref().map(NatsServer::url).unwrap_or_default();
        let variables = match backend {
            Backend::Memory => vec![("STORAGE_BACKEND", "memory")],
            Backend::Sqlite => vec![("SQLITE_PATH", path.to_str().unwrap())],
            _ => vec![("STORAGE_BACKEND", "nats"), ("NATS_URL", url.as_str())],
        };
        let server = Server::start(&variables);
        let client = server.client();
        client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        client.ask(CREATE_TOKEN, &json!({ "input": { "id": id, "workflowId": "w" } })).unwrap();
        for transition in ["submit", "submit", "reject"] {
            let input = json!({ "tokenId": id, "transitionId": transition });
            client.ask(FIRE, &json!({ "input": input })).unwrap();
        }
        let (status, text) = client.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let fired = |outcome: &str| {
            figure(&text, &format!("writes_total{{operation=\"fire\",outcome=\"{outcome}\"}}"))
        };
        assert_eq!((fired("done"), fired("refused"), fired("failed")), (2.0, 1.0, 0.0), "{text}");
        assert_eq!(figure(&text, "storage_health"), 1.0);
        assert!(figure(&text, "write_seconds_total{operation=\"fire\"}") > 0.0);
        match backend {
            Backend::Memory => assert!(figure(&text, "memory_bytes") > 100.0),
            Backend::Sqlite => assert!(figure(&text, "sqlite_file_bytes") > 100.0),
            _ => {
                assert_eq!(figure(&text, "nats_connected"), 1.0);
                assert!(figure(&text, "nats_stream_messages") >= 6.0, "{text}");
            }
        }
        for line in text.lines() {
            assert!(line.starts_with("# ") || line.starts_with("circuit_breaker_"), "{line}");
        }
    }
}

#[test]
fn metrics_can_be_left_out() {
    let server = Server::start(&[("STORAGE_BACKEND", "memory"), ("METRICS_ENABLED", "false")]);
    let (status, body) = server.client().get("/metrics");
    assert_eq!(status, 404);
    assert!(body.contains("/health/ready") && !body.contains("/metrics"), "{body}");
}

#[test]
fn another_method_is_told_what_the_path_takes() {
    let server = memory_server();
    for (path, method, allowed) in [
        ("/graphql", "PUT", "GET,HEAD,POST"),
        ("/", "POST", "GET,HEAD"),
        ("/health/live", "DELETE", "GET,HEAD"),
    ] {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let (mut stream, mut answer) =
            (TcpStream::connect(&server.address).unwrap(), String::new());
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains(&format!("allow: {allowed}\r\n")), "{answer}");
        assert!(answer.contains(&format!("{method} is not what this path takes")), "{answer}");
    }
}
