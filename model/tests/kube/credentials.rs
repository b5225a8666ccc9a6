//! How the client proves to the API server who it is, and which error follows when the server refuses it.

use std::os::unix::fs::PermissionsExt as _;

use lab::api::{Auth, Resource, TOKEN};
use shunt_model::source::kube::{self, KubeOptions};

use super::watched::{Watched, cluster, file, options, service};

#[tokio::test]
async fn certificates_token_files_and_programs_are_taken() {
    let api = cluster();
    let (folder, path) = file(&api.kubeconfig_with(Auth::Certificate));
    Watched::with(options(&path)).await.until_services("a[10.1.0.1] b").await;

    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let (_folder, path) = file(&api.kubeconfig_with(Auth::TokenFile(&token)));
    Watched::with(options(&path)).await.until_services("a[10.1.0.1] b").await;

    let program = folder.path().join("credential");
    let answer = format!(
        r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{TOKEN}"}}}}"#
    );
    std::fs::write(&program, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_folder, path) = file(&api.kubeconfig_with(Auth::Exec(&program)));
    Watched::with(options(&path)).await.until_services("a[10.1.0.1] b").await;
}

#[tokio::test]
async fn a_rotated_token_is_read_from_its_file() {
    let api = cluster();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let (_folder, path) = file(&api.kubeconfig_with(Auth::TokenFile(&token)));
    let watched = Watched::with(options(&path)).await;
    api.set_tokens(&["n3w"]);
    watched.until_health("refused", |health| health.unreachable.is_some()).await;
    let reason = watched.health().unreachable.unwrap();
    assert!(reason.contains("credentials are not accepted"), "{reason}");
    assert!(reason.contains("the last good view stays in force"), "{reason}");
    api.apply_object(service("c", 3)).unwrap();
    std::fs::write(&token, "n3w").unwrap();
    watched.until_services("a[10.1.0.1] b c").await;
    watched.until_health("accepted", |health| health.unreachable.is_none()).await;
    assert!(watched.lost().is_empty());
}

#[tokio::test]
async fn what_is_forbidden_is_named_with_what_to_allow() {
    let api = cluster();
    api.deny(&[Resource::EndpointSlice, Resource::Pod]);
    let (_folder, path) = file(&api.kubeconfig());
    let starting = kube::start(KubeOptions { all_pods: true, ..options(&path) }).await.unwrap();
    let mut health = starting.health.clone();
    let refused = health.wait_for(|health| health.unreachable.is_some()).await.unwrap().clone();
    let reason = refused.unreachable.unwrap();
    assert!(reason.contains("endpointslices.discovery.k8s.io is forbidden"), "{reason}");
    assert!(reason.contains("allow get, list and watch of endpointslices in the ClusterRole"), "{reason}");
    assert!(reason.contains("the cluster is not known yet"), "{reason}");
    // kube-proxy's own role lacks Pods: that is reported, and delays nothing.
    api.deny(&[Resource::Pod]);
    let source = starting.complete().await.unwrap();
    assert_eq!(source.snapshots.borrow().services.len(), 2);
    let mut health = source.health.clone();
    let told = health.wait_for(|health| health.unreachable.is_none()).await.unwrap().clone();
    let problem = told.problems.iter().find(|problem| problem.kind == "pod").unwrap();
    assert!(problem.reason.contains("pods is forbidden"), "{problem}");
}

async fn refused(text: &str) -> String {
    let (_folder, path) = file(text);
    let error = kube::start(options(&path)).await.err().unwrap();
    format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
}

#[tokio::test]
async fn a_wrong_kubeconfig_is_refused_at_once_with_its_name() {
    assert!(refused("}{").await.contains("kubeconfig"));
    assert!(refused("apiVersion: v1\nkind: Config\ncurrent-context: nowhere\n").await.contains("context"));
    let missing = KubeOptions { kubeconfig: Some("/nonexistent/kubeconfig".into()), ..KubeOptions::default() };
    let error = kube::start(missing).await.err().unwrap().to_string();
    assert!(error.contains("/nonexistent/kubeconfig") && error.contains("--kubeconfig"), "{error}");
    let nowhere = kube::start(KubeOptions::default()).await.err().unwrap().to_string();
    assert!(nowhere.contains("outside of a cluster give --kubeconfig"), "{nowhere}");
    let api = cluster();
    let (_folder, path) = file(&api.kubeconfig());
    let master = kube::start(KubeOptions { master: Some("not a url".into()), ..options(&path) }).await.err().unwrap();
    assert!(master.to_string().contains("--master \"not a url\" is no URL"), "{master}");
}

#[tokio::test]
async fn an_authority_that_did_not_sign_the_server_is_told_of() {
    let (api, other) = (cluster(), cluster());
    let text = api.kubeconfig().replace(&api.address().to_string(), &other.address().to_string());
    let (_folder, path) = file(&text);
    let starting = kube::start(options(&path)).await.unwrap();
    let mut health = starting.health.clone();
    let told = health.wait_for(|health| health.unreachable.is_some()).await.unwrap().clone();
    assert!(told.unreachable.as_ref().unwrap().contains("certificate"), "{told:?}");
}
