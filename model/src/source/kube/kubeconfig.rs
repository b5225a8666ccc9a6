//! Reads a kubeconfig as kubectl does: what kubectl takes is taken, what it refuses is refused by name.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use kube::Config;
use kube::config::{
    AuthInfo, Cluster, ExecConfig, ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::transport::panic_text;

/// What is wrong with a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigProblem {
    /// It cannot be read, or a file that it names cannot.
    #[error(transparent)]
    Read(Box<KubeconfigError>),
    /// It is not YAML, or not that of a kubeconfig. The text is not shown: it may be a token or a key.
    #[error("it is no kubeconfig in YAML{}; `kubectl config view --kubeconfig FILE` says what is wrong", at_line(*.0))]
    Yaml(Option<u64>),
    /// No context is chosen.
    #[error("it has no current-context; set it to the name of one of its contexts")]
    NoContext,
    /// The chosen context does not exist.
    #[error("its current-context {0:?} is none of its contexts; correct the name, or add the context")]
    Context(String),
    /// The context's cluster does not exist.
    #[error("its context {context:?} names the cluster {cluster:?}, which it does not have; add the cluster")]
    Cluster {
        /// The chosen context.
        context: String,
        /// The name that it gives.
        cluster: String,
    },
    /// The context's user does not exist: going on without credentials would only hide the mistake.
    #[error("its context {context:?} names the user {user:?}, which it does not have; add the user")]
    User {
        /// The chosen context.
        context: String,
        /// The name that it gives.
        user: String,
    },
    /// The context names no user, and the server is not one that needs none.
    #[error("its context {0:?} names no user; add one under user:")]
    NoUser(String),
    /// The authority's file has no certificate.
    #[error("its cluster {0:?} has a certificate authority without a certificate; give PEM with BEGIN CERTIFICATE")]
    NoAuthority(String),
    /// The server's URL is none.
    #[error("the server of its cluster {cluster:?}")]
    Server {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        #[source]
        source: ServerUrlError,
    },
    /// The connection would go through a proxy.
    #[error(
        "its cluster {0:?} has a proxy-url, but shunt reaches an API server without a proxy only; remove proxy-url"
    )]
    Proxy(String),
    /// A daemon has nobody to ask.
    #[error(
        "the credential plug-in of its user {0:?} has to ask someone (interactiveMode: Always), which a daemon cannot; \
         set IfAvailable or Never, or give the user other credentials"
    )]
    Interactive(String),
    /// The library that reads it failed.
    #[error("the library that reads it panicked: {0}")]
    Panicked(String),
}

fn at_line(line: Option<u64>) -> String {
    line.map(|line| format!(" (see line {line})")).unwrap_or_default()
}

impl From<KubeconfigError> for KubeconfigProblem {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others show nothing of what the file contains")]
    fn from(error: KubeconfigError) -> Self {
        match error {
            KubeconfigError::Parse(error) => {
                let line = error.location().map(|location| location.line());
                Self::Yaml(line.filter(|line| *line > 0))
            }
            other => Self::Read(Box::new(other)),
        }
    }
}

/// Why a server's URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerUrlError {
    /// Nothing that can be a URL.
    #[error("{0:?} is no URL; give one such as https://192.0.2.1:6443")]
    NotAUrl(String),
    /// Another protocol.
    #[error("{0:?} is neither https nor http; give a URL such as https://192.0.2.1:6443")]
    Scheme(String),
    /// A path without a scheme.
    #[error("{0:?} has a path but no scheme; give a URL such as https://192.0.2.1:6443/path, or host:port alone")]
    PathWithoutScheme(String),
}

/// The server's URL as kubectl understands it: without a scheme it is `https` if anything is said about TLS.
pub(super) fn server_url(text: &str, with_tls: bool) -> Result<http::Uri, ServerUrlError> {
    let text = text.trim();
    let not_a_url = || ServerUrlError::NotAUrl(without_userinfo(text));
    let given = text.contains("://");
    let full = match (given, with_tls) {
        (true, _) => text.to_owned(),
        (false, true) => format!("https://{text}"),
        (false, false) => format!("http://{text}"),
    };
    let url: http::Uri = full.parse().map_err(|_invalid: http::uri::InvalidUri| not_a_url())?;
    if url.host().is_none_or(str::is_empty) {
        return Err(not_a_url());
    }
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(ServerUrlError::Scheme(without_userinfo(text)));
    }
    if !given && !matches!(url.path(), "" | "/") {
        return Err(ServerUrlError::PathWithoutScheme(without_userinfo(text)));
    }
    Ok(url)
}

/// Messages are shown to everyone; a password in a URL is not.
fn without_userinfo(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
            format!("{scheme}{after}")
        }
        None => text.to_owned(),
    }
}

/// Reads the file; `master` replaces the server that it names.
pub(super) fn read(path: &Path, master: Option<&str>) -> Result<Config, KubeconfigProblem> {
    // A file in UTF-16 that ends in the middle of a character makes the library panic (kube 5.0).
    match catch_unwind(AssertUnwindSafe(|| chosen(path, master))) {
        Ok(outcome) => outcome,
        Err(panic) => Err(KubeconfigProblem::Panicked(panic_text(panic.as_ref()))),
    }
}

fn chosen(path: &Path, master: Option<&str>) -> Result<Config, KubeconfigProblem> {
    let mut file = Kubeconfig::read_from(path)?;
    let folder = path.parent().unwrap_or(path);
    let context_name = given(&file.current_context).ok_or(KubeconfigProblem::NoContext)?;
    let context = file.contexts.iter().find(|named| named.name == context_name);
    let context = context.and_then(|named| named.context.clone());
    let context = context.ok_or_else(|| KubeconfigProblem::Context(context_name.clone()))?;
    let (cluster_name, user_name) = (context.cluster.clone(), given(&context.user));

    let user = match &user_name {
        None => AuthInfo::default(),
        Some(user) => {
            let named = file.auth_infos.iter_mut().find(|named| named.name == *user);
            let unknown = || KubeconfigProblem::User { context: context_name.clone(), user: user.clone() };
            let user = named.ok_or_else(unknown)?.auth_info.get_or_insert_default();
            tidy_user(user, folder);
            if let Some(plugin) = &mut user.exec {
                never_ask(plugin, context.user.as_deref().unwrap_or_default())?;
            }
            user.clone()
        }
    };
    let named = file.clusters.iter_mut().find(|named| named.name == cluster_name);
    let cluster = named.and_then(|named| named.cluster.as_mut());
    let unknown = || KubeconfigProblem::Cluster { context: context_name.clone(), cluster: cluster_name.clone() };
    let cluster = cluster.ok_or_else(unknown)?;
    tidy_cluster(cluster, folder);
    // A kubeconfig of a component that has --master may name no server.
    let server = master.map(str::to_owned).or_else(|| cluster.server.clone());
    let server = server.ok_or(KubeconfigError::MissingClusterUrl)?;
    let server = server_url(&server, speaks_of_tls(cluster, &user))
        .map_err(|source| KubeconfigProblem::Server { cluster: cluster_name.clone(), source })?;
    if user_name.is_none() && server.scheme_str() == Some("https") {
        return Err(KubeconfigProblem::NoUser(context_name));
    }
    cluster.server = Some(server.to_string());
    if cluster.proxy_url.is_some() {
        return Err(KubeconfigProblem::Proxy(cluster_name));
    }
    // With any value here the library does not look for one in the environment, which a node has for other programs.
    cluster.proxy_url = Some("http://unused.invalid".to_owned());
    let wanted = KubeConfigOptions { context: Some(context_name), cluster: None, user: None };
    // Nothing in it waits.
    let config = futures::FutureExt::now_or_never(Config::from_custom_kubeconfig(file, &wanted));
    let config = config.ok_or_else(|| KubeconfigProblem::Panicked("it waits for something".to_owned()))?;
    let mut config = config?;
    config.proxy_url = None;
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(KubeconfigProblem::NoAuthority(cluster_name));
    }
    Ok(config)
}

/// Otherwise the program would read the daemon's stdin, and write to its stderr past the log.
fn never_ask(plugin: &mut ExecConfig, user: &str) -> Result<(), KubeconfigProblem> {
    match plugin.interactive_mode.replace(ExecInteractiveMode::Never) {
        Some(ExecInteractiveMode::Always) => Err(KubeconfigProblem::Interactive(user.to_owned())),
        Some(ExecInteractiveMode::Never | ExecInteractiveMode::IfAvailable) | None => Ok(()),
    }
}

fn speaks_of_tls(cluster: &Cluster, user: &AuthInfo) -> bool {
    cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify == Some(true)
        || user.client_certificate.is_some()
        || user.client_certificate_data.is_some()
}

/// An empty text is the same as none (client-go).
fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.trim().is_empty())
}

/// A path that was empty, which the library has taken for the kubeconfig's folder.
fn given_path(path: &Option<String>, folder: &Path) -> Option<String> {
    given(path).filter(|path| Path::new(path).components().ne(folder.components()))
}

fn tidy_cluster(cluster: &mut Cluster, folder: &Path) {
    cluster.certificate_authority = given_path(&cluster.certificate_authority, folder);
    for text in [
        &mut cluster.server,
        &mut cluster.proxy_url,
        &mut cluster.tls_server_name,
        &mut cluster.certificate_authority_data,
    ] {
        *text = given(text);
    }
    unwrap_lines(&mut cluster.certificate_authority_data);
}

fn tidy_user(user: &mut AuthInfo, folder: &Path) {
    for path in [&mut user.token_file, &mut user.client_certificate, &mut user.client_key] {
        *path = given_path(path, folder);
    }
    for text in [&mut user.username, &mut user.client_certificate_data] {
        *text = given(text);
    }
    unwrap_lines(&mut user.client_certificate_data);
    if let Some(key) = user.client_key_data.take() {
        user.client_key_data = secret(without_spaces(key.expose_secret()));
    }
    if let Some(token) = user.token.take() {
        user.token = secret(token.expose_secret().trim().to_owned());
    }
}

fn secret(text: String) -> Option<SecretString> {
    (!text.is_empty()).then(|| SecretString::from(text))
}

/// base64 of other tools is wrapped at 64 or 76 columns; Go reads over the line ends.
fn unwrap_lines(base64: &mut Option<String>) {
    if let Some(text) = base64 {
        *text = without_spaces(text);
    }
}

fn without_spaces(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, with_tls: bool, expected: Result<&str, ServerUrlError>) {
        let url = server_url(text, with_tls).map(|url| url.to_string());
        assert_eq!(url, expected.map(str::to_owned), "{text}");
    }

    #[test]
    fn a_server_without_a_scheme_is_understood_as_kubectl_does() {
        check("https://192.0.2.1:6443", false, Ok("https://192.0.2.1:6443/"));
        check("192.0.2.1:6443", true, Ok("https://192.0.2.1:6443/"));
        check("192.0.2.1:6443\n", true, Ok("https://192.0.2.1:6443/"));
        check("192.0.2.1:6443", false, Ok("http://192.0.2.1:6443/"));
        check("[fd00::1]:6443", true, Ok("https://[fd00::1]:6443/"));
        check("api.example.test", true, Ok("https://api.example.test/"));
        check("https://rancher.test/k8s/clusters/c-1", true, Ok("https://rancher.test/k8s/clusters/c-1"));
        for text in ["", "not a url", "https://", "https://:6443", "host:port:port"] {
            check(text, true, Err(ServerUrlError::NotAUrl(text.to_owned())));
        }
        check("unix:///run/api", true, Err(ServerUrlError::NotAUrl("unix:///run/api".to_owned())));
        check("ftp://api.test", true, Err(ServerUrlError::Scheme("ftp://api.test".to_owned())));
        check("api.test/path", true, Err(ServerUrlError::PathWithoutScheme("api.test/path".to_owned())));
        check("ftp://me:s3cret@api.test", true, Err(ServerUrlError::Scheme("ftp://api.test".to_owned())));
    }
}
