//! TLS: whom we trust, whom the server trusts, who begins.

use tidemill::embedded::Broker;

use crate::certs::Authority;
use crate::support::{connects, refused, says, server, to, url};

#[tokio::test]
async fn a_ca_of_our_own_is_trusted_when_it_is_given() {
    let authority = Authority::new();
    let broker = server(&authority.config("")).await;
    connects(to(broker.url()).root_ca(authority.ca())).await;
    connects(to(&url(&broker, "tls", "")).root_ca(authority.ca())).await;

    let platform = refused(to(broker.url())).await;
    let other = refused(to(broker.url()).root_ca(Authority::new().ca())).await;
    for error in [platform, other] {
        assert!(error.is_unavailable(), "{error:?}");
        says(&error, &[broker.url(), "not trusted: no known CA signed it", "give its CA"]);
    }
}

#[tokio::test]
async fn a_certificate_of_another_host_is_told() {
    let authority = Authority::new();
    let broker = server(&authority.config_for("example.com", "")).await;
    let error = refused(to(broker.url()).root_ca(authority.ca())).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &["certificate is for another host"]);
}

#[tokio::test]
async fn a_server_that_verifies_clients_gets_a_certificate() {
    let authority = Authority::new();
    let broker = server(&authority.config("verify: true")).await;
    let options = || to(broker.url()).root_ca(authority.ca());
    let ours = authority.pair("client");
    connects(options().client_cert(&ours.cert, &ours.key)).await;

    let error = refused(options()).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["wants a client certificate; give one, with its key"]);

    let stranger = Authority::new();
    let foreign = stranger.pair("client");
    let error = refused(options().client_cert(&foreign.cert, &foreign.key)).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses the client certificate", &foreign.cert.to_string_lossy()]);
}

#[tokio::test]
async fn a_renewed_client_certificate_is_used_at_the_next_connect() {
    let authority = Authority::new();
    let broker = server(&authority.config("verify: true")).await;
    let stranger = Authority::new();
    let pair = authority.pair("client");
    let options = to(broker.url()).root_ca(authority.ca()).client_cert(&pair.cert, &pair.key);
    connects(options.clone()).await;
    let foreign = stranger.pair("client");
    std::fs::copy(&foreign.cert, &pair.cert).expect("copied");
    std::fs::copy(&foreign.key, &pair.key).expect("copied");
    assert!(refused(options).await.is_permission());
}

#[tokio::test]
async fn tls_comes_first_where_both_sides_say_so() {
    let authority = Authority::new();
    let broker = server(&authority.config("handshake_first: true, timeout: 1")).await;
    let options = || to(broker.url()).root_ca(authority.ca());
    connects(options().tls_first()).await;

    let error = refused(options()).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &["handshake_first", "if TLS"]);
}

#[tokio::test]
async fn tls_first_is_told_apart_where_the_server_does_not_begin_with_it() {
    let authority = Authority::new();
    let broker = server(&authority.config("")).await;
    let error = refused(to(broker.url()).root_ca(authority.ca()).tls_first()).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &["does not begin with TLS", "leave out TLS first"]);
}

#[tokio::test]
async fn tls_that_the_server_does_not_have_is_told() {
    let broker = Broker::start().await.expect("a broker");
    for options in [to(broker.url()).require_tls(), to(&url(&broker, "tls", ""))] {
        let error = refused(options).await;
        assert!(error.is_unavailable(), "{error:?}");
        says(&error, &["the server has no TLS, which is demanded here", "use nats://"]);
    }
}
