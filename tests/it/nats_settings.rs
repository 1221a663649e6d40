//! The start on NATS: what is made, changed, refused and said; the variables and ways to log in.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use circuit_breaker::storage::{
    PageLimit, StorageError, StorageHealth, TokenScope, WorkflowStorage,
};
use circuit_breaker::{NATSOpenError, NATSStorage, NATSStorageConfig, NATSStorageOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::nats_bus::{Bus, STREAM};
use crate::nats_life::{Node, healthy};
use crate::nats_races::create_workflow;
use crate::nats_server::{self, Cluster, NatsServer, configured, free_port};
use crate::support::{
    CREATE_WORKFLOW, FIRE, Server, as_written, fired, new_token, review_input, review_workflow,
    runtime, server_command, workflow_id,
};

/// Starts a server that must end by itself, and gives its exit status and what it said.
fn refused(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut all = vec![("STORAGE_BACKEND", "nats")];
    all.extend(variables);
    let mut child = server_command(&all).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// What is in the stream's configuration beside what nats-server notes there itself.
async fn settings(bus: &Bus) -> Value {
    let mut config = bus.stream().await["config"].take();
    config.as_object_mut().unwrap().remove("metadata");
    config
}

#[test]
fn the_stream_is_made_as_the_documentation_says() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        nats.open().await.close().await;
        let bus = Bus::connect(&nats).await;
        let names = bus.done("STREAM.NAMES", &Value::Null).await;
        assert_eq!(names["streams"], json!([STREAM]), "nothing else is made");
        let config = settings(&bus).await;
        for (field, value) in [
            (
                "subjects",
                json!([
                    "cb.workflows.*.definition",
                    "cb.workflows.*.places.*.tokens.*",
                    "cb.workflows.*.events.transitions",
                    "cb.workflows.*.events.lifecycle",
                    "cb.tokens.*",
                    "cb.store.>"
                ]),
            ),
            ("retention", json!("limits")),
            ("storage", json!("file")),
            ("discard", json!("new")),
            ("max_age", json!(0)),
            ("max_msgs", json!(1_000_000)),
            ("max_bytes", json!(1 << 30)),
            ("num_replicas", json!(1)),
            ("duplicate_window", json!(100_000_000_u64)),
            ("allow_direct", json!(true)),
            ("allow_atomic", json!(true)),
            ("allow_msg_ttl", json!(true)),
            ("allow_rollup_hdrs", json!(true)),
            ("republish", json!({ "src": "cb.workflows.>", "dest": "cb.live.>" })),
        ] {
            assert_eq!(config[field], value, "{field}");
        }
    });
}

#[test]
fn what_an_operator_added_stays_and_so_do_all_tokens() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        let stored =
            storage.insert_token(new_token(&review_workflow("w"), json!({}))).await.unwrap();
        storage.close().await;
        let bus = Bus::connect(&nats).await;
        let mut config = settings(&bus).await;
        config["subjects"].as_array_mut().unwrap().push("audit.>".into());
        config["description"] = "ours".into();
        bus.done(&format!("STREAM.UPDATE.{STREAM}"), &config).await;
        let before = settings(&bus).await;

        let storage = nats.open().await;
        let found = storage.load_token(stored.token.id, None).await.unwrap();
        assert_eq!(found.map(|found| as_written(&found)), Some(stored));
        assert_eq!(settings(&bus).await, before, "it is left as it is");
        storage.close().await;
    });
}

#[test]
fn a_stream_as_the_guide_makes_it_is_changed_where_that_loses_nothing() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let bus = Bus::connect(&nats).await;
        // "Stream Configuration Details".
        let guide = json!({
            "name": STREAM,
            "subjects": ["cb.workflows.*.definition", "cb.workflows.*.places.*.tokens.*", "cb.workflows.*.events.*"],
            "retention": "limits", "discard": "old", "storage": "file", "max_msgs": 1_000_000,
            "max_bytes": 1 << 30, "max_age": 7_u64 * 24 * 60 * 60 * 1_000_000_000, "num_replicas": 1,
            "duplicate_window": 120_000_000_000_u64,
        });
        bus.done(&format!("STREAM.CREATE.{STREAM}"), &guide).await;
        let sent = bus.client.request("cb.workflows.x.definition", "{}".into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&sent.payload).contains("error"));

        let storage = nats.open().await;
        let config = settings(&bus).await;
        assert_eq!((&config["discard"], &config["max_age"]), (&json!("new"), &json!(0)));
        assert_eq!((&config["allow_atomic"], &config["allow_msg_ttl"]), (&json!(true), &json!(true)));
        assert_eq!(config["republish"]["dest"], "cb.live.>");
        assert_eq!(config["duplicate_window"], 100_000_000_u64);
        assert!(bus.last("cb.workflows.x.definition").await.is_some(), "what was there is there");
        let stored = storage.insert_token(new_token(&review_workflow("w"), json!({}))).await.unwrap();
        assert!(stored.token.nats_sequence.is_some());
        storage.close().await;
    });
}

#[test]
fn other_settings_stop_the_start_with_both_values_and_are_left_alone() {
    for (field, value, texts) in [
        ("retention", json!("workqueue"), ["\"workqueue\"", "\"limits\""]),
        ("storage", json!("memory"), ["\"memory\"", "\"file\""]),
        ("max_msg_size", json!(1_000), ["max_msg_size", "1000"]),
        ("deny_purge", json!(true), ["deny_purge is true", "false"]),
    ] {
        let Some(nats) = NatsServer::start() else { return };
        let runtime = runtime();
        let bus = runtime.block_on(Bus::connect(&nats));
        let mut config =
            json!({ "name": STREAM, "subjects": ["cb.workflows.*.definition"], "storage": "file" });
        config[field] = value;
        runtime.block_on(bus.done(&format!("STREAM.CREATE.{STREAM}"), &config));
        let before = runtime.block_on(bus.stream());
        let (status, errors) = refused(&[("NATS_URL", &nats.url())]);
        assert_eq!(status, Some(1), "{errors}");
        for text in texts.into_iter().chain([STREAM, field, "error: "]) {
            assert!(errors.contains(text), "{text} is missing: {errors}");
        }
        let after = runtime.block_on(bus.stream());
        assert_eq!((&after["config"], &after["created"]), (&before["config"], &before["created"]));
    }
}

#[test]
fn a_stream_with_other_replicas_stops_the_start() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async { nats.open().await.close().await });
    let (status, errors) = refused(&[("NATS_URL", &nats.url()), ("NATS_REPLICAS", "3")]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("num_replicas from 1 to 3"), "{errors}");
    assert!(errors.contains("not supported in non-clustered mode"), "{errors}");
}

/// A node is lost for good, or not there yet.
#[test]
fn a_stream_with_fewer_replicas_than_there_are_nodes_for_works_and_gets_them_later() {
    let Some(mut cluster) = Cluster::start_some(2) else { return };
    let runtime = runtime();
    runtime.block_on(async {
        NATSStorage::new(cluster.config(0)).await.unwrap().close().await;
        let node = Node::over(Arc::new(cluster.open(0).await));
        node.define("w").await;
        for _ in 0..2 {
            let is_degraded = |health: &_| matches!(health, StorageHealth::Degraded(_));
            let why = node.health("it has too few", is_degraded).await;
            assert!(why.contains("1 of the 3 replicas") && why.contains("another node"), "{why}");
            node.create("w").await;
        }
        cluster.nodes[2].run();
        node.health("a node has come", healthy).await;
        let bus = Bus::connect(&cluster.nodes[0]).await;
        assert_eq!(bus.stream().await["config"]["num_replicas"], 3);
        node.create("w").await;
        node.storage.close().await;
    });
}

#[test]
fn a_stream_that_has_our_subjects_is_named() {
    let Some(nats) = NatsServer::start() else { return };
    let runtime = runtime();
    let bus = runtime.block_on(Bus::connect(&nats));
    let other = json!({ "name": "OTHER", "subjects": ["cb.workflows.*.definition", "x"] });
    runtime.block_on(bus.done("STREAM.CREATE.OTHER", &other));
    let (status, errors) = refused(&[("NATS_URL", &nats.url())]);
    assert_eq!(status, Some(1), "{errors}");
    for text in ["cb.workflows.*.definition in stream OTHER", "10065"] {
        assert!(errors.contains(text), "{text} is missing: {errors}");
    }
    let names = runtime.block_on(bus.done("STREAM.NAMES", &Value::Null));
    assert_eq!(names["streams"], json!(["OTHER"]));
}

#[test]
fn a_nats_server_without_jetstream_is_refused() {
    let Some(binary) = nats_server::binary() else { return };
    let nats = NatsServer::with(binary, &[]);
    let (status, errors) = refused(&[("NATS_URL", &nats.url())]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("JetStream is not enabled on nats-server"), "{errors}");
    assert!(errors.contains("--jetstream"), "{errors}");
}

fn url_of(nats: &NatsServer, login: &str) -> String {
    format!("nats://{login}@127.0.0.1:{}", nats.port)
}

#[test]
fn an_account_without_jetstream_is_refused() {
    let accounts = "accounts {
        A { jetstream: enabled, users: [ { user: a, password: secret-a } ] }
        B { users: [ { user: b, password: secret-b } ] }
    }";
    let Some((nats, _folder)) = configured(accounts) else { return };
    let (status, errors) = refused(&[("NATS_URL", &url_of(&nats, "b:secret-b"))]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("JetStream does not answer the account"), "{errors}");
    assert!(!errors.contains("secret"), "{errors}");
    let server =
        Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &url_of(&nats, "a:secret-a"))]);
    assert_eq!(server.client().get("/health/ready").0, 200);
    let (_, log) = server.stop();
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn a_wrong_password_makes_the_server_not_ready_and_says_so() {
    let login = "authorization { user: me, password: right }";
    let Some((nats, _folder)) = configured(login) else { return };
    let url = url_of(&nats, "me:wr0ng");
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &url)]);
    let (status, body) = server.client().get("/health/ready");
    assert_eq!(status, 503, "{body}");
    server.wait_for_log("the store cannot be opened yet");
    let (_, log) = server.stop();
    assert!(log.to_lowercase().contains("authorization"), "{log}");
    assert!(!log.contains("wr0ng") && !body.contains("wr0ng"), "{log} {body}");
    let right = url_of(&nats, "me:right");
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &right)]);
    assert_eq!(server.client().get("/health/ready").0, 200);
}

/// An authority, and certificates of it for the server and for a client, as files.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let mut authority = CertificateParams::new(vec![]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(authority, key).unwrap();
        write("ca.pem", authority.pem());
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let certificate = CertificateParams::new(names).unwrap();
            let certificate = certificate.signed_by(&key, &authority).unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}-key.pem"), key.serialize_pem());
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn tls_is_spoken_where_it_is_asked_for_and_certificates_are_checked() {
    let files = Certificates::new();
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        files.path("server.pem"),
        files.path("server-key.pem"),
        files.path("ca.pem")
    );
    let Some((nats, _folder)) = configured(&tls) else { return };
    let url = format!("tls://127.0.0.1:{}", nats.port);
    let (ca, cert, key) =
        (files.path("ca.pem"), files.path("client.pem"), files.path("client-key.pem"));
    let client = [("NATS_TLS_CERT_FILE", cert.as_str()), ("NATS_TLS_KEY_FILE", &key)];
    let ready = |more: &[(&str, &str)]| {
        let mut variables = vec![("STORAGE_BACKEND", "nats"), ("NATS_URL", &url)];
        variables.extend(more);
        let server = Server::start(&variables);
        let said = server.client().get("/health/ready");
        (said.0, said.1, server)
    };
    let mut all = vec![("NATS_TLS_CA_FILE", ca.as_str())];
    all.extend(client);
    let (status, said, _server) = ready(&all);
    assert_eq!(status, 200, "{said}");
    let (status, mut said, server) = ready(&client);
    assert_eq!(status, 503, "who made the certificate is not known: {said}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !said.contains("certificate") {
        assert!(Instant::now() < deadline, "{said}");
        said = server.client().get("/health/ready").1;
    }
    let (status, said, _server) = ready(&all[..1]);
    assert_eq!(status, 503, "it wants a certificate, too: {said}");
}

/// Says that it is an old nats-server, to as many as ask.
fn old_nats_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let info = json!({
                "server_id": "OLD", "server_name": "old", "version": "2.10.26", "proto": 1, "host": "127.0.0.1",
                "port": address.port(), "headers": true, "max_payload": 1 << 20, "jetstream": true, "client_id": 1,
            });
            stream.write_all(format!("INFO {info}\r\n").as_bytes()).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                if line.starts_with("PING") && stream.write_all(b"PONG\r\n").is_err() {
                    break;
                }
            }
        }
    });
    format!("nats://{address}")
}

#[test]
fn an_old_nats_server_is_refused_with_what_was_found_and_what_is_needed() {
    let (status, errors) = refused(&[("NATS_URL", &old_nats_server())]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("2.10.26") && errors.contains("2.14.4 or newer"), "{errors}");
}

#[test]
fn a_library_hears_the_same_and_in_time() {
    runtime().block_on(async {
        let config = NATSStorageConfig {
            nats_urls: vec![old_nats_server()],
            ..NATSStorageConfig::default()
        };
        let error = NATSStorage::new(config).await.unwrap_err();
        assert!(matches!(error, NATSOpenError::Refused { .. }), "{error}");
        let config = NATSStorageConfig {
            nats_urls: vec![format!("nats://127.0.0.1:{}", free_port())],
            connection_timeout: Duration::from_secs(1),
            ..NATSStorageConfig::default()
        };
        let error = NATSStorage::new(config).await.unwrap_err();
        assert!(matches!(error, NATSOpenError::NotNow { .. }), "{error}");
        assert!(error.to_string().contains("no connection to nats://127.0.0.1:"), "{error}");
        let config = NATSStorageConfig { nats_urls: vec![], ..NATSStorageConfig::default() };
        let error = NATSStorage::new(config).await.unwrap_err();
        assert!(matches!(error, NATSOpenError::Config(_)), "{error}");
    });
}

#[test]
fn the_guide_s_variables_reach_the_stream_and_its_messages() {
    let Some(nats) = NatsServer::start() else { return };
    let url = nats.url();
    let variables = [
        ("STORAGE_BACKEND", "nats"),
        ("NATS_URL", &url),
        ("NATS_MAX_MESSAGES", "5000"),
        ("NATS_MAX_BYTES", "10485760"),
        ("NATS_MAX_AGE", "2592000"),
        ("NATS_CONNECTION_TIMEOUT", "30"),
        ("NATS_RECONNECT_BUFFER_SIZE", "8388608"),
        ("RUST_LOG", "info"),
        ("METRICS_ENABLED", "true"),
        ("HEALTH_CHECK_INTERVAL", "30"),
    ];
    let server = Server::start(&variables);
    let created =
        server.client().ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    assert!(created.get("errors").is_none(), "{created}");
    let runtime = runtime();
    let bus = runtime.block_on(Bus::connect(&nats));
    let config = runtime.block_on(settings(&bus));
    assert_eq!((&config["max_msgs"], &config["max_bytes"]), (&json!(5_000), &json!(10_485_760)));
    let event = runtime.block_on(bus.last("cb.workflows.w.events.lifecycle")).unwrap();
    assert_eq!(event.headers.unwrap().get("Nats-TTL").unwrap().as_str(), "2592000s");
    let definition = runtime.block_on(bus.last("cb.workflows.w.definition")).unwrap();
    assert!(definition.headers.unwrap().get("Nats-TTL").is_none(), "definitions never age");
    server.stop();

    // Another limit is taken over at the next start.
    let mut variables = variables;
    variables[2].1 = "6000";
    let server = Server::start(&variables);
    assert_eq!(runtime.block_on(settings(&bus))["max_msgs"], 6_000);
    let (_, log) = server.stop();
    assert!(log.contains("max_msgs from 5000 to 6000"), "{log}");
}

#[test]
fn a_start_lowers_no_limit_unless_it_is_told_to_and_never_below_what_is_there() {
    let Some(nats) = NatsServer::start() else { return };
    let (url, runtime) = (nats.url(), runtime());
    let variables = |max: &'static str, lower: &'static str| {
        [
            ("STORAGE_BACKEND", "nats".to_owned()),
            ("NATS_URL", url.clone()),
            ("NATS_MAX_MESSAGES", max.to_owned()),
            ("NATS_LOWER_LIMITS", lower.to_owned()),
        ]
    };
    let start = |max, lower| {
        let variables = variables(max, lower);
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Server::start(&variables)
    };
    let bus = runtime.block_on(Bus::connect(&nats));
    let limit = || runtime.block_on(settings(&bus))["max_msgs"].clone();
    let server = start("5000", "false");
    create_workflow(&server);
    let create = "mutation { createToken(input: { workflowId: \"w\" }) { id } }";
    for _ in 0..60 {
        let created = server.client().ask(create, &json!({})).unwrap();
        assert!(created.get("errors").is_none(), "{created}");
    }
    // A second server that asks for less works on the same stream, and takes nothing away.
    let other = start("100", "false");
    create_workflow(&other);
    assert_eq!(limit(), 5_000);
    let (_, log) = other.stop();
    assert!(log.contains("keeps its max_msgs of 5000"), "{log}");
    server.stop();

    let server = start("1000", "true");
    create_workflow(&server);
    assert_eq!(limit(), 1_000);
    server.stop();
    let storage = runtime.block_on(NATSStorage::with_options(
        NATSStorageConfig { default_max_messages: 100, ..nats.config() },
        NATSStorageOptions { lower_limits: true, ..NATSStorageOptions::new() },
    ));
    let error = storage.map(drop).unwrap_err().to_string();
    assert!(error.contains("max_msgs of 100 is less than the 13"), "{error}");
    assert_eq!(limit(), 1_000);
}

#[test]
fn of_several_addresses_one_that_answers_is_enough() {
    let Some(nats) = NatsServer::start() else { return };
    let dead = || format!("nats://127.0.0.1:{}", free_port());
    let urls = format!("{},{}, {}", dead(), dead(), nats.url());
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &urls)]);
    server.wait_for_log("listening");
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while server.client().get("/health/ready").0 != 200 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_message_of_a_later_format_is_refused_by_name() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let storage = nats.open().await;
        let stored =
            storage.insert_token(new_token(&review_workflow("w"), json!({}))).await.unwrap();
        let subject = stored.token.nats_subject.clone().unwrap();
        let bus = Bus::connect(&nats).await;
        let message = bus.last(&subject).await.unwrap();
        let mut payload: Value = serde_json::from_slice(&message.payload).unwrap();
        payload["colour"] = "a field of a later version".into();
        let send = async |format: &str| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Cb-Format", format);
            let payload = payload.to_string().into();
            let sent = bus.client.request_with_headers(subject.clone(), headers, payload);
            assert!(!String::from_utf8_lossy(&sent.await.unwrap().payload).contains("error"));
        };
        send("1").await;
        let read = storage.load_token(stored.token.id, None).await.unwrap().unwrap();
        assert_eq!(read.token.data, stored.token.data, "what it does not know does not hurt");
        send("3").await;
        let limit = PageLimit { rows: 9, bytes: 1 << 20 };
        for error in [
            storage.load_token(stored.token.id, None).await.unwrap_err(),
            WorkflowStorage::list_tokens(&storage, &TokenScope::All, None, limit)
                .await
                .unwrap_err(),
        ] {
            assert!(error.to_string().contains("it has format 3"), "{error}");
            assert!(error.to_string().contains(&subject), "{error}");
        }
        storage.close().await;
    });
}

#[test]
fn what_nats_server_does_not_take_is_refused_alone() {
    let Some((nats, _folder)) = configured("max_payload: 500000") else { return };
    runtime().block_on(async {
        let storage = Arc::new(nats.open().await);
        let workflow = review_workflow("w");
        let mut writers = tokio::task::JoinSet::new();
        for n in 0..40 {
            let (storage, large) = (Arc::clone(&storage), n % 4 == 0);
            let data = json!({ "text": "x".repeat(if large { 600_000 } else { 10 }) });
            let token = new_token(&workflow, data);
            writers.spawn(async move { (large, storage.insert_token(token).await) });
        }
        for (large, outcome) in writers.join_all().await {
            match outcome {
                Ok(_) => assert!(!large),
                Err(StorageError::TooLarge { bytes, bytes_max, .. }) => {
                    assert!(large && bytes > 600_000 && bytes_max < 500_000, "{bytes} {bytes_max}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        storage.close().await;
    });
}

#[test]
fn a_mirror_of_the_stream_does_not_answer_in_its_stead() {
    let Some(nats) = NatsServer::start() else { return };
    runtime().block_on(async {
        let bus = Bus::connect(&nats).await;
        nats.open().await.close().await;
        let mirror = json!({ "name": "BACKUP", "storage": "file", "mirror": { "name": STREAM } });
        bus.done("STREAM.CREATE.BACKUP", &mirror).await;
        let storage = nats.open().await;
        let health = until_degraded(&storage).await;
        assert!(health.contains("BACKUP") && health.contains("by a source"), "{health}");
        let workflow = review_workflow("w");
        for _ in 0..50 {
            let token = storage.insert_token(new_token(&workflow, json!({}))).await.unwrap();
            let moved = storage.commit(token.revision, fired(&workflow, &token, "submit")).await;
            let found = storage.load_token(token.token.id, None).await.unwrap().unwrap();
            assert_eq!(as_written(&found), moved.unwrap());
        }
        let limit = PageLimit { rows: 100, bytes: 1 << 20 };
        // Whoever answers is a matter of chance, so it is asked often.
        for (place, count) in [("draft", 0), ("review", 50)].repeat(40) {
            let scope = TokenScope::Place(workflow_id("w"), place.parse().unwrap());
            let listed = WorkflowStorage::list_tokens(&storage, &scope, None, limit).await.unwrap();
            assert_eq!(listed.items.len(), count, "{place}");
        }
        storage.close().await;
    });
}

async fn until_degraded(storage: &NATSStorage) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match storage.health().await {
            StorageHealth::Degraded(reason) => return reason,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The configuration that ships, with a folder of the test's own.
fn shipped() -> Option<(NatsServer, tempfile::TempDir)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/nats/nats-server.conf");
    let text = std::fs::read_to_string(path).unwrap();
    // The test says itself where the store is.
    let text = text.replace("store_dir: \"/var/lib/nats\"", "");
    let text = text.replace("$CB_PASSWORD", "engine-pw").replace("$WORKER_PASSWORD", "worker-pw");
    configured(&text.replace("$OPERATOR_PASSWORD", "operator-pw"))
}

/// What a worker may ask for, and what it may not: nats-server answers each, wherever that is wanted.
fn asked_by_a_worker(ack: &str) -> Vec<(String, &'static str)> {
    let api = "$JS.ENGINE.API.CONSUMER";
    let one = "{\"batch\":1,\"no_wait\":true}";
    vec![
        (format!("{api}.MSG.NEXT.{STREAM}.work"), one),
        (format!("{api}.MSG.NEXT.{STREAM}.work"), "nonsense"),
        (format!("{api}.INFO.{STREAM}.work"), ""),
        (format!("{api}.INFO.{STREAM}.none"), ""),
        (ack.to_owned(), "+NXT"),
        (ack.to_owned(), "+ACK"),
        ("$JS.API.INFO".to_owned(), ""),
        (format!("$JS.API.STREAM.INFO.{STREAM}"), ""),
        (format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.work"), one),
        (format!("$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.mine"), "{}"),
        (format!("$JS.API.STREAM.PURGE.{STREAM}"), "{}"),
        (format!("$JS.API.STREAM.DELETE.{STREAM}"), ""),
        (format!("$JS.API.STREAM.UPDATE.{STREAM}"), "{}"),
        (format!("$JS.API.STREAM.MSG.DELETE.{STREAM}"), "{\"seq\":1}"),
    ]
}

#[test]
fn under_the_shipped_permissions_the_engine_works_and_a_worker_can_forge_nothing() {
    let Some((nats, _folder)) = shipped() else { return };
    let engine = url_of(&nats, "circuit-breaker:engine-pw");
    let server = Server::start(&[("STORAGE_BACKEND", "nats"), ("NATS_URL", &engine)]);
    let client = server.client();
    let created = client.ask(CREATE_WORKFLOW, &json!({ "input": review_input("w") })).unwrap();
    assert!(created.get("errors").is_none(), "{created}");
    let runtime = runtime();
    runtime.block_on(async {
        let operator = Bus::log_in(&nats.url(), "operator", "operator-pw").await;
        operator.consumer("work", "cb.workflows.w.places.draft.tokens.*").await;
        let bus = Bus::log_in(&nats.url(), "worker", "worker-pw").await.through("$JS.ENGINE.API");
        let mut live = bus.client.subscribe("cb.live.>").await.unwrap();
        bus.client.flush().await.unwrap();
        let create = "mutation { createToken(input: { workflowId: \"w\" }) { id } }";
        let created = client.ask(create, &json!({})).unwrap();
        let id = created["data"]["createToken"]["id"].as_str().unwrap();
        let seen = crate::nats_bus::next(&mut live).await;
        assert_eq!(seen.subject.as_str(), format!("cb.live.w.places.draft.tokens.{id}"));
        let taken = bus.take("work").await;
        let here = format!("cb.workflows.w.places.draft.tokens.{id}");
        assert_eq!(taken.iter().map(|one| one.subject.as_str()).collect::<Vec<_>>(), [&here]);
        // The event of the creation.
        crate::nats_bus::next(&mut live).await;

        let before = operator.stream().await["state"].take();
        let ack = taken[0].reply.clone().unwrap().to_string();
        let requests = asked_by_a_worker(&ack);
        let forged = [
            here,
            format!("cb.workflows.w.places.done.tokens.{id}"),
            "cb.workflows.w.definition".to_owned(),
            "cb.workflows.w.events.transitions".to_owned(),
            format!("cb.tokens.{id}"),
            "cb.store.identity".to_owned(),
            format!("cb.live.w.places.done.tokens.{id}"),
        ];
        for forged in &forged {
            bus.client.publish(forged.clone(), taken[0].payload.clone()).await.unwrap();
            for (subject, request) in &requests {
                let (subject, reply) = (subject.clone(), forged.clone());
                bus.client.publish_with_reply(subject, reply, (*request).into()).await.unwrap();
            }
        }
        bus.done(&format!("CONSUMER.INFO.{STREAM}.work"), &Value::Null).await;
        let fire = json!({ "input": { "tokenId": id, "transitionId": "submit" } });
        let moved = client.ask(FIRE, &fire).unwrap();
        assert_eq!(moved["data"]["fireTransition"]["place"], "review", "{moved}");
        let after = operator.stream().await["state"].take();
        for field in ["first_seq", "consumer_count"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        let engine = Bus::log_in(&nats.url(), "circuit-breaker", "engine-pw").await;
        let last = |state: &Value| state["last_seq"].as_u64().unwrap();
        let mut written = Vec::new();
        for sequence in last(&before) + 1..=last(&after) {
            let message = engine.raw(sequence).await.expect("nothing is removed");
            written.push(message.subject);
        }
        // The move alone: the server's own record, the token, its event, and the departure.
        written.retain(|subject| !subject.starts_with("cb.store.servers."));
        let at = |place: &str| format!("cb.workflows.w.places.{place}.tokens.{id}");
        let event = "cb.workflows.w.events.transitions".to_owned();
        assert_eq!(written, [at("review"), event, at("draft")]);
    });
}
