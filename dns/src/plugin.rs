//! The parts of a server block by the names of CoreDNS's plugins, and which of them write replies.

use hickory_proto::op::ResponseCode;

/// An enum that knows all of its variants, in the order in which they stand.
macro_rules! ordered {
    ($(#[$of_all:meta])* pub(crate) enum $ordered:ident { $($(#[$of_one:meta])* $variant:ident,)+ }) => {
        $(#[$of_all])*
        pub(crate) enum $ordered {
            $($(#[$of_one])* $variant,)+
        }

        impl $ordered {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];
        }
    };
}

ordered! {
    /// A part of a server block, and the directive that asks for it, in CoreDNS's order (DNS-13.4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) enum Plugin {
        Reload,
        Bufsize,
        Bind,
        Debug,
        Ready,
        Health,
        Prometheus,
        Errors,
        Log,
        Loadbalance,
        Cache,
        Rewrite,
        Autopath,
        Template,
        Transfer,
        Hosts,
        Kubernetes,
        Loop,
        Forward,
    }
}

impl Plugin {
    /// As Corefiles and metrics have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Bufsize => "bufsize",
            Self::Bind => "bind",
            Self::Debug => "debug",
            Self::Ready => "ready",
            Self::Health => "health",
            Self::Prometheus => "prometheus",
            Self::Errors => "errors",
            Self::Log => "log",
            Self::Loadbalance => "loadbalance",
            Self::Cache => "cache",
            Self::Rewrite => "rewrite",
            Self::Autopath => "autopath",
            Self::Template => "template",
            Self::Transfer => "transfer",
            Self::Hosts => "hosts",
            Self::Kubernetes => "kubernetes",
            Self::Loop => "loop",
            Self::Forward => "forward",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|plugin| plugin.name() == name)
    }
}

ordered! {
    /// Who wrote a reply. A query is given to one after the other in this order, which is that of their plugins.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) enum Author {
        Cache,
        Template,
        Hosts,
        Kubernetes,
        Forward,
        /// The server itself: an error.
        #[default]
        Server,
    }
}

impl Author {
    /// The part of the block that it is.
    pub(crate) fn plugin(self) -> Option<Plugin> {
        match self {
            Self::Cache => Some(Plugin::Cache),
            Self::Template => Some(Plugin::Template),
            Self::Hosts => Some(Plugin::Hosts),
            Self::Kubernetes => Some(Plugin::Kubernetes),
            Self::Forward => Some(Plugin::Forward),
            Self::Server => None,
        }
    }

    /// Why it wrote a reply with this rcode; `None` if that is for the zone of the cluster to say.
    pub(crate) fn reason(self, rcode: ResponseCode) -> Option<&'static str> {
        match self {
            Self::Template if rcode == ResponseCode::ServFail => Some(
                "a template of the Corefile is for this name, but no pattern of it matches, and it has no fallthrough \
                 (or it says SERVFAIL)",
            ),
            Self::Template => Some("from a template of the Corefile"),
            Self::Hosts if rcode == ResponseCode::NXDomain => {
                Some("hosts of the Corefile are for this name, but do not have it")
            }
            Self::Hosts => Some("from hosts of the Corefile"),
            Self::Kubernetes | Self::Cache | Self::Forward | Self::Server => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_asked_in_the_order_of_their_plugins() {
        assert!(Author::ALL.iter().filter_map(|author| author.plugin()).is_sorted(), "{:?}", Author::ALL);
    }
}
