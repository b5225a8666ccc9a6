//! DNS as pods use it: by their resolver libraries, through changes, and while the daemon comes and goes.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cluster::{Cluster, Shop};
use lab::manifests::{self, PodState, Port, SliceEndpoint};
use lab::{Pod, Process};

const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const HTTP: Port<'_> = Port { name: "http", protocol: "TCP", port: 80, target: 7000 };
const PATIENCE: Duration = Duration::from_secs(30);

/// A compiler for each library, and how it is called.
const LIBRARIES: [(&str, &[&str]); 2] = [("glibc", &["cc"]), ("musl", &["musl-gcc", "-static"])];

fn resolver(directory: &Path, library: &str, compiler: &[&str]) -> PathBuf {
    let program = directory.join(format!("resolve-{library}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("resolver/resolve.c");
    let (compiler, flags) = compiler.split_first().unwrap();
    let done = Command::new(compiler).args(flags).arg("-o").arg(&program).arg(source).status().unwrap();
    assert!(done.success(), "{compiler} does not compile resolve.c");
    program
}

/// Asks for names as a program in the pod would, with the kubelet's resolv.conf.
fn ask(pod: &Pod, program: &Path, resolv_conf: &Path, names: &[&str]) -> BTreeMap<String, String> {
    let (program, conf) = (program.display().to_string(), resolv_conf.display().to_string());
    let shell = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut command = vec!["unshare", "--mount", "sh", "-c", shell, &conf, &program];
    command.extend(names);
    let finished = pod.spawn(&command).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{program} ended with {}", finished.status);
    let line = |line: &String| {
        let (name, answer) = line.split_once(' ').unwrap();
        (name.to_owned(), answer.to_owned())
    };
    finished.lines.iter().map(line).collect()
}

#[test]
fn the_resolver_libraries_of_glibc_and_musl_find_what_they_are_asked_for() {
    let mut upstream = None;
    let cluster = Cluster::alone_with("resolvers", |options| {
        let at = SocketAddr::from((Ipv4Addr::new(172, 18, 0, 1), 53));
        options.dns_upstream = Some(at);
        upstream = Some(at);
    });
    let (Some(cluster), Some(upstream)) = (cluster, upstream) else { return };
    let _upstream = cluster
        .outside()
        .dns_upstream(upstream.ip(), &["www.example.org=192.0.2.7", "a.b.c.d.e.example=192.0.2.8"])
        .unwrap();
    let shop = Shop::open(&cluster, "web", &[PodState::Ready, PodState::Ready]);
    let headless = manifests::headless("test", "web-headless", "web", &[HTTP]);
    cluster.manifests.put("headless", &[headless, manifests::namespace("other")]).unwrap();
    cluster.wait_until_applied(&shop.client);
    let ips = |ips: &[IpAddr]| {
        let mut texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
        texts.sort();
        texts.join(" ")
    };
    let service = ips(&shop.addresses().map(|address| address.ip()));
    let [first, second] = [0, 1].map(|index| [IpAddr::V4(shop.pod(index).ipv4), IpAddr::V6(shop.pod(index).ipv6)]);
    let all = ips(&[first, second].concat());
    let pod = shop.pod(0).ipv4.to_string().replace('.', "-");
    let pod_name = format!("{pod}.test.pod.cluster.local");
    let rows = [
        ("web", service.as_str()),
        ("web.test", &service),
        ("web.test.svc", &service),
        ("web.test.svc.cluster.local", &service),
        ("web.test.svc.cluster.local.", &service),
        ("WEB.Test", &service),
        ("web-headless", &all),
        ("web-0.web-headless", &ips(&first)),
        ("web-1.web-headless.test.svc.cluster.local", &ips(&second)),
        (&pod_name, &shop.pod(0).ipv4.to_string()),
        ("www.example.org", "192.0.2.7"),
        ("a.b.c.d.e.example", "192.0.2.8"),
        ("web.other", "none"),
        ("nothing", "none"),
        ("nothing.example.org", "none"),
    ];
    let directory = cluster.manifests.directory().parent().unwrap();
    let conf = directory.join("resolv.conf");
    // As the kubelet writes it (rule 17.1).
    let search = "test.svc.cluster.local svc.cluster.local cluster.local";
    std::fs::write(&conf, format!("nameserver {CLUSTER_DNS}\nsearch {search}\noptions ndots:5\n")).unwrap();
    for (library, compiler) in LIBRARIES {
        let program = resolver(directory, library, compiler);
        let answers = ask(&shop.client, &program, &conf, &rows.map(|(name, _)| name));
        for (name, wanted) in rows {
            assert_eq!(answers.get(name).map(String::as_str), Some(wanted), "{name} by {library}");
        }
    }
}

#[test]
fn a_name_leads_to_a_new_endpoint_only_when_the_load_balancing_does_too() {
    let Some(cluster) = Cluster::alone("samesync") else { return };
    let mut shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    cluster.manifests.put("headless", &[manifests::headless("test", "web-headless", "web", &[HTTP])]).unwrap();
    cluster.wait_until_applied(&shop.client);
    let headless = "web-headless.test.svc.cluster.local";
    for number in 1..6 {
        shop.add(PodState::Ready);
        let new = shop.pod(number).ipv4.to_string();
        let named = || shop.client.resolve(headless, "A", CLUSTER_DNS).unwrap().data().contains(&new.as_str());
        cluster.wait_for("the name of the new pod", named);
        assert!(cluster.services().contains(&format!("{new}:7000")), "{new} is named but gets no connections yet");
    }
    for number in (1..6).rev() {
        shop.set(number, PodState::Unready);
        let old = shop.pod(number).ipv4.to_string();
        let unbalanced = || !cluster.services().contains(&format!("{old}:7000"));
        cluster.wait_for("the end of the pod's connections", unbalanced);
        let unnamed = || !shop.client.resolve(headless, "A", CLUSTER_DNS).unwrap().data().contains(&old.as_str());
        cluster.wait_for("the end of the pod's name", unnamed);
    }
}

/// The cluster's own DNS, as CoreDNS would be: a Service at the usual address with a pod that answers.
fn old_dns(cluster: &Arc<Cluster>) -> (Pod, Process) {
    let pod = cluster.node.pod("coredns").unwrap();
    let address = IpAddr::V4(pod.ipv4);
    let process = pod.dns_upstream(address, &["web.test.svc.cluster.local=192.0.2.99"]).unwrap();
    let ports = [Port::udp("dns", 53, 53), Port::tcp("dns-tcp", 53, 53)];
    let service = manifests::service("kube-system", "kube-dns", None, &[CLUSTER_DNS], &ports);
    let endpoint = SliceEndpoint { address, node: "n1".to_owned(), ready: true };
    let slice = manifests::slice("kube-system", "kube-dns", "kube-dns-1", &[endpoint], &ports);
    cluster.manifests.put("kube-dns", &[manifests::namespace("kube-system"), service, slice]).unwrap();
    (pod, process)
}

#[test]
fn the_cluster_s_own_dns_pods_answer_while_ours_does_not() {
    let Some(cluster) = Cluster::alone("fallback") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let _old = old_dns(&cluster);
    cluster.wait_until_applied(&shop.client);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    let asked = || {
        let answer = shop.client.resolve("web.test.svc.cluster.local", "A", CLUSTER_DNS);
        answer.map_or_else(|error| format!("{error:#}"), |answer| answer.data().join(" "))
    };
    assert_eq!(asked(), ours[0]);
    assert!(cluster.daemon().stop().unwrap().success());
    assert_eq!(asked(), "192.0.2.99", "the daemon that stops hands over");
    cluster.daemon().restart().unwrap();
    assert_eq!(asked(), ours[0], "and its successor takes over");
}

#[test]
fn a_killed_and_restarted_daemon_loses_no_query_beyond_one_retry() {
    let Some(cluster) = Cluster::alone("dnskill") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let asked = || {
        shop.client.resolve("web.test.svc.cluster.local", "A", CLUSTER_DNS).is_ok_and(|answer| answer.data().len() == 1)
    };
    let (mut queries, mut retried) = (0, 0);
    for _ in 0..3 {
        let deadline = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut counts = (0, 0);
                while Instant::now() < deadline {
                    counts.0 += 1;
                    if !asked() {
                        counts.1 += 1;
                        // A resolver's timeout, which is 5 s by default.
                        sleep(Duration::from_secs(5));
                        assert!(asked(), "the retry is answered");
                    }
                }
                counts
            });
            sleep(Duration::from_millis(300));
            cluster.daemon().kill9().unwrap();
            cluster.daemon().restart().unwrap();
            let counts = asking.join().unwrap();
            queries += counts.0;
            retried += counts.1;
        });
    }
    assert!(queries > 20 && retried <= 3, "{retried} of {queries} queries asked again");
}
