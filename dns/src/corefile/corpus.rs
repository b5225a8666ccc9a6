//! Corefiles as clusters have them, under `tests/corpus/corefiles`, and what is understood of each.

use super::*;
use crate::upstream::Upstreams;

/// A block in one line: its domain, who is asked, how long answers and denials are kept, and what else it does.
fn block(block: &BlockConfig) -> String {
    let mut text = block.domain.to_ascii();
    for route in &block.forward.routes {
        let servers = match &route.upstreams {
            Upstreams::File(path) | Upstreams::Usual(path) => path.display().to_string(),
            Upstreams::Servers(servers) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        text += &format!(" {servers} {:?}{}", route.policy, if route.force_tcp { " tcp" } else { "" });
    }
    if let Some(cache) = &block.forward.cache {
        text += &format!(" cache:{}/{}", cache.success.longest.as_secs(), cache.denial.longest.as_secs());
    }
    if let Some(errors) = &block.errors {
        text += &format!(" errors:{}", errors.consolidate.len());
    }
    for (has, what) in [
        (block.kubernetes.is_some(), "kubernetes"),
        (block.hosts.is_some(), "hosts"),
        (block.log.is_some(), "log"),
        (!block.rewrites.is_empty(), "rewrite"),
        (!block.templates.is_empty(), "template"),
    ] {
        if has {
            text += &format!(" {what}");
        }
    }
    text
}

/// The blocks, and what they share.
fn summary(file: &Corefile) -> Vec<String> {
    let mut lines: Vec<String> = file.blocks.iter().map(block).collect();
    let http = [("health", file.health), ("ready", file.ready), ("metrics", file.prometheus)];
    // Everywhere is another address where there is no IPv6.
    let place = |at: SocketAddr| if at.ip().is_unspecified() { format!(":{}", at.port()) } else { at.to_string() };
    let http: String = http.iter().filter_map(|(what, at)| Some(format!(" {what}={}", place((*at)?)))).collect();
    let bind: Vec<String> = file.bind.iter().map(ToString::to_string).collect();
    let (bind, reload) = (bind.join(","), file.reload.map_or(0, |every| every.as_secs()));
    lines.push(format!("port {} at [{bind}] every {reload}s{http} lameduck={}", file.port, file.lameduck.as_secs()));
    lines
}

#[track_caller]
fn check(path: &str, wanted: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/corefiles").join(path);
    let file = Corefile::read(&path).map_err(|error| error.to_string()).unwrap();
    assert_eq!(summary(&file), wanted);
}

#[test]
fn corefiles_of_clusters_are_understood() {
    let stock = ". /etc/resolv.conf Random cache:30/30 errors:0 kubernetes";
    let ports = "health=:8080 ready=:8181 metrics=:9153";
    let usual = format!("port 53 at [] every 30s {ports} lameduck=5");
    check("kubeadm.Corefile", &[stock, &usual]);
    check("eks.Corefile", &[stock, &usual]);
    check("rke2.Corefile", &[stock, &usual]);
    check("k3s.Corefile", &[&format!("{stock} hosts"), &format!("port 53 at [] every 30s {ports} lameduck=0")]);
    check(
        "aks/Corefile",
        &[
            &format!("{stock} hosts log rewrite template"),
            "corp.example. 10.1.2.3:53 Random cache:15/15 errors:0",
            &usual,
        ],
    );
    check(
        "kubespray.Corefile",
        &[
            "corp.example. 10.1.2.3:53 Random cache:5/5 errors:0 log rewrite",
            "corp.test. 10.1.2.3:53 Random cache:5/5 errors:0 log rewrite",
            ". /etc/resolv.conf Random cache:30/30 errors:2 kubernetes",
            &usual,
        ],
    );
    check(
        "nodelocal.Corefile",
        &[
            "cluster.local. 10.96.100.1:53 Random tcp cache:30/5 errors:0",
            "in-addr.arpa. 10.96.100.1:53 Random tcp cache:30/30 errors:0",
            "ip6.arpa. 10.96.100.1:53 Random tcp cache:30/30 errors:0",
            ". /etc/resolv.conf Random cache:30/30 errors:0",
            "port 53 at [169.254.20.10,10.96.0.10] every 30s health=169.254.20.10:8080 metrics=:9253 lameduck=0",
        ],
    );
    check(
        "gke.Corefile",
        &[
            "cluster.local. 10.96.100.1:53 Random tcp cache:30/5 errors:0",
            "corp.example. 10.1.2.3:53,10.1.2.4:5353 Random cache:30/30 errors:0",
            ". /etc/resolv.conf Random cache:30/30 errors:0",
            "port 53 at [169.254.20.10] every 30s health=169.254.20.10:8080 metrics=:9253 lameduck=0",
        ],
    );
    // Without the block hostname.bind { chaos } that OpenShift ends with: that is refused.
    let corp = "10.1.2.3:53,tls://10.1.2.4:853%dns.corp.example RoundRobin cache:900/30 errors:0 log";
    check(
        "openshift.Corefile",
        &[
            &format!("corp.example. {corp}"),
            &format!("lab.example. {corp}"),
            ". /etc/resolv.conf Sequential cache:900/30 errors:0 kubernetes log",
            "port 5353 at [] every 30s health=:8080 ready=:8181 metrics=127.0.0.1:9153 lameduck=20",
        ],
    );
}
