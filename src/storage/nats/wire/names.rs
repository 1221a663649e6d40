//! Every name on the bus: stream, subjects, headers. `docs/storage-format.md` describes them.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::{EventKind, PlaceId, WorkflowId, parse_token_id, workflow_hash};

/// The one stream.
pub const STREAM: &str = "CIRCUIT_BREAKER_GLOBAL";

/// What the stream takes in.
pub const STREAM_SUBJECTS: [&str; 6] = [
    ALL_DEFINITIONS,
    ALL_TOKENS,
    "cb.workflows.*.events.transitions",
    "cb.workflows.*.events.lifecycle",
    "cb.tokens.*",
    "cb.store.>",
];

/// Subjects that nothing is stored on, one for each part of what the engine publishes: no name begins
/// like these.
pub const PROBES: [&str; 3] =
    ["cb.workflows._probe.definition", "cb.tokens._probe", "cb.store._probe"];

/// Where committed messages are published again, for who listens without a consumer.
pub const REPUBLISH_SOURCE: &str = "cb.workflows.>";
/// See [`REPUBLISH_SOURCE`].
pub const REPUBLISH_DESTINATION: &str = "cb.live.>";

/// The definitions of all workflows.
pub const ALL_DEFINITIONS: &str = "cb.workflows.*.definition";
/// The tokens of all workflows in all places.
pub const ALL_TOKENS: &str = "cb.workflows.*.places.*.tokens.*";
/// The events of all workflows.
pub const ALL_EVENTS: &str = "cb.workflows.*.events.*";

/// Headers of nats-server (its architecture decision records 8, 31, 43, 48 and 50).
pub mod header {
    pub const BATCH_ID: &str = "Nats-Batch-Id";
    pub const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
    pub const BATCH_COMMIT: &str = "Nats-Batch-Commit";
    pub const EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
    pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
    pub const EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT: &str =
        "Nats-Expected-Last-Subject-Sequence-Subject";
    pub const ROLLUP: &str = "Nats-Rollup";
    pub const TTL: &str = "Nats-TTL";
    pub const SEQUENCE: &str = "Nats-Sequence";
    pub const SUBJECT: &str = "Nats-Subject";
    pub const TIME_STAMP: &str = "Nats-Time-Stamp";
    pub const STREAM: &str = "Nats-Stream";
    pub const LAST_SEQUENCE: &str = "Nats-Last-Sequence";
    pub const NUM_PENDING: &str = "Nats-Num-Pending";
    pub const MESSAGE_SIZE: &str = "Nats-Msg-Size";
    pub const MARKER_REASON: &str = "Nats-Marker-Reason";
    /// Ours: the format of the message; none means 1.
    pub const FORMAT: &str = "Cb-Format";
    /// Ours, of a token or a definition: the ids of its newest events, the newest first, by which a
    /// commit is found again and its event is written once.
    pub const EVENTS: &str = "Cb-Events";
    /// Ours, of a token: the sequence of the event before its newest one.
    pub const PREVIOUS: &str = "Cb-Previous";
    /// Ours, of a token that was created with this message: who asked for it, or nothing.
    pub const CREATED_BY: &str = "Cb-Created-By";
    /// Ours, of a token or a definition: for how many seconds its event was to be kept.
    pub const AGE: &str = "Cb-Age";
    /// Ours, of a token that is completed where a transition still leaves: it does not age.
    pub const COMPLETED: &str = "Cb-Completed";
    /// Ours, of a departure: the place that the token went to.
    pub const MOVED_TO: &str = "Cb-Moved-To";
    /// Ours, of an event that a repair has written: where it should have stood.
    pub const REPAIRED: &str = "Cb-Repaired";
}

/// The newest format of a message that this program reads, and the one that it writes. Format 1 is
/// that of the first version: its departures stand before their tokens and name no place.
pub const FORMAT: u32 = 2;

/// Which store it is, and which life of it.
pub const IDENTITY: &str = "cb.store.identity";

/// Up to which sequence events may have been removed to make room.
pub const PURGED: &str = "cb.store.purged";

/// The pointer of a token's id: the workflow that the token is of.
pub fn pointer(token: Uuid) -> String {
    format!("cb.tokens.{token}")
}

/// The pointer of a hash: the first workflow whose id has it.
pub fn hash_pointer(hash: u32) -> String {
    format!("cb.store.hashes.{hash:06x}")
}

/// All records of repairs.
pub const ALL_REPAIRS: &str = "cb.store.repairs.*";

/// The subject of the record that an event was written by a repair: of several repairs one writes.
pub fn repair(event: Uuid) -> String {
    format!("cb.store.repairs.{event}")
}

/// This server's own record, by which it sees whether the store is still the one that it knew.
pub fn server(server: Uuid) -> String {
    format!("cb.store.servers.{server}")
}

/// The records of all servers.
pub const ALL_SERVERS: &str = "cb.store.servers.*";

/// The record of this server that stays where it is through one life of the store.
pub fn witness(server: Uuid) -> String {
    format!("cb.store.servers.{server}.witness")
}

/// What a batch of this server holds where it has no other message that could check the witness.
pub fn witness_check(server: Uuid) -> String {
    format!("cb.store.servers.{server}.check")
}

/// Whether a subject is that of a server's own record, or its witness.
pub fn is_server(subject: &str) -> bool {
    subject.starts_with("cb.store.servers.")
}

/// That two tokens of an older store have the same id.
pub fn double_id(token: Uuid) -> String {
    format!("cb.store.double_ids.{token}")
}

/// All records of that.
pub const ALL_DOUBLE_IDS: &str = "cb.store.double_ids.*";

/// For how long nats-server keeps a message that ages, as its header says it.
pub fn ttl(age: Duration) -> String {
    format!("{}s", age.as_secs().max(1))
}

/// The subject of a workflow's definition.
pub fn definition(workflow: &WorkflowId) -> String {
    format!("cb.workflows.{workflow}.definition")
}

/// The subject of a token in a place.
pub fn token(workflow: &WorkflowId, place: &PlaceId, token: Uuid) -> String {
    format!("cb.workflows.{workflow}.places.{place}.tokens.{token}")
}

/// A token in whatever place of a workflow.
pub fn token_anywhere(workflow: &WorkflowId, token: Uuid) -> String {
    format!("cb.workflows.{workflow}.places.*.tokens.{token}")
}

/// All tokens of a workflow.
pub fn tokens_of(workflow: &WorkflowId) -> String {
    format!("cb.workflows.{workflow}.places.*.tokens.*")
}

/// All tokens in a place.
pub fn tokens_in(workflow: &WorkflowId, place: &PlaceId) -> String {
    format!("cb.workflows.{workflow}.places.{place}.tokens.*")
}

/// The events of a workflow.
pub fn events_of(workflow: &WorkflowId) -> String {
    format!("cb.workflows.{workflow}.events.*")
}

/// The subject of an event.
pub fn event(workflow: &WorkflowId, kind: EventKind) -> String {
    let stream = match kind {
        EventKind::TokenTransitioned => "transitions",
        EventKind::WorkflowCreated | EventKind::TokenCreated | EventKind::TokenCompleted => {
            "lifecycle"
        }
    };
    format!("cb.workflows.{workflow}.events.{stream}")
}

/// Whether the id ends in the hash of this workflow, as ids made here do. A client may choose one that
/// does, too.
pub fn id_names_workflow(token: Uuid, workflow: &WorkflowId) -> bool {
    named_hash(token) == Some(workflow_hash(workflow))
}

/// The hash of a workflow that an id ends in, if it has the form of those made here: version 7.
pub fn named_hash(token: Uuid) -> Option<u32> {
    (token.get_version_num() == 7).then(|| id_hash(token))
}

/// The last 24 bits of a token id.
fn id_hash(token: Uuid) -> u32 {
    let [.., a, b, c] = token.into_bytes();
    u32::from_be_bytes([0, a, b, c])
}

/// What a token's subject says.
pub fn parse_token(subject: &str) -> Option<(WorkflowId, PlaceId, Uuid)> {
    let mut parts = subject.split('.');
    let mut next = |fixed: &str| parts.next().filter(|part| fixed.is_empty() || *part == fixed);
    next("cb")?;
    next("workflows")?;
    let workflow = WorkflowId::parse(next("")?).ok()?;
    next("places")?;
    let place = PlaceId::parse(next("")?).ok()?;
    next("tokens")?;
    let token = parse_token_id(next("")?).ok()?;
    parts.next().is_none().then_some((workflow, place, token))
}

/// The token whose pointer stands on this subject.
pub fn parse_pointer(subject: &str) -> Option<Uuid> {
    parse_token_id(subject.strip_prefix("cb.tokens.")?).ok()
}

/// The workflow that a subject is of.
pub fn workflow_of(subject: &str) -> Option<WorkflowId> {
    WorkflowId::parse(subject.strip_prefix("cb.workflows.")?.split('.').next()?).ok()
}

/// The workflow of a definition's subject.
pub fn parse_definition(subject: &str) -> Option<WorkflowId> {
    let id = subject.strip_prefix("cb.workflows.")?.strip_suffix(".definition")?;
    WorkflowId::parse(id).ok()
}

/// Whether a stream that takes in `pattern` takes in every subject that `wanted` matches.
pub fn covers(pattern: &str, wanted: &str) -> bool {
    let (mut pattern, mut wanted) = (pattern.split('.'), wanted.split('.'));
    loop {
        match (pattern.next(), wanted.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(part)) if part != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::new_token_id;

    #[test]
    fn a_pattern_covers_what_it_matches_whole() {
        for (pattern, wanted, covered) in [
            ("cb.workflows.*.events.*", "cb.workflows.*.events.transitions", true),
            ("cb.workflows.*.events.transitions", "cb.workflows.*.events.*", false),
            ("cb.>", "cb.workflows.*.definition", true),
            ("cb.workflows.*.definition", "cb.workflows.*.definition", true),
            ("cb.workflows.x.definition", "cb.workflows.*.definition", false),
            ("cb.*", "cb.>", false),
            ("cb.>", "cb", false),
            ("cb.workflows", "cb.workflows.a", false),
        ] {
            assert_eq!(covers(pattern, wanted), covered, "{pattern} {wanted}");
        }
    }

    #[test]
    fn subjects_are_read_as_they_are_written() {
        let (w, p) = (WorkflowId::parse("w-1").unwrap(), PlaceId::parse("in_review").unwrap());
        let id = Uuid::from_u128(7);
        assert_eq!(parse_token(&token(&w, &p, id)), Some((w.clone(), p, id)));
        assert_eq!(parse_definition(&definition(&w)), Some(w));
        for wrong in ["cb.workflows.w.places.p.tokens", "cb.workflows.w.places.p.tokens.456", "x"] {
            assert_eq!(parse_token(wrong), None);
        }
    }

    #[test]
    fn an_id_made_here_names_its_workflow() {
        let workflow = WorkflowId::parse("document_review").unwrap();
        let id = new_token_id(&workflow, chrono::DateTime::UNIX_EPOCH, [7; 10]);
        assert!(id_names_workflow(id, &workflow));
        assert!(!id_names_workflow(id, &WorkflowId::parse("other").unwrap()));
        // An id of another version names none, however it ends.
        let chosen = Uuid::from_u128((id.as_u128() & !(0xf << 76)) | (4 << 76));
        assert_eq!(chosen.get_version_num(), 4);
        assert_eq!((named_hash(chosen), named_hash(id)), (None, Some(workflow_hash(&workflow))));
    }
}
