//! Puts back what other programs remove or change: a look at the kernel each second, and a comparison only if the
//! tables are not as they were.

use std::time::Instant;

use shunt_model::with_causes;
use tracing::warn;

use super::Iptables;
use super::dump::Found;
use super::family::{failed, read_back};
use super::image::Image;
use super::watch::{self, Seen};
use crate::datapath::SyncError;
use crate::datapath::packets::REST;

/// Whether nothing but these commits happened between two looks. Of legacy tables the kernel keeps no count, so that
/// nobody knows: they are compared once after each commit, which writes the whole table anyway.
pub(super) fn follows(before: Option<Seen>, commits: u32, after: Option<Seen>) -> bool {
    match (before, after) {
        (Some(Seen::Nft(before)), Some(Seen::Nft(after))) => before.wrapping_add(commits) == after,
        (Some(_), Some(_)) | (_, None) | (None, _) => false,
    }
}

impl Iptables {
    /// Looks, and repairs what is ours; what others have there is theirs. Returns how much was wrong.
    pub(super) fn keep(&mut self) -> Result<u64, SyncError> {
        let mut repaired = 0_u64;
        let mut families = std::mem::take(&mut self.families);
        let outcome = families.iter_mut().try_for_each(|state| {
            // The next sync reads everything back.
            let Some(image) = state.image.take() else { return Ok(()) };
            let now = watch::look(self.programs.variant, state.family).ok();
            let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
            if (now.is_none() || now != state.seen) && !rests {
                let started = Instant::now();
                let found = self.repair(&image)?;
                repaired = repaired.saturating_add(u64::try_from(found.count()).unwrap_or(u64::MAX));
                // Others may have gone on meanwhile: a look before the comparison is never too new.
                state.seen = if found.count() == 0 { now } else { None };
                let rest = started.elapsed().saturating_mul(REST);
                state.rests_until = if found.count() == 0 { Instant::now().checked_add(rest) } else { None };
            }
            state.image = Some(image);
            Ok(())
        });
        self.families = families;
        if let Err(error) = &outcome {
            self.tell(Some(format!("rules of iptables are gone and cannot be put back: {}", with_causes(error))));
        } else {
            self.tell(None);
        }
        outcome.map(|()| repaired)
    }

    fn repair(&mut self, image: &Image) -> Result<Found, SyncError> {
        let (changes, found) = read_back(&self.programs, image)?;
        if found.count() > 0 {
            let restored = self.programs.restore(image.family(), &changes.script(self.programs.pieces()));
            self.tally.count(&restored);
            self.tell_numbers();
            restored.map_err(|error| failed(std::io::Error::other(error)))?;
            let Found { wrong, jumps, surplus, example } = &found;
            let example = example.as_deref().unwrap_or("a chain that nothing needs");
            warn!(
                chains = wrong, jumps, surplus, family = %image.family(),
                "another program changed our rules of iptables ({example}); they are as before"
            );
            self.reports.send_modify(|report| {
                report.installed.restored = report.installed.restored.saturating_add(1);
            });
        }
        Ok(found)
    }

    fn tell(&self, fault: Option<String>) {
        self.reports.send_if_modified(|report| {
            let modified = report.installed.fault != fault;
            report.installed.fault = fault;
            modified
        });
    }
}
