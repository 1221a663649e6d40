//! The examples that ship: their definitions, their data, and the quickstart as a person runs it.

use std::collections::HashSet;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::nats_server::{self, NatsServer};
use crate::support::{Api, Backend, CREATE_WORKFLOW, Server, runtime, server_binary};

/// Each workflow, how many rows its data has, and how many of their moves it refuses.
const EXAMPLES: [(&str, usize, usize); 3] =
    [("document_review", 14, 5), ("order_fulfilment", 14, 6), ("incident_response", 13, 5)];

fn definition(workflow: &str) -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/workflows/{workflow}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn quickstart(arguments: &[&str], url: Option<&str>) -> (Option<i32>, String, String) {
    let url = url.map(|url| ("CIRCUIT_BREAKER_URL", url));
    run("quickstart", arguments, url.as_slice())
}

fn run(
    example: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let binary: PathBuf = server_binary().parent().unwrap().join("examples").join(example);
    let mut command = Command::new(binary);
    command.env_clear().args(arguments).envs(variables.iter().copied());
    let Output { status, stdout, stderr } =
        command.output().expect("`cargo test` and `./test` build the examples");
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_example_is_accepted_has_conditions_and_no_place_that_is_out_of_reach() {
    for (workflow, ..) in EXAMPLES {
        let definition = definition(workflow);
        let transitions = definition["transitions"].as_array().unwrap();
        let conditions = |transition: &&Value| transition["conditions"].is_array();
        assert!(transitions.iter().filter(conditions).count() >= 4, "{workflow}");

        let mut reached = HashSet::from([definition["initialPlace"].as_str().unwrap()]);
        for _ in transitions {
            for transition in transitions {
                let from = transition["fromPlaces"].as_array().unwrap();
                if from.iter().any(|place| reached.contains(place.as_str().unwrap())) {
                    reached.insert(transition["toPlace"].as_str().unwrap());
                }
            }
        }
        assert_eq!(reached.len(), definition["places"].as_array().unwrap().len(), "{workflow}");

        for backend in Backend::all() {
            let api = Api::new(backend);
            let created = api.data(CREATE_WORKFLOW, json!({ "input": definition }));
            assert_eq!(runtime().block_on(created)["createWorkflow"]["id"], workflow);
        }
    }
}

#[test]
fn the_quickstart_shows_where_everything_is() {
    for (workflow, rows, refused) in EXAMPLES {
        // A server of its own choice, so that nothing on this machine's port 4000 is spoken to.
        let server = Server::start(&[("STORAGE_BACKEND", "memory")]);
        let url = format!("http://{}", server.address);
        let (status, output, errors) = quickstart(&[workflow], Some(&url));
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");
        assert_eq!(output.matches("is refused, CONDITION_").count(), refused, "{output}");
        assert!(output.contains(&format!("{rows} tokens created")), "{output}");
        let total = output.lines().find(|line| line.starts_with("in all")).unwrap();
        assert!(total.ends_with(&format!(" {rows}")), "{output}");
        assert!(output.contains("```mermaid\nflowchart LR\n"), "{output}");

        // What it says is what the server has.
        let definition = definition(workflow);
        let mut counted = 0;
        for place in definition["places"].as_array().unwrap() {
            let query = "query($w: String!, $p: String!) { tokensInPlace(workflowId: $w, placeId: $p) { id } }";
            let variables = json!({ "w": workflow, "p": place });
            let answer = server.client().ask(query, &variables).unwrap();
            let count = answer["data"]["tokensInPlace"].as_array().unwrap().len();
            let label = format!("[\"{}: {count}\"]", place.as_str().unwrap());
            assert!(output.contains(&label), "{label}\n{output}");
            counted += count;
        }
        assert_eq!(counted, rows);

        // Again, on the same server: the definition is there, the tokens are new ones.
        let (status, output, _) = quickstart(&[workflow], Some(&url));
        assert_eq!(status, Some(0), "{output}");
        let total = output.lines().find(|line| line.starts_with("in all")).unwrap();
        assert!(total.ends_with(&format!(" {}", 2 * rows)), "{output}");
    }
}

#[test]
fn the_quickstart_says_what_it_cannot_do() {
    let (status, _, errors) = quickstart(&["nothing"], None);
    assert_eq!(status, Some(2));
    assert!(errors.contains("order_fulfilment"), "{errors}");
    // Nobody can listen on port 0.
    let (status, _, errors) = quickstart(&[], Some("http://127.0.0.1:0"));
    assert_eq!(status, Some(1));
    assert!(errors.contains("CIRCUIT_BREAKER_URL") && errors.contains("cargo run"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert_eq!(quickstart(&["--help"], None).0, Some(0));
}

/// What the demo says of every step, wherever its servers come from.
fn the_demo_shows_all_steps(output: &str) {
    for text in [
        "\"storage\":\"nats\"",
        "a plain NATS client listens to cb.live.nats_demo.>",
        "\n1. ",
        "\n2. Create a workflow",
        "\n3. Create workflow instances",
        "on \"cb.workflows.nats_demo.places.draft.tokens.",
        "\n4. Make transitions",
        "approve: now in \"approved\"",
        "\n5. Ask where everything is",
        "in review now: ",
        "newest first: {\"transitionId\":\"approve\"",
        "place \"approved\"",
        "\n6. What must not happen",
        "PLACE_MISMATCH: ",
        "TRANSITION_NOT_ALLOWED: ",
        "CONFLICT: ",
    ] {
        assert!(output.contains(text), "{text}\n{output}");
    }
    assert_eq!(
        output.matches("heard on cb.live.nats_demo.events.transitions").count(),
        3,
        "{output}"
    );
    assert_eq!(output.matches(": left\n").count(), 3, "{output}");
}

#[test]
fn the_nats_demo_shows_each_step_against_a_server_on_nats() {
    let Some(nats) = NatsServer::start() else { return };
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &nats.url())]);
    let url = format!("http://{}", server.address);
    let variables = [("CIRCUIT_BREAKER_URL", url.as_str()), ("NATS_URL", &nats.url())];
    // Twice: the workflow is there already, its tokens are others.
    for in_review in [1, 2] {
        let (status, output, errors) = run("nats_demo", &[], &variables);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");
        the_demo_shows_all_steps(&output);
        assert!(output.contains(&format!("in review now: {in_review}\n")), "{output}");
    }
}

#[test]
fn the_nats_demo_starts_its_own_servers_where_there_are_none() {
    let Some(nats) = nats_server::binary() else { return };
    if TcpStream::connect("127.0.0.1:4000").is_ok() {
        // Somebody's own server is there: the demo would speak to it.
        return;
    }
    let variables = [("NATS_SERVER", nats.to_str().unwrap())];
    let (status, output, errors) = run("nats_demo", &[], &variables);
    assert_eq!((status, errors.as_str()), (Some(0), ""), "{output}");
    assert!(output.contains("this run has its own nats-server"), "{output}");
    the_demo_shows_all_steps(&output);
}

#[test]
fn the_nats_demo_says_what_it_cannot_do() {
    let server = Server::start(&[("STORAGE_BACKEND", "memory")]);
    let url = format!("http://{}", server.address);
    let (status, _, errors) = run("nats_demo", &[], &[("CIRCUIT_BREAKER_URL", &url)]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("STORAGE_BACKEND=nats") && errors.contains("memory"), "{errors}");
    let (status, _, errors) =
        run("nats_demo", &[], &[("CIRCUIT_BREAKER_URL", "http://127.0.0.1:0")]);
    assert_eq!(status, Some(1));
    assert!(errors.contains("no server answers there"), "{errors}");
}
