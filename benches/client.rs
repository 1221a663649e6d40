//! A client that costs little: bytes written to a socket, an answer read back.
//!
//! It shares the cores with the server, so what it spends would be missing there.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Time for one answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// One connection, one request at a time.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket takes it");
        Self { stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    /// Sends a whole HTTP request and gives the body of its answer, which must be free of errors.
    pub async fn ask(&mut self, request: &[u8]) -> &[u8] {
        let body = self.answer(request).await;
        // An answer with data but an error has `errors` behind the data.
        assert!(
            body.starts_with(br#"{"data":{"#) && !body.ends_with(b"}]}"),
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(500)])
        );
        body
    }

    /// Sends a whole HTTP request and gives the body of its answer, whatever it says.
    pub async fn answer(&mut self, request: &[u8]) -> &[u8] {
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, self.exchange(request)).await;
        let head = answer.expect("the server answers in time").expect("the connection stands");
        &self.buffer[head..]
    }

    /// Reads one answer into the buffer and gives the length of its head.
    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<usize> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((head, length)) = head(&self.buffer)
                && self.buffer.len() >= head + length
            {
                return Ok(head);
            }
        }
    }
}

/// The length of an answer's head and of its body, once the head is there.
fn head(answer: &[u8]) -> Option<(usize, usize)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).expect("a head is ASCII");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    Some((end, length.trim().parse().expect("a length is a number")))
}

/// A GraphQL request with its variables as bytes on the wire.
pub fn request(query: &str, variables: &serde_json::Value) -> Vec<u8> {
    request_of(&serde_json::json!({ "query": query, "variables": variables }))
}

/// Any JSON, such as several GraphQL requests in one list, as bytes on the wire.
pub fn request_of(body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let head = "POST /graphql HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
