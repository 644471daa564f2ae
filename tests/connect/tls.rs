//! TLS: servers that prove who they are, clients that do, and who must start.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tidemill::ConnectOptions;
use tidemill::embedded::Broker;

use crate::support::{Files, refused, to, works};

/// A certificate authority of our own, and the files that it made.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    files: Files,
}

/// A certificate and its key.
#[derive(Clone)]
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        Self { issuer, files: Files::new() }
    }

    fn ca(&self) -> PathBuf {
        self.files.write("ca.pem", &self.issuer.pem())
    }

    fn issue(&self, name: &str) -> Pair {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Pair {
            cert: self.files.write(&format!("{name}.pem"), &cert.pem()),
            key: self.files.write(&format!("{name}-key.pem"), &key.serialize_pem()),
        }
    }

    /// A server of this authority, with more in its `tls` block.
    async fn server(
        &self,
        more: &str,
        connect: impl Fn(ConnectOptions) -> ConnectOptions + Send + Sync + 'static,
    ) -> Broker {
        let Pair { cert, key } = self.issue("127.0.0.1");
        let config = format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {:?}, {more} }}",
            self.ca()
        );
        let ca = self.ca();
        let builder = Broker::builder().config(config);
        let builder = builder.connect_with(move |options| connect(options.root_ca(&ca)));
        builder.start().await.expect("a broker")
    }
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority() {
    let authority = Authority::new();
    let broker = authority.server("", |options| options).await;
    works(to(broker.url()).root_ca(authority.ca())).await;
    works(to(&broker.url().replace("nats://", "tls://")).root_ca(authority.ca())).await;

    let (error, text) = refused(to(broker.url())).await;
    assert!(!error.is_unavailable(), "{text}");
    assert!(text.contains("certificate is not trusted for this host; is the right CA"), "{text}");
    let other = Authority::new();
    let (_, text) = refused(to(broker.url()).root_ca(other.ca())).await;
    assert!(text.contains("certificate is not trusted"), "{text}");
}

#[tokio::test]
async fn a_client_shows_a_certificate_where_the_server_wants_one() {
    let authority = Authority::new();
    let client = authority.issue("client");
    let shown = client.clone();
    let show = move |options: ConnectOptions| options.client_cert(&shown.cert, &shown.key);
    let broker = authority.server("verify: true", show.clone()).await;
    let trusting = || to(broker.url()).root_ca(authority.ca());
    works(show(trusting())).await;

    let (error, text) = refused(trusting()).await;
    assert!(error.is_permission(), "{text}");
    assert!(text.contains("refuses our client certificate, or wants one"), "{text}");
    let others = Authority::new();
    let Pair { cert, key } = others.issue("stranger");
    let (error, text) = refused(trusting().client_cert(cert, key)).await;
    assert!(error.is_permission(), "{text}");

    let other = authority.issue("other");
    let (_, text) = refused(trusting().client_cert(&client.cert, &other.key)).await;
    assert!(text.contains("do not go together"), "{text}");
    let missing = authority.files.folder().join("missing.pem");
    let (_, text) = refused(trusting().client_cert(&missing, &client.key)).await;
    assert!(text.contains("cannot read the certificate") && text.contains("missing.pem"), "{text}");
    let garbled = authority.files.write("garbled.pem", "not PEM");
    let (error, text) = refused(to(broker.url()).root_ca(garbled)).await;
    assert!(error.is_invalid(), "{text}");
    assert!(text.contains("garbled.pem holds no PEM certificate"), "{text}");
}

#[tokio::test]
async fn a_server_that_begins_with_tls_is_met_with_tls() {
    let authority = Authority::new();
    let broker = authority.server("handshake_first: true", |options| options.tls_first()).await;
    works(to(broker.url()).root_ca(authority.ca()).tls_first()).await;

    let waiting = to(broker.url()).root_ca(authority.ca()).connect_timeout(Duration::from_secs(1));
    let (_, text) = refused(waiting).await;
    assert!(text.contains("handshake_first"), "{text}");
}

#[tokio::test]
async fn a_plain_server_is_refused_where_tls_is_a_must() {
    let broker = Broker::start().await.expect("a broker");
    let url = broker.url().replace("nats://", "tls://");
    let (error, text) = refused(to(&url)).await;
    assert!(!error.is_unavailable() && text.to_lowercase().contains("tls"), "{text}");
    let (_, text) = refused(to(broker.url()).tls_first()).await;
    assert!(text.contains("does not answer with TLS"), "{text}");
}
