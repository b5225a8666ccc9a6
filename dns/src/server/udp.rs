//! UDP: queries that can be answered at once are answered in place, and their replies go out together; one that waits
//! for an upstream gets a task of its own.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use futures::poll;

use super::datagram::{Addressed, Datagrams, Inbox, ReplyPath};
use super::ending::Ending;
use super::handler::{Begun, Handler};
use crate::request::Transport;

/// Answers until the server ends. The number of waiting queries is bounded where they wait: before the upstreams.
pub(super) async fn serve(socket: Datagrams, handler: Arc<Handler>, ending: Ending) {
    let socket = Arc::new(socket);
    let (mut inbox, mut replies) = (Inbox::new(), Vec::new());
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, "a UDP socket for DNS has failed");
            return;
        }
        match socket.try_receive(&mut inbox) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // An ICMP error of some client that went away.
            Err(error) => {
                tracing::debug!(%error, "receiving DNS queries");
                continue;
            }
        }
        for (wire, path) in inbox.datagrams() {
            replies.extend(answer(&socket, &handler, &ending, wire, path).await);
        }
        // Together: a client on this node that got one reply at a time would be woken for each.
        send(&socket, &handler, &replies).await;
        replies.clear();
        tokio::task::yield_now().await;
    }
}

/// The reply, if there is one and it does not have to wait.
async fn answer(
    socket: &Arc<Datagrams>,
    handler: &Arc<Handler>,
    ending: &Ending,
    wire: &[u8],
    path: ReplyPath,
) -> Option<Addressed> {
    let request = match handler.begin(wire, path.client, Transport::Udp) {
        Begun::Nothing => return None,
        Begun::Reply(reply) => return Some((reply, path)),
        Begun::Question(request) => request,
    };
    if let Some(reply) = handler.at_once(&request) {
        return Some((reply, path));
    }
    let mut work = Box::pin({
        let handler = Arc::clone(handler);
        async move { handler.answer(&request).await }
    });
    match poll!(&mut work) {
        Poll::Ready(reply) => Some((reply, path)),
        Poll::Pending => {
            let (socket, handler) = (Arc::clone(socket), Arc::clone(handler));
            ending.spawn(async move { send(&socket, &handler, &[(work.await, path)]).await });
            None
        }
    }
}

async fn send(socket: &Datagrams, handler: &Handler, mut replies: &[Addressed]) {
    while let [(_, path), rest @ ..] = replies {
        replies = match socket.send(replies).await {
            Ok(sent) => replies.get(sent..).unwrap_or_default(),
            Err(error) => {
                handler.unsent(path.client, &error);
                rest
            }
        };
    }
}
