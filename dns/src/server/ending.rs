//! The end of a server: nobody new is heard, and whoever is being answered gets the answer.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Shared by all sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    begun: CancellationToken,
    over: CancellationToken,
    answering: TaskTracker,
}

impl Ending {
    /// Starts what ends with an answer, or with a connection, or with the server.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        drop(self.answering.spawn(async move {
            over.run_until_cancelled(work).await;
        }));
    }

    /// Nobody is answered any more once this is dropped.
    pub(super) fn guard(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }

    /// Waits until that has come about.
    pub(super) async fn over(&self) {
        self.over.cancel();
        self.answering.close();
        self.answering.wait().await;
    }

    /// Waits for the word to hear nobody new.
    pub(super) fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.begun.clone().cancelled_owned()
    }

    /// Gives it, and waits until everybody has been answered, though not for ever.
    pub(super) async fn begin(&self, patience: Duration) {
        self.begun.cancel();
        self.answering.close();
        if timeout(patience, self.answering.wait()).await.is_err() {
            tracing::warn!(left = self.answering.len(), "some are not answered in time");
        }
    }
}
