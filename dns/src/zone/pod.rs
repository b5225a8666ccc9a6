//! Names of pods by address (DNS-6.1…6.4).

use std::net::IpAddr;

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
        if self.config.pods == PodMode::Verified
            && !self.index.pods_with(address).any(|pod| *pod.namespace == *namespace)
        {
            return self.absent(name, Absence::Pod);
        }
        self.addresses(name, rtype, [address])
    }

    /// The namespace of the pod that has `address` to itself, in mode verified. Pods on the network of their node share
    /// its address with others (DNS-17.12).
    pub(crate) fn namespace_of_pod(&self, address: IpAddr) -> Option<&str> {
        let key = self.index.pods_with(address.to_canonical()).next()?;
        let pod = self.snapshot.pods.get(key)?;
        (!pod.host_network).then_some(&*pod.key.namespace)
    }
}
