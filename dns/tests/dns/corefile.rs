//! A server that is configured by a Corefile, asked over the wire.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use shunt_dns::http::{self, HttpConfig, HttpState};
use shunt_dns::{Corefile, RecordType, Server, serve};
use shunt_model::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::client;
use crate::fixture::{cluster, ip, key, name, pod};

pub(crate) const COREFILE: &str = r#"
.:53 {
    errors
    log example.test {
        class denial
    }
    hosts HOSTS {
        192.0.2.50 printer.office.test Printer
        fd00::50 printer.office.test
        ttl 60
        fallthrough
    }
    rewrite name exact shop.example.test web.shop.svc.cluster.local
    rewrite name suffix .in.example.test .svc.cluster.local
    rewrite name regex ^(.*)-of-(.*)\.example\.test\.$ {1}.{2}.svc.cluster.local
    rewrite stop {
        name regex (.*)\.plain\.test\.$ {1}.shop.svc.cluster.local
        answer auto
    }
    rewrite stop {
        name regex (.*)\.told\.test\.$ {1}.shop.svc.cluster.local
        answer name (.*)\.shop\.svc\.cluster\.local\.$ {1}.told.test
        answer value (.*)\.shop\.svc\.cluster\.local\.$ {1}.told.test
    }
    template IN A dyn.test {
        match "^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)\.dyn\.test\.$"
        answer "{{ .Name }} 60 IN A 10.20.{{ .Group.a }}.{{ .Group.b }}"
        fallthrough
    }
    template ANY ANY test dyn.test {
        match \.dyn\.test\.$
        rcode NXDOMAIN
        authority "{{ .Zone }} 60 {{ .Class }} SOA ns.{{ .Zone }} hostmaster.{{ .Zone }} (1 60 60 60 60)"
        fallthrough
    }
    template IN ANY alias.test {
        match "^to-(?P<target>.*)\.alias\.test\.$"
        answer "{{ .Name }} 60 IN CNAME {{ .Group.target }}"
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
        ttl 30
        fallthrough in-addr.arpa
    }
    autopath cluster.local @kubernetes
    transfer {
        to 127.0.0.1
    }
    bufsize 512
}
closed.test:53 {
    hosts /dev/null fixed.closed.test {
        192.0.2.60 fixed.closed.test
    }
    template IN TXT closed.test {
        match "^closed\.test\.$"
        fallthrough
        answer "closed.test 5 IN TXT shut"
    }
}
"#;

pub(crate) async fn start(text: &str, place: &Path, snapshot: Option<Snapshot>) -> (Arc<Server>, Corefile) {
    std::fs::write(place.join("hosts"), "192.0.2.51 scanner.office.test # in the hall\nnonsense line\n").unwrap();
    let text = text.replace("HOSTS", &place.join("hosts").display().to_string());
    std::fs::write(place.join("Corefile"), text).unwrap();
    let file = Corefile::read(&place.join("Corefile")).unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let (_, snapshots) = watch::channel(snapshot.map(Arc::new));
    let config = file.server_config(listen, file.zone(vec![ip("10.96.0.10")]));
    (Arc::new(serve(config, snapshots).await.unwrap()), file)
}

/// The rcode, and the answers as text.
pub(crate) async fn ask(server: SocketAddr, text: &str, rtype: RecordType) -> String {
    let reply = client::udp(server, &client::question(&name(text), rtype)).await;
    assert!(reply.queries[0].name.eq_case(&name(text)), "{text}: the question comes back as it was asked");
    let mut answers: Vec<String> =
        reply.answers.iter().map(|record| format!("{} {} {}", record.name, record.ttl, record.data)).collect();
    answers.sort();
    if answers.is_empty() { reply.metadata.response_code.to_str().to_owned() } else { answers.join("; ") }
}

const ROWS: &[(&str, RecordType, &str)] = &[
    // hosts, before all else
    ("printer.office.test.", RecordType::A, "printer.office.test. 60 192.0.2.50"),
    ("PRINTER.", RecordType::A, "PRINTER. 60 192.0.2.50"),
    ("printer.office.test.", RecordType::AAAA, "printer.office.test. 60 fd00::50"),
    ("scanner.office.test.", RecordType::AAAA, "No Error"),
    ("scanner.office.test.", RecordType::A, "scanner.office.test. 60 192.0.2.51"),
    ("51.2.0.192.in-addr.arpa.", RecordType::PTR, "51.2.0.192.in-addr.arpa. 60 scanner.office.test."),
    ("printer.office.test.", RecordType::MX, "No Error"),
    ("scanner.office.test.", RecordType::HTTPS, "No Error"),
    ("plotter.office.test.", RecordType::A, "Query Refused"),
    ("plotter.office.test.", RecordType::MX, "Query Refused"),
    ("fixed.closed.test.", RecordType::TXT, "No Error"),
    ("unknown.fixed.closed.test.", RecordType::A, "Non-Existent Domain"),
    ("unknown.fixed.closed.test.", RecordType::TXT, "Non-Existent Domain"),
    // rewrite: the client's own name comes back
    ("Shop.example.test.", RecordType::A, "Shop.example.test. 30 10.96.0.1"),
    ("web.shop.in.example.test.", RecordType::A, "web.shop.in.example.test. 30 10.96.0.1"),
    ("web-of-shop.example.test.", RecordType::A, "web-of-shop.example.test. 30 10.96.0.1"),
    ("none.shop.in.example.test.", RecordType::A, "Non-Existent Domain"),
    // and with it other names of the answer if a rule says so
    ("web.plain.test.", RecordType::A, "web.plain.test. 30 10.96.0.1"),
    (
        "inner.plain.test.",
        RecordType::A,
        "WEB.shop.svc.cluster.local. 30 10.96.0.1; inner.plain.test. 30 WEB.shop.svc.cluster.local.",
    ),
    ("inner.told.test.", RecordType::A, "WEB.told.test. 30 10.96.0.1; inner.told.test. 30 WEB.told.test."),
    (
        "_sql._tcp.db.told.test.",
        RecordType::SRV,
        "_sql._tcp.db.told.test. 30 0 20 15432 10-1-1-2.db.told.test.; \
         _sql._tcp.db.told.test. 30 0 20 15432 db-0.db.told.test.; \
         _sql._tcp.db.told.test. 30 0 20 15432 fd88-77-0-0-9--0.db.told.test.",
    ),
    // template
    ("ip-3-4.dyn.test.", RecordType::A, "ip-3-4.dyn.test. 60 10.20.3.4"),
    ("ip-3-4.dyn.test.", RecordType::AAAA, "Non-Existent Domain"),
    ("ip-3-999.dyn.test.", RecordType::A, "Server Failure"),
    ("other.dyn.test.", RecordType::A, "Non-Existent Domain"),
    // an alias of a template is followed, in the cluster, in hosts, by templates, and elsewhere
    (
        "to-web.shop.svc.cluster.local.alias.test.",
        RecordType::A,
        "to-web.shop.svc.cluster.local.alias.test. 60 web.shop.svc.cluster.local.; \
         web.shop.svc.cluster.local. 30 10.96.0.1",
    ),
    (
        "to-to-printer.office.test.alias.test.alias.test.",
        RecordType::AAAA,
        "printer.office.test. 60 fd00::50; \
         to-printer.office.test.alias.test. 60 printer.office.test.; \
         to-to-printer.office.test.alias.test.alias.test. 60 to-printer.office.test.alias.test.",
    ),
    (
        "to-printer.office.test.alias.test.",
        RecordType::MX,
        "to-printer.office.test.alias.test. 60 printer.office.test.",
    ),
    (
        "to-no.svc.cluster.local.alias.test.",
        RecordType::A,
        "to-no.svc.cluster.local.alias.test. 60 no.svc.cluster.local.",
    ),
    ("to-a.example.alias.test.", RecordType::A, "to-a.example.alias.test. 60 a.example."),
    ("to-printer.alias.test.", RecordType::CNAME, "to-printer.alias.test. 60 printer."),
    // the cluster: zones and fallthrough as listed
    ("1.0.96.10.in-addr.arpa.", RecordType::PTR, "1.0.96.10.in-addr.arpa. 30 web.shop.svc.cluster.local."),
    ("9.9.96.10.in-addr.arpa.", RecordType::PTR, "Non-Existent Domain"),
    // the longest domain's block
    ("closed.test.", RecordType::TXT, "closed.test. 5 shut"),
    ("web.closed.test.", RecordType::A, "Query Refused"),
    ("xclosed.test.", RecordType::A, "Query Refused"),
];

#[tokio::test]
async fn every_directive_does_its_part() {
    let place = tempfile::tempdir().unwrap();
    let (server, _) = start(COREFILE, place.path(), Some(cluster())).await;
    for (text, rtype, wanted) in ROWS {
        assert_eq!(ask(server.local_addresses()[0], text, *rtype).await, *wanted, "{text} {rtype}");
    }
    // addresses beside the answer go by the names that the answer gives them
    let srv = client::question(&name("_sql._tcp.db.told.test."), RecordType::SRV);
    let beside = client::tcp(server.local_addresses()[0], &[srv]).await.remove(0).additionals;
    assert!(!beside.is_empty() && beside.iter().all(|record| record.name.to_ascii().ends_with(".db.told.test.")));
    // the longest zone of a template that the name lies in
    let denial = client::udp(server.local_addresses()[0], &client::question(&name("x.dyn.test."), RecordType::A)).await;
    let soa = denial.authorities[0].to_string();
    assert!(soa.starts_with("dyn.test. 60 IN SOA ns.dyn.test. hostmaster.dyn.test. 1 60"), "{soa}");
    // bufsize
    let asked = client::with_edns(client::question(&name("many.shop.svc.cluster.local."), RecordType::A), 4096);
    let wire = client::udp_bytes(server.local_addresses()[0], &asked.to_vec().unwrap()).await;
    assert!(wire.len() <= 512 && Message::from_vec(&wire).unwrap().metadata.truncation);
}

/// The other half of an alias comes from an upstream, or as a failure if that is silent.
#[tokio::test]
async fn an_alias_of_a_template_is_followed_elsewhere() {
    let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = ".:53 {\n template IN A www.example {\n answer \"{{ .Name }} 20 IN A 192.0.2.7\"\n }\n}\n";
    let (upstream, _) = start(text, elsewhere.path(), None).await;
    let text = |upstream: SocketAddr| {
        format!(
            ".:53 {{\n template IN A alias.test {{\n answer \"{{{{ .Name }}}} 60 IN CNAME www.example.\"\n }}\n \
             template IN A loop.test {{\n answer \"{{{{ .Name }}}} 60 IN CNAME x.{{{{ .Name }}}}\"\n }}\n \
             forward . {upstream}\n}}\n"
        )
    };
    let (server, _) = start(&text(upstream.local_addresses()[0]), place.path(), None).await;
    let at = server.local_addresses()[0];
    let wanted = "alias.test. 60 www.example.; www.example. 20 192.0.2.7";
    assert_eq!(ask(at, "alias.test.", RecordType::A).await, wanted);
    // An endless one ends.
    let reply = client::tcp(at, &[client::question(&name("loop.test."), RecordType::A)]).await.remove(0);
    assert_eq!(reply.answers.len(), 11);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (server, _) = start(&text(silent.local_addr().unwrap()), place.path(), None).await;
    assert_eq!(ask(server.local_addresses()[0], "alias.test.", RecordType::A).await, "Server Failure");
}

#[tokio::test]
async fn the_search_path_of_a_pod_is_completed() {
    let mut snapshot = cluster();
    pod(&mut snapshot, &key("client"), "127.0.0.1");
    let place = tempfile::tempdir().unwrap();
    let moved = "template IN A moved.test {\n answer \"moved.test. 60 IN NS new.test.\"\n \
                 answer \"{{ .Name }} 60 IN A 10.20.0.1\"\n }\n template IN ANY alias.test {";
    let text = COREFILE.replace("template IN ANY alias.test {", moved);
    let (server, _) = start(&text, place.path(), Some(snapshot)).await;
    let at = server.local_addresses()[0];
    // The alias leads to the name that was found, whatever the first record of the answer is.
    assert_eq!(
        ask(at, "a.moved.test.shop.svc.cluster.local.", RecordType::A).await,
        "a.moved.test. 60 10.20.0.1; a.moved.test.shop.svc.cluster.local. 60 a.moved.test.; moved.test. 60 new.test."
    );
    // DNS-17.8, DNS-17.9: found under a later element of the path, so an alias leads there
    assert_eq!(
        ask(at, "svc.svc.shop.svc.cluster.local.", RecordType::A).await,
        "svc.svc.shop.svc.cluster.local. 30 svc.svc.svc.cluster.local.; svc.svc.svc.cluster.local. 30 10.96.0.4"
    );
    assert_eq!(
        ask(at, "printer.office.test.shop.svc.cluster.local.", RecordType::A).await,
        "printer.office.test. 60 192.0.2.50; printer.office.test.shop.svc.cluster.local. 60 printer.office.test."
    );
    assert_eq!(ask(at, "web.shop.svc.cluster.local.", RecordType::A).await, "web.shop.svc.cluster.local. 30 10.96.0.1");
    // DNS-17.10, DNS-17.11: nothing anywhere, and names that begin no search
    assert_eq!(ask(at, "none.shop.svc.cluster.local.", RecordType::A).await, "Non-Existent Domain");
    assert_eq!(ask(at, "printer.office.test.svc.cluster.local.", RecordType::A).await, "Non-Existent Domain");
}

/// All messages of a reply over TCP, until the SOA comes again.
async fn transfer(server: SocketAddr, rtype: RecordType) -> (ResponseCode, Vec<String>) {
    transfer_of(server, client::question(&name("cluster.local."), rtype)).await
}

async fn transfer_of(server: SocketAddr, question: Message) -> (ResponseCode, Vec<String>) {
    let wire = question.to_vec().unwrap();
    // A client that has the zone already gets its SOA only.
    let whole = question.authorities.is_empty();
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_u16(u16::try_from(wire.len()).unwrap()).await.unwrap();
    stream.write_all(&wire).await.unwrap();
    let mut records: Vec<String> = Vec::new();
    loop {
        let length = stream.read_u16().await.unwrap();
        let mut wire = vec![0; usize::from(length)];
        stream.read_exact(&mut wire).await.unwrap();
        let reply = Message::from_vec(&wire).unwrap();
        let rcode = reply.metadata.response_code;
        records.extend(reply.answers.iter().map(ToString::to_string));
        if rcode != ResponseCode::NoError || !whole || (records.len() > 1 && records.first() == records.last()) {
            return (rcode, records);
        }
    }
}

#[tokio::test]
async fn the_whole_zone_goes_to_those_who_may_have_it() {
    let place = tempfile::tempdir().unwrap();
    let (server, _) = start(COREFILE, place.path(), Some(cluster())).await;
    let at = server.local_addresses()[0];
    let (_, records) = transfer(at, RecordType::AXFR).await;
    assert!(records[0].contains("SOA ns.dns.cluster.local."), "{}", records[0]);
    for wanted in [
        "cluster.local. 30 IN NS ns.dns.cluster.local.",
        "web.shop.svc.cluster.local. 30 IN A 10.96.0.1",
        "_http._tcp.web.shop.svc.cluster.local. 30 IN SRV 0 100 80 web.shop.svc.cluster.local.",
        "db-0.db.shop.svc.cluster.local. 30 IN AAAA fd01::1",
        "outer.shop.svc.cluster.local. 30 IN CNAME www.example.test.",
    ] {
        assert_eq!(records.iter().filter(|record| *record == wanted).count(), 1, "{wanted}");
    }
    // DNS-4.5: no pods, no names of addresses, no unready endpoints, nothing hidden
    for part in ["dns-version", "in-addr", ".pod.", "10.1.0.3", "hidden"] {
        assert!(!records.iter().any(|record| record.contains(part)), "{part}");
    }
    // Everything in it is answered alike.
    for record in &records[1..records.len() - 1] {
        let words: Vec<&str> = record.split(' ').collect();
        let asked = client::question(&name(words[0]), words[3].parse().unwrap());
        let reply = client::tcp(at, &[asked]).await.remove(0);
        assert!(reply.answers.iter().any(|answer| answer.to_string() == *record), "{record} is answered {reply}");
    }
    let (again, whole) = transfer(at, RecordType::IXFR).await;
    assert_eq!((again, whole.len()), (ResponseCode::NoError, records.len()));
    // DNS-4.5: who has this serial gets the SOA alone.
    let soa =
        client::tcp(at, &[client::question(&name("cluster.local."), RecordType::SOA)]).await[0].answers[0].clone();
    let mut same = client::question(&name("cluster.local."), RecordType::IXFR);
    same.add_authority(soa.clone());
    assert_eq!(transfer_of(at, same).await, (ResponseCode::NoError, vec![soa.to_string()]));
    let mut newer = client::with_edns(client::question(&name("cluster.local."), RecordType::AXFR), 4096);
    newer.edns.as_mut().unwrap().set_version(1);
    let rcode = client::tcp(at, &[newer]).await[0].metadata.response_code;
    assert_eq!(u16::from(rcode), u16::from(ResponseCode::BADVERS)); // DNS-9.10
    // Never over UDP, and not to others.
    assert_eq!(ask(at, "cluster.local.", RecordType::AXFR).await, "Query Refused");
    let (server, _) = start(&COREFILE.replace("to 127.0.0.1", "to 10.0.0.0/8"), place.path(), Some(cluster())).await;
    assert_eq!(transfer(server.local_addresses()[0], RecordType::AXFR).await.0, ResponseCode::Refused);
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let path = path.to_owned();
    let patience = std::time::Duration::from_secs(20);
    let answer = tokio::task::spawn_blocking(move || lab::http_get(address, &path, patience)).await.unwrap().unwrap();
    (answer.status, answer.body)
}

#[tokio::test]
async fn health_readiness_and_metrics_as_dashboards_know_them() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("hosts"), "").unwrap();
    let (snapshots, watched) = watch::channel(None);
    let text = COREFILE.replace("HOSTS", &place.path().join("hosts").display().to_string());
    std::fs::write(place.path().join("Corefile"), text).unwrap();
    let file = Corefile::read(&place.path().join("Corefile")).unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let config = file.server_config(listen, file.zone(vec![]));
    let server = serve(config, watched).await.unwrap();
    let (stop, stopping) = watch::channel(false);
    let any = Some("127.0.0.1:0".parse().unwrap());
    let config = HttpConfig { health: any, ready: any, metrics: any };
    let state = HttpState { views: Some(server.views()), stopping, exporter: server.exporter() };
    let (addresses, _tasks) = http::serve(config, state).await.unwrap();
    let at = addresses[0];
    assert_eq!(get(at, "/health").await, (200, "OK".to_owned())); // DNS-11.7
    assert_eq!(get(at, "/ready").await, (503, "kubernetes".to_owned())); // DNS-11.8
    let dns = server.local_addresses()[0];
    assert_eq!(ask(dns, "web.shop.svc.cluster.local.", RecordType::A).await, "Server Failure"); // DNS-11.3
    let mut views = server.views();
    snapshots.send_replace(Some(Arc::new(cluster())));
    views.changed().await.unwrap();
    assert_eq!(get(at, "/ready").await, (200, "OK".to_owned()));
    for (text, rtype, _) in ROWS {
        ask(dns, text, *rtype).await;
    }
    client::tcp(dns, &[client::question(&name("closed.test."), RecordType::TXT)]).await;
    let (_, text) = get(at, "/metrics").await;
    let labels = format!("server=\"dns://{dns}\",zone=\".\",view=\"\"");
    for line in [
        format!("coredns_dns_requests_total{{{labels},proto=\"udp\",family=\"1\",type=\"PTR\"}} 3"),
        format!("coredns_dns_responses_total{{{labels},rcode=\"SERVFAIL\",plugin=\"kubernetes\"}} 1"),
        format!("coredns_dns_responses_total{{{labels},rcode=\"NXDOMAIN\",plugin=\"template\"}} 2"),
        format!("coredns_hosts_entries{{hostsfile=\"{}\"}} 3", place.path().join("hosts").display()),
        "coredns_hosts_entries{hostsfile=\"/dev/null\"} 1".to_owned(),
        format!(
            "coredns_dns_request_size_bytes_count{{{},proto=\"tcp\"}} 1",
            labels.replace("\".\"", "\"closed.test.\"")
        ),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    let matches = text.lines().filter(|line| line.starts_with("coredns_template_matches_total{"));
    let matches: Vec<u32> = matches.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!((matches.len() > 1, matches.iter().sum()), (true, 13), "by zone and type:\n{text}");
    stop.send_replace(true);
    assert_eq!(get(at, "/ready").await.0, 503); // DNS-11.9
    assert_eq!(get(at, "/health").await.0, 200);
}

#[tokio::test]
async fn a_reverse_zone_may_be_a_part_of_its_tree() {
    let place = tempfile::tempdir().unwrap();
    let text = ".:53 {\n kubernetes cluster.local 10.96.0.0/16 {\n ttl 30\n }\n}\n";
    let (server, _) = start(text, place.path(), Some(cluster())).await;
    let rows = [
        ("1.0.96.10.in-addr.arpa.", RecordType::PTR, "NoError", "web.shop.svc.cluster.local.", ""),
        ("9.9.96.10.in-addr.arpa.", RecordType::PTR, "NXDomain", "", "96.10.in-addr.arpa."), // DNS-5.5
        ("1.0.96.10.in-addr.arpa.", RecordType::TXT, "NoError", "", "96.10.in-addr.arpa."),
        ("96.10.in-addr.arpa.", RecordType::A, "NoError", "", "96.10.in-addr.arpa."),
        ("1.1.1.10.in-addr.arpa.", RecordType::PTR, "Refused", "", ""), // of no block here
    ];
    for (text, rtype, rcode, target, soa) in rows {
        let reply = client::udp(server.local_addresses()[0], &client::question(&name(text), rtype)).await;
        let one = |records: &[hickory_proto::rr::Record], of: fn(&hickory_proto::rr::Record) -> String| {
            records.first().map(of).unwrap_or_default()
        };
        let told = (
            format!("{:?}", reply.metadata.response_code),
            one(&reply.answers, |record| record.data.to_string()),
            one(&reply.authorities, |record| record.name.to_string()),
        );
        assert_eq!(told, (rcode.to_owned(), target.to_owned(), soa.to_owned()), "{text} {rtype}");
    }
    let apex = client::question(&name("96.10.in-addr.arpa."), RecordType::SOA);
    let reply = client::udp(server.local_addresses()[0], &apex).await;
    assert_eq!(reply.answers[0].name, name("96.10.in-addr.arpa."));
}
