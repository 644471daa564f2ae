//! The flags and environment names of the nats command line, and which goes before which.

use std::process::{Command, Output};

use serde_json::json;
use tidemill::embedded::Broker;

use crate::support::Files;

/// Servers that want different logins, and contexts for them.
struct Scene {
    one: Broker,
    two: Broker,
    files: Files,
}

async fn server(user: &'static str) -> Broker {
    let config = format!("authorization {{ user: {user}, password: {user} }}");
    let builder = Broker::builder().config(config);
    let builder = builder.connect_with(move |options| options.user_password(user, user));
    builder.start().await.expect("a broker")
}

impl Scene {
    async fn new() -> Self {
        let (one, two) = tokio::join!(server("one"), server("two"));
        let files = Files::new();
        for (name, broker) in [("one", &one), ("two", &two)] {
            let context = json!({ "url": broker.url(), "user": name, "password": name });
            files.write(&format!("nats/context/{name}.json"), &context.to_string());
        }
        files.write("nats/context.txt", "one\n");
        Self { one, two, files }
    }

    /// Runs a command that makes a queue, with our contexts and no other settings.
    fn setup(&self, queue: &str, flags: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NATS_") {
                command.env_remove(name);
            }
        }
        command
            .args(["setup", queue])
            .args(flags)
            .envs(env.iter().copied())
            .env("XDG_CONFIG_HOME", self.files.folder())
            .output()
            .expect("starts")
    }
}

/// Which of the servers has a queue.
async fn who_has(scene: &Scene, queue: &str) -> &'static str {
    let mut found = Vec::new();
    for (name, broker) in [("one", &scene.one), ("two", &scene.two)] {
        let options = crate::support::to(broker.url()).user_password(name, name);
        let client = tidemill::Client::connect(options).await.expect("connects");
        let queues = client.queues().await.expect("lists");
        if queues.iter().any(|known| known.as_str() == queue) {
            found.push(name);
        }
    }
    match *found {
        [one] => one,
        _ => panic!("queue {queue} is at {found:?}"),
    }
}

#[tokio::test]
async fn flags_go_before_environment_before_contexts() {
    let scene = Scene::new().await;
    let (one, two) = (scene.one.url(), scene.two.url());
    type Env<'a> = &'a [(&'a str, &'a str)];
    let table: [(&str, &[&str], Env<'_>, &str); 8] = [
        ("selected", &[], &[], "one"),
        ("flag-context", &["--context", "two"], &[], "two"),
        ("env-context", &[], &[("NATS_CONTEXT", "two")], "two"),
        ("flag-over-env-context", &["--context", "one"], &[("NATS_CONTEXT", "two")], "one"),
        (
            "env-over-selected",
            &[],
            &[("NATS_URL", two), ("NATS_USER", "two"), ("NATS_PASSWORD", "two")],
            "two",
        ),
        (
            "flag-over-env",
            &["--server", one, "--user", "one", "--password", "one"],
            &[("NATS_URL", two), ("NATS_USER", "two"), ("NATS_PASSWORD", "two")],
            "one",
        ),
        (
            "env-login-over-named-context",
            &["--context", "two", "--server", one],
            &[("NATS_USER", "one"), ("NATS_PASSWORD", "one")],
            "one",
        ),
        ("context-login-for-flag-server", &["--context", "one", "--server", one], &[], "one"),
    ];
    for (queue, flags, env, expected) in table {
        let output = scene.setup(queue, flags, env);
        assert!(output.status.success(), "{queue}: {output:?}");
        assert_eq!(who_has(&scene, queue).await, expected, "{queue}");
    }
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_code_and_words() {
    let scene = Scene::new().await;
    let gone = scene.two.url().to_owned();
    let url = scene.one.url();
    let told = |flags: &[&str]| {
        let output = scene.setup("any", flags, &[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty(), "{output:?}");
        (output.status.code().expect("no signal"), text)
    };
    let (code, text) = told(&["--server", url, "--user", "one", "--password", "hunter2"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("refuses these credentials") && !text.contains("hunter2"), "{text}");
    let (code, text) = told(&["--context", "three"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("no NATS context 'three'; known are: one, two"), "{text}");
    let (code, text) = told(&["--server", url, "--creds", "/no/such.creds"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/no/such.creds"), "{text}");
    let (code, text) = told(&["--server", "http://somewhere"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("give nats://HOST:PORT or tls://HOST:PORT"), "{text}");

    scene.two.kill().await.expect("ends");
    let (code, text) = told(&["--server", &gone]);
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("no NATS server answers there"), "{text}");
}
