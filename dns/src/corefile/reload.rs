//! A Corefile that is followed as it changes (rule 11.10).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use shunt_model::with_causes;
use tokio::time::sleep;

use super::text::Text;
use super::{Corefile, CorefileError};
use crate::server::Server;

/// Takes over what the file and all that it imports say, whenever that has changed. What cannot be used leaves in force
/// what was; so does what only a restart can give.
pub async fn follow(
    path: PathBuf,
    mut now: Corefile,
    server: Weak<Server>,
    dns_addresses: Vec<IpAddr>,
    mut every: Duration,
) {
    // Good or bad: each text is told of once.
    let mut seen = std::mem::take(&mut now.sources);
    loop {
        sleep(every).await;
        // All of it again: a pattern may fit other files now.
        let text = Text::read(&path);
        if text.sources == seen {
            continue;
        }
        seen.clone_from(&text.sources);
        let Some(server) = server.upgrade() else { return };
        match take(&path, text, &now, &server, &dns_addresses) {
            Ok(new) => {
                tracing::info!(corefile = %path.display(), "the new Corefile is in force");
                if new.reload != now.reload {
                    let Some(interval) = new.reload else {
                        tracing::info!("the Corefile is not followed any more: `reload` is not in it");
                        return;
                    };
                    every = interval;
                }
                now = new;
            }
            Err(error) => {
                server.reload_failed();
                tracing::error!(%error, "the last Corefile stays in force");
            }
        }
    }
}

fn take(
    path: &Path,
    text: Text,
    now: &Corefile,
    server: &Server,
    dns_addresses: &[IpAddr],
) -> Result<Corefile, String> {
    let new = Corefile::understand(path, text).map_err(|error: CorefileError| with_causes(&error))?;
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
