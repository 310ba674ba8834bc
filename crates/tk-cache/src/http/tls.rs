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
    let trust = TlsTrust::new(config, &provider);
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
struct TlsTrust {
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    /// What follows chains; the fault if there is nobody to trust.
    chains: std::result::Result<Arc<WebPkiServerVerifier>, TlsError>,
}

impl TlsTrust {
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
        TlsTrust {
            provider,
            certificates,
            chains,
        }
    }
}

impl ServerCertVerifier for TlsTrust {
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    /// As `openssl req -x509` makes it for localhost and 127.0.0.1: its own issuer, and an authority.
    const SELF_SIGNED: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBmTCCAT+gAwIBAgIUMQESSIum2iSu0b6ptoxItKscpHowCgYIKoZIzj0EAwIw\n\
FDESMBAGA1UEAwwJbG9jYWxob3N0MB4XDTI2MTEyOTIzNTE1OFoXDTM2MTEyNjIz\n\
NTE1OFowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0D\n\
AQcDQgAE7wcA+O5Qjl83TAEZl3uVZ9urwBFFlpNwNkgVY/1h8D0r4Ymww2qaauHD\n\
T+5OqXEc1mqTKWQ5UrEXOb/IBLIgJaNvMG0wHQYDVR0OBBYEFFCyw2SzX2Ze6V84\n\
XunSXJL4plMEMB8GA1UdIwQYMBaAFFCyw2SzX2Ze6V84XunSXJL4plMEMA8GA1Ud\n\
EwEB/wQFMAMBAf8wGgYDVR0RBBMwEYIJbG9jYWxob3N0hwR/AAABMAoGCCqGSM49\n\
BAMCA0gAMEUCIQDsclflxLPA5E5T4jkOyAKAJH+3p9MapMf3igU2ppRLBgIgChjD\n\
/k1mf+5vyF4Glx2m2ZWymRTNR+KWo8dV+3TM/Jo=\n\
-----END CERTIFICATE-----\n\n";

    fn trust(text: &str) -> TlsTrust {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, text).unwrap();
        trust_file(&file)
    }

    fn trust_file(file: &Path) -> TlsTrust {
        let config = ClientConfig {
            ca_file: Some(file.to_owned()),
            ..ClientConfig::default()
        };
        TlsTrust::new(&config, &Arc::new(ring::default_provider()))
    }

    fn verify(trust: &TlsTrust, name: &'static str, seconds: u64) -> Option<TlsError> {
        let shown = CertificateDer::from_pem_slice(SELF_SIGNED.as_bytes()).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        trust.verify_server_cert(&shown, &[], &name, &[], now).err()
    }

    #[test]
    fn a_certificate_that_is_trusted_itself() {
        const JANUARY_2027: u64 = 1_800_000_000;
        let itself = trust(SELF_SIGNED);
        for name in ["localhost", "127.0.0.1"] {
            assert_eq!(verify(&itself, name, JANUARY_2027), None, "{name}");
        }
        // For its names and its time only.
        for (name, seconds) in [
            ("elsewhere", JANUARY_2027),
            ("localhost", 1_000_000_000),
            ("localhost", 2_200_000_000),
        ] {
            let error = verify(&itself, name, seconds);
            let refused = matches!(error, Some(TlsError::InvalidCertificate(_)));
            assert!(refused, "{name} at {seconds}: {error:?}");
        }
        let system = TlsTrust::new(&ClientConfig::default(), &itself.provider);
        assert!(verify(&system, "localhost", JANUARY_2027).is_some());
    }

    #[test]
    fn nobody_to_trust_is_said_when_it_matters() {
        for (trust, words) in [
            (trust(""), "has no certificate to trust"),
            (
                trust_file(Path::new("/nonexistent/ca.pem")),
                "reading /nonexistent/ca.pem",
            ),
        ] {
            let error = verify(&trust, "localhost", 1_800_000_000).unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
