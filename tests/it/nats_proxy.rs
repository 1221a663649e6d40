//! A proxy before a nats-server that cuts the connection at the worst moment.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// When the connection is cut, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    Never = 0,
    /// Right before the message that commits a batch is handed on.
    BeforeCommit = 1,
    /// Once nats-server has answered a commit, in place of that answer.
    InPlaceOfAnswer = 2,
}

/// The header of the message that commits.
const COMMIT: &[u8] = b"Nats-Batch-Commit";

/// What a commit's answer holds.
const ANSWER: &[u8] = b"\"batch\":";

pub struct Proxy {
    port: u16,
    cut: Arc<AtomicU8>,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    pub fn before(nats_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, cuts) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicUsize::new(0)));
        let (shared, counted) = (Arc::clone(&cut), Arc::clone(&cuts));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", nats_port)) else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let there = (client.try_clone().unwrap(), server.try_clone().unwrap());
                for (from, to, when, text) in [
                    (there.0, there.1, Cut::BeforeCommit, COMMIT),
                    (server, client, Cut::InPlaceOfAnswer, ANSWER),
                ] {
                    let (cut, cuts) = (Arc::clone(&shared), Arc::clone(&counted));
                    std::thread::spawn(move || forward(from, to, when, text, &cut, &cuts));
                }
            }
        });
        Self { port, cut, cuts }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The next such moment is the end of its connection; those after it are not.
    pub fn cut(&self, when: Cut) {
        self.cut.store(when as u8, Ordering::Release);
    }

    /// How often a connection was cut.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Acquire)
    }
}

/// Hands on what comes, up to the moment of the cut.
fn forward(
    mut from: TcpStream,
    mut to: TcpStream,
    when: Cut,
    text: &[u8],
    cut: &AtomicU8,
    cuts: &AtomicUsize,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        let found = bytes.windows(text.len()).position(|window| window == text);
        let armed = (when as u8, Cut::Never as u8);
        let swap = || cut.compare_exchange(armed.0, armed.1, Ordering::AcqRel, Ordering::Acquire);
        if let Some(position) = found
            && swap().is_ok()
        {
            // What came before goes on; for a commit that is the first messages of its batch.
            drop(to.write_all(&bytes[..position]));
            cuts.fetch_add(1, Ordering::Release);
            break;
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
