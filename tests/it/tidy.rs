//! What is true of the source as a whole: which room names which, how long a file is, whose licences
//! the dependencies have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which rooms the files of a room may name.
const ROOMS: [(&str, &[&str]); 6] = [
    ("domain", &[]),
    ("storage", &["domain"]),
    ("engine", &["domain", "storage"]),
    ("graphql", &["domain", "engine", "storage"]),
    ("http", &["graphql"]),
    ("cli", &["domain", "storage", "engine", "graphql", "http"]),
];

/// Files that may name one room more than the table gives the others of theirs, for what they do:
/// put a store into a schema, turn its errors into codes, its rows and pages into answers.
const STORAGE_IN_GRAPHQL: [&str; 4] = ["mod.rs", "error.rs", "query.rs", "types.rs"];

/// Backends are blind to one another.
const BACKENDS: [&str; 3] = ["memory", "sqlite", "nats"];

/// Lines of one file, without its tests.
const LINES_MAX: usize = 500;

const LICENCES: [&str; 10] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(&root().join(folder), "rs", &mut found);
    assert!(!found.is_empty(), "{folder}");
    let named = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(named).collect()
}

/// The source without comments and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that a source names by `crate::`, wherever it stands.
fn named_rooms(code: &str) -> impl Iterator<Item = &str> {
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

/// What is wrong with the rooms that one file names.
fn wrong_rooms(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<_> = path.split('/').collect();
    let &["src", room, .., file] = parts.as_slice() else { return Vec::new() };
    let Some((_, may_name)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return Vec::new();
    };
    let code = code(text);
    let mut wrong = Vec::new();
    for named in named_rooms(&code) {
        let storage_in_graphql = room == "graphql" && named == "storage";
        let allowed = named == room
            || (may_name.contains(&named)
                && (!storage_in_graphql || STORAGE_IN_GRAPHQL.contains(&file)));
        if !allowed {
            wrong.push(format!("{path} names crate::{named}"));
        }
    }
    for backend in BACKENDS {
        let own = parts.get(2).is_some_and(|part| part.trim_end_matches(".rs") == backend);
        let names_it = code.contains(&format!("storage::{backend}"))
            || (room == "storage" && code.contains(&format!("super::{backend}")));
        // The guide's function that puts a store on NATS into a schema.
        let with_nats = backend == "nats" && path == "src/graphql/mod.rs";
        if room != "cli" && !own && !with_nats && names_it {
            wrong.push(format!("{path} names the backend {backend}"));
        }
    }
    wrong
}

#[test]
fn every_room_names_only_the_rooms_below_it() {
    let wrong: Vec<_> =
        sources("src").iter().flat_map(|(path, text)| wrong_rooms(path, text)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The check itself sees what it is for.
    for (path, text) in [
        ("src/domain/x.rs", "use crate::storage::Sequence;"),
        ("src/storage/mod.rs", "use crate::engine::Engine;"),
        ("src/storage/memory.rs", "use super::sqlite::SqliteStorage;"),
        ("src/engine/x/y.rs", "fn f() { crate::graphql::refusal() }"),
        ("src/engine/x.rs", "use crate::storage::memory::InMemoryStorage;"),
        ("src/graphql/budget.rs", "use crate::storage::Page;"),
        ("src/http/router.rs", "use crate::engine::Engine;"),
    ] {
        assert_eq!(wrong_rooms(path, text).len(), 1, "{path}: {text}");
    }
}

#[test]
fn the_domain_is_a_calculation() {
    for (path, text) in sources("src/domain") {
        let code = code(&text);
        for word in [
            "std::fs",
            "std::net",
            "std::env",
            "tokio",
            "async ",
            "Utc::now",
            "SystemTime",
            "Instant",
            "fastrand",
            "new_v4",
            "rusqlite",
        ] {
            assert!(!code.contains(word), "{path} has {word}");
        }
    }
}

#[test]
fn only_the_command_line_reads_the_environment() {
    for (path, text) in sources("src") {
        assert!(path.starts_with("src/cli/") || !code(&text).contains("env::var"), "{path}");
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for folder in ["src", "benches"] {
        for (path, text) in sources(folder) {
            let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{path} has {lines} lines: look for the second idea");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    files(&root().join("docs"), "md", &mut documents);
    let mut links = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let there = document.parent().unwrap().join(path).exists();
            assert!(there, "{} links to {target}", document.display());
        }
    }
    assert!(links > 3, "{links}");
}

#[test]
fn dependencies_have_licences_that_allow_what_ours_does() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50);
    for package in packages {
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        // Each side of an `AND` needs one choice that is allowed.
        let allowed = !licence.is_empty()
            && licence.split(" AND ").all(|side| {
                side.split(" OR ")
                    .any(|choice| LICENCES.contains(&choice.trim_matches(['(', ')', ' '])))
            });
        assert!(allowed, "{} has the licence {licence:?}", package["name"]);
    }
}
