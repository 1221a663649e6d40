//! GraphQL as others have it: graphql-core, the reference in Python, and the audit of the package graphql-http.
//!
//! `./test` installs both, says so where it cannot, and then these tests compare nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::Server;

/// Where `./test` has put a package, if it has.
fn package(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

fn url(server: &Server) -> String {
    format!("http://{}/graphql", server.address)
}

/// What a program printed; it must end well.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let shown: String = out.chars().chain(err.chars()).take(6_000).collect();
    assert!(output.status.success(), "{shown}");
    out.into_owned()
}

fn compare(first_seed: u64, documents: usize) {
    let Some(packages) = package("GRAPHQL_CORE") else { return };
    let memory = || Server::start(&[("STORAGE_BACKEND", "memory")]);
    let (server, other) = (memory(), memory());
    let out =
        output(
            Command::new("python3")
                .env("PYTHONPATH", packages)
                .arg(script("graphql_core.py"))
                .args([url(&server), url(&other), first_seed.to_string(), documents.to_string()]),
        );
    let counts: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    // Not all may be refused or left out.
    for kind in ["answered", "failed in part", "refused"] {
        let share = counts[kind].as_u64().unwrap_or_default() * 10 / documents as u64;
        assert!(share >= 1, "{kind}: {counts}");
    }
}

#[test]
fn documents_are_answered_as_graphql_core_answers_them() {
    compare(0, 400);
}

#[test]
fn new_documents_are_answered_as_graphql_core_answers_them() {
    // Printed where it fails, as `seed N`.
    compare(fastrand::u64(1_000..1_000_000_000), 200);
}

#[test]
fn http_is_as_the_audit_of_graphql_http_has_it() {
    let Some(packages) = package("GRAPHQL_HTTP") else { return };
    let server = Server::start(&[("STORAGE_BACKEND", "memory")]);
    let out = output(
        Command::new("node").arg(script("graphql_http.mjs")).arg(packages).arg(url(&server)),
    );
    let results: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert!(results.len() >= 60, "{}", results.len());
    let failed: Vec<_> = results.iter().filter(|it| it["status"] != "ok").collect();
    assert_eq!(failed, Vec::<&Value>::new(), "all that is MUST, SHOULD and MAY");
}
