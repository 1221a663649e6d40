//! An answer on its way to its client.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;

use super::admission::{Client, Held};

/// Bytes that a client takes at once; whoever takes none of these lets the server wait.
const PART_BYTES: usize = 64 << 10;

/// The text of an answer in parts: a long one is neither copied while it grows nor kept until its last byte is sent.
#[derive(Debug, Default, PartialEq)]
pub struct Text {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Text {
    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, part: Vec<u8>) {
        self.bytes += part.len();
        self.parts.push_back(part.into());
    }

    fn pop(&mut self) -> Option<Bytes> {
        let part = self.parts.pop_front()?;
        self.bytes -= part.len();
        Some(part)
    }
}

/// The text of an answer on its way, which holds its room until the last of it is handed over.
pub struct Outgoing {
    left: Text,
    client: Arc<Client>,
    _room: Option<Held>,
}

impl Outgoing {
    pub fn new(text: Text, client: Arc<Client>, room: Option<Held>) -> Self {
        Self { left: text, client, _room: room }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.left.pop();
        if part.is_some() {
            self.client.heard();
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.bytes() as u64)
    }
}

/// Writes an answer as JSON; none if that takes more bytes than these.
pub fn text<T: Serialize>(answer: &T, bytes_max: usize) -> Result<Option<Text>, serde_json::Error> {
    let mut writer = Writer { text: Text::default(), part: Vec::new(), bytes_max, is_over: false };
    match serde_json::to_writer(&mut writer, answer) {
        Err(_) if writer.is_over => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(writer.end())),
    }
}

struct Writer {
    text: Text,
    part: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Writer {
    fn end(mut self) -> Text {
        self.text.push(self.part);
        self.text
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.bytes() + self.part.len() + bytes.len() > self.bytes_max {
            self.is_over = true;
            return Err(io::Error::other("the answer is too long"));
        }
        if self.part.len() == PART_BYTES {
            self.text.push(mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES)));
        }
        let count = bytes.len().min(PART_BYTES - self.part.len());
        self.part.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: Text) -> Vec<u8> {
        text.parts.iter().flatten().copied().collect()
    }

    #[test]
    fn a_text_ends_where_it_must() {
        assert_eq!(whole(text(&"abc", 5).unwrap().unwrap()), b"\"abc\"");
        assert_eq!(text(&"abc", 4).unwrap(), None);
        assert_eq!(text(&"\u{1}", 7).unwrap(), None, "as it is written");
    }

    #[test]
    fn a_long_text_is_whole_and_in_parts() {
        let long = "0123456789".repeat(20_000);
        let mut text = text(&[&long, &long], 1 << 20).unwrap().unwrap();
        assert_eq!(text.bytes(), 2 * long.len() + 7);
        assert!(text.parts.iter().all(|part| !part.is_empty() && part.len() <= PART_BYTES));
        let mut all = Vec::new();
        while let Some(part) = text.pop() {
            all.extend_from_slice(&part);
        }
        assert_eq!(all, serde_json::to_vec(&[&long, &long]).unwrap());
        assert_eq!(text.bytes(), 0);
    }
}
