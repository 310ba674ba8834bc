//! Whom to trust, and who this is.

use super::ClientConfig;
use rustls::{
    CertificateError, ClientConfig as Tls, DigitallySignedStruct, Error as TlsError, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::ParsedCertificate,
};
use std::{io, path::Path, sync::Arc};
use tk_store::{Error, Result};

/// TLS as `config` says, without any protocol to speak in it. Certificates to trust that cannot be
/// read are a fault of the connections that need them.
pub(super) fn config(config: &ClientConfig) -> Result<Tls> {
    let provider = Arc::new(ring::default_provider());
    let trust = Trust::new(config, &provider);
    let builder = Tls::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::io("preparing TLS", io::Error::other(e)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    let Some((chain, key)) = &config.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain_of = certificates(chain)?;
    let key_of = PrivateKeyDer::from_pem_file(key).map_err(|e| in_pem(key, e))?;
    builder
        .with_client_auth_cert(chain_of, key_of)
        .map_err(|e| Error::malformed(format!("{} with {}", chain.display(), key.display()), e))
}

/// Which servers are trusted: those whose certificates lead to one that is, as everywhere, and as
/// with curl and OpenSSL those whose own certificate is one, such as a self-signed one that calls
/// itself an authority.
#[derive(Debug)]
struct Trust {
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    /// What follows chains; the fault if there is nobody to trust.
    chains: std::result::Result<Arc<WebPkiServerVerifier>, TlsError>,
}

impl Trust {
    fn new(config: &ClientConfig, provider: &Arc<CryptoProvider>) -> Self {
        let provider = provider.clone();
        let (certificates, whose) = match &config.ca_file {
            Some(file) => (self::certificates(file), file.display().to_string()),
            // What cannot be read is left out, as everywhere.
            None => (
                Ok(rustls_native_certs::load_native_certs().certs),
                "this machine".to_owned(),
            ),
        };
        let (certificates, fault) = match certificates {
            Ok(certificates) => (certificates, None),
            Err(error) => (Vec::new(), Some(fault(error.to_line()))),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let chains = match fault {
            Some(fault) => Err(fault),
            None if roots.is_empty() => {
                Err(self::fault(format!("{whose} has no certificate to trust")))
            }
            None => WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone())
                .build()
                .map_err(|e| self::fault(e.to_string())),
        };
        Trust {
            provider,
            certificates,
            chains,
        }
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let chains = self.chains.as_ref().map_err(TlsError::clone)?;
        let verified =
            chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Of the certificate itself its time was looked at first. "Other" is that an authority
            // is no server.
            Err(TlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::Other(_),
            )) if self.certificates.contains(end_entity) => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                verify_server_name(&parsed, server_name)?;
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
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

fn fault(words: String) -> TlsError {
    TlsError::Other(OtherError(Arc::new(io::Error::other(words))))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(|e| in_pem(file, e))?;
    certificates
        .map(|c| c.map_err(|e| in_pem(file, e)))
        .collect()
}

fn in_pem(file: &Path, error: pem::Error) -> Error {
    match error {
        pem::Error::Io(error) => Error::io(format!("reading {}", file.display()), error),
        error => Error::malformed(file.display().to_string(), error),
    }
}
