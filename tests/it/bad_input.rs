//! What a hostile or broken client sends: every answer is typed, nothing is left behind, others are
//! served. What is meant to exhaust the server is in `bombs`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::support::{Api, Backend, CREATE_WORKFLOW, Client, Server, review_input, runtime};

/// A server over SQLite with the review workflow `w` and one token, and what it says it stores.
pub struct Target {
    pub server: Server,
    pub client: Client,
    pub token: String,
    before: Value,
    _folder: tempfile::TempDir,
}

const EVERYTHING: &str = "{ workflows { id name places transitions { id } updatedAt }
    tokens { id workflowId place version data metadata updatedAt history { transition } } }";

impl Target {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let server = Server::start(&[("SQLITE_PATH", path.to_str().unwrap())]);
        let client = server.client();
        let created = client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
        assert!(created.get("errors").is_none(), "{created:#}");
        let create =
            "mutation { createToken(input: { workflowId: \"w\", data: { n: 1 } }) { id } }";
        let created = client.ask(create, &json!({})).unwrap();
        let token = created["data"]["createToken"]["id"].as_str().unwrap().to_owned();
        let before = client.ask(EVERYTHING, &json!({})).unwrap();
        Self { server, client, token, before, _folder: folder }
    }

    /// Posts bodies and compares status and codes with what is expected; then nothing may have changed.
    pub fn check(&self, cases: &[(&str, &str, Vec<u8>)]) {
        let mut wrong = String::new();
        for (name, expected, body) in cases {
            let (status, answer) = self.client.post("application/json", body).unwrap();
            let got = format!("{status} {}", codes(&answer));
            let shown = beginning(&answer);
            if got != *expected {
                writeln!(wrong, "{name}: {got}, not {expected}: {shown}").unwrap();
            }
        }
        assert!(wrong.is_empty(), "\n{wrong}");
        self.is_as_before();
    }

    /// It lives and holds what it held.
    pub fn is_as_before(&self) {
        assert_eq!(self.client.get("/health/live").0, 200);
        assert_eq!(self.client.get("/health/ready").0, 200);
        assert_eq!(self.client.ask(EVERYTHING, &json!({})).unwrap(), self.before);
    }
}

/// The codes of an answer or of a batch of them, each once and `ok` without one. Every error must
/// be typed.
pub fn codes(answer: &Value) -> String {
    let answers = answer.as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
    let mut codes = Vec::new();
    for answer in answers {
        let errors = answer.get("errors").and_then(Value::as_array).cloned().unwrap_or_default();
        for error in &errors {
            let extensions = &error["extensions"];
            assert!(extensions["retryable"].is_boolean(), "{answer:#}");
            assert!(!error["message"].as_str().unwrap().is_empty(), "{answer:#}");
            codes.push(
                extensions["code"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned(),
            );
        }
        if errors.is_empty() {
            assert!(answer.get("data").is_some(), "{answer:#}");
            codes.push("ok".to_owned());
        }
    }
    codes.dedup();
    codes.join(" ")
}

/// The beginning of an answer, as a failed test shows it.
pub fn beginning(answer: &Value) -> String {
    answer.to_string().chars().take(500).collect()
}

/// A body with a query and variables.
pub fn body(query: &str, variables: &Value) -> Vec<u8> {
    json!({ "query": query, "variables": variables }).to_string().into_bytes()
}

/// A body that creates a token; the data is text, so that it can be what is not JSON.
fn creation(data: &str) -> Vec<u8> {
    let query =
        "mutation($v: JSON) { createToken(input: { workflowId: \\\"w\\\", data: $v }) { id } }";
    format!("{{\"query\":\"{query}\",\"variables\":{{\"v\":{data}}}}}").into_bytes()
}

fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_body_that_is_not_a_request_is_refused_whole() {
    let target = Target::start();
    let health = "\"query\":\"{ health { status } }\"";
    let of = |text: &str| text.as_bytes().to_vec();
    target.check(&[
        ("65 deep", "200 INVALID_INPUT", creation(&nested(65))),
        ("110 deep", "200 INVALID_INPUT", creation(&nested(110))),
        ("5,000 deep", "400 INVALID_INPUT", creation(&nested(5_000))),
        ("90,000 deep", "400 INVALID_INPUT", creation(&nested(90_000))),
        ("open at 45,000", "400 INVALID_INPUT", creation(&"{\"a\":".repeat(45_000))),
        (
            "deep extensions",
            "400 INVALID_INPUT",
            of(&format!("{{{health},\"extensions\":{{\"a\":{}}}}}", nested(5_000))),
        ),
        ("deep unknown", "200 ok", of(&format!("{{{health},\"unknown\":{}}}", nested(90_000)))),
        ("1e400", "400 INVALID_INPUT", creation("1e400")),
        ("1e-400", "400 INVALID_INPUT", creation("1e-400")),
        ("over 64 bits", "400 INVALID_INPUT", creation("{\"n\":[18446744073709551616]}")),
        ("over a double", "400 INVALID_INPUT", creation("0.12345678901234567890")),
        ("-1e400", "400 INVALID_INPUT", creation("[-1e400]")),
        ("NaN", "400 INVALID_INPUT", creation("NaN")),
        ("01", "400 INVALID_INPUT", creation("01")),
        ("lone surrogate", "400 INVALID_INPUT", creation("\"\\ud800\"")),
        ("lone low surrogate", "400 INVALID_INPUT", creation("{\"\\udc00\":1}")),
        (
            "surrogate in a query",
            "400 INVALID_INPUT",
            of("{\"query\":\"{ token(id: \\\"\\ud800\\\") { id } }\"}"),
        ),
        ("not UTF-8", "400 INVALID_INPUT", [&b"{\"query\":\""[..], b"\xc3\x28", b"\"}"].concat()),
        (
            "overlong UTF-8",
            "400 INVALID_INPUT",
            [&b"{\"query\":\""[..], b"\xc0\x80", b"\"}"].concat(),
        ),
        ("byte order mark", "200 ok", of(&format!("\u{feff}{{{health}}}"))),
        (
            "raw newline in a string",
            "400 INVALID_INPUT",
            of("{\"query\":\"{ health \n{ status } }\"}"),
        ),
        ("one key twice", "400 INVALID_INPUT", of(&format!("{{{health},{health}}}"))),
        ("two values", "400 INVALID_INPUT", of(&format!("{{{health}}}{{{health}}}"))),
        ("a list of lists", "400 INVALID_INPUT", of(&format!("[[{{{health}}}]]"))),
        ("variables as a list", "400 INVALID_INPUT", of(&format!("{{{health},\"variables\":[]}}"))),
        (
            "variables as a string",
            "400 INVALID_INPUT",
            of(&format!("{{{health},\"variables\":\"{{}}\"}}")),
        ),
        ("variables null", "200 ok", of(&format!("{{{health},\"variables\":null}}"))),
        ("operationName 3", "400 INVALID_INPUT", of(&format!("{{{health},\"operationName\":3}}"))),
        ("query null", "400 INVALID_INPUT", of("{\"query\":null}")),
        ("no query", "400 INVALID_INPUT", of("{\"variables\":{}}")),
    ]);
}

/// Numbers, odd strings, and keys as they are sent, and as they come back.
#[test]
fn what_is_accepted_comes_back_as_it_was_sent() {
    let target = Target::start();
    for (sent, back) in [
        ("0.1", "0.1"),
        ("1.0", "1.0"),
        ("-0", "-0.0"),
        ("5e-324", "5e-324"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1e20", "1e+20"),
        (r#""\u0000""#, r#""\u0000""#),
        (r#"{"\u0000":"a\u0000b"}"#, r#"{"\u0000":"a\u0000b"}"#),
        (r#"{"":{"":[]}}"#, r#"{"":{"":[]}}"#),
        (r#""\ud83c\udf88\uffff\u202e""#, "\"🎈\u{ffff}\u{202e}\""),
        (r#"{"__proto__":1,"$where":"1","a.b":"*"}"#, r#"{"__proto__":1,"$where":"1","a.b":"*"}"#),
        // Of a key that comes twice the last value counts, as it does for most readers of JSON.
        (r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#),
    ] {
        let (status, answer) = target.client.post("application/json", &creation(sent)).unwrap();
        assert_eq!((status, codes(&answer).as_str()), (200, "ok"), "{sent}: {answer:#}");
        let read = format!("{{ token(id: {}) {{ data }} }}", answer["data"]["createToken"]["id"]);
        let read = target.client.ask(&read, &json!({})).unwrap();
        assert_eq!(read["data"]["token"]["data"].to_string(), back, "{sent}");
    }
}

/// Ids that would mean something to a file system, a database or a bus.
pub const HOSTILE_IDS: [&str; 13] = [
    "",
    ".",
    "..",
    "*",
    ">",
    "a b",
    "a\u{0}b",
    "\r\n",
    "é",
    "$JS.API",
    "../../etc/passwd",
    "w' OR '1'='1",
    "w\"",
];

/// Each place of a request where an id may stand.
pub const QUERIES_WITH_AN_ID: [&str; 9] = [
    "query($id: String!) { token(id: $id) { id } }",
    "query($id: String!) { workflow(id: $id) { id } }",
    "query($id: String!) { tokens(workflowId: $id) { id } }",
    "query($id: String!) { tokensInPlace(workflowId: \"w\", placeId: $id) { id } }",
    "mutation($id: String!) { createToken(input: { id: $id, workflowId: \"w\" }) { id } }",
    "mutation($id: String!) { createToken(input: { workflowId: \"w\", initialPlace: $id }) { id } }",
    "mutation($id: String!) { createWorkflow(input: { id: $id, name: \"W\", places: [\"a\"], transitions: [], initialPlace: \"a\" }) { id } }",
    "mutation($id: String!) { createWorkflow(input: { name: \"W\", places: [\"a\", $id], transitions: [], initialPlace: \"a\" }) { id } }",
    "mutation($id: String!) { transitionTokenWithNats(input: { tokenId: \"01890a5d-ac96-774b-bcce-b302099a8057\", transitionId: \"submit\", newPlace: $id }) { id } }",
];

#[test]
fn hostile_ids_and_texts_reach_nothing() {
    let target = Target::start();
    let mut cases = Vec::new();
    for id in HOSTILE_IDS.into_iter().chain([&*"x".repeat(129), &"x".repeat(90_000)]) {
        for query in QUERIES_WITH_AN_ID {
            cases.push((query, "200 INVALID_ID", body(query, &json!({ "id": id }))));
        }
    }
    let name = "mutation($v: String!) { createWorkflow(input: { name: $v, places: [\"a\"], transitions: [], initialPlace: \"a\" }) { id } }";
    for text in ["", " ", "a\u{0}", "\u{1b}[2J", "\u{9f}", &"x".repeat(257)] {
        cases.push((name, "200 INVALID_WORKFLOW", body(name, &json!({ "v": text }))));
    }
    target.check(&cases);
    // A long id is not repeated in full.
    let (_, answer) = target
        .client
        .post(
            "application/json",
            &body(
                "query($v: String!) { token(id: $v) { id } }",
                &json!({ "v": "x".repeat(90_000) }),
            ),
        )
        .unwrap();
    assert!(answer.to_string().len() < 1_000, "{}", beginning(&answer));
}

/// A JSON value as it is written in a query.
fn literal(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(" "))
        }
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| format!("{name}: {}", literal(value));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// Mutations with the type of their input, and its required and optional fields that are not JSON.
const INPUTS: [(&str, &str, &[&str], &[&str]); 5] = [
    (
        "createWorkflow",
        "WorkflowDefinitionInput",
        &["name", "places", "transitions", "initialPlace"],
        &["id", "description"],
    ),
    ("createToken", "TokenCreateInput", &["workflowId"], &["id", "initialPlace"]),
    (
        "createWorkflowInstance",
        "CreateWorkflowInstanceInput",
        &["workflowId"],
        &["id", "triggeredBy"],
    ),
    (
        "fireTransition",
        "TransitionFireInput",
        &["tokenId", "transitionId"],
        &["triggeredBy", "expectedVersion"],
    ),
    (
        "transitionTokenWithNats",
        "TransitionTokenWithNATSInput",
        &["tokenId", "transitionId", "newPlace"],
        &["triggeredBy", "expectedVersion"],
    ),
];

/// What an input field may not be.
fn of_another_type(field: &str) -> Vec<Value> {
    let wrong = match field {
        "expectedVersion" => {
            json!(["1", 1.5, true, [], [1, 2], {}, 2_147_483_648_u32, u64::MAX, 1e30])
        }
        "places" => json!([null, 1, true, {}, [1], [["a"]], [null], [{}]]),
        "transitions" => {
            json!([null, 1, "a", [1], [[]], [null], [{}], { "id": "a" }, [{ "id": "a", "fromPlaces": {}, "toPlace": "a" }]])
        }
        _ => json!([1, 1.5, true, [], ["a", "b"], {}, { "a": "b" }]),
    };
    wrong.as_array().unwrap().clone()
}

/// An input with one field as it is given, or without that field.
fn input(required: &[&str], field: &str, value: Option<Value>) -> Value {
    let good = |name: &str| match name {
        "places" => json!(["a"]),
        "transitions" => json!([]),
        _ => json!("a"),
    };
    let mut input: serde_json::Map<_, _> =
        required.iter().map(|name| ((*name).to_owned(), good(name))).collect();
    input.shift_remove(field);
    input.extend(value.map(|value| (field.to_owned(), value)));
    input.into()
}

#[test]
fn a_value_of_another_type_is_refused_in_every_input_field() {
    let (api, runtime) = (Api::new(Backend::Memory), runtime());
    for (mutation, kind, required, optional) in INPUTS {
        let mut inputs = json!([null, 1, "a", [], [[]], {}]).as_array().unwrap().clone();
        for field in required.iter().chain(optional) {
            let wrong = of_another_type(field).into_iter();
            inputs.extend(wrong.map(|value| input(required, field, Some(value))));
        }
        for field in required {
            inputs.push(input(required, field, None));
            inputs.push(input(required, field, Some(Value::Null)));
        }
        inputs.push(input(required, "unknown", Some(json!(1))));
        for input in inputs {
            let inline = format!("mutation {{ {mutation}(input: {}) {{ id }} }}", literal(&input));
            let variable = format!("mutation($v: {kind}!) {{ {mutation}(input: $v) {{ id }} }}");
            for query in [inline, variable] {
                let answer = runtime.block_on(api.ask(&query, json!({ "v": input })));
                assert_eq!(codes(&answer), "INVALID_INPUT", "{query} {input} {answer:#}");
            }
        }
    }
    let all = runtime.block_on(api.everything());
    assert!(all.workflows.is_empty() && all.tokens.is_empty());
}

/// Each is refused with INVALID_INPUT.
const WRONG_QUERIES: &[&str] = &[
    "",
    " \n\t",
    "# nothing",
    "{",
    "}",
    "{}",
    "query",
    "nonsense",
    "\u{0}",
    "{ health { status } }\u{0}",
    "\u{7}",
    "🎈",
    "{ nope }",
    "{ health }",
    "{ health { nope } }",
    "{ health { status { x } } }",
    "{ token { id } }",
    "{ token(id: 1) { id } }",
    "{ token(id: null) { id } }",
    "{ token(id: [\"a\"]) { id } }",
    "{ token(id: {}) { id } }",
    "{ token(id: RED) { id } }",
    "{ token(id: \"a\", id: \"b\") { id } }",
    "{ token(id: \"a\", nope: 1) { id } }",
    "{ token(id: $v) { id } }",
    "{ tokenConnection(first: \"1\") { edges { cursor } } }",
    "{ tokenConnection(first: 99999999999999999999) { edges { cursor } } }",
    "{ tokenConnection(first: 1e400) { edges { cursor } } }",
    "{ tokenConnection(first: null) { edges { cursor } } }",
    "subscription { tokenUpdates(tokenId: \"a\") { id } }",
    "subscription { nope }",
    "mutation { nope }",
    "mutation { health { status } }",
    "{ createToken(input: { workflowId: \"w\" }) { id } }",
    "{ ...nope }",
    "{ health { ...f } } fragment f on Nope { status }",
    "{ health { ...f } } fragment f on Token { id }",
    "{ health { ... on String { x } } }",
    "{ health { status } } fragment f on Health { status }",
    "fragment f on Health { status }",
    "{ health @nope { status } }",
    "{ health @skip { status } }",
    "{ health @skip(if: 1) { status } }",
    "query @deprecated { health { status } }",
    "query A { health { status } } query A { health { status } }",
    "{ health { status } } { health { status } }",
    "type Query { a: Int }",
    "extend type Query { a: Int }",
    "{ a: health { status } a: token(id: \"x\") { id } }",
    "{ token(id: \"\\ud800\") { id } }",
    "{ token(id: \"\\uZZZZ\") { id } }",
    "{ token(id: \"\\u{110000}\") { id } }",
    "{ token(id: \"\\q\") { id } }",
    "{ token(id: \"\"\"open) { id } }",
    "{ token(id: \"open) { id } }",
    "{ __type(name: 1) { name } }",
    "{ __nope }",
    "mutation { createToken(input: { workflowId: \"w\", data: 1e400 }) { id } }",
    "mutation { createToken(input: { workflowId: \"w\", data: $v }) { id } }",
    "mutation { a: createToken(input: { workflowId: \"w\" }) { id } a: createToken(input: { workflowId: \"v\" }) { id } }",
    "mutation { createToken(input: { workflowId: \"w\", data: 123456789012345678901 }) { id } }",
    "mutation { createToken(input: { workflowId: \"w\", data: { n: 1e-400 } }) { id } }",
    "mutation { createToken(input: { workflowId: \"w\", data: [-18446744073709551616] }) { id } }",
    "mutation { createToken(input: { workflowId: \"w\" }) { id nope } }",
    "mutation { createToken(input: { workflowId: \"w\" }) }",
];

#[test]
fn a_wrong_query_is_refused_with_a_code() {
    let target = Target::start();
    let variable = |declared: &str, value: Value| {
        body(&format!("query({declared}) {{ token(id: $v) {{ id }} }}"), &json!({ "v": value }))
    };
    let mut cases = vec![
        (
            "no variable",
            "200 INVALID_INPUT",
            body("query($v: String!) { token(id: $v) { id } }", &json!({})),
        ),
        ("one variable too many", "200 ok", body("{ health { status } }", &json!({ "v": 1 }))),
        ("null for a variable", "200 INVALID_INPUT", variable("$v: String!", Value::Null)),
        ("int for a variable", "200 INVALID_INPUT", variable("$v: String!", json!(1))),
        ("object for a variable", "200 INVALID_INPUT", variable("$v: String!", json!({}))),
        ("another type of variable", "200 INVALID_INPUT", variable("$v: Int!", json!(1))),
        ("nullable variable", "200 INVALID_INPUT", variable("$v: String", json!("a"))),
        ("variable", "200 INVALID_ID", variable("$v: String!", json!("a"))),
        ("output type", "200 INVALID_INPUT", variable("$v: Token", json!("a"))),
        ("unknown type", "200 INVALID_INPUT", variable("$v: Nope!", json!("a"))),
        (
            "unknown type with a default",
            "200 INVALID_INPUT",
            variable("$v: [Nope!]! = [1]", json!("a")),
        ),
        ("wrong default", "200 INVALID_INPUT", variable("$v: String! = 3", json!("a"))),
        ("variable twice", "200 INVALID_INPUT", variable("$v: String!, $v: String!", json!("a"))),
        (
            "unknown operation",
            "200 INVALID_INPUT",
            json!({ "query": "query A { health { status } }", "operationName": "B" })
                .to_string()
                .into_bytes(),
        ),
        (
            "one of two operations",
            "200 INVALID_INPUT",
            body("query A { health { status } } query B { health { status } }", &json!({})),
        ),
    ];
    for query in WRONG_QUERIES {
        let is_blank = query.trim().is_empty();
        let expected = if is_blank { "400 INVALID_INPUT" } else { "200 INVALID_INPUT" };
        cases.push((query, expected, body(query, &json!({}))));
    }
    target.check(&cases);
}
