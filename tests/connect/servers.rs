//! Which servers: several, dead, silent, unknown, not there yet.

use std::net::TcpListener;
use std::time::Duration;

use tidemill::Client;
use tidemill::embedded::Broker;

use crate::support::{Ping, connects, eventually, refused, says, to};

/// A port on which nobody listens.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

#[tokio::test]
async fn a_dead_server_does_not_matter_beside_a_live_one() {
    let broker = Broker::start().await.expect("a broker");
    let dead = format!("nats://127.0.0.1:{}", free_port());
    // They are tried in any order: often enough, the dead one comes first.
    for _ in 0..8 {
        connects(to(&format!("{dead}, {}", broker.url()))).await;
    }
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let address = format!("127.0.0.1:{}", free_port());
    let error = refused(to(&address)).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &[&address, "nobody listens there", "check the address"]);
}

#[tokio::test]
async fn of_several_dead_servers_all_are_named() {
    let (one, other) = (free_port(), free_port());
    let error = refused(to(&format!("127.0.0.1:{one},127.0.0.1:{other}"))).await;
    assert!(error.is_unavailable(), "{error:?}");
    let (one, other) = (format!("127.0.0.1:{one}"), format!("127.0.0.1:{other}"));
    says(&error, &[&one, &other, "at the one tried last, nobody listens there"]);
}

#[tokio::test]
async fn a_host_that_does_not_resolve_is_told() {
    let error = refused(to("nats://no-such-host.invalid")).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &["no-such-host.invalid:4222", "does not resolve", "DNS"]);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let broker = Broker::start().await.expect("a broker");
    broker.freeze().await.expect("frozen");
    let options = to(broker.url()).connect_timeout(Duration::from_millis(200));
    let error = refused(options).await;
    assert!(error.is_unavailable(), "{error:?}");
    says(&error, &[broker.url(), "no answer in time", "handshake_first"]);
}

#[tokio::test]
async fn a_client_that_keeps_trying_finds_a_server_that_comes_later() {
    let port = free_port();
    let options =
        to(&format!("127.0.0.1:{port}")).keep_trying().request_timeout(Duration::from_millis(500));
    let client = Client::connect(options).await.expect("it tries");
    let broker = Broker::builder().port(port).start().await.expect("a broker");
    assert!(broker.url().ends_with(&port.to_string()), "somebody took the port");
    eventually("a job stored", || async { client.enqueue(Ping).await.is_ok() }).await;
}
