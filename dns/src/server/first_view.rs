//! What questions about the cluster wait for while nothing is known of it yet: an error would reach the program that asks,
//! silence is bridged by its resolver (rule 11.1).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shunt_serving::admission::Admission;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::zone::View;

/// Questions that wait at once; one client has at most half of the places.
const PLACES: usize = 1000;

/// The first view that has a cluster in it.
pub(super) struct FirstView {
    views: watch::Receiver<View>,
    until: Instant,
    places: Arc<Admission>,
}

impl FirstView {
    /// Waited for from now on, for so long.
    pub(super) fn new(views: watch::Receiver<View>, patience: Duration) -> Self {
        Self { views, until: Instant::now() + patience, places: Admission::new(PLACES) }
    }

    /// The view once there is one; `None` if that takes too long, or too many wait already.
    pub(super) async fn wait(&self, client: IpAddr) -> Option<View> {
        if Instant::now() >= self.until {
            return None;
        }
        let _place = self.places.enter(client)?;
        let mut views = self.views.clone();
        let view = timeout_at(self.until, views.wait_for(|view| view.snapshot.is_some())).await.ok()?.ok()?;
        Some(view.clone())
    }
}
