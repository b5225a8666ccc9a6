//! Where each frontend leads, counted by family because each family has a map of its own.

use std::collections::HashMap;

use proxy_abi::Lead;
use shunt_model::Family;

use super::write::FrontendKey;

#[derive(Clone, Debug, Default)]
pub(super) struct Frontends {
    leads: HashMap<FrontendKey, Lead>,
    four: usize,
    six: usize,
}

impl Frontends {
    pub(super) fn get(&self, key: &FrontendKey) -> Option<Lead> {
        self.leads.get(key).copied()
    }

    pub(super) fn count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.four,
            Family::V6 => self.six,
        }
    }

    /// Makes `key` lead to `lead`; returns the lead it had before.
    pub(super) fn insert(&mut self, key: FrontendKey, lead: Lead) -> Option<Lead> {
        let former = self.leads.insert(key, lead);
        if former.is_none() {
            let count = self.counter(key.family());
            *count = count.saturating_add(1);
        }
        former
    }

    pub(super) fn remove(&mut self, key: &FrontendKey) {
        if self.leads.remove(key).is_some() {
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
