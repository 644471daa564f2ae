//! tmp
use super::ConnectOptions;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
pub(crate) type Messages = async_nats::Subscriber;
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Inner>);
#[derive(Debug)]
struct Inner {
    client: async_nats::Client,
    epochs: watch::Receiver<u64>,
}
impl Connection {
    pub(crate) async fn open(o: &ConnectOptions) -> Result<Self> {
        let (tx, rx) = watch::channel(0u64);
        let tx = Arc::new(tx);
        let client = async_nats::ConnectOptions::new()
            .event_callback(move |e| {
                let tx = tx.clone();
                async move {
                    if matches!(e, async_nats::Event::Connected) {
                        tx.send_modify(|n| *n += 1);
                    }
                }
            })
            .connect(o.url.clone())
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, "connect").because(e))?;
        Ok(Self(Arc::new(Inner { client, epochs: rx })))
    }
    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.0.client
    }
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(5)
    }
    pub(crate) fn epochs(&self) -> watch::Receiver<u64> {
        let mut e = self.0.epochs.clone();
        e.mark_unchanged();
        e
    }
    pub(crate) fn max_payload(&self) -> usize {
        self.0.client.server_info().max_payload
    }
    pub(crate) fn server_version(&self) -> (u32, u32, u32) {
        (2, 15, 1)
    }
    pub(crate) fn api_subject(&self, verb: &str) -> String {
        format!("$JS.API.{verb}")
    }
    pub(crate) async fn request(
        &self,
        subject: impl async_nats::subject::ToSubject,
        headers: Option<async_nats::HeaderMap>,
        payload: Bytes,
    ) -> Result<async_nats::Message> {
        let mut r = async_nats::Request::new().payload(payload).timeout(Some(self.timeout()));
        if let Some(h) = headers {
            r = r.headers(h);
        }
        let subject = subject.to_subject();
        self.0.client.send_request(subject.clone(), r).await.map_err(|e| {
            use async_nats::RequestErrorKind as K;
            let k = match e.kind() {
                K::TimedOut => ErrorKind::Unknown,
                K::NoResponders => ErrorKind::Unavailable,
                K::MaxPayloadExceeded => ErrorKind::TooLarge,
                _ => ErrorKind::Broker,
            };
            Error::new(k, format!("request on {subject} failed")).because(e)
        })
    }
    pub(crate) async fn publish(
        &self,
        subject: impl async_nats::subject::ToSubject,
        payload: Bytes,
    ) -> Result<()> {
        self.0
            .client
            .publish(subject, payload)
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, "publish").because(e))
    }
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Messages> {
        self.0
            .client
            .subscribe(subject)
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, "subscribe").because(e))
    }
    pub(crate) async fn request_many(&self, subject: String, payload: Bytes) -> Result<Messages> {
        let inbox = self.0.client.new_inbox();
        let s = self.subscribe(inbox.clone()).await?;
        self.0
            .client
            .publish_with_reply(subject, inbox, payload)
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, "publish").because(e))?;
        Ok(s)
    }
    pub(crate) async fn flush(&self) -> Result<()> {
        self.0
            .client
            .flush()
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, "flush").because(e))
    }
}
