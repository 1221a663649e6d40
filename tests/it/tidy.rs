//! What is true of the source as a whole: which room names which, how long a file is, whose licences
//! the dependencies have.

use std::collections::{HashMap, HashSet};
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
    ("http", &["graphql", "engine"]),
    ("cli", &["domain", "storage", "engine", "graphql", "http"]),
];

/// Files that may name one room more than the table gives the others of theirs, for what they do:
/// put a store into a schema, turn its errors into codes, its rows and pages into answers.
const STORAGE_IN_GRAPHQL: [&str; 4] = ["mod.rs", "error.rs", "query.rs", "types.rs"];

/// Backends are blind to one another.
const BACKENDS: [&str; 3] = ["memory", "sqlite", "nats"];

/// The wings of the store on NATS, each of which names only itself and those before it.
const WINGS: [&str; 5] = ["wire", "read", "upkeep", "write", "face"];

/// Where the guide's own methods of a domain type stand: they read the clock and name subjects.
const GUIDE: &str = "src/storage/nats/face/compat.rs";

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
        ("src/http/router.rs", "use crate::storage::Sequence;"),
    ] {
        assert_eq!(wrong_rooms(path, text).len(), 1, "{path}: {text}");
    }
}

/// The files of the store on NATS that one of them names, as `wing/file`.
fn named_in_wings(path: &str, text: &str) -> Vec<String> {
    let parts: Vec<_> = path.split('/').collect();
    let &["src", "storage", "nats", wing, _] = parts.as_slice() else { return Vec::new() };
    let code = code(text);
    let word = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    let mut named = Vec::new();
    for rest in code.split("storage::nats::").skip(1) {
        let (wing, rest) = rest.split_once("::").unwrap_or((rest, ""));
        // `storage::nats::read::{a, b::C}` names several.
        match rest.strip_prefix('{').and_then(|list| list.split('}').next()) {
            Some(list) => {
                named.extend(list.split(',').map(|part| format!("{wing}/{}", word(part.trim()))));
            }
            None => named.push(format!("{wing}/{}", word(rest))),
        }
    }
    named.extend(code.split("super::").skip(1).map(|rest| format!("{wing}/{}", word(rest))));
    named
}

#[test]
fn every_wing_of_the_store_on_nats_names_only_those_before_it() {
    let place = |wing: &str| WINGS.iter().position(|known| *known == wing);
    let wrong = |path: &str, text: &str| -> Vec<String> {
        let own = path.split('/').nth(3).and_then(place);
        let named = named_in_wings(path, text).into_iter();
        let up = named.filter(|named| place(named.split('/').next().unwrap()) > own);
        up.map(|named| format!("{path} names {named}")).collect()
    };
    let found: Vec<_> =
        sources("src/storage/nats").iter().flat_map(|(path, text)| wrong(path, text)).collect();
    assert!(found.is_empty(), "{found:#?}");
    let up = "use crate::storage::nats::write::{batch, commit::Commit};";
    assert_eq!(wrong("src/storage/nats/read/x.rs", up).len(), 2, "it sees what it is for");
}

#[test]
fn no_files_of_the_store_on_nats_name_one_another_in_a_circle() {
    let mut names: HashMap<String, Vec<String>> = HashMap::new();
    for (path, text) in sources("src/storage/nats") {
        let own = path.trim_start_matches("src/storage/nats/").trim_end_matches(".rs").to_owned();
        names.insert(own, named_in_wings(&path, &text));
    }
    assert_eq!(circle(&names), None);
    let edge = |a: &str, b: &str| (a.to_owned(), vec![b.to_owned()]);
    let round = HashMap::from([edge("a", "b"), edge("b", "c"), edge("c", "a"), edge("d", "a")]);
    assert!(circle(&round).is_some(), "it sees what it is for");
}

/// A file from which a way leads back to itself.
fn circle(names: &HashMap<String, Vec<String>>) -> Option<String> {
    names
        .keys()
        .find(|start| {
            let (mut todo, mut seen) = (vec![*start], HashSet::new());
            while let Some(file) = todo.pop() {
                for next in names.get(file).into_iter().flatten() {
                    if next == *start {
                        return true;
                    }
                    if seen.insert(next) {
                        todo.push(next);
                    }
                }
            }
            false
        })
        .cloned()
}

#[test]
fn what_a_domain_type_can_do_stands_in_the_domain() {
    let types: Vec<String> = sources("src/domain")
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum ")))
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned())
        .collect();
    assert!(types.len() > 10, "{types:?}");
    for (path, text) in sources("src") {
        for name in &types {
            let own = text.contains(&format!("struct {name} "))
                || text.contains(&format!("struct {name}("));
            let adds = text.lines().any(|line| line == format!("impl {name} {{"));
            assert!(
                path.starts_with("src/domain/") || own || !adds || path == GUIDE,
                "{path}: impl {name}"
            );
        }
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
        let named = package["license"].as_str().or_else(|| {
            // One that has its licence in a file alone.
            let folder = Path::new(package["manifest_path"].as_str()?).parent()?;
            let text = fs::read_to_string(folder.join(package["license_file"].as_str()?)).ok()?;
            text.starts_with("MIT License").then_some("MIT")
        });
        let licence = named.unwrap_or_default().replace('/', " OR ");
        // Each side of an `AND` needs one choice that is allowed.
        let allowed = !licence.is_empty()
            && licence.split(" AND ").all(|side| {
                side.split(" OR ")
                    .any(|choice| LICENCES.contains(&choice.trim_matches(['(', ')', ' '])))
            });
        assert!(allowed, "{} has the licence {licence:?}", package["name"]);
    }
}
