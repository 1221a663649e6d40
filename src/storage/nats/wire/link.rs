//! The connection: requests that end, and who knows whether it stands.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::config::{NATSStorageConfig, NATSStorageOptions, shown_urls};
use super::pulse::Pulse;
use super::waiters::Waiters;
pub use super::waiters::{LinkError, Replies};
use crate::domain::limits::RECORD_BYTES_MAX;

/// Time that a request waits for a connection that is being made anew.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(3);

/// How often who waits for the connection looks at it, in case an event was lost.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// The most time between two attempts to connect.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often the client asks a silent server whether it is there; after the second question
/// without an answer the connection counts as lost.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Pause before the connection is made anew because answers may not arrive on it.
const DEAF_PAUSE: Duration = Duration::from_secs(1);

/// The same because nats-server said when it was made that it takes only small messages: it does not say
/// when that changes.
const SMALL_PAUSE: Duration = Duration::from_secs(5);

/// Headers of a message at most.
pub const HEADERS_BYTES_MAX: usize = 1_536;

/// What nats-server must take at least: the largest record, with its headers.
pub const PAYLOAD_MIN: usize = RECORD_BYTES_MAX + HEADERS_BYTES_MAX;

/// Commands that wait for the task that writes to the connection.
const COMMANDS_MAX: usize = 4_096;

/// One connection to the bus, made anew for as long as it takes whenever it breaks.
pub struct Link {
    client: Client,
    urls: String,
    tls: bool,
    inbox: String,
    waiters: Arc<Waiters>,
    pulse: Pulse,
    changes: watch::Receiver<u64>,
    /// Tells that nats-server takes only small messages.
    small: Arc<Notify>,
    /// Tells that another server is to be tried.
    elsewhere: Arc<Notify>,
    dispatcher: JoinHandle<()>,
    healer: JoinHandle<()>,
}

impl Link {
    /// Begins to connect and returns at once.
    pub async fn start(
        config: &NATSStorageConfig,
        options: &NATSStorageOptions,
    ) -> Result<Self, String> {
        let urls = shown_urls(&config.nats_urls);
        let addresses: Vec<async_nats::ServerAddr> = config
            .nats_urls
            .iter()
            .map(|url| url.parse())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{urls}: {error}"))?;
        let waiters = Arc::new(Waiters::default());
        let (changed, changes) = watch::channel(0);
        let connect = connect_options(config, options)
            .await?
            .event_callback(callback(Arc::clone(&waiters), changed));
        let client = connect.connect(addresses).await.map_err(|e| format!("{urls}: {e}"))?;
        let inbox = client.new_inbox();
        let mut answers = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|error| format!("{urls}: {error}"))?;
        let (shared, prefix) = (Arc::clone(&waiters), inbox.len() + 1);
        let dispatcher = tokio::spawn(async move {
            while let Some(message) = answers.next().await {
                let subject = message.subject.clone();
                shared.deliver(subject.get(prefix..).unwrap_or_default(), message);
            }
        });
        let (deaf, again) = (Arc::clone(&waiters), client.clone());
        let small = Arc::new(Notify::new());
        let elsewhere = Arc::new(Notify::new());
        let (is_small, leaves) = (Arc::clone(&small), Arc::clone(&elsewhere));
        let healer = tokio::spawn(async move {
            loop {
                let pause = tokio::select! {
                    () = deaf.deaf() => DEAF_PAUSE,
                    () = is_small.notified() => SMALL_PAUSE,
                    () = leaves.notified() => Duration::ZERO,
                };
                tokio::time::sleep(pause).await;
                let takes_all = again.server_info().max_payload >= PAYLOAD_MIN;
                if pause == SMALL_PAUSE && takes_all {
                    continue;
                }
                // A subscription that was refused stays so; a new connection asks again.
                if let Err(error) = again.force_reconnect().await {
                    tracing::debug!(%error, "the connection could not be made anew");
                }
            }
        });
        let tls = urls.contains("tls://") || options.tls_ca_file.is_some();
        let pulse = Pulse::default();
        Ok(Self {
            client,
            urls,
            tls,
            inbox,
            waiters,
            pulse,
            changes,
            small,
            elsewhere,
            dispatcher,
            healer,
        })
    }

    /// Connects anew, perhaps to another server: the one that it is connected to cannot do anything.
    pub fn leave(&self) {
        self.elsewhere.notify_one();
    }

    /// The servers, as messages may show them.
    pub fn urls(&self) -> &str {
        &self.urls
    }

    /// Whether the connection stands now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// What the server that it stands to says of itself.
    pub fn server(&self) -> Option<async_nats::ServerInfo> {
        self.client.try_server_info()
    }

    /// The most bytes of a message that it takes. Where that is too few, the connection is made anew before
    /// long, as only then it says whether that has changed.
    pub fn payload_max(&self) -> usize {
        let most = self.server().map_or(usize::MAX, |server| server.max_payload);
        if most < PAYLOAD_MIN {
            self.small.notify_one();
        }
        most
    }

    /// What is known of the process that holds the stream, where it is another one than that to which
    /// the connection stands.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The server process that holds the stream: another id means another one, or that it was restarted.
    pub fn server_id(&self) -> String {
        let id = self.server().map(|server| server.server_id).unwrap_or_default();
        format!("{id}.{}", self.pulse.restarts())
    }

    /// How many requests nobody has answered: whoever should have may have been restarted.
    pub fn unanswered(&self) -> u64 {
        self.waiters.unanswered()
    }

    /// A number that grows with all that may hide a restart of nats-server: the connection broke or
    /// stands again, a request had no answer, the stream has another leader, or its process was silent.
    /// A batch may have been cut.
    pub fn disturbances(&self) -> u64 {
        if self.pulse.is_late(Instant::now()) {
            self.disturb();
        }
        *self.waiters.disturbances().borrow()
    }

    /// Tells whenever that number grows.
    pub fn disturbed(&self) -> watch::Receiver<u64> {
        self.waiters.disturbances().subscribe()
    }

    /// Notes that the stream has another leader, or is another one.
    pub fn disturb(&self) {
        self.waiters.disturb();
    }

    /// Why nothing may be published to this subject, if nats-server has just said that it may not.
    pub fn denied(&self, subject: &str) -> Option<LinkError> {
        self.waiters.denied_to(subject)
    }

    /// The permissions that are missing, as nats-server said a moment ago.
    pub fn all_denied(&self) -> Option<String> {
        self.waiters.all_denied()
    }

    /// A number that changes whenever the connection breaks or stands again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Waits until the connection stands.
    pub async fn connected(&self, deadline: Instant) -> Result<(), LinkError> {
        let mut changes = self.changes.clone();
        while !self.is_connected() {
            if Instant::now() >= deadline {
                return Err(LinkError::NotSent(self.no_connection()));
            }
            // Whether it changed or time passed, the loop looks.
            drop(timeout(LOOK_PERIOD, changes.changed()).await);
        }
        Ok(())
    }

    /// That there is no connection, and why, as far as that is known.
    pub fn no_connection(&self) -> String {
        let said = self.waiters.said();
        let said = said.map_or_else(String::new, |said| format!(": {said}"));
        // The client does not tell what it is that went wrong with TLS.
        let hint = if self.tls && !said.is_empty() && !self.waiters.said_by_server() {
            "; over TLS that can be a certificate that one of the two does not trust, or that is for another host or another key, see NATS_TLS_CA_FILE, NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE"
        } else {
            ""
        };
        format!("no connection to {}{said}{hint}", self.urls)
    }

    /// Sends a request and gives its only answer.
    pub async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Message, LinkError> {
        self.request_many(subject, headers, payload, 1, wait).await?.next().await
    }

    /// Sends a request that gets up to `answers_max` answers, all within `wait`.
    pub async fn request_many(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        answers_max: usize,
        wait: Duration,
    ) -> Result<Replies, LinkError> {
        let replies = self.expect(&subject, answers_max, wait).await?;
        let (reply, deadline) = (self.reply_of(&replies), replies.deadline());
        self.publish_for(subject, &reply, headers, payload, deadline).await?;
        Ok(replies)
    }

    /// Waits from now on for up to `answers_max` answers to what is sent to this subject.
    pub async fn expect(
        &self,
        subject: &str,
        answers_max: usize,
        wait: Duration,
    ) -> Result<Replies, LinkError> {
        let connect_by = Instant::now() + CONNECT_WAIT_MAX.min(wait);
        self.connected(connect_by).await?;
        if let Some(denied) = self.denied(subject) {
            return Err(denied);
        }
        // From here on dropping it takes it out again.
        Ok(self.waiters.register(subject.to_owned(), answers_max, Instant::now() + wait))
    }

    /// Where those who wait for these answers hear them.
    pub fn reply_of(&self, replies: &Replies) -> String {
        format!("{}.{}", self.inbox, replies.id)
    }

    /// Sends a message that nobody answers.
    pub async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(), LinkError> {
        let sent = self.client.publish_with_headers(subject, headers, payload);
        handed_over(deadline, sent).await
    }

    /// A subscription of its own, for answers that keep their subject, and where they are sent to.
    pub async fn subscribe_inbox(&self) -> Result<(String, Subscriber), LinkError> {
        self.connected(Instant::now() + CONNECT_WAIT_MAX).await?;
        let inbox = self.client.new_inbox();
        let subscribed = self.client.subscribe(inbox.clone());
        match timeout(CONNECT_WAIT_MAX, subscribed).await {
            Ok(Ok(subscriber)) => Ok((inbox, subscriber)),
            Ok(Err(error)) => Err(LinkError::NotSent(error.to_string())),
            Err(_) => Err(LinkError::NotSent("the connection takes nothing more".to_owned())),
        }
    }

    /// Sends a message whose answers go to `reply`.
    pub async fn publish_for(
        &self,
        subject: String,
        reply: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(), LinkError> {
        let (client, reply) = (&self.client, reply.to_owned());
        match headers {
            Some(headers) => {
                let sent = client.publish_with_reply_and_headers(subject, reply, headers, payload);
                handed_over(deadline, sent).await
            }
            None => handed_over(deadline, client.publish_with_reply(subject, reply, payload)).await,
        }
    }

    /// Lets go of the connection.
    pub async fn close(&self) {
        // It may be gone; what was accepted has had its answer.
        drop(timeout(CONNECT_WAIT_MAX, self.client.drain()).await);
        self.dispatcher.abort();
        self.healer.abort();
        self.waiters.close();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.dispatcher.abort();
        self.healer.abort();
    }
}

async fn handed_over<E: std::fmt::Display>(
    deadline: Instant,
    sent: impl Future<Output = Result<(), E>>,
) -> Result<(), LinkError> {
    match timeout_at(deadline, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(LinkError::NotSent(error.to_string())),
        Err(_) => Err(LinkError::NotSent("the connection takes nothing more".to_owned())),
    }
}

async fn connect_options(
    config: &NATSStorageConfig,
    options: &NATSStorageOptions,
) -> Result<ConnectOptions, String> {
    let mut connect = ConnectOptions::new()
        .name("circuit-breaker")
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(config.connection_timeout)
        .ping_interval(PING_INTERVAL)
        .client_capacity(COMMANDS_MAX)
        .reconnect_delay_callback(|attempts| {
            let pause = Duration::from_millis(25) * 2_u32.pow(attempts.min(6) as u32);
            pause.min(RECONNECT_PAUSE_MAX)
        });
    if let Some((user, password)) = config.login()? {
        // The client takes no notice of what stands before a host.
        connect = match password {
            Some(password) => connect.user_and_password(user, password),
            None => connect.token(user),
        };
    }
    if let Some(path) = &options.credentials_file {
        connect = connect
            .credentials_file(path)
            .await
            .map_err(|error| format!("credentials file {}: {error}", path.display()))?;
    }
    let certificates = [
        options.tls_ca_file.as_ref(),
        options.tls_client_files.as_ref().map(|(certificate, _)| certificate),
    ];
    for path in certificates.into_iter().flatten() {
        has_block(path, "CERTIFICATE", "certificate")?;
    }
    if let Some((_, key)) = &options.tls_client_files {
        has_block(key, "PRIVATE KEY", "private key")?;
    }
    if let Some(path) = &options.tls_ca_file {
        connect = connect.add_root_certificates(path.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &options.tls_client_files {
        connect =
            connect.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(connect)
}

/// Whether a file holds what it should; the client takes no notice of one without.
fn has_block(path: &Path, block: &str, what: &str) -> Result<(), String> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{what} file {shown}: {error}"))?;
    // What stands before the words says which kind of key it is.
    let text = String::from_utf8_lossy(&text);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(block);
    if text.lines().any(begins) {
        return Ok(());
    }
    Err(format!("{shown} holds no {what}: a PEM file with -----BEGIN {block}----- is needed"))
}

type Noted = std::pin::Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Keeps track of what happens to the connection.
fn callback(
    waiters: Arc<Waiters>,
    changed: watch::Sender<u64>,
) -> impl Fn(Event) -> Noted + Send + Sync {
    move |event| {
        match event {
            Event::Connected => {
                changed.send_modify(|number| *number += 1);
                waiters.connected();
            }
            Event::Disconnected | Event::Closed => {
                changed.send_modify(|number| *number += 1);
                waiters.broken();
            }
            Event::ServerError(error) => waiters.note(error.to_string()),
            Event::ClientError(error) => waiters.note_of_client(error.to_string()),
            Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining => {}
        }
        Box::pin(async {})
    }
}
