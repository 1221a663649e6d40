//! What the product's NATS guide promises of a token beside its fields.

use chrono::{DateTime, Utc};

use super::names;
use crate::domain::{HistoryEvent, PlaceId, Token, TransitionId, TransitionRecord};

impl Token {
    /// Notes where the token stands on the bus: sequence, time and subject of its message. The
    /// newest record of its moves gets the sequence, too, as that message was made by that move.
    pub fn set_nats_metadata(&mut self, sequence: u64, timestamp: DateTime<Utc>, subject: String) {
        self.nats_sequence = Some(sequence);
        self.nats_timestamp = Some(timestamp);
        self.nats_subject = Some(subject);
        if let Some(newest) = self.transition_history.last_mut() {
            newest.nats_sequence = Some(sequence);
        }
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
