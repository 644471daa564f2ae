//! The configuration in `deploy/nats` against clients that would do harm: each deed by each role, forged
//! reply subjects, another tenant.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use serde_json::Value;
use tidemill::{Client, DeadFilter, JobId};
use tokio::time::timeout;

use crate::deploy::{WORKER, queue};
use crate::site::Role::{Mail, Observer, Operator, Other, Producer, Provisioner, System};
use crate::site::{Deed, Raw, Role, Site};
use crate::support::{Ping, eventually};

#[tokio::test]
async fn hostile_requests_are_refused() {
    let site = Site::with_queue("").await;
    // With bodies that are empty, so that none of those that are allowed does anything.
    let table: [(Deed<'_>, &[Role]); 36] = [
        (Deed::Publish("$JS.API.STREAM.DELETE.TIDEMILL_JOBS_none"), &[Provisioner]),
        (Deed::Publish("$JS.API.STREAM.UPDATE.TIDEMILL_JOBS_none"), &[Provisioner]),
        (Deed::Publish("$JS.API.STREAM.PURGE.TIDEMILL_JOBS_default"), &[Operator]),
        (Deed::Publish("$JS.API.STREAM.PURGE.TIDEMILL_RESULTS_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.PURGE.TIDEMILL_DEAD_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.SNAPSHOT.TIDEMILL_JOBS_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.RESTORE.TIDEMILL_JOBS_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.LEADER.STEPDOWN.TIDEMILL_JOBS_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.MSG.DELETE.TIDEMILL_RESULTS_default"), &[]),
        (Deed::Publish("$JS.API.STREAM.MSG.DELETE.TIDEMILL_JOBS_default"), &[Operator]),
        (Deed::Publish("$JS.API.STREAM.MSG.GET.TIDEMILL_DEAD_default"), &[Operator]),
        (Deed::Publish("$JS.API.DIRECT.GET.TIDEMILL_DEAD_default"), &[Operator]),
        (Deed::Publish("$JS.API.DIRECT.GET.TIDEMILL_JOBS_default"), &[WORKER, Operator]),
        (Deed::Publish("$JS.API.CONSUMER.CREATE.TIDEMILL_RESULTS_default"), &[]),
        (Deed::Publish("$JS.API.CONSUMER.CREATE.TIDEMILL_RESULTS_none.x.y"), &[Provisioner]),
        (Deed::Publish("$JS.API.CONSUMER.DURABLE.CREATE.TIDEMILL_JOBS_default.x"), &[]),
        (Deed::Publish("$JS.API.CONSUMER.DELETE.TIDEMILL_JOBS_none.low"), &[Provisioner]),
        (Deed::Publish("$JS.API.CONSUMER.RESET.TIDEMILL_JOBS_default.low"), &[]),
        (Deed::Publish("$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_JOBS_default.low"), &[WORKER]),
        (Deed::Publish("$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_JOBS_images.low"), &[]),
        (Deed::Publish("$JS.ACK.TIDEMILL_JOBS_default.low.1.1.1.1.1"), &[WORKER]),
        (Deed::Publish("$JS.ACK._.hash.TIDEMILL_JOBS_default.low.1.1.1.1.1"), &[WORKER]),
        (Deed::Publish("$JS.ACK.TIDEMILL_JOBS_images.low.1.1.1.1.1"), &[]),
        (Deed::Publish("$JS.ACK._.hash.TIDEMILL_JOBS_images.low.1.1.1.1.1"), &[]),
        (Deed::Publish("$SYS.REQ.SERVER.PING"), &[]),
        (Deed::Publish("$SYS.REQ.ACCOUNT.OTHER.CONNZ"), &[]),
        (Deed::Publish("tidemill.results.default.k.i.r"), &[WORKER, Operator]),
        (Deed::Publish("tidemill.dead.default.k.i.r"), &[WORKER]),
        (Deed::Publish("tidemill.attempts.default.k.i.r"), &[WORKER]),
        (Deed::Publish("tidemill.timers.default.low.k.i.r"), &[WORKER, Operator]),
        (Deed::Publish("tidemill.cron.default.low.k.n"), &[Operator]),
        (Deed::Publish("tidemill.ctl.default.cancel"), &[Operator]),
        (Deed::Publish("tidemill.jobs.images.low.k"), &[]),
        (Deed::Publish("JS.tidemill.STREAM.DELETE.TIDEMILL_JOBS_default"), &[]),
        (Deed::Publish("JS.tidemill.STREAM.MSG.GET.TIDEMILL_JOBS_default"), &[Observer]),
        (Deed::Publish("_INBOX_operator.forged"), &[]),
    ];
    let listening: [(Deed<'_>, &[Role]); 10] = [
        (Deed::Subscribe(">"), &[]),
        (Deed::Subscribe("_INBOX.>"), &[]),
        (Deed::Subscribe("_R_.>"), &[]),
        (Deed::Subscribe("$JS.ACK.>"), &[]),
        (Deed::Subscribe("$JS.API.>"), &[]),
        (Deed::Subscribe("$SYS.>"), &[]),
        (Deed::Subscribe("tidemill.jobs.>"), &[]),
        (Deed::Subscribe("tidemill.dead.>"), &[]),
        (Deed::Subscribe("tidemill.results.>"), &[Operator, Observer]),
        (Deed::Subscribe("$JS.EVENT.ADVISORY.>"), &[Operator]),
    ];
    for role in Role::ALL {
        let mut raw = site.raw(role).await;
        for (deed, allowed) in table.iter().chain(&listening) {
            assert_eq!(raw.may(*deed).await, allowed.contains(&role), "{role:?}: {deed:?}");
        }
        // Each has an inbox of its own, and no other's.
        for other in Role::ALL {
            let inbox = format!("{}.>", other.inbox());
            let may = raw.may(Deed::Subscribe(&inbox)).await;
            assert_eq!(may, role == other, "{role:?}: {inbox}");
        }
    }
}

/// How many messages each of the queue's streams holds.
async fn held(operator: &Raw) -> [u64; 5] {
    let mut all = [0; 5];
    for (count, stream) in all.iter_mut().zip(["JOBS", "RESULTS", "ATTEMPTS", "DEAD", "TIMERS"]) {
        let subject = format!("$JS.API.STREAM.INFO.TIDEMILL_{stream}_default");
        let answer = operator.nats.request(subject, "".into()).await.expect("an answer");
        let info: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        *count = info["state"]["messages"].as_u64().expect("a stream");
    }
    all
}

#[tokio::test]
async fn a_forged_reply_subject_writes_nothing_from_another_account() {
    let site = Site::with_queue("").await;
    let operator = site.raw(Operator).await;
    let mut answers = operator.nats.subscribe("_INBOX_operator.forged").await.expect("may");
    let forged = [
        "tidemill.results.default.send_email.i.r",
        "tidemill.attempts.default.send_email.i.r",
        "tidemill.dead.default.send_email.i.r",
        "tidemill.timers.default.low.send_email.i.r",
        "tidemill.cron.default.low.send_email.n",
        "tidemill.jobs.default.critical.other.i",
        "$JS.API.STREAM.PURGE.TIDEMILL_JOBS_default",
        "$JS.API.STREAM.DELETE.TIDEMILL_DEAD_default",
        "_INBOX_operator.forged",
    ];
    let mut sent = 0;
    for role in [Producer, Mail] {
        let raw = site.raw(role).await;
        for (n, reply) in forged.iter().enumerate() {
            let subject = format!("tidemill.jobs.default.low.send_email.{}-{n}", role.name());
            raw.nats.publish_with_reply(subject, *reply, "{}".into()).await.expect("sent");
            sent += 1;
        }
        eventually("the jobs, and nothing else", || async {
            held(&operator).await == [sent, 0, 0, 0, 0]
        })
        .await;
    }
    assert!(timeout(Duration::from_millis(200), answers.next()).await.is_err(), "nothing came");

    // Why producers are not in the account of the queue: from there it does write.
    let worker = site.raw(WORKER).await;
    let job = "tidemill.jobs.default.low.send_email.inside";
    worker.nats.publish_with_reply(job, forged[2], "{}".into()).await.expect("sent");
    eventually("a confirmation among the dead letters", || async {
        held(&operator).await == [sent + 1, 0, 0, 1, 0]
    })
    .await;
    let letters = site.client(Operator).await.dead_letters(DeadFilter::queue(queue()));
    let letters: Vec<_> = letters.try_collect().await.expect("may look");
    assert!(letters.is_empty(), "but it counts for none: {letters:?}");
}

async fn finds(client: &Client, id: &str) -> bool {
    let id = JobId::new(id).expect("valid");
    client.job(&queue(), None, &id).await.is_ok_and(|jobs| !jobs.is_empty())
}

#[tokio::test]
async fn another_tenant_sees_and_reaches_nothing_of_ours() {
    let site = Site::with_queue("").await;
    let other = site.client(Other).await;
    assert!(other.queues().await.expect("its own").is_empty());
    let raw = site.raw(Other).await;
    let mut spy = raw.nats.subscribe(">").await.expect("its own");
    let operator = site.client(Operator).await;
    operator.enqueue(Ping).id("ours").await.expect("stored");
    let producer = site.client(Producer).await;
    producer.enqueue(Ping).await.expect("stored");
    assert!(timeout(Duration::from_millis(200), spy.next()).await.is_err(), "it hears nothing");

    // The same names are other streams there, once nobody answers for all subjects.
    spy.unsubscribe().await.expect("sent");
    raw.nats.request("$JS.API.INFO", "".into()).await.expect("an answer, and so seen");
    other.enqueue(Ping).id("theirs").await.expect("in a queue of its own");
    assert!(finds(&operator, "ours").await && !finds(&operator, "theirs").await);
    assert!(finds(&other, "theirs").await && !finds(&other, "ours").await);
    other.purge(&queue(), None).await.expect("its own");
    other.remove_queue(&queue()).await.expect("its own");
    let info = operator.queue_info(&queue()).await.expect("ours is there");
    assert_eq!(info.jobs, 2);

    // Nor does who runs the server.
    let system = site.client(System).await;
    let error = system.queues().await.expect_err("it has no JetStream");
    assert!(error.is_unsupported() || error.is_unavailable() || error.is_permission(), "{error:?}");
}
