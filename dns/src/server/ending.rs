//! The end of a server: it accepts no new query, and answers those in progress.

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
    /// Starts a task for an answer or a connection; the end of the server cancels it.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        drop(self.answering.spawn(async move {
            over.run_until_cancelled(work).await;
        }));
    }

    /// Dropping this cancels all answers.
    pub(super) fn guard(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }

    /// Cancels all answers and waits until their tasks have ended.
    pub(super) async fn over(&self) {
        self.over.cancel();
        self.answering.close();
        self.answering.wait().await;
    }

    /// Waits for the signal to accept no new query.
    pub(super) fn begun(&self) -> impl Future<Output = ()> + Send + use<> {
        self.begun.clone().cancelled_owned()
    }

    /// Gives that signal, and waits for the answers in progress, `patience` at most.
    pub(super) async fn begin(&self, patience: Duration) {
        self.begun.cancel();
        self.answering.close();
        if timeout(patience, self.answering.wait()).await.is_err() {
            tracing::warn!(left = self.answering.len(), "queries or connections were not answered in time");
        }
    }
}
