//! What is in `deploy/`, read by the programs that will read it: schemas, the daemon, the service manager, dashboards.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "a skipped test must be seen")]

mod cluster;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster::Cluster;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lab::Binaries;
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

/// Everything that is given to a cluster: the kustomization's files, and both renderings if `cargo xtask test` made them.
fn given() -> BTreeMap<String, Vec<Value>> {
    let kustomize = deploy().join("kustomize");
    let files = ["rbac.yaml", "config.yaml", "daemonset.yaml"].map(|name| kustomize.join(name));
    let mut all: BTreeMap<String, Vec<Value>> =
        files.iter().map(|path| (path.display().to_string(), documents(path))).collect();
    match std::env::var_os("SHUNT_RENDERED").map(PathBuf::from) {
        Some(rendered) => {
            for name in ["chart.yaml", "kustomize.yaml"] {
                all.insert(name.to_owned(), documents(&rendered.join(name)));
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
        ("apps/v1", "DaemonSet") => check::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(object),
        _ => vec![format!("{version} {kind} has no schema here")],
    }
}

#[test]
fn every_object_is_as_its_schema_has_it() {
    for (from, objects) in given() {
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

/// What `shunt run` says to a command line before it would start.
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
    let mut seen = 0;
    for (from, objects) in given() {
        for object in objects {
            if let Some(text) = object.pointer("/data/config.yaml").and_then(Value::as_str) {
                fs::write(file, text).unwrap();
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
fn the_image_gets_what_is_built() {
    let text = read(&deploy().join("Dockerfile"));
    let stages: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("FROM ")?.split_once(" AS ").map(|(_, name)| name)).collect();
    for line in text.lines().filter_map(|line| line.strip_prefix("COPY --from=")) {
        let (stage, paths) = line.split_once(' ').unwrap();
        assert!(stages.contains(stage), "{line}");
        assert!(paths.starts_with("/src/target/release/shunt "), "{line}");
    }
    assert!(text.contains("RUN cargo xtask build --release\n"));
    assert_eq!(start(&["run", "--kubeconfig", "/nowhere", "--hostname-override", "n1"]).0, Some(0));
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
