//! Every operation of the schema, on every backend, as a client uses it.

use circuit_breaker::domain::limits::EMBEDDED_HISTORY_MAX;
use serde_json::{Value, json};

use crate::support::{Api, CREATE_WORKFLOW, FIRE, on_every_backend, review_input};

on_every_backend! {
    a_workflow_is_created_and_read
    a_workflow_without_an_id_gets_one
    creating_the_same_workflow_again_answers_with_the_one_that_is_there
    a_token_lives_from_creation_to_completion
    data_is_merged_as_a_merge_patch
    a_variable_that_is_not_sent_is_left_out
    data_and_numbers_come_back_as_they_were_sent
    instances_are_created_and_moved_with_the_guide_s_operations
    a_look_up_of_what_is_not_there_is_null
    lists_show_tokens_where_they_are
    tokens_are_paged
    history_is_paged_through_all_moves
    a_token_carries_its_newest_moves_only
    available_transitions_are_those_whose_conditions_hold
    conditions_see_the_token_before_the_move_and_the_input
    of_racing_transitions_one_wins_and_the_others_hear_why
    racing_loops_all_get_through
    the_fields_of_one_mutation_are_done_in_order
    health_tells_the_backend
}

mod case {
    use super::*;

    pub async fn a_workflow_is_created_and_read(api: Api) {
        let mut input = review_input("document_review");
        input["description"] = json!("Reviews documents.");
        input["transitions"][0]["name"] = json!("Submit");
        input["transitions"][0]["conditions"] = json!(["size(token.data) > 0"]);
        let fields = "id name description places initialPlace createdAt updatedAt
            transitions { id name description fromPlaces toPlace conditions }";
        let create = format!(
            "mutation($input: WorkflowDefinitionInput!) {{ createWorkflow(input: $input) {{ {fields} }} }}"
        );
        let created = api.data(&create, json!({ "input": input })).await["createWorkflow"].take();
        assert_eq!(created["places"], json!(["draft", "review", "done"]));
        assert_eq!(created["transitions"][0]["conditions"], json!(["size(token.data) > 0"]));
        assert_eq!(created["transitions"][1]["conditions"], json!([]));
        assert_eq!(created["createdAt"], created["updatedAt"]);
        assert!(created["createdAt"].as_str().unwrap().ends_with('Z'));
        let read = format!(
            "{{ workflow(id: \"document_review\") {{ {fields} }} workflows {{ {fields} }} }}"
        );
        let read = api.data(&read, json!({})).await;
        assert_eq!(read["workflow"], created);
        assert_eq!(read["workflows"], json!([created]));
    }

    pub async fn a_workflow_without_an_id_gets_one(api: Api) {
        let mut input = review_input("");
        input.as_object_mut().unwrap().remove("id");
        let mut ids = Vec::new();
        for _ in 0..2 {
            let id =
                api.data(CREATE_WORKFLOW, json!({ "input": input })).await["createWorkflow"]["id"]
                    .take();
            ids.push(uuid::Uuid::parse_str(id.as_str().unwrap()).unwrap());
        }
        assert_ne!(ids[0], ids[1]);
    }

    pub async fn creating_the_same_workflow_again_answers_with_the_one_that_is_there(api: Api) {
        let create = "mutation($input: WorkflowDefinitionInput!) { createWorkflow(input: $input) { id createdAt } }";
        let variables = json!({ "input": review_input("w") });
        let first = api.data(create, variables.clone()).await;
        assert_eq!(api.data(create, variables).await, first);
        assert_eq!(
            api.data("{ workflows { id } }", json!({})).await["workflows"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    pub async fn a_token_lives_from_creation_to_completion(api: Api) {
        api.create_review("w").await;
        let fields = "id workflowId place version data metadata createdAt updatedAt history { fromPlace toPlace transition timestamp data }";
        let create = format!(
            "mutation($input: TokenCreateInput!) {{ createToken(input: $input) {{ {fields} }} }}"
        );
        let input = json!({ "workflowId": "w", "data": { "title": "Q3" }, "metadata": { "department": "finance" } });
        let created = api.data(&create, json!({ "input": input })).await["createToken"].take();
        assert_eq!(created["place"], "draft");
        assert_eq!(created["version"], 1);
        assert_eq!(created["metadata"], json!({ "department": "finance" }));
        assert_eq!(created["history"], json!([]));
        let id = created["id"].as_str().unwrap().to_owned();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 7);

        let fire = format!(
            "mutation($input: TransitionFireInput!) {{ fireTransition(input: $input) {{ {fields} }} }}"
        );
        let input = json!({ "tokenId": id, "transitionId": "submit", "data": { "pages": 3 }, "triggeredBy": "ann" });
        let moved = api.data(&fire, json!({ "input": input })).await["fireTransition"].take();
        assert_eq!((&moved["place"], &moved["version"]), (&json!("review"), &json!(2)));
        assert_eq!(moved["data"], json!({ "title": "Q3", "pages": 3 }));
        assert_eq!(moved["createdAt"], created["createdAt"]);
        assert_eq!(moved["history"][0]["data"], json!({ "pages": 3 }));
        assert_eq!(moved["history"][0]["timestamp"], moved["updatedAt"]);

        let done = api.fire(&id, "finish").await;
        assert_eq!((&done["place"], &done["version"]), (&json!("done"), &json!(3)));
        let read = api.data("query($id: String!) { token(id: $id) { place } natsToken(id: $id) { place } findToken(workflowId: \"w\", tokenId: $id) { place } }", json!({ "id": id })).await;
        assert_eq!(
            read,
            json!({ "token": { "place": "done" }, "natsToken": { "place": "done" }, "findToken": { "place": "done" } })
        );
    }

    pub async fn data_is_merged_as_a_merge_patch(api: Api) {
        api.create_review("w").await;
        let token = api
            .create_token("w", json!({ "keep": 1, "drop": 2, "nested": { "a": 1, "b": 2 } }))
            .await;
        let patch = json!({ "drop": null, "nested": { "b": null, "c": 3 }, "new": [1] });
        let input = json!({ "tokenId": token, "transitionId": "edit", "data": patch });
        let moved = api.data(FIRE, json!({ "input": input })).await;
        let expected = r#"{"keep":1,"nested":{"a":1,"c":3},"new":[1]}"#;
        assert_eq!(moved["fireTransition"]["data"].to_string(), expected);
        let untouched =
            json!({ "input": { "tokenId": token, "transitionId": "edit", "data": null } });
        assert_eq!(
            api.data(FIRE, untouched).await["fireTransition"]["data"].to_string(),
            expected,
            "null is nothing given"
        );
    }

    pub async fn a_variable_that_is_not_sent_is_left_out(api: Api) {
        api.create_review("w").await;
        let kept = json!({ "note": "keep", "n": 1, "deep": { "note": "keep" } });
        let id = api.create_token("w", kept).await;
        let fire = format!(
            "mutation($note: String, $n: Int, $by: String) {{ fireTransition(input: {{ tokenId: \"{id}\",
              transitionId: \"submit\", triggeredBy: $by,
              data: {{ note: $note, n: $n, deep: {{ note: $note }}, list: [$note] }} }}) {{ data }} }}"
        );
        let moved = api.data(&fire, json!({ "n": 2 })).await;
        let data = json!({ "note": "keep", "n": 2, "deep": { "note": "keep" }, "list": [null] });
        assert_eq!(moved["fireTransition"]["data"], data);
        let back = fire.replace("submit", "reject");
        let moved = api.data(&back, json!({ "note": null, "n": 3 })).await;
        assert_eq!(moved["fireTransition"]["data"], json!({ "n": 3, "deep": {}, "list": [null] }));
        // An argument has its default, or is not given.
        let page = "query($first: Int, $w: String) { tokenConnection(first: $first, workflowId: $w) { edges { cursor } } }";
        let listed = api.data(page, json!({})).await;
        assert_eq!(listed["tokenConnection"]["edges"].as_array().unwrap().len(), 1);
        let error = api.error("query($id: String!) { token(id: $id) { id } }", json!({})).await;
        assert_eq!(
            error["message"],
            "variable $id of type String! is required; send it in variables"
        );
        assert_eq!(error["extensions"]["code"], "INVALID_INPUT");
    }

    pub async fn data_and_numbers_come_back_as_they_were_sent(api: Api) {
        api.create_review("w").await;
        let text = r#"{"z":1,"a":18446744073709551615,"m":-9223372036854775808,"f":1.0,"g":0.1,"e":"é🎈\u0000"}"#;
        let token = api.create_token("w", serde_json::from_str(text).unwrap()).await;
        let read = api
            .data("query($id: String!) { token(id: $id) { data } }", json!({ "id": token }))
            .await;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read["token"]["data"].to_string(), expected.to_string());
        let inline = "mutation { createToken(input: { workflowId: \"w\", data: {z: 1, a: 18446744073709551615, m: -9223372036854775808, f: 1.0, n: null} }) { data } }";
        let read = api.data(inline, json!({})).await["createToken"]["data"].take();
        assert_eq!(
            read.to_string(),
            r#"{"z":1,"a":18446744073709551615,"m":-9223372036854775808,"f":1.0,"n":null}"#
        );
    }

    pub async fn instances_are_created_and_moved_with_the_guide_s_operations(api: Api) {
        api.create_review("document_review").await;
        let created = api
            .data(
                r#"mutation CreateInstance {
                  createWorkflowInstance(input: {
                    workflowId: "document_review"
                    initialData: { title: "Quarterly Report" priority: "high" }
                    metadata: { department: "finance" created_by: "user@example.com" }
                    triggeredBy: "api_client"
                  }) { id workflowId place natsSequence natsTimestamp natsSubject transitionHistory { fromPlace toPlace timestamp triggeredBy } }
                }"#,
                json!({}),
            )
            .await["createWorkflowInstance"]
            .take();
        let on_nats = api.storage().name() == "nats";
        assert_eq!(created["natsSequence"].is_string(), on_nats);
        assert_eq!(created["natsTimestamp"].is_string(), on_nats);
        assert_eq!(created["natsSubject"].is_string(), on_nats);
        let move_it = "mutation($input: TransitionTokenWithNATSInput!) { transitionTokenWithNats(input: $input) {
            id place transitionHistory { transitionId triggeredBy fromPlace toPlace natsSequence metadata } } }";
        let input = json!({ "tokenId": created["id"], "transitionId": "submit", "newPlace": "review", "triggeredBy": "user@example.com", "expectedVersion": 1 });
        let mut moved =
            api.data(move_it, json!({ "input": input })).await["transitionTokenWithNats"].take();
        assert_eq!(moved["place"], "review");
        assert_eq!(moved["transitionHistory"][0]["natsSequence"].take().is_string(), on_nats);
        assert_eq!(
            moved["transitionHistory"],
            json!([{ "transitionId": "submit", "triggeredBy": "user@example.com", "fromPlace": "draft", "toPlace": "review", "natsSequence": null, "metadata": null }])
        );
    }

    pub async fn a_look_up_of_what_is_not_there_is_null(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        let read = api
            .data(
                "query($here: String!) { token(id: \"01890a5d-ac96-774b-bcce-b302099a8057\") { id } natsToken(id: \"01890a5d-ac96-774b-bcce-b302099a8057\") { id }
                  workflow(id: \"nothing\") { id } a: findToken(workflowId: \"nothing\", tokenId: $here) { id }
                  b: findToken(workflowId: \"w\", tokenId: \"01890a5d-ac96-774b-bcce-b302099a8057\") { id } }",
                json!({ "here": token }),
            )
            .await;
        assert!(read.as_object().unwrap().values().all(Value::is_null), "{read}");
    }

    pub async fn lists_show_tokens_where_they_are(api: Api) {
        api.create_review("a").await;
        api.create_review("b").await;
        let first = api.create_token("a", json!({})).await;
        let second = api.create_token("a", json!({})).await;
        let other = api.create_token("b", json!({})).await;
        api.fire(&first, "submit").await;
        let read = api
            .data(
                r#"{ draft: tokensInPlace(workflowId: "a", placeId: "draft") { id } review: tokensInPlace(workflowId: "a", placeId: "review") { id }
                   done: tokensInPlace(workflowId: "a", placeId: "done") { id } a: tokens(workflowId: "a") { id } all: tokens { id } }"#,
                json!({}),
            )
            .await;
        let ids = |name: &str| {
            read[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["id"].as_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids("draft"), [&second]);
        assert_eq!(ids("review"), [&first]);
        assert!(ids("done").is_empty());
        assert_eq!(ids("a"), [&second, &first]);
        assert_eq!(ids("all"), [&second, &other, &first]);
    }

    pub async fn tokens_are_paged(api: Api) {
        api.create_review("w").await;
        let mut created = Vec::new();
        for n in 0..7 {
            created.push(api.create_token("w", json!({ "n": n })).await);
        }
        let query = "query($after: String) { tokenConnection(workflowId: \"w\", placeId: \"draft\", first: 3, after: $after) {
            edges { cursor node { id data natsSequence } } pageInfo { hasNextPage endCursor } } }";
        let (mut seen, mut after, mut pages) = (Vec::new(), Value::Null, 0);
        loop {
            let page = api.data(query, json!({ "after": after })).await["tokenConnection"].take();
            let edges = page["edges"].as_array().unwrap();
            assert_eq!(page["pageInfo"]["endCursor"], edges.last().unwrap()["cursor"]);
            seen.extend(edges.iter().map(|edge| edge["node"]["id"].as_str().unwrap().to_owned()));
            pages += 1;
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
        }
        assert_eq!((seen, pages), (created, 3));
        let empty = api.data("{ tokenConnection(workflowId: \"w\", placeId: \"done\") { edges { cursor } pageInfo { hasNextPage endCursor } } }", json!({})).await;
        assert_eq!(
            empty["tokenConnection"],
            json!({ "edges": [], "pageInfo": { "hasNextPage": false, "endCursor": null } })
        );
        let all = api.data("{ tokenConnection { edges { cursor } } }", json!({})).await;
        assert_eq!(all["tokenConnection"]["edges"].as_array().unwrap().len(), 7);
    }

    pub async fn history_is_paged_through_all_moves(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        for n in 0..120 {
            let input = json!({ "tokenId": token, "transitionId": "edit", "data": { "n": n }, "triggeredBy": format!("user {n}") });
            api.data(FIRE, json!({ "input": input })).await;
        }
        let query = "query($id: String!, $after: String) { tokenHistory(tokenId: $id, after: $after) {
            edges { cursor node { fromPlace toPlace transitionId timestamp triggeredBy data } } pageInfo { hasNextPage endCursor } } }";
        let (mut seen, mut after) = (Vec::new(), Value::Null);
        loop {
            let page =
                api.data(query, json!({ "id": token, "after": after })).await["tokenHistory"]
                    .take();
            seen.extend(page["edges"].as_array().unwrap().iter().map(|edge| edge["node"].clone()));
            after = page["pageInfo"]["endCursor"].clone();
            if page["pageInfo"]["hasNextPage"] == false {
                break;
            }
            assert_eq!(page["edges"].as_array().unwrap().len(), 50, "the default page");
        }
        assert_eq!(seen.len(), 120);
        let other = api.create_token("w", json!({})).await;
        let refused = api.error(query, json!({ "id": other, "after": after })).await;
        assert_eq!(refused["extensions"]["code"], "INVALID_INPUT");
        assert_eq!(refused["extensions"]["details"]["field"], "after");
        for (n, record) in (0..120).rev().zip(&seen) {
            assert_eq!(record["data"], json!({ "n": n }));
            assert_eq!(record["triggeredBy"], format!("user {n}"));
        }
    }

    pub async fn a_token_carries_its_newest_moves_only(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        for n in 0..20 {
            let data =
                if n == 19 { json!({ "long": "x".repeat(2_000) }) } else { json!({ "n": n }) };
            let input = json!({ "tokenId": token, "transitionId": "edit", "data": data });
            api.data(FIRE, json!({ "input": input })).await;
        }
        let read = api.data("query($id: String!) { natsToken(id: $id) { history { data } transitionHistory { transitionId } } }", json!({ "id": token })).await;
        let history = read["natsToken"]["history"].as_array().unwrap().clone();
        assert_eq!(history.len(), EMBEDDED_HISTORY_MAX);
        assert_eq!(
            read["natsToken"]["transitionHistory"].as_array().unwrap().len(),
            EMBEDDED_HISTORY_MAX
        );
        assert_eq!(history[0]["data"], json!({ "n": 20 - EMBEDDED_HISTORY_MAX }), "oldest first");
        assert_eq!(
            history[EMBEDDED_HISTORY_MAX - 1]["data"],
            Value::Null,
            "long data is in tokenHistory alone"
        );
    }

    fn with_conditions(conditions: [&str; 3]) -> Value {
        let mut input = review_input("c");
        input["transitions"] = json!([
            { "id": "small", "fromPlaces": ["draft"], "toPlace": "review", "conditions": [conditions[0]] },
            { "id": "large", "fromPlaces": ["draft"], "toPlace": "done", "conditions": [conditions[1], conditions[2]] },
            { "id": "asks", "fromPlaces": ["draft"], "toPlace": "done", "conditions": ["input.approver != ''"] },
            { "id": "elsewhere", "fromPlaces": ["review"], "toPlace": "done" },
        ]);
        input
    }

    pub async fn available_transitions_are_those_whose_conditions_hold(api: Api) {
        let input = with_conditions([
            "token.data.amount < 100",
            "token.data.amount >= 100",
            "token.place == 'draft'",
        ]);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let query =
            "query($id: String!) { availableTransitions(tokenId: $id) { id toPlace conditions } }";
        for (data, expected) in [
            (json!({ "amount": 5 }), vec!["small"]),
            (json!({ "amount": 99.5 }), vec!["small"]),
            (json!({ "amount": 100 }), vec!["large"]),
            (json!({ "amount": 18446744073709551615_u64 }), vec!["large"]),
            (json!({ "amount": "many" }), vec![]),
            (json!({}), vec![]),
        ] {
            let token = api.create_token("c", data.clone()).await;
            let read = api.data(query, json!({ "id": token })).await["availableTransitions"].take();
            let ids: Vec<_> =
                read.as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
            assert_eq!(ids, expected, "{data}");
        }
    }

    pub async fn conditions_see_the_token_before_the_move_and_the_input(api: Api) {
        let mut input = review_input("c");
        input["transitions"] = json!([{ "id": "go", "fromPlaces": ["draft"], "toPlace": "draft", "conditions": [
            "token.data.step == input.from", "token.place == 'draft'", "token.version >= 1",
            "token.metadata.team == 'a'", "token.id.size() == 36", "token.created_at <= token.updated_at",
        ] }]);
        api.data(CREATE_WORKFLOW, json!({ "input": input })).await;
        let create = "mutation { createToken(input: { workflowId: \"c\", data: {step: 0}, metadata: {team: \"a\"} }) { id } }";
        let token = api.data(create, json!({})).await["createToken"]["id"].take();
        for step in 0..3 {
            let data = json!({ "from": step, "step": step + 1 });
            api.data(
                FIRE,
                json!({ "input": { "tokenId": token, "transitionId": "go", "data": data } }),
            )
            .await;
        }
        let stale = json!({ "input": { "tokenId": token, "transitionId": "go", "data": { "from": 0, "step": 9 } } });
        assert_eq!(api.error(FIRE, stale).await["extensions"]["code"], "CONDITION_FALSE");
    }

    pub async fn of_racing_transitions_one_wins_and_the_others_hear_why(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        let api = std::sync::Arc::new(api);
        let racers: Vec<_> = (0..50)
            .map(|_| {
                let (api, token) = (std::sync::Arc::clone(&api), token.clone());
                tokio::spawn(async move {
                    api.ask(
                        FIRE,
                        json!({ "input": { "tokenId": token, "transitionId": "submit" } }),
                    )
                    .await
                })
            })
            .collect();
        let mut won = 0;
        for racer in racers {
            let answer = racer.await.unwrap();
            match answer.get("errors") {
                None => won += 1,
                Some(errors) => {
                    assert_eq!(errors[0]["extensions"]["code"], "TRANSITION_NOT_ALLOWED");
                    assert_eq!(errors[0]["extensions"]["details"]["place"], "review");
                }
            }
        }
        assert_eq!(won, 1);
    }

    pub async fn racing_loops_all_get_through(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        let api = std::sync::Arc::new(api);
        let racers: Vec<_> = (0..20)
            .map(|n| {
                let (api, token) = (std::sync::Arc::clone(&api), token.clone());
                let input = json!({ "tokenId": token, "transitionId": "edit", "data": { (format!("k{n}")): n } });
                tokio::spawn(async move { api.data(FIRE, json!({ "input": input })).await })
            })
            .collect();
        for racer in racers {
            racer.await.unwrap();
        }
        let read = api
            .data("query($id: String!) { token(id: $id) { version data } }", json!({ "id": token }))
            .await;
        assert_eq!(read["token"]["version"], 21);
        assert_eq!(read["token"]["data"].as_object().unwrap().len(), 20, "no patch is lost");
    }

    pub async fn the_fields_of_one_mutation_are_done_in_order(api: Api) {
        api.create_review("w").await;
        let token = api.create_token("w", json!({})).await;
        let query = format!(
            r#"mutation {{ a: fireTransition(input: {{ tokenId: "{token}", transitionId: "submit" }}) {{ place }}
                b: fireTransition(input: {{ tokenId: "{token}", transitionId: "reject" }}) {{ place }}
                c: fireTransition(input: {{ tokenId: "{token}", transitionId: "submit" }}) {{ place version }} }}"#
        );
        let done = api.data(&query, json!({})).await;
        assert_eq!(done["c"], json!({ "place": "review", "version": 4 }));

        // Those before one that fails stay, and are named.
        let query = format!(
            r#"mutation {{ a: fireTransition(input: {{ tokenId: "{token}", transitionId: "reject" }}) {{ place }}
                createToken(input: {{ workflowId: "w" }}) {{ id }}
                b: fireTransition(input: {{ tokenId: "{token}", transitionId: "reject" }}) {{ place }}
                c: fireTransition(input: {{ tokenId: "{token}", transitionId: "submit" }}) {{ place }} }}"#
        );
        let error = api.error(&query, json!({})).await;
        assert_eq!(
            error["extensions"]["details"]["done"],
            json!(["a", "createToken"]),
            "{error:#}"
        );
        assert_eq!(error["path"], json!(["b"]));
        assert_eq!(error["extensions"]["details"]["place"], "draft", "what else it tells stays");
        let all = api.data("{ tokens { place version } }", json!({})).await;
        assert_eq!(all["tokens"].as_array().unwrap().len(), 2);
        let moved = json!({ "place": "draft", "version": 5 });
        assert!(all["tokens"].as_array().unwrap().contains(&moved), "{all}");
    }

    pub async fn health_tells_the_backend(api: Api) {
        let health =
            api.data("{ health { status storage detail } }", json!({})).await["health"].take();
        assert_eq!(health["status"], "HEALTHY");
        assert!(["memory", "sqlite", "nats"].contains(&health["storage"].as_str().unwrap()));
        assert_eq!(health["detail"], Value::Null);
    }
}
