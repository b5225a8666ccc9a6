//! Which service each frontend leads to, counted by family because each family has a map of its own.

use std::collections::HashMap;

use shunt_model::Family;

use super::write::FrontendKey;

#[derive(Clone, Debug, Default)]
pub(super) struct Frontends {
    services: HashMap<FrontendKey, u32>,
    four: usize,
    six: usize,
}

impl Frontends {
    pub(super) fn get(&self, key: &FrontendKey) -> Option<u32> {
        self.services.get(key).copied()
    }

    pub(super) fn count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.four,
            Family::V6 => self.six,
        }
    }

    /// Sends `key` to `service`; returns where it led before.
    pub(super) fn insert(&mut self, key: FrontendKey, service: u32) -> Option<u32> {
        let former = self.services.insert(key, service);
        if former.is_none() {
            let count = self.counter(key.family());
            *count = count.saturating_add(1);
        }
        former
    }

    pub(super) fn remove(&mut self, key: &FrontendKey) {
        if self.services.remove(key).is_some() {
            let count = self.counter(key.family());
            *count = count.saturating_sub(1);
        }
    }

    fn counter(&mut self, family: Family) -> &mut usize {
        match family {
            Family::V4 => &mut self.four,
            Family::V6 => &mut self.six,
        }
    }
}
