//! What DNS says about a name and why, also about the names that pods make of a relative one.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use shunt_dns::{AskedByPods, Explainer, Explanation, Record, RecordType, absolute, name_text, record_text};

/// What DNS says about one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsReply {
    /// `NOERROR`, `NXDOMAIN`; absent if an upstream decides it.
    pub rcode: Option<String>,
    /// The answer section, each record as in a zone file.
    pub answers: Vec<String>,
    /// The authority section.
    pub authority: Vec<String>,
    /// The additional section.
    pub additionals: Vec<String>,
    /// Why this is the answer.
    pub explanation: String,
    /// What pods ask for a relative name before they ask it as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_pods: Vec<PodsReply>,
}

/// A name that pods ask, completed by their search list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsReply {
    /// The only namespace whose pods ask it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// It exists, so that pods do not ask the name as it was given.
    pub exists: bool,
    /// It was meant for the cluster: it exists, or at least its namespace does.
    pub meant: bool,
    /// The reply.
    pub reply: DnsReply,
}

impl DnsReply {
    /// What a server answers to a question given as text; `None` before it knows the cluster. Without a final dot the
    /// name is also completed as pods do.
    pub async fn of(explainer: &Explainer, name: &str, rtype: &str) -> Result<Option<Self>, String> {
        let parsed = absolute(name).map_err(|error| format!("{name:?} is not a domain name: {error}"))?;
        let rtype = record_type(rtype)?;
        let Some(explanation) = explainer.explain(parsed.clone(), rtype).await else { return Ok(None) };
        let asked_by_pods = match name.ends_with('.') {
            true => Vec::new(),
            false => explainer.by_pods(&parsed, rtype).await,
        };
        Ok(Some(Self { by_pods: asked_by_pods.into_iter().map(PodsReply::from).collect(), ..explanation.into() }))
    }

    /// The reply to a question about `name` for people. What pods get stands first if the name was meant for the
    /// cluster.
    #[must_use]
    pub fn table(&self, name: &str) -> String {
        let of_pods = self.by_pods.iter().map(|PodsReply { namespace, name, exists: _, meant: _, reply }| {
            let whose = namespace.as_ref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
            format!("a pod{whose} asks {name}\n{}", reply.lines())
        });
        let of_pods = of_pods.collect::<Vec<_>>().join("\n");
        let Some(last) = self.by_pods.last() else { return self.lines() };
        let itself = match (last.exists, last.meant, &last.namespace) {
            (true, _, Some(_)) => "which pods of other namespaces ask in the end",
            (true, _, None) => "which a pod asks only if nothing above exists",
            (false, true, _) => "which a pod asks then",
            (false, false, _) => return format!("{}\nbefore that {of_pods}", self.lines()),
        };
        format!("{of_pods}\n{name}. itself, {itself}\n{}", self.lines())
    }

    fn lines(&self) -> String {
        let Self { rcode, answers, authority, additionals, explanation, by_pods: _ } = self;
        let mut text = format!("{}: {explanation}\n", rcode.as_deref().unwrap_or("FORWARDED"));
        for (section, records) in [("answer", answers), ("authority", authority), ("additional", additionals)] {
            for record in records {
                // Writing to a String cannot fail.
                writeln!(text, "{section:<11} {record}").unwrap_or_default();
            }
        }
        text
    }
}

impl From<Explanation> for DnsReply {
    fn from(explained: Explanation) -> Self {
        Self {
            rcode: explained.rcode,
            answers: lines(&explained.answers),
            authority: lines(&explained.authorities),
            additionals: lines(&explained.additionals),
            explanation: explained.reason,
            by_pods: Vec::new(),
        }
    }
}

impl From<AskedByPods> for PodsReply {
    fn from(asked: AskedByPods) -> Self {
        let AskedByPods { namespace, name, exists, meant, explanation } = asked;
        Self { namespace, name: name_text(&name), exists, meant, reply: explanation.into() }
    }
}

fn lines(records: &[Record]) -> Vec<String> {
    records.iter().map(record_text).collect()
}

/// A type by its name, or as `TYPE65` (RFC 3597 section 5).
fn record_type(text: &str) -> Result<RecordType, String> {
    let upper = text.to_ascii_uppercase();
    if ["AXFR", "IXFR"].contains(&upper.as_str()) {
        return Err(format!(
            "{upper} is a transfer and no type: a server refuses it unless its Corefile allows the client"
        ));
    }
    shunt_dns::record_type(text)
        .ok_or_else(|| format!("{text:?} is not a record type; any may be written as TYPE123 by its number"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shunt_dns::{Answerer, BlockConfig, ForwardConfig, Name, ZoneConfig};
    use shunt_model::{Namespace, Snapshot};

    use super::*;
    use crate::plan::fixture::{cluster, service};

    #[track_caller]
    fn check(text: &str, wanted: Result<RecordType, &str>) {
        match (record_type(text), wanted) {
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{text}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn a_type_is_given_by_name_or_number() {
        check("aaaa", Ok(RecordType::AAAA));
        check("TYPE65", Ok(RecordType::HTTPS));
        check("type65280", Ok(RecordType::Unknown(65280)));
        check("afsdb", Ok(RecordType::Unknown(18)));
        check("AXFR", Err("transfer"));
        check("ixfr", Err("transfer"));
        check("TYPE70000", Err("TYPE70000"));
        check("adress", Err("adress"));
    }

    /// Service web in namespaces default and blog.
    fn example() -> Snapshot {
        let mut blog = service("web", "ip=10.96.0.2");
        blog.key.namespace = "blog".into();
        let mut snapshot = cluster([service("web", "ip=10.96.0.1"), blog], []);
        for name in ["default", "blog"].map(Arc::<str>::from) {
            snapshot.namespaces.insert(Arc::clone(&name), Arc::new(Namespace { name }));
        }
        snapshot
    }

    /// What people read; the serial of the SOA is left out.
    #[track_caller]
    fn reads(name: &str, wanted: &str) {
        let config = ZoneConfig::usual(Name::from_ascii("cluster.local.").unwrap());
        let block = BlockConfig::usual(config.cluster_domain.clone(), ForwardConfig::to("192.0.2.1".parse().unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let table = runtime.block_on(async {
            let server = Answerer::new(config, Some(Arc::new(example())), vec![block]).unwrap();
            DnsReply::of(&server.explainer(), name, "A").await.unwrap().unwrap().table(name)
        });
        let table: Vec<&str> = table.lines().filter(|line| !line.starts_with("authority")).collect();
        assert_eq!(table.join("\n"), wanted.trim(), "{name}");
    }

    #[test]
    fn a_relative_name_is_also_asked_as_pods_do() {
        reads(
            "web.blog",
            "a pod asks web.blog.svc.cluster.local.\n\
            NOERROR: from the cluster's objects\n\
            answer      web.blog.svc.cluster.local. 5 IN A 10.96.0.2\n\n\
            web.blog. itself, which a pod asks only if nothing above exists\n\
            FORWARDED: not a name of the cluster: asked of 192.0.2.1:53",
        );
        reads(
            "web",
            "a pod of namespace blog asks web.blog.svc.cluster.local.\n\
            NOERROR: from the cluster's objects\n\
            answer      web.blog.svc.cluster.local. 5 IN A 10.96.0.2\n\n\
            a pod of namespace default asks web.default.svc.cluster.local.\n\
            NOERROR: from the cluster's objects\n\
            answer      web.default.svc.cluster.local. 5 IN A 10.96.0.1\n\n\
            web. itself, which pods of other namespaces ask in the end\n\
            FORWARDED: not a name of the cluster: asked of 192.0.2.1:53",
        );
    }

    #[test]
    fn a_relative_name_that_no_pod_finds_says_why() {
        reads(
            "wep.blog",
            "a pod asks wep.blog.svc.cluster.local.\n\
            NXDOMAIN: the namespace has no such service (DNS-3.1)\n\n\
            wep.blog. itself, which a pod asks then\n\
            FORWARDED: not a name of the cluster: asked of 192.0.2.1:53",
        );
        reads(
            "office printer.blog",
            "a pod asks office\\ printer.blog.svc.cluster.local.\n\
            NXDOMAIN: the namespace has no such service (DNS-3.1)\n\n\
            office printer.blog. itself, which a pod asks then\n\
            FORWARDED: not a name of the cluster: asked of 192.0.2.1:53",
        );
        reads(
            "www.example.org",
            "FORWARDED: not a name of the cluster: asked of 192.0.2.1:53\n\n\
            before that a pod asks www.example.org.svc.cluster.local.\n\
            NXDOMAIN: there is no such namespace (DNS-3.1)",
        );
        // A final dot, or five dots, and the name is asked as it is.
        reads("web.blog.", "FORWARDED: not a name of the cluster: asked of 192.0.2.1:53");
        reads("a.b.c.d.e.example", "FORWARDED: not a name of the cluster: asked of 192.0.2.1:53");
        reads(
            "web.blog.svc.cluster.local",
            "NOERROR: from the cluster's objects\nanswer      web.blog.svc.cluster.local. 5 IN A 10.96.0.2",
        );
    }
}
