//! An HTTP server that no client can block: a bounded number of connections, each for one request and a few seconds.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::admission::{Admission, Place};

/// Connections at once; one client gets at most half.
const CONNECTIONS: usize = 256;
/// From the connection to the end of the answer; a client that neither sends nor reads is disconnected then.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an error that may go away, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until the future is dropped, which closes its connections. A client gets at most half of the connections,
/// and one above the limit is closed at once.
pub async fn serve_routes(listener: TcpListener, routes: Router) {
    serve(listener, routes, CONNECTIONS, PATIENCE).await;
}

async fn serve(listener: TcpListener, routes: Router, places: usize, patience: Duration) {
    let places = Admission::new(places);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            // Without a place the stream is dropped, which closes the connection.
            Ok((stream, client)) => {
                if let Some(place) = places.enter(client.ip()) {
                    connections.spawn(answer(stream, client, routes.clone(), patience, place));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a connection for HTTP");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, client: SocketAddr, routes: Router, patience: Duration, _place: Place) {
    let service = TowerToHyperService::new(routes);
    // One request: a connection that rests would take a place from others.
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    match timeout(patience, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, %client, "answering over HTTP"),
        Err(_too_slow) => tracing::debug!(%client, "a client of HTTP is too slow"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const FOREVER: Duration = Duration::from_secs(600);

    async fn start(places: usize, patience: Duration) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/health", get(|| async { "OK" }));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, routes, places, patience));
        (address, tasks)
    }

    /// All that is answered until the connection ends.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut answer = Vec::new();
        // A connection above the limit may be reset.
        let _end = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn fetch(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        rest(&mut stream).await
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_answer() {
        let (address, _tasks) = start(8, FOREVER).await;
        let answer = fetch(address).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\nOK"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_or_half_a_request_is_disconnected() {
        let (address, _tasks) = start(8, Duration::from_millis(50)).await;
        for begun in ["", "GET /hea", "GET /health HTTP/1.1\r\nHost: x\r\n"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            assert_eq!(rest(&mut stream).await, "", "{begun}");
        }
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let (address, _tasks) = start(4, FOREVER).await;
        let mut silent = Vec::new();
        for _ in 0..2 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // One client has half of the places, which come back.
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(rest(&mut third).await, "");
        silent.clear();
        let mut answer = String::new();
        for _ in 0..2000 {
            answer = fetch(address).await;
            if !answer.is_empty() {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert!(answer.ends_with("OK"), "{answer}");
    }
}
