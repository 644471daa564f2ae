//! The configuration in `deploy/nats`: what each role may do works, and all else is refused by name, at
//! once, by the library and by the command.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tidemill::{
    Client, CronJob, CronName, DeadFilter, Error, Handler, Job, JobContext, JobError, JobFilter,
    JobId, NewJob, Priority, Queue, QueueConfig, RecordFilter, Running, Since, Status, Worker,
};
use tokio::time::timeout;

use crate::commands::tidemill;
use crate::contexts::Contexts;
use crate::site::Role::{Mail, Observer, Operator, Producer, Provisioner};
use crate::site::{Role, Site};
use crate::support::{Ping, eventually, says};

/// Less than a request may take: a missing right is no timeout.
const AT_ONCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);

/// The worker's role; `Worker` is the library's.
pub(crate) const WORKER: Role = Role::Worker;

type Done<'a> = Pin<Box<dyn Future<Output = tidemill::Result<()>> + 'a>>;
/// A verb, called by a role whose name is part of the ids that it may change.
type Call = for<'a> fn(&'a Client, &'a str) -> Done<'a>;

macro_rules! verb {
    ($name:literal, $allowed:expr, |$client:ident, $role:ident| $call:expr) => {
        (
            $name,
            &$allowed as &[Role],
            (|$client, $role| Box::pin(async move { $call.map(drop) })) as Call,
        )
    };
}

pub(crate) fn queue() -> Queue {
    Queue::default()
}

fn id(state: &str, role: &str) -> JobId {
    JobId::new(format!("{state}-{role}")).expect("valid")
}

fn entry(role: &str) -> CronName {
    CronName::new(format!("tick-{role}")).expect("valid")
}

fn extra(role: &str) -> Queue {
    Queue::new(format!("extra-{role}")).expect("valid")
}

#[derive(Serialize, Deserialize)]
struct SendEmail {}

impl Job for SendEmail {
    const KIND: &'static str = "send_email";
}

fn mail() -> NewJob {
    NewJob::new(&SendEmail {})
}

/// What is called, and who may.
fn verbs() -> Vec<(&'static str, &'static [Role], Call)> {
    const LOOK: [Role; 3] = [WORKER, Operator, Observer];
    vec![
        verb!("enqueue", [Producer, WORKER, Operator], |client, _role| {
            client.enqueue(Ping).await
        }),
        verb!("enqueue mail", [Producer, Mail, WORKER, Operator], |client, _role| {
            client.enqueue(mail().priority(Priority::Low)).await
        }),
        verb!("enqueue critical mail", [Producer, WORKER, Operator], |client, _role| {
            client.enqueue(mail().priority(Priority::Critical)).await
        }),
        verb!("enqueue to another queue", [], |client, _role| {
            client.enqueue(mail().queue("images")).await
        }),
        verb!("enqueue_all", [Producer, WORKER, Operator], |client, _role| {
            client.enqueue_all([Ping, Ping, Ping]).await
        }),
        verb!("enqueue_many", [Producer, WORKER, Operator], |client, _role| {
            client.enqueue_many([Ping, Ping, Ping]).await.into_iter().collect::<Result<Vec<_>, _>>()
        }),
        verb!("import", [Producer, WORKER, Operator], |client, role| {
            let jobs = (0..3).map(|position| (position, NewJob::new(&Ping)));
            let outcomes = client.import(role)?.put(jobs).await;
            outcomes.into_iter().collect::<Result<Vec<_>, _>>()
        }),
        verb!("plan_queue", [WORKER, Operator, Provisioner, Observer], |client, _role| {
            client.plan_queue(&queue()).await
        }),
        verb!("ensure_queue", [Provisioner], |client, role| {
            client.ensure_queue(&extra(role)).await
        }),
        verb!("remove_queue", [Provisioner], |client, role| {
            client.remove_queue(&extra(role)).await
        }),
        verb!("queues", [Operator, Provisioner, Observer], |client, _role| client.queues().await),
        verb!("queue_info", [WORKER, Operator, Provisioner, Observer], |client, _role| {
            client.queue_info(&queue()).await
        }),
        verb!("jobs", LOOK, |client, _role| {
            client.jobs(JobFilter::queue(queue())).try_collect::<Vec<_>>().await
        }),
        verb!("job", LOOK, |client, role| { client.job(&queue(), None, &id("waits", role)).await }),
        verb!("running", [Operator, Observer], |client, _role| client.running(&queue()).await),
        verb!("completions_of", LOOK, |client, _role| {
            client.completions_of(&queue(), None, &id("buried", "mail")).await
        }),
        verb!("completions", LOOK, |client, _role| {
            let all = RecordFilter::queue(queue()).since(Since::Start);
            Box::pin(client.completions(all).await?).try_next().await
        }),
        verb!("attempts", LOOK, |client, _role| {
            let all = RecordFilter::queue(queue()).since(Since::Start);
            Box::pin(client.attempts(all).await?).try_next().await
        }),
        verb!("timers", LOOK, |client, _role| client.timers(&queue(), None).await),
        verb!("cron list", LOOK, |client, _role| client.cron().list(&queue()).await),
        verb!("dead_letters", [Operator, Observer], |client, _role| {
            client.dead_letters(DeadFilter::queue(queue())).try_collect::<Vec<_>>().await
        }),
        verb!("watch", [Operator, Observer], |client, role| {
            let job = client.job(&queue(), None, &id("waits", role)).await?.remove(0);
            let mut events = Box::pin(client.watch(&job).await?);
            match timeout(Duration::from_millis(300), events.next()).await {
                Ok(Some(event)) => event.map(drop),
                Ok(None) | Err(_) => Ok(()),
            }
        }),
        verb!("cancel", [Operator], |client, role| {
            client.cancel(&queue(), None, &id("waits", role), "not wanted").await
        }),
        verb!("set_priority", [Operator], |client, role| {
            client.set_priority(&queue(), None, &id("moves", role), Priority::Low).await
        }),
        verb!("run_now", [Operator], |client, role| {
            client.run_now(&queue(), None, &id("later", role)).await
        }),
        verb!("pause", [Operator], |client, _role| client.pause(&queue(), None, None).await),
        verb!("resume", [Operator], |client, _role| client.resume(&queue(), None).await),
        verb!("retry_dead", [Operator], |client, role| {
            let letter = client.dead_letter(&queue(), &id("buried", role)).await?;
            client.retry_dead(&letter).await
        }),
        verb!("discard_dead", [Operator], |client, role| {
            let letter = client.dead_letter(&queue(), &id("spoilt", role)).await?;
            client.discard_dead(&letter).await
        }),
        verb!("cron add", [Operator], |client, role| {
            let daily = "@daily".parse()?;
            client.cron().add(CronJob::new(format!("new-{role}"), daily, Ping)).await
        }),
        verb!("cron pause", [Operator], |client, role| {
            client.cron().pause(&queue(), &entry(role)).await
        }),
        verb!("cron remove", [Operator], |client, role| {
            client.cron().remove(&queue(), &entry(role)).await
        }),
        verb!("purge", [Operator], |client, _role| client.purge(&queue(), None).await),
    ]
}

/// A worker that buries what it gets, and parks what is to run later.
async fn start_burying(site: &Site) -> Running {
    let discard = |_: Ping, _: JobContext| async { Err::<(), _>(JobError::discard("no")) };
    let client = site.client(WORKER).await;
    let worker = Worker::builder(&client).park_over(Duration::from_secs(1));
    worker.handler(Handler::new(discard)).build().expect("valid").start().await.expect("starts")
}

/// For each role, jobs in all the states that the verbs need.
async fn prepare(site: &Site) {
    let operator = site.client(Operator).await;
    let worker = start_burying(site).await;
    for role in Role::ALL {
        let name = role.name();
        for state in ["buried", "spoilt"] {
            let job = operator.enqueue(Ping).id(id(state, name)).await.expect("stored");
            let end = job.completion_within(PATIENCE).await.expect("it ends");
            assert_eq!(end.status, Status::Dead);
        }
        let hour = Duration::from_secs(3600);
        operator.enqueue(Ping).id(id("later", name)).delay(hour).await.expect("stored");
        let yearly = "@yearly".parse().expect("valid");
        let entry = CronJob::new(entry(name).as_str(), yearly, Ping);
        operator.cron().add(entry).await.expect("added");
    }
    eventually("all that are for later are parked", || async {
        let info = operator.queue_info(&queue()).await.expect("there");
        info.timers == Role::ALL.len() as u64 && info.jobs == 0
    })
    .await;
    worker.drain().await;
    for role in Role::ALL {
        for state in ["waits", "moves"] {
            operator.enqueue(Ping).id(id(state, role.name())).await.expect("stored");
        }
    }
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_nothing_else() {
    let site = Site::with_queue("").await;
    prepare(&site).await;
    let mut clients = Vec::new();
    for role in Role::ALL {
        clients.push((role, site.client(role).await));
    }
    let mut wrong = Vec::new();
    for (verb, allowed, call) in verbs() {
        // Who may not goes first, so that there is something that could be done.
        clients.sort_by_key(|(role, _)| allowed.contains(role));
        for (role, client) in &clients {
            let begun = Instant::now();
            let done = timeout(PATIENCE, call(client, role.name())).await;
            let is_named = |error: &Error| {
                error.is_permission() && error.to_string().contains("no permission to ")
            };
            match (allowed.contains(role), done) {
                (true, Ok(Ok(()))) => {}
                (false, Ok(Err(error))) if is_named(&error) && begun.elapsed() < AT_ONCE => {}
                (_, done) => {
                    wrong.push(format!("{role:?}, {verb}, after {:?}: {done:?}", begun.elapsed()))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(site: &Site, role: Role, arguments: &[&str]) -> (i32, String) {
    let environment = site.environment(role);
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = tidemill(&Contexts::new(), arguments, &environment).output().expect("runs");
    let code = output.status.code().expect("no signal ended it");
    (code, String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test]
async fn the_command_does_for_each_role_what_it_is_for() {
    let site = Site::with_queue("").await;
    let table: [(&[&str], &[Role]); 9] = [
        (&["setup", "--dry-run"], &[WORKER, Operator, Provisioner, Observer]),
        (&["setup", "extra"], &[Provisioner]),
        (&["enqueue", "default", "ping"], &[Producer, WORKER, Operator]),
        (&["enqueue", "default", "send_email"], &[Producer, Mail, WORKER, Operator]),
        (&["job", "ls"], &[WORKER, Operator, Observer]),
        (&["dead", "ls"], &[Operator, Observer]),
        (&["queue", "info"], &[WORKER, Operator, Provisioner, Observer]),
        (&["queue", "pause"], &[Operator]),
        (&["cron", "add", "tick", "default", "ping", "{}", "--schedule", "@daily"], &[Operator]),
    ];
    let mut wrong = Vec::new();
    for (arguments, allowed) in table {
        let mut roles = Role::ALL;
        roles.sort_by_key(|role| allowed.contains(role));
        for role in roles {
            let (code, told) = run(&site, role, arguments);
            let is_named = told.contains("no permission to ") && told.contains("needed for");
            let is_right = match allowed.contains(&role) {
                true => code == 0,
                false => code == 4 && is_named,
            };
            if !is_right {
                wrong.push(format!("{role:?} {arguments:?} ends with {code}: {told}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for role in [Producer, Mail] {
        let (code, told) = run(&site, role, &["work", "--exec", "ping=cat"]);
        assert_eq!(code, 4, "{role:?}: {told}");
    }
}

/// A worker that does all that it gets, and says so.
async fn start_working(site: &Site) -> Running {
    let send = |_: SendEmail, _: JobContext| async { Ok::<_, JobError>("sent") };
    let client = site.client(WORKER).await;
    Worker::builder(&client).handle(send).build().expect("valid").start().await.expect("starts")
}

#[tokio::test]
async fn jobs_of_producers_elsewhere_are_worked_and_their_ends_seen_by_who_may() {
    // Once with acks as they are by default, once in their second form.
    for more in ["", "feature_flags { js_ack_fc_v2: true }"] {
        let site = Site::with_queue(more).await;
        if !more.is_empty() {
            assert_second_form(&site).await;
        }
        let worker = start_working(&site).await;
        let operator = site.client(Operator).await;
        let observer = site.client(Observer).await;
        let all = RecordFilter::queue(queue()).since(Since::Start);
        let mut seen = Box::pin(observer.completions(all).await.expect("may look"));

        let mail_client = site.client(Mail).await;
        let job = mail_client.enqueue(mail().id("m1")).await.expect("stored");
        let end = job.completion_within(PATIENCE).await.expect("seen by who enqueued it");
        assert_eq!(end.result::<String>().expect("text").as_deref(), Some("sent"));
        let producer = site.client(Producer).await;
        let jobs = (0..300).map(|_| mail());
        for job in producer.enqueue_many(jobs).await {
            job.expect("stored");
        }
        for _ in 0..301 {
            let completion = timeout(PATIENCE, seen.try_next()).await.expect("in time");
            let completion = completion.expect("may look").expect("goes on");
            assert_eq!((completion.status, completion.attempt), (Status::Done, 1));
        }
        eventually("all are settled", || async {
            let info = operator.queue_info(&queue()).await.expect("may look");
            info.jobs == 0 && info.results == 301
        })
        .await;
        worker.drain().await;
    }
}

/// That the broker's subjects for acks really are of the second form.
async fn assert_second_form(site: &Site) {
    site.client(Producer).await.enqueue(mail()).await.expect("stored");
    let raw = site.raw(WORKER).await;
    let pull = "$JS.API.CONSUMER.MSG.NEXT.TIDEMILL_JOBS_default.normal";
    let inbox = raw.nats.new_inbox();
    let mut jobs = raw.nats.subscribe(inbox.clone()).await.expect("may");
    raw.nats.publish_with_reply(pull, inbox, r#"{"batch":1}"#.into()).await.expect("sent");
    let job = timeout(PATIENCE, jobs.next()).await.expect("in time").expect("a job");
    let ack = job.reply.expect("where to settle it");
    assert!(ack.starts_with("$JS.ACK._."), "{ack}");
    assert_eq!(ack.split('.').count(), 11, "{ack}");
    let answer = raw.nats.request(ack, "+ACK".into()).await.expect("may settle it");
    assert!(answer.status.is_none(), "{answer:?}");
}

#[tokio::test]
async fn who_shows_no_certificate_or_no_key_is_refused() {
    let site = Site::start("").await;
    let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
    let stranger = Client::connect(site.options(WORKER).nkey(seed)).await.expect_err("unknown");
    assert!(stranger.is_permission(), "{stranger:?}");
    let bare = crate::support::to(site.broker.url()).root_ca(site.authority.ca());
    let bare = Client::connect(bare).await.expect_err("no certificate");
    assert!(bare.is_permission(), "{bare:?}");
    says(&bare, &["wants a client certificate"]);
}

/// Whether any file below a folder holds this text.
fn holds(folder: &std::path::Path, text: &str) -> bool {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.path()).any(|path| {
        if path.is_dir() {
            return holds(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test]
async fn at_rest_nothing_is_in_the_clear() {
    const PLAIN: &str = "plaintext4711";
    let payload = || NewJob::raw("send_email", format!("\"{PLAIN}\"")).header("X-Tenant", PLAIN);
    let site = Site::with_queue("").await;
    let operator = site.client(Operator).await;
    operator.enqueue(payload()).await.expect("stored, and synced");
    assert!(site.store().is_dir());
    assert!(!holds(&site.store(), PLAIN));
    site.broker.restart().await.expect("it reads what it has encrypted");
    let jobs = site.client(Operator).await.jobs(JobFilter::queue(queue()));
    let jobs: Vec<_> = jobs.try_collect().await.expect("may look");
    assert_eq!(jobs.len(), 1);

    // It would be found.
    let open = tidemill::embedded::Broker::builder().jetstream_config("sync_interval: always");
    let open = open.start().await.expect("a broker");
    let client = Client::connect(crate::support::to(open.url())).await.expect("connects");
    client.enqueue(payload()).await.expect("stored");
    assert!(holds(open.data_dir(), PLAIN));
}

/// A queue whose leases are short, so that its workers look often.
async fn site_of_short_leases() -> Site {
    let site = Site::start("").await;
    let mut config = QueueConfig::default();
    config.ack_wait = Duration::from_secs(1);
    let provisioner = site.client(Provisioner).await.with_queue_config(config);
    provisioner.ensure_queue(&queue()).await.expect("made");
    site
}

/// Changes the filter of the normal lane's consumer, by hand.
async fn filter(site: &Site, subjects: &str) {
    let nats = site.raw(Provisioner).await.nats;
    let info = nats.request("$JS.API.CONSUMER.INFO.TIDEMILL_JOBS_default.normal", "".into()).await;
    let info: serde_json::Value =
        serde_json::from_slice(&info.expect("an answer").payload).expect("JSON");
    let mut config = info["config"].clone();
    config["filter_subject"] = subjects.into();
    let request = serde_json::json!({
        "stream_name": "TIDEMILL_JOBS_default", "config": config, "action": "update",
    });
    let create = format!("$JS.API.CONSUMER.CREATE.TIDEMILL_JOBS_default.normal.{subjects}");
    let answer = nats.request(create, request.to_string().into()).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(!answer.contains("error"), "{answer}");
}

#[tokio::test]
async fn a_worker_brings_back_what_is_stuck_with_no_more_than_its_rights() {
    let site = site_of_short_leases().await;
    let worker = start_working(&site).await;
    let operator = site.client(Operator).await;
    filter(&site, "tidemill.jobs.default.normal.ping.>").await;
    let stuck = operator.enqueue(mail().id("stuck")).await.expect("stored");
    // What the filter lets through moves the consumer on; it goes when it was seen.
    let behind = operator.enqueue(Ping).id("behind").await.expect("stored");
    eventually("the consumer has passed both", || async {
        let info = operator.queue_info(&queue()).await.expect("may look");
        info.lanes.iter().all(|lane| lane.waiting == 0)
    })
    .await;
    operator.cancel(&queue(), None, behind.id(), "seen").await.expect("may");
    filter(&site, "tidemill.jobs.default.normal.>").await;
    let end = stuck.completion_within(PATIENCE).await.expect("it is brought back");
    assert_eq!((end.status, end.attempt), (Status::Done, 1));
    eventually("nothing is left", || async {
        operator.queue_info(&queue()).await.expect("may look").is_empty()
    })
    .await;
    assert!(worker.health().troubles.is_empty(), "{:?}", worker.health());
    worker.drain().await;
}
