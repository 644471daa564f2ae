//! Every verb, called by a user who may do all but one thing that it needs: the error says which.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt};
use tidemill::embedded::Broker;
use tidemill::{
    Client, CronJob, CronName, DeadFilter, Error, Handler, Job, JobContext, JobError, JobFilter,
    JobId, NewJob, Priority, Queue, RecordFilter, Since, Worker,
};

use tokio::time::timeout;

use crate::commands::tidemill;
use crate::contexts::Contexts;
use crate::support::{Ping, eventually, to};

/// Less than a request may take: a missing right is no timeout.
const AT_ONCE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

type Call = for<'a> fn(&'a Client) -> Pin<Box<dyn Future<Output = tidemill::Result<()>> + 'a>>;

macro_rules! verb {
    ($name:literal, $denied:literal, |$client:ident| $call:expr) => {
        ($name, $denied, (|$client| Box::pin(async move { $call.map(drop) })) as Call)
    };
}

fn queue() -> Queue {
    Queue::default()
}

fn id(text: &str) -> JobId {
    JobId::new(text).expect("valid")
}

fn tick() -> CronName {
    CronName::new("tick").expect("valid")
}

fn all() -> JobFilter {
    JobFilter::queue(queue())
}

/// What is called, and the one thing that its caller may not do.
fn verbs() -> Vec<(&'static str, &'static str, Call)> {
    vec![
        verb!("enqueue", "tidemill.jobs.>", |client| client.enqueue(Ping).await),
        verb!("enqueue to a queue to be made", "$JS.API.STREAM.CREATE.>", |client| {
            client.enqueue(NewJob::new(&Ping).queue("new")).await
        }),
        verb!("enqueue_all", "tidemill.jobs.>", |client| client.enqueue_all([Ping]).await),
        verb!("import", "tidemill.jobs.>", |client| {
            let mut outcomes = client.import("x")?.put([(0, NewJob::new(&Ping))]).await;
            outcomes.remove(0)
        }),
        verb!("enqueue_replacing", "tidemill.ctl.>", |client| {
            client.enqueue_replacing(NewJob::raw("ping", "{}").unique("taken")).await
        }),
        verb!("ensure_queue", "$JS.API.STREAM.INFO.>", |client| client
            .ensure_queue(&queue())
            .await),
        verb!("plan_queue", "$JS.API.STREAM.INFO.>", |client| client.plan_queue(&queue()).await),
        verb!("queues", "$JS.API.STREAM.NAMES", |client| client.queues().await),
        verb!("completions_of", "$JS.API.DIRECT.GET.TIDEMILL_RESULTS_default", |client| {
            client.completions_of(&queue(), None, &id("ended")).await
        }),
        verb!("completions", "$JS.API.DIRECT.GET.TIDEMILL_RESULTS_default", |client| {
            let hour = Since::Time(Utc::now() - TimeDelta::hours(1));
            let completions = client.completions(RecordFilter::queue(queue()).since(hour)).await?;
            Box::pin(completions).try_next().await
        }),
        verb!("job", "$JS.API.DIRECT.GET.TIDEMILL_JOBS_default", |client| {
            client.job(&queue(), None, &id("waits")).await
        }),
        verb!("job", "$JS.API.CONSUMER.INFO.>", |client| {
            client.job(&queue(), None, &id("waits")).await
        }),
        verb!("jobs", "$JS.API.DIRECT.GET.TIDEMILL_TIMERS_default", |client| {
            client.jobs(all()).try_collect::<Vec<_>>().await
        }),
        verb!("running", "tidemill.ctl.>", |client| client.running(&queue()).await),
        verb!("cancel", "tidemill.results.>", |client| {
            client.cancel(&queue(), None, &id("waits"), "no").await
        }),
        verb!("cancel", "$JS.API.STREAM.MSG.DELETE.TIDEMILL_JOBS_default", |client| {
            client.cancel(&queue(), None, &id("half"), "no").await
        }),
        verb!("cancel_all", "tidemill.results.>", |client| {
            client.cancel_all(all(), "no").try_collect::<Vec<_>>().await
        }),
        verb!("run_now", "tidemill.due.>", |client| {
            client.run_now(&queue(), None, &id("later")).await
        }),
        verb!("run_now", "tidemill.ctl.>", |client| {
            client.run_now(&queue(), None, &id("given-back")).await
        }),
        verb!("reschedule", "tidemill.timers.>", |client| {
            let time = Utc::now() + TimeDelta::days(2);
            client.reschedule(&queue(), None, &id("later"), time).await
        }),
        verb!("set_priority", "tidemill.jobs.>", |client| {
            client.set_priority(&queue(), None, &id("waits"), Priority::Low).await
        }),
        verb!("pause", "$JS.API.CONSUMER.PAUSE.>", |client| {
            client.pause(&queue(), None, None).await
        }),
        verb!("resume", "$JS.API.CONSUMER.PAUSE.>", |client| client.resume(&queue(), None).await),
        verb!("purge", "$JS.API.STREAM.PURGE.>", |client| client.purge(&queue(), None).await),
        verb!("plan_pause", "$JS.API.CONSUMER.INFO.>", |client| {
            client.plan_pause(&queue(), None).await
        }),
        verb!("timers", "$JS.API.DIRECT.GET.TIDEMILL_TIMERS_default", |client| {
            client.timers(&queue(), None).await
        }),
        verb!("unfinished", "$JS.API.STREAM.INFO.>", |client| client.unfinished(&queue()).await),
        verb!("jobs that are done", "$JS.API.DIRECT.GET.TIDEMILL_RESULTS_default", |client| {
            let mut done = all();
            done.state = Some("done".into());
            client.jobs(done).try_collect::<Vec<_>>().await
        }),
        verb!("attempts", "$JS.API.DIRECT.GET.TIDEMILL_ATTEMPTS_default", |client| {
            let all = RecordFilter::queue(queue()).since(Since::Start);
            let attempts = client.attempts(all).await?;
            Box::pin(attempts).try_next().await
        }),
        verb!("attempts_of", "$JS.API.DIRECT.GET.TIDEMILL_ATTEMPTS_default", |client| {
            let letter = client.dead_letter(&queue(), &id("buried")).await?;
            client.attempts_of(&letter).await
        }),
        verb!("queue_info", "$JS.API.CONSUMER.INFO.>", |client| client.queue_info(&queue()).await),
        verb!("wait_empty", "$JS.API.STREAM.INFO.>", |client| client.wait_empty(&queue()).await),
        verb!("remove_queue", "$JS.API.STREAM.DELETE.>", |client| {
            client.remove_queue(&queue()).await
        }),
        verb!("dead_letters", "$JS.API.DIRECT.GET.TIDEMILL_DEAD_default", |client| {
            client.dead_letters(DeadFilter::queue(queue())).try_collect::<Vec<_>>().await
        }),
        verb!("retry_dead", "tidemill.jobs.>", |client| {
            let letter = client.dead_letter(&queue(), &id("buried")).await?;
            client.retry_dead(&letter).await
        }),
        verb!("discard_dead", "$JS.API.STREAM.MSG.DELETE.TIDEMILL_DEAD_default", |client| {
            let letter = client.dead_letter(&queue(), &id("buried")).await?;
            client.discard_dead(&letter).await
        }),
        verb!("cron add", "tidemill.cron.>", |client| {
            let daily = "@daily".parse()?;
            client.cron().add(CronJob::new("other", daily, Ping)).await
        }),
        verb!("cron reconcile", "$JS.API.STREAM.NAMES", |client| {
            client.cron().reconcile([]).await
        }),
        verb!("cron list", "$JS.API.DIRECT.GET.TIDEMILL_TIMERS_default", |client| {
            client.cron().list(&queue()).await
        }),
        verb!("cron get", "$JS.API.STREAM.MSG.GET.TIDEMILL_TIMERS_default", |client| {
            client.cron().get(&queue(), &tick()).await
        }),
        verb!("cron pause", "tidemill.cron.>", |client| client
            .cron()
            .pause(&queue(), &tick())
            .await),
        verb!("cron plan", "$JS.API.STREAM.MSG.GET.TIDEMILL_TIMERS_default", |client| {
            client.cron().plan(CronJob::new("tick", "@daily".parse()?, Ping)).await
        }),
        verb!("cron list_all", "$JS.API.STREAM.NAMES", |client| client.cron().list_all().await),
        verb!("cron resume", "tidemill.cron.>", |client| client
            .cron()
            .resume(&queue(), &CronName::new("still")?)
            .await),
        verb!("cron run", "tidemill.jobs.>", |client| client.cron().run(&queue(), &tick()).await),
        verb!("cron remove", "$JS.API.STREAM.MSG.DELETE.TIDEMILL_TIMERS_default", |client| {
            client.cron().remove(&queue(), &tick()).await
        }),
        verb!("watch", "subscribe tidemill.events.>", |client| {
            let job = client.job(&queue(), None, &id("waits")).await?.remove(0);
            let mut events = Box::pin(client.watch(&job).await?);
            events.next().await.unwrap_or(Err(nothing()))
        }),
    ]
}

fn nothing() -> Error {
    "".parse::<Queue>().expect_err("no name")
}

/// The configuration: an administrator, and a user for each verb.
fn accounts(verbs: &[(&str, &str, Call)]) -> String {
    let user = |(n, (_, denied, _)): (usize, &(&str, &str, Call))| {
        let rights = match denied.strip_prefix("subscribe ") {
            Some(subject) => {
                format!(r#"publish: ">", subscribe: {{ allow: ">", deny: ["{subject}"] }}"#)
            }
            None => format!(r#"publish: {{ allow: ">", deny: ["{denied}"] }}, subscribe: ">""#),
        };
        format!("{{ user: u{n}, password: pw, permissions {{ {rights} }} }}\n")
    };
    let users: String = verbs.iter().enumerate().map(user).collect();
    format!(
        "accounts {{ JOBS {{ jetstream: enabled\n users: [ {{ user: admin, password: pw }}\n {users} ] \
         }} }}"
    )
}

async fn user(broker: &Broker, name: &str) -> Client {
    let options = to(broker.url()).user_password(name, "pw");
    Client::connect(options).await.expect("connects")
}

/// Jobs in all the states that the verbs need.
async fn prepare(admin: &Client) {
    admin.ensure_queue(&queue()).await.expect("made");
    let discard = |_: Ping, _: JobContext| async { Err::<(), _>(JobError::discard("no")) };
    let worker = Worker::builder(admin).park_over(Duration::from_secs(1));
    let worker = worker.handler(Handler::new(discard)).build().expect("valid");
    let running = worker.start().await.expect("starts");
    let buried = admin.enqueue(Ping).id("buried").await.expect("stored");
    buried.completion().await.expect("buried");
    let hour = Duration::from_secs(3600);
    admin.enqueue(Ping).id("later").delay(hour).await.expect("stored");
    admin.enqueue(NewJob::raw("unknown", "{}").id("given-back")).await.expect("stored");
    eventually("one is parked and one given back", || async {
        let info = admin.queue_info(&queue()).await.expect("there");
        info.timers == 1 && info.lanes.iter().any(|lane| lane.unsettled == 1)
    })
    .await;
    running.drain().await;
    for id in ["waits", "half"] {
        admin.enqueue(NewJob::new(&Ping).id(id)).await.expect("stored");
    }
    admin.enqueue(NewJob::raw(Ping::KIND, "{}").unique("taken")).await.expect("stored");
    for name in ["tick", "still"] {
        let entry = CronJob::new(name, "@yearly".parse().expect("valid"), Ping);
        admin.cron().add(entry).await.expect("added");
    }
    admin.cron().pause(&queue(), &CronName::new("still").expect("valid")).await.expect("paused");
}

#[tokio::test]
async fn a_missing_right_is_named_for_every_verb() {
    let verbs = verbs();
    let builder = Broker::builder().config(accounts(&verbs));
    let builder = builder.connect_with(|options| options.user_password("admin", "pw"));
    let broker = builder.start().await.expect("a broker");
    prepare(&user(&broker, "admin").await).await;
    for (n, (name, denied, call)) in verbs.iter().enumerate() {
        let client = user(&broker, &format!("u{n}")).await;
        let begun = Instant::now();
        let error = match timeout(PATIENCE, call(&client)).await {
            Ok(Ok(())) => panic!("{name} worked without {denied}"),
            Ok(Err(error)) => error,
            Err(_) => panic!("{name} hangs without {denied}"),
        };
        let message = error.to_string();
        assert!(error.is_permission(), "{name} without {denied}: {error:?}");
        let subject = denied.trim_start_matches("subscribe ").trim_end_matches('>');
        assert!(message.contains(subject), "{name} without {denied}: {message}");
        assert!(begun.elapsed() < AT_ONCE, "{name} took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn the_command_line_says_which_verb_needs_it() {
    let rights = r#"accounts { JOBS { jetstream: enabled
        users: [ { user: admin, password: pw }
        { user: reader, password: pw, permissions {
            publish: { allow: ">", deny: ["tidemill.>", "$JS.API.CONSUMER.PAUSE.>",
                "$JS.API.STREAM.PURGE.>", "$JS.API.STREAM.DELETE.>"] }, subscribe: ">" } } ] } }"#;
    let builder = Broker::builder().config(rights);
    let builder = builder.connect_with(|options| options.user_password("admin", "pw"));
    let broker = builder.start().await.expect("a broker");
    prepare(&user(&broker, "admin").await).await;
    let table: [(&[&str], &str); 9] = [
        (&["enqueue", "default", "ping"], "tidemill.jobs.default.normal.ping."),
        (&["job", "cancel", "waits"], "tidemill.results.default.ping.waits."),
        (&["job", "run", "later"], "tidemill.due.default.normal.ping.later."),
        (&["job", "run", "given-back"], "tidemill.ctl.default.running"),
        (&["queue", "pause"], "$JS.API.CONSUMER.PAUSE.TIDEMILL_JOBS_default.critical"),
        (&["queue", "purge", "--yes"], "$JS.API.STREAM.PURGE.TIDEMILL_TIMERS_default"),
        (&["queue", "rm", "default", "--yes"], "$JS.API.STREAM.DELETE.TIDEMILL_JOBS_default"),
        (&["cron", "pause", "tick"], "tidemill.cron.default.normal.ping.tick"),
        (&["dead", "retry", "buried"], "tidemill.jobs.default.normal.ping.buried"),
    ];
    let none = Contexts::new();
    for (arguments, subject) in table {
        let login = ["-s", broker.url(), "--user", "reader", "--password", "pw"];
        let assert = tidemill(&none, &[arguments, &login].concat(), &[]).assert().code(4);
        let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        let verb = arguments.iter().take(if arguments[0] == "enqueue" { 1 } else { 2 });
        let verb = verb.copied().collect::<Vec<_>>().join(" ");
        for words in [
            &format!("no permission to publish to {subject}"),
            &format!("(needed for `tidemill {verb}`)"),
        ] {
            assert!(told.contains(words.as_str()), "{verb} does not say {words:?}: {told}");
        }
    }
}
