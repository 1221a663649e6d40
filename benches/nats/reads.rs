//! Reads by id and by page, and memory.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::bare::Bare;
use crate::bus::{Bus, Server};
use crate::client::request;
use crate::load::{define, fill, read};
use crate::movers::{MOVING, Movers};
use crate::moves::payloads;
use crate::times::hammer;
use crate::{from_environment, ms};

/// Reads of these tokens, each connection from another one on.
pub fn reads(ids: Arc<Vec<Uuid>>) -> impl Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static {
    move |connection, count| read(ids[(connection * 7_919 + count) % ids.len()])
}

/// Reads by id alone, by the number of workflows that the token could be in.
pub async fn many_workflows(time: Duration) {
    println!("\n## Reads by id, by the number of workflows\n");
    println!(
        "| replicas | workflows | p50 | p99 | bare direct get: p50 | 64 connections: reads/s |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    for (replicas, count) in [(1, 10), (1, 10_000), (3, 10)] {
        let bus = Bus::start(replicas);
        let ids = Arc::new(fill(&bus, MOVING, MOVING).await);
        let others = (1..count).map(|number| format!("other-{number}")).collect();
        define(&Server::start(&bus), others).await;
        let server = Server::start(&bus);
        let one = hammer(&server.address, 1, time, reads(Arc::clone(&ids))).await;
        let many = hammer(&server.address, 64, time, reads(Arc::clone(&ids))).await;
        let (token, event) = payloads();
        let bare = Bare::new(&bus.url(), 1, token, event).await;
        let subjects: Vec<_> =
            ids.iter().map(|id| format!("cb.workflows.bench.places.open.tokens.{id}")).collect();
        let limit = bare.gets(&subjects, time).await;
        println!(
            "| {replicas} | {count} | {:.3} ms | {:.3} ms | {:.3} ms | {:.0} |",
            ms(one.quantile(0.5)),
            ms(one.quantile(0.99)),
            ms(limit.quantile(0.5)),
            many.per_second()
        );
    }
}

/// What does not depend on the number of tokens.
pub async fn sizes(time: Duration) {
    let most = from_environment("BENCH_TOKENS").unwrap_or(1e6) as usize;
    println!("\n## Reads and memory, by the number of tokens\n");
    println!(
        "| tokens | read by id: p50 | bare direct get: p50 | first 100 of a place: p50 | bare page: p50 | first 100 after the middle: p50 | memory of the server after the start | after these reads and moves |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    for count in [1_000.min(most), most] {
        let bus = Bus::start(1);
        let ids = Arc::new(fill(&bus, count, MOVING).await);
        let server = Server::start(&bus);
        let fresh = server.memory();
        let (token, event) = payloads();
        let bare = Bare::new(&bus.url(), 1, token, event).await;
        bare.quiet().await;
        let one = hammer(&server.address, 1, time, reads(Arc::clone(&ids))).await;
        let page = |after: Option<String>| {
            let query = "query($after: String) { tokenConnection(workflowId: \"bench\", placeId: \"open\", first: 100, after: $after)
                { edges { cursor node { id place version data } } pageInfo { hasNextPage endCursor } } }";
            let request = request(query, &json!({ "after": after }));
            move |_: usize, _: usize| request.clone()
        };
        let first = hammer(&server.address, 1, time, page(None)).await;
        let middle = hammer(&server.address, 1, time, page(Some(count.to_string()))).await;
        let subjects: Vec<_> =
            ids.iter().map(|id| format!("cb.workflows.bench.places.open.tokens.{id}")).collect();
        let get = bare.gets(&subjects, time).await;
        let bare_page = bare.pages("cb.workflows.bench.places.open.tokens.*", time).await;
        Movers::new(ids.to_vec()).run(&server, 64, time).await;
        println!(
            "| {count} | {:.3} ms | {:.3} ms | {:.2} ms | {:.2} ms | {:.2} ms | {fresh:.0} MB | {:.0} MB |",
            ms(one.quantile(0.5)),
            ms(get.quantile(0.5)),
            ms(first.quantile(0.5)),
            ms(bare_page.quantile(0.5)),
            ms(middle.quantile(0.5)),
            server.memory()
        );
    }
}
