//! What the schema shows of tokens, workflows and their history.

use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Json, MergedObject, Object, Result, SimpleObject};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};

use super::budget::session;
use super::error::answer;
use super::rows::Rows;
use crate::domain::{self, TransitionDefinition, WorkflowDefinition};
use crate::engine;
use crate::storage::{Page, Sequence, StoredEvent, StoredToken};

/// RFC 3339 in UTC with microseconds.
fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A definition: places and the transitions between them. It never changes.
pub struct Workflow(pub WorkflowDefinition);

#[Object]
impl Workflow {
    async fn id(&self) -> ID {
        ID(self.0.id.to_string())
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }
    async fn places(&self) -> Vec<&str> {
        self.0.places.iter().map(|place| place.as_str()).collect()
    }
    async fn transitions(&self) -> Vec<Transition> {
        self.0.transitions.iter().cloned().map(Transition).collect()
    }
    /// Where a new token is put.
    async fn initial_place(&self) -> &str {
        &self.0.initial_place
    }
    /// Where createToken may put a token, initialPlace among them.
    async fn entry_places(&self) -> Vec<&str> {
        let entries = self.0.places.iter().filter(|place| self.0.is_entry(place));
        entries.map(|place| place.as_str()).collect()
    }
    /// Where a token is completed: the places that no transition leaves.
    async fn final_places(&self) -> Vec<&str> {
        self.0.final_places().map(|place| place.as_str()).collect()
    }
    async fn place_settings(&self) -> Vec<PlaceSettings<'_>> {
        self.0.place_settings.iter().map(PlaceSettings).collect()
    }
    /// What the graph shows to be odd; it is stored all the same. At most 100.
    async fn warnings(&self, ctx: &Context<'_>) -> Result<Vec<SoundnessWarning>> {
        session(ctx).pay_steps(self.0.edges()).map_err(answer)?;
        let warnings = self.0.warnings();
        Ok(warnings.into_iter().map(SoundnessWarning::from).collect())
    }
    async fn created_at(&self) -> String {
        time(self.0.created_at)
    }
    async fn updated_at(&self) -> String {
        time(self.0.updated_at)
    }
}

impl From<WorkflowDefinition> for Workflow {
    fn from(definition: WorkflowDefinition) -> Self {
        Self(definition)
    }
}

/// A way from any of several places to one.
pub struct Transition(pub TransitionDefinition);

#[Object]
impl Transition {
    async fn id(&self) -> &str {
        &self.0.id
    }
    async fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }
    /// The token may be in any one of these.
    async fn from_places(&self) -> Vec<&str> {
        self.0.from_places.iter().map(|place| place.as_str()).collect()
    }
    async fn to_place(&self) -> &str {
        &self.0.to_place
    }
    /// CEL expressions; all must hold.
    async fn conditions(&self) -> &[String] {
        &self.0.conditions
    }
    /// The members of `data` that a caller may write. Null: all.
    async fn accepts(&self) -> Option<&[String]> {
        self.0.accepts.as_deref()
    }
}

/// What is known of a place.
pub struct PlaceSettings<'a>(&'a domain::PlaceSettings);

#[Object]
impl PlaceSettings<'_> {
    async fn place(&self) -> &str {
        &self.0.place
    }
    /// What people read.
    async fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }
    async fn description(&self) -> Option<&str> {
        self.0.description.as_deref()
    }
    async fn metadata(&self) -> Option<Json<&Map<String, Value>>> {
        self.0.metadata.as_ref().map(Json)
    }
}

/// Something odd about the graph of a workflow.
#[derive(SimpleObject)]
pub struct SoundnessWarning {
    code: SoundnessCode,
    message: String,
    /// The places and transitions that show it, in order.
    path: Vec<String>,
}

/// What can be odd about a graph.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoundnessCode {
    /// No path leads to a place from where tokens begin.
    UnreachablePlace,
    /// A transition starts only where no token can come.
    DeadTransition,
    /// A token that comes to a place can never be completed.
    NoWayOut,
    /// Transitions that fire by themselves lead in a circle. There are none of these yet.
    AutomaticCircle,
}

impl From<domain::SoundnessWarning> for SoundnessWarning {
    fn from(warning: domain::SoundnessWarning) -> Self {
        let domain::SoundnessWarning { code, message, path } = warning;
        let code = match code {
            domain::SoundnessCode::UnreachablePlace => SoundnessCode::UnreachablePlace,
            domain::SoundnessCode::DeadTransition => SoundnessCode::DeadTransition,
            domain::SoundnessCode::NoWayOut => SoundnessCode::NoWayOut,
        };
        Self { code, message, path }
    }
}

/// One piece of work in one place of one workflow.
pub struct Token(Arc<StoredToken>);

#[Object]
impl Token {
    async fn id(&self) -> ID {
        ID(self.0.token.id.to_string())
    }
    async fn workflow_id(&self) -> &str {
        &self.0.token.workflow_id
    }
    async fn place(&self) -> &str {
        &self.0.token.place
    }
    async fn data(&self) -> Json<&Value> {
        Json(&self.0.token.data)
    }
    async fn metadata(&self) -> Json<&domain::TokenMetadata> {
        Json(&self.0.token.metadata)
    }
    async fn created_at(&self) -> String {
        time(self.0.token.created_at)
    }
    async fn updated_at(&self) -> String {
        time(self.0.token.updated_at)
    }
    /// 1 at creation, one more with every transition.
    async fn version(&self) -> u32 {
        self.0.token.version
    }
    /// The newest transitions, oldest first; all of them: tokenHistory.
    async fn history(&self) -> Vec<HistoryEvent> {
        self.0.token.history.iter().map(HistoryEvent::from).collect()
    }
}

/// One transition that a token has made.
#[derive(SimpleObject)]
pub struct HistoryEvent {
    timestamp: String,
    transition: String,
    from_place: String,
    to_place: String,
    /// What the request merged into the token's data, where it is short; tokenHistory has all.
    data: Option<Json<Value>>,
}

impl From<&domain::HistoryEvent> for HistoryEvent {
    fn from(event: &domain::HistoryEvent) -> Self {
        Self {
            timestamp: time(event.timestamp),
            transition: event.transition.to_string(),
            from_place: event.from_place.to_string(),
            to_place: event.to_place.to_string(),
            data: event.data.clone().map(Json),
        }
    }
}

impl From<StoredToken> for Token {
    fn from(stored: StoredToken) -> Self {
        Self(Arc::new(stored))
    }
}

/// A token with where it stands in NATS. On other backends the nats fields are null.
#[derive(MergedObject)]
#[graphql(name = "NATSToken")]
pub struct NatsToken(Token, NatsFields);

impl From<StoredToken> for NatsToken {
    fn from(stored: StoredToken) -> Self {
        let stored = Arc::new(stored);
        Self(Token(Arc::clone(&stored)), NatsFields(stored))
    }
}

/// Where a token stands in NATS.
pub struct NatsFields(Arc<StoredToken>);

#[Object]
impl NatsFields {
    /// Stream sequence of the token's current message.
    async fn nats_sequence(&self) -> Option<String> {
        self.0.token.nats_sequence.map(|sequence| sequence.to_string())
    }
    /// Time of the token's current message, to the nanosecond. In the answer to a mutation it is null if
    /// it could not be read any more, such as after the token has moved on.
    async fn nats_timestamp(&self, ctx: &Context<'_>) -> Option<String> {
        // The write is done; an error here would say that it was not.
        let time = session(ctx).message_time(&self.0).await.unwrap_or_else(|error| {
            tracing::debug!(error = %error, "the time of a message could not be read");
            None
        });
        time.map(|time| time.to_rfc3339_opts(SecondsFormat::Nanos, true))
    }
    /// Subject of the token's current message.
    async fn nats_subject(&self) -> Option<&str> {
        self.0.token.nats_subject.as_deref()
    }
    /// The newest transitions, oldest first; all of them: tokenHistory.
    async fn transition_history(&self) -> Vec<TransitionRecord> {
        self.0.token.transition_history.iter().map(TransitionRecord::from).collect()
    }
}

/// One transition that a token has made, with who fired it.
#[derive(SimpleObject)]
pub struct TransitionRecord {
    from_place: String,
    to_place: String,
    transition_id: String,
    timestamp: String,
    triggered_by: Option<String>,
    nats_sequence: Option<String>,
    metadata: Option<Json<Value>>,
    /// What the request merged into the token's data. In `transitionHistory` always null.
    data: Option<Json<Value>>,
}

impl From<&domain::TransitionRecord> for TransitionRecord {
    fn from(record: &domain::TransitionRecord) -> Self {
        Self {
            from_place: record.from_place.to_string(),
            to_place: record.to_place.to_string(),
            transition_id: record.transition_id.to_string(),
            timestamp: time(record.timestamp),
            triggered_by: record.triggered_by.clone(),
            nats_sequence: record.nats_sequence.map(|sequence| sequence.to_string()),
            metadata: record.metadata.clone().map(Json),
            data: None,
        }
    }
}

/// Tokens by page, oldest arrival first.
#[derive(SimpleObject)]
pub struct TokenConnection {
    edges: Rows<TokenEdge>,
    page_info: PageInfo,
}

/// A token and its place in the list.
#[derive(SimpleObject)]
pub struct TokenEdge {
    cursor: String,
    node: NatsToken,
}

/// Workflows by page, by id.
#[derive(SimpleObject)]
pub struct WorkflowConnection {
    edges: Rows<WorkflowEdge>,
    page_info: PageInfo,
}

/// A workflow and its place in the list.
#[derive(SimpleObject)]
pub struct WorkflowEdge {
    cursor: String,
    node: Workflow,
}

/// Transitions of a token by page, newest first.
#[derive(SimpleObject)]
pub struct TransitionRecordConnection {
    edges: Rows<TransitionRecordEdge>,
    page_info: PageInfo,
}

/// A transition and its place in the list.
#[derive(SimpleObject)]
pub struct TransitionRecordEdge {
    cursor: String,
    node: TransitionRecord,
}

/// Whether a list goes on, and from where.
#[derive(SimpleObject)]
pub struct PageInfo {
    /// Whether more come after this page.
    has_next_page: bool,
    /// The `after` of the next page; null for a page without rows.
    end_cursor: Option<String>,
}

impl From<Page<StoredToken>> for TokenConnection {
    fn from(page: Page<StoredToken>) -> Self {
        let end_cursor = page.items.last().map(|stored| cursor(stored.revision));
        let edge = |stored: StoredToken| TokenEdge {
            cursor: cursor(stored.revision),
            node: stored.into(),
        };
        Self {
            page_info: PageInfo { has_next_page: page.more, end_cursor },
            edges: page.items.into_iter().map(edge).collect(),
        }
    }
}

impl From<Page<domain::WorkflowDefinition>> for WorkflowConnection {
    fn from(page: Page<domain::WorkflowDefinition>) -> Self {
        let end_cursor = page.items.last().map(|definition| definition.id.to_string());
        let edge = |definition: domain::WorkflowDefinition| WorkflowEdge {
            cursor: definition.id.to_string(),
            node: Workflow(definition),
        };
        Self {
            page_info: PageInfo { has_next_page: page.more, end_cursor },
            edges: page.items.into_iter().map(edge).collect(),
        }
    }
}

impl From<Page<StoredEvent>> for TransitionRecordConnection {
    fn from(page: Page<StoredEvent>) -> Self {
        let end_cursor = page.items.last().map(|stored| cursor(stored.sequence));
        let edge = |stored: StoredEvent| {
            let record = stored.event.transition_record()?;
            let node = TransitionRecord {
                nats_sequence: stored.nats_sequence.map(|sequence| sequence.to_string()),
                data: stored.event.data.map(Json),
                ..TransitionRecord::from(&record)
            };
            Some(TransitionRecordEdge { cursor: cursor(stored.sequence), node })
        };
        Self {
            page_info: PageInfo { has_next_page: page.more, end_cursor },
            edges: page.items.into_iter().filter_map(edge).collect(),
        }
    }
}

fn cursor(sequence: Sequence) -> String {
    sequence.to_string()
}

/// How the server does.
#[derive(SimpleObject)]
pub struct Health {
    status: HealthStatus,
    /// The backend, such as `sqlite`.
    storage: String,
    /// What is wrong, if something is.
    detail: Option<String>,
}

/// How well.
#[derive(Enum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// Reads and writes work.
    Healthy,
    /// It works, but something needs a look.
    Degraded,
    /// It does not work.
    Unhealthy,
}

impl From<engine::Health> for Health {
    fn from(health: engine::Health) -> Self {
        let status = match health.status {
            engine::HealthStatus::Healthy => HealthStatus::Healthy,
            engine::HealthStatus::Degraded => HealthStatus::Degraded,
            engine::HealthStatus::Unhealthy => HealthStatus::Unhealthy,
        };
        Self { status, storage: health.storage.to_owned(), detail: health.detail }
    }
}
