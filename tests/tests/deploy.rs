//! What is in `deploy/`, read by the programs that will read it: schemas, the daemon, the service manager, dashboards.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "a skipped test must be seen")]

mod cluster;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use cluster::Cluster;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lab::api::{FakeApi, Resource, Verb};
use lab::{Binaries, http_get};
use serde::de::DeserializeOwned;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(path: &Path) -> Vec<Value> {
    let all: Vec<Value> =
        serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    all.into_iter().filter(|document| !document.is_null()).collect()
}

/// Everything of the daemon that is given to a cluster: the kustomization's files, and the renderings if `cargo xtask
/// test` made them.
fn given() -> BTreeMap<String, Vec<Value>> {
    sets(
        "kustomize",
        &["rbac.yaml", "config.yaml", "daemonset.yaml"],
        &["chart.yaml", "chart-corefile.yaml", "kustomize.yaml"],
    )
}

/// The same of `shunt-dns`: one set of its files, and one as it is rendered.
fn given_of_dns() -> Vec<Vec<Value>> {
    let mut sets = sets("dns", &["rbac.yaml", "config.yaml", "deployment.yaml", "service.yaml"], &["dns.yaml"]);
    let rendered = sets.remove("dns.yaml");
    std::iter::once(sets.into_values().flatten().collect()).chain(rendered).collect()
}

fn sets(folder: &str, files: &[&str], renderings: &[&str]) -> BTreeMap<String, Vec<Value>> {
    let files = files.iter().map(|name| deploy().join(folder).join(name));
    let mut all: BTreeMap<String, Vec<Value>> =
        files.map(|path| (path.display().to_string(), documents(&path))).collect();
    match std::env::var_os("SHUNT_RENDERED").map(PathBuf::from) {
        Some(rendered) => {
            for name in renderings {
                all.insert((*name).to_owned(), documents(&rendered.join(name)));
            }
        }
        None => eprintln!("SKIPPED: the renderings, which cargo xtask test makes"),
    }
    all
}

/// Why an object is not what its type says; an unknown field counts.
fn wrong(object: &Value) -> Vec<String> {
    fn check<T: DeserializeOwned>(object: &Value) -> Vec<String> {
        let mut unknown = Vec::new();
        let read = serde_ignored::deserialize::<_, _, T>(object, |path| unknown.push(format!("no field {path}")));
        unknown.extend(read.err().map(|error| error.to_string()));
        unknown
    }
    let (version, kind) = (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
    match (version, kind) {
        ("v1", "ServiceAccount") => check::<ServiceAccount>(object),
        ("v1", "ConfigMap") => check::<ConfigMap>(object),
        ("v1", "Service") => check::<Service>(object),
        ("apps/v1", "DaemonSet") => check::<DaemonSet>(object),
        ("apps/v1", "Deployment") => check::<Deployment>(object),
        ("policy/v1", "PodDisruptionBudget") => check::<PodDisruptionBudget>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(object),
        _ => vec![format!("{version} {kind} has no schema here")],
    }
}

#[test]
fn every_object_is_as_its_schema_has_it() {
    let of_dns = given_of_dns().into_iter().map(|objects| ("dns".to_owned(), objects));
    for (from, objects) in given().into_iter().chain(of_dns) {
        assert!(!objects.is_empty(), "{from}");
        for object in objects {
            assert!(
                wrong(&object).is_empty(),
                "{from}: {} {}: {:?}",
                object["kind"],
                object["metadata"]["name"],
                wrong(&object)
            );
        }
    }
    let mut typo = documents(&deploy().join("kustomize/daemonset.yaml")).remove(0);
    typo["spec"]["template"]["spec"]["hostNetwrk"] = true.into();
    assert!(wrong(&typo)[0].contains("hostNetwrk"), "a typo is seen: {:?}", wrong(&typo));
}

#[test]
fn the_chart_and_the_kustomization_come_to_the_same_objects() {
    let all = given();
    let (Some(chart), Some(kustomize)) = (all.get("chart.yaml"), all.get("kustomize.yaml")) else { return };
    let by_name = |objects: &[Value]| -> BTreeMap<(String, String), Value> {
        let key = |object: &Value| (object["kind"].to_string(), object["metadata"]["name"].to_string());
        objects.iter().map(|object| (key(object), plain(object))).collect()
    };
    let (chart, kustomize) = (by_name(chart), by_name(kustomize));
    assert_eq!(chart.keys().collect::<Vec<_>>(), kustomize.keys().collect::<Vec<_>>());
    for (key, object) in chart {
        assert_eq!(Some(&object), kustomize.get(&key), "{key:?}");
    }
}

/// With the text of a configuration as the documents it stands for: quoting is a matter of taste.
fn plain(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(text) = object.pointer_mut("/data/config.yaml") {
        let parsed: Vec<Value> = serde_saphyr::from_multiple(text.as_str().unwrap()).unwrap();
        *text = parsed.into();
    }
    object
}

/// What `shunt run` prints about a command line before it would start.
fn start(arguments: &[&str]) -> (Option<i32>, String) {
    let shunt = Binaries::find().unwrap().shunt().unwrap().to_owned();
    let output = Command::new(shunt).args(arguments).arg("--init-only").output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_daemon_takes_every_configuration() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("config.yaml");
    let file = file.to_str().unwrap();
    let mounted = place.path().join("Corefile");
    fs::write(&mounted, corefile(&given_of_dns()[0])).unwrap();
    let mut seen = 0;
    for (from, objects) in given() {
        for object in objects {
            if let Some(text) = object.pointer("/data/config.yaml").and_then(Value::as_str) {
                fs::write(file, text.replace("/etc/coredns/Corefile", mounted.to_str().unwrap())).unwrap();
                assert_eq!(start(&["run", "--config", file]), (Some(0), String::new()), "{from}");
                seen += 1;
            }
            if let Some(arguments) = object.pointer("/spec/template/spec/containers/0/args") {
                let arguments: Vec<String> = serde_json::from_value(arguments.clone()).unwrap();
                let arguments: Vec<String> = arguments
                    .iter()
                    .map(|argument| argument.replace("/etc/shunt/config.yaml", file).replace("$(NODE_NAME)", "n1"))
                    .collect();
                fs::write(file, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n")
                    .unwrap();
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                assert_eq!(start(&arguments), (Some(0), String::new()), "{from}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 2);
    let unit = read(&deploy().join("systemd/shunt.service"));
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/shunt ")).unwrap();
    let config = deploy().join("systemd/config.yaml");
    let command = command.replace("/etc/shunt/config.yaml", config.to_str().unwrap());
    let arguments: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(start(&arguments), (Some(0), String::new()));
}

#[test]
fn the_chart_mounts_the_corefile_where_the_daemon_looks_for_it() {
    let all = given();
    let Some(objects) = all.get("chart-corefile.yaml") else { return };
    let settings = find(objects, "ConfigMap", "shunt").pointer("/data/config.yaml").and_then(Value::as_str).unwrap();
    let pod = find(objects, "DaemonSet", "shunt").pointer("/spec/template/spec").unwrap();
    let by_name = |list: &Value| -> Value {
        list.as_array().unwrap().iter().find(|item| item["name"] == "corefile").unwrap().clone()
    };
    let mount = by_name(&pod["containers"][0]["volumeMounts"]);
    assert!(settings.contains(&format!("corefile: {}/Corefile\n", mount["mountPath"].as_str().unwrap())), "{settings}");
    assert_eq!(by_name(&pod["volumes"])["configMap"]["name"], "coredns");
}

#[test]
fn the_service_manager_takes_the_unit() {
    let place = tempfile::tempdir().unwrap();
    // It wants the program to be there.
    let unit = read(&deploy().join("systemd/shunt.service")).replace("/usr/local/bin/shunt", "/bin/true");
    let path = place.path().join("shunt.service");
    fs::write(&path, unit).unwrap();
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() else {
        eprintln!("SKIPPED: no systemd-analyze here");
        return;
    };
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let about_it: Vec<&str> = told.lines().filter(|line| line.contains("shunt.service")).collect();
    assert!(about_it.is_empty(), "{about_it:#?}");
}

#[test]
fn the_images_get_what_is_built_for_them() {
    let text = read(&deploy().join("Dockerfile"));
    let stages: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    for line in text.lines().filter_map(|line| line.strip_prefix("COPY --from=")) {
        let (stage, paths) = line.split_once(' ').unwrap();
        assert!(stages.iter().any(|from| from.ends_with(&format!(" AS {stage}"))), "{line}");
        let program = if stage == "dns-build" { "shunt-dns" } else { "shunt" };
        assert!(paths.starts_with(&format!("/src/target/release/{program} ")), "{line}");
    }
    assert!(text.contains("RUN cargo xtask build --release\n"));
    assert!(text.contains("RUN cargo build --release --package shunt-dns\n"));
    assert!(text.contains("--no-install-recommends nftables iptables "), "the daemon runs both");
    assert_eq!(start(&["run", "--kubeconfig", "/nowhere", "--hostname-override", "n1"]).0, Some(0));
    // What is built without a target is the last one.
    assert!(!stages.last().unwrap().contains(" AS "), "{stages:?}");
    let daemon = Binaries::find().unwrap().shunt.unwrap();
    for (program, base) in
        [(shunt_dns(), "gcr.io/distroless/cc-debian12 AS shunt-dns"), (daemon, "debian:bookworm-slim")]
    {
        assert!(stages.contains(&base), "{base}");
        let output = Command::new("ldd").arg(program).output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let in_base = ["linux-vdso", "libgcc_s.", "libm.", "libc.", "/lib64/ld-linux", "/lib/ld-linux"];
            assert!(in_base.iter().any(|name| line.trim().starts_with(name)), "{base} has no {line}");
        }
    }
}

#[test]
fn the_dashboard_shows_metrics_that_exist() {
    let Some(cluster) = Cluster::alone("dashboard") else { return };
    // Some have no sample before the first change, query or failure; all have their type.
    let page = cluster.daemon().metrics("/metrics").unwrap().body;
    let typed: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let text = read(&deploy().join("grafana/shunt.json"));
    let board: Value = serde_json::from_str(&text).unwrap();
    let mut seen = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for word in
                words.filter(|w| ["shunt_", "kubeproxy_", "process_"].iter().any(|prefix| w.starts_with(prefix)))
            {
                let name = word.strip_suffix("_bucket").unwrap_or(word);
                let kind = typed.get(name).unwrap_or_else(|| panic!("no metric {word} in:\n{page}"));
                assert_eq!(*kind == "histogram", name != word, "{word}");
                seen.insert(word);
            }
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
}

fn shunt_dns() -> PathBuf {
    let path = Binaries::find().unwrap().shunt().unwrap().with_file_name("shunt-dns");
    assert!(path.is_file(), "{} is not built: run cargo xtask build", path.display());
    path
}

#[track_caller]
fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let named = |object: &Value| object.pointer("/metadata/name").is_some_and(|found| found == name);
    let found = objects.iter().find(|object| object["kind"] == kind && named(object));
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn corefile(objects: &[Value]) -> &str {
    find(objects, "ConfigMap", "coredns").pointer("/data/Corefile").and_then(Value::as_str).unwrap()
}

fn container(objects: &[Value]) -> &Value {
    find(objects, "Deployment", "coredns").pointer("/spec/template/spec/containers/0").unwrap()
}

/// `(API group, resource, verb)` of every rule.
fn permissions(objects: &[Value]) -> BTreeSet<(String, String, String)> {
    let role: ClusterRole = serde_json::from_value(find(objects, "ClusterRole", "system:coredns").clone()).unwrap();
    let mut all = BTreeSet::new();
    for rule in role.rules.unwrap() {
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                all.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    all
}

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs `shunt-dns` with the Deployment's arguments and this Corefile, until it is ready and watches all that it lists,
/// and returns what it asked the API server for. Only ports and upstreams are not the Deployment's.
fn asked_for(arguments: &[String], corefile: &str) -> BTreeSet<(String, String, String)> {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let api = FakeApi::start().unwrap();
    fs::write(path("kubeconfig"), api.kubeconfig()).unwrap();
    fs::write(path("Corefile"), corefile.replace("/etc/resolv.conf", "127.0.0.1:9")).unwrap();
    let mut command = Command::new(shunt_dns());
    command.args(arguments.iter().map(|argument| argument.replace("/etc/coredns/Corefile", &path("Corefile"))));
    command.args(["--kubeconfig", &path("kubeconfig")]);
    for flag in ["--listen", "--health-address", "--ready-address", "--metrics-address"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut log = log.inspect(|line| eprintln!("shunt-dns: {line}"));
    let _program = Program(child);
    let line = log.find(|line| line.contains("serving health")).unwrap();
    let (_, addresses) = line.split_once("addresses=[").unwrap();
    let http: Vec<SocketAddr> = addresses.trim_end_matches(']').split(", ").map(|a| a.parse().unwrap()).collect();
    // A program that writes to a full pipe without a reader stops there.
    std::thread::spawn(move || log.for_each(drop));
    let second = Duration::from_secs(1);
    let says = |path: &str| http.iter().any(|at| http_get(*at, path, second).is_ok_and(|page| page.status == 200));
    wait_for("/health, /metrics and /ready", || ["/health", "/metrics", "/ready"].into_iter().all(says));
    let of = |verb: Verb| -> BTreeSet<Resource> {
        api.requests().iter().filter(|request| request.verb == verb).map(|request| request.resource).collect()
    };
    wait_for("watches of all that is listed", || of(Verb::List) == of(Verb::Watch));
    of(Verb::List).into_iter().flat_map(|resource| ["list", "watch"].map(|verb| named(resource, verb))).collect()
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_there() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("no {what}");
}

/// As a rule of RBAC names it.
fn named(resource: Resource, verb: &str) -> (String, String, String) {
    let (group, resource) = match resource {
        Resource::Namespace => ("", "namespaces"),
        Resource::Node => ("", "nodes"),
        Resource::ServiceCidr => ("networking.k8s.io", "servicecidrs"),
        Resource::Pod => ("", "pods"),
        Resource::Service => ("", "services"),
        Resource::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
        Resource::Event => ("events.k8s.io", "events"),
    };
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

#[test]
fn shunt_dns_takes_its_corefile_and_may_ask_for_what_it_asks_for() {
    for objects in given_of_dns() {
        let arguments: Vec<String> = serde_json::from_value(container(&objects)["args"].clone()).unwrap();
        let allowed = permissions(&objects);
        assert_eq!(asked_for(&arguments, corefile(&objects)), allowed);
        let verified = corefile(&objects).replace("pods insecure", "pods verified");
        let pods = ["list", "watch"].map(|verb| named(Resource::Pod, verb));
        assert_eq!(asked_for(&arguments, &verified), allowed.into_iter().chain(pods).collect());
    }
}

/// The port of a directive of the Corefile: what stands after a colon in its line, or CoreDNS's own.
fn port(corefile: &str, directive: &str, otherwise: u16) -> u16 {
    let line = corefile.lines().find(|line| line.split_whitespace().next() == Some(directive)).unwrap();
    line.split_once(':').map_or(otherwise, |(_, port)| port.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn the_objects_of_shunt_dns_fit_together() {
    for objects in given_of_dns() {
        let (text, container) = (corefile(&objects), container(&objects));
        let pod = find(&objects, "Deployment", "coredns").pointer("/spec/template").unwrap();
        let ports: BTreeSet<(&str, u64, &str)> = container["ports"].as_array().unwrap().iter().map(numbered).collect();
        let dns = u64::from(port(text, ".:53", 53));
        let metrics = u64::from(port(text, "prometheus", 9153));
        assert_eq!(ports, [("dns", dns, "UDP"), ("dns-tcp", dns, "TCP"), ("metrics", metrics, "TCP")].into());
        let probe = |name: &str| &container[name]["httpGet"];
        assert_eq!(*probe("livenessProbe"), serde_json::json!({"path": "/health", "port": port(text, "health", 8080)}));
        assert_eq!(*probe("readinessProbe"), serde_json::json!({"path": "/ready", "port": port(text, "ready", 8181)}));
        let service = &find(&objects, "Service", "kube-dns")["spec"];
        for served in service["ports"].as_array().unwrap() {
            assert_eq!(served["targetPort"], served["name"]);
            assert!(ports.contains(&numbered(served)), "{served}");
        }
        assert_eq!(service["ports"].as_array().unwrap().len(), ports.len());
        for selector in [
            &service["selector"],
            &find(&objects, "Deployment", "coredns")["spec"]["selector"]["matchLabels"],
            &find(&objects, "PodDisruptionBudget", "coredns")["spec"]["selector"]["matchLabels"],
        ] {
            assert_eq!(*selector, pod["metadata"]["labels"]);
        }
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        let bound = find(&objects, "ClusterRoleBinding", "system:coredns");
        assert_eq!(bound["subjects"][0]["name"], find(&objects, "ServiceAccount", account)["metadata"]["name"]);
        assert_eq!(bound["roleRef"]["name"], "system:coredns");
        let mounted = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
        let item = &pod["spec"]["volumes"][0]["configMap"]["items"][0];
        assert_eq!(container["args"][1], format!("{mounted}/{}", item["path"].as_str().unwrap()));
        assert_eq!(item["key"], "Corefile");
    }
}

/// Name, number and protocol of a port of a container or a Service.
fn numbered(port: &Value) -> (&str, u64, &str) {
    let number = port["containerPort"].as_u64().or_else(|| port["port"].as_u64()).unwrap();
    (port["name"].as_str().unwrap(), number, port["protocol"].as_str().unwrap())
}
