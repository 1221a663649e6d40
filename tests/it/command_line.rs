//! The binary as a person starts it: flags, environment, what it says when it cannot start.

use std::process::Output;

use crate::support::{Server, server_command};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = server_command(variables);
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn help_lists_every_variable_with_its_default() {
    let (status, help, errors) = run(&["--help"], &[]);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    for text in [
        "STORAGE_BACKEND",
        "[default: sqlite]",
        "SQLITE_PATH",
        "[default: circuit-breaker.db]",
        "LISTEN_ADDR",
        "[default: 127.0.0.1:4000]",
        "RUST_LOG",
        "[default: info]",
    ] {
        assert!(help.contains(text), "{text}\n{help}");
    }
    assert_eq!(run(&["-h"], &[]).1, help);
}

#[test]
fn version_is_that_of_the_package() {
    let expected = format!("circuit_breaker {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"], &[]), (Some(0), expected, String::new()));
}

#[test]
fn a_wrong_start_is_refused_with_the_name_of_what_is_wrong() {
    for (arguments, variables, texts) in [
        (&["serve"][..], &[][..], &["serve", "--help"][..]),
        (&["--port", "80"], &[], &["--port", "--help"]),
        (
            &[],
            &[("STORAGE_BACKEND", "postgres")],
            &["STORAGE_BACKEND", "postgres", "sqlite, nats or memory"],
        ),
        (&[], &[("STORAGE_BACKEND", "SQLITE")], &["STORAGE_BACKEND", "SQLITE"]),
        (
            &[],
            &[("HEALTH_CHECK_INTERVAL", "abc")],
            &["HEALTH_CHECK_INTERVAL", "\"abc\"", "whole number"],
        ),
        (&[], &[("METRICS_ENABLED", "yes")], &["METRICS_ENABLED", "\"yes\"", "true or false"]),
        (
            &[],
            &[("STORAGE_BACKEND", "nats"), ("NATS_REPLICAS", "9")],
            &["NATS_REPLICAS", "\"9\"", "from 1 to 5"],
        ),
        (
            &[],
            &[("STORAGE_BACKEND", "nats"), ("NATS_MAX_AGE", "7d")],
            &["NATS_MAX_AGE", "\"7d\"", "whole number"],
        ),
        (
            &[],
            &[("STORAGE_BACKEND", "nats"), ("NATS_URL", "http://me:s3cret@x")],
            &["NATS_URL", "http://x", "such as nats://localhost:4222"],
        ),
        (
            &[],
            &[("STORAGE_BACKEND", "nats"), ("NATS_TLS_CERT_FILE", "cert.pem")],
            &["NATS_TLS_CERT_FILE", "NATS_TLS_KEY_FILE"],
        ),
        (
            &[],
            &[("STORAGE_BACKEND", "nats"), ("NATS_CREDENTIALS_FILE", "/nowhere/x.creds")],
            &["NATS_CREDENTIALS_FILE", "/nowhere/x.creds", "No such file"],
        ),
        (
            &[],
            &[("NATS_URL", "nats://localhost")],
            &["NATS_URL", "STORAGE_BACKEND=sqlite", "unset one"],
        ),
        (&[], &[("LISTEN_ADDR", "4000")], &["LISTEN_ADDR", "\"4000\"", "127.0.0.1:4000"]),
        (&[], &[("LISTEN_ADDR", "localhost:4000")], &["LISTEN_ADDR", "an IP address"]),
        (&[], &[("LISTEN_ADDR", "127.0.0.1:99999")], &["LISTEN_ADDR", "99999"]),
        (
            &[],
            &[("STORAGE_BACKEND", "memory"), ("SQLITE_PATH", "x.db")],
            &["SQLITE_PATH", "STORAGE_BACKEND=memory", "unset one"],
        ),
        (
            &[],
            &[("STORAGE_BACKEND", "memory"), ("RUST_LOG", "circuit_breaker=loud")],
            &["RUST_LOG", "circuit_breaker=loud"],
        ),
    ] {
        let (status, output, errors) = run(arguments, variables);
        assert_eq!((status, output.as_str()), (Some(2), ""), "{variables:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "one line, not a trace:\n{errors}");
        for text in texts {
            assert!(errors.contains(text), "{text} is missing: {errors}");
        }
        assert!(!errors.contains("s3cret"), "{errors}");
    }
}

#[test]
fn a_variable_set_to_nothing_counts_as_not_set() {
    let server =
        Server::start(&[("STORAGE_BACKEND", "memory"), ("SQLITE_PATH", ""), ("RUST_LOG", "")]);
    assert_eq!(server.client().get("/health/live").0, 200);
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn the_log_says_where_it_listens_what_it_stores_in_and_that_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let server = Server::start(&[("SQLITE_PATH", path.to_str().unwrap())]);
    let address = server.address.clone();
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 3, "{log}");
    let shown = path.canonicalize().unwrap();
    let expected =
        format!("listening on http://{address}, storing in SQLite file {}", shown.display());
    assert!(lines[0].ends_with(&expected), "{log}");
    assert!(lines[1].contains("stopping"), "{log}");
    assert!(lines[2].ends_with("stopped"), "{log}");

    let (_, log) = Server::start(&[("STORAGE_BACKEND", "memory")]).stop();
    assert!(log.contains("everything is lost when this server stops"), "{log}");
}

#[test]
fn a_second_server_on_one_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.db");
    let variables = [("SQLITE_PATH", path.to_str().unwrap())];
    let first = Server::start(&variables);
    let (status, _, errors) = run(&[], &variables);
    assert_eq!(status, Some(1), "{errors}");
    for text in ["one.db", "in use by another server", "SQLITE_PATH"] {
        assert!(errors.contains(text), "{text} is missing: {errors}");
    }
    assert_eq!(first.client().get("/health/ready").0, 200, "the first goes on");
    // After a kill nothing is left that would lock the next one out.
    first.kill();
    Server::start(&variables).stop();
}

#[test]
fn a_taken_port_stops_the_start_before_anything_is_served() {
    let first = Server::start(&[("STORAGE_BACKEND", "memory")]);
    let variables = [("STORAGE_BACKEND", "memory"), ("LISTEN_ADDR", first.address.as_str())];
    let (status, _, errors) = run(&[], &variables);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains(&format!("LISTEN_ADDR={}", first.address)), "{errors}");
    assert!(errors.contains("cannot listen"), "{errors}");
}

#[test]
fn a_second_signal_stops_at_once() {
    // A request that never ends keeps the first stop waiting.
    let server = Server::start(&[("STORAGE_BACKEND", "memory")]);
    let mut stuck = std::net::TcpStream::connect(&server.address).unwrap();
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
    std::io::Write::write_all(&mut stuck, head.as_bytes()).unwrap();
    // Its own answer shows that the server has taken up what came before on other connections.
    assert_eq!(server.client().get("/health/live").0, 200);
    server.terminate();
    server.wait_for_log("a second signal stops at once");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(1), "{log}");
}
