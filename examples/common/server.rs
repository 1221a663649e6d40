//! A server inside this process, for when there is none.

use std::sync::Arc;

use circuit_breaker::engine::Engine;
use circuit_breaker::http;
use circuit_breaker::storage::WorkflowStorage;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server inside this process.
pub struct OwnServer {
    serving: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl OwnServer {
    /// Serves a store on a free port; gives where.
    pub fn start(
        runtime: &Runtime,
        storage: Arc<dyn WorkflowStorage>,
    ) -> std::io::Result<(Self, String)> {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let engine = Arc::new(Engine::new(storage));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = runtime.spawn(http::serve(
            listener,
            http::router(engine, http::Hosts::default(), None),
            async {
                // A sender that is gone is a signal, too.
                drop(stopped.await);
            },
        ));
        Ok((Self { serving, stop }, url))
    }

    /// Stops it after the requests under way.
    pub fn stop(self, runtime: &Runtime) -> Result<(), String> {
        // It may have ended by itself; waiting for it tells.
        self.stop.send(()).ok();
        let ended = runtime.block_on(self.serving);
        ended.map_err(|error| format!("the server of this example failed: {error}"))
    }
}
