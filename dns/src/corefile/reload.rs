//! A Corefile that is followed as it changes (rule 11.10).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use shunt_model::with_causes;
use tokio::time::sleep;

use super::{Corefile, CorefileError};
use crate::server::Server;

/// Takes over what the file says whenever it has changed. A file that cannot be used leaves what was in force; so does
/// one that asks for what only a restart can give.
pub async fn follow(
    path: PathBuf,
    mut now: Corefile,
    server: Weak<Server>,
    dns_addresses: Vec<IpAddr>,
    every: Duration,
) {
    loop {
        sleep(every).await;
        if !now.has_changed() {
            continue;
        }
        let Some(server) = server.upgrade() else { return };
        match take(&path, &now, &server, &dns_addresses) {
            Ok(new) => {
                tracing::info!(corefile = %path.display(), "the new Corefile is in force");
                now = new;
            }
            Err(error) => {
                server.reload_failed();
                tracing::error!(%error, "the last Corefile stays in force");
                // Told once for each text.
                now.sources = Corefile::read_sources(&path, &now);
            }
        }
    }
}

fn take(path: &Path, now: &Corefile, server: &Server, dns_addresses: &[IpAddr]) -> Result<Corefile, String> {
    let new = Corefile::read(path).map_err(|error: CorefileError| with_causes(&error))?;
    if new.frame() != now.frame() {
        return Err(format!(
            "{}: addresses, ports, health, ready, prometheus and the pods and kubeconfig of kubernetes take effect \
             with a restart only",
            path.display()
        ));
    }
    server
        .reconfigure(new.zone(dns_addresses.to_vec()), new.blocks.clone())
        .map_err(|error| format!("{}: {}", path.display(), with_causes(&error)))?;
    Ok(new)
}
