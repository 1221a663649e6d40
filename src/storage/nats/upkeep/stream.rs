//! The stream: made if it is not there, checked if it is, never deleted.

use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::jetstream::{self, ApiError, ask, code};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::{
    REPUBLISH_DESTINATION, REPUBLISH_SOURCE, STREAM, STREAM_SUBJECTS, covers,
};

/// nats-server versions that commit batches right: atomic batches are there from 2.12 on, but valid
/// checks in one batch could fail until these (nats-server issue 8376).
const VERSION_MIN: [u64; 3] = [2, 14, 4];
const VERSION_MIN_OF_2_12: [u64; 3] = [2, 12, 14];

/// Why the store cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// It may work later: nobody answers, or the cluster is not ready.
    #[error("{0}")]
    NotNow(String),
    /// A person must change something first.
    #[error("{0}")]
    Refused(String),
}

impl From<ApiError> for OpenError {
    fn from(error: ApiError) -> Self {
        OpenError::NotNow(error.to_string())
    }
}

/// Checks the server, then makes or checks the stream. Gives its state.
pub async fn open(
    link: &Link,
    config: &NATSStorageConfig,
    options: &NATSStorageOptions,
) -> Result<jetstream::StreamState, OpenError> {
    check_server(link).await?;
    let wanted = wanted(config, options);
    let info = match ask(link, &format!("STREAM.INFO.{STREAM}"), &Value::Null).await {
        Ok(info) => {
            let mut changes = compare(&info["config"], &wanted).map_err(OpenError::Refused)?;
            keep_limits(&mut changes, &info, options.lower_limits).map_err(OpenError::Refused)?;
            if changes.is_empty() { info } else { update(link, info, changes).await? }
        }
        Err(error) if error.is(code::STREAM_NOT_FOUND) => create(link, &wanted).await?,
        Err(error) => return Err(error.into()),
    };
    Ok(jetstream::StreamState::read(&info))
}

async fn check_server(link: &Link) -> Result<(), OpenError> {
    let server = link.server().ok_or_else(|| OpenError::NotNow("no connection yet".to_owned()))?;
    if !new_enough(&server.version) {
        return Err(OpenError::Refused(format!(
            "nats-server at {} has version {}; 2.14.4 or newer is needed (or 2.12.14 or newer of 2.12), as older ones do not commit batches right",
            link.urls(),
            server.version
        )));
    }
    match ask(link, "INFO", &Value::Null).await {
        Ok(_) => Ok(()),
        Err(ApiError::Link(LinkError::NoResponders(_))) => {
            let (name, urls) = (&server.server_name, link.urls());
            let reason = if server.jetstream {
                format!(
                    "JetStream does not answer the account that is used on nats-server {name} at {urls}; enable it there with jetstream: enabled"
                )
            } else {
                format!(
                    "JetStream is not enabled on nats-server {name} at {urls}; start it with --jetstream"
                )
            };
            // In a cluster it may be just starting, or be on another server.
            Err(match server.cluster {
                Some(_) => OpenError::NotNow(reason),
                None => OpenError::Refused(reason),
            })
        }
        Err(error) if error.is(code::NOT_ENABLED_FOR_ACCOUNT) || error.is(code::NOT_ENABLED) => {
            Err(OpenError::Refused(format!(
                "JetStream does not answer the account that is used at {}; enable it there with jetstream: enabled",
                link.urls()
            )))
        }
        Err(error) => Err(error.into()),
    }
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u64>().ok());
    let mut next = || parts.next().flatten();
    let (Some(major), Some(minor), Some(patch)) = (next(), next(), next()) else { return false };
    let version = [major, minor, patch];
    version >= VERSION_MIN || (version >= VERSION_MIN_OF_2_12 && version[..2] == [2, 12])
}

fn wanted(config: &NATSStorageConfig, options: &NATSStorageOptions) -> Map<String, Value> {
    let wanted = json!({
        "name": STREAM,
        "subjects": STREAM_SUBJECTS,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "max_msgs": config.default_max_messages,
        "max_bytes": config.default_max_bytes,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "num_replicas": options.replicas,
        // We use no message ids, and nats-server reads all of this window at each of its starts. It is
        // the least that it takes.
        "duplicate_window": 100_000_000_u64,
        "allow_direct": true,
        "allow_atomic": true,
        "allow_msg_ttl": true,
        "allow_rollup_hdrs": true,
        "deny_delete": false,
        "deny_purge": false,
        "sealed": false,
        "republish": { "src": REPUBLISH_SOURCE, "dest": REPUBLISH_DESTINATION },
    });
    match wanted {
        Value::Object(wanted) => wanted,
        _ => Map::new(),
    }
}

async fn create(link: &Link, wanted: &Map<String, Value>) -> Result<Value, OpenError> {
    let request = Value::Object(wanted.clone());
    match ask(link, &format!("STREAM.CREATE.{STREAM}"), &request).await {
        Ok(info) => {
            info!("created stream {STREAM} with {} replica(s)", wanted["num_replicas"]);
            Ok(info)
        }
        Err(error) if error.is(code::SUBJECTS_OVERLAP) => Err(overlap(link, &error).await),
        Err(error) if error.is(code::REPLICAS_NOT_SUPPORTED) => Err(OpenError::Refused(format!(
            "{} replicas were asked for, but nats-server at {} is not part of a cluster: {error}",
            wanted["num_replicas"],
            link.urls()
        ))),
        // Someone else made it in between; the next look compares it.
        Err(error) if error.is(code::STREAM_IN_USE) => Err(OpenError::NotNow(error.to_string())),
        Err(error) if error.is(code::INSUFFICIENT_RESOURCES) => {
            Err(OpenError::NotNow(format!("stream {STREAM} cannot be made: {error}")))
        }
        Err(ApiError::Refused { err_code, description }) => Err(OpenError::NotNow(format!(
            "stream {STREAM} cannot be made: {description} (error code {err_code})"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Names the streams that take in what ours must.
async fn overlap(link: &Link, error: &ApiError) -> OpenError {
    let mut found = Vec::new();
    for subject in STREAM_SUBJECTS {
        let names = ask(link, "STREAM.NAMES", &json!({ "subject": subject })).await;
        let names = names.ok().and_then(|answer| answer["streams"].as_array().cloned());
        for name in names.unwrap_or_default() {
            if name != STREAM {
                found.push(format!("{subject} in stream {}", name.as_str().unwrap_or("?")));
            }
        }
    }
    OpenError::Refused(format!(
        "the subjects of stream {STREAM} overlap with another stream: {}: {error}; take them out of that stream, or use another account",
        found.join(", ")
    ))
}

async fn update(
    link: &Link,
    info: Value,
    changes: Vec<(String, Value)>,
) -> Result<Value, OpenError> {
    // What is there is kept as it is, also what this program does not know.
    let mut config = info["config"].clone();
    let mut told = Vec::new();
    for (field, value) in changes {
        told.push(format!("{field} from {} to {value}", config[&field]));
        config[&field] = value;
    }
    let told = told.join(", ");
    match ask(link, &format!("STREAM.UPDATE.{STREAM}"), &config).await {
        Ok(info) => {
            info!("changed stream {STREAM}: {told}");
            Ok(info)
        }
        Err(error) if error.is(code::SUBJECTS_OVERLAP) => Err(overlap(link, &error).await),
        Err(error)
            if error.is(code::TEMPORARILY_UNAVAILABLE)
                || error.is(code::INSUFFICIENT_RESOURCES) =>
        {
            Err(OpenError::NotNow(format!("stream {STREAM} cannot be changed: {error}")))
        }
        Err(error @ ApiError::Refused { .. }) => Err(OpenError::Refused(format!(
            "stream {STREAM} needs another configuration ({told}), and nats-server refuses it: {error}"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Fields that an update may set without loss; everything else that differs stops the start.
const UPDATED: [&str; 12] = [
    "duplicate_window",
    "subjects",
    "discard",
    "max_age",
    "max_msgs",
    "max_bytes",
    "max_msgs_per_subject",
    "max_consumers",
    "allow_direct",
    "allow_atomic",
    "allow_msg_ttl",
    "allow_rollup_hdrs",
];

/// Fields that nobody may set: with them messages vanish, are made or change by themselves.
const UNSET: [&str; 9] = [
    "mirror",
    "sources",
    "subject_transform",
    "no_ack",
    "mirror_direct",
    "subject_delete_marker_ttl",
    "allow_msg_counter",
    "discard_new_per_subject",
    "persist_mode",
];

/// What must change in a stream that is there, or what is wrong with it, with both values named.
fn compare(found: &Value, wanted: &Map<String, Value>) -> Result<Vec<(String, Value)>, String> {
    let (mut changes, mut wrong) = (Vec::new(), Vec::new());
    for (field, wanted) in wanted {
        let (found, differs) = match field.as_str() {
            "subjects" => {
                let all = with_missing_subjects(&found[field]);
                let differs = all != found[field];
                if differs {
                    changes.push((field.clone(), all));
                }
                continue;
            }
            // The operator's choice, as long as a record fits.
            "max_msg_size" => {
                let fits = found[field].as_i64().is_none_or(|n| !(0..1 << 20).contains(&n));
                (&found[field], !fits)
            }
            "max_consumers" => continue,
            "republish" => {
                let same = found[field]["src"] == wanted["src"]
                    && found[field]["dest"] == wanted["dest"]
                    && found[field]["headers_only"] != true;
                (&found[field], !same)
            }
            _ => (&found[field], !same(&found[field], wanted)),
        };
        if !differs {
            continue;
        }
        let more_replicas = field == "num_replicas" && found.as_u64() < wanted.as_u64();
        if UPDATED.contains(&field.as_str())
            || more_replicas
            || field == "republish" && found.is_null()
        {
            changes.push((field.clone(), wanted.clone()));
        } else {
            wrong.push(format!("{field} is {found}, and {wanted} is needed"));
        }
    }
    for field in UNSET {
        let found = &found[field];
        let unset = match found {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty() || text == "default",
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::Bool(true) => false,
        };
        if !unset {
            wrong.push(format!("{field} is {found}, and it must not be set"));
        }
    }
    if wrong.is_empty() {
        return Ok(changes);
    }
    Err(format!(
        "stream {STREAM} is there with other settings, and they cannot be changed without risk: {}; change the stream or the configuration of this server",
        wrong.join("; ")
    ))
}

/// Takes out of the changes what would lower a limit, or says what it would remove: under a lower
/// limit nats-server removes the oldest messages, whatever they are, and other servers may rely on the
/// limit that is there.
fn keep_limits(
    changes: &mut Vec<(String, Value)>,
    info: &Value,
    lower: bool,
) -> Result<(), String> {
    let limit = |value: &Value| value.as_i64().and_then(|n| u64::try_from(n).ok());
    let mut wrong = Vec::new();
    changes.retain(|(field, wanted)| {
        let holds = match field.as_str() {
            "max_msgs" => info["state"]["messages"].as_u64().unwrap_or(0),
            "max_bytes" => info["state"]["bytes"].as_u64().unwrap_or(0),
            _ => return true,
        };
        let (found, wanted) = (limit(&info["config"][field]), limit(wanted));
        let lowers = wanted.is_some_and(|wanted| found.is_none_or(|found| found > wanted));
        let shown = |n: Option<u64>| n.map_or("no limit".to_owned(), |n| n.to_string());
        if !lowers {
            return true;
        }
        if !lower {
            warn!(
                "stream {STREAM} keeps its {field} of {}; this server asks for {}, and limits are only raised unless NATS_LOWER_LIMITS is true",
                shown(found),
                shown(wanted)
            );
            return false;
        }
        if wanted.is_some_and(|wanted| wanted < holds) {
            wrong.push(format!("{field} of {} is less than the {holds} that it holds", shown(wanted)));
        }
        true
    });
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the limits of stream {STREAM} cannot be lowered: {}; nats-server would remove the oldest messages, live tokens and definitions among them; remove history first, or ask for more",
        wrong.join("; ")
    ))
}

/// nats-server leaves out what is false or nothing.
fn same(found: &Value, wanted: &Value) -> bool {
    let nothing = match wanted {
        Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    };
    found == wanted || (found.is_null() && nothing)
}

fn with_missing_subjects(found: &Value) -> Value {
    let mut all: Vec<Value> = found.as_array().cloned().unwrap_or_default();
    for wanted in STREAM_SUBJECTS {
        let covered =
            all.iter().any(|found| found.as_str().is_some_and(|found| covers(found, wanted)));
        if !covered {
            all.push(wanted.into());
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_told_from_new_ones() {
        for (version, good) in [
            ("2.14.4", true),
            ("2.14.3", false),
            ("2.15.1", true),
            ("3.0.0", true),
            ("2.12.14", true),
            ("2.12.13", false),
            ("2.13.9", false),
            ("2.10.26", false),
            ("2.15.0-RC.1", true),
            ("", false),
            ("nightly", false),
        ] {
            assert_eq!(new_enough(version), good, "{version}");
        }
    }

    #[test]
    fn what_differs_is_changed_or_named() {
        let wanted = wanted(&NATSStorageConfig::default(), &NATSStorageOptions::new());
        let there = Value::Object(wanted.clone());
        let with = |field: &str, value: Value| {
            let mut there = there.clone();
            there[field] = value;
            compare(&there, &wanted)
        };
        assert_eq!(compare(&there, &wanted), Ok(vec![]));
        assert_eq!(with("deny_purge", Value::Null), Ok(vec![]), "what is false is left out");
        assert_eq!(with("description", "ours".into()), Ok(vec![]), "the operator's own");
        let extra = json!(["orders.>", "cb.>"]);
        assert_eq!(with("subjects", extra), Ok(vec![]), "more subjects are the operator's choice");
        let changed = with("subjects", json!(["cb.workflows.*.definition"])).unwrap();
        assert_eq!(changed[0].1.as_array().unwrap().len(), STREAM_SUBJECTS.len());
        assert_eq!(with("max_age", 5.into()), Ok(vec![("max_age".to_owned(), 0.into())]));
        for (field, value) in [
            ("retention", json!("interest")),
            ("storage", json!("memory")),
            ("num_replicas", json!(3)),
            ("max_msg_size", json!(1000)),
            ("subject_delete_marker_ttl", json!(1)),
            ("sources", json!([{ "name": "other" }])),
            ("republish", json!({ "src": ">", "dest": "x.>" })),
        ] {
            let error = with(field, value.clone()).unwrap_err();
            assert!(error.contains(field) && error.contains(&value.to_string()), "{error}");
        }
    }

    #[test]
    fn limits_are_raised_and_lowered_only_where_that_is_asked_for() {
        let kept = |found: i64, wanted: i64, holds: u64, lower: bool| {
            let info = json!({ "config": { "max_msgs": found }, "state": { "messages": holds } });
            let mut changes = vec![("max_msgs".to_owned(), json!(wanted))];
            keep_limits(&mut changes, &info, lower).map(|()| changes.len())
        };
        assert_eq!(kept(1_000, 2_000, 900, false), Ok(1), "raised");
        assert_eq!(kept(1_000, 950, 900, false), Ok(0), "kept");
        assert_eq!(kept(-1, 2_000, 900, false), Ok(0), "no limit is higher than any");
        assert_eq!(kept(1_000, 950, 900, true), Ok(1), "lowered");
        let error = kept(1_000, 150, 900, true).unwrap_err();
        assert!(error.contains("max_msgs of 150") && error.contains("900"), "{error}");
        assert!(kept(-1, 150, 900, true).is_err());
    }
}
