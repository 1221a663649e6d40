//! HTTP: which path leads where, and connections that end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

mod admission;
mod answer;
mod graphql;
mod hosts;
mod reply;
mod request;
mod router;

use admission::{Client, Held, Room};
pub use hosts::Hosts;
pub use router::{Metrics, router};

/// Connections at once, and those more that are let in for a probe alone.
const CONNECTIONS_MAX: usize = 1_024;
const PROBES_MAX: usize = 64;

/// How long a new connection waits for somebody to leave before it is let in for a probe alone.
const PLACE_WAIT: Duration = Duration::from_millis(5);

/// Bytes of the head of a request, with its URL.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Time for a client to send the head of a request, and for a connection to lie idle.
const HEAD_TIME_MAX: Duration = Duration::from_secs(60);

/// Time in which a client must take some of its answer.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);

/// Time for requests under way to end once the server stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Pause after a connection could not be accepted, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` ends, then lets the requests under way end and returns.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let places = Places::new();
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            // Keeps the set as small as the number of connections.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let nodelay = |(stream, _): (TcpStream, _)| stream.set_nodelay(true).map(|()| stream);
        match accepted.and_then(nodelay) {
            Ok(stream) => {
                let client = Client::new();
                let place = tokio::select! {
                    () = &mut shutdown => break,
                    place = places.place(&client) => place,
                };
                let attended = attend(stream, router.clone(), client, place, stopping.clone());
                connections.spawn(attended);
            }
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                places.connections.show_out(1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME_MAX, ended).await.is_err() {
        tracing::warn!(
            seconds = DRAIN_TIME_MAX.as_secs(),
            "requests were still under way when the time to stop was over"
        );
    }
    connections.shutdown().await;
}

/// The places of connections.
struct Places {
    connections: Arc<Room>,
    probes: Arc<Room>,
}

/// A place of a connection, and whether it is for probes alone.
struct Place {
    _held: Held,
    only_probes: bool,
}

impl Places {
    fn new() -> Self {
        Self { connections: Room::new(CONNECTIONS_MAX), probes: Room::new(PROBES_MAX) }
    }

    /// A place, that of somebody who lets the server wait if need be. While all work, one for a probe.
    async fn place(&self, client: &Arc<Client>) -> Place {
        loop {
            if let Some(held) = self.connections.take(client, 1, PLACE_WAIT).await {
                return Place { _held: held, only_probes: false };
            }
            if let Some(held) = self.probes.take(client, 1, PLACE_WAIT).await {
                return Place { _held: held, only_probes: true };
            }
        }
    }
}

/// Serves one connection until it ends, has to leave for others, or the server stops.
async fn attend(
    stream: TcpStream,
    router: Router,
    client: Arc<Client>,
    place: Place,
    mut stopping: watch::Receiver<bool>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME_MAX));
    let only_probes = place.only_probes;
    let (inner, asking) = (TowerToHyperService::new(router), Arc::clone(&client));
    let service = service_fn(move |mut request: Request<Incoming>| {
        asking.heard();
        request.extensions_mut().insert(Arc::clone(&asking));
        let refused = only_probes && !router::is_probe(request.uri().path());
        let answer =
            if refused { Err(reply::no_place(request.headers())) } else { Ok(inner.call(request)) };
        async move {
            match answer {
                Ok(answer) => answer.await,
                Err(no_place) => Ok(no_place),
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let mut stops = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(error = %error, "a connection ended early");
                }
                break;
            }
            () = client.has_to_leave() => {
                tracing::debug!("a connection that let the server wait has left for another one");
                break;
            }
            // Also if the one who would say it is gone.
            _ = stopping.changed(), if !stops => {
                stops = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    drop(place);
}
