//! Messages byte for byte, also such as no client library would write.

use tidemill::embedded::Broker;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Publishes over a bare socket, each with a subject and a header block, as a job or a record or anything.
/// Without headers where these are empty.
pub(crate) async fn publish_raw(
    broker: &Broker,
    messages: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
) {
    let stream = TcpStream::connect(broker.url().trim_start_matches("nats://")).await;
    let mut stream = BufReader::new(stream.expect("connects"));
    let connect =
        r#"{"verbose":false,"pedantic":false,"headers":true,"user":"admin","pass":"admin"}"#;
    let mut bytes = format!("CONNECT {connect}\r\n").into_bytes();
    let body = b"{\"n\":0}";
    for (subject, headers) in messages {
        let (head, total) = (headers.len(), headers.len() + body.len());
        let sizes = match headers.is_empty() {
            true => format!(" {total}\r\n"),
            false => format!(" {head} {total}\r\n"),
        };
        bytes.extend(if headers.is_empty() { &b"PUB "[..] } else { b"HPUB " });
        for part in [&subject[..], sizes.as_bytes(), &headers, body, b"\r\n"] {
            bytes.extend(part);
        }
    }
    bytes.extend(b"PING\r\n");
    stream.write_all(&bytes).await.expect("sent");
    let mut line = String::new();
    while line.trim() != "PONG" {
        line.clear();
        stream.read_line(&mut line).await.expect("an answer");
        assert!(!line.starts_with("-ERR"), "{line}");
    }
}
