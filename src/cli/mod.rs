//! The command line: configuration and start. It alone reads the environment, it alone prints.

use std::io::IsTerminal;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

mod config;
mod metrics;
mod variables;

pub use config::{Backend, Config, ConfigError};

use crate::domain::Caller;
use crate::engine::Engine;
use crate::http;
use crate::storage::WorkflowStorage;
use crate::storage::memory::InMemoryStorage;
use crate::storage::nats::{self, NATSStorage, NATSStorageOptions};
use crate::storage::sqlite::{SqliteStorage, SqliteStorageConfig};

/// Threads for what blocks: reads of the disk, large tokens that are decoded, conditions that loop, and the end of the
/// writer; as many as do so at once. Each keeps memory that it has freed, so more would only take memory.
const BLOCKING_THREADS_MAX: usize = 6;

/// Time that the start waits for NATS; it usually takes a few milliseconds.
const NATS_START_WAIT: Duration = Duration::from_secs(2);

/// Runs the server: reads flags and environment, serves until it is told to stop.
///
/// 0 after a clean stop, 1 if it could not start or stop, 2 if flags or environment are wrong.
#[allow(clippy::print_stdout, clippy::print_stderr)]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {}
        ["--help" | "-h"] => {
            print!("{}", variables::help());
            return ExitCode::SUCCESS;
        }
        ["--version" | "-V"] => {
            println!("circuit_breaker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [unknown, ..] => {
            eprintln!(
                "error: unknown argument {unknown:?}; the server is configured by its environment, see --help"
            );
            return ExitCode::from(2);
        }
    }
    let config = match Config::read(|name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn run(config: Config) -> Result<(), BoxError> {
    // The client logs each lost connection and each vain attempt; the store says it once.
    let quiet = if config.log.contains("async_nats") { "" } else { ",async_nats=error" };
    let filter = EnvFilter::try_new(format!("{}{quiet}", config.log))?;
    let colour = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(std::io::stderr).with_ansi(colour).init();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.max_blocking_threads(BLOCKING_THREADS_MAX).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), BoxError> {
    // Before anything that takes time, so that a signal is never missed.
    let stop = stop_signal()?;
    let Opened { storage, place, failed } = open(&config).await?;
    let engine = Arc::new(Engine::new(storage));
    let mut refusal = Ok(());
    let stop = async {
        tokio::select! {
            () = stop => {}
            error = failed => refusal = Err(error),
        }
    };
    let served = listen(&config, Arc::clone(&engine), &place, stop).await;
    engine.close().await;
    refusal?;
    tracing::info!("stopped");
    served
}

async fn listen(
    config: &Config,
    engine: Arc<Engine>,
    place: &str,
    stop: impl Future<Output = ()>,
) -> Result<(), BoxError> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| format!("LISTEN_ADDR={}: cannot listen there: {error}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!("listening on http://{address}, storing in {place}");
    let metrics = config.metrics.then(|| figures(Arc::clone(&engine)));
    let router = http::router(engine, http::Hosts::new(config.hosts.iter().cloned()), metrics);
    http::serve(listener, router, stop).await;
    Ok(())
}

/// What `/metrics` shows.
fn figures(engine: Arc<Engine>) -> http::Metrics {
    Arc::new(move || {
        let session = engine.session(Caller::anyone());
        Box::pin(async move {
            let figures = session.figures().await;
            figures.map_or_else(|error| format!("# {error}\n"), |figures| metrics::text(&figures))
        })
    })
}

/// A store and what is said of it.
struct Opened {
    storage: Arc<dyn WorkflowStorage>,
    place: String,
    /// Ends if it turns out later that the store cannot be used.
    failed: Pin<Box<dyn Future<Output = BoxError> + Send>>,
}

async fn open(config: &Config) -> Result<Opened, BoxError> {
    let never = || Box::pin(std::future::pending());
    match &config.backend {
        Backend::Memory => {
            tracing::warn!("STORAGE_BACKEND=memory: everything is lost when this server stops");
            let storage = Arc::new(InMemoryStorage::new());
            Ok(Opened { storage, place: "memory".to_owned(), failed: never() })
        }
        Backend::Sqlite { path } => {
            let storage = Arc::new(SqliteStorage::open(&SqliteStorageConfig::new(path))?);
            let shown = path.canonicalize().unwrap_or_else(|_| path.clone());
            let place = format!("SQLite file {}", shown.display());
            Ok(Opened { storage, place, failed: never() })
        }
        Backend::Nats { config, options } => {
            let storage =
                NATSStorage::start(config.clone(), NATSStorageOptions::clone(options)).await?;
            let storage = Arc::new(storage);
            // What cannot work stops the start before anything is served. A bus that is not there
            // yet does not: the server says that it is not ready until it is.
            match tokio::time::timeout(NATS_START_WAIT, storage.opened()).await {
                Ok(opened) => opened?,
                Err(_) => {
                    tracing::warn!(
                        "starting before the store can be used; requests are refused until it can"
                    )
                }
            }
            let place = format!("NATS at {}", nats::shown_urls(&config.nats_urls));
            let waiting = Arc::clone(&storage);
            let failed = Box::pin(async move {
                match waiting.opened().await {
                    Err(error) => error.into(),
                    Ok(()) => std::future::pending().await,
                }
            });
            Ok(Opened { storage, place, failed })
        }
    }
}

/// Ends at SIGTERM or Ctrl-C. A second one of them ends the process at once.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: requests under way are finished, a second signal stops at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(1);
        });
    })
}
