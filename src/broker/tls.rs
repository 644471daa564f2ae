//! TLS: whom to trust and which certificate to show.
//!
//! The configuration is our own because async-nats' would take the process-wide cryptography, and
//! that panics where the application's dependencies bring in two and it has chosen none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::rustls::client::ResolvesClientCert;
use async_nats::rustls::crypto::{CryptoProvider, ring};
use async_nats::rustls::pki_types::pem::{self, PemObject};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::sign::CertifiedKey;
use async_nats::rustls::{ClientConfig, RootCertStore, SignatureScheme};

use crate::error::{Error, ErrorKind, Result};

/// What the options say about TLS. A server that asks for TLS gets it in any case.
#[derive(Clone, Debug, Default)]
pub(super) struct Tls {
    pub(super) root_ca: Option<PathBuf>,
    pub(super) client_cert: Option<CertFiles>,
    pub(super) required: bool,
    pub(super) first: bool,
}

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, Debug)]
pub(super) struct CertFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Tls {
    /// Reads the files, so that a wrong one is named before connecting.
    pub(super) fn client_config(&self) -> Result<ClientConfig> {
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(ring::default_provider()));
        let roots = match &self.root_ca {
            Some(path) => roots_from(path)?,
            None => platform_roots(),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                Error::invalid("the installed cryptography cannot do TLS").because(error)
            })?
            .with_root_certificates(roots);
        let Some(files) = self.client_cert.clone() else {
            return Ok(builder.with_no_client_auth());
        };
        files.load(&provider)?;
        Ok(builder.with_client_cert_resolver(Arc::new(FromFiles { files, provider })))
    }
}

impl CertFiles {
    fn load(&self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| unreadable(&self.key, "private key", error))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|error| {
            let (cert, key) = (self.cert.display(), self.key.display());
            Error::invalid(format!("the certificate {cert} and the key {key} do not go together"))
                .because(error)
        })
    }
}

/// Reads certificate and key at every handshake, so that renewed ones are used.
#[derive(Debug)]
struct FromFiles {
    files: CertFiles,
    provider: Arc<CryptoProvider>,
}

impl ResolvesClientCert for FromFiles {
    fn resolve(&self, _hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self.files.load(&self.provider) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                tracing::warn!(%error, "connecting without a client certificate");
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn roots_from(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path)? {
        roots.add(cert).map_err(|error| {
            let message = format!("{} holds a certificate that is no CA's", path.display());
            Error::invalid(message).because(error)
        })?;
    }
    Ok(roots)
}

/// Without any, a handshake fails and says so; servers without TLS do not need them.
fn platform_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "cannot read some of the platform's CA certificates");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certs = read().map_err(|error| unreadable(path, "certificate", error))?;
    if certs.is_empty() {
        return Err(Error::invalid(format!("{} holds no PEM certificate", path.display())));
    }
    Ok(certs)
}

fn unreadable(path: &Path, what: &str, error: pem::Error) -> Error {
    let kind = match error {
        pem::Error::Io(_) => ErrorKind::Local,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, format!("cannot read the {what} {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_file_that_is_wrong() {
        let empty = tempfile::NamedTempFile::new().expect("temporary file");
        let path = empty.path().to_owned();
        let cert = |cert: &Path| Some(CertFiles { cert: cert.into(), key: path.clone() });
        let cases = [
            Tls { root_ca: Some("/no/such.pem".into()), ..Tls::default() },
            Tls { root_ca: Some(path.clone()), ..Tls::default() },
            Tls { client_cert: cert(Path::new("/no/such.pem")), ..Tls::default() },
            Tls { client_cert: cert(&path), ..Tls::default() },
        ];
        for tls in cases {
            let message = tls.client_config().expect_err("wrong").to_string();
            let named =
                message.contains("/no/such.pem") || message.contains(&*path.to_string_lossy());
            assert!(named, "{message}");
        }
    }
}
