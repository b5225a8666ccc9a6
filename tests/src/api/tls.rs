//! An authority of our own, and the certificates it signs.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Other addresses that the server's certificate names, as that of a real one names the Service's: nothing listens
/// there.
const OTHER_ADDRESSES: [&str; 2] = ["10.96.0.1", "127.0.0.9"];

/// Who signs the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The authority that clients are told of.
    Authority,
    /// Itself: clients are told of the server's own certificate.
    Itself,
    /// Itself, long ago.
    ItselfLongAgo,
}

/// What a client needs, as PEM.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A server's side of TLS at `address`, and what its clients need.
pub(super) fn make(address: IpAddr, signer: Signer) -> anyhow::Result<(TlsAcceptor, Credentials)> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "lab-authority");
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);

    let server_key = KeyPair::generate()?;
    let names = std::iter::once(address.to_string()).chain(OTHER_ADDRESSES.map(str::to_owned));
    let mut server = CertificateParams::new(names.collect::<Vec<_>>())?;
    let (server, authority) = match signer {
        Signer::Authority => (server.signed_by(&server_key, &issuer)?, ca.pem()),
        Signer::Itself | Signer::ItselfLongAgo => {
            if signer == Signer::ItselfLongAgo {
                server.not_before = rcgen::date_time_ymd(2019, 1, 1);
                server.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            // As `openssl req -x509` makes them.
            server.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let server = server.self_signed(&server_key)?;
            let authority = server.pem();
            (server, authority)
        }
    };
    let client_key = KeyPair::generate()?;
    let mut client = CertificateParams::new(Vec::<String>::new())?;
    client.distinguished_name.push(DnType::CommonName, "system:kube-proxy");
    let client = client.signed_by(&client_key, &issuer)?;

    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let key = PrivateKeyDer::try_from(server_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![CertificateDer::from(server.der().to_vec())], key)
        .context("a certificate of our own is not accepted")?;
    let credentials = Credentials { ca: authority, certificate: client.pem(), key: client_key.serialize_pem() };
    Ok((TlsAcceptor::from(Arc::new(config)), credentials))
}
