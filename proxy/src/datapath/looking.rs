//! What a data path lets others look at while it serves: counters with labels, and decisions as they are taken.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::timeout;

/// So many decisions may wait for a listener that is slow.
const WAITING: usize = 4096;
/// Programs tell at once, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counters of one name under `/metrics`, apart by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Their name without the prefix `shunt_` and without `_total`.
    pub name: &'static str,
    /// What they mean.
    pub help: &'static str,
    /// The labels of each, and its value now.
    pub values: Vec<(Vec<(&'static str, String)>, u64)>,
}

/// Reads counters at the moment of each request.
pub trait Meter: fmt::Debug + Send + Sync {
    /// Their values now.
    fn read(&self) -> Vec<Counters>;
}

/// What becomes of the packet that asked for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecisionVerdict {
    /// It goes to an endpoint, and a flow begins.
    Forward,
    /// Its sender is refused.
    Reject,
    /// It is dropped.
    Drop,
}

impl DecisionVerdict {
    /// The word for people and programs, as `shunt explain` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// A decision of a program. Its JSON is that of `shunt monitor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When the daemon heard of it, as RFC 3339 has it.
    pub time: String,
    /// What becomes of the packet.
    pub verdict: DecisionVerdict,
    /// Why: the label `reason` or `how` of the counter.
    pub reason: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Who sent the packet.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
    /// `namespace/name` of the Service, if the destination is one of its frontends.
    pub service: Option<String>,
    /// The name of the service port; empty if it has none.
    pub port: Option<String>,
    /// The endpoint, if one was chosen.
    pub endpoint: Option<SocketAddr>,
    /// The network device at which it was decided.
    pub device: String,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A decision.
    Decision(Arc<Decision>),
    /// So many decisions were left out: too many came at once.
    LeftOut(u64),
}

/// Decisions as they are taken, for those that listen. All clones share it.
#[derive(Clone, Debug)]
pub struct Decisions {
    sender: broadcast::Sender<Heard>,
    joined: Arc<Notify>,
    /// The programs tell.
    telling: watch::Sender<bool>,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { sender: broadcast::channel(WAITING).0, joined: Arc::default(), telling: watch::channel(false).0 }
    }
}

impl Decisions {
    /// Listens until this is dropped; returns once the programs tell, or `None` if they do not begin.
    pub async fn listen(&self) -> Option<Listening> {
        let listening = Listening(self.sender.subscribe());
        self.joined.notify_one();
        let mut telling = self.telling.subscribe();
        let begun = timeout(PATIENCE, telling.wait_for(|telling| *telling)).await;
        begun.is_ok_and(|begun| begun.is_ok()).then_some(listening)
    }

    /// Whether somebody listens.
    pub(crate) fn are_listened_to(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Waits until somebody listens.
    pub(super) async fn listened_to(&self) {
        while !self.are_listened_to() {
            self.joined.notified().await;
        }
    }

    /// The programs tell from now on, or do not any more.
    pub(crate) fn set_telling(&self, telling: bool) {
        self.telling.send_replace(telling);
    }

    /// Tells those that listen.
    pub(crate) fn tell(&self, heard: Heard) {
        // The last one may have gone this instant.
        let (Ok(_) | Err(_)) = self.sender.send(heard);
    }
}

/// Hears decisions.
#[derive(Debug)]
pub struct Listening(broadcast::Receiver<Heard>);

impl Listening {
    /// The next one; `None` once nothing can tell any more.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.0.recv().await {
            Ok(heard) => Some(heard),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Heard::LeftOut(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// What a data path lets others look at.
#[derive(Clone, Debug, Default)]
pub struct Looking {
    /// Its counters with labels.
    pub meters: Vec<Arc<dyn Meter>>,
    /// Its decisions, if its programs tell them.
    pub decisions: Option<Decisions>,
}

impl Looking {
    /// What two parts of a path let others look at.
    pub(super) fn and(self, other: Self) -> Self {
        let Self { meters, decisions } = other;
        Self { meters: [self.meters, meters].concat(), decisions: self.decisions.or(decisions) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_hears_what_is_told_while_it_listens_and_how_much_it_missed() {
        let decisions = Decisions::default();
        assert!(!decisions.are_listened_to());
        decisions.tell(Heard::LeftOut(1));
        decisions.set_telling(true);
        let mut listening = decisions.listen().await.unwrap();
        decisions.listened_to().await;
        decisions.tell(Heard::LeftOut(2));
        assert_eq!(listening.next().await, Some(Heard::LeftOut(2)));
        let told = u64::try_from(WAITING).unwrap() + 7;
        (0..told).for_each(|nth| decisions.tell(Heard::LeftOut(nth)));
        assert_eq!(listening.next().await, Some(Heard::LeftOut(7)));
        assert_eq!(listening.next().await, Some(Heard::LeftOut(7)), "the first that it did not miss");
        drop(listening);
        assert!(!decisions.are_listened_to());
    }
    #[tokio::test(start_paused = true)]
    async fn who_listens_waits_until_programs_tell_and_not_for_ever() {
        let decisions = Decisions::default();
        assert!(decisions.listen().await.is_none());
        assert!(!decisions.are_listened_to());
        let teller = async {
            decisions.listened_to().await;
            decisions.set_telling(true);
        };
        assert!(tokio::join!(decisions.listen(), teller).0.is_some());
    }
}
