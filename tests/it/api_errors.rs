//! Every refusal of the table of errors, on every backend: its code, its details, its message, and
//! that nothing has changed. What a store does wrong is in `storage_errors`.

use circuit_breaker::domain::limits::VERSION_MAX;
use circuit_breaker::graphql::ErrorCode;
use serde_json::{Value, json};

use crate::support::{
    Api, CREATE_INSTANCE, CREATE_TOKEN, CREATE_WORKFLOW, FIRE, MOVE, new_token, on_every_backend,
    review_input, review_workflow,
};

on_every_backend! {
    what_is_not_there_is_named_where_it_is_acted_on_or_listed
    a_look_up_of_a_well_formed_id_that_is_not_there_is_null
    an_error_of_what_may_be_null_makes_nothing_else_null
    another_definition_under_a_taken_id_is_refused
    a_taken_token_id_is_refused_also_across_workflows
    a_transition_from_elsewhere_is_refused_with_what_may_fire
    a_token_that_has_used_up_its_versions_moves_no_more
    a_transition_that_leads_elsewhere_is_refused
    a_condition_that_is_false_is_named
    a_condition_that_cannot_be_evaluated_says_why
    another_version_than_the_expected_is_a_conflict
    of_a_mutation_that_fails_what_came_before_stays_done
}

/// A well-formed id that nothing has.
const NOBODY: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

mod case {
    use super::*;

    pub async fn what_is_not_there_is_named_where_it_is_acted_on_or_listed(api: Api) {
        let token = api.create_reviewed().await;
        let workflow = (
            "WORKFLOW_NOT_FOUND",
            json!({ "workflowId": "nope" }),
            "there is no workflow nope".to_owned(),
        );
        let place = (
            "PLACE_NOT_FOUND",
            json!({ "workflowId": "w", "placeId": "nope" }),
            "workflow w has no place nope".to_owned(),
        );
        let nobody = (
            "TOKEN_NOT_FOUND",
            json!({ "tokenId": NOBODY }),
            format!("there is no token {NOBODY}"),
        );
        let transition = (
            "TRANSITION_NOT_FOUND",
            json!({ "workflowId": "w", "transitionId": "nope" }),
            "workflow w has no transition nope".to_owned(),
        );
        for ((code, details, message), query) in [
            (&workflow, "{ tokens(workflowId: \"nope\") { id } }"),
            (&workflow, "{ tokensInPlace(workflowId: \"nope\", placeId: \"draft\") { id } }"),
            (&workflow, "{ tokenConnection(workflowId: \"nope\") { edges { cursor } } }"),
            (
                &workflow,
                "{ tokenConnection(workflowId: \"nope\", placeId: \"draft\") { edges { cursor } } }",
            ),
            (&workflow, "mutation { createToken(input: { workflowId: \"nope\" }) { id } }"),
            (
                &workflow,
                "mutation { createWorkflowInstance(input: { workflowId: \"nope\" }) { id } }",
            ),
            (&place, "{ tokensInPlace(workflowId: \"w\", placeId: \"nope\") { id } }"),
            (
                &place,
                "{ tokenConnection(workflowId: \"w\", placeId: \"nope\") { edges { cursor } } }",
            ),
            (
                &place,
                "mutation { createToken(input: { workflowId: \"w\", initialPlace: \"nope\" }) { id } }",
            ),
            (&nobody, "{ tokenHistory(tokenId: \"NOBODY\") { edges { cursor } } }"),
            (&nobody, "{ availableTransitions(tokenId: \"NOBODY\") { id } }"),
            (
                &nobody,
                "mutation { fireTransition(input: { tokenId: \"NOBODY\", transitionId: \"submit\" }) { id } }",
            ),
            (
                &nobody,
                "mutation { transitionTokenWithNats(input: { tokenId: \"NOBODY\", transitionId: \"submit\", newPlace: \"review\" }) { id } }",
            ),
            (
                &transition,
                "mutation { fireTransition(input: { tokenId: \"TOKEN\", transitionId: \"nope\" }) { id } }",
            ),
            (
                &transition,
                "mutation { transitionTokenWithNats(input: { tokenId: \"TOKEN\", transitionId: \"nope\", newPlace: \"review\" }) { id } }",
            ),
        ] {
            let query = query.replace("NOBODY", NOBODY).replace("TOKEN", &token);
            assert_eq!(api.refused(&query, json!({}), code, details.clone()).await, *message);
        }
    }

    pub async fn a_look_up_of_a_well_formed_id_that_is_not_there_is_null(api: Api) {
        let token = api.create_reviewed().await;
        api.create_review("other").await;
        let query = r#"query($token: String!, $nobody: String!) { a: token(id: $nobody) { id } b: natsToken(id: $nobody) { id }
            c: workflow(id: "nope") { id } d: findToken(workflowId: "nope", tokenId: $token) { id }
            e: findToken(workflowId: "other", tokenId: $token) { id } f: findToken(workflowId: "w", tokenId: $nobody) { id } }"#;
        let found = api.data(query, json!({ "token": token, "nobody": NOBODY })).await;
        assert_eq!(
            found,
            json!({ "a": null, "b": null, "c": null, "d": null, "e": null, "f": null })
        );
    }

    /// As the specification of GraphQL has it (6.4.4, handling of execution errors).
    pub async fn an_error_of_what_may_be_null_makes_nothing_else_null(api: Api) {
        let look_ups = [
            ("token", "token(id: \"nope\") { id }"),
            ("natsToken", "natsToken(id: \"nope\") { id }"),
            ("findToken", "findToken(workflowId: \"w\", tokenId: \"nope\") { id }"),
            ("workflow", "workflow(id: \"no pe\") { id }"),
        ];
        let nullable = "{ __type(name: \"Query\") { fields { name type { kind } } } }";
        let fields = api.data(nullable, json!({})).await["__type"]["fields"].take();
        for field in fields.as_array().unwrap() {
            let is_nullable = field["type"]["kind"] != "NON_NULL";
            assert_eq!(
                is_nullable,
                look_ups.iter().any(|(name, _)| field["name"] == **name),
                "{field}"
            );
        }
        for (name, look_up) in look_ups {
            let query = format!("{{ health {{ status }} {look_up} again: health {{ status }} }}");
            let answer = api.ask(&query, json!({})).await;
            let healthy = json!({ "status": "HEALTHY" });
            let data = json!({ "health": healthy, name: null, "again": healthy });
            assert_eq!(answer["data"], data);
            assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer}");
            assert_eq!(answer["errors"][0]["path"], json!([name]));
            assert_eq!(answer["errors"][0]["extensions"]["code"], "INVALID_ID");
        }
    }

    pub async fn another_definition_under_a_taken_id_is_refused(api: Api) {
        api.create_reviewed().await;
        for (path, value) in [
            ("/name", json!("Another name")),
            ("/description", json!("New.")),
            ("/initialPlace", json!("review")),
            ("/places", json!(["review", "draft", "done"])),
            ("/transitions/0/toPlace", json!("done")),
            ("/transitions/0/conditions", json!(["true"])),
        ] {
            let mut input = review_input("w");
            input["description"] = Value::Null;
            input["transitions"][0]["conditions"] = json!([]);
            *input.pointer_mut(path).unwrap() = value;
            let differs = path[1..].replace("transitions/0/", "transitions[0].");
            let details = json!({ "workflowId": "w", "differs": [differs] });
            let message = api
                .refused(CREATE_WORKFLOW, json!({ "input": input }), "WORKFLOW_EXISTS", details)
                .await;
            assert!(
                message.contains(&format!("the id w, which says something else in {differs};")),
                "{message}"
            );
        }
    }

    pub async fn a_taken_token_id_is_refused_also_across_workflows(api: Api) {
        let token = api.create_reviewed().await;
        api.create_review("other").await;
        let upper = token.to_uppercase();
        for (query, workflow, id) in [
            (CREATE_TOKEN, "w", &token),
            (CREATE_TOKEN, "other", &token),
            (CREATE_TOKEN, "w", &upper),
            (CREATE_INSTANCE, "w", &token),
            (CREATE_INSTANCE, "other", &upper),
        ] {
            let input = json!({ "input": { "id": id, "workflowId": workflow } });
            let message =
                api.refused(query, input, "TOKEN_EXISTS", json!({ "tokenId": token })).await;
            assert_eq!(
                message,
                format!(
                    "there is a token {token} already, in this workflow or another one; if this is a retry of the same creation, the first try worked"
                )
            );
        }
    }

    pub async fn a_transition_from_elsewhere_is_refused_with_what_may_fire(api: Api) {
        let token = api.create_reviewed().await;
        let fire =
            |transition: &str| json!({ "input": { "tokenId": token, "transitionId": transition } });
        let details = json!({ "transitionId": "finish", "place": "draft", "fromPlaces": ["review"], "mayFire": ["submit", "edit"] });
        let message =
            api.refused(FIRE, fire("finish"), "TRANSITION_NOT_ALLOWED", details.clone()).await;
        assert_eq!(
            message,
            format!(
                "transition finish starts from review, but token {token} is in draft, from where submit, edit start"
            )
        );
        let input =
            json!({ "input": { "tokenId": token, "transitionId": "finish", "newPlace": "done" } });
        api.refused(MOVE, input, "TRANSITION_NOT_ALLOWED", details).await;
        api.fire(&token, "submit").await;
        api.fire(&token, "finish").await;
        let details = json!({ "transitionId": "edit", "place": "done", "fromPlaces": ["draft"], "mayFire": [] });
        let message = api.refused(FIRE, fire("edit"), "TRANSITION_NOT_ALLOWED", details).await;
        assert!(message.ends_with("is in done, from where no transition leads on"), "{message}");
    }

    pub async fn a_token_that_has_used_up_its_versions_moves_no_more(api: Api) {
        api.create_review("w").await;
        let mut created = new_token(&review_workflow("w"), json!({}));
        created.token.version = VERSION_MAX;
        let token = created.token.id.to_string();
        api.storage().insert_token(created).await.unwrap();
        let input = json!({ "input": { "tokenId": token, "transitionId": "edit" } });
        let message =
            api.refused(FIRE, input, "TRANSITION_NOT_ALLOWED", json!({ "tokenId": token })).await;
        assert!(message.contains("2147483647 moves"), "{message}");
    }

    pub async fn a_transition_that_leads_elsewhere_is_refused(api: Api) {
        let token = api.create_reviewed().await;
        // Also a place that the workflow does not have: what counts is where the transition leads.
        for place in ["done", "draft", "nope"] {
            let input = json!({ "input": { "tokenId": token, "transitionId": "submit", "newPlace": place } });
            let details =
                json!({ "transitionId": "submit", "toPlace": "review", "newPlace": place });
            let message = api.refused(MOVE, input, "PLACE_MISMATCH", details).await;
            assert_eq!(message, format!("transition submit leads to review, not to {place}"));
        }
    }

    async fn guarded(api: &Api, condition: &str, data: Value) -> Value {
        let mut input = review_input("guarded");
        input["transitions"][0]["conditions"] = json!(["true", condition, "false"]);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let token = api.create_token("guarded", data).await;
        json!({ "input": { "tokenId": token, "transitionId": "submit", "data": { "late": true } } })
    }

    pub async fn a_condition_that_is_false_is_named(api: Api) {
        let condition = "token.data.amount < 100";
        let input = guarded(&api, condition, json!({ "amount": 100 })).await;
        let values = json!({ "token.data.amount": 100 });
        let details = json!({ "transitionId": "submit", "condition": condition, "values": values });
        let message = api.refused(FIRE, input, "CONDITION_FALSE", details).await;
        assert!(
            message.starts_with(
                "condition token.data.amount < 100 of transition submit is false for token "
            ),
            "{message}"
        );
    }

    pub async fn a_condition_that_cannot_be_evaluated_says_why(api: Api) {
        let condition = "token.data.approved_by == 'me'";
        let input = guarded(&api, condition, json!({ "amount": 100 })).await;
        let reason = "there is no member approved_by; has(a.approved_by) asks whether there is one";
        let details = json!({ "transitionId": "submit", "condition": condition, "reason": reason, "values": {} });
        let message = api.refused(FIRE, input, "CONDITION_FAILED", details).await;
        assert!(message.contains(condition) && message.ends_with(reason), "{message}");
    }

    pub async fn another_version_than_the_expected_is_a_conflict(api: Api) {
        let token = api.create_reviewed().await;
        let input = |version: u32| json!({ "input": { "tokenId": token, "transitionId": "submit", "expectedVersion": version } });
        let details = |expected: u32, version: u32, place: &str| json!({ "expectedVersion": expected, "version": version, "place": place });
        for expected in [1, 2, 4, VERSION_MAX] {
            let message =
                api.refused(FIRE, input(expected), "CONFLICT", details(expected, 3, "draft")).await;
            assert_eq!(
                message,
                format!("token {token} is at version 3 in place draft, not at version {expected}")
            );
        }
        // A retry of a move whose answer was lost: the version tells it from a refusal.
        api.data(FIRE, input(3)).await;
        api.refused(FIRE, input(3), "CONFLICT", details(3, 4, "review")).await;
        let moved = json!({ "input": { "tokenId": token, "transitionId": "submit", "newPlace": "review", "expectedVersion": 3 } });
        api.refused(MOVE, moved, "CONFLICT", details(3, 4, "review")).await;
    }

    /// The fields of a mutation are done in their order, each on its own. A failure leaves what came
    /// before it; as the fields are not nullable it ends the answer, and those after it are not done.
    pub async fn of_a_mutation_that_fails_what_came_before_stays_done(api: Api) {
        let token = api.create_reviewed().await;
        let fire = |name: &str, transition: &str| {
            format!(
                "{name}: fireTransition(input: {{ tokenId: \"{token}\", transitionId: \"{transition}\" }}) {{ place }} "
            )
        };
        let query = format!(
            "mutation {{ {}{}{} }}",
            fire("a", "submit"),
            fire("b", "submit"),
            fire("c", "finish")
        );
        let answer = api.ask(&query, json!({})).await;
        assert_eq!(answer["data"], Value::Null);
        assert_eq!(answer["errors"].as_array().map(Vec::len), Some(1), "{answer:#}");
        assert_eq!(answer["errors"][0]["path"], json!(["b"]));
        assert_eq!(answer["errors"][0]["extensions"]["code"], "TRANSITION_NOT_ALLOWED");
        let now = api.everything().await.tokens.remove(0).token;
        assert_eq!((now.place.as_str(), now.version), ("review", 4));
    }
}

/// All codes; a new one does not compile until it is here, and does not pass until a test has it.
fn all_codes() -> Vec<ErrorCode> {
    use ErrorCode::*;
    let all = [
        InvalidId,
        InvalidInput,
        InvalidWorkflow,
        WorkflowNotFound,
        PlaceNotFound,
        TokenNotFound,
        TransitionNotFound,
        WorkflowExists,
        TokenExists,
        TransitionNotAllowed,
        PlaceMismatch,
        ConditionFalse,
        ConditionFailed,
        Conflict,
        PayloadTooLarge,
        ResultTooLarge,
        QueryTooComplex,
        StorageFull,
        StorageUnavailable,
        Internal,
    ];
    let known = |code: &ErrorCode| match code {
        InvalidId | InvalidInput | InvalidWorkflow | WorkflowNotFound | PlaceNotFound
        | TokenNotFound => true,
        TransitionNotFound | WorkflowExists | TokenExists | TransitionNotAllowed
        | PlaceMismatch => true,
        ConditionFalse | ConditionFailed | Conflict | PayloadTooLarge | ResultTooLarge => true,
        QueryTooComplex | StorageFull | StorageUnavailable | Internal => true,
    };
    all.into_iter().filter(known).collect()
}

#[test]
fn every_code_is_asserted_by_a_test_and_only_one_is_retryable() {
    let tests = [
        include_str!("api_errors.rs"),
        include_str!("api_input_errors.rs"),
        include_str!("storage_errors.rs"),
    ]
    .concat();
    let codes = all_codes();
    assert_eq!(codes.len(), 20);
    for code in codes {
        assert!(
            tests.contains(&format!("\"{}\"", code.as_str())),
            "no test asserts {}",
            code.as_str()
        );
        assert_eq!(code.retryable(), code == ErrorCode::StorageUnavailable, "{}", code.as_str());
    }
}
