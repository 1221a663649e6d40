//! What may be done with a token, and why not, on every backend.

use serde_json::{Value, json};

use crate::support::{Api, CREATE_WORKFLOW, FIRE, on_every_backend, review_input};

on_every_backend! {
    an_explanation_names_all_that_stands_in_the_way
    what_may_fire_depends_on_the_data_and_on_what_it_makes
    a_transition_takes_only_the_members_that_it_accepts
    workflows_come_page_by_page
    a_definition_says_where_tokens_begin_and_what_places_are
    a_definition_says_where_tokens_are_completed
    a_condition_that_makes_no_sense_is_refused
    what_is_odd_about_a_graph_is_told_and_stored_all_the_same
}

const EXPLAIN: &str =
    "query($token: String!, $data: JSON) { explainTransitions(tokenId: $token, data: $data) {
    transition { id accepts } allowed blockers { code message condition values } } }";

const BEGIN: &str = "mutation($input: TokenCreateInput!) { createToken(input: $input) { place } }";

mod case {
    use super::*;

    async fn guarded(api: &Api, token_data: Value) -> String {
        let mut input = review_input("c");
        input["transitions"] = json!([
            { "id": "approve", "fromPlaces": ["draft"], "toPlace": "done",
              "conditions": ["next.amount <= 1000 || 'director' in caller.roles", "input.by != token.metadata.author", "now > token.created_at"] },
            { "id": "comment", "fromPlaces": ["draft"], "toPlace": "draft", "accepts": ["comment"] },
            { "id": "reopen", "fromPlaces": ["done"], "toPlace": "draft" },
        ]);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        api.create_token("c", token_data).await
    }

    pub async fn an_explanation_names_all_that_stands_in_the_way(api: Api) {
        let token = guarded(&api, json!({ "amount": 900 })).await;
        let data = json!({ "amount": 250_000 });
        let told = api.data(EXPLAIN, json!({ "token": token, "data": data })).await;
        let [approve, comment] = told["explainTransitions"].as_array().unwrap().as_slice() else {
            panic!("{told}")
        };
        let first = "next.amount <= 1000 || 'director' in caller.roles";
        let second = "input.by != token.metadata.author";
        let reason = "there is no member by; has(a.by) asks whether there is one";
        assert_eq!(
            *approve,
            json!({
                "transition": { "id": "approve", "accepts": null },
                "allowed": false,
                "blockers": [
                    { "code": "CONDITION_FALSE", "condition": first,
                      "message": format!("condition {first} of transition approve is false for token {token}"),
                      "values": { "next.amount": 250_000, "caller.roles": [] } },
                    { "code": "CONDITION_FAILED", "condition": second,
                      "message": format!("condition {second} of transition approve could not be evaluated for token {token}: {reason}"),
                      "values": {} },
                ],
            })
        );
        assert_eq!(
            comment["blockers"],
            json!([
                { "code": "INVALID_INPUT", "condition": null, "values": null,
                  "message": r#"data: transition comment accepts "comment", not "amount""# },
            ])
        );
        // A move is told the first of them.
        let input =
            json!({ "input": { "tokenId": token, "transitionId": "approve", "data": data } });
        let error = api.error(FIRE, input).await;
        assert_eq!(error["message"], approve["blockers"][0]["message"]);
        assert_eq!(error["extensions"]["code"], "CONDITION_FALSE");
        let unknown = json!({ "token": "01890a5d-ac96-774b-bcce-b302099a8057" });
        assert_eq!(api.error(EXPLAIN, unknown).await["extensions"]["code"], "TOKEN_NOT_FOUND");
    }

    pub async fn what_may_fire_depends_on_the_data_and_on_what_it_makes(api: Api) {
        let token = guarded(&api, json!({ "amount": 900 })).await;
        let query = "query($token: String!, $data: JSON) { availableTransitions(tokenId: $token, data: $data) { id } }";
        for (data, expected) in [
            (Value::Null, json!([{ "id": "comment" }])),
            (json!({ "by": "ann" }), json!([])),
            (json!({ "comment": "x" }), json!([{ "id": "comment" }])),
            (json!({ "by": "ann", "amount": 1001 }), json!([])),
        ] {
            let variables = json!({ "token": token, "data": data });
            let may = api.data(query, variables).await["availableTransitions"].take();
            assert_eq!(may, expected, "{data}");
        }
        let mut input = review_input("d");
        input["transitions"] = json!([{ "id": "go", "fromPlaces": ["draft"], "toPlace": "done", "conditions": ["next.n == 2"] }]);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let token = api.create_token("d", json!({ "n": 1 })).await;
        for (n, expected) in [(1, json!([])), (2, json!([{ "id": "go" }]))] {
            let variables = json!({ "token": token, "data": { "n": n } });
            assert_eq!(api.data(query, variables).await["availableTransitions"], expected);
        }
    }

    pub async fn a_transition_takes_only_the_members_that_it_accepts(api: Api) {
        let token = guarded(&api, json!({ "amount": 900 })).await;
        let fire = |data: Value| json!({ "input": { "tokenId": token, "transitionId": "comment", "data": data } });
        let error = api.error(FIRE, fire(json!({ "comment": "x", "amount": 1 }))).await;
        assert_eq!(error["extensions"]["code"], "INVALID_INPUT");
        let details =
            json!({ "transitionId": "comment", "accepts": ["comment"], "others": ["amount"] });
        assert_eq!(error["extensions"]["details"], details);
        let moved = api.data(FIRE, fire(json!({ "comment": "x" }))).await;
        assert_eq!(moved["fireTransition"]["data"], json!({ "amount": 900, "comment": "x" }));
        // It is stored with the definition.
        let stored =
            api.data("{ workflow(id: \"c\") { transitions { id accepts } } }", json!({})).await;
        let expected = json!([
            { "id": "approve", "accepts": null }, { "id": "comment", "accepts": ["comment"] }, { "id": "reopen", "accepts": null },
        ]);
        assert_eq!(stored["workflow"]["transitions"], expected);
        let other = json!({ "input": { "id": "e", "name": "e", "places": ["a"], "initialPlace": "a", "transitions": [
            { "id": "t", "fromPlaces": ["a"], "toPlace": "a", "accepts": ["x", "x", "\u{7}"] },
        ] } });
        let error = api.error(CREATE_WORKFLOW, other).await;
        let fields: Vec<_> = error["extensions"]["details"]["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["field"].clone())
            .collect();
        assert_eq!(fields, ["transitions[0].accepts[1]", "transitions[0].accepts[2]"]);
    }

    pub async fn a_definition_says_where_tokens_begin_and_what_places_are(api: Api) {
        let input = json!({
            "id": "claims", "name": "Claims", "initialPlace": "draft", "places": ["draft", "review", "paid", "void"],
            "entryPlaces": ["review"],
            "placeSettings": [{ "place": "review", "name": "In review (by a clerk)", "metadata": { "colour": "#0a0", "n": [1, null] } }],
            "transitions": [
                { "id": "submit", "fromPlaces": ["draft"], "toPlace": "review" },
                { "id": "pay", "fromPlaces": ["review"], "toPlace": "paid" },
                { "id": "cancel", "fromPlaces": ["*"], "exceptPlaces": ["paid"], "toPlace": "void" },
            ],
        });
        let create = "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) {
            entryPlaces finalPlaces placeSettings { place name description metadata } transitions { id fromPlaces } warnings { code } } }";
        let expected = json!({
            "entryPlaces": ["draft", "review"], "finalPlaces": ["paid", "void"],
            "placeSettings": [{ "place": "review", "name": "In review (by a clerk)", "description": null,
                                "metadata": { "colour": "#0a0", "n": [1, null] } }],
            "transitions": [
                { "id": "submit", "fromPlaces": ["draft"] }, { "id": "pay", "fromPlaces": ["review"] },
                { "id": "cancel", "fromPlaces": ["draft", "review"] },
            ],
            "warnings": [],
        });
        // The same again is the one that is there, as it was stored.
        for _ in 0..2 {
            let made = api.data(create, json!({ "input": input })).await;
            assert_eq!(made["createWorkflow"], expected);
        }
        let mut other = input.clone();
        other["entryPlaces"] = json!([]);
        assert_eq!(
            api.error(create, json!({ "input": other })).await["extensions"]["code"],
            "WORKFLOW_EXISTS"
        );

        // What was left out is the same as what stands for it.
        let mut written = input.clone();
        written["entryPlaces"] = json!(["review", "draft"]);
        written["finalPlaces"] = json!(["void", "paid"]);
        let made = api.data(create, json!({ "input": written })).await;
        assert_eq!(made["createWorkflow"], expected);

        let begin =
            |place: &str| json!({ "input": { "workflowId": "claims", "initialPlace": place } });
        for place in ["draft", "review"] {
            assert_eq!(api.data(BEGIN, begin(place)).await["createToken"]["place"], place);
        }
        let error = api.error(BEGIN, begin("paid")).await;
        let message = "initialPlace: no token of workflow claims begins in place paid; one may begin in draft, review";
        assert_eq!(error["message"], message);
        assert_eq!(error["extensions"]["code"], "INVALID_INPUT");
        let details = json!({ "field": "initialPlace", "workflowId": "claims", "placeId": "paid", "initialPlace": "draft", "entryPlaces": ["review"] });
        assert_eq!(error["extensions"]["details"], details);
        assert_eq!(
            api.error(BEGIN, begin("nowhere")).await["extensions"]["code"],
            "PLACE_NOT_FOUND"
        );
    }

    pub async fn a_definition_says_where_tokens_are_completed(api: Api) {
        let mut input = review_input("f");
        input["transitions"][1]["fromPlaces"] = json!(["review", "done"]);
        input["finalPlaces"] = json!(["done"]);
        let create = "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { finalPlaces warnings { code path } } }";
        let made = api.data(create, json!({ "input": input })).await;
        assert_eq!(
            made["createWorkflow"],
            json!({ "finalPlaces": ["done"], "warnings": [] }),
            "done can be reopened"
        );
        let token = api.create_token("f", json!({})).await;
        for (transition, place) in
            [("submit", "review"), ("finish", "done"), ("reject", "draft"), ("submit", "review")]
        {
            let input = json!({ "input": { "tokenId": token, "transitionId": transition } });
            assert_eq!(api.data(FIRE, input).await["fireTransition"]["place"], place);
        }

        input["id"] = json!("g");
        input["finalPlaces"] = json!([]);
        let made = api.data(create, json!({ "input": input })).await;
        let warning = json!({ "code": "NO_WAY_OUT", "path": ["draft"] });
        assert_eq!(made["createWorkflow"], json!({ "finalPlaces": [], "warnings": [warning] }));
        input["id"] = json!("h");
        input["finalPlaces"] = json!(["done", "nowhere", "done"]);
        let error = api.error(create, json!({ "input": input })).await;
        let problems = error["extensions"]["details"]["problems"].as_array().unwrap();
        let fields: Vec<_> = problems.iter().map(|problem| problem["field"].clone()).collect();
        assert_eq!(fields, ["finalPlaces[1]", "finalPlaces[2]"]);
    }

    pub async fn a_condition_that_makes_no_sense_is_refused(api: Api) {
        let mut input = review_input("c");
        let conditions = json!(["token.data.amount > 5", "tokn.data.amount > 5", "1 + 1"]);
        input["transitions"][0]["conditions"] = conditions;
        let error = api.error(CREATE_WORKFLOW, json!({ "input": input })).await;
        assert_eq!(error["extensions"]["code"], "INVALID_WORKFLOW");
        let problem = |n: usize, message: &str| {
            json!({
                "problem": "INVALID_CONDITION", "field": format!("transitions[0].conditions[{n}]"), "message": message,
            })
        };
        let problems = json!([
            problem(1, "there is no name tokn; there are token, input, next, now, caller"),
            problem(2, "it is a whole number, not true or false"),
        ]);
        assert_eq!(error["extensions"]["details"]["problems"], problems);
    }

    pub async fn what_is_odd_about_a_graph_is_told_and_stored_all_the_same(api: Api) {
        let input = json!({
            "id": "odd", "name": "Odd", "initialPlace": "a", "places": ["a", "b", "c", "d"],
            "transitions": [
                { "id": "go", "fromPlaces": ["a"], "toPlace": "b" }, { "id": "turn", "fromPlaces": ["b"], "toPlace": "b" },
                { "id": "never", "fromPlaces": ["c"], "toPlace": "d" },
            ],
        });
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let query = "{ workflow(id: \"odd\") { warnings { code message path } } }";
        let warnings = api.data(query, json!({})).await["workflow"]["warnings"].take();
        assert_eq!(
            warnings,
            json!([
                { "code": "UNREACHABLE_PLACE", "message": "no path leads to place c from where tokens begin", "path": ["c"] },
                { "code": "UNREACHABLE_PLACE", "message": "no path leads to place d from where tokens begin", "path": ["d"] },
                { "code": "DEAD_TRANSITION", "message": "transition never starts only where no token can come", "path": ["c", "never"] },
                { "code": "NO_WAY_OUT", "path": ["a"],
                  "message": "a token that comes to place a is never completed: no final place can be reached from there, nor from where it leads: b" },
            ])
        );
    }

    pub async fn workflows_come_page_by_page(api: Api) {
        for n in 0..7 {
            api.create_review(&format!("w{n}")).await;
        }
        let query = "query($first: Int!, $after: String) { workflowConnection(first: $first, after: $after) {
            edges { cursor node { id } } pageInfo { hasNextPage endCursor } } }";
        let (mut after, mut found, mut pages) = (Value::Null, Vec::new(), 0);
        loop {
            let page =
                api.data(query, json!({ "first": 3, "after": after })).await["workflowConnection"]
                    .take();
            for edge in page["edges"].as_array().unwrap() {
                assert_eq!(edge["cursor"], edge["node"]["id"]);
                found.push(edge["cursor"].as_str().unwrap().to_owned());
            }
            pages += 1;
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
        }
        assert_eq!(found, ["w0", "w1", "w2", "w3", "w4", "w5", "w6"]);
        assert_eq!(pages, 3);
        let none = api.data(query, json!({ "first": 3, "after": "w6" })).await;
        let expected =
            json!({ "edges": [], "pageInfo": { "hasNextPage": false, "endCursor": null } });
        assert_eq!(none["workflowConnection"], expected);
        for (first, after) in [(0, "w0"), (1001, "w0"), (-1, "w0"), (1, "a b")] {
            let error = api.error(query, json!({ "first": first, "after": after })).await;
            assert_eq!(error["extensions"]["code"], "INVALID_INPUT", "{first} {after}");
        }
    }
}
