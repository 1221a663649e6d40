//! Clients that let the server wait, and large ones, keep nobody else out: see the table in ARCHITECTURE.md.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bad_input::{Target, codes};
use crate::support::{CREATE_TOKEN, CREATE_WORKFLOW, Client, Server};

/// Time for somebody to get in at last; a stuck client has to leave after two seconds.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// As many connections as there are places.
const PLACES: usize = 1_024;

fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(&server.address).unwrap()
}

fn head(bytes: usize) -> String {
    format!(
        "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
    )
}

fn creation(bytes: usize) -> Vec<u8> {
    let query =
        "mutation($d: JSON) { createToken(input: { workflowId: \"w\", data: $d }) { version } }";
    let variables = json!({ "d": { "text": "x".repeat(bytes) } });
    json!({ "query": query, "variables": variables }).to_string().into_bytes()
}

/// What a request is told that is sent on a connection of its own; none if that is closed.
fn told(server: &Server, body: &[u8]) -> Option<String> {
    let answer = Client::new(&server.address).post("application/json", body).ok()?;
    Some(codes(&answer.1))
}

/// Sends it again until it is let in.
fn until_let_in(server: &Server, body: &[u8]) {
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match told(server, body).as_deref() {
            Some("ok") => return,
            None | Some("STORAGE_UNAVAILABLE") => {}
            Some(other) => panic!("{other}"),
        }
        assert!(Instant::now() < deadline, "nobody has left");
    }
}

/// How a client lets the server wait.
type Way = fn(&mut TcpStream);

/// Fills all places with connections that let the server wait in this way.
fn fill(server: &Server, say: impl Fn(&mut TcpStream)) -> Vec<TcpStream> {
    let mut all: Vec<_> = (0..PLACES).map(|_| connect(server)).collect();
    all.iter_mut().for_each(say);
    all
}

#[test]
fn connections_that_let_the_server_wait_keep_nobody_out() {
    let ways: [(&str, Way); 3] = [
        ("idle", |_| {}),
        ("a part of a head", |stream| stream.write_all(&head(9).as_bytes()[..40]).unwrap()),
        ("a part of a body", |stream| {
            stream.write_all(head(90).as_bytes()).unwrap();
            stream.write_all(b"{\"query\"").unwrap();
        }),
    ];
    for (name, way) in ways {
        let target = Target::start();
        let stuck = fill(&target.server, way);
        // Probes are let in at once, beside all the others.
        for path in ["/health/live", "/health/ready", "/metrics"] {
            assert_eq!(Client::new(&target.server.address).get(path).0, 200, "{name}: {path}");
        }
        until_let_in(&target.server, &creation(10));
        drop(stuck);
    }
}

/// All places are taken by requests whose conditions take long, of which two are calculated at once.
#[test]
fn a_probe_is_let_in_while_all_places_are_worked_on() {
    let target = Target::start();
    let transitions: Vec<_> = (0..200)
        .map(|n| {
            let conditions = ["token.data.l.all(x, x >= 0)"; 4];
            json!({ "id": format!("t{n}"), "fromPlaces": ["a"], "toPlace": "a", "conditions": conditions })
        })
        .collect();
    let definition = json!({
        "id": "long", "name": "Long", "places": ["a"], "initialPlace": "a", "transitions": transitions,
    });
    let created = target.client.ask(CREATE_WORKFLOW, &json!({ "input": definition })).unwrap();
    assert_eq!(codes(&created), "ok");
    let input = json!({ "workflowId": "long", "data": { "l": vec![1; 5_000] } });
    let created = target.client.ask(CREATE_TOKEN, &json!({ "input": input })).unwrap();
    let token = created["data"]["createToken"]["id"].as_str().unwrap();
    let query = "query($t: String!) { availableTransitions(tokenId: $t) { id } }";
    let body = json!({ "query": query, "variables": { "t": token } }).to_string();
    let request = format!("{}{body}", head(body.len()));
    let working = fill(&target.server, |stream| stream.write_all(request.as_bytes()).unwrap());
    for path in ["/health/live", "/health/ready", "/metrics"] {
        assert_eq!(Client::new(&target.server.address).get(path).0, 200, "{path}");
    }
    // Where one has been answered in between, its place is free.
    let (status, answer) =
        Client::new(&target.server.address).post("application/json", &creation(10)).unwrap();
    let codes = codes(&answer);
    match status {
        200 => assert_eq!(codes, "ok"),
        _ => assert_eq!((status, codes.as_str()), (503, "STORAGE_UNAVAILABLE"), "{answer}"),
    }
    drop(working);
    until_let_in(&target.server, &creation(10));
}

/// Eight large bodies take all room for such.
#[test]
fn large_bodies_that_do_not_come_keep_no_other_one_out() {
    let target = Target::start();
    let part = vec![b' '; 200 << 10];
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(&target.server);
        stream.write_all(head(4 << 20).as_bytes()).unwrap();
        stream.write_all(&part).unwrap();
        slow.push(stream);
    }
    assert_eq!(
        told(&target.server, &creation(10)).as_deref(),
        Some("ok"),
        "a small one waits for none"
    );
    until_let_in(&target.server, &creation(200 << 10));
    drop(slow);
}

/// Padded ones wait for each other, and nobody else for them.
#[test]
fn requests_of_a_small_or_medium_size_wait_for_no_large_one() {
    let target = Target::start();
    let query = json!({ "query": "{ health { status } }" }).to_string();
    let padded = format!("{query}{}", " ".repeat((4 << 20) - query.len()));
    std::thread::scope(|scope| {
        let server = &target.server;
        let large: Vec<_> = (0..16)
            .map(|_| {
                let padded = padded.as_bytes();
                scope.spawn(move || told(server, padded))
            })
            .collect();
        while !large.iter().all(|one| one.is_finished()) {
            assert_eq!(told(server, query.as_bytes()).as_deref(), Some("ok"));
            assert_eq!(told(server, &creation(100 << 10)).as_deref(), Some("ok"));
        }
        for one in large {
            assert_eq!(one.join().unwrap().as_deref(), Some("ok"));
        }
    });
}

/// Answers of 13 MB that nobody takes fill the room for such.
#[test]
fn answers_that_are_not_taken_keep_no_other_one_out() {
    let target = Target::start();
    let created = target.client.post("application/json", &creation(900_000)).unwrap();
    assert_eq!(codes(&created.1), "ok");
    let found = target
        .client
        .ask("{ tokenConnection(first: 2) { edges { node { id version } } } }", &json!({}));
    let found = found.unwrap();
    let id = found["data"]["tokenConnection"]["edges"][1]["node"]["id"].as_str().unwrap();
    let aliases: String =
        (0..14).map(|n| format!("a{n}: token(id: \\\"{id}\\\") {{ data }} ")).collect();
    let body = format!("{{\"query\":\"{{ {aliases} }}\"}}");
    let mut unread = Vec::new();
    for _ in 0..12 {
        let mut stream = connect(&target.server);
        stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).unwrap();
        unread.push(stream);
    }
    for _ in 0..3 {
        until_let_in(&target.server, body.as_bytes());
    }
    // Whoever takes his answer, if late, has all of it or sees that it was cut.
    let mut whole = 0;
    for mut stream in unread {
        let mut answer = Vec::new();
        stream.shutdown(Shutdown::Write).unwrap();
        if stream.read_to_end(&mut answer).is_ok() && answer.ends_with(b"}}") {
            let start = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            let answer: Value = serde_json::from_slice(&answer[start..]).unwrap();
            assert!(["ok", "STORAGE_UNAVAILABLE"].contains(&codes(&answer).as_str()));
            whole += 1;
        }
    }
    assert!(whole < 12, "all of them were held");
}

/// A page of another site that has its name lead to this server (DNS rebinding) is told so by its browser.
#[test]
fn a_request_by_another_name_is_refused() {
    let server = Server::start(&[
        ("STORAGE_BACKEND", "memory"),
        ("ALLOWED_HOSTS", "orders.example, b.example"),
    ]);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let query = "/graphql?query=%7Bhealth%7Bstatus%7D%7D";
    for (path, headers, status) in [
        (query, format!("host: localhost:{port}"), 200),
        (query, format!("host: 127.0.0.1:{port}"), 200),
        (query, "host: Orders.Example".to_owned(), 200),
        (query, "host: b.example:443\r\norigin: https://orders.example".to_owned(), 200),
        (query, "host: localhost\r\norigin: http://localhost:3000".to_owned(), 200),
        (query, format!("host: evil.example:{port}"), 421),
        (query, "host: localhost\r\norigin: http://evil.example".to_owned(), 421),
        (query, "host: localhost\r\norigin: null".to_owned(), 421),
        ("/", "host: evil.example".to_owned(), 421),
        ("/schema.graphql", "host: evil.example".to_owned(), 421),
        ("/metrics", "host: evil.example".to_owned(), 421),
        ("http://evil.example/graphql?query=%7B__typename%7D", "host: localhost".to_owned(), 421),
        ("/health/live", "host: probe.internal".to_owned(), 200),
        ("/health/ready", "host: probe.internal".to_owned(), 200),
    ] {
        let mut stream = connect(&server);
        let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {headers}: {answer}");
        if status == 421 {
            assert!(
                answer.contains("ALLOWED_HOSTS") && answer.contains("INVALID_INPUT"),
                "{answer}"
            );
        }
    }
}
