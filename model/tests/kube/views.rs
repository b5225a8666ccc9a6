//! What the source sees of a cluster that behaves.

use lab::api::{Resource, Verb};
use serde_json::json;
use shunt_model::ObjectKey;
use shunt_model::source::kube::{KubeOptions, NewEvent};

use super::watched::{Watched, cluster, file, options, service, slice};

#[tokio::test]
async fn changes_are_followed() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    watched.until_services("a[10.1.0.1] b").await;
    api.apply_object(slice("b", &["10.1.0.2", "10.1.0.3"])).unwrap();
    watched.until_services("a[10.1.0.1] b[10.1.0.2,10.1.0.3]").await;
    api.apply_object(service("c", 3)).unwrap();
    assert!(api.delete(Resource::EndpointSlice, "default", "a-x"));
    watched.until_services("a b[10.1.0.2,10.1.0.3] c").await;
    assert!(api.delete(Resource::Service, "default", "b"));
    watched.until_services("a c").await;
    assert_eq!(watched.health().unreachable, None);
}

#[tokio::test]
async fn a_slice_may_come_before_its_service() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    api.apply_object(slice("early", &["10.1.0.9"])).unwrap();
    watched.until("the slice", |snapshot| snapshot.slices.len() == 2).await;
    api.apply_object(service("early", 9)).unwrap();
    watched.until_services("a[10.1.0.1] b early[10.1.0.9]").await;
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let api = cluster();
    for number in 10..1_300 {
        api.apply_object(service(&format!("s{number}"), number)).unwrap();
    }
    let watched = Watched::new(&api).await;
    assert_eq!(watched.snapshot().services.len(), 1_292);
    let lists = api.requests().into_iter().filter(|request| {
        (request.resource, request.verb) == (Resource::Service, Verb::List) && request.query.contains("limit=500")
    });
    assert_eq!(lists.count(), 3);
}

#[tokio::test]
async fn five_thousand_services_at_once_arrive_whole() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    for number in 10..5_010 {
        api.apply_object(service(&format!("s{number}"), number)).unwrap();
    }
    watched.until("5,002 services", |snapshot| snapshot.services.len() == 5_002).await;
    assert_eq!(watched.lost().len(), 0);
}

#[tokio::test]
async fn a_label_hands_a_service_to_another_proxy_and_back() {
    // IN-3
    let api = cluster();
    let (_folder, path) = file(&api.kubeconfig());
    let watched = Watched::with(KubeOptions { names: false, ..options(&path) }).await;
    watched.until_services("a[10.1.0.1] b").await;
    let labelled = |labels| {
        let mut object = service("b", 2);
        object["metadata"]["labels"] = labels;
        api.apply_object(object).unwrap();
    };
    labelled(json!({"service.kubernetes.io/service-proxy-name": "other"}));
    watched.until_services("a[10.1.0.1]").await;
    labelled(json!({}));
    watched.until_services("a[10.1.0.1] b").await;
    let mut object = slice("a", &["10.1.0.1"]);
    object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    api.apply_object(object).unwrap();
    watched.until_services("a b").await;
    // With names to answer, the same objects are in the view, marked as those of another proxy.
    let all = Watched::new(&api).await;
    all.until_services("a[10.1.0.1] b").await;
}

#[tokio::test]
async fn nodes_pods_namespaces_and_ranges_are_seen() {
    let api = cluster();
    api.apply(
        "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}, spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n\
         ---\n{apiVersion: v1, kind: Node, metadata: {name: n2}}\n\
         ---\n{apiVersion: v1, kind: Namespace, metadata: {name: empty}}\n\
         ---\n{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/12, 'fd00:10:96::/112']}}\n\
         ---\n{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default, annotations: {mesh: 'yes'}}, spec: {nodeName: n1, containers: []}, status: {phase: Running, podIP: 10.1.0.1}}\n\
         ---\n{apiVersion: v1, kind: Pod, metadata: {name: elsewhere, namespace: default}, spec: {nodeName: n2, containers: []}, status: {phase: Running, podIP: 10.1.0.2}}\n",
    )
    .unwrap();
    let (_folder, path) = file(&api.kubeconfig());
    let watched = Watched::with(KubeOptions { pod_annotations: vec!["mesh".into()], ..options(&path) }).await;
    let snapshot = watched.snapshot();
    assert_eq!(snapshot.nodes.keys().map(|name| &**name).collect::<Vec<_>>(), ["n1"]);
    let node = snapshot.nodes.get("n1").unwrap();
    assert_eq!((node.zone.as_deref(), node.eligible), (Some("z1"), false));
    assert!(snapshot.namespaces.contains_key("empty"));
    assert_eq!(snapshot.service_cidrs.get("kubernetes").unwrap().ranges.len(), 2);
    assert_eq!(snapshot.pods.len(), 1);
    assert_eq!(snapshot.pods.get(&ObjectKey::new("default", "p")).unwrap().annotations.len(), 1);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_and_harms_no_other() {
    let api = cluster();
    let bad = json!({"metadata": {"namespace": "default", "name": "bad"}, "spec": {"ports": "eighty"}});
    api.apply_raw(Resource::Service, "default", "bad", bad.clone());
    let watched = Watched::new(&api).await;
    watched.until_services("a[10.1.0.1] b").await;
    let named = |health: &shunt_model::source::SourceHealth| {
        health.problems.iter().any(|problem| problem.object.as_deref() == Some("Service default/bad"))
    };
    watched.until_health("told", named).await;
    // A good one that turns bad stays as it was, and what comes after it is seen.
    let mut broken = bad;
    broken["metadata"]["name"] = json!("b");
    api.apply_raw(Resource::Service, "default", "b", broken);
    api.apply_raw(Resource::Service, "default", "nameless", json!(7));
    api.apply_object(service("c", 3)).unwrap();
    watched.until_services("a[10.1.0.1] b c").await;
    assert!(api.delete(Resource::Service, "default", "bad"));
    watched.until_health("mended", |health| !named(health)).await;
}

#[tokio::test]
async fn events_are_written_where_kubectl_describe_finds_them() {
    let api = cluster();
    let (_folder, path) = file(&api.kubeconfig());
    let starting = shunt_model::source::kube::start(options(&path)).await.unwrap();
    let event = |kind: &'static str, namespace: &str| NewEvent {
        kind,
        namespace: namespace.to_owned(),
        name: "x".to_owned(),
        warning: kind == "Service",
        reason: "Starting".to_owned(),
        action: "StartKubeProxy".to_owned(),
        note: "é".repeat(2_000),
    };
    starting.events.post(event("Node", "")).await.unwrap();
    starting.events.post(event("Service", "web")).await.unwrap();
    let events = api.events();
    let text =
        |event: usize, field: &str| events[event].pointer(field).and_then(|value| value.as_str().map(str::to_owned));
    assert_eq!(text(0, "/metadata/namespace").as_deref(), Some("default"));
    assert_eq!(text(0, "/regarding/kind").as_deref(), Some("Node"));
    assert_eq!(text(0, "/type").as_deref(), Some("Normal"));
    assert_eq!(text(1, "/metadata/namespace").as_deref(), Some("web"));
    assert_eq!(text(1, "/type").as_deref(), Some("Warning"));
    assert_eq!(text(1, "/note").unwrap().len(), 1024);
    api.deny(&[Resource::Event]);
    let refused = starting.events.post(event("Node", "")).await.unwrap_err();
    assert!(refused.to_string().contains("allow create of events"), "{refused}");
}
