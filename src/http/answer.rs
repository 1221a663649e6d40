//! An answer on its way to its client.

use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::admission::{Client, Held};

/// Bytes that a client takes at once; whoever takes none of these lets the server wait.
const PART_BYTES: usize = 64 << 10;

/// The text of an answer, which holds its room until the last of it is handed over.
pub struct Outgoing {
    left: Bytes,
    client: Arc<Client>,
    _room: Option<Held>,
}

impl Outgoing {
    pub fn new(text: Vec<u8>, client: Arc<Client>, room: Option<Held>) -> Self {
        Self { left: text.into(), client, _room: room }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        self.client.heard();
        let count = PART_BYTES.min(self.left.len());
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(count)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// Writes an answer as JSON; none if that takes more bytes than these.
pub fn text<T: Serialize>(
    answer: &T,
    bytes_max: usize,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut text = Bounded { text: Vec::new(), bytes_max, is_over: false };
    match serde_json::to_writer(&mut text, answer) {
        Err(_) if text.is_over => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(text.text)),
    }
}

struct Bounded {
    text: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.text.len() + part.len() > self.bytes_max {
            self.is_over = true;
            return Err(io::Error::other("the answer is too long"));
        }
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_where_it_must() {
        assert_eq!(text(&"abc", 5).unwrap().unwrap(), b"\"abc\"");
        assert_eq!(text(&"abc", 4).unwrap(), None);
        assert_eq!(text(&"\u{1}", 7).unwrap(), None, "as it is written");
    }
}
