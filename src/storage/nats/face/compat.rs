//! What the product's NATS guide promises of a store and of a token beside what the rooms need.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::health::{ConnectionStatus, HealthStatus, NATSMetrics};
use super::storage::NATSStorage;
use crate::domain::{
    Change, HistoryEvent, PlaceId, Token, TransitionId, TransitionRecord, WorkflowDefinition,
    WorkflowEvent, WorkflowId,
};
use crate::storage::nats::read::stored::set_place_on_bus;
use crate::storage::nats::wire::names;
use crate::storage::{StorageError, StorageHealth, WorkflowStorage, collect_all};

impl NATSStorage {
    /// Looks whether reads and writes would work now: `true` if all is well, `false` if it works
    /// but something needs a look, an error if it does not.
    pub async fn health_check(&self) -> Result<bool, StorageError> {
        match WorkflowStorage::health(self).await {
            StorageHealth::Healthy => Ok(true),
            StorageHealth::Degraded(_) => Ok(false),
            StorageHealth::Unhealthy(reason) => Err(StorageError::Unavailable { reason }),
        }
    }

    /// Figures as they are now. [`StorageError::Unavailable`] if the stream cannot be asked.
    pub async fn metrics(&self) -> Result<NATSMetrics, StorageError> {
        self.monitor().metrics().await
    }

    /// How the connection stands.
    pub fn connection_status(&self) -> ConnectionStatus {
        self.monitor().connection_status()
    }

    /// Stores a definition as it is, with the event of its creation, and gives the one that is
    /// there. That the same definition is there already is no error.
    ///
    /// What it says is the caller's to check, as [`crate::domain::Workflow::check`] does. Another
    /// definition of this id is [`StorageError::WorkflowExists`].
    pub async fn create_workflow(
        &self,
        definition: WorkflowDefinition,
    ) -> Result<WorkflowDefinition, StorageError> {
        let event = WorkflowEvent::workflow_created(definition.id.clone(), definition.created_at);
        match self.insert_workflow(definition.clone(), event).await {
            Ok(()) => Ok(definition),
            Err(exists @ StorageError::WorkflowExists { .. }) => {
                let there = self.load_workflow(&definition.id).await?;
                there.filter(|there| there.differences(&definition).is_empty()).ok_or(exists)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores a token as it is, with the event of its creation: for tokens that come from
    /// elsewhere. Its workflow and its place must be there, else it is [`StorageError::Unfit`].
    ///
    /// [`StorageError::TokenExists`] if its id is taken, as after an earlier try. Its
    /// `nats_timestamp` is missing where it could not be read afterwards.
    pub async fn create_token_with_event(
        &self,
        token: Token,
        triggered_by: Option<String>,
    ) -> Result<Token, StorageError> {
        let cannot = |reason: &str| StorageError::Unfit {
            what: format!("token {} for place {} of {}", token.id, token.place, token.workflow_id),
            reason: reason.to_owned(),
        };
        let definition = self.load_workflow(&token.workflow_id).await?;
        let definition =
            definition.ok_or_else(|| cannot("the workflow is not there; create it first"))?;
        if !definition.places.contains(&token.place) {
            return Err(cannot("the workflow has no such place"));
        }
        let change = Change::adopted(token, &definition, triggered_by);
        let stored = self.insert_token(change).await?;
        let mut token = Arc::unwrap_or_clone(stored.token);
        // It is stored; that its time cannot be read now does not change that.
        token.nats_timestamp = self.message_time(stored.revision).await.unwrap_or_default();
        Ok(token)
    }

    /// All definitions, ordered by id. [`StorageError::TooLarge`] above 1 GiB.
    pub async fn list_workflows(&self) -> Result<Vec<WorkflowDefinition>, StorageError> {
        collect_all::workflows(self).await
    }

    /// All tokens of a workflow, in the order of their arrival, each once.
    /// [`StorageError::TooLarge`] above 1 GiB.
    pub async fn list_tokens(&self, workflow: &WorkflowId) -> Result<Vec<Token>, StorageError> {
        collect_all::tokens(self, workflow).await
    }
}

/// How the store does, in a word.
pub async fn nats_health_check(nats_storage: &NATSStorage) -> HealthStatus {
    match nats_storage.health_check().await {
        Ok(true) => HealthStatus::Healthy,
        Ok(false) => HealthStatus::Degraded,
        Err(_) => HealthStatus::Unhealthy,
    }
}

impl Token {
    /// Notes where the token stands on the bus: sequence, time and subject of its message. The
    /// newest record of its moves gets the sequence, too, as that message was made by that move.
    pub fn set_nats_metadata(&mut self, sequence: u64, timestamp: DateTime<Utc>, subject: String) {
        set_place_on_bus(self, sequence, timestamp, subject);
    }

    /// The subject of the token in the place where it is.
    pub fn nats_subject_for_place(&self) -> String {
        names::token(&self.workflow_id, &self.place, self.id)
    }

    /// Moves this copy of the token and records the move in it, at the present time.
    ///
    /// Nothing is checked and nothing is stored: it is for programs that keep tokens of their own.
    /// Whether a token of a store may move, its workflow decides; `fireTransition` asks it.
    pub fn transition_to_with_nats(
        &mut self,
        new_place: PlaceId,
        transition_id: TransitionId,
        triggered_by: Option<String>,
        nats_sequence: Option<u64>,
    ) {
        let timestamp = Utc::now();
        let from_place = std::mem::replace(&mut self.place, new_place.clone());
        self.version = self.version.saturating_add(1);
        self.updated_at = timestamp;
        self.history.push(HistoryEvent {
            timestamp,
            transition: transition_id.clone(),
            from_place: from_place.clone(),
            to_place: new_place.clone(),
            data: None,
        });
        self.transition_history.push(TransitionRecord {
            from_place,
            to_place: new_place,
            transition_id,
            timestamp,
            triggered_by,
            nats_sequence,
            metadata: None,
        });
    }

    /// Whether it is known where the token stands on the bus.
    pub fn has_nats_metadata(&self) -> bool {
        self.nats_sequence.is_some() && self.nats_timestamp.is_some() && self.nats_subject.is_some()
    }
}
