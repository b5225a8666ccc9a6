//! Credentials and address of the API server, from a kubeconfig or from the pod's service account.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::KubeOptions;

/// Connecting; kube's own 30 s would hide an API server that is away for that long.
const CONNECT: Duration = Duration::from_secs(5);

/// Why no request to the API server can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is missing or wrong.
    #[error("the kubeconfig {} cannot be used; check the file, or name another with --kubeconfig", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No service account.
    #[error("no credentials of a pod's service account are here; outside of a cluster give --kubeconfig")]
    InCluster(#[source] kube::config::InClusterError),
    /// The URL given is none.
    #[error("--master {master:?} is no URL; give one such as https://192.0.2.1:6443")]
    Master {
        /// What was given.
        master: String,
        /// What is wrong with it.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// Certificates or keys that cannot be used.
    #[error("the credentials of the API server cannot be used; check its certificates and keys")]
    Client(#[source] Box<kube::Error>),
}

/// An API server and how to talk to it.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    /// Its URL for messages. Clients of the health endpoints can read it too, so it contains no credentials.
    pub(super) url: Arc<str>,
}

/// A client with the credentials as they are now. Files are read each time, so that rotated credentials are found.
pub(super) async fn connect(options: &KubeOptions) -> Result<Api, ConnectError> {
    let master = options.master.as_deref().map(url).transpose()?;
    let mut config = match &options.kubeconfig {
        Some(path) => from_file(path.clone(), options.master.as_deref()).await?,
        None => Config::incluster().map_err(ConnectError::InCluster)?,
    };
    if let Some(master) = master {
        config.cluster_url = master;
    }
    config.connect_timeout = Some(CONNECT);
    // No retries here: reflectors retry, after the delay that the server asks for, and report why.
    config.default_retry = false;
    let url = Arc::from(without_credentials(&config.cluster_url));
    let client = Client::try_from(config).map_err(|source| ConnectError::Client(Box::new(source)))?;
    Ok(Api { client, url })
}

/// Scheme, host and port.
fn without_credentials(url: &http::Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("https");
    let port = url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{}{port}", url.host().unwrap_or_default())
}

async fn from_file(path: PathBuf, master: Option<&str>) -> Result<Config, ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) };
    let mut kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
    if let Some(master) = master {
        // A kubeconfig of a component that has --master may name no server.
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(master.to_owned());
        }
    }
    let chosen = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &chosen).await.map_err(failed)
}

fn url(master: &str) -> Result<http::Uri, ConnectError> {
    master.parse().map_err(|source| ConnectError::Master { master: master.to_owned(), source })
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
