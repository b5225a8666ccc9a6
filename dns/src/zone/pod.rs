//! Names of pods by address (rules 6.1–6.4).

use hickory_proto::rr::{Name, RecordType};

use super::{PodMode, Zone};
use crate::answer::{Absence, Answer};
use crate::records;

impl Zone {
    /// `NS.pod`.
    pub(super) fn pod_namespace(&self, name: &Name, namespace: &str) -> Answer {
        match self.config.pods {
            PodMode::Disabled => self.absent(name, Absence::PodsDisabled),
            PodMode::Insecure | PodMode::Verified => self.namespace(name, namespace),
        }
    }

    /// `IP-WITH-DASHES.NS.pod`.
    pub(super) fn pod(&self, name: &Name, namespace: &str, label: &str, rtype: RecordType) -> Answer {
        if self.config.pods == PodMode::Disabled {
            return self.absent(name, Absence::PodsDisabled);
        }
        if !self.has_namespace(namespace) {
            return self.absent(name, Absence::Namespace);
        }
        let Some(address) = records::undashed(label) else {
            return self.absent(name, Absence::PodAddress);
        };
        if self.config.pods == PodMode::Verified && !self.index.has_pod(namespace, address) {
            return self.absent(name, Absence::Pod);
        }
        self.addresses(name, rtype, [address])
    }
}
