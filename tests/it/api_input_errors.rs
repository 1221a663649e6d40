//! What is refused for what it says, before anything is looked up: ids, values, definitions, queries
//! that ask too much. On every backend: code, details, message, and that nothing has changed.

use serde_json::{Value, json};

use crate::support::{Api, CREATE_INSTANCE, CREATE_WORKFLOW, on_every_backend, review_input};

on_every_backend! {
    a_wrong_id_is_refused_wherever_an_id_stands
    a_wrong_name_in_a_definition_is_refused_with_its_field
    a_page_out_of_bounds_is_refused
    a_wrong_value_is_refused_with_its_field_and_rule
    all_that_is_wrong_with_a_definition_is_listed
    what_asks_too_much_is_refused_before_it_runs
}

/// Every argument and input field that takes an id, but those of definitions: how it is called, what
/// it is the id of, and a field that has it as `$id`.
const ID_FIELDS: [(&str, &str, &str); 22] = [
    ("id", "token", "token(id: $id) { id }"),
    ("id", "token", "natsToken(id: $id) { id }"),
    ("tokenId", "token", "findToken(workflowId: \"w\", tokenId: $id) { id }"),
    ("tokenId", "token", "tokenHistory(tokenId: $id) { edges { cursor } }"),
    ("tokenId", "token", "availableTransitions(tokenId: $id) { id }"),
    ("id", "workflow", "workflow(id: $id) { id }"),
    ("workflowId", "workflow", "tokens(workflowId: $id) { id }"),
    ("workflowId", "workflow", "findToken(workflowId: $id, tokenId: \"TOKEN\") { id }"),
    ("workflowId", "workflow", "tokensInPlace(workflowId: $id, placeId: \"draft\") { id }"),
    ("placeId", "place", "tokensInPlace(workflowId: \"w\", placeId: $id) { id }"),
    ("workflowId", "workflow", "tokenConnection(workflowId: $id) { edges { cursor } }"),
    ("placeId", "place", "tokenConnection(workflowId: \"w\", placeId: $id) { edges { cursor } }"),
    ("id", "token", "createToken(input: { id: $id, workflowId: \"w\" }) { id }"),
    ("workflowId", "workflow", "createToken(input: { workflowId: $id }) { id }"),
    (
        "initialPlace",
        "place",
        "createToken(input: { workflowId: \"w\", initialPlace: $id }) { id }",
    ),
    ("id", "token", "createWorkflowInstance(input: { id: $id, workflowId: \"w\" }) { id }"),
    ("workflowId", "workflow", "createWorkflowInstance(input: { workflowId: $id }) { id }"),
    (
        "tokenId",
        "token",
        "fireTransition(input: { tokenId: $id, transitionId: \"submit\" }) { id }",
    ),
    (
        "transitionId",
        "transition",
        "fireTransition(input: { tokenId: \"TOKEN\", transitionId: $id }) { id }",
    ),
    (
        "tokenId",
        "token",
        "transitionTokenWithNats(input: { tokenId: $id, transitionId: \"submit\", newPlace: \"review\" }) { id }",
    ),
    (
        "transitionId",
        "transition",
        "transitionTokenWithNats(input: { tokenId: \"TOKEN\", transitionId: $id, newPlace: \"review\" }) { id }",
    ),
    (
        "newPlace",
        "place",
        "transitionTokenWithNats(input: { tokenId: \"TOKEN\", transitionId: \"submit\", newPlace: $id }) { id }",
    ),
];

// With a value as $v, of the type KIND for a field called FIELD.
const PAGE_OF_TOKENS: &str = "query($v: Int!) { tokenConnection(first: $v) { edges { cursor } } }";
const PAGE_OF_MOVES: &str =
    "query($v: Int!) { tokenHistory(tokenId: \"TOKEN\", first: $v) { edges { cursor } } }";
const TOKENS_AFTER: &str = "query($v: String!) { tokenConnection(after: $v) { edges { cursor } } }";
const MOVES_BEFORE: &str =
    "query($v: String!) { tokenHistory(tokenId: \"TOKEN\", after: $v) { edges { cursor } } }";
const TOKENS_IN: &str = "query($v: String!) { tokenConnection(placeId: $v) { edges { cursor } } }";
const FIRE_WITH: &str = "mutation($v: KIND) { fireTransition(input: { tokenId: \"TOKEN\", transitionId: \"submit\", FIELD: $v }) { id } }";
const MOVE_WITH: &str = "mutation($v: KIND) { transitionTokenWithNats(input: { tokenId: \"TOKEN\", transitionId: \"submit\", newPlace: \"review\", FIELD: $v }) { id } }";
const CREATE_WITH: &str =
    "mutation($v: KIND) { createToken(input: { workflowId: \"w\", FIELD: $v }) { id } }";
const INSTANCE_WITH: &str =
    "mutation($v: KIND) { createWorkflowInstance(input: { workflowId: \"w\", FIELD: $v }) { id } }";

/// What is wrong with the definition of [`case::all_that_is_wrong_with_a_definition_is_listed`].
const PROBLEMS: [(&str, &str); 17] = [
    ("INVALID_ID", "id"),
    ("EMPTY", "name"),
    ("INVALID_TEXT", "description"),
    ("DUPLICATE", "places[1]"),
    ("INVALID_ID", "places[2]"),
    ("UNKNOWN_PLACE", "initialPlace"),
    ("TOO_LARGE", "transitions[0].name"),
    ("EMPTY", "transitions[0].fromPlaces"),
    ("DUPLICATE", "transitions[1].id"),
    ("INVALID_TEXT", "transitions[1].description"),
    ("DUPLICATE", "transitions[1].fromPlaces[1]"),
    ("UNKNOWN_PLACE", "transitions[1].fromPlaces[2]"),
    ("UNKNOWN_PLACE", "transitions[1].toPlace"),
    ("INVALID_CONDITION", "transitions[1].conditions[0]"),
    ("INVALID_CONDITION", "transitions[1].conditions[2]"),
    ("INVALID_ID", "transitions[2].id"),
    ("TOO_LARGE", "transitions[2].conditions"),
];

mod case {
    use super::*;

    pub async fn a_wrong_id_is_refused_wherever_an_id_stands(api: Api) {
        let token = api.create_reviewed().await;
        let long = "x".repeat(129);
        let names = [
            "", ".", "..", "a.b", "*", ">", "a b", " a", "a\n", "a\u{0}", "a\u{7f}", &long, "é",
            "а", "$JS", "_a", "-a", "a/b", "%2e", "a'--", "🎈",
        ];
        let braced = format!("{{{token}}}");
        let simple = token.replace('-', "");
        let wide = token.replacen('0', "０", 1);
        let tokens = ["", ".", "*", ">", "w", &long, "$JS", &braced, &simple, &wide, &token[1..]];
        for (field, what, query) in ID_FIELDS {
            let kind = if query.contains("input:") { "mutation" } else { "query" };
            let query = format!("{kind}($id: String!) {{ {} }}", query.replace("TOKEN", &token));
            let (ids, rule) = match what {
                "token" => (&tokens[..], "use a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057"),
                _ => (
                    &names[..],
                    "use 1 to 128 of A-Z a-z 0-9 _ -, beginning with a letter or a digit",
                ),
            };
            for id in ids {
                let details = json!({ "field": field, "rule": rule });
                let message = api.refused(&query, json!({ "id": id }), "INVALID_ID", details).await;
                let shown = if id.len() > 64 {
                    format!("\"{}\"… (129 bytes)", &id[..64])
                } else {
                    format!("{id:?}")
                };
                assert_eq!(message, format!("{field}: {shown} is not a {what} id: {rule}"));
            }
        }
    }

    pub async fn a_wrong_name_in_a_definition_is_refused_with_its_field(api: Api) {
        api.create_reviewed().await;
        for wrong in ["", ".", "*", ">", "a b", "a\u{0}", "é", "$JS", &"x".repeat(129)] {
            let mut id = review_input("new");
            id["id"] = json!(wrong);
            let mut place = review_input("new");
            place["places"] = json!(["draft", "review", "done", wrong]);
            let mut transition = review_input("new");
            transition["transitions"][3]["id"] = json!(wrong);
            for (input, field, what) in [
                (id, "id", "workflow"),
                (place, "places[3]", "place"),
                (transition, "transitions[3].id", "transition"),
            ] {
                let before = api.everything().await;
                let error = api.error(CREATE_WORKFLOW, json!({ "input": input })).await;
                let details = &error["extensions"]["details"];
                assert_eq!(error["extensions"]["code"], "INVALID_ID", "{error:#}");
                assert_eq!(error["extensions"]["retryable"], false);
                assert_eq!(details["problems"].as_array().unwrap().len(), 1, "{error:#}");
                let problem = &details["problems"][0];
                assert_eq!(
                    (&problem["problem"], &problem["field"]),
                    (&json!("INVALID_ID"), &json!(field))
                );
                let (message, reason) =
                    (error["message"].as_str().unwrap(), problem["message"].as_str().unwrap());
                assert!(
                    reason.contains(&format!("is not a {what} id: use 1 to 128 of")),
                    "{reason}"
                );
                assert!(
                    message.ends_with(&format!("1 problem, first {field}: {reason}")),
                    "{message}"
                );
                assert_eq!(api.everything().await, before);
            }
        }
    }

    /// Every one of these values in every one of these queries breaks this rule.
    async fn check(api: &Api, field: &str, rule: &str, queries: &[&str], values: &[Value]) {
        let token = api.everything().await.tokens[0].token.id.to_string();
        let kind = match field {
            "expectedVersion" => "Int",
            "triggeredBy" => "String",
            _ => "JSON",
        };
        for query in queries {
            let query =
                query.replace("TOKEN", &token).replace("FIELD", field).replace("KIND", kind);
            for value in values {
                let (variables, details) =
                    (json!({ "v": value }), json!({ "field": field, "rule": rule }));
                let message = api.refused(&query, variables, "INVALID_INPUT", details).await;
                assert_eq!(message, format!("{field}: {rule}"));
            }
        }
    }

    fn nested(levels: usize) -> Value {
        (1..levels).fold(json!([]), |inner, _| json!([inner]))
    }

    pub async fn a_page_out_of_bounds_is_refused(api: Api) {
        let token = api.create_reviewed().await;
        let sizes = [0, 1_001, -1, i32::MIN, i32::MAX].map(|size| json!(size));
        check(&api, "first", "a page has 1 to 1000 rows", &[PAGE_OF_TOKENS, PAGE_OF_MOVES], &sizes)
            .await;
        let cursors = [
            "",
            "x",
            "-1",
            "+1",
            " 1",
            "1.5",
            "0x1",
            "١",
            "18446744073709551616",
            "*",
            "0",
            "01",
            "9223372036854775807",
            "18446744073709551615",
        ];
        let cursors = cursors.map(|cursor| json!(cursor));
        let rule = "use the endCursor of the page before";
        check(&api, "after", rule, &[TOKENS_AFTER, MOVES_BEFORE], &cursors).await;
        let rule = "name the workflow of the place in workflowId";
        check(&api, "placeId", rule, &[TOKENS_IN], &[json!("draft")]).await;

        let after = json!({ "v": "9223372036854775806" });
        api.data(TOKENS_AFTER, after.clone()).await;
        api.data(&MOVES_BEFORE.replace("TOKEN", &token), after).await;
    }

    pub async fn a_wrong_value_is_refused_with_its_field_and_rule(api: Api) {
        api.create_reviewed().await;
        let rule = "versions begin at 1";
        let versions = [0, -1, i32::MIN].map(|version| json!(version));
        check(&api, "expectedVersion", rule, &[FIRE_WITH, MOVE_WITH], &versions).await;
        let rule = "at most 256 bytes without control characters are allowed";
        let texts = [&"x".repeat(257), &"é".repeat(129), "a\n", "\u{0}", "\u{1b}[31m", "\u{85}"];
        let texts = texts.map(|text| json!(text));
        check(&api, "triggeredBy", rule, &[FIRE_WITH, MOVE_WITH, INSTANCE_WITH], &texts).await;
        let others = [json!([]), json!("text"), json!(1), json!(false)];
        check(&api, "metadata", "use a JSON object", &[CREATE_WITH, INSTANCE_WITH], &others).await;

        let rule = "arrays and objects may nest 64 deep";
        let deep =
            [nested(65), json!({ "a": nested(64) }), json!([1, { "a": nested(63) }]), nested(120)];
        check(&api, "data", rule, &[FIRE_WITH, MOVE_WITH, CREATE_WITH], &deep).await;
        check(&api, "initialData", rule, &[INSTANCE_WITH], &deep).await;
        let deep = [json!({ "a": nested(64) }), json!({ "a": 1, "b": { "c": nested(63) } })];
        check(&api, "metadata", rule, &[CREATE_WITH, INSTANCE_WITH], &deep).await;

        let largest = json!({ "workflowId": "w", "initialData": nested(64), "metadata": { "a": nested(63) }, "triggeredBy": "x".repeat(256) });
        api.data(CREATE_INSTANCE, json!({ "input": largest })).await;
    }

    pub async fn all_that_is_wrong_with_a_definition_is_listed(api: Api) {
        api.create_reviewed().await;
        let input = json!({
            "id": "no.dots", "name": " ", "description": "\u{7}", "places": ["a", "a", "b c"], "initialPlace": "nowhere",
            "transitions": [
                { "id": "go", "name": "x".repeat(257), "fromPlaces": [], "toPlace": "b c" },
                { "id": "go", "description": "\u{0}", "fromPlaces": ["a", "a", "nowhere"], "toPlace": "gone",
                  "conditions": ["token.data >", "true", "token.data.map(x, x)"] },
                { "id": "*", "fromPlaces": ["a"], "toPlace": "a", "conditions": vec!["true"; 17] },
            ],
        });
        let before = api.everything().await;
        let error = api.error(CREATE_WORKFLOW, json!({ "input": input })).await;
        assert_eq!(api.everything().await, before);
        assert_eq!(error["extensions"]["code"], "INVALID_WORKFLOW");
        assert_eq!(error["extensions"]["retryable"], false);
        let problems = error["extensions"]["details"]["problems"].as_array().unwrap();
        let text = |problem: &Value, name: &str| problem[name].as_str().unwrap().to_owned();
        let found: Vec<_> =
            problems.iter().map(|p| (text(p, "problem"), text(p, "field"))).collect();
        assert_eq!(found, PROBLEMS.map(|(problem, field)| (problem.to_owned(), field.to_owned())));
        for (index, contains) in [
            (0, "no.dots"),
            (5, "nowhere"),
            (12, "gone"),
            (13, "line 1, column"),
            (14, "it is a list, not true or false"),
            (16, "17 entries, at most 16"),
        ] {
            assert!(text(&problems[index], "message").contains(contains), "{:#}", problems[index]);
        }
        let first = format!(
            "the workflow definition has 17 problems, first id: {}",
            text(&problems[0], "message")
        );
        assert_eq!(error["message"], first);
    }

    pub async fn what_asks_too_much_is_refused_before_it_runs(api: Api) {
        let token = api.create_reviewed().await;
        let create = |n: usize| {
            format!("a{n}: createToken(input: {{ workflowId: \"w\", data: $v }}) {{ id }} ")
        };
        let creations = (0..51).map(create).collect::<String>();
        let types =
            "{ __schema { types { fields { args { type { fields { name } } } } } } }".to_owned();
        for (query, message) in [
            (format!("mutation($v: JSON) {{ {creations} }}"), "selects 51 fields at the root"),
            (
                format!("{{ token(id: \"{token}\") {{ {} }} }}", "id ".repeat(1_000)),
                "selects 1001 fields and fragments",
            ),
            (format!("{{ {}id{} }}", "a { ".repeat(24), " }".repeat(24)), "selects 25 levels"),
            (
                format!("{{ a(x: {}1{}) }}", "[".repeat(64), "]".repeat(64)),
                "nests more than 64 brackets",
            ),
            (
                format!("{{ token(id: \"{}\") {{ id }} }}", "x".repeat(65_536)),
                "at most 65536 are allowed",
            ),
            (types, "selects 4 levels of introspection lists"),
            ("{ ...a } fragment a on Query { ...a }".to_owned(), "fragment a contains itself"),
            (
                format!("mutation($v: JSON) {{ {} }}", (0..50).map(create).collect::<String>()),
                "each as often as it is used again",
            ),
        ] {
            let variables = json!({ "v": vec![0; 20_100] });
            let refusal = api.refused(&query, variables, "QUERY_TOO_COMPLEX", Value::Null).await;
            assert!(refusal.contains(message), "{refusal}");
        }
    }
}
