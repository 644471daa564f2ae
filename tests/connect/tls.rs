//! TLS: whom we trust, whom the server trusts, who begins.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use tidemill::ConnectOptions;
use tidemill::embedded::Broker;

use crate::certs::{Authority, Pair};
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

#[tokio::test]
async fn a_certificate_of_long_ago_is_told_on_either_side() {
    let authority = Authority::new();
    let expired = authority.expired_pair("127.0.0.1");
    let broker = server(&authority.config_with(&expired, "")).await;
    let error = refused(to(broker.url()).root_ca(authority.ca())).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &[broker.url(), "has expired"]);

    let expired = authority.expired_pair("client");
    let broker = server(&authority.config("verify: true")).await;
    let options = to(broker.url()).root_ca(authority.ca());
    let error = refused(options.client_cert(&expired.cert, &expired.key)).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["refuses the client certificate", "may have expired"]);
}

#[tokio::test]
async fn a_certificate_can_be_the_login() {
    let authority = Authority::new();
    let users = r#"authorization { users: [{ user: "billing" }] }"#;
    let config = format!("{users}\n{}", authority.config("verify_and_map: true"));
    let (ours, ca) = (authority.pair("billing"), authority.ca());
    let login =
        move |options: ConnectOptions| options.root_ca(&ca).client_cert(&ours.cert, &ours.key);
    // A server does not take this up while it runs.
    let broker = Broker::builder().config(config).connect_with(login.clone());
    let broker = broker.start().await.expect("a broker");
    connects(login(to(broker.url()))).await;
    let options = |pair: &Pair| login(to(broker.url())).client_cert(&pair.cert, &pair.key);
    let error = refused(options(&authority.pair("stranger"))).await;
    assert!(error.is_permission(), "{error:?}");
    says(&error, &["knows no user for the client certificate"]);
}

#[tokio::test]
async fn nothing_is_said_in_the_clear_where_tls_is_demanded() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    // What stands between and takes TLS out of the server's greeting.
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let info = r#"INFO {"server_id":"X","version":"2.15.1","proto":1,"max_payload":1048576}"#;
        stream.write_all(format!("{info}\r\n").as_bytes()).expect("sent");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let mut heard = Vec::new();
        let _ = stream.take(1 << 16).read_to_end(&mut heard);
        heard
    });
    let options = to(&format!("tls://{address}")).user_password("me", "hush4711");
    let error = refused(options.connect_timeout(Duration::from_secs(2))).await;
    assert!(error.is_unavailable(), "{error:?}");
    let heard = heard.join().expect("it ended");
    let text = String::from_utf8_lossy(&heard);
    assert!(!text.contains("CONNECT") && !text.contains("hush4711"), "{text}");
}
