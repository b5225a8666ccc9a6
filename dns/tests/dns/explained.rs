//! What a server says about a question without asking anybody: a table of names, verdicts and reasons.

use std::sync::Arc;

use hickory_proto::rr::RecordType;
use shunt_dns::{Answerer, Corefile, Explanation, Record};

use crate::corefile::COREFILE;
use crate::fixture::{cluster, name};

/// No server listens there: if one of them were asked, the test would take seconds, and the reason would be another.
const UPSTREAMS: &str = "
corp.test:53 {
    forward . 127.0.0.1:9
}
www.example.test:53 {
    hosts /dev/null {
        192.0.2.71 www.example.test
    }
}
open.test:53 {
    hosts /dev/null {
        192.0.2.70 fixed.open.test
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
        ttl 30
        fallthrough in-addr.arpa
    }
    template IN TXT {
        match ^matched[.]
    }
    forward . 127.0.0.1:9 tls://127.0.0.2%dns.test
}
.:53 {";

const ROWS: [(&str, RecordType, &str, &str, &str); 17] = [
    ("web.shop.svc.cluster.local.", RecordType::A, "NOERROR", "10.96.0.1", "from the cluster's objects"),
    ("web.shop.svc.cluster.local.", RecordType::MX, "NOERROR", "", "the name exists, but has no record of this type"),
    ("wep.shop.svc.cluster.local.", RecordType::A, "NXDOMAIN", "", "the namespace has no such service"),
    ("down.shop.svc.cluster.local.", RecordType::A, "NXDOMAIN", "", "no ready endpoint"),
    (
        "shop.example.test.",
        RecordType::A,
        "NOERROR",
        "10.96.0.1",
        "asked as web.shop.svc.cluster.local. (rewrite): from the cluster's objects",
    ),
    ("printer.office.test.", RecordType::A, "NOERROR", "192.0.2.50", "from hosts of the Corefile"),
    (
        "absent.closed.test.",
        RecordType::A,
        "REFUSED",
        "",
        "not a name of the cluster, and there is no upstream for this name",
    ),
    ("other.fixed.closed.test.", RecordType::A, "NXDOMAIN", "", "hosts of the Corefile are for this name, but do not"),
    ("ip-7-8.dyn.test.", RecordType::A, "NOERROR", "10.20.7.8", "from a template of the Corefile"),
    ("x.dyn.test.", RecordType::A, "NXDOMAIN", "", "from a template of the Corefile"),
    (
        "outer.shop.svc.cluster.local.",
        RecordType::A,
        "NOERROR",
        "192.0.2.71",
        "an alias of www.example.test., which is not of the cluster",
    ),
    // Hosts decide, and no upstream is asked.
    ("outer.shop.svc.cluster.local.", RecordType::AAAA, "NOERROR", "www.example.test.", "not of the cluster"),
    ("www.corp.test.", RecordType::A, "", "", "not a name of the cluster: asked of 127.0.0.1:9"),
    (
        "www.open.test.",
        RecordType::A,
        "",
        "",
        "not a name of the cluster: asked of 127.0.0.1:9, tls://127.0.0.2:853%dns.test",
    ),
    (
        "unmatched.open.test.",
        RecordType::TXT,
        "SERVFAIL",
        "",
        "a template of the Corefile is for this name, but no pattern",
    ),
    ("fixed.open.test.", RecordType::A, "NOERROR", "192.0.2.70", "from hosts of the Corefile"),
    (
        "to-www.corp.test.alias.test.",
        RecordType::A,
        "",
        "www.corp.test.",
        "from a template of the Corefile: asked of 127",
    ),
];

#[tokio::test]
async fn every_answer_comes_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    let text = COREFILE.replace("HOSTS", "/dev/null").replacen(".:53 {", UPSTREAMS, 1);
    std::fs::write(&path, text).unwrap();
    let file = Corefile::read(&path).unwrap();
    let config = file.server_config(Vec::new(), file.zone(vec![]));
    let server = Answerer::new(config.zone, Some(Arc::new(cluster())), config.blocks).unwrap();
    for (asked, rtype, rcode, data, reason) in ROWS {
        let told: Explanation = server.explainer().explain(name(asked), rtype).await.unwrap();
        assert_eq!(told.rcode.as_deref().unwrap_or_default(), rcode, "{asked} {rtype}: {told:?}");
        assert_eq!(last(&told.answers), data, "{asked} {rtype}");
        assert!(told.reason.contains(reason), "{asked} {rtype}: {}", told.reason);
        assert_eq!(told.reason.contains("asked of"), told.rcode.is_none(), "{asked} {rtype}: {}", told.reason);
        assert!(told.answers.first().is_none_or(|record| record.name == name(asked)), "{asked}: as it was asked");
    }
}

fn last(answers: &[Record]) -> String {
    answers.last().map(|record| record.data.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn nothing_is_explained_before_the_cluster_is_known() {
    let config = crate::fixture::zone_config();
    let server = Answerer::new(config, None, vec![]).unwrap();
    assert_eq!(server.explainer().explain(name("web.shop.svc.cluster.local."), RecordType::A).await, None);
}

#[tokio::test]
async fn what_a_server_would_not_start_with_is_not_explained_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Corefile");
    std::fs::write(&path, ".:53 {\n forward . ./no-such-file\n}\n").unwrap();
    let file = Corefile::read(&path).unwrap();
    let config = file.server_config(Vec::new(), file.zone(vec![]));
    let refused = Answerer::new(config.zone, Some(Arc::new(cluster())), config.blocks).err().unwrap();
    assert!(refused.to_string().contains("./no-such-file"), "{refused}");
}
