//! Certificates of a CA of our own, as files.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

/// A CA with what it has signed, in a folder of its own.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// The files of a certificate and its key.
#[derive(Clone)]
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
        self.signed(host, CertificateParams::new([host.to_owned()]).expect("valid"))
    }

    /// The same, of long ago.
    pub(crate) fn expired_pair(&self, host: &str) -> Pair {
        let mut params = CertificateParams::new([host.to_owned()]).expect("valid");
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.signed(host, params)
    }

    fn signed(&self, host: &str, mut params: CertificateParams) -> Pair {
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
        self.config_with(&self.pair(host), more)
    }

    pub(crate) fn config_with(&self, Pair { cert, key }: &Pair, more: &str) -> String {
        format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {:?}, {more} }}",
            self.ca()
        )
    }
}
