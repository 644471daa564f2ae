//! tidemill beside plain loops of the client library, on the same broker in the same run, taking turns.

mod raw;

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tidemill::embedded::Broker;

use crate::raw::{Raw, Record};

#[tokio::main]
async fn main() -> Result<()> {
    let jobs = 100_000;
    let broker = Broker::start().await?;
    let raw = Raw::connect(broker.url()).await?;
    let payload = Bytes::from(vec![b'x'; 256]);
    let rate = |jobs: u64, took: Duration| jobs as f64 / took.as_secs_f64();
    for _ in 0..3 {
        for record in [Record::Nothing, Record::Completion, Record::Fenced] {
            raw.anew().await?;
            let published = raw.publish(jobs, payload.clone()).await?;
            let drained = raw.drain(jobs, record).await?;
            println!(
                "{record:?}: publish {:.0}/s, drain {:.0}/s",
                rate(jobs, published),
                rate(jobs, drained)
            );
        }
    }
    raw.anew().await?;
    let published = raw.publish_one_by_one(jobs / 10, payload.clone()).await?;
    println!("one by one {:.0}/s", rate(jobs / 10, published));
    broker.stop().await?;
    Ok(())
}
