//! Certificates of a CA of our own, as files.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

/// A CA with what it has signed, in a folder of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// The files of a certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let authority = Self { issuer, folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(authority.ca(), authority.issuer.pem()).expect("written");
        authority
    }

    /// The file with the CA's own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a host, for servers and clients alike.
    pub(crate) fn pair(&self, host: &str) -> Pair {
        let mut params = CertificateParams::new([host.to_owned()]).expect("valid");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |kind: &str| self.folder.path().join(format!("{host}.{kind}.pem"));
        let pair = Pair { cert: path("cert"), key: path("key") };
        std::fs::write(&pair.cert, signed.pem()).expect("written");
        std::fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }

    /// The configuration of a server on loopback, with `more` in its `tls` block.
    pub(crate) fn config(&self, more: &str) -> String {
        self.config_for("127.0.0.1", more)
    }

    pub(crate) fn config_for(&self, host: &str, more: &str) -> String {
        let Pair { cert, key } = self.pair(host);
        format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {:?}, {more} }}",
            self.ca()
        )
    }
}
