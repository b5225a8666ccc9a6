//! Which views of the cluster the bundled DNS may answer from: a name must not resolve to a service that is not
//! reachable yet.

use std::sync::Arc;

use shunt_model::Snapshot;
use tokio::sync::watch;

use crate::status::Status;

/// Passes on each view that the kernel serves since a sync of it succeeded, until the status ends.
pub async fn follow(mut status: watch::Receiver<Status>, reachable: watch::Sender<Option<Arc<Snapshot>>>) {
    loop {
        let served = status.borrow_and_update().snapshot.clone();
        reachable.send_if_modified(|known| {
            let is_known = known.as_ref().map(Arc::as_ptr) == served.as_ref().map(Arc::as_ptr);
            *known = served;
            !is_known
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}
