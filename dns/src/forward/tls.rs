//! Which certificates of upstreams to trust over TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Why upstreams cannot be asked over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities cannot be read.
    #[error("reading the authorities of upstreams from {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The file has no authority that could be used.
    #[error("{} has no certificate of an authority (wanted PEM)", .0.display())]
    NoAuthority(PathBuf),
    /// The protocol cannot be set up.
    #[error("setting up TLS")]
    Setup(#[from] rustls::Error),
}

/// With the authorities in `file`, or those that the system trusts. A system without any is no error: every upstream
/// over TLS then fails, and says why.
pub(super) fn connector(file: Option<&Path>) -> Result<TlsConnector, TlsError> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(path) => {
            let failed = |source| TlsError::Read { path: path.to_owned(), source };
            let certificates = CertificateDer::pem_file_iter(path).map_err(failed)?;
            roots.add_parsable_certificates(certificates.collect::<Result<Vec<_>, _>>().map_err(failed)?);
            if roots.is_empty() {
                return Err(TlsError::NoAuthority(path.to_owned()));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
