//! The rules that decisions and their explanations cite, by their IDs in docs/rules.md.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! rule_ids {
    ($($(#[doc = $doc:literal])+ $name:ident = $id:literal;)+) => {
        /// A rule of docs/rules.md. It is shown and serialized as its ID, such as `TP-22`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum RuleId {
            $($(#[doc = $doc])+ $name,)+
        }

        impl RuleId {
            /// The ID as it stands in docs/rules.md.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)+
                }
            }
        }
    };
}

rule_ids! {
    /// At a cluster IP, sockets that only ask for a route are left alone.
    Dp11 = "DP-11";
    /// Pods that opted out are left alone.
    Dp16 = "DP-16";
    /// The node's own DNS first, the cluster's while it is closed.
    Dp22 = "DP-22";
    /// Policy Cluster: the cluster list.
    Dt2 = "DT-2";
    /// Policy Local: the local list.
    Dt3 = "DT-3";
    /// The cluster list of a cluster IP.
    Ep20 = "EP-20";
    /// The local list of a cluster IP.
    Ep21 = "EP-21";
    /// Pod, node or outside.
    Ld1 = "LD-1";
    /// No endpoint anywhere.
    Ne1 = "NE-1";
    /// No endpoint on this node under internal policy Local.
    Ne2 = "NE-2";
    /// No endpoint on this node under external policy Local.
    Ne3 = "NE-3";
    /// A port of a cluster IP that its Service does not define.
    Ne11 = "NE-11";
    /// An address in a range of Services that no Service has.
    Ne12 = "NE-12";
    /// Other ports of other addresses.
    Ne14 = "NE-14";
    /// Pods in the node's own network are the node.
    Sa2 = "SA-2";
    /// Timeout of session affinity.
    Sa3 = "SA-3";
    /// Cluster IPs.
    Tp1 = "TP-1";
    /// External IPs and load balancer addresses.
    Tp2 = "TP-2";
    /// Node ports.
    Tp3 = "TP-3";
    /// Addresses at which no Service is served.
    Tp9 = "TP-9";
    /// External policy Cluster.
    Tp20 = "TP-20";
    /// External policy Local, from a pod.
    Tp21 = "TP-21";
    /// External policy Local, from the node.
    Tp22 = "TP-22";
    /// External policy Local, from anywhere else.
    Tp23 = "TP-23";
    /// Pods of other nodes are outside.
    Tp26 = "TP-26";
    /// What source ranges hold for.
    Tp30 = "TP-30";
    /// Source ranges hold for every source.
    Tp31 = "TP-31";
    /// What a source outside of the ranges gets.
    Tp32 = "TP-32";
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl Serialize for RuleId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_written_as_its_id() {
        assert_eq!(RuleId::Tp22.to_string(), "TP-22");
        assert_eq!(format!("{:>6}|", RuleId::Ne1), "  NE-1|");
        assert_eq!(serde_json::to_string(&RuleId::Ld1).unwrap(), "\"LD-1\"");
    }
}
