//! The command lines for those who write no Rust: each line is given to a shell.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::blocks;

/// A shell that finds our binary under its name, and nothing of the caller's NATS settings.
fn shell(line: &str) -> Command {
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_tidemill")).parent().expect("a folder");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    let mut shell = Command::new("sh");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NATS_") {
            shell.env_remove(name);
        }
    }
    shell.args(["-c", line]).env("PATH", std::env::join_paths(paths).expect("paths"));
    shell.stdin(Stdio::null());
    shell
}

/// What a line prints; it must succeed.
fn output(line: &str, url: &str) -> String {
    let output = shell(line).env("NATS_URL", url).output().expect("starts");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// `tidemill dev`, ended with the test.
struct Dev {
    process: Child,
    url: String,
}

impl Dev {
    fn start(line: &str) -> Self {
        // The shell gives way to the program, so that our signal reaches it.
        let mut process =
            shell(&format!("exec {line}")).stdout(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let url = lines
            .by_ref()
            .map(|line| line.expect("a line"))
            .find_map(|line| line.trim().strip_prefix("export NATS_URL=").map(str::to_owned))
            .expect("it says how to connect");
        // What else it says must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let id = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
    }
}

/// Publishes as `nats pub SUBJECT BODY` does, with a client of its own.
fn nats_pub(line: &str, url: &str) {
    let words = output(&format!("printf '%s\\n' {line}"), url);
    let [nats, publish, subject, body] = *words.lines().collect::<Vec<_>>() else {
        panic!("not a plain publish: {line}");
    };
    assert_eq!((nats, publish), ("nats", "pub"));
    let (subject, body) = (subject.to_owned(), body.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = async_nats::connect(url).await.expect("connects");
        client.publish(subject, body.into()).await.expect("sent");
        client.flush().await.expect("flushed");
    });
}

#[test]
fn handlers_need_no_rust() {
    let blocks = blocks("sh");
    let line = |begins: &str| {
        let found = blocks.iter().flat_map(|block| block.lines()).find(|l| l.starts_with(begins));
        found.unwrap_or_else(|| panic!("the README has no line '{begins} …'")).to_owned()
    };
    let dev = Dev::start(&line("tidemill dev"));

    let enqueued = output(&line("tidemill enqueue"), &dev.url);
    assert!(enqueued.contains(r#"{"hello":"tide"}"#), "{enqueued}");
    let later = line("tidemill enqueue default greet '{\"name\":\"later\"}'");
    output(&later, &dev.url);
    assert!(output(&line("tidemill job ls"), &dev.url).contains("scheduled until"));
    assert!(output(&line("tidemill job cancel"), &dev.url).starts_with("cancelled"));
    let many = output(&line("seq 1000"), &dev.url);
    assert!(many.starts_with("enqueued 1000 jobs"), "{many}");
    let folder = tempfile::tempdir().expect("a folder");
    let there =
        |line: String| output(&format!("cd {} && {line}", folder.path().display()), &dev.url);
    there(line("seq 1000 | sed 's/.*/{\"kind\""));
    assert!(there(line("tidemill import")).starts_with("imported 1000 jobs"));
    assert!(there(line("tidemill cron add")).starts_with("added: report in queue default"));
    assert!(there(line("tidemill cron ls")).contains("Europe/Berlin"));
    nats_pub(&line("nats pub"), &dev.url);
    let watched = output(&format!("{} --limit 5", line("tidemill results watch")), &dev.url);
    assert_eq!(watched.matches("greet").count(), 5, "{watched}");
    output(&line("tidemill dead ls"), &dev.url);
}
