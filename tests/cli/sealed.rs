//! Sealed and signed jobs by the command line: keys made, jobs sealed and signed, worked, looked at.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{Mill, Said, eventually, said, tidemill};

/// A folder with files of keys, as the program makes them.
struct Keys {
    folder: TempDir,
}

impl Keys {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// What a command prints, in a file of this name.
    fn make(&self, name: &str, arguments: &[&str]) -> String {
        let made = said(tidemill(arguments), "");
        assert_eq!(made.code, 0, "{made:?}");
        self.write(name, &made.out)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).expect("reads")
}

#[tokio::test]
async fn a_sealed_job_is_worked_and_shown_to_those_with_the_key() {
    let (mill, keys) = (Mill::start().await, Keys::new());
    let file = keys.make("seal.keys", &["seal", "keygen", "--id", "k1"]);
    let other = keys.make("other.keys", &["seal", "keygen", "--id", "k2"]);
    let payload = r#"{"name":"hush4711"}"#;
    let greet = ["enqueue", "default", "greet", payload, "--id", "g1", "--seal-keys", &file];
    mill.ok(&greet);
    let text = mill.ok(&["job", "get", "g1"]);
    assert!(text.contains("with key k1") && text.contains("give --seal-keys"), "{text}");
    assert!(!text.contains("hush4711"), "{text}");
    assert!(mill.ok(&["job", "ls"]).contains("waiting, sealed with key k1"));
    let closed = &mill.json(&["job", "get", "g1"])[0];
    assert_eq!((&closed["sealed_with"], &closed["payload"]), (&"k1".into(), &().into()));
    let opened = &mill.json(&["job", "get", "g1", "--seal-keys", &file])[0];
    assert_eq!(opened["payload"]["name"], "hush4711");
    assert!(mill.ok(&["job", "get", "g1", "--seal-keys", &file]).contains("hush4711"));

    // A worker without the key buries it, one with the key runs what is retried.
    let greet = "greet=sed s/name/hello/";
    let worker = mill.work(&["--exec", greet, "--seal-keys", &other]);
    let buried = eventually("a dead letter", || mill.json(&["dead", "ls"]).pop());
    assert_eq!(
        (&buried["info"]["reason"], &buried["sealed_with"]),
        (&"unsealable".into(), &"k1".into())
    );
    worker.terminate();
    let text = mill.ok(&["dead", "show", "g1"]);
    assert!(text.contains("not among those here") || text.contains("with key k1"), "{text}");
    assert!(!text.contains("hush4711"), "{text}");
    assert!(mill.ok(&["dead", "show", "g1", "--seal-keys", &file]).contains("hush4711"));
    mill.ok(&["dead", "retry", "g1"]);
    let mut command = mill.command(&["work", "--exec", greet]);
    command.env("TIDEMILL_SEAL_KEYS", &file);
    let worker = crate::support::Running::start(command);
    worker.hears("Ctrl-C drains");
    let done = eventually("its end", || {
        let runs = mill.json(&["results", "get", "g1", "--seal-keys", &file]);
        runs.into_iter().find(|run| run["status"] == "done")
    });
    assert_eq!(done["result"]["hello"], "hush4711");
    let text = mill.ok(&["results", "get", "g1"]);
    assert!(text.contains("-> sealed with key k1") && !text.contains("hush4711"), "{text}");
    let wait = ["enqueue", "default", "greet", payload, "--wait", "20s", "--seal-keys", &file];
    assert!(mill.ok(&wait).contains(r#"-> {"hello":"hush4711"}"#));
    worker.terminate();
}

#[tokio::test]
async fn a_worker_takes_signed_jobs_alone() {
    let (mill, keys) = (Mill::start().await, Keys::new());
    let seed = keys.make("sign.seed", &["sign", "keygen"]);
    let text = read(&seed);
    let public = text.lines().find_map(|line| line.strip_prefix("# public: ")).expect("told");
    let trusted = keys.write("trusted", &format!("# ours\n{public}\n"));
    let worker = mill.work(&["--exec", "greet=cat", "--require-signed", &trusted]);
    let greet = |more: &[&str]| {
        mill.run(&[&["enqueue", "default", "greet", "{\"n\":1}", "--wait", "20s"], more].concat())
    };
    let signed = greet(&["--sign-key", &seed]);
    assert_eq!(signed.code, 0, "{signed:?}");
    mill.ok(&["enqueue", "default", "greet", "{\"n\":2}", "--id", "mine"]);
    let buried = eventually("a dead letter", || mill.json(&["dead", "ls"]).pop());
    assert_eq!(buried["info"]["reason"], "unsigned");
    assert_eq!(buried["info"]["unvouched"]["id"], "mine");
    let shown = mill.ok(&["dead", "show", buried["id"].as_str().expect("text")]);
    assert!(shown.contains("of job mine, for which nobody vouches"), "{shown}");
    worker.terminate();
    // The key itself in place of a file.
    let worker = mill.work(&["--exec", "greet=cat", "--require-signed", public]);
    assert_eq!(greet(&["--sign-key", &seed]).code, 0);
    worker.terminate();
}

#[tokio::test]
async fn imports_and_cron_entries_are_sealed_and_signed_likewise() {
    let (mill, keys) = (Mill::start().await, Keys::new());
    let seal = keys.make("seal.keys", &["seal", "keygen"]);
    let seed = keys.make("sign.seed", &["sign", "keygen"]);
    let public = read(&seed);
    let public = public.lines().next().and_then(|line| line.strip_prefix("# public: "));
    let with_keys = ["--seal-keys", &seal, "--sign-key", &seed];
    let file =
        keys.write("jobs.ndjson", r#"{"kind":"greet","payload":{"name":"hush4711"},"id":"i1"}"#);
    mill.ok(&[&["import", &file], &with_keys[..]].concat());
    let add = ["cron", "add", "often", "default", "greet", r#"{"name":"hush4711"}"#];
    let add = [&add[..], &["--schedule", "@every 1h"], &with_keys].concat();
    assert!(mill.ok(&add).starts_with("added: often"));
    assert!(mill.ok(&add).starts_with("unchanged: often"));
    let listed = mill.json(&["cron", "ls"]).remove(0);
    assert_eq!(listed["payload"], serde_json::Value::Null, "{listed}");
    let opened = mill.json(&["cron", "ls", "--seal-keys", &seal]).remove(0);
    assert_eq!(opened["payload"]["name"], "hush4711");
    let fired = mill.json(&["cron", "run", "often"]).remove(0);
    let signed = ["--require-signed", public.expect("told")];
    let worker = mill.work(&[&["--exec", "greet=cat", "--seal-keys", &seal], &signed[..]].concat());
    for id in ["i1", fired["id"].as_str().expect("text")] {
        let done = eventually("its end", || {
            let said = mill.run(&["results", "get", id, "--json", "--seal-keys", &seal]);
            crate::support::documents(&said.out).pop()
        });
        assert_eq!(
            (&done["status"], &done["result"]["name"]),
            (&"done".into(), &"hush4711".into())
        );
    }
    worker.terminate();
}

#[tokio::test]
async fn no_key_is_shown_by_what_goes_wrong() {
    let (mill, keys) = (Mill::start().await, Keys::new());
    let seal = keys.make("seal.keys", &["seal", "keygen"]);
    let seed = keys.make("sign.seed", &["sign", "keygen"]);
    let (line, secret) = (read(&seal), read(&seed));
    let line = line.trim();
    let key = line.split_once(' ').expect("two words").1;
    let secret = secret.lines().nth(1).expect("a seed");
    let cut = keys.write("cut", &format!("{} ", &line[..line.len() - 1]));
    let cut_seed = keys.write("cut.seed", &secret[..secret.len() - 1]);
    let enqueue = |arguments: &[&str]| -> Said {
        mill.run(&[&["-vv", "enqueue", "default", "greet"], arguments].concat())
    };
    let works = |arguments: &[&str]| -> Said {
        mill.run(&[&["-vv", "work", "--exec", "greet=cat"], arguments].concat())
    };
    for said in [
        enqueue(&["--seal-keys", &cut]),
        enqueue(&["--seal-keys", line]),
        enqueue(&["--seal-keys", key]),
        enqueue(&["--seal-keys", &seed]),
        enqueue(&["--sign-key", &cut_seed]),
        enqueue(&["--sign-key", secret]),
        enqueue(&["--sign-key", &seal]),
        works(&["--require-signed", &seed]),
        works(&["--require-signed", secret]),
        works(&["--require-signed", &seal]),
    ] {
        assert_ne!(said.code, 0, "{said:?}");
        let shown = format!("{}{}", said.out, said.err);
        assert!(shown.contains("error"), "{shown}");
        for secret in [&key[..20], &secret[2..20]] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    let said = enqueue(&["--seal-keys", &seal, "--sign-key", &seed]);
    assert_eq!(said.code, 0, "{said:?}");
    let shown = format!("{}{}", said.out, said.err);
    assert!(!shown.contains(&key[..20]) && !shown.contains(&secret[2..20]), "{shown}");
    let mut help = mill.command(&["enqueue", "--help"]);
    help.env("TIDEMILL_SEAL_KEYS", line).env("TIDEMILL_SIGN_KEY", secret);
    let shown = crate::support::said(help, "").out;
    assert!(shown.contains("TIDEMILL_SEAL_KEYS"), "{shown}");
    assert!(!shown.contains(key) && !shown.contains(secret), "{shown}");
}
