//! A TCP proxy between a client and its broker, which holds back or loses what a test names.

use std::sync::Arc;

use tidemill::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::between::Between;
use crate::support::eventually;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// They pass.
    Pass,
    /// Those with this text, and all behind them, wait here.
    Hold(&'static str),
    /// Those with this text pass; what is answered is lost with the connection.
    LoseAnswerTo(&'static str),
    /// It has met what it was to wait for.
    Met,
    /// What waits here is lost with the connection, as if the client had been killed.
    Cut,
}

pub(crate) struct Proxy {
    between: Between,
    rule: Arc<watch::Sender<Rule>>,
}

impl Proxy {
    pub(crate) async fn start(broker: &str) -> Self {
        let rule = Arc::new(watch::Sender::new(Rule::Pass));
        let shared = rule.clone();
        let carry = move |client, broker| {
            let rule = shared.clone();
            async move {
                // A connection that breaks ends here, as it does for both sides.
                let _ = carry(client, broker, &rule).await;
            }
        };
        let between = Between::at("127.0.0.1", broker, carry).await;
        Self { between, rule }
    }

    /// A client behind it, otherwise as the one given.
    pub(crate) async fn client(&self) -> Client {
        crate::support::connect(self.url()).await
    }

    pub(crate) fn url(&self) -> &str {
        &self.between.url
    }

    /// Holds back the next bytes of a client that have this text in them.
    pub(crate) fn hold(&self, text: &'static str) {
        self.rule.send_replace(Rule::Hold(text));
    }

    /// Loses the answer to the next bytes of a client that have this text in them.
    pub(crate) fn lose_answer_to(&self, text: &'static str) {
        self.rule.send_replace(Rule::LoseAnswerTo(text));
    }

    /// Waits until it has met what it was to hold or lose.
    pub(crate) async fn met(&self) {
        eventually("what the proxy waits for", || async {
            (*self.rule.borrow() == Rule::Met).then_some(())
        })
        .await;
    }

    /// Lets go of what is held.
    pub(crate) fn release(&self) {
        self.rule.send_replace(Rule::Pass);
    }

    /// Drops what is held.
    pub(crate) fn cut(&self) {
        self.rule.send_replace(Rule::Cut);
    }
}

async fn carry(
    mut client: TcpStream,
    mut broker: TcpStream,
    rule: &watch::Sender<Rule>,
) -> std::io::Result<()> {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let bytes = &up[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                let now = *rule.borrow();
                match now {
                    Rule::Hold(text) if has(bytes, text) => {
                        rule.send_replace(Rule::Met);
                        let mut changes = rule.subscribe();
                        let changed = changes.wait_for(|rule| *rule != Rule::Met).await;
                        if changed.is_ok_and(|rule| *rule == Rule::Cut) {
                            return Ok(());
                        }
                        broker.write_all(bytes).await?;
                    }
                    Rule::LoseAnswerTo(text) if has(bytes, text) => {
                        broker.write_all(bytes).await?;
                        let lost = broker.read(&mut down).await?;
                        assert!(lost > 0, "the broker has answered");
                        rule.send_replace(Rule::Met);
                        return Ok(());
                    }
                    Rule::Pass | Rule::Met | Rule::Cut | Rule::Hold(_) | Rule::LoseAnswerTo(_) => {
                        broker.write_all(bytes).await?;
                    }
                }
            }
            read = broker.read(&mut down) => {
                let bytes = &down[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                client.write_all(bytes).await?;
            }
        }
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
