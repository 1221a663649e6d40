//! Tokens that move there and back over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::bus::Server;
use crate::client::request;
use crate::times::{Times, hammer};

/// Tokens that take turns moving, where their number is not what is measured.
pub const MOVING: usize = 10_240;

const FIRE: &str =
    "mutation($i: TransitionFireInput!) { fireTransition(input: $i) { id place version } }";

/// The move of a token that has made `count` moves.
pub fn fire(token: Uuid, count: usize) -> Vec<u8> {
    let transition = if count.is_multiple_of(2) { "submit" } else { "reject" };
    request(FIRE, &json!({ "i": { "tokenId": token, "transitionId": transition } }))
}

/// Tokens that move there and back, and how often each has moved.
pub struct Movers {
    ids: Vec<Uuid>,
    moves: Vec<AtomicUsize>,
    next: AtomicUsize,
}

impl Movers {
    pub fn new(ids: Vec<Uuid>) -> Arc<Self> {
        let moves = ids.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { ids, moves, next: AtomicUsize::new(0) })
    }

    fn fire(&self, index: usize) -> Vec<u8> {
        fire(self.ids[index], self.moves[index].fetch_add(1, Ordering::Relaxed))
    }

    /// Each connection has tokens of its own and moves them in turn.
    pub async fn run(
        self: &Arc<Self>,
        server: &Server,
        connections: usize,
        time: Duration,
    ) -> Times {
        let movers = Arc::clone(self);
        let own = self.ids.len() / connections;
        hammer(&server.address, connections, time, move |connection, count| {
            movers.fire(connection * own + count % own)
        })
        .await
    }

    /// Each connection moves whichever token is next, and goes on where the last run ended: no token
    /// moves again before all have.
    pub async fn run_once_each(
        self: &Arc<Self>,
        server: &Server,
        connections: usize,
        time: Duration,
    ) -> Times {
        let movers = Arc::clone(self);
        hammer(&server.address, connections, time, move |_, _| {
            movers.fire(movers.next.fetch_add(1, Ordering::Relaxed) % movers.ids.len())
        })
        .await
    }

    /// So many moves, of whichever token is next.
    pub async fn run_count(self: &Arc<Self>, server: &Server, connections: usize, count: usize) {
        while self.next.load(Ordering::Relaxed) < count {
            self.run_once_each(server, connections, Duration::from_millis(200)).await;
        }
    }
}
