//! How the client proves to the API server who it is, and which error follows when the server refuses it.

use std::os::unix::fs::PermissionsExt as _;

use lab::api::{Auth, FakeApi, Resource, Signer, TOKEN};
use serde_json::{Value, json};
use shunt_model::source::kube::{self, KubeOptions, KubeconfigSetting};
use shunt_model::with_causes;

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

/// Why a kubeconfig with this text is refused, with all causes.
async fn refused(text: &str) -> String {
    let (_folder, path) = file(text);
    let error = kube::start(options(&path)).await.err().unwrap();
    with_causes(&error).replace(&path.display().to_string(), "F")
}

#[tokio::test]
async fn a_wrong_kubeconfig_is_refused_at_once_with_its_name() {
    let begin = "the kubeconfig F cannot be used; correct it, or name another with --kubeconfig: ";
    assert!(refused("}{").await.starts_with(begin));
    let missing = KubeOptions { kubeconfig: Some("/nonexistent/kubeconfig".into()), ..KubeOptions::default() };
    let error = kube::start(missing).await.err().unwrap().to_string();
    assert!(error.contains("/nonexistent/kubeconfig") && error.contains("--kubeconfig"), "{error}");
    let api = cluster();
    let (_folder, path) = file(&api.kubeconfig());
    let master = kube::start(KubeOptions { master: Some("not a url".into()), ..options(&path) }).await.err().unwrap();
    let told = with_causes(&master);
    assert_eq!(told, "--master: \"not a url\" is no URL; give one such as https://192.0.2.1:6443");
    // The first half of a character: the library panics.
    std::fs::write(&path, [0xff, 0xfe, 0x7b, 0x00, 0x0a]).unwrap();
    let error = kube::start(options(&path)).await.err().unwrap();
    assert!(with_causes(&error).contains("cannot be used"), "{error}");
}

#[tokio::test]
async fn a_broken_kubeconfig_is_not_shown() {
    let begin = "the kubeconfig F cannot be used; correct it, or name another with --kubeconfig: it is no kubeconfig in \
                 YAML (see line ";
    let end = "); `kubectl config view --kubeconfig FILE` says what is wrong";
    for text in [
        "users:\n- name: u\n  user:\n    token: [s3cret\n",
        "users:\n- name: u\n  user:\n    token: {s3cret: s3cret}\n",
        "users:\n- name: u\n  user: s3cret\n",
        "users:\n- name: u\n  user:\n    client-key-data: \"s3cret\n",
        "users:\n- name: u\n  user:\n    token: s3cret\n   token: s3cret\n",
    ] {
        let told = refused(text).await;
        assert!(told.starts_with(begin) && told.ends_with(end), "{told}");
        assert!(!told.contains("s3cret"), "{told}");
    }
}

#[test]
fn a_proxy_of_the_environment_is_not_used() {
    // A process has one environment, so the test that is to hold there runs in another one.
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "credentials::what_kubectl_takes_is_taken"]);
    for name in ["HTTPS_PROXY", "https_proxy"] {
        for proxy in ["http://192.0.2.1:3128", "no url at all"] {
            let out = again.env_remove("HTTPS_PROXY").env_remove("https_proxy").env(name, proxy).output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && text.contains("1 passed"), "{name}={proxy}: {text}");
        }
    }
}

#[tokio::test]
async fn where_a_kubeconfig_can_be_named_is_said_as_it_is() {
    let nowhere = |kubeconfig_setting| KubeOptions { kubeconfig_setting, ..KubeOptions::default() };
    let flag = kube::start(nowhere(KubeconfigSetting::Flag)).await.err().unwrap().to_string();
    assert_eq!(flag, "no credentials of a pod's service account are here; outside of a cluster give --kubeconfig");
    let document = kube::start(nowhere(KubeconfigSetting::Document)).await.err().unwrap().to_string();
    assert_eq!(
        document,
        "no credentials of a pod's service account are here; outside of a cluster give clientConnection.kubeconfig in \
         the KubeProxyConfiguration (beside it the flag --kubeconfig is ignored)"
    );
}

/// A kubeconfig of the API server, changed.
fn changed(api: &FakeApi, change: impl FnOnce(&mut Value)) -> String {
    let mut kubeconfig: Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    change(&mut kubeconfig);
    kubeconfig.to_string()
}

#[tokio::test]
async fn what_a_context_names_must_be_there() {
    let api = cluster();
    let begin = "the kubeconfig F cannot be used; correct it, or name another with --kubeconfig: ";
    let rows: [(&str, Value, &str); 7] = [
        (
            "/current-context",
            json!("x"),
            "its current-context \"x\" is none of its contexts; correct the name, or add the context",
        ),
        ("/current-context", json!(""), "it has no current-context; set it to the name of one of its contexts"),
        (
            "/contexts/0/context/user",
            json!("x"),
            "its context \"lab\" names the user \"x\", which it does not have; add the user",
        ),
        ("/contexts/0/context/user", json!(""), "its context \"lab\" names no user; add one under user:"),
        (
            "/contexts/0/context/cluster",
            json!("x"),
            "its context \"lab\" names the cluster \"x\", which it does not have; add the cluster",
        ),
        (
            "/clusters/0/cluster/server",
            json!("ftp://x"),
            "the server of its cluster \"lab\": \"ftp://x\" is neither https nor http; give a URL such as https://192.0.2.1:6443",
        ),
        (
            "/clusters/0/cluster/proxy-url",
            json!("http://me:s3cret@10.0.0.9:3128"),
            "its cluster \"lab\" has a proxy-url, but shunt reaches an API server without a proxy only; remove proxy-url",
        ),
    ];
    for (field, value, expected) in rows {
        let (parent, name) = field.rsplit_once('/').unwrap();
        let text = changed(&api, |kubeconfig| kubeconfig.pointer_mut(parent).unwrap()[name] = value);
        assert_eq!(refused(&text).await, format!("{begin}{expected}"));
    }
}

#[tokio::test]
async fn what_kubectl_takes_is_taken() {
    let api = cluster();
    let taken = async |text: String| {
        let (_folder, path) = file(&text);
        Watched::with(options(&path)).await.until_services("a[10.1.0.1] b").await;
    };
    // A server without a scheme.
    taken(changed(&api, |kubeconfig| {
        kubeconfig["clusters"][0]["cluster"]["server"] = json!(api.address().to_string());
    }))
    .await;
    // A line end behind the token, in the file itself and in another one.
    taken(changed(&api, |kubeconfig| kubeconfig["users"][0]["user"]["token"] = json!(format!("{TOKEN}\n")))).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    taken(api.kubeconfig_with(Auth::TokenFile(&token))).await;
    // base64 with line ends, and empty fields beside.
    let mut wrapped: Value = serde_json::from_str(&api.kubeconfig_with(Auth::Certificate)).unwrap();
    for field in [
        "/clusters/0/cluster/certificate-authority-data",
        "/users/0/user/client-certificate-data",
        "/users/0/user/client-key-data",
    ] {
        let data = wrapped.pointer_mut(field).unwrap();
        let lines: Vec<&[u8]> = data.as_str().unwrap().as_bytes().chunks(76).collect();
        *data = json!(format!("{}\n", String::from_utf8(lines.join(&b"\n"[..])).unwrap()));
    }
    for field in ["token", "tokenFile", "username", "client-certificate", "client-key"] {
        wrapped["users"][0]["user"][field] = json!("");
    }
    wrapped["clusters"][0]["cluster"]["certificate-authority"] = json!("");
    taken(wrapped.to_string()).await;
}

#[tokio::test]
async fn an_authority_that_cannot_be_used_does_not_spoil_the_others() {
    let api = cluster();
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("ca.crt");
    let with_bundle = changed(&api, |kubeconfig| {
        let cluster = kubeconfig["clusters"][0]["cluster"].as_object_mut().unwrap();
        cluster.remove("certificate-authority-data");
        cluster.insert("certificate-authority".to_owned(), json!(bundle));
    });
    let unusable = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
    std::fs::write(&bundle, format!("{unusable}{}", api.ca_pem())).unwrap();
    let (_folder, path) = file(&with_bundle);
    Watched::with(options(&path)).await.until_services("a[10.1.0.1] b").await;
    std::fs::write(&bundle, unusable).unwrap();
    let told = refused(&with_bundle).await;
    let expected = "the credentials of the API server cannot be used: no certificate of the certificate authority can be \
                    used; give certificates of X.509 version 3: ";
    assert!(told.starts_with(expected), "{told}");
}

#[tokio::test]
async fn a_server_may_be_its_own_authority() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let signed = |signer| FakeApi::start_signed(listen, signer).unwrap();
    let [api, other, expired] = [Signer::Itself, Signer::Itself, Signer::ItselfLongAgo].map(signed);
    for object in [service("a", 1), service("b", 2)] {
        api.apply_object(object).unwrap();
    }
    let (_folder, path) = file(&api.kubeconfig());
    Watched::with(options(&path)).await.until_services("a b").await;
    // Another certificate, and another name than those in it.
    for (text, expected) in [
        (
            other.kubeconfig().replace(&other.address().to_string(), &api.address().to_string()),
            "it is an authority's own",
        ),
        (api.kubeconfig().replace("127.0.0.1", "localhost"), "it is for other names and addresses"),
        (expired.kubeconfig(), "it has expired"),
    ] {
        let told = unreachable(&text).await;
        assert!(told.contains("the certificate of the API server is not accepted, because"), "{told}");
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("answer"), "{told}");
    }
}

/// What is told of a cluster that cannot be followed.
async fn unreachable(text: &str) -> String {
    let (_folder, path) = file(text);
    let starting = kube::start(options(&path)).await.unwrap();
    let mut health = starting.health.clone();
    let told = health.wait_for(|health| health.unreachable.is_some()).await.unwrap().clone();
    told.unreachable.unwrap()
}

#[tokio::test]
async fn a_credential_plug_in_that_is_missing_or_fails_is_named() {
    let api = cluster();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no-such-plugin");
    let mut kubeconfig: Value = serde_json::from_str(&api.kubeconfig_with(Auth::Exec(&missing))).unwrap();
    kubeconfig["users"][0]["user"]["exec"]["installHint"] = json!("get it from example.test");
    let told = refused(&kubeconfig.to_string()).await.replace(&folder.path().display().to_string(), "D");
    assert_eq!(
        told,
        "the credentials of the API server cannot be used: the credential plug-in \"D/no-such-plugin\" cannot be run; \
         install it, or name it with its full path under exec.command of the kubeconfig (get it from example.test): No \
         such file or directory (os error 2)"
    );
    let ends = "the credentials of the API server cannot be used: the credential plug-in \"D/plug-in\" ended with exit \
                status: 3; run it by hand to see why";
    let wrong = "the credentials of the API server cannot be used: the credential plug-in \"D/plug-in\" did not give an \
                 ExecCredential; run it by hand: it must write one as JSON to stdout, and nothing else";
    // It has neither the daemon's stdin nor its stderr.
    let asks = "test ! -t 0 && read answer; test ! -t 2 && exit 3";
    let program = folder.path().join("plug-in");
    for (script, expected) in [
        ("echo s3cret; echo s3cret >&2; exit 3", ends),
        ("exit 3", ends),
        (asks, ends),
        ("echo Your token is: s3cret", wrong),
        ("echo '{\"status\": {\"token\": [\"s3cret\"]}}'", wrong),
    ] {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let told = refused(&api.kubeconfig_with(Auth::Exec(&program))).await;
        assert_eq!(told.replace(&folder.path().display().to_string(), "D"), expected, "{script}");
    }
    kubeconfig["users"][0]["user"]["exec"]["interactiveMode"] = json!("Always");
    assert_eq!(
        refused(&kubeconfig.to_string()).await,
        "the kubeconfig F cannot be used; correct it, or name another with --kubeconfig: the credential plug-in of its \
         user \"lab\" has to ask someone (interactiveMode: Always), which a daemon cannot; set IfAvailable or Never, or \
         give the user other credentials"
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_read_again_are_told_of_beside_the_refusal() {
    let api = cluster();
    let (_folder, path) = file(&api.kubeconfig());
    let watched = Watched::with(options(&path)).await;
    std::fs::write(&path, "}{").unwrap();
    api.set_tokens(&["n3w"]);
    let is_told = |reason: &String| {
        reason.contains("credentials are not accepted")
            && reason.contains("and the credentials cannot be read again, so the last ones are used: the kubeconfig")
    };
    watched.until_health("told", |health| health.unreachable.as_ref().is_some_and(is_told)).await;
    std::fs::write(&path, api.kubeconfig_with(Auth::Token("n3w"))).unwrap();
    watched.until_health("accepted", |health| health.unreachable.is_none()).await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_told_of_at_once() {
    let api = cluster();
    let mut kubeconfig: Value = serde_json::from_str(&api.kubeconfig_with(Auth::Certificate)).unwrap();
    kubeconfig["users"][0]["user"]["client-key-data"] = json!("");
    let told = refused(&kubeconfig.to_string()).await;
    let begin =
        "the credentials of the API server cannot be used: check the certificates and keys of the kubeconfig's user: ";
    assert!(told.starts_with(begin) && told.contains("client key"), "{told}");
}

/// A server at its Service's address, where nothing listens, and what a daemon may remember.
fn behind_its_service(api: &FakeApi, remembered: &str) -> (tempfile::TempDir, KubeOptions) {
    let text = api.kubeconfig().replace(&api.address().to_string(), "127.0.0.9:1");
    let (folder, path) = file(&text);
    std::fs::write(folder.path().join("api-servers.json"), remembered).unwrap();
    let options = KubeOptions { state_dir: Some(folder.path().to_owned()), ..options(&path) };
    (folder, options)
}

#[tokio::test]
async fn remembered_endpoints_are_tried_after_the_service_address() {
    let api = cluster();
    // The first of them is where the API server once was.
    let remembered = format!(r#"{{"service":["127.0.0.9"],"endpoints":["127.0.0.1:1","{}"]}}"#, api.address());
    let (_folder, options) = behind_its_service(&api, &remembered);
    let watched = Watched::with(options).await;
    watched.until_services("a[10.1.0.1] b").await;
    watched.until_health("reachable", |health| health.unreachable.is_none()).await;
}

#[tokio::test]
async fn what_is_remembered_is_no_way_around_a_certificate() {
    let (api, other) = (cluster(), cluster());
    // Another cluster's server, with the right address and the wrong authority.
    let remembered = format!(r#"{{"service":["127.0.0.9"],"endpoints":["{}"]}}"#, other.address());
    let (_folder, options) = behind_its_service(&api, &remembered);
    let starting = kube::start(options).await.unwrap();
    let mut health = starting.health.clone();
    let is_refused = |reason: &String| reason.contains("the certificate of the API server is not accepted");
    health.wait_for(|health| health.unreachable.as_ref().is_some_and(is_refused)).await.unwrap();
    assert_eq!(other.requests(), [], "no token goes to a server that is not the one");
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
