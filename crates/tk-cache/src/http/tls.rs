//! Whom to trust, and who this is.

use super::ClientConfig;
use rustls::{
    ClientConfig as Tls, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use std::{io, path::Path, sync::Arc};
use tk_store::{Error, Result};

/// TLS as `config` says, without any protocol to speak in it.
pub(super) fn config(config: &ClientConfig) -> Result<Tls> {
    let roots = match &config.ca_file {
        Some(file) => roots_of(file)?,
        None => roots_of_system(),
    };
    let builder = Tls::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::io("preparing TLS", io::Error::other(e)))?
        .with_root_certificates(roots);
    let Some((chain, key)) = &config.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain_of = certificates(chain)?;
    let key_of = PrivateKeyDer::from_pem_file(key).map_err(|e| in_pem(key, e))?;
    builder
        .with_client_auth_cert(chain_of, key_of)
        .map_err(|e| Error::malformed(format!("{} with {}", chain.display(), key.display()), e))
}

fn roots_of(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(certificates(file)?);
    match taken {
        0 => {
            let what = format!("{} has no certificate to trust", file.display());
            Err(Error::invalid(what))
        }
        _ => Ok(roots),
    }
}

/// What cannot be read is left out, as everywhere: then nobody is trusted, and connections say so.
fn roots_of_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
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
