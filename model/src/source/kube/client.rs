//! Which API server is asked, and with which credentials: those of a kubeconfig or of the pod's service account.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kube::{Client, Config};

use super::KubeOptions;
use super::kubeconfig::{self, KubeconfigProblem, ServerUrlError, server_url};
use super::transport::{self, TransportError};

/// Where the operator can name a kubeconfig.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KubeconfigSetting {
    /// The flag `--kubeconfig`.
    #[default]
    Flag,
    /// The field of a KubeProxyConfiguration, beside which the flag is ignored.
    Document,
}

impl std::fmt::Display for KubeconfigSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flag => "--kubeconfig",
            Self::Document => {
                "clientConnection.kubeconfig in the KubeProxyConfiguration (beside it the flag --kubeconfig is ignored)"
            }
        })
    }
}

/// Why no request to the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is missing or wrong.
    #[error("the kubeconfig {} cannot be used; correct it, or name another with {setting}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Where another can be named.
        setting: KubeconfigSetting,
        /// What is wrong with it.
        #[source]
        source: KubeconfigProblem,
    },
    /// No service account.
    #[error("no credentials of a pod's service account are here; outside of a cluster give {setting}")]
    InCluster {
        /// Where a kubeconfig can be named.
        setting: KubeconfigSetting,
        /// What is missing.
        #[source]
        source: kube::config::InClusterError,
    },
    /// The URL given is none.
    #[error("--master")]
    Master(#[source] ServerUrlError),
    /// Certificates, keys, tokens or plug-ins that cannot be used.
    #[error("the credentials of the API server cannot be used")]
    Client(#[source] TransportError),
    /// A program that gives the credentials hangs.
    #[error("reading the credentials took longer than {0:?}; does the credential plug-in of the kubeconfig hang?")]
    Slow(std::time::Duration),
    /// A bug of ours.
    #[error("reading the credentials panicked; this is a bug of shunt")]
    Died(#[source] tokio::task::JoinError),
}

impl ConnectError {
    /// What a credential plug-in complained: for the log alone, since it may contain what others must not read.
    pub(super) fn complaint(&self) -> Option<&str> {
        match self {
            Self::Client(TransportError::Plugin { command: _, status: _, complaint }) => Some(complaint),
            Self::Client(_)
            | Self::Kubeconfig { .. }
            | Self::InCluster { .. }
            | Self::Master(_)
            | Self::Slow(_)
            | Self::Died(_) => None,
        }
    }
}

/// Where the credentials come from, and so where they can be corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Kubeconfig,
    /// What the kubelet gives to a pod.
    ServiceAccount,
}

/// An API server and how to talk to it.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    /// Its URL for messages. Clients of the health endpoints can read it too, so it contains no credentials.
    pub(super) url: Arc<str>,
    /// The host of the URL that the operator configured.
    pub(super) configured: Arc<str>,
    /// The remembered endpoint that is asked; `None` is the configured address.
    pub(super) at: Option<SocketAddr>,
    /// Who gave the credentials, for advice.
    pub(super) origin: Origin,
    /// No flag names the server, and its certificate is checked: another address of it may be tried.
    pub(super) may_move: bool,
    /// Counts the connections that were made one after another.
    pub(super) generation: u64,
}

/// A client with the credentials as they are now. Files are read each time, so that rotated credentials are found. With
/// `at`, this address is dialled and the certificate must still be the configured server's. May wait for a program that
/// gives credentials.
pub(super) fn connect(options: &KubeOptions, at: Option<SocketAddr>) -> Result<Api, ConnectError> {
    let mut config = configuration(options)?;
    // No retries here: reflectors retry, after the delay that the server asks for, and report why.
    config.default_retry = false;
    let configured: Arc<str> = Arc::from(host(&config.cluster_url));
    let may_move = options.master.is_none() && transport::is_https(&config) && !config.accept_invalid_certs;
    if let Some(at) = at {
        move_to(&mut config, at, &configured)?;
    }
    let url = Arc::from(without_credentials(&config.cluster_url));
    let client = transport::client(config).map_err(ConnectError::Client)?;
    let origin = if options.kubeconfig.is_some() { Origin::Kubeconfig } else { Origin::ServiceAccount };
    Ok(Api { client, url, configured, at, origin, may_move, generation: 0 })
}

fn configuration(options: &KubeOptions) -> Result<Config, ConnectError> {
    let setting = options.kubeconfig_setting;
    if let Some(path) = &options.kubeconfig {
        // Wrong in any case, whatever the file says.
        options.master.as_deref().map(|master| server_url(master, true)).transpose().map_err(ConnectError::Master)?;
        let failed = |source| ConnectError::Kubeconfig { path: path.clone(), setting, source };
        return kubeconfig::read(path, options.master.as_deref()).map_err(failed);
    }
    // A wrong flag is told of where there is no service account too.
    let master = options.master.as_deref().map(|master| server_url(master, true)).transpose();
    let master = master.map_err(ConnectError::Master)?;
    let mut config = Config::incluster().map_err(|source| ConnectError::InCluster { setting, source })?;
    if let Some(master) = master {
        config.cluster_url = master;
    }
    Ok(config)
}

/// The same API server at another address.
fn move_to(config: &mut Config, at: SocketAddr, configured: &str) -> Result<(), ConnectError> {
    if config.tls_server_name.is_none() {
        config.tls_server_name = Some(configured.to_owned());
    }
    config.cluster_url = server_url(&format!("https://{at}"), true).map_err(ConnectError::Master)?;
    Ok(())
}

/// The host of a URL, an IPv6 address without its brackets.
fn host(url: &http::Uri) -> &str {
    url.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// Scheme, host and port.
fn without_credentials(url: &http::Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("https");
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{}{port}", url.host().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_is_told_of_has_no_credentials_in_it() {
        for (url, told) in [
            ("https://10.96.0.1:443", "https://10.96.0.1:443"),
            ("http://admin:s3cret@[fd00::1]:8080/path?token=x", "http://[fd00::1]:8080"),
            ("https://api.example.test", "https://api.example.test"),
        ] {
            assert_eq!(without_credentials(&url.parse().unwrap()), told, "{url}");
        }
    }
}
