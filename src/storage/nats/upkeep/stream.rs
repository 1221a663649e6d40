//! The stream: made if it is not there, checked if it is, never deleted.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::settings::{Differences, REPLICAS, compare, keep_limits, wanted};
use crate::storage::nats::wire::config::{NATSStorageConfig, NATSStorageOptions};
use crate::storage::nats::wire::jetstream::{self, ApiError, StreamState, ask, code};
use crate::storage::nats::wire::link::{Link, LinkError};
use crate::storage::nats::wire::names::{self, STREAM, STREAM_SUBJECTS, header};

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
    /// Who answers is behind what is known already, as a leader that was cut off.
    #[error("{0}")]
    Behind(String),
    /// A person must change something first.
    #[error("{0}")]
    Refused(String),
}

impl From<ApiError> for OpenError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Link(LinkError::Denied(_)) => OpenError::Refused(error.to_string()),
            _ => OpenError::NotNow(error.to_string()),
        }
    }
}

/// What was found of the stream.
#[derive(Debug)]
pub struct Looked {
    pub state: StreamState,
    /// What somebody's changes of its settings may have cost.
    pub lost: Vec<String>,
    /// What cannot be set right.
    pub wrong: Option<String>,
    /// What cannot be set right now, and may be later.
    not_now: Option<String>,
    /// Why it has fewer replicas than it should, if it has.
    pub too_few: Option<String>,
}

impl Looked {
    fn of(state: StreamState) -> Self {
        Self { state, lost: Vec::new(), wrong: None, not_now: None, too_few: None }
    }

    /// Whether it has as many replicas as it should.
    fn has_replicas(&self) -> bool {
        self.too_few.is_none() && self.wrong.is_none() && self.not_now.is_none()
    }
}

/// Checks the server, then makes or checks the stream.
pub async fn open(
    link: &Link,
    config: &NATSStorageConfig,
    options: &NATSStorageOptions,
) -> Result<Looked, OpenError> {
    check_server(link).await?;
    let wanted = wanted(config, options);
    match ask(link, &format!("STREAM.INFO.{STREAM}"), &Value::Null).await {
        Ok(info) => {
            let Differences { mut changes, wrong } = compare(&info["config"], &wanted);
            if let Some(wrong) = wrong {
                return Err(OpenError::Refused(wrong));
            }
            let lower = options.lower_limits;
            let kept = keep_limits(&mut changes, &info, lower).map_err(OpenError::Refused)?;
            for kept in kept {
                warn!(
                    "stream {STREAM} keeps its {kept}; limits are only raised unless NATS_LOWER_LIMITS is true"
                );
            }
            let looked = set_right(link, info, changes).await?;
            let not_now = looked.not_now.clone().map(OpenError::NotNow);
            let Some(error) = looked.wrong.clone().map(OpenError::Refused).or(not_now) else {
                return Ok(looked);
            };
            // The next start does not see any more what was set right here.
            looked.lost.iter().for_each(|lost| warn!("{lost}"));
            Err(error)
        }
        Err(error) if error.is(code::STREAM_NOT_FOUND) => {
            Ok(Looked::of(create(link, &wanted).await?))
        }
        Err(error) => Err(error.into()),
    }
}

/// Looks at the stream of an open store, and sets right what somebody has changed in it. A stream that
/// is gone is made anew only where the options say so: what was in it is gone, too.
pub async fn look(
    link: &Link,
    config: &NATSStorageConfig,
    options: &NATSStorageOptions,
) -> Result<Looked, OpenError> {
    let wanted = wanted(config, options);
    let info = match ask(link, &format!("STREAM.INFO.{STREAM}"), &Value::Null).await {
        Ok(info) => info,
        Err(error) if error.is(code::STREAM_NOT_FOUND) && options.recreate_stream => {
            return Ok(Looked::of(create(link, &wanted).await?));
        }
        Err(error) if error.is(code::STREAM_NOT_FOUND) => {
            return Err(OpenError::Refused(format!(
                "stream {STREAM} is gone, and everything in it: restore it from a backup (nats stream restore), or restart this server to begin with an empty one; with NATS_RECREATE_STREAM=true a running server makes it anew by itself"
            )));
        }
        Err(error @ (ApiError::Link(LinkError::Denied(_)) | ApiError::Unreadable(_))) => {
            return Err(error.into());
        }
        Err(error) => {
            // Why there is no answer, the server may say.
            check_server(link).await?;
            return Err(error.into());
        }
    };
    let Differences { mut changes, wrong } = compare(&info["config"], &wanted);
    keep_limits(&mut changes, &info, false).map_err(OpenError::Refused)?;
    let (state, mut lost) = (StreamState::read(&info), losses_by_what_stays(&info["config"]));
    let mut fields: Vec<_> = changes.iter().map(|(field, _)| field.clone()).collect();
    let looked = match set_right(link, info, changes).await {
        Ok(looked) => looked,
        // What cannot be changed back is told first.
        Err(error) if wrong.is_none() => return Err(error),
        Err(error) => {
            debug!(?error, "the other changes of the stream cannot be set right");
            return Ok(Looked { lost, wrong, ..Looked::of(state) });
        }
    };
    fields.retain(|field| field != REPLICAS || looked.has_replicas());
    if !fields.is_empty() && looked.wrong.is_none() && looked.not_now.is_none() {
        let fields = fields.join(", ");
        warn!(fields, "somebody has changed stream {STREAM}; it is set right");
    }
    lost.extend(looked.lost);
    Ok(Looked { lost, wrong: wrong.or(looked.wrong).or(looked.not_now), not_now: None, ..looked })
}

/// What settings may have cost that somebody else must set right.
fn losses_by_what_stays(found: &Value) -> Vec<String> {
    let mut lost = Vec::new();
    let transform = &found["subject_transform"];
    if !transform.is_null() {
        lost.push(format!(
            "somebody had set a subject_transform of the stream ({transform}); what was acknowledged until that was noticed may stand on subjects that nobody reads, also tokens: look for them there before anything else"
        ));
    }
    if let Some(retention) = found["retention"].as_str().filter(|there| *there != "limits") {
        lost.push(format!(
            "somebody had set retention of the stream to {retention}; what no consumer asked for or all had acknowledged was removed at once, also tokens and definitions: restore a backup"
        ));
    }
    lost
}

/// What settings that are set right may have cost.
fn losses(found: &Value, changes: &[(String, Value)]) -> Vec<String> {
    let changed = |field: &str| changes.iter().any(|(there, _)| there == field);
    let mut lost = Vec::new();
    if changed("max_age") {
        let seconds = found["max_age"].as_f64().unwrap_or(0.0) / 1e9;
        lost.push(format!("somebody had set max_age of the stream to {seconds} s; it is set right, but what was older then is gone, also tokens and definitions"));
    }
    if changed("max_msgs_per_subject") {
        let most = &found["max_msgs_per_subject"];
        lost.push(format!("somebody had set max_msgs_per_subject of the stream to {most}; it is set right, but all but the newest {most} events of each workflow are gone"));
    }
    let limits = ["max_msgs", "max_bytes"].into_iter().filter(|limit| changed(limit));
    for limit in limits.filter(|_| found["discard"] == "old") {
        let most = &found[limit];
        lost.push(format!("somebody had set discard of the stream to old and {limit} to {most}; it is set right, but the oldest of what was more then is gone, also tokens and definitions: restore a backup"));
    }
    lost
}

/// How often it is asked again where nobody answers for JetStream, and the pause before that.
const RELOADS: usize = 3;
const RELOAD_PAUSE: Duration = Duration::from_millis(150);

/// Settings that remove what was acknowledged, or do not store it, for as long as they are wrong.
const COSTLY: [&str; 5] = ["max_age", "discard", "max_msgs", "max_bytes", "max_msgs_per_subject"];

/// A sequence that no stream reaches.
const NEVER: u64 = 1 << 52;

/// Asks for the permission to publish where moves, pointers and records go, without storing anything:
/// what is sent expects more messages than there are.
pub async fn probe(link: &Link) -> Result<(), OpenError> {
    let never = [(header::EXPECTED_LAST_SUBJECT_SEQUENCE, NEVER.to_string())];
    let probe =
        |subject: &'static str| jetstream::store(link, subject.to_owned(), &never, Bytes::new());
    let [a, b, c] = names::PROBES.map(probe);
    let (a, b, c) = futures_util::join!(a, b, c);
    for answer in [a, b, c] {
        match answer {
            Ok(_) => {
                return Err(OpenError::Refused(format!(
                    "stream {STREAM} takes what it must refuse"
                )));
            }
            // Whatever the reason is, it was not the permission.
            Err(ApiError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    let mut answer = ask(link, "INFO", &Value::Null).await;
    for _ in 0..RELOADS {
        if !matches!(answer, Err(ApiError::Link(LinkError::NoResponders(_)))) {
            break;
        }
        // While nats-server takes a changed configuration over, nobody answers for some milliseconds.
        sleep(RELOAD_PAUSE).await;
        answer = ask(link, "INFO", &Value::Null).await;
    }
    match answer {
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

async fn create(link: &Link, wanted: &Map<String, Value>) -> Result<StreamState, OpenError> {
    let request = Value::Object(wanted.clone());
    match ask(link, &format!("STREAM.CREATE.{STREAM}"), &request).await {
        Ok(info) => {
            info!("created stream {STREAM} with {} replica(s)", wanted["num_replicas"]);
            Ok(StreamState::read(&info))
        }
        Err(error) if error.is(code::SUBJECTS_OVERLAP) => Err(overlap(link, &error).await),
        Err(error) if error.is(code::REPLICAS_NOT_SUPPORTED) => Err(OpenError::Refused(format!(
            "{} replicas were asked for, but nats-server at {} is not part of a cluster: {error}",
            wanted["num_replicas"],
            link.urls()
        ))),
        // Someone else made it in between; the next look compares it.
        Err(error) if error.is(code::STREAM_IN_USE) => Err(OpenError::NotNow(error.to_string())),
        Err(error)
            if error.is(code::INSUFFICIENT_RESOURCES) || error.is(code::STORAGE_EXCEEDED) =>
        {
            Err(OpenError::NotNow(format!(
                "stream {STREAM} cannot be made: {error}; nats-server reserves what NATS_MAX_BYTES says ({} bytes): lower that, or give the account or nats-server more room",
                wanted["max_bytes"]
            )))
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

/// Changes settings of the stream, and says what they may have cost. For more replicas there may be no node, as
/// one is lost, or has not come yet: the stream works all the same, and the next look tries again.
async fn set_right(
    link: &Link,
    mut info: Value,
    mut changes: Vec<(String, Value)>,
) -> Result<Looked, OpenError> {
    let mut looked = Looked::of(StreamState::read(&info));
    // Of a stream that never held anything, such as one that was just made for us, nothing is lost.
    if looked.state.last_sequence > 0 {
        looked.lost = losses(&info["config"], &changes);
    }
    let replicas = changes.iter().position(|(field, _)| field == REPLICAS);
    let replicas = replicas.map(|at| changes.remove(at));
    if !changes.is_empty() {
        match change(link, &info, changes.clone()).await {
            (_, Ok(there)) => info = there,
            (_, Err(ApiError::Refused { .. })) => {
                match one_by_one(link, &mut info, changes).await? {
                    Some(OpenError::Refused(reason)) => looked.wrong = Some(reason),
                    Some(OpenError::NotNow(reason) | OpenError::Behind(reason)) => {
                        looked.not_now = Some(reason);
                    }
                    None => {}
                }
            }
            (told, Err(error)) => return Err(not_changed(&told, error)),
        }
        looked.state = StreamState::read(&info);
    }
    let Some((field, wanted)) = replicas else { return Ok(looked) };
    let there = info["config"][REPLICAS].clone();
    match change(link, &info, vec![(field, wanted.clone())]).await {
        (_, Ok(info)) => Ok(Looked { state: StreamState::read(&info), ..looked }),
        (told, Err(error)) if error.is(code::REPLICAS_NOT_SUPPORTED) => {
            let wrong = Some(not_changed(&told, error).to_string());
            Ok(Looked { wrong, ..looked })
        }
        (_, Err(error)) => {
            let too_few = Some(format!(
                "the stream has {there} of the {wanted} replicas that NATS_REPLICAS asks for, and nats-server does not add any: {error}; start another node, or ask for fewer"
            ));
            Ok(Looked { too_few, ..looked })
        }
    }
}

/// Changes each setting alone, those first that cost the most while they are wrong: one that nats-server refuses
/// must not keep the others from being set right. Gives why it refuses the first of those that it refuses.
async fn one_by_one(
    link: &Link,
    info: &mut Value,
    mut changes: Vec<(String, Value)>,
) -> Result<Option<OpenError>, OpenError> {
    changes.sort_by_key(|(field, _)| {
        let place = COSTLY.iter().position(|costly| costly == field);
        place.unwrap_or(COSTLY.len())
    });
    let mut refused = None;
    for alone in changes {
        match change(link, info, vec![alone]).await {
            (_, Ok(there)) => *info = there,
            (told, Err(error @ ApiError::Refused { .. })) if refused.is_none() => {
                refused = Some(if error.is(code::SUBJECTS_OVERLAP) {
                    overlap(link, &error).await
                } else {
                    not_changed(&told, error)
                });
            }
            (_, Err(ApiError::Refused { .. })) => {}
            (told, Err(error)) => return Err(not_changed(&told, error)),
        }
    }
    Ok(refused)
}

/// What is to be changed, in words, and how the stream is then.
async fn change(
    link: &Link,
    info: &Value,
    changes: Vec<(String, Value)>,
) -> (String, Result<Value, ApiError>) {
    // What is there is kept as it is, also what this program does not know.
    let mut config = info["config"].clone();
    let mut told = Vec::new();
    for (field, value) in changes {
        told.push(format!("{field} from {} to {value}", config[&field]));
        config[&field] = value;
    }
    let told = told.join(", ");
    let changed = ask(link, &format!("STREAM.UPDATE.{STREAM}"), &config).await;
    if changed.is_ok() {
        info!("changed stream {STREAM}: {told}");
    }
    (told, changed)
}

fn not_changed(told: &str, error: ApiError) -> OpenError {
    match error {
        error
            if error.is(code::TEMPORARILY_UNAVAILABLE)
                || error.is(code::INSUFFICIENT_RESOURCES) =>
        {
            OpenError::NotNow(format!("stream {STREAM} cannot be changed: {error}"))
        }
        error @ ApiError::Refused { .. } => OpenError::Refused(format!(
            "stream {STREAM} needs another configuration ({told}), and nats-server refuses it: {error}"
        )),
        error => error.into(),
    }
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
}
