//! Puts back what other programs remove or change in our tables.

use std::time::Instant;

use shunt_model::with_causes;
use tracing::warn;

use super::difference::Wrong;
use super::disturbance::Disturbance;
use super::{Nftables, write_failed};
use crate::datapath::SyncError;
use crate::datapath::packets::REST;

impl Nftables {
    /// Compares the kernel with what the last sync wrote, if somebody may have changed it. Returns how much was wrong.
    /// The first damage is repaired at once; what comes soon after it, after a rest.
    pub(super) fn keep(&mut self) -> Result<u64, SyncError> {
        let started = Instant::now();
        if self.rests_until.is_some_and(|until| started < until) {
            return Ok(0); // A later look takes it in.
        }
        let by = match self.disturbances.take() {
            Disturbance::None => return Ok(0),
            Disturbance::Unknown => None,
            Disturbance::By(name) => Some(name),
        };
        // Without it the next sync reads everything back.
        let Some(rendering) = self.rendering.take() else { return Ok(0) };
        let plan = self.synced.clone();
        let installed = self.read();
        let outcome = installed.and_then(|installed| {
            self.write_all(&plan, &rendering, installed).map_err(|failure| write_failed(failure.error))
        });
        self.rests_until = Instant::now().checked_add(started.elapsed().saturating_mul(REST));
        match outcome {
            Ok((_, wrong)) => {
                self.rendering = Some(rendering);
                let repaired = match (wrong.count(), &by) {
                    // Rules are written again without being read, so what was changed in them is not known.
                    (0, Some(_)) => 1,
                    (count, _) => count,
                };
                if repaired > 0 {
                    self.restored(wrong, by.as_deref());
                }
                self.tell_installed(None);
                Ok(u64::try_from(repaired).unwrap_or(u64::MAX))
            }
            Err(error) => {
                let reason = with_causes(&error);
                self.tell_installed(Some(format!("nftables tables were changed and cannot be put back: {reason}")));
                Err(error)
            }
        }
    }

    fn restored(&self, wrong: Wrong, by: Option<&str>) {
        let Wrong { elements, chains, sets } = wrong;
        let by = by.unwrap_or("unknown");
        warn!(by, elements, chains, sets, "another program changed our nftables tables; they are as before");
        self.reports.send_modify(|report| {
            report.installed.restored = report.installed.restored.saturating_add(1);
        });
    }

    /// Publishes whether all is in place.
    pub(super) fn tell_installed(&self, fault: Option<String>) {
        let fault = fault.or_else(|| self.disturbances.deaf());
        self.reports.send_if_modified(|report| {
            let modified = report.installed.fault != fault;
            report.installed.fault = fault;
            modified
        });
    }
}

impl Wrong {
    fn count(self) -> usize {
        let Self { elements, chains, sets } = self;
        elements.saturating_add(chains).saturating_add(sets)
    }
}
