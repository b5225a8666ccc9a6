//! The end of a server: nobody new is heard, and whoever is being answered gets the answer.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Shared by all sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    begun: CancellationToken,
    answering: TaskTracker,
}

impl Ending {
    /// Starts what ends with an answer, or with a connection.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.answering.spawn(work));
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
