//! Random requests of each kind, around their limits: each is answered with data or a code, never as a defect,
//! in bounded memory, and the server goes on.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use crate::bad_input::{Target, beginning, body, codes};
use crate::bombs::memory_mib;
use crate::support::{CREATE_TOKEN, CREATE_WORKFLOW, Server};

/// Requests of one kind.
const ROUNDS: usize = 60;

/// MiB that one request may take more than what the server has had, in a debug build; 20 to 110 were measured.
const MORE_MIB_MAX: u64 = 250;

/// Sends what `next` makes, and looks at what each leaves.
fn generated(seed: u64, mut next: impl FnMut(&mut Rng, &Target) -> Vec<u8>) {
    let target = Target::start();
    let mut random = Rng::with_seed(seed);
    let rest = memory_mib(&target.server, "VmRSS:");
    for round in 0..ROUNDS {
        let body = next(&mut random, &target);
        let (status, answer) = target.client.post("application/json", &body).unwrap();
        let shown = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        assert!([200, 400, 413].contains(&status), "{seed}, {round}: {status}: {}", shown());
        assert!(answer.is_object() || answer.is_array(), "{seed}, {round}: {}", shown());
        let codes = codes(&answer);
        assert!(
            !codes.contains("INTERNAL"),
            "{seed}, {round}: {}: {}",
            beginning(&answer),
            shown()
        );
        is_small(&target.server, rest, || format!("{seed}, {round}: {}", shown()));
        assert_eq!(target.client.get("/health/ready").0, 200);
    }
}

fn is_small(server: &Server, rest: u64, what: impl Fn() -> String) {
    let peak = memory_mib(server, "VmHWM:");
    assert!(peak < rest + MORE_MIB_MAX, "{peak} MiB after {rest} at rest: {}", what());
}

/// A number around a limit, or far below it.
fn around(random: &mut Rng, limit: usize) -> usize {
    match random.u8(..4) {
        0 => random.usize(..4),
        1 => random.usize(..limit),
        _ => limit.saturating_sub(3) + random.usize(..6),
    }
}

/// Selected fields with aliases, arguments, directives and fragments, some of them wrong.
fn selection(random: &mut Rng, levels: usize, fields: usize) -> String {
    const FIELDS: [&str; 12] = [
        "tokens",
        "workflows",
        "health",
        "id",
        "place",
        "data",
        "history",
        "transitions",
        "__typename",
        "nope",
        "workflow(id: \"w\")",
        "tokenConnection(workflowId: \"w\", first: 2)",
    ];
    let mut text = String::from("{ ");
    for n in 0..fields.max(1) {
        if random.bool() {
            text += &format!("a{n}: ");
        }
        text += FIELDS[random.usize(..FIELDS.len())];
        match random.u8(..12) {
            0 => text += " @skip(if: false)",
            1 => text += " @include(if: $b)",
            2 => text += " ...F",
            3 => text += " ... on Token { id }",
            _ => {}
        }
        if levels > 0 && random.u8(..3) == 0 {
            text += &selection(random, levels - 1, fields.min(3));
        }
        text.push(' ');
    }
    text + "}"
}

#[test]
fn random_documents() {
    generated(1, |random, _| {
        let (levels, fields) = (random.usize(..4), around(random, 50));
        let mut query = format!("query($b: Boolean = true) {}", selection(random, levels, fields));
        match random.u8(..5) {
            0 => query += &format!(" fragment F on Token {}", selection(random, 1, 3)),
            1 => {
                let values = "1 ".repeat(around(random, 9_900));
                query = format!(
                    "{{ explainTransitions(tokenId: \"{}\", data: [{values}]) {{ allowed }} }}",
                    uuid::Uuid::nil()
                );
            }
            2 => {
                let depth = around(random, 24);
                query = format!("{}id{}", "{ tokens ".repeat(depth), " }".repeat(depth));
            }
            3 => query += &format!(" # {}", "x".repeat(around(random, 60_000))),
            _ => {}
        }
        body(&query, &json!({}))
    });
}

/// JSON of about so many values.
fn value(random: &mut Rng, values: usize, levels: usize) -> Value {
    if values <= 1 || levels == 0 {
        return match random.u8(..6) {
            0 => Value::Null,
            1 => json!(random.bool()),
            2 => json!(random.i64(..)),
            3 => json!(random.f64() * 1e300),
            4 => json!("\u{1}é\"😀".repeat(random.usize(..4))),
            _ => json!("x".repeat(random.usize(..40))),
        };
    }
    let parts = 1 + random.usize(..values.min(2_000));
    let part = |random: &mut Rng| value(random, values / parts, levels - 1);
    if random.bool() {
        (0..parts).map(|_| part(random)).collect()
    } else {
        let members = (0..parts).map(|n| (format!("m{n}"), part(random)));
        Value::Object(members.collect::<Map<_, _>>())
    }
}

#[test]
fn random_variables() {
    generated(2, |random, _| {
        let (values, levels) = (around(random, 60_000), 1 + random.usize(..70));
        let mut input = json!({ "workflowId": "w", "data": value(random, values, levels) });
        match random.u8(..6) {
            0 => input["metadata"] = value(random, 100, 3),
            1 => input["id"] = value(random, 1, 0),
            2 => input["nope"] = value(random, 10, 2),
            _ => {}
        }
        body(CREATE_TOKEN, &json!({ "input": input }))
    });
}

/// A condition over a token whose data has a list, an object and a text.
fn condition(random: &mut Rng, levels: usize, variables: usize) -> String {
    const VALUES: [&str; 10] = [
        "token.data.l",
        "token.data.o",
        "token.data.s",
        "next",
        "input",
        "token.version",
        "now",
        "1.5",
        "'a'",
        "null",
    ];
    let mut part = |variables: usize| match levels {
        0 if variables > 0 && random.bool() => format!("v{}", random.usize(..variables)),
        0 => VALUES[random.usize(..VALUES.len())].to_owned(),
        _ => condition(random, levels - 1, variables),
    };
    let (one, other, inner) = (part(variables), part(variables), part(variables + 1));
    let v = format!("v{variables}");
    match random.u8(..14) {
        0 => format!("({one} == {other})"),
        1 => format!("({one} + {other})"),
        2 => format!("({one} < {other} || {other} in {one})"),
        3 => format!("{one}.map({v}, {inner})"),
        4 => format!("{one}.filter({v}, {inner} != {other})"),
        5 => format!("{one}.all({v}, {inner} == {inner})"),
        6 => format!("{one}.exists({v}, {v} == {inner})"),
        7 => format!("[{one}, {other}, {one}]"),
        8 => format!("{{'a': {one}, 'b': {other}}}"),
        9 => format!("string({one}).matches('^[a-z]{{0,20}}x+$')"),
        10 => format!("size({one})"),
        11 => format!("(type({one}) == type({other}) ? {one} : {other})"),
        12 => format!("has(token.data.{v}) && {one} != {other}"),
        _ => format!("dyn({one})"),
    }
}

#[test]
fn random_conditions() {
    let mut asked = 0;
    generated(3, |random, target| {
        asked += 1;
        let conditions: Vec<_> = (0..8)
            .map(|_| {
                let levels = random.usize(..5);
                format!("{} == {}", condition(random, levels, 0), condition(random, 1, 0))
            })
            .collect();
        let transitions: Vec<_> = conditions
            .iter()
            .enumerate()
            .map(|(n, text)| json!({ "id": format!("t{n}"), "fromPlaces": ["a"], "toPlace": "b", "conditions": [text] }))
            .collect();
        let id = format!("c{asked}");
        let mut input = json!({ "id": id, "name": "c", "places": ["a", "b"], "initialPlace": "a", "transitions": transitions });
        let made = target.client.ask(CREATE_WORKFLOW, &json!({ "input": input })).unwrap();
        // What is no condition is left out; the others are asked.
        if let Some(problems) = made["errors"][0]["extensions"]["details"]["problems"].as_array() {
            let wrong: Vec<_> =
                problems.iter().map(|problem| problem["field"].as_str().unwrap()).collect();
            let field = |n: usize| format!("transitions[{n}].conditions[0]");
            assert!(
                (0..8).filter(|n| wrong.contains(&&*field(*n))).count() == wrong.len(),
                "{made}"
            );
            let mut n = 0;
            input["transitions"].as_array_mut().unwrap().retain(|_| {
                n += 1;
                !wrong.contains(&&*field(n - 1))
            });
            let made = target.client.ask(CREATE_WORKFLOW, &json!({ "input": input })).unwrap();
            assert_eq!(codes(&made), "ok", "{}", beginning(&made));
        }
        let list: Vec<_> = (0..around(random, 20_000)).map(|n| json!(n % 100)).collect();
        let members: Map<_, _> =
            (0..around(random, 500)).map(|n| (format!("m{n}"), json!(n))).collect();
        let data = json!({ "l": list, "o": members, "s": "x".repeat(around(random, 50_000)) });
        let token = json!({ "input": { "workflowId": id, "data": data } });
        let token = target.client.ask(CREATE_TOKEN, &token).unwrap();
        let token = token["data"]["createToken"]["id"].clone();
        let query = "query($t: String!) { explainTransitions(tokenId: $t) { allowed blockers { code message } } }";
        body(query, &json!({ "t": token }))
    });
}

#[test]
fn random_bodies() {
    const BYTES: &[u8] = b"{}[]\",:\\\0\xff1-e";
    generated(4, |random, _| {
        let query = "query($v: JSON) { explainTransitions(tokenId: \"x\", data: $v) { allowed } }";
        let size = around(random, 2_000);
        let mut bytes = body(query, &json!({ "v": value(random, size, 8) }));
        for _ in 0..random.usize(..8) {
            let (at, to) = (random.usize(..=bytes.len()), random.usize(..=bytes.len()));
            match random.u8(..5) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at.min(to)..at.max(to)),
                2 => drop(bytes.drain(at.min(to)..at.max(to))),
                3 if at < bytes.len() => bytes[at] = random.u8(..),
                _ => bytes.insert(at, BYTES[random.usize(..BYTES.len())]),
            }
        }
        bytes
    });
}
