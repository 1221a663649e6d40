//! Requests that are small for who sends them, or as large as they may be.

use serde_json::{Value, json};

use super::client::{request, request_of};
use super::store::{CREATE_TOKEN, CREATE_WORKFLOW, id};

/// One kind of request, as bytes on the wire, sent one after the other.
pub struct Shape {
    pub name: &'static str,
    pub requests: Vec<Vec<u8>>,
}

/// Bytes that may be sent for one row.
const SENT_MAX: usize = 4 << 20;

/// A body of the largest size has so many bytes for what it is filled with.
const FILL: usize = (4 << 20) - 400;

pub fn shapes() -> Vec<Shape> {
    let mut shapes = answers();
    shapes.extend(tokens());
    shapes.extend(values());
    shapes.extend(texts());
    shapes.extend(conditions());
    shapes
}

fn one(name: &'static str, request: Vec<u8>) -> Shape {
    Shape { name, requests: vec![request] }
}

/// A query without variables.
fn query(text: &str) -> Vec<u8> {
    request(text, &json!({}))
}

/// A field under so many names.
fn aliases(count: usize, field: &str) -> String {
    (0..count).map(|n| format!("a{n}: {field} ")).collect()
}

fn token(name: &str) -> String {
    format!("token(id: \"{}\")", id(name))
}

/// A query of one field under so many names.
fn often(count: usize, field: &str) -> Vec<u8> {
    query(&format!("{{ {} }}", aliases(count, field)))
}

/// What asks for much of definitions and lists.
fn answers() -> Vec<Shape> {
    const WORKFLOW: &str =
        "workflow(id: \"big\") { id places transitions { id fromPlaces toPlace } }";
    const INTROSPECTION: &str = "__schema { types { name description fields { name description args { name } type { name kind } } } }";
    let big = |count: usize, field: &str| {
        query(&format!("{{ workflow(id: \"big\") {{ {} }} }}", aliases(count, field)))
    };
    let list = |fields: &str| query(&format!("{{ tokens(workflowId: \"small\") {{ {fields} }} }}"));
    vec![
        one(
            "30 aliases of a workflow of 1,000 places and 500 transitions, with `fromPlaces`",
            often(30, WORKFLOW),
        ),
        one(
            "45 aliases of `fromPlaces` within one workflow",
            big(45, "transitions { fromPlaces }"),
        ),
        one("90 aliases of `places` within one workflow", big(90, "places")),
        one(
            "9,000 tokens, 20 aliases of `history { data … }` each",
            list(&aliases(20, "history { transition fromPlace toPlace data }")),
        ),
        one("9,000 tokens, 90 aliases of `data`", list(&aliases(90, "data"))),
        one("9,000 tokens, 90 aliases of `__typename`", list(&aliases(90, "__typename"))),
        one(
            "9,000 small and 10 large tokens, whole",
            list("id place version data metadata history { data }"),
        ),
        one("the same, `id` and `version` alone", list("id version")),
        one("introspection five times", often(5, INTROSPECTION)),
    ]
}

/// What asks for single tokens again and again.
fn tokens() -> Vec<Shape> {
    let of = |name: &str, count: usize| often(count, &format!("{} {{ data }}", token(name)));
    let within = |name: &str, fields: &str| query(&format!("{{ {} {{ {fields} }} }}", token(name)));
    let may = format!("availableTransitions(tokenId: \"{}\") {{ id }}", id("numbers"));
    vec![
        one(
            "one token, 45 aliases of `history { data }`",
            within("small 0", &aliases(45, "history { data }")),
        ),
        one("45 aliases of a token with a text of 0.9 MB", of("text", 45)),
        one("90 aliases of its `data` within one token", within("text", &aliases(90, "data"))),
        one("45 aliases of a token with 160,000 control characters", of("controls", 45)),
        one("a token of 98,000 numbers", of("numbers", 1)),
        one("45 aliases of it", of("numbers", 45)),
        one("45 aliases of a token of 48,000 members", of("members", 45)),
        one("`availableTransitions` of a token of 98,000 numbers, 45 times", often(45, &may)),
        one("a batch of ten answers of 0.9 MB", large_answer()),
    ]
}

/// A request whose answer has 9 MB.
pub fn large_answer() -> Vec<u8> {
    let large = json!({ "query": format!("{{ {} {{ data }} }}", token("text")) });
    request_of(&json!(vec![large; 10]))
}

/// What sends many values.
fn values() -> Vec<Shape> {
    let create = |data: &str| {
        let body = format!(
            "{{\"query\":{},\"variables\":{{\"input\":{{\"workflowId\":\"small\",\"data\":{data}}}}}}}",
            json!(CREATE_TOKEN)
        );
        raw(&body)
    };
    let used = |declared: &str, variables: &Value| {
        let field = "createToken(input: { workflowId: \"small\", data: $v }) { id }";
        request(&format!("mutation({declared}) {{ {} }}", aliases(45, field)), variables)
    };
    let list =
        |item: &str, count: usize| format!("[{}{item}]", format!("{item},").repeat(count - 1));
    let members = |count: usize, value: &str| {
        let each: Vec<_> = (0..count).map(|n| format!("\"m{n}\":{value}")).collect();
        format!("{{{}}}", each.join(","))
    };
    let patch = |count: usize| {
        let query =
            "mutation($input: TransitionFireInput!) { fireTransition(input: $input) { id } }";
        raw(&format!(
            "{{\"query\":{},\"variables\":{{\"input\":{{\"tokenId\":\"{}\",\"transitionId\":\"edit\",\"data\":{}}}}}}}",
            json!(query),
            id("moving"),
            members(count, "null")
        ))
    };
    let large = json!({ "query": CREATE_TOKEN, "variables": { "input": { "workflowId": "small", "data": "x".repeat(400_000) } } });
    vec![
        one(
            "a variable of 1 MB used for 45 tokens",
            used("$v: JSON", &json!({ "v": "x".repeat(990_000) })),
        ),
        one("one of 3.9 MB", used("$v: JSON", &json!({ "v": "x".repeat(3_900_000) }))),
        one("one of 98,000 numbers", used("$v: JSON", &json!({ "v": vec![100; 98_000] }))),
        one(
            "a default of 9,000 values used for 45 tokens",
            used(&format!("$v: JSON = [{}]", "1 ".repeat(9_000)), &json!({})),
        ),
        one("98,900 numbers", create(&list("1", 98_900))),
        one("49,000 members", create(&members(49_000, "1"))),
        one("49,000 empty objects", create(&list("{}", 49_000))),
        one("32,000 objects with one member", create(&list("{\"a\":1}", 32_000))),
        one("a merge patch of 40,000 nulls", patch(40_000)),
        one("a batch of ten tokens of 0.4 MB", request_of(&json!(vec![large; 10]))),
        one("a batch of 49,001 requests", raw(&list("{}", 49_001))),
    ]
}

/// What is long as text.
fn texts() -> Vec<Shape> {
    let text = |fill: &str| {
        let many = FILL / fill.len();
        raw(&format!(
            "{{\"query\":{},\"variables\":{{\"input\":{{\"workflowId\":\"small\",\"data\":\"{}\"}}}}}}",
            json!(CREATE_TOKEN),
            fill.repeat(many)
        ))
    };
    let literals = format!(
        "{{ explainTransitions(tokenId: \"{}\", data: [{}]) {{ allowed }} }}",
        id("moving"),
        "\"\" ".repeat(9_900)
    );
    let literals = query(&literals);
    let again = SENT_MAX / literals.len();
    vec![
        one(
            "`{ health { status } }` with 45 KB of blanks",
            query(&format!("{{ health {{ status }} }}{}", " ".repeat(45_000))),
        ),
        one("a text of 4 MiB", text("x")),
        one("4 MiB of `\\u0001`", text("\\u0001")),
        one(
            "4 MiB of `[`",
            raw(&format!("{{\"query\":\"{{a}}\",\"variables\":{}", "[".repeat(FILL))),
        ),
        one(
            "`{ health { status } }` with 4 MiB of blanks after it",
            raw(&format!("{{\"query\":\"{{ health {{ status }} }}\"}}{}", " ".repeat(FILL))),
        ),
        one("a query of 4 MiB", query(&format!("{{ {} }}", "a ".repeat(FILL / 2 - 10)))),
        Shape {
            name: "queries of 9,900 texts each until 4 MiB are sent",
            requests: vec![literals; again],
        },
    ]
}

/// What has much calculated.
fn conditions() -> Vec<Shape> {
    let explain = |name: &str, count: usize| {
        query(&format!(
            "{{ {} }}",
            aliases(
                count,
                &format!(
                    "explainTransitions(tokenId: \"{}\") {{ allowed blockers {{ code values }} }}",
                    id(name)
                )
            )
        ))
    };
    let define = |name: &str, conditions: Vec<String>| {
        let transition = |(n, part): (usize, &[String])| json!({ "id": format!("t{n}"), "fromPlaces": ["a"], "toPlace": "a", "conditions": part });
        let transitions: Vec<_> = conditions.chunks(16).enumerate().map(transition).collect();
        let input = json!({ "id": name, "name": name, "places": ["a"], "initialPlace": "a", "transitions": transitions });
        request(CREATE_WORKFLOW, &json!({ "input": input }))
    };
    let slow = format!("true{}", " || [[[[[[[[1]]]]]]]] == [[[[[[[[1]]]]]]]]".repeat(46));
    let nested = format!("{}true{}", "input.l.all(x, ".repeat(20), ")".repeat(20));
    let nested = [&nested[..]; 11].join(" && ");
    let conditions = |text: &str| vec![text.to_owned(); 128 * 1024 / text.len()];
    let again: Vec<_> = (0..SENT_MAX / (128 * 1024))
        .map(|n| define(&format!("d{n}"), conditions(&nested)))
        .collect();
    vec![
        one(
            "`explainTransitions` over a token of 98,000 numbers, nine costly conditions",
            explain("numbers", 1),
        ),
        one("the same 45 times", explain("numbers", 45)),
        one("over one of 48,000 members", explain("members", 1)),
        one("over one with a text of 0.9 MB", explain("text", 1)),
        one("a definition of 128 KB of nested lists", define("lists", conditions(&slow))),
        one("a definition of 128 KB of nested loops", define("loops", conditions(&nested))),
        one(
            "a definition of 4,000 patterns",
            define("patterns", conditions("input.x.matches('^[a-z]+@[a-z]+$')")),
        ),
        one(
            "a definition of wide patterns",
            define("wide", conditions("input.x.matches('\\\\p{L}{1,40}')")),
        ),
        Shape {
            name: "definitions of 128 KB of nested loops until 4 MiB are sent",
            requests: again,
        },
    ]
}

/// A body as bytes on the wire.
fn raw(body: &str) -> Vec<u8> {
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
