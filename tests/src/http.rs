//! The smallest HTTP client that can ask a daemon how it is.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

/// Status and body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Fetches `path` from `address` in the namespace of the calling thread.
pub fn http_get(address: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<HttpResponse> {
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(timeout)).context("setting the timeout")?;
    fetch(&mut stream, path).with_context(|| format!("fetching {path} from {address}"))
}

/// Sends the request on a connection and reads the answer to its end.
pub(crate) fn fetch(stream: &mut TcpStream, path: &str) -> anyhow::Result<HttpResponse> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of header")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status")?;
    Ok(HttpResponse { status, body: body.to_owned() })
}
