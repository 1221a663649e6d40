//! Requests that are meant to exhaust time, memory or connections: each is refused with a type or
//! answered, and the server goes on in little memory.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use circuit_breaker::graphql::ErrorCode;
use serde_json::{Value, json};

use crate::bad_input::{Target, beginning, body, codes};
use crate::support::{
    Api, Backend, CREATE_TOKEN, CREATE_WORKFLOW, Client, FIRE, Server, review_input, runtime,
};

/// MiB that a server may take at its peak where no body is large in itself. 70 to 100 were measured in a
/// debug build.
const PEAK_MIB_MAX: u64 = 250;

/// What a server has taken in memory, `VmRSS` now or `VmHWM` at its peak, in MiB.
pub fn memory_mib(server: &Server, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1_024
}

/// `count` pieces, each made from its number.
fn many(count: usize, piece: impl Fn(usize) -> String) -> String {
    (0..count).map(piece).collect()
}

/// Queries that are short to write and long to answer, by name.
fn query_bombs() -> Vec<(&'static str, String)> {
    let of_type =
        |levels: usize| format!("{}name{}", "ofType { ".repeat(levels), " }".repeat(levels));
    let spread = |n: usize| {
        format!("fragment f{n} on Query {{ ...f{m} ...f{m} a: health {{ status }} }} ", m = n + 1)
    };
    vec![
        ("aliases", format!("{{ {} }}", many(4_000, |n| format!("a{n}: __typename ")))),
        ("aliases of a list", format!("{{ {} }}", many(900, |n| format!("a{n}: tokens {{ id data }} ")))),
        ("one field again and again", format!("{{ {} }}", "__typename ".repeat(5_000))),
        ("depth", format!("{}id{}", "{ a ".repeat(1_000), " }".repeat(1_000))),
        ("lists in a type", format!("query($v: {}Int{}) {{ health {{ status }} }}", "[".repeat(1_000), "]".repeat(1_000))),
        ("lists in a value", format!("{{ a(x: {}) }}", "[".repeat(30_000))),
        ("objects in a value", format!("{{ a(x: {}) }}", "{a:".repeat(20_000))),
        ("open braces", "{".repeat(65_536)),
        ("open brackets", "[".repeat(65_536)),
        ("open parentheses", format!("{{ a{}", "(".repeat(65_000))),
        ("closed braces", "}".repeat(65_536)),
        ("quotes", "\"".repeat(65_536)),
        ("backslashes", format!("{{ a(x: \"{}", "\\".repeat(65_000))),
        ("open block strings", format!("{{ a(x: {}", "\"\"\" ".repeat(16_001))),
        ("block strings", format!("{{ a({}) }}", many(6_000, |_| "x:\"\"\"\"\"\" ".to_owned()))),
        ("a comment", format!("{{ health {{ status }} # {}", "{".repeat(65_000))),
        ("comments", "#\n".repeat(32_000)),
        ("commas", ",".repeat(65_536)),
        ("a fragment of itself", "{ ...f } fragment f on Query { ...f }".to_owned()),
        ("a ring of fragments", format!("{{ ...f0 }} {}", many(50, |n| format!("fragment f{n} on Query {{ ...f{} }} ", (n + 1) % 50)))),
        ("exponential fragments", format!("{{ ...f0 }} {} fragment f60 on Query {{ health {{ status }} }}", many(60, spread))),
        ("unused exponential fragments", format!("{{ health {{ status }} }} {}", many(60, spread))),
        ("fragments", format!("{{ health {{ status }} }} {}", many(1_500, |n| format!("fragment f{n} on Query {{ __typename }} ")))),
        ("operations", many(2_000, |n| format!("query q{n} {{ __typename }} "))),
        ("directives", format!("{{ health {} {{ status }} }}", "@skip(if: false) ".repeat(1_000))),
        ("unknown directives", format!("{{ health {} {{ status }} }}", "@a ".repeat(20_000))),
        ("arguments", format!("{{ token({}) {{ id }} }}", many(8_000, |n| format!("a{n}:1 ")))),
        ("variables", format!("query({}) {{ health {{ status }} }}", many(4_000, |n| format!("$v{n}: Int ")))),
        ("defaults", format!("query({}) {{ health {{ status }} }}", many(99, |n| format!("$v{n}: [Nope!] = [1,2] ")))),
        ("a long name", format!("{{ {} }}", "a".repeat(65_000))),
        ("a long string", format!("{{ token(id: \"{}\") {{ id }} }}", "x".repeat(65_000))),
        ("a longer string", format!("{{ token(id: \"{}\") {{ id }} }}", "x".repeat(100_000))),
        ("a long number", format!("{{ tokenConnection(first: {}) {{ edges {{ cursor }} }} }}", "9".repeat(60_000))),
        ("a long list", format!("mutation {{ createToken(input: {{ workflowId: \"w\", id: [{}] }}) {{ id }} }}", "1 ".repeat(30_000))),
        ("wrong fields", format!("{{ {} }}", many(49, |n| format!("nope{n} {{ {} }} ", "a b c d e ".repeat(3))))),
        ("introspection in a ring", "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }".to_owned()),
        ("introspection by name", "{ __type(name: \"Query\") { fields { type { fields { args { type { inputFields { name } } } } } } } }".to_owned()),
        ("introspection again and again", format!("{{ {} }}", many(60, |n| format!("s{n}: __schema {{ types {{ fields {{ name }} }} }} ")))),
        ("types of types", format!("{{ __schema {{ types {{ {} }} }} }}", of_type(30))),
    ]
}

#[test]
fn query_bombs_are_refused_with_a_code() {
    let target = Target::start();
    let bombs = query_bombs();
    let refused = [ErrorCode::InvalidInput, ErrorCode::InvalidId, ErrorCode::QueryTooComplex]
        .map(ErrorCode::as_str);
    for (name, query) in &bombs {
        let (status, answer) =
            target.client.post("application/json", &body(query, &json!({}))).unwrap();
        assert_eq!(status, 200, "{name}");
        let codes = codes(&answer);
        assert!(refused.contains(&codes.as_str()), "{name}: {codes}: {}", beginning(&answer));
        assert!(answer.to_string().len() < 20_000, "{name}: {}", beginning(&answer));
    }
    // In a batch each counts for itself; more than ten are refused as one.
    let batch = |count: usize| {
        let requests: Vec<_> =
            bombs.iter().cycle().take(count).map(|(_, query)| json!({ "query": query })).collect();
        Value::from(requests).to_string().into_bytes()
    };
    let (status, answer) = target.client.post("application/json", &batch(10)).unwrap();
    assert_eq!((status, answer.as_array().map(Vec::len)), (200, Some(10)));
    assert!(!codes(&answer).contains("ok"));
    for count in [11, 50] {
        let (status, answer) = target.client.post("application/json", &batch(count)).unwrap();
        assert_eq!((status, codes(&answer).as_str()), (400, "QUERY_TOO_COMPLEX"), "{count}");
    }
    let nothing = format!("[{}]", vec!["{}"; 45_000].join(","));
    let (status, answer) = target.client.post("application/json", nothing.as_bytes()).unwrap();
    assert_eq!((status, codes(&answer).as_str()), (400, "QUERY_TOO_COMPLEX"));
    target.is_as_before();
    let peak = memory_mib(&target.server, "VmHWM:");
    assert!(peak < PEAK_MIB_MAX, "it took {peak} MiB");
}

/// Conditions that parser or evaluator could choke on, by name.
fn condition_bombs() -> Vec<(&'static str, String)> {
    let around = |open: &str, close: &str, count: usize| {
        format!("{}true{}", open.repeat(count), close.repeat(count))
    };
    vec![
        ("one byte too many", format!("true{}", " ".repeat(4_093))),
        ("open parentheses", "(".repeat(4_096)),
        ("open brackets", "[".repeat(4_096)),
        ("open braces", "{a:".repeat(1_300)),
        ("calls", around("size(", ")", 600)),
        ("choices", around("true ? true : ", "", 290)),
        ("members", format!("token{} == 1", ".a".repeat(2_000))),
        ("indexes", format!("token{} == 1", "[0]".repeat(1_300))),
        ("sums", format!("{}1 == 1", "1 + ".repeat(1_000))),
        ("loops in one another", around("token.data.all(x, ", ")", 60)),
        ("patterns", "input.x.matches('(a{1000}){1000}')".to_owned()),
        ("patterns of data", "input.x.matches(input.y)".to_owned()),
        ("an open pattern", format!("input.x.matches('{}')", "(".repeat(3_000))),
        ("quotes", "'".repeat(4_095)),
        ("NUL", "true\u{0}".to_owned()),
        ("nothing", String::new()),
    ]
}

#[test]
fn definitions_out_of_bounds_are_refused() {
    let api = Api::new(Backend::Memory);
    let changed = |path: &str, value: Value| {
        let mut input = review_input("large");
        input["transitions"][0]["conditions"] = json!(["true"]);
        *input.pointer_mut(path).unwrap() = value;
        input
    };
    let places: Vec<_> = review_input("w")["places"]
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .chain((0..998).map(|n| json!(format!("p{n}"))))
        .collect();
    let mut cases = vec![
        ("places", "TOO_LARGE", "places", changed("/places", json!(places))),
        (
            "conditions",
            "TOO_LARGE",
            "transitions[0].conditions",
            changed("/transitions/0/conditions", json!(vec!["true"; 100_000])),
        ),
    ];
    for (name, condition) in condition_bombs() {
        let input = changed("/transitions/0/conditions/0", json!(condition));
        cases.push((name, "INVALID_CONDITION", "transitions[0].conditions[0]", input));
    }
    for (name, problem, field, input) in cases {
        let error = runtime().block_on(api.ask(CREATE_WORKFLOW, json!({ "input": input })));
        let extensions = &error["errors"][0]["extensions"];
        assert_eq!(extensions["code"], "INVALID_WORKFLOW", "{name}: {}", beginning(&error));
        let problems = extensions["details"]["problems"].as_array().unwrap();
        let found = problems.iter().any(|p| p["problem"] == problem && p["field"] == field);
        assert!(found, "{name}: {}", beginning(&error));
        assert!(error.to_string().len() < 3_000, "{name} is repeated: {}", beginning(&error));
    }
    // Of very many problems the first 500 are listed.
    let wrong = json!({ "id": "go", "fromPlaces": vec!["nope"; 100], "toPlace": "nope" });
    let input = changed("/transitions", json!(vec![wrong; 1_000]));
    let error = runtime().block_on(api.error(CREATE_WORKFLOW, json!({ "input": input })));
    assert_eq!(error["extensions"]["details"]["problems"].as_array().map(Vec::len), Some(500));
    let all = runtime().block_on(api.everything());
    assert!(all.workflows.is_empty() && all.events.is_empty());
}

#[test]
fn a_loop_over_much_data_fails_and_changes_nothing() {
    runtime().block_on(async {
        let api = Api::new(Backend::Memory);
        for (id, condition) in [
            ("all", "token.data.all(x, x >= 0)"),
            ("text", "token.data.exists(x, string(x).contains('y'))"),
            ("nested", "token.data.all(x, token.data.all(y, y >= x))"),
            ("made", "token.data.map(x, [x, x]).size() > 0"),
            ("joined", "(token.data + token.data).size() > 0"),
            ("same", "token.data == input"),
        ] {
            let mut input = review_input(id);
            input["transitions"][0]["conditions"] = json!([condition]);
            api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
            let create = json!({ "input": { "workflowId": id, "data": vec![0; 490_000] } });
            let token = api.data(CREATE_TOKEN, create).await["createToken"]["id"].take();
            let text = vec!["x".repeat(64); 10_000];
            let input =
                json!({ "input": { "tokenId": token, "transitionId": "submit", "data": text } });
            let error = api.error(FIRE, input).await;
            // Lists of two lengths are told apart without a look into them.
            let expected = if id == "same" { "CONDITION_FALSE" } else { "QUERY_TOO_COMPLEX" };
            assert_eq!(codes(&json!({ "errors": [error] })), expected, "{condition}");
            let read = api
                .data(
                    "query($id: String!) { token(id: $id) { version place } }",
                    json!({ "id": token }),
                )
                .await;
            assert_eq!(read["token"], json!({ "version": 1, "place": "draft" }));
            // What may be done is as costly as to do it.
            let may = api
                .ask(
                    "query($id: String!) { availableTransitions(tokenId: $id) { id } }",
                    json!({ "id": token }),
                )
                .await;
            if id == "same" {
                assert_eq!(may["data"]["availableTransitions"], json!([{ "id": "edit" }]));
            } else {
                assert_eq!(codes(&may), "QUERY_TOO_COMPLEX");
            }
        }
    });
}

/// Bodies of the largest size that mean much work or much memory, from several clients at once.
#[test]
fn hammered_with_the_largest_bodies_the_server_stays_small() {
    let target = Target::start();
    let fill = (4 << 20) - 300;
    let query = "mutation($v: JSON) { createToken(input: { workflowId: \"w\", data: $v }) { id } }";
    let with = |data: String| {
        format!("{{\"query\":{},\"variables\":{{\"v\":{data}}}}}", json!(query)).into_bytes()
    };
    // As many values as a body may have, and far more.
    let list = |count: usize| with("[".to_owned() + &"12345678901,".repeat(count) + "0]");
    let bodies = [
        with(format!("\"{}\"", "x".repeat(fill))),
        list(99_000),
        list(fill / 13),
        with(format!("{{{}\"z\":0}}", many(49_000, |n| format!("\"k{n:020}\":0,",)))),
        with("[".repeat(fill)),
        with(format!("\"{}\"", "\\u0001".repeat(fill / 6))),
        format!("{{\"query\":{}}}", json!("{".repeat(fill))).into_bytes(),
        vec![b' '; 4 << 20],
    ];
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (bodies, target) = (&bodies, &target);
            scope.spawn(move || {
                let connection = target.server.client();
                for body in bodies.iter().cycle().skip(client * 4).take(bodies.len()) {
                    // On a machine that is busy otherwise, one may not have its turn in time, and asks
                    // again; in the end it is refused for what it is.
                    let deadline = Instant::now() + Duration::from_secs(60);
                    let codes = loop {
                        let answer = connection.post("application/json", body).unwrap();
                        assert!([200, 400, 413].contains(&answer.0), "{}", answer.0);
                        let codes = codes(&answer.1);
                        if codes != "STORAGE_UNAVAILABLE" || Instant::now() > deadline {
                            break codes;
                        }
                    };
                    assert!(
                        ["INVALID_INPUT", "PAYLOAD_TOO_LARGE", "QUERY_TOO_COMPLEX"]
                            .contains(&codes.as_str()),
                        "{codes}"
                    );
                }
            });
        }
    });
    target.is_as_before();
    // 360 to 460 MiB were measured in a debug build, however many clients there are.
    let peak = memory_mib(&target.server, "VmHWM:");
    assert!(peak < 900, "it took {peak} MiB");
}

#[test]
fn two_hundred_clients_that_are_wrong_at_once_all_hear_so() {
    let target = Target::start();
    let fire = |version: u32| json!({ "input": { "tokenId": target.token, "transitionId": "submit", "expectedVersion": version } });
    let requests = [
        (FIRE, fire(7), "CONFLICT"),
        (
            FIRE,
            json!({ "input": { "tokenId": target.token, "transitionId": "finish" } }),
            "TRANSITION_NOT_ALLOWED",
        ),
        (CREATE_TOKEN, json!({ "input": { "workflowId": "nope" } }), "WORKFLOW_NOT_FOUND"),
        (
            CREATE_TOKEN,
            json!({ "input": { "id": target.token, "workflowId": "w" } }),
            "TOKEN_EXISTS",
        ),
        ("{ nope }", json!({}), "INVALID_INPUT"),
    ];
    std::thread::scope(|scope| {
        for n in 0..200 {
            let (requests, server) = (&requests, &target.server);
            scope.spawn(move || {
                let client = server.client();
                for (query, variables, expected) in requests.iter().cycle().skip(n % 5).take(5) {
                    assert_eq!(codes(&client.ask(query, variables).unwrap()), *expected);
                }
            });
        }
    });
    target.is_as_before();
    let peak = memory_mib(&target.server, "VmHWM:");
    assert!(peak < PEAK_MIB_MAX, "it took {peak} MiB");
}

#[test]
fn slow_clients_do_not_keep_others_waiting() {
    let target = Target::start();
    let request = "{\"query\":\"{ health { status } }\"}";
    let head = format!(
        "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        request.len()
    );
    let open = || TcpStream::connect(&target.server.address).unwrap();
    let (mut in_head, mut in_body): (Vec<_>, Vec<_>) = (0..50).map(|_| (open(), open())).unzip();
    for stream in &mut in_body {
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&request.as_bytes()[..10]).unwrap();
    }
    for byte in head.as_bytes()[..40].chunks(1) {
        for stream in &mut in_head {
            stream.write_all(byte).unwrap();
        }
        assert_eq!(target.client.get("/health/live").0, 200);
    }
    let other = Client::new(&target.server.address);
    assert_eq!(codes(&other.ask("{ tokens { id } }", &json!({})).unwrap()), "ok");
    target.is_as_before();
    // They are answered, too, once they have said all.
    for (stream, rest) in [
        (&mut in_head[0], format!("{}{request}", &head[40..])),
        (&mut in_body[0], request[10..].to_owned()),
    ] {
        stream.write_all(rest.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

/// Every input type may be that of a variable with a default; of unknown ones the library panics.
/// A hundred traps behind a long way, to each of which the whole way could be shown.
#[test]
fn the_paths_of_warnings_are_bounded_together() {
    let name = |kind: &str, n: usize| format!("{kind}{n}{}", "x".repeat(100));
    let way = |id: String, from: usize, to: usize| json!({ "id": id, "fromPlaces": [name("p", from)], "toPlace": name("p", to) });
    let chain = (0..590).map(|n| way(name("t", n), n, n + 1));
    let into = (591..699).map(|n| way(name("u", n), 590, n));
    let traps = (591..699).map(|n| way(name("v", n), n, n));
    let end = way("end".to_owned(), 590, 699);
    let transitions: Vec<_> = chain.chain(into).chain(traps).chain([end]).collect();
    let places: Vec<_> = (0..700).map(|n| name("p", n)).collect();
    let input = json!({ "id": "w", "name": "w", "initialPlace": places[0], "places": places, "transitions": transitions });
    runtime().block_on(async {
        let api = Api::new(Backend::Memory);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let ask = |times: usize| {
            let fields: String = (0..times)
                .map(|n| format!("a{n}: workflow(id: \"w\") {{ warnings {{ path }} }} "))
                .collect();
            format!("{{ {fields} }}")
        };
        let few = api.data(&ask(1), json!({})).await["a0"]["warnings"].take();
        let paths: Vec<_> =
            few.as_array().unwrap().iter().map(|w| w["path"].as_array().unwrap().len()).collect();
        assert_eq!((paths.len(), paths[0], paths[99]), (100, 1_183, 1), "{paths:?}");
        assert!(paths.iter().sum::<usize>() <= 2_100, "{paths:?}");
        let many = api.ask(&ask(50), json!({})).await;
        assert!(many["errors"].is_null() && many.to_string().len() < 16 << 20);
    });
}

/// `getIntrospectionQuery()` of graphql-js 16, as GraphiQL sends it.
const INTROSPECTION: &str = "query IntrospectionQuery { __schema {
    queryType { name } mutationType { name } subscriptionType { name } types { ...FullType }
    directives { name description locations args { ...InputValue } } } }
  fragment FullType on __Type { kind name description
    fields(includeDeprecated: true) { name description args { ...InputValue } type { ...TypeRef } isDeprecated deprecationReason }
    inputFields { ...InputValue } interfaces { ...TypeRef }
    enumValues(includeDeprecated: true) { name description isDeprecated deprecationReason } possibleTypes { ...TypeRef } }
  fragment InputValue on __InputValue { name description type { ...TypeRef } defaultValue }
  fragment TypeRef on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name
    ofType { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } } } } } } }";

#[test]
fn graphiql_s_introspection_is_answered() {
    let api = Api::new(Backend::Memory);
    let all = INTROSPECTION
        .replace("subscriptionType { name } types", "subscriptionType { name } description types")
        .replace(
            "kind name description\n    fields",
            "kind name description specifiedByURL\n    fields",
        )
        .replace("directives { name description", "directives { name description isRepeatable");
    assert_eq!(all.len(), INTROSPECTION.len() + 40, "each was put in");
    let read = runtime().block_on(api.data(&all, json!({})));
    let types = read["__schema"]["types"].as_array().unwrap();
    for name in ["Query", "Mutation", "NATSToken", "TokenCreateInput", "JSON"] {
        assert!(types.iter().any(|t| t["name"] == name), "{name}");
    }
    runtime().block_on(api.data(INTROSPECTION, json!({})));
}
