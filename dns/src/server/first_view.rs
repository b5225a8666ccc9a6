//! Makes questions about the cluster wait for the first view of it: an error would reach the program that asks, while
//! its resolver retries after silence (DNS-11.1).

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
    /// Questions wait until `patience` from now.
    pub(super) fn new(views: watch::Receiver<View>, patience: Duration) -> Self {
        Self { views, until: Instant::now() + patience, places: Admission::new(PLACES) }
    }

    /// The first view; `None` if it does not come in time, or too many questions wait already.
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
