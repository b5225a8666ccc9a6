//! Each fault of an API server: the view ends right, nothing is lost and nothing vanishes on the way.

use std::time::Duration;

use lab::api::{Action, FakeApi, Fault, Match, Resource, Verb};
use shunt_model::source::kube;

use super::watched::{Watched, cluster, file, options, service, slice};

/// One fault in the way of the first lists and watches, and again in the way of changes.
async fn check(action: Action) {
    for verb in [Verb::List, Verb::Watch] {
        let api = cluster();
        for resource in [Resource::Service, Resource::EndpointSlice] {
            api.faults().script(resource, verb, 2, action.clone());
        }
        let watched = Watched::new(&api).await;
        watched.until_services("a[10.1.0.1] b").await;
        change(&api, &watched, "c", 3).await;
        // Now in the middle: every open connection ends, and what follows goes wrong.
        for resource in [Resource::Service, Resource::EndpointSlice] {
            api.faults().script(resource, verb, 2, action.clone());
        }
        api.drop_watches();
        change(&api, &watched, "d", 4).await;
        api.compact();
        api.drop_watches();
        change(&api, &watched, "e", 5).await;
        assert_eq!(watched.lost(), ["c", "d", "e"].map(str::to_owned).into(), "{action:?} at {verb:?}");
        watched.until_health("reachable", |health| health.unreachable.is_none()).await;
        assert!(api.faults().fired() >= 2, "{action:?} at {verb:?} never happened");
    }
}

/// A Service comes with an endpoint, changes it, and goes.
async fn change(api: &FakeApi, watched: &Watched, name: &str, number: u32) {
    api.apply_object(service(name, number)).unwrap();
    api.apply_object(slice(name, &["10.1.0.7"])).unwrap();
    watched.until_services(&format!("a[10.1.0.1] b {name}[10.1.0.7]")).await;
    api.apply_object(slice(name, &["10.1.0.8"])).unwrap();
    watched.until_services(&format!("a[10.1.0.1] b {name}[10.1.0.8]")).await;
    assert!(api.delete(Resource::EndpointSlice, "default", &format!("{name}-x")));
    assert!(api.delete(Resource::Service, "default", name));
    watched.until_services("a[10.1.0.1] b").await;
}

#[tokio::test]
async fn errors() {
    for (code, reason) in [(500, "InternalError"), (504, "Timeout"), (410, "Expired"), (401, "Unauthorized")] {
        check(Action::Status { code, reason, retry_after: 0 }).await;
    }
}

#[tokio::test]
async fn garbage() {
    check(Action::Garbage("<html>a proxy on the way</html>")).await;
    check(Action::Garbage("{}")).await;
    check(Action::Garbage("{\"kind\":\"List\",\"metadata\":{\"resourceVersion\":\"1\"},\"items\":[]}")).await;
    check(Action::Garbage("{\"type\":\"ADDED\",\"object\":\n{\"type\":\"MODIFIED\"}\n")).await;
}

#[tokio::test]
async fn broken_connections() {
    check(Action::Reset).await;
    for bytes in [0, 1, 100, 700] {
        check(Action::Truncate(bytes)).await;
    }
}

#[tokio::test]
async fn tiny_pieces() {
    check(Action::Slow { bytes: 3, delay: Duration::from_micros(20) }).await;
}

#[tokio::test]
async fn watches_that_end_or_lose_their_history() {
    check(Action::CloseAfter(0)).await;
    check(Action::CloseAfter(1)).await;
    check(Action::GoneInStream).await;
    check(Action::ErrorInStream(500)).await;
}

#[tokio::test]
async fn events_told_twice() {
    check(Action::Duplicate).await;
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let api = cluster();
    let action = Action::Status { code: 429, reason: "TooManyRequests", retry_after: 1 };
    api.faults().script(Resource::Service, Verb::List, 1, action);
    let begun = std::time::Instant::now();
    let watched = Watched::new(&api).await;
    watched.until_services("a[10.1.0.1] b").await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_old_list_does_not_take_anything_away() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    change(&api, &watched, "c", 3).await;
    // The server no longer has the history, so the client lists again; this server is behind.
    api.faults().script(Resource::Service, Verb::List, 2, Action::StaleList);
    api.faults().script(
        Resource::Service,
        Verb::Watch,
        1,
        Action::Status { code: 410, reason: "Expired", retry_after: 0 },
    );
    api.drop_watches();
    change(&api, &watched, "d", 4).await;
    assert_eq!(watched.lost(), ["c", "d"].map(str::to_owned).into());
}

#[tokio::test]
async fn an_outage_leaves_the_view_and_is_told_of() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    api.stop_listening();
    watched.until_health("unreachable", |health| health.unreachable.is_some()).await;
    let told = watched.health();
    assert!(told.unreachable.as_ref().unwrap().contains("the last good view stays in force"), "{told:?}");
    watched.until_services("a[10.1.0.1] b").await;
    // Meanwhile the cluster goes on, behind our back; history may be lost over it.
    api.apply_object(service("c", 3)).unwrap();
    assert!(api.delete(Resource::Service, "default", "b"));
    api.compact();
    api.resume().unwrap();
    watched.until_services("a[10.1.0.1] c").await;
    watched.until_health("reachable", |health| health.unreachable.is_none()).await;
    assert_eq!(watched.lost(), ["b".to_owned()].into());
}

#[tokio::test]
async fn a_server_that_starts_may_refuse_at_first_what_it_allows() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    api.deny(&[Resource::Service, Resource::EndpointSlice, Resource::Node, Resource::Namespace]);
    api.drop_watches();
    watched.until_health("refused", |health| health.unreachable.is_some()).await;
    let told = watched.health();
    let reason = told.unreachable.as_ref().unwrap();
    assert!(reason.contains("has just started refuses at first what it allows, so this is retried"), "{reason}");
    assert!(!reason.contains("ClusterRole"), "{reason}");
    assert_eq!(told.problems, [], "one outage is told of once");
    api.deny(&[]);
    watched.until_health("allowed", |health| health.unreachable.is_none()).await;
    assert!(watched.lost().is_empty());
}

#[tokio::test]
async fn a_server_that_comes_up_late_is_waited_for() {
    let api = cluster();
    api.stop_listening();
    let (_folder, path) = file(&api.kubeconfig());
    let starting = kube::start(options(&path)).await.unwrap();
    let mut health = starting.health.clone();
    let told = health.wait_for(|health| health.unreachable.is_some()).await.unwrap().clone();
    assert!(told.unreachable.as_ref().unwrap().contains("the cluster is not known yet"), "{told:?}");
    api.resume().unwrap();
    let source = starting.complete().await.unwrap();
    assert_eq!(source.snapshots.borrow().services.len(), 2);
}

#[tokio::test]
async fn a_bookmark_moves_a_quiet_watch_past_lost_history() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    // Pods are not followed, so Services and slices stay quiet while versions move on.
    for number in 0..20 {
        let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("x{number}")}});
        api.apply_object(node).unwrap();
    }
    api.bookmark();
    let lists = || {
        let all = api.requests().into_iter();
        all.filter(|request| (request.resource, request.verb) == (Resource::Service, Verb::List)).count()
    };
    // What comes after the bookmark on the same stream has been read behind it.
    change(&api, &watched, "c", 3).await;
    api.bookmark();
    change(&api, &watched, "d", 4).await;
    let before = lists();
    api.drop_watches();
    change(&api, &watched, "e", 5).await;
    assert_eq!(lists(), before, "a watch that breaks goes on where it was");
}

#[tokio::test]
async fn one_fault_of_one_resource_leaves_the_others_alone() {
    let api = cluster();
    let watched = Watched::new(&api).await;
    let on = Match { resource: Some(Resource::Service), verb: None };
    api.faults().add(Fault { on, times: None, action: Action::Reset });
    api.drop_watches();
    api.apply_object(slice("b", &["10.1.0.2"])).unwrap();
    watched.until_services("a[10.1.0.1] b[10.1.0.2]").await;
    api.apply_object(service("c", 3)).unwrap();
    api.faults().clear();
    watched.until_services("a[10.1.0.1] b[10.1.0.2] c").await;
}
