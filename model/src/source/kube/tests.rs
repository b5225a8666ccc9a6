//! Messages of reflectors, and the view that they amount to. No API server is needed for that.

use std::time::Duration;

use serde_json::{Value, json};

use super::failure::Cause;
use super::reflector::{Message, News};
use super::remembered::Remembered;
use super::view::View;
use super::wire::{self, Read, Wire};
use super::*;
use crate::key::ObjectKey;

fn options() -> KubeOptions {
    KubeOptions { node: "n1".into(), names: true, pod_annotations: vec!["mesh".into()], ..KubeOptions::default() }
}

fn read<T: Wire>(object: Value) -> News {
    let read: Read<T> = serde_json::from_value(object).unwrap();
    let key = ObjectKey::new(read.metadata.namespace.as_str(), read.metadata.name.as_str());
    News::Present(key, read.object.map(|object| object.object(read.metadata.into())))
}

fn service(name: &str, ip: &str) -> News {
    read::<wire::WireService>(json!({
        "metadata": {"namespace": "default", "name": name, "managedFields": [{"manager": "kubectl"}]},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    }))
}

fn slice(name: &str, owner: &str) -> News {
    read::<wire::WireSlice>(json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4", "endpoints": null, "ports": [{"name": "", "port": 8080}],
    }))
}

/// A view with a shorthand for telling it things.
struct TestView(View);

impl TestView {
    fn new() -> Self {
        Self(View::new(&options()))
    }

    fn tell(&mut self, kind: Kind, news: impl IntoIterator<Item = News>) -> &mut Self {
        news.into_iter().for_each(|news| self.0.take(Message { kind, news }));
        self
    }

    fn list(&mut self, kind: Kind, objects: impl IntoIterator<Item = News>) -> &mut Self {
        self.tell(kind, [News::Listing]).tell(kind, objects).tell(kind, [News::Listed])
    }

    fn deny(&mut self, kind: Kind) -> &mut Self {
        self.fail(kind, Cause::Denied, &format!("cannot follow {}", kind.resource()))
    }

    fn fail(&mut self, kind: Kind, cause: Cause, reason: &str) -> &mut Self {
        let denied = cause == Cause::Denied;
        self.tell(kind, [News::Failing { cause, reason: reason.to_owned(), denied }])
    }

    fn unreachable(&self) -> Option<String> {
        self.0.unreachable().map(|failing| failing.reason)
    }

    fn services(&self) -> String {
        let snapshot = self.0.snapshot();
        snapshot.services.keys().map(|key| &*key.name).collect::<Vec<_>>().join(" ")
    }

    fn slices(&self) -> String {
        let snapshot = self.0.snapshot();
        snapshot.slices.keys().map(|key| format!("{}={}", key.slice, key.service.name)).collect::<Vec<_>>().join(" ")
    }

    fn problems(&self) -> String {
        self.0.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }
}

fn gone(name: &str) -> News {
    News::Gone(ObjectKey::new("default", name))
}

#[test]
fn a_view_is_complete_when_everything_wanted_was_listed() {
    // IN-8
    let mut told = TestView::new();
    for kind in Kind::ALL {
        assert!(!told.0.is_complete(), "before {}", kind.name());
        told.list(kind, []);
    }
    assert!(told.0.is_complete());
}

#[test]
fn only_services_and_slices_are_waited_for_without_end() {
    let mut told = TestView::new();
    told.0.stop_waiting();
    told.list(Kind::Service, []);
    assert!(!told.0.is_complete());
    told.deny(Kind::Slice);
    assert!(!told.0.is_complete(), "a role without endpointslices cannot serve");
    assert_eq!(told.unreachable().unwrap(), "cannot follow endpointslices; the cluster is not known yet");
    told.list(Kind::Slice, []);
    assert!(told.0.is_complete());
    assert_eq!(told.unreachable(), None);
}

#[test]
fn what_holds_before_the_first_view_is_said_in_the_readers_words() {
    let until_known = "Services stay as an earlier daemon left them";
    let mut told = TestView(View::new(&KubeOptions { until_known, ..options() }));
    told.deny(Kind::Service);
    let wanted = "cannot follow services; the cluster is not known yet: Services stay as an earlier daemon left them";
    assert_eq!(told.unreachable().unwrap(), wanted);
}

#[test]
fn what_was_seen_once_stays_as_it_was_and_is_not_called_unknown() {
    let rows = [
        (
            Kind::Node,
            "this node's zone and taints are not known: hints for zones have no effect",
            "this node's zone and taints stay as last seen",
        ),
        (
            Kind::Pod,
            "annotations of Pods are not seen, so no Pod opts out, and names of Pods are not verified",
            "Pods stay as last seen: new ones do not opt out, and their names are not verified",
        ),
        (
            Kind::Namespace,
            "only namespaces with Services are known to DNS",
            "namespaces stay as last seen: of new ones, DNS knows those with Services",
        ),
        (
            Kind::ServiceCidr,
            "only the ranges given with --service-cidr are known to be of Services",
            "the ranges of Services stay as last seen",
        ),
    ];
    for (kind, never, once) in rows {
        let mut told = TestView::new();
        told.deny(kind);
        assert_eq!(told.problems(), format!("cannot follow {}; meanwhile {never}", kind.resource()));
        told.list(kind, []).deny(kind);
        assert_eq!(told.problems(), format!("cannot follow {}; meanwhile {once}", kind.resource()));
    }
}

#[test]
fn a_role_of_kube_proxy_is_enough() {
    let mut told = TestView::new();
    for kind in [Kind::Service, Kind::Slice, Kind::Node, Kind::ServiceCidr] {
        told.list(kind, []);
    }
    told.deny(Kind::Pod).deny(Kind::Namespace).tell(Kind::Service, [service("a", "10.0.0.1")]);
    assert!(told.0.is_complete());
    assert_eq!(told.unreachable(), None);
    assert!(told.problems().contains("cannot follow pods; meanwhile annotations of Pods are not seen"));
    assert!(told.0.snapshot().namespaces.contains_key("default"), "a namespace with a Service exists");
}

#[test]
fn an_outage_of_the_server_is_one_reason_and_no_problem_of_each_resource() {
    let mut told = TestView::new();
    for kind in Kind::ALL {
        told.list(kind, []);
    }
    told.fail(Kind::Pod, Cause::Away, "no connection");
    assert_eq!(told.unreachable().unwrap(), "no connection; the last good view stays in force");
    for kind in Kind::ALL {
        told.fail(kind, Cause::Away, "no connection");
    }
    assert_eq!(told.problems(), "");
    for kind in Kind::ALL {
        assert!(told.unreachable().is_some(), "before {} can be followed again", kind.name());
        told.tell(kind, [News::Watching]);
    }
    assert_eq!(told.unreachable(), None);
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_told_of_once_nodes_are_listed() {
    let node = |name: &str| read::<wire::WireNode>(json!({"metadata": {"name": name}}));
    let mut told = TestView::new();
    assert_eq!(told.0.unknown_node(), None, "nobody knows yet");
    told.deny(Kind::Node);
    assert_eq!(told.0.unknown_node(), None, "a role without nodes does not say so");
    told.list(Kind::Node, []);
    let reason = told.0.unknown_node().unwrap();
    assert_eq!(
        reason,
        "the cluster has no Node \"n1\": no endpoint counts as local, and this node's zone, taints and addresses are \
         not known; set --hostname-override to the name that kubectl get nodes shows"
    );
    told.fail(Kind::Node, Cause::Away, "no connection");
    assert!(told.0.unknown_node().is_some(), "an outage leaves the last view");
    told.tell(Kind::Node, [node("n1")]);
    assert_eq!(told.0.unknown_node(), None);
    told.0.take_reported();
    told.tell(Kind::Node, [News::Gone(ObjectKey::new("", "n1"))]);
    assert!(told.0.unknown_node().is_some() && told.0.take_reported(), "its Node was deleted");
}

#[test]
fn a_server_of_dns_alone_has_no_node() {
    let options = KubeOptions { node: String::new(), ..options() };
    let view = View::new(&options);
    assert_eq!(view.unknown_node(), None);
}

/// A view in which the API server is at these addresses.
pub(super) fn served_at(endpoints: &[&str]) -> Snapshot {
    let ready: Vec<Value> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    let slice = read::<wire::WireSlice>(json!({
        "metadata": {"namespace": "default", "name": "k", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "endpoints": ready, "ports": [{"name": "https", "port": 6443}],
    }));
    let mut told = TestView::new();
    told.tell(Kind::Service, [service("kubernetes", "10.96.0.1")]).tell(Kind::Slice, [slice]);
    told.0.snapshot()
}

#[test]
fn the_endpoints_of_the_api_server_are_remembered_the_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("not/there/yet");
    let of = |remembered: &Remembered, host: &str| {
        remembered.endpoints_behind(host).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let remembered = Remembered::load(Some(&directory));
    assert_eq!(of(&remembered, "10.96.0.1"), "");
    remembered.learn(&served_at(&["192.0.2.1", "192.0.2.2"]));
    remembered.learn(&served_at(&["192.0.2.3", "192.0.2.2"]));
    // A view without endpoints, or without the Service, says nothing new.
    remembered.learn(&served_at(&[]));
    remembered.learn(&Snapshot::default());
    let next = Remembered::load(Some(&directory));
    let all = "192.0.2.2:6443 192.0.2.3:6443 192.0.2.1:6443";
    for host in
        ["10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.x.y"]
    {
        assert_eq!(of(&next, host), all, "{host}");
    }
    // The operator chose these addresses.
    for host in ["192.0.2.1", "10.96.0.2", "lb.example.test", "kubernetes.example.test"] {
        assert_eq!(of(&next, host), "", "{host}");
    }
    let text = std::fs::read_to_string(directory.join("api-servers.json")).unwrap();
    assert_eq!(text, r#"{"service":["10.96.0.1"],"endpoints":["192.0.2.2:6443","192.0.2.3:6443","192.0.2.1:6443"]}"#);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing is left of the writing");
}

#[test]
fn a_file_that_no_daemon_wrote_is_ignored_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("api-servers.json");
    for text in ["", "{}", "no JSON", r#"{"service":["10.96.0.1"],"endpoints":["somewhere"]}"#, r#"{"token":"x"}"#] {
        std::fs::write(&file, text).unwrap();
        let remembered = Remembered::load(Some(folder.path()));
        assert_eq!(remembered.endpoints_behind("10.96.0.1"), [], "{text}");
        remembered.learn(&served_at(&["192.0.2.1"]));
        assert!(std::fs::read_to_string(&file).unwrap().contains("192.0.2.1:6443"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_could_not_be_written_are_written_later_without_another_view() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("state");
    // In the place of the directory, so it cannot be made.
    std::fs::write(&directory, "").unwrap();
    let remembered = Arc::new(Remembered::load(Some(&directory)));
    remembered.learn(&served_at(&["192.0.2.1"]));
    assert_eq!(remembered.endpoints_behind("10.96.0.1").len(), 1);
    std::fs::remove_file(&directory).unwrap();
    remembered.learn(&served_at(&["192.0.2.1"]));
    assert!(directory.join("api-servers.json").exists());

    // Nothing changes in the cluster any more.
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::write(&directory, "").unwrap();
    let (snapshots, reader) = watch::channel(Arc::new(served_at(&["192.0.2.2"])));
    let followed = tokio::spawn(Arc::clone(&remembered).follow(reader));
    while remembered.endpoints_behind("10.96.0.1").len() < 2 {
        tokio::task::yield_now().await;
    }
    std::fs::remove_file(&directory).unwrap();
    while !directory.join("api-servers.json").exists() {
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    drop(snapshots);
    followed.await.unwrap();
}

#[test]
fn no_more_endpoints_are_kept_than_can_be_tried() {
    let remembered = Remembered::default();
    for number in 0..40 {
        remembered.learn(&served_at(&[&format!("192.0.2.{number}")]));
    }
    let known = remembered.endpoints_behind("10.96.0.1");
    assert_eq!((known.len(), known[0].to_string().as_str()), (16, "192.0.2.39:6443"));
}

#[test]
fn what_a_new_list_does_not_have_is_gone_at_its_end() {
    let mut told = TestView::new();
    told.list(Kind::Service, [service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    told.tell(Kind::Service, [News::Listing, service("b", "10.0.0.2"), service("c", "10.0.0.3")]);
    assert_eq!(told.services(), "a b c");
    // The list breaks off and begins anew.
    told.list(Kind::Service, [service("c", "10.0.0.3")]);
    assert_eq!(told.services(), "c");
    told.list(Kind::Slice, [slice("x", "a"), slice("y", "c")]).list(Kind::Slice, [slice("y", "c")]);
    assert_eq!(told.slices(), "y=c");
}

#[test]
fn an_event_that_changes_nothing_leaves_the_view_as_it_is() {
    // IN-7
    let mut told = TestView::new();
    told.list(Kind::Service, [service("a", "10.0.0.1")]);
    let before = told.0.snapshot();
    told.tell(Kind::Service, [service("a", "10.0.0.1")]).list(Kind::Service, [service("a", "10.0.0.1")]);
    assert!(before.ptr_eq(&told.0.snapshot()));
    told.tell(Kind::Service, [service("a", "10.0.0.2")]);
    assert!(!before.ptr_eq(&told.0.snapshot()));
}

#[test]
fn a_slice_moves_with_its_label() {
    let mut told = TestView::new();
    told.tell(Kind::Slice, [slice("x", "a"), slice("x", "b")]);
    assert_eq!(told.slices(), "x=b");
    told.tell(Kind::Slice, [gone("x")]);
    assert_eq!(told.slices(), "");
}

#[test]
fn what_cannot_be_read_keeps_its_last_good_version_and_is_told_of() {
    let garbled = || {
        read::<wire::WireService>(json!({
            "metadata": {"namespace": "default", "name": "a"}, "spec": {"ports": "eighty"},
        }))
    };
    let mut told = TestView::new();
    told.list(Kind::Service, [service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    told.tell(Kind::Service, [garbled()]);
    assert_eq!(told.services(), "a b");
    assert!(told.problems().starts_with("Service default/a: it cannot be read"), "{}", told.problems());
    told.list(Kind::Service, [garbled(), service("b", "10.0.0.2")]);
    assert_eq!(told.services(), "a b", "a list that has it does not remove it");
    told.list(Kind::Service, [service("b", "10.0.0.2")]);
    assert_eq!((told.services(), told.problems()), ("b".to_owned(), String::new()));
    // An object without even a name is reported and affects no other.
    told.tell(Kind::Service, [read::<wire::WireService>(json!({"metadata": 7}))]);
    assert_eq!(told.services(), "b");
    assert!(told.problems().contains("cannot be read"));
}

#[test]
fn what_is_no_use_goes_and_is_told_of() {
    let portless = || {
        read::<wire::WireService>(
            json!({"metadata": {"namespace": "default", "name": "a"}, "spec": {"clusterIP": "10.0.0.1"}}),
        )
    };
    let mut told = TestView::new();
    told.list(Kind::Service, [service("a", "10.0.0.1")]).tell(Kind::Service, [portless()]);
    assert_eq!(told.services(), "");
    assert!(told.problems().contains("Service default/a: it has no ports"), "{}", told.problems());
    told.tell(Kind::Service, [gone("a")]);
    assert_eq!(told.problems(), "");
}

#[test]
fn a_finished_pod_is_gone_and_a_kept_annotation_stays() {
    let pod = |phase: &str| {
        read::<wire::WirePod>(json!({
            "metadata": {"namespace": "default", "name": "p", "annotations": {"mesh": "yes", "long": "text"}},
            "spec": {"nodeName": "n1", "containers": "not looked at"},
            "status": {"phase": phase, "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd01::1"}]},
        }))
    };
    let mut told = TestView::new();
    told.tell(Kind::Pod, [pod("Running")]);
    let snapshot = told.0.snapshot();
    let known = snapshot.pods.get(&ObjectKey::new("default", "p")).unwrap();
    assert_eq!((known.addresses.len(), known.annotations.len()), (2, 1));
    told.tell(Kind::Pod, [pod("Succeeded")]);
    assert!(told.0.snapshot().pods.is_empty());
}

#[test]
fn a_pod_that_is_being_deleted_keeps_what_it_has_and_gets_nothing() {
    // DNS-6.3
    let pod = |name: &str, ip: &str, leaving: bool, annotations: Value| {
        let deleted = leaving.then_some("2026-01-01T00:00:00Z");
        read::<wire::WirePod>(json!({
            "metadata": {
                "namespace": "default", "name": name, "deletionTimestamp": deleted, "annotations": annotations,
            },
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": ip},
        }))
    };
    let plain = || json!({"long": "text"});
    let mesh = || json!({"mesh": "yes"});
    let pods = |told: &TestView| {
        let snapshot = told.0.snapshot();
        snapshot.pods.values().map(|pod| format!("{}={:?}", pod.key.name, pod.addresses)).collect::<Vec<_>>().join(" ")
    };
    let mut told = TestView::new();
    told.list(Kind::Pod, [pod("old", "10.1.0.1", false, plain()), pod("late", "10.1.0.2", true, plain())]);
    assert_eq!(pods(&told), "old=[10.1.0.1]");
    let before = told.0.snapshot();
    told.tell(Kind::Pod, [pod("old", "", true, plain()), pod("late", "10.1.0.2", true, plain())]);
    told.list(Kind::Pod, [pod("old", "10.1.0.1", true, plain()), pod("late", "10.1.0.2", true, plain())]);
    assert!(before.ptr_eq(&told.0.snapshot()), "{}", pods(&told));
    told.tell(Kind::Pod, [gone("late"), gone("old")]);
    assert_eq!(pods(&told), "");
    // What opts out is known for as long as it runs, also to a daemon that starts meanwhile.
    told.list(Kind::Pod, [pod("opted", "10.1.0.3", true, mesh())]);
    assert_eq!(pods(&told), "opted=[10.1.0.3]");
    told.list(Kind::Pod, []);
    assert_eq!(pods(&told), "");
}

#[test]
fn selectors_are_those_of_kube_proxy_unless_names_are_answered() {
    // IN-1, IN-2, IN-4
    let selectors = |kind: Kind, names: bool| kind.selectors(&KubeOptions { names, ..options() });
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        selectors(Kind::Service, false),
        (text("!service.kubernetes.io/service-proxy-name"), text("spec.clusterIP!=None"))
    );
    assert_eq!(selectors(Kind::Slice, false), (text("!service.kubernetes.io/headless"), None));
    assert_eq!(selectors(Kind::Service, true), (None, None));
    assert_eq!(selectors(Kind::Node, true), (None, text("metadata.name=n1")));
    assert_eq!(selectors(Kind::Pod, true), (None, text("spec.nodeName=n1")));
}
