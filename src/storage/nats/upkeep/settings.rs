//! The settings that the stream must have, and what to do about others.

use serde_json::{Map, Value, json};

use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::names::{
    REPUBLISH_DESTINATION, REPUBLISH_SOURCE, STREAM, STREAM_SUBJECTS, covers,
};

/// The settings that this server wants.
pub fn wanted(config: &NATSStorageConfig, options: &NATSStorageOptions) -> Map<String, Value> {
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
        "subject_delete_marker_ttl": 0,
        "republish": { "src": REPUBLISH_SOURCE, "dest": REPUBLISH_DESTINATION },
    });
    match wanted {
        Value::Object(wanted) => wanted,
        _ => Map::new(),
    }
}

/// How many replicas it has: an update may raise them, if there are nodes for them.
pub const REPLICAS: &str = "num_replicas";

/// Fields that an update may set without loss; everything else that differs stops the start.
const UPDATED: [&str; 13] = [
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
    "subject_delete_marker_ttl",
];

/// Fields that nobody may set: with them messages vanish, are made or change by themselves.
const UNSET: [&str; 8] = [
    "mirror",
    "sources",
    "subject_transform",
    "no_ack",
    "mirror_direct",
    "allow_msg_counter",
    "discard_new_per_subject",
    "persist_mode",
];

/// What differs in a stream that is there.
#[derive(Debug, PartialEq)]
pub struct Differences {
    /// What an update can set right.
    pub changes: Vec<(String, Value)>,
    /// What is wrong beside that, with both values named.
    pub wrong: Option<String>,
}

/// What must change in a stream that is there, and what is wrong with it.
pub fn compare(found: &Value, wanted: &Map<String, Value>) -> Differences {
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
            "republish" => {
                let same = found[field]["src"] == wanted["src"]
                    && found[field]["dest"] == wanted["dest"]
                    && found[field]["headers_only"] != true;
                (&found[field], !same)
            }
            // More copies than were asked for do no harm; reads then ask the leader.
            REPLICAS => (&found[field], found[field].as_u64() < wanted.as_u64()),
            _ => (&found[field], !same(&found[field], wanted)),
        };
        if !differs {
            continue;
        }
        if UPDATED.contains(&field.as_str())
            || field == REPLICAS
            || field == "republish" && found.is_null()
        {
            changes.push((field.clone(), wanted.clone()));
        } else {
            let needed = match field.as_str() {
                "max_msg_size" => "1048576 or more".to_owned(),
                _ => wanted.to_string(),
            };
            wrong.push(format!("{field} is {found}, and {needed} is needed"));
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
    let wrong = (!wrong.is_empty()).then(|| format!(
        "stream {STREAM} has settings that this server cannot work with or change: {}; change them there, or restore a backup where nats-server does not let you (sealed, deny_delete), or change the configuration of this server",
        wrong.join("; ")
    ));
    Differences { changes, wrong }
}

/// Takes out of the changes what would lower a limit, and names it, or says what it would remove: under
/// a lower limit nats-server removes the oldest messages, whatever they are, and other servers may rely
/// on the limit that is there.
pub fn keep_limits(
    changes: &mut Vec<(String, Value)>,
    info: &Value,
    lower: bool,
) -> Result<Vec<String>, String> {
    let mut kept = Vec::new();
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
            let (found, wanted) = (shown(found), shown(wanted));
            kept.push(format!("{field} of {found}, this server asks for {wanted}"));
            return false;
        }
        if wanted.is_some_and(|wanted| wanted < holds) {
            wrong.push(format!(
                "{field} of {} is less than the {holds} that it holds",
                shown(wanted)
            ));
        }
        true
    });
    if wrong.is_empty() {
        return Ok(kept);
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

/// What is missing is added. nats-server takes no two subjects that overlap, so others go for it where
/// they do; ours take in all that is written.
fn with_missing_subjects(found: &Value) -> Value {
    let found = found.as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut all: Vec<&str> = found.collect();
    let missing = |all: &[&'static str], there: &[&str]| -> Vec<&'static str> {
        let is_there = |wanted: &str| there.iter().any(|found| covers(found, wanted));
        all.iter().copied().filter(|wanted| !is_there(wanted)).collect()
    };
    let first = missing(&STREAM_SUBJECTS, &all);
    all.retain(|found| !first.iter().any(|wanted| overlap(found, wanted)));
    all.extend(missing(&STREAM_SUBJECTS, &all));
    all.into()
}

/// Whether a subject can match both filters.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_changed_or_named() {
        let wanted = wanted(&NATSStorageConfig::default(), &NATSStorageOptions::new());
        let there = Value::Object(wanted.clone());
        let compared = |there: &Value| {
            let Differences { changes, wrong } = compare(there, &wanted);
            wrong.map_or(Ok(changes), Err)
        };
        let with = |field: &str, value: Value| {
            let mut there = there.clone();
            there[field] = value;
            compared(&there)
        };
        assert_eq!(compared(&there), Ok(vec![]));
        assert_eq!(with("deny_purge", Value::Null), Ok(vec![]), "what is false is left out");
        assert_eq!(with("description", "ours".into()), Ok(vec![]), "the operator's own");
        let extra = json!(["orders.>", "cb.>"]);
        assert_eq!(with("subjects", extra), Ok(vec![]), "more subjects are the operator's choice");
        let changed = with("subjects", json!(["cb.workflows.*.definition"])).unwrap();
        assert_eq!(changed[0].1.as_array().unwrap().len(), STREAM_SUBJECTS.len());
        // What is narrower overlaps with ours, and nats-server would refuse both.
        let narrower = with("subjects", json!(["cb.workflows.w1.>", "cb.store.>", "x"])).unwrap();
        let narrower: Vec<_> = narrower[0].1.as_array().unwrap().clone();
        assert!(!narrower.contains(&json!("cb.workflows.w1.>")) && narrower.contains(&json!("x")));
        // What is wrong does not keep what can be set right from it.
        let mut both = there.clone();
        (both["max_age"], both["storage"]) = (5.into(), "memory".into());
        let Differences { changes, wrong } = compare(&both, &wanted);
        assert_eq!(changes, [("max_age".to_owned(), 0.into())]);
        assert!(wrong.unwrap().contains("storage"));
        assert_eq!(with("max_consumers", 7.into()).unwrap().len(), 1);
        assert_eq!(with("subject_delete_marker_ttl", 5.into()).unwrap()[0].1, 0);
        assert_eq!(with("num_replicas", 3.into()), Ok(vec![]), "more copies do no harm");
        assert_eq!(with("max_age", 5.into()), Ok(vec![("max_age".to_owned(), 0.into())]));
        for (field, value) in [
            ("retention", json!("interest")),
            ("storage", json!("memory")),
            ("max_msg_size", json!(1000)),
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
            keep_limits(&mut changes, &info, lower).map(|_| changes.len())
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
