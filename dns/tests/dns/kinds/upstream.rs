//! A small upstream whose replies are octets, written by a test.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::raw::{Message, QR, Question, RA, RD};
use crate::client;

/// What it is asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    pub(super) question: Question,
    pub(super) edns: bool,
    /// The longest reply.
    pub(super) limit: usize,
}

impl Asked {
    fn read(wire: &[u8], tcp: bool) -> Self {
        let mut query = Message::read(wire).unwrap();
        let payload = query.opt.as_ref().map_or(512, |opt| usize::from(opt.class));
        let limit = if tcp { 65535 } else { payload };
        Self { id: query.id, question: query.questions.remove(0), edns: query.opt.is_some(), limit }
    }

    /// The first label of the name, in lower case.
    pub(super) fn label(&self) -> String {
        let length = usize::from(self.question.name[0]);
        String::from_utf8_lossy(&self.question.name[1..=length]).to_ascii_lowercase()
    }

    /// A header with this rcode, the question, and so many records, which the caller writes.
    pub(super) fn head(&self, rcode: u16, counts: [u16; 3]) -> Vec<u8> {
        let words = [self.id, QR | RD | RA | rcode, 1, counts[0], counts[1], counts[2]];
        let mut wire: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        super::raw::put_question(&mut wire, &self.question);
        wire
    }
}

/// It listens until it is dropped.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub(super) async fn start(reply: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let (udp, tcp) = client::sockets("127.0.0.1:0".parse().unwrap()).await;
        let address = udp.local_addr().unwrap();
        let reply = Arc::new(reply);
        let mut tasks = JoinSet::new();
        let over_udp = Arc::clone(&reply);
        tasks.spawn(async move {
            let mut wire = [0; 65535];
            while let Ok((length, client)) = udp.recv_from(&mut wire).await {
                udp.send_to(&over_udp(&Asked::read(&wire[..length], false)), client).await.unwrap();
            }
        });
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let reply = Arc::clone(&reply);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut wire = vec![0; usize::from(length)];
                        stream.read_exact(&mut wire).await.unwrap();
                        let reply = client::framed(&reply(&Asked::read(&wire, true)));
                        if stream.write_all(&reply).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, _tasks: tasks }
    }
}
