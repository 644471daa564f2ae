// A worker, a job, and its completion: the example of the README, word for word.

use serde::{Deserialize, Serialize};
use tidemill::{Client, ConnectOptions, Job, JobContext, JobError, Priority, Worker};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl Job for SendEmail {
    const KIND: &'static str = "send_email";
}

async fn send_email(job: SendEmail, context: JobContext) -> Result<String, JobError> {
    if !job.to.contains('@') {
        return Err(JobError::discard("not an address")); // buried at once; other errors retry
    }
    Ok(format!("sent to {} in attempt {}", job.to, context.attempt()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("NATS_URL").unwrap_or("nats://127.0.0.1:4222".into());
    let client = Client::connect(ConnectOptions::new(&url)?).await?;
    let worker = Worker::builder(&client).concurrency(50).handle(send_email).build()?;
    let running = worker.start().await?;

    let email = SendEmail { to: "a@example.com".into() };
    let job = client.enqueue(email).priority(Priority::High).max_retries(5).await?;
    println!("{:?}", job.completion().await?.result::<String>()?);

    running.drain().await; // on SIGTERM: nothing lost, nothing run twice
    Ok(())
}
