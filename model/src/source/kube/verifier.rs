//! Which certificate of an API server is accepted: one that a known authority signed, or one that the operator gave
//! itself as the authority, as Go accepts it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Authorities that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// None of the operator's certificates is one.
    #[error("no certificate of the certificate authority can be used; give certificates of X.509 version 3")]
    Certificate(#[source] rustls::Error),
    /// None is given and the host has none.
    #[error("no certificate authority is given, and this host has none either; set certificate-authority")]
    NoneHere,
    /// The verifier does not take them.
    #[error("the certificate authorities cannot be used")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
}

/// Checks certificates by `authorities`, or by those of the host if the operator gave none. Those that cannot be used
/// are left out if one can be, as Go does.
///
/// Not the platform's verifier of rustls: it logs each refusal by itself, at every retry.
pub(super) fn verifier(
    authorities: Option<&[Vec<u8>]>,
    provider: &Arc<CryptoProvider>,
) -> Result<Verifier, AuthorityError> {
    let mut roots = RootCertStore::empty();
    let (mut given, mut unusable) = (Vec::new(), None);
    if let Some(authorities) = authorities {
        for authority in authorities {
            let certificate = CertificateDer::from(authority.clone());
            match roots.add(certificate.clone()) {
                Ok(()) => given.push(certificate),
                Err(error) => {
                    tracing::debug!(%error, "one of the certificate authorities cannot be used, so it is left out");
                    unusable = Some(error);
                }
            }
        }
    } else {
        // Unreadable ones among those of the host are left out.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(unusable.map_or(AuthorityError::NoneHere, AuthorityError::Certificate));
    }
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    Ok(Verifier { usual: usual.build().map_err(AuthorityError::Verifier)?, given })
}

/// See [`verifier`].
#[derive(Debug)]
pub(super) struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    /// The operator's certificates, byte for byte.
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match usual {
            // webpki looks at the dates first, so here they are right. What is missing is an authority above a
            // certificate that is an authority itself (Other), or that another one signed (UnknownIssuer).
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
                if self.given.iter().any(|given| given.as_ref() == end_entity.as_ref()) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
