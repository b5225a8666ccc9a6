//! kube-proxy's flags: accepted by name and type, and put where its configuration file has them (CF-14).

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Value, json};
use shunt_model::GoDuration;

/// How a flag's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Bool,
    Number,
    Duration,
    List,
    Gates,
}

/// A flag and its field in the document; none where there is no field.
type Flag = (&'static str, Kind, &'static str);

/// Those that our own settings have too are not here.
const FLAGS: [Flag; 45] = [
    ("bind-address", Kind::Text, "bindAddress"),
    ("bind-address-hard-fail", Kind::Bool, "bindAddressHardFail"),
    ("profiling", Kind::Bool, "enableProfiling"),
    ("feature-gates", Kind::Gates, "featureGates"),
    ("kube-api-content-type", Kind::Text, "clientConnection.contentType"),
    ("kube-api-qps", Kind::Number, "clientConnection.qps"),
    ("kube-api-burst", Kind::Number, "clientConnection.burst"),
    ("show-hidden-metrics-for-version", Kind::Text, "showHiddenMetricsForVersion"),
    ("iptables-masquerade-bit", Kind::Number, "iptables.masqueradeBit"),
    ("masquerade-all", Kind::Bool, "iptables.masqueradeAll"),
    ("iptables-localhost-nodeports", Kind::Bool, "iptables.localhostNodePorts"),
    ("iptables-sync-period", Kind::Duration, "iptables.syncPeriod"),
    ("iptables-min-sync-period", Kind::Duration, "iptables.minSyncPeriod"),
    ("ipvs-sync-period", Kind::Duration, "ipvs.syncPeriod"),
    ("ipvs-min-sync-period", Kind::Duration, "ipvs.minSyncPeriod"),
    ("ipvs-scheduler", Kind::Text, "ipvs.scheduler"),
    ("ipvs-exclude-cidrs", Kind::List, "ipvs.excludeCIDRs"),
    ("ipvs-strict-arp", Kind::Bool, "ipvs.strictARP"),
    ("ipvs-tcp-timeout", Kind::Duration, "ipvs.tcpTimeout"),
    ("ipvs-tcpfin-timeout", Kind::Duration, "ipvs.tcpFinTimeout"),
    ("ipvs-udp-timeout", Kind::Duration, "ipvs.udpTimeout"),
    ("detect-local-mode", Kind::Text, "detectLocalMode"),
    ("pod-bridge-interface", Kind::Text, "detectLocal.bridgeInterface"),
    ("pod-interface-name-prefix", Kind::Text, "detectLocal.interfaceNamePrefix"),
    ("cluster-cidr", Kind::Text, "clusterCIDR"),
    ("oom-score-adj", Kind::Number, "oomScoreAdj"),
    ("conntrack-max-per-core", Kind::Number, "conntrack.maxPerCore"),
    ("conntrack-min", Kind::Number, "conntrack.min"),
    ("conntrack-tcp-timeout-established", Kind::Duration, "conntrack.tcpEstablishedTimeout"),
    ("conntrack-tcp-timeout-close-wait", Kind::Duration, "conntrack.tcpCloseWaitTimeout"),
    ("conntrack-tcp-be-liberal", Kind::Bool, "conntrack.tcpBeLiberal"),
    ("conntrack-udp-timeout", Kind::Duration, "conntrack.udpTimeout"),
    ("conntrack-udp-timeout-stream", Kind::Duration, "conntrack.udpStreamTimeout"),
    ("config-sync-period", Kind::Duration, "configSyncPeriod"),
    ("healthz-port", Kind::Number, ""),
    ("metrics-port", Kind::Number, ""),
    ("v", Kind::Number, "logging.verbosity"),
    ("vmodule", Kind::Text, ""),
    ("logging-format", Kind::Text, "logging.format"),
    ("log-flush-frequency", Kind::Duration, ""),
    ("log-text-info-buffer-size", Kind::Text, ""),
    ("log-text-split-stream", Kind::Bool, ""),
    ("log-json-info-buffer-size", Kind::Text, ""),
    ("log-json-split-stream", Kind::Bool, ""),
    ("alsologtostderr", Kind::Bool, ""),
];

/// The flags that were given, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeProxyFlags {
    given: BTreeMap<&'static str, Value>,
}

impl KubeProxyFlags {
    /// Whether a port was given as 0, which turns its server off (HM-11, HM-25).
    #[must_use]
    pub fn turns_off(&self, flag: &str) -> bool {
        self.given.get(flag) == Some(&json!(0))
    }

    /// The flags for logging, which count beside a file too.
    #[must_use]
    pub fn logging(&self) -> Self {
        let is_logging = |flag: &str| flag == "v" || flag.starts_with("log");
        let given = self.given.iter().filter(|(flag, _)| is_logging(flag));
        Self { given: given.map(|(flag, value)| (*flag, value.clone())).collect() }
    }

    /// Names of all that were given, as they are typed.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.given.keys().map(|flag| if flag.len() == 1 { format!("-{flag}") } else { format!("--{flag}") }).collect()
    }

    /// Puts the flags into a document.
    pub fn apply(&self, document: &mut Value) {
        for (flag, value) in &self.given {
            let path = FLAGS.iter().find(|(name, ..)| name == flag).map_or("", |(.., path)| path);
            if !path.is_empty() {
                insert(document, path, value.clone());
            }
        }
    }
}

fn insert(document: &mut Value, path: &str, value: Value) {
    let (head, tail) = path.split_once('.').map_or((path, None), |(head, tail)| (head, Some(tail)));
    let Some(fields) = document.as_object_mut() else { return };
    match tail {
        None => drop(fields.insert(head.to_owned(), value)),
        Some(tail) => insert(fields.entry(head).or_insert_with(|| json!({})), tail, value),
    }
}

impl Kind {
    fn read(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text => Ok(json!(text)),
            Self::Bool => {
                text.parse::<bool>().map(Value::from).map_err(|_no| format!("{text:?} is neither true nor false"))
            }
            Self::Number => serde_json::from_str::<serde_json::Number>(text)
                .map(Value::Number)
                .map_err(|_no| format!("{text:?} is no number")),
            Self::Duration => text.parse::<GoDuration>().map(|duration| json!(duration)),
            Self::List => Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()),
            Self::Gates => {
                let gate = |part: &str| {
                    let (name, value) =
                        part.split_once('=').ok_or_else(|| format!("{part:?} is not GATE=true|false"))?;
                    Ok::<_, String>((name.to_owned(), Self::Bool.read(value)?))
                };
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                parts.map(gate).collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object)
            }
        }
    }
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, (name, kind, _)| {
            let kind = *kind;
            // Not in the help: docs/configuration.md lists them with what becomes of each.
            let flag =
                Arg::new(*name).hide(true).action(ArgAction::Set).value_parser(move |text: &str| kind.read(text));
            // Go's flags know no difference between -v and --v.
            let short = if name.len() == 1 { name.chars().next() } else { None };
            let flag = flag.long(*name).short(short).allow_negative_numbers(true);
            command.arg(if kind == Kind::Bool {
                flag.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                flag
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FLAGS.iter().filter_map(|(name, ..)| Some((*name, matches.get_one::<Value>(name)?.clone())));
        Ok(Self { given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
