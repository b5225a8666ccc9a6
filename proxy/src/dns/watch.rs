//! Watches the bundled DNS as a client does; `choice` follows the result.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::rr::Name;
use shunt_dns::View;
use shunt_model::with_causes;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::dns::service::probe;

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(1);
/// After so many failures in a row the server counts as not serving.
const FAILURES: u32 = 3;

/// Asks for ever; `serving` is true as soon as it knows the cluster and as long as it answers.
pub async fn watch(
    addresses: Vec<SocketAddr>,
    domain: Name,
    mut views: watch::Receiver<View>,
    serving: watch::Sender<bool>,
) {
    if views.wait_for(|view| view.snapshot.is_some()).await.is_err() {
        return;
    }
    serving.send_replace(true);
    let mut failures = 0_u32;
    loop {
        tokio::time::sleep(EVERY).await;
        let mut failure = None;
        for address in &addresses {
            if let Err(error) = probe(*address, &domain).await {
                failure = Some(with_causes(&error));
            }
        }
        failures = if failure.is_some() { failures.saturating_add(1) } else { 0 };
        let serves = failures < FAILURES;
        let changed = serving.send_if_modified(|known| std::mem::replace(known, serves) != serves);
        match failure {
            Some(reason) if changed => warn!(reason, "the bundled DNS does not answer"),
            None if changed => info!("the bundled DNS answers again"),
            Some(_) | None => {}
        }
    }
}
