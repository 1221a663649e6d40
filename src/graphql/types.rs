//! What the schema shows of tokens, workflows and their history.

use std::borrow::Cow;
use std::sync::Arc;

use async_graphql::{Context, Enum, ID, Json, MergedObject, Object, Result, SimpleObject};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};

use super::budget::session;
use super::error::answer;
use super::rows::{Rows, Texts};
use crate::domain::{self, TransitionDefinition, WorkflowDefinition};
use crate::engine::{self, ReadToken};
use crate::storage::{Page, Sequence, StoredEvent, StoredToken};

/// RFC 3339 in UTC with microseconds.
fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A definition: places and the transitions between them. It never changes.
pub struct Workflow(pub WorkflowDefinition);

/// A definition: places and the transitions between them. It never changes.
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
    async fn places(&self) -> Texts<&str> {
        self.0.places.iter().map(|place| place.as_str()).collect()
    }
    async fn transitions(&self) -> Rows<Transition<'_>> {
        self.0.transitions.iter().map(Transition::from).collect()
    }
    /// Where a new token is put.
    async fn initial_place(&self) -> &str {
        &self.0.initial_place
    }
    /// Where createToken may put a token, initialPlace among them.
    async fn entry_places(&self) -> Texts<&str> {
        let entries = self.0.places.iter().filter(|place| self.0.is_entry(place));
        entries.map(|place| place.as_str()).collect()
    }
    /// Where a token is completed: the places that were named, else those that no transition leaves.
    async fn final_places(&self) -> Texts<&str> {
        self.0.final_places().map(|place| place.as_str()).collect()
    }
    async fn place_settings(&self) -> Rows<PlaceSettings<'_>> {
        self.0.place_settings.iter().collect()
    }
    /// What the graph shows to be odd; it is stored all the same. At most 100.
    async fn warnings(&self, ctx: &Context<'_>) -> Result<Rows<SoundnessWarning>> {
        session(ctx).pay_steps(self.0.edges()).map_err(answer)?;
        let warnings = self.0.warnings();
        Ok(warnings.into_iter().collect())
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
pub struct Transition<'a>(Cow<'a, TransitionDefinition>);

/// A way from any of several places to one.
#[Object]
impl Transition<'_> {
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
    async fn from_places(&self) -> Texts<&str> {
        self.0.from_places.iter().map(|place| place.as_str()).collect()
    }
    async fn to_place(&self) -> &str {
        &self.0.to_place
    }
    /// CEL expressions; all must hold.
    async fn conditions(&self) -> Texts<&str> {
        self.0.conditions.iter().map(String::as_str).collect()
    }
    /// The members of `data` that a caller may write. Null: all.
    async fn accepts(&self) -> Option<Texts<&str>> {
        Some(self.0.accepts.as_ref()?.iter().map(String::as_str).collect())
    }
}

impl<'a> From<&'a TransitionDefinition> for Transition<'a> {
    fn from(definition: &'a TransitionDefinition) -> Self {
        Self(Cow::Borrowed(definition))
    }
}

impl From<TransitionDefinition> for Transition<'_> {
    fn from(definition: TransitionDefinition) -> Self {
        Self(Cow::Owned(definition))
    }
}

/// What is known of a place.
pub struct PlaceSettings<'a>(&'a domain::PlaceSettings);

impl<'a> From<&'a domain::PlaceSettings> for PlaceSettings<'a> {
    fn from(settings: &'a domain::PlaceSettings) -> Self {
        Self(settings)
    }
}

/// What is known of a place.
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
    path: Texts<String>,
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
        Self { code, message, path: path.into_iter().collect() }
    }
}

/// One piece of work in one place of one workflow.
pub struct Token(Arc<ReadToken>);

/// One piece of work in one place of one workflow.
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
    async fn history(&self) -> Rows<HistoryEvent<'_>> {
        self.0.token.history.iter().collect()
    }
}

/// One transition that a token has made.
pub struct HistoryEvent<'a>(&'a domain::HistoryEvent);

/// One transition that a token has made.
#[Object]
impl HistoryEvent<'_> {
    async fn timestamp(&self) -> String {
        time(self.0.timestamp)
    }
    async fn transition(&self) -> &str {
        &self.0.transition
    }
    async fn from_place(&self) -> &str {
        &self.0.from_place
    }
    async fn to_place(&self) -> &str {
        &self.0.to_place
    }
    /// What the request merged into the token's data, where it is short; tokenHistory has all.
    async fn data(&self) -> Option<Json<&Value>> {
        self.0.data.as_ref().map(Json)
    }
}

impl<'a> From<&'a domain::HistoryEvent> for HistoryEvent<'a> {
    fn from(event: &'a domain::HistoryEvent) -> Self {
        Self(event)
    }
}

impl From<ReadToken> for Token {
    fn from(read: ReadToken) -> Self {
        Self(Arc::new(read))
    }
}

impl From<StoredToken> for Token {
    fn from(stored: StoredToken) -> Self {
        ReadToken::from(stored).into()
    }
}

/// A token with where it stands in NATS. On other backends the nats fields are null.
#[derive(MergedObject)]
#[graphql(name = "NATSToken")]
pub struct NatsToken(Token, NatsFields);

impl From<ReadToken> for NatsToken {
    fn from(read: ReadToken) -> Self {
        let read = Arc::new(read);
        Self(Token(Arc::clone(&read)), NatsFields(read))
    }
}

impl From<StoredToken> for NatsToken {
    fn from(stored: StoredToken) -> Self {
        ReadToken::from(stored).into()
    }
}

/// Where a token stands in NATS.
pub struct NatsFields(Arc<ReadToken>);

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
    async fn transition_history(&self) -> Rows<TransitionRecord<'_>> {
        self.0.token.transition_history.iter().collect()
    }
}

/// One transition that a token has made, with who fired it.
pub struct TransitionRecord<'a> {
    record: Cow<'a, domain::TransitionRecord>,
    data: Option<Value>,
}

/// One transition that a token has made, with who fired it.
#[Object]
impl TransitionRecord<'_> {
    async fn from_place(&self) -> &str {
        &self.record.from_place
    }
    async fn to_place(&self) -> &str {
        &self.record.to_place
    }
    async fn transition_id(&self) -> &str {
        &self.record.transition_id
    }
    async fn timestamp(&self) -> String {
        time(self.record.timestamp)
    }
    async fn triggered_by(&self) -> Option<&str> {
        self.record.triggered_by.as_deref()
    }
    async fn nats_sequence(&self) -> Option<String> {
        self.record.nats_sequence.map(|sequence| sequence.to_string())
    }
    async fn metadata(&self) -> Option<Json<&Value>> {
        self.record.metadata.as_ref().map(Json)
    }
    /// What the request merged into the token's data. In `transitionHistory` always null.
    async fn data(&self) -> Option<Json<&Value>> {
        self.data.as_ref().map(Json)
    }
}

impl<'a> From<&'a domain::TransitionRecord> for TransitionRecord<'a> {
    fn from(record: &'a domain::TransitionRecord) -> Self {
        Self { record: Cow::Borrowed(record), data: None }
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
    node: TransitionRecord<'static>,
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
            let mut record = stored.event.transition_record()?;
            record.nats_sequence = stored.nats_sequence;
            let node = TransitionRecord { record: Cow::Owned(record), data: stored.event.data };
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
