//! A Corefile that is followed as it changes (DNS-11.10).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use shunt_model::with_causes;
use tokio::sync::watch;
use tokio::time::sleep;

use super::text::{Source, Text};
use super::{Corefile, CorefileError};
use crate::server::Server;

/// Applies the file and all that it imports whenever they change. A text that is refused, or that needs a restart,
/// leaves the last one in force.
pub async fn follow(path: PathBuf, now: Corefile, server: Weak<Server>, dns_addresses: Vec<IpAddr>, every: Duration) {
    let mut follower = Follower::new(path, now, server, dns_addresses);
    follower.every = Some(every);
    follower.follow().await;
}

/// Applies the changes of a Corefile to a server.
pub struct Follower {
    path: PathBuf,
    now: Corefile,
    /// The last text, good or bad: each is logged once.
    seen: Vec<Source>,
    server: Weak<Server>,
    dns_addresses: Vec<IpAddr>,
    /// How often the file is looked at.
    every: Option<Duration>,
    lameduck: watch::Sender<Duration>,
}

impl Follower {
    /// For a server that was started with `now`.
    #[must_use]
    pub fn new(path: PathBuf, mut now: Corefile, server: Weak<Server>, dns_addresses: Vec<IpAddr>) -> Self {
        let (seen, every) = (std::mem::take(&mut now.sources), now.reload);
        if let Some(server) = server.upgrade() {
            server.runs(version(&seen));
        }
        let (lameduck, _) = watch::channel(now.lameduck);
        Self { path, now, seen, server, dns_addresses, every, lameduck }
    }

    /// How long queries are still answered after the signal to stop, as the file says now.
    #[must_use]
    pub fn lameduck(&self) -> watch::Receiver<Duration> {
        self.lameduck.subscribe()
    }

    /// Reads the file at the interval that it sets, until it no longer sets one. Can be cancelled at any time, and
    /// called again.
    pub async fn follow(&mut self) {
        while let Some(every) = self.every {
            sleep(every).await;
            // With all imports: a pattern may match other files now.
            let text = Text::read(&self.path);
            if text.sources == self.seen {
                continue;
            }
            if self.server.strong_count() == 0 {
                return;
            }
            self.take(text);
        }
    }

    /// Applies the file now, also if it did not change: for an operator's request.
    pub fn read_again(&mut self) {
        self.take(Text::read(&self.path));
    }

    fn take(&mut self, text: Text) {
        self.seen.clone_from(&text.sources);
        let Some(server) = self.server.upgrade() else { return };
        match take(&self.path, text, &self.now, &server, &self.dns_addresses) {
            Ok(new) => {
                server.runs(version(&self.seen));
                self.lameduck.send_replace(new.lameduck);
                // Logged only when all that the file asks for holds.
                tracing::info!(corefile = %self.path.display(), "the new Corefile is in force");
                if new.reload != self.now.reload {
                    self.every = new.reload;
                    if self.every.is_none() {
                        tracing::info!("the new Corefile has no `reload`, so later changes are not noticed");
                    }
                }
                self.now = new;
            }
            Err(error) => {
                server.reload_failed();
                tracing::error!(%error, "the last Corefile stays in force");
            }
        }
    }
}

/// A hash of the texts, the same on every server that runs the same texts (FNV-1a).
fn version(sources: &[Source]) -> String {
    let texts = sources.iter().filter_map(|(_, text)| text.as_deref());
    let hash = texts
        .flat_map(str::bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn take(
    path: &Path,
    text: Text,
    now: &Corefile,
    server: &Server,
    dns_addresses: &[IpAddr],
) -> Result<Corefile, String> {
    let new = Corefile::understand(path, text, now.default_port).map_err(|error: CorefileError| with_causes(&error))?;
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
